"""AudioCaps: captions of ten-second clips of YouTube videos (cdjkim/audiocaps); no audio comes with it.

Clips of the training split have one caption, those of val and test five, each in a row of its own. The tables end their
lines with CRLF. `dataset` is the first release, `--dataset_config 2.0` the one in `dataset2.0`.
"""

from collections.abc import Iterator

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.set_folder import SetFolder

COLUMNS = {"audiocap_id", "youtube_id", "start_time", "caption"}
SPLITS = {"train.csv": "train", "val.csv": "validation", "test.csv": "test"}
SECONDS = 10.0


def _tables(folder: SetFolder) -> list[str]:
    return [name for name in folder.called(*SPLITS) if folder.columns(name) >= COLUMNS]


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    for table in sorted(_tables(folder)):
        rows: dict[tuple[str, float], list[dict]] = {}
        for row in folder.rows(table):
            rows.setdefault((row["youtube_id"].strip(), float(row["start_time"])), []).append(row)
        spans = [(video, start, start + SECONDS) for video, start in rows]
        clips = folder.clips(spans)
        for (video, start, end), clip, own in zip(spans, clips, rows.values(), strict=True):
            if clip.problem:
                folder.problems.append(clip.problem)
            yield Record(
                id=f"{video}_{start:g}",
                texts=[row["caption"].strip() for row in own if row["caption"].strip()],
                audio=clip.audio or folder.first_audio(*(row["audiocap_id"].strip() for row in own)),
                start=start,
                end=end,
                split=SPLITS[table.rpartition("/")[2].lower()],
                config="2.0" if "dataset2.0/" in f"/{table}" else "1.0",
                source=youtube_source(video),
                licence="academic use (captions)",
                meta={"audiocap_ids": [row["audiocap_id"].strip() for row in own]},
            )


SET = NamedSet(
    name="audiocaps",
    layout="dataset/train.csv, val.csv and test.csv, and the audio, ID.wav: clips of ten seconds, or whole tracks",
    tables=_tables,
    read=_read,
    get="git clone the repository cdjkim/audiocaps into it; its audio is given on request",
    fetch=youtube_command,
    paper="AudioCaps",
    overlapping=True,
)
