"""MusicCaps: captions by musicians of 5,521 clips of ten seconds of YouTube videos; no audio comes with it.

Of its clips 2,858 are of AudioSet's evaluation set, by convention the test split, and 2,663 of its training set.
"""

from collections.abc import Iterator

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.set_folder import SetFolder, cell_list, is_true

COLUMNS = {"ytid", "start_s", "end_s", "caption", "is_audioset_eval"}


def _tables(folder: SetFolder) -> list[str]:
    named = folder.called("musiccaps-public.csv", "*musiccaps*.csv", "*musiccaps*.parquet")
    return [name for name in named if folder.columns(name) >= COLUMNS][:1]


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    rows = list(folder.rows(_tables(folder)[0]))
    spans = [(row["ytid"].strip(), float(row["start_s"]), float(row["end_s"])) for row in rows]
    clips = folder.clips(spans, settings["full_tracks"])
    for row, (video, start, end), clip in zip(rows, spans, clips, strict=True):
        if clip.problem:
            folder.problems.append(clip.problem)
        is_eval = is_true(row["is_audioset_eval"])
        yield Record(
            id=video,
            texts=cell_list(row["caption"]),
            audio=clip.audio,
            start=None if settings["full_tracks"] else start,
            end=None if settings["full_tracks"] else end,
            split="test" if is_eval else "train",
            source=youtube_source(video),
            licence="CC BY-SA 4.0 (captions)",
            meta={
                "aspects": cell_list(row.get("aspect_list")),
                "labels": [label for label in str(row.get("audioset_positive_labels") or "").split(",") if label],
                "author": str(row.get("author_id")),
                "balanced": is_true(row.get("is_balanced_subset")),
                "audioset": "eval" if is_eval else "train",
            },
        )


SET = NamedSet(
    name="musiccaps",
    layout="musiccaps-public.csv and the audio, ID.wav: clips of ten seconds, or whole tracks",
    tables=_tables,
    read=_read,
    get="hf download --repo-type dataset google/MusicCaps --local-dir FOLDER",
    fetch=youtube_command,
    settings={"full_tracks": False},
    paper="MusicCaps",
)
