"""Read parquet files, the shards of one split, by their literal names and a few rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from collap.files import flat

from .audio_column import ROWS_READ, settle_table
from .places import Place
from .text_tables import LFS_POINTER


class ParquetShards:
    """Read parquet files of the same columns, a few rows at a time.

    Args:
        files: in order.
        audio_column: its name; may be that of no column.
        place: the folder of the files.
        columns: those to be read; None for all.

    Raises:
        ValueError: a shard is no parquet file, has other columns than the first, or a type that `datasets` does not
            know; names it.
    """

    def __init__(self, files: list[Path], audio_column: str, place: Place, columns: Sequence[str] | None = None):
        self.files, self.audio_column, self.place = files, audio_column, place
        schemas = []
        for file in files:
            with _open_parquet(file) as shard:
                _check_twice(shard.schema_arrow.names, file)
                schemas.append(_plain(shard.schema_arrow.empty_table()).schema)
            if schemas[-1].names != schemas[0].names:
                others = sorted(set(schemas[-1].names) ^ set(schemas[0].names)) or "in another order"
                raise ValueError(f"{file}: has other columns than {files[0].name} ({others}); expected the same")
        self.features = self._features(schemas, columns)
        self.column_names = list(self.features)

    def _features(self, schemas: list[pa.Schema], columns: Sequence[str] | None) -> datasets.Features:
        """Return what the columns hold once their audio is settled, and set `raw_schema` to what is read for it."""
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            table = schema.with_metadata(schemas[0].metadata).empty_table()
            features = datasets.Features.from_arrow_schema(table.schema)
        except (pa.ArrowException, NotImplementedError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.files[0]}: its columns cannot be read ({flat(error, 300)})") from error
        settled = settle_table(table, self.place, self.audio_column, self.files[0]).column_names
        names = {
            raw: name for raw, name in zip(table.column_names, settled, strict=True) if name in (columns or settled)
        }
        self.raw_schema = table.select(list(names)).schema.remove_metadata()
        kept = {name: features[raw] for raw, name in names.items()}
        if self.audio_column in kept:
            kept[self.audio_column] = datasets.Audio(decode=False)
        return datasets.Features(kept)

    def batches(self, files: list[Path] | None = None, first: int = 0) -> Iterator[pa.RecordBatch]:
        """Give the rows of all files, or of some, from row `first` on, up to [`ROWS_READ`] at a time."""
        row = 0
        for file in self.files if files is None else files:
            with _open_parquet(file) as shard:
                for group in range(shard.num_row_groups):
                    rows = shard.metadata.row_group(group).num_rows
                    if row + rows > first:
                        yield from self._settled(shard, group, file, row, first)
                    row += rows

    def _settled(self, shard: pq.ParquetFile, group: int, file: Path, row: int, first: int) -> Iterator[pa.RecordBatch]:
        """Give the rows of a row group, the first of which is `row`, from `first` on."""
        for batch in _whole_batches(shard, group, self.raw_schema.names, file):
            table = _plain(pa.Table.from_batches([batch])).cast(self.raw_schema).slice(max(first - row, 0))
            if len(table):
                table = settle_table(table, self.place, self.audio_column, file, max(first, row))
                yield from table.cast(self.features.arrow_schema).to_batches()
            row += len(batch)


def _whole_batches(shard: pq.ParquetFile, group: int, columns: list[str], file: Path) -> Iterator[pa.RecordBatch]:
    """Read a row group; a ValueError names the file if it is damaged there."""
    batches = shard.iter_batches(ROWS_READ, row_groups=[group], columns=columns)
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # such as that texts are UTF-8
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: is damaged in row group {group} ({flat(error, 300)})") from error
        yield batch


def _open_parquet(file: Path) -> pq.ParquetFile:
    with open(file, "rb") as content:
        if content.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{file}: is a pointer of Git LFS and not the table; run `git lfs pull`")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: {flat(error, 300)}") from error


def _plain(table: pa.Table) -> pa.Table:
    """Turn categories into what they stand for, and views into texts."""
    for index, field in enumerate(table.schema):
        column = table.column(index)
        if pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type)
        elif pa.types.is_string_view(field.type):
            column = column.cast(pa.string())
        elif pa.types.is_binary_view(field.type):
            column = column.cast(pa.binary())
        table = table.set_column(index, field.with_type(column.type), column)
    return table


def _check_twice(names: list[str], path: Path):
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: two columns are called {twice[0]!r}; rename one of them")
