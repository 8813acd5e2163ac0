"""Open a single table whose audio lies in its folder, or in it."""

import datasets

from collap.data.tables import read_table, split_name

from .entry import Entry, Request


def _is_file(request: Request) -> bool:
    return request.path.is_file()


def _open_file(request: Request) -> datasets.Dataset:
    if split_name(request.split) != "train":
        raise ValueError(
            f"{request.path}: no split {request.split!r}; a single table is the split 'train' (or 'train[:100]', ...)"
        )
    return read_table([request.path], request.split, request.audio_column)


ENTRY = Entry("table", "a .csv, .tsv, .json, .jsonl or .parquet file", _is_file, _open_file)
