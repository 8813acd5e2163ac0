"""Measure how long songs are, without decoding them: by a column, by the headers of files, or by stored features."""

import contextlib
import json
import math

import datasets

from processing.audio_collap import SAMPLING_RATE
from processing.decode_audio import AudioFileError

from .arrow_cache import map_once
from .feature_cache import CACHED_COLUMN, UNREADABLE, audio_files_digest
from .guarded_reading import header_seconds
from .rows import audio_source, check_column


def num_segments(seconds: float, segment_seconds: float) -> int:
    """Return the segments of an audio, at least 1; half a sample too many in `seconds` is rounding."""
    return max(math.ceil((seconds - 0.5 / SAMPLING_RATE) / segment_seconds), 1)


def check_duration(value: float | str | None, row: int, column: str) -> float:
    """Return a duration in seconds; a ValueError names the row of one that is missing or no positive number."""
    if isinstance(value, str):  # of a .csv
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"row {row} has {column} {value!r}; expected the length of its audio in seconds, above 0")
    return float(value)


def song_seconds(
    dataset: datasets.Dataset, audio_column: str, duration_column: str | None = None, num_workers: int = 1
) -> list[float]:
    """Return the length of every row's audio, from a column of durations in seconds, else from the files' headers.

    `datasets` keeps what was read there. A row that cannot be read counts as 0.

    Raises:
        ValueError: names the first row without a positive duration, or the columns if there is none of that name.
    """
    if duration_column is not None:
        check_column(dataset, duration_column, "duration_column")
        return [check_duration(value, row, duration_column) for row, value in enumerate(dataset[duration_column])]
    return map_once(
        dataset.select_columns(audio_column),
        _measure_seconds,
        fn_kwargs={"audio_column": audio_column, "stamp": audio_files_digest(dataset, audio_column)},
        remove_columns=[audio_column],
        features=datasets.Features({"seconds": datasets.Value("float64")}),
        num_proc=num_workers if num_workers > 1 else None,
        desc="durations",
    )["seconds"]


def song_segments(
    dataset: datasets.Dataset,
    audio_column: str,
    segment_seconds: float,
    duration_column: str | None = None,
    num_workers: int = 1,
) -> list[int]:
    """Return the number of segments of every row's audio, to form batches by length.

    They come from stored features if there are any, else from [`song_seconds`]. A row that cannot be read counts as
    one segment.
    """
    if CACHED_COLUMN in dataset.column_names:
        return _stored_segments(dataset)
    seconds = song_seconds(dataset, audio_column, duration_column, num_workers)
    return [num_segments(one, segment_seconds) for one in seconds]


def _measure_seconds(example: dict, audio_column: str, stamp: str) -> dict:
    """Read one header; `stamp` is there for the fingerprint that `datasets` makes of the arguments."""
    try:
        return {"seconds": header_seconds(audio_source(example[audio_column]))}
    except AudioFileError:
        return {"seconds": 0.0}


def _stored_segments(dataset: datasets.Dataset) -> list[int]:
    """Read the header of each row's safetensors: the features themselves, 2.5 MB for a segment, stay on disk.

    A row that could not be read counts as one segment.
    """
    segments = []
    for table in dataset.select_columns(CACHED_COLUMN).with_format("arrow").iter(batch_size=1):
        content = memoryview(table.column(CACHED_COLUMN)[0].as_buffer())
        if bytes(content[:8]) == UNREADABLE:
            segments.append(1)
            continue
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        segments.append(json.loads(bytes(header))["segment_mask"]["shape"][0])
    return segments
