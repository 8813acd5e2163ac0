"""AudioSet: ten-second segments of YouTube videos with labels; no audio comes with it.

The tables have three lines of comment and a comma and a space between fields; ids may begin with a hyphen. The text of
a segment is the names of its labels. With `full_tracks=true` the whole file of a video is taken.
"""

import csv
import itertools
import json
from collections.abc import Iterator

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.set_folder import Clip, SetFolder
from collap.data.text_tables import table_lines

# Table -> config and split.
TABLES = {
    "eval_segments.csv": ("eval", "test"),
    "balanced_train_segments.csv": ("balanced", "train"),
    "unbalanced_train_segments.csv": ("unbalanced", "train"),
}
SEGMENTS_HELD = 100_000  # of the two million of the largest table, with their clips


def _tables(folder: SetFolder) -> list[str]:
    return folder.called(*TABLES)


def read_segments(folder: SetFolder, table: str) -> Iterator[tuple[str, float, float, list[str]]]:
    """Yield id, start and end in seconds, and labels of every segment.

    Raises:
        ValueError: names the line that is malformed.
    """
    path = folder.file(table)
    for number, line in enumerate(table_lines(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            (video, start, end, labels) = next(csv.reader([line], skipinitialspace=True, strict=True))
            yield video, float(start), float(end), labels.split(",")
        except (ValueError, csv.Error) as error:
            raise ValueError(
                f'{path}: line {number} is {line[:80]!r}; expected YTID, start_seconds, end_seconds, "labels"'
            ) from error


def label_names(folder: SetFolder) -> dict[str, str]:
    """Return the name of every label, from `class_labels_indices.csv` or `ontology.json`, whichever are there."""
    names = {}
    for table in folder.called("ontology.json")[:1]:
        names |= {one["id"]: one["name"] for one in json.loads(folder.file(table).read_text(encoding="utf-8"))}
    for table in folder.called("class_labels_indices.csv")[:1]:
        names |= {row["mid"].strip(): row["display_name"].strip() for row in folder.rows(table)}
    return names


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    names = label_names(folder)
    if not names:
        folder.problems.append("neither class_labels_indices.csv nor ontology.json: the texts are ids of labels")
    for table in _tables(folder):
        config, split = TABLES[table.rpartition("/")[2].lower()]
        for (video, start, end, labels), clip in _with_clips(folder, table, settings["full_tracks"]):
            if clip.problem:
                folder.problems.append(clip.problem)
            yield Record(
                id=video,
                texts=[", ".join(names.get(label, label) for label in labels)],
                audio=clip.audio,
                start=None if settings["full_tracks"] else start,
                end=None if settings["full_tracks"] else end,
                split=split,
                config=config,
                source=youtube_source(video),
                licence="CC BY 4.0 (labels)",
                meta={"labels": labels},
            )


def _with_clips(folder: SetFolder, table: str, full_tracks: bool) -> Iterator[tuple[tuple, Clip]]:
    """Yield every segment of a table, as [`read_segments`], and its audio."""
    segments = read_segments(folder, table)
    while held := list(itertools.islice(segments, SEGMENTS_HELD)):
        yield from zip(held, folder.clips([segment[:3] for segment in held], full_tracks), strict=True)


SET = NamedSet(
    name="audioset",
    layout="eval_segments.csv, balanced_train_segments.csv, unbalanced_train_segments.csv (or some of these), "
    "class_labels_indices.csv or ontology.json, and the audio, ID.wav: clips of ten seconds, or whole tracks",
    tables=_tables,
    read=_read,
    get="the segment tables and class_labels_indices.csv of AudioSet's download page, ontology.json of its repository",
    fetch=youtube_command,
    settings={"full_tracks": False},
)
