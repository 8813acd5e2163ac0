"""Open a folder of parquet shards."""

from pathlib import Path

import datasets

from collap.data.tables import read_table, split_name

from .entry import Entry, Request


def parquet_shards(folder: Path, split: str) -> list[Path]:
    """Return the shards of a split in a folder: `train-*.parquet`, `data/train-*.parquet` or `train/*.parquet`."""
    name = split_name(split)
    for pattern in (f"{name}-*.parquet", f"data/{name}-*.parquet", f"{name}/*.parquet"):
        shards = sorted(shard for shard in folder.glob(pattern) if shard.name != "metadata.parquet")
        if shards:
            return shards
    return []


def _has_shards(request: Request) -> bool:
    return request.path.is_dir() and bool(parquet_shards(request.path, request.split))


def _open_shards(request: Request) -> datasets.Dataset:
    return read_table(parquet_shards(request.path, request.split), request.split, request.audio_column)


ENTRY = Entry("shards", "a folder of parquet shards such as train-00000-of-00008.parquet", _has_shards, _open_shards)
