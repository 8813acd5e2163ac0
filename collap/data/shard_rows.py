"""Give the rows of a data set shard by shard, from any row of a shard on, for streams."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from .audio_column import ROWS_READ, settle_table
from .parquet_tables import ParquetShards
from .places import Place

MAX_TABLE_SHARDS = 256  # ranges of rows that an opened data set is cut into


class ParquetRows:
    """Read local parquet files, each of them a shard.

    Every kind of rows has `num_shards`, and `tables(shard, first)`, which gives the columns that were asked for from
    row `first` of a shard on, its audio as structs of bytes and path, up to [`ROWS_READ`] rows at a time.

    Args:
        files: in order.
        columns: those to be read; the first is that of audio.
    """

    def __init__(self, files: list[Path], columns: list[str]):
        self.shards = ParquetShards(files, columns[0], Place(files[0].parent), columns)
        self.num_shards = len(files)

    def tables(self, shard: int, first: int) -> Iterator[pa.Table]:
        """Give the rows of a shard from row `first` on; row groups before it are not read."""
        for batch in self.shards.batches([self.shards.files[shard]], first):
            yield pa.Table.from_batches([batch])


class TableRows:
    """Give the rows of an opened data set; a shard is a range of them."""

    def __init__(self, dataset: datasets.Dataset, columns: list[str]):
        self.dataset = dataset.select_columns(columns).with_format("arrow")
        self.num_shards = min(len(dataset), MAX_TABLE_SHARDS)

    def tables(self, shard: int, first: int) -> Iterator[pa.Table]:
        """Give the rows of a shard from row `first` on."""
        rows = self.dataset.shard(self.num_shards, shard, contiguous=True)
        yield from rows.select(range(min(first, len(rows)), len(rows))).iter(batch_size=ROWS_READ)


class HubRows:
    """Read a data set of the Hub through `datasets`; nothing but its shards is fetched, so audio is bytes."""

    def __init__(self, stream: datasets.IterableDataset, columns: list[str], source: str):
        self.columns, self.source = columns, source
        self.stream = stream.select_columns(columns).with_format("arrow")
        self.num_shards = stream.num_shards
        settle_table(
            stream.features.arrow_schema.empty_table(), _Nowhere(), columns[0], source
        )  # says what is no audio

    def tables(self, shard: int, first: int) -> Iterator[pa.Table]:
        """Give the rows of a shard from row `first` on.

        Not `iter(stream)`: in a worker of a `DataLoader` that would split the shard among the workers again.
        """
        row = first
        for table in self.stream.shard(self.num_shards, shard).skip(first).iter(batch_size=ROWS_READ):
            yield settle_table(table, _Nowhere(), self.columns[0], self.source, row)
            row += len(table)


class _Nowhere:
    """Refuse paths."""

    def find(self, name: str | None, row: int) -> str:
        """Raise a ValueError that names the row."""
        raise ValueError(
            f"row {row} holds paths without bytes ({name!r}); a stream from the Hub needs the bytes in its shards: "
            "train without streaming, or download the data set"
        )
