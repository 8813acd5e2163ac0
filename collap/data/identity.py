"""Tell data sets apart by their content, wherever they lie: a run is resumed on the rows that it began with."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from .rows import file_size

SAMPLED_BYTES = 1 << 16  # at both ends of an audio that a table holds


def rows_digest(dataset: datasets.Dataset, audio_column: str, columns: Sequence[str]) -> str:
    """Hash what every row holds, in order: the values of some columns, and what its audio is told by.

    An audio file is told by its size and by its name within the folder that all files share; it is not read. Bytes in
    the table are told by the base name of their path, their number, and 64 KiB at both ends. So a data set that was
    moved as a whole is the same one, and one with two captions exchanged is another.

    Args:
        dataset: from `open_dataset`.
        audio_column: not decoded.
        columns: texts, songs, durations, ...: of values that JSON takes.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([len(dataset), len(columns)]).encode())
    folder = _shared_folder(dataset, audio_column)
    rows = dataset.select_columns([audio_column, *columns]).with_format("arrow")
    for table in rows.iter(batch_size=256):
        values = zip(*(table.column(column).to_pylist() for column in columns), strict=True)
        for audio, others in zip(_audio_identities(table.column(audio_column), folder), values, strict=True):
            digest.update(json.dumps([*others, audio], default=str).encode())
    return digest.hexdigest()


def _shared_folder(dataset: datasets.Dataset, audio_column: str) -> str:
    """Return the deepest folder of all files that the rows name without holding their bytes; "" if there is none."""
    folder = None
    for table in dataset.select_columns(audio_column).with_format("arrow").iter(batch_size=1000):
        content, paths = _bytes_and_paths(table.column(audio_column))
        own = [os.path.dirname(path) for path in pc.filter(paths, pc.is_null(content)).to_pylist() if path]
        places = {*own, *([folder] if folder is not None else [])}
        try:
            folder = os.path.commonpath(places) if places else folder
        except ValueError:  # absolute and relative ones, or several drives
            return ""
    return folder or ""


def _bytes_and_paths(audio: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    audio = audio.combine_chunks()
    return pc.struct_field(audio, "bytes"), pc.struct_field(audio, "path")


def _audio_identities(audio: pa.ChunkedArray, folder: str) -> list[list]:
    """Return name, size and digest of every entry of an audio column; None for what there is not."""
    found = []
    for content, path in zip(*_bytes_and_paths(audio), strict=True):
        path = path.as_py()
        if content.is_valid:
            buffer = memoryview(content.as_buffer())  # of a memory-mapped table: the middle is not read
            sample = hashlib.blake2b(buffer[:SAMPLED_BYTES], digest_size=16)
            sample.update(buffer[-SAMPLED_BYTES:])
            found.append([Path(path).name if path else None, len(buffer), sample.hexdigest()])
        else:
            found.append([os.path.relpath(path, folder or None) if path else None, file_size(path), None])
    return found
