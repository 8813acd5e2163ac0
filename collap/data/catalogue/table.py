"""Open a single table whose audio lies in its folder, or in it."""

import datasets

from collap.data.tables import read_table, split_name, take_split

from .entry import Entry, Request


def _open_file(request: Request) -> datasets.Dataset:
    if split_name(request.split) != "train":
        raise ValueError(
            f"{request.path}: no split {request.split!r}; a single table is the split 'train' (or 'train[:100]', ...)"
        )
    return take_split({"train": read_table([request.path], request.audio_column)}, request.split, request.path)


LAYOUT = "a .csv, .tsv, .json, .jsonl or .parquet file"
ENTRY = Entry("table", LAYOUT, lambda request: request.path.is_file(), lambda request: ["train"], _open_file)
