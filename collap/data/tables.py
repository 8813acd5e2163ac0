"""Read a table, or the shards of one: .csv, .tsv, .json, .jsonl and .parquet files whose audio lies beside them.

What was read is kept as an Arrow file in the cache of `datasets`, under a name that its content decides, so that any
number of processes map one file, and a table that was changed is read anew. No name of a file is taken as a pattern.
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.fingerprint import Hasher

from .audio_column import AUDIO_TYPE, settle_audio
from .places import Place
from .text_tables import LFS_POINTER, read_text_table

TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
PATH_COLUMN = "file_name"  # what datasets' audiofolder calls the column of paths
READER_VERSION = 1  # to be raised with every change of what is read from the same parquet file
ROWS_READ = 16  # rows, with the bytes of their audio, held at a time
HASHED_BYTES = 2**26  # larger parquet files are told by their footer and the file system's times, not by all bytes


def split_name(split: str) -> str:
    """Return `"test"` of `"test[:100]"`."""
    return split.split("[")[0]


def take_split(parts: dict[str, datasets.Dataset], split: str, source: str | Path) -> datasets.Dataset:
    """Return the rows that `"test"`, `"test[:100]"` or `"test[:10%]"` names.

    Args:
        parts: name of a split -> its rows.

    Raises:
        ValueError: there is no such split (names those there are), or the slice cannot be read.
    """
    name = split_name(split)
    if name not in parts:
        raise ValueError(f"{source}: no split {name!r}; the splits are {sorted(parts)}")
    if split == name:
        return parts[name]
    try:
        spans = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in parts.items()})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return datasets.concatenate_datasets([parts[one.splitname].select(range(one.from_, one.to)) for one in spans])


def read_table(files: list[Path], audio_column: str) -> datasets.Dataset:
    """Read a table, or the shards of one, all in one folder, and point its paths into that folder.

    A column `file_name` becomes the audio column if there is none of that name.

    Raises:
        ValueError: names a file that is malformed, empty or of another kind, or a row without audio inside the folder.
    """
    path = files[0]
    suffix = path.suffix.lower()
    if suffix != ".parquet" and suffix not in TEXT_SUFFIXES:
        known = ", ".join((*TEXT_SUFFIXES, ".parquet"))
        raise ValueError(f"{path}: expected one of {known}, found {path.suffix or 'no suffix'}")
    place = Place(path.parent)
    try:
        if suffix == ".parquet":
            dataset = _read_parquet(files, place, audio_column)
        else:
            dataset = _read_text(path, place, audio_column)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: {_flat(error)}") from error
    place.warn(path)
    return dataset


def _read_text(path: Path, place: Place, audio_column: str) -> datasets.Dataset:
    columns = read_text_table(path, (audio_column, PATH_COLUMN), place.holds)
    table = pa.table({name: column_array(name, values, path) for name, values in columns.items()})
    table = settle_table(table, place, audio_column, path)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    return _keep(hashlib.blake2b(content, digest_size=16).hexdigest(), table.schema, table.to_batches)


def settle_dataset(dataset: datasets.Dataset, audio_column: str, place: Place, source: str | Path) -> datasets.Dataset:
    """Settle the audio of rows that `datasets` itself has read; nothing is written where all of it is bytes.

    Raises:
        ValueError: as [`settle_audio`].
    """
    if audio_column not in dataset.column_names:
        return dataset
    if isinstance(dataset.features[audio_column], datasets.Audio):
        dataset = dataset.cast_column(audio_column, datasets.Audio(decode=False))
        column = dataset.data.column(audio_column)
        alone = pc.and_(pc.is_null(pc.struct_field(column, "bytes")), pc.is_valid(pc.struct_field(column, "path")))
        if not pc.any(alone).as_py():
            return dataset
    settled = dataset.with_format("arrow").map(
        lambda table, rows: settle_table(table, place, audio_column, source, rows[0]),
        with_indices=True,
        batched=True,
        batch_size=ROWS_READ,
        features=datasets.Features({**dataset.features, audio_column: datasets.Audio(decode=False)}),
        new_fingerprint=Hasher.hash((READER_VERSION, dataset._fingerprint, audio_column, str(source))),
    )
    return settled.with_format(None)


def settle_table(table: pa.Table, place: Place, audio_column: str, source: Path, first_row: int = 0) -> pa.Table:
    """Name the audio column, and settle its entries; a table without one stays as it is."""
    if PATH_COLUMN in table.column_names and audio_column not in table.column_names:
        table = table.rename_columns([audio_column if name == PATH_COLUMN else name for name in table.column_names])
    if audio_column not in table.column_names:
        return table
    index = table.column_names.index(audio_column)
    column = table.column(index)
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    try:
        settled = settle_audio(column, audio_column, place, first_row)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return table.set_column(index, pa.field(audio_column, AUDIO_TYPE), settled)


# --------------------------------------------------------------------------------------------------------------------
# Columns of JSON


def column_array(name: str, values: list, path: Path) -> pa.Array:
    """Return a column of JSON: of one kind, numbers beside texts as texts, texts beside lists as lists of one.

    Raises:
        ValueError: the values are of other kinds that do not go together; names the column.
    """
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {str, list}:
        values = [[value] if isinstance(value, str) else value for value in values]
    elif str in kinds and kinds <= {str, int, float, bool}:
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    for attempt in (values, None):
        try:
            return pa.array(values if attempt is not None else _without_surrogates(values, name, path))
        except UnicodeEncodeError:
            continue
        except (pa.ArrowException, OverflowError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: the column {name!r} holds values of different kinds or too large ones "
                f"({_flat(error)}); use one kind in all rows"
            ) from error
    raise AssertionError("a text without surrogates can be encoded")


def _without_surrogates(values: list, name: str, path: Path) -> list:
    """Replace halves of characters, which JSON can write and no encoding holds, by U+FFFD; say so."""
    changed = [_clean(value) for value in values]
    rows = [row for row, (old, new) in enumerate(zip(values, changed, strict=True)) if old != new]
    warnings.warn(
        f"{path}: {len(rows)} rows have half a character (a lone surrogate) in {name!r}, the first is row {rows[0]}; "
        "it is read as U+FFFD",
        stacklevel=2,
    )
    return changed


def _clean(value):
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(one) for key, one in value.items()}
    return value


# --------------------------------------------------------------------------------------------------------------------
# Parquet


def _read_parquet(files: list[Path], place: Place, audio_column: str) -> datasets.Dataset:
    shards = ParquetShards(files, audio_column, place)
    digest = hashlib.blake2b(repr((READER_VERSION, place.folder, audio_column)).encode(), digest_size=16)
    for file in files:
        digest.update(repr((file.name, file_stamp(file))).encode())
    return _keep(digest.hexdigest(), shards.features.arrow_schema, shards.batches)


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
            raise ValueError(f"{self.files[0]}: its columns cannot be read ({_flat(error)})") from error
        settled = settle_table(table, self.place, self.audio_column, self.files[0]).column_names
        names = {
            raw: name for raw, name in zip(table.column_names, settled, strict=True) if name in (columns or settled)
        }
        self.raw_schema = table.select(list(names)).schema.remove_metadata()
        kept = {name: features[raw] for raw, name in names.items()}
        if self.audio_column in kept:
            kept[self.audio_column] = datasets.Audio(decode=False)
        return datasets.Features(kept)

    def batches(self, files: list[Path] | None = None) -> Iterator[pa.RecordBatch]:
        """Give the rows of all files, or of some, [`ROWS_READ`] at a time."""
        first_row = 0
        for file in self.files if files is None else files:
            with _open_parquet(file) as shard:
                for batch in shard.iter_batches(batch_size=ROWS_READ, columns=self.raw_schema.names):
                    table = _plain(pa.Table.from_batches([batch])).cast(self.raw_schema)
                    table = settle_table(table, self.place, self.audio_column, file, first_row)
                    yield from table.cast(self.features.arrow_schema).to_batches()
                    first_row += len(batch)


def _open_parquet(file: Path) -> pq.ParquetFile:
    with open(file, "rb") as content:
        if content.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{file}: is a pointer of Git LFS and not the table; run `git lfs pull`")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: {_flat(error)}") from error


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


def file_stamp(file: Path) -> str:
    """Return what changes with the content of a file: a digest of its bytes, or, of a large one, of its end and times.

    The time at which the state of a file changed, unlike that of its content, cannot be set by a program.
    """
    status, digest = file.stat(), hashlib.blake2b(digest_size=16)
    with open(file, "rb") as content:
        if status.st_size > HASHED_BYTES:
            digest.update(repr((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)).encode())
            content.seek(-(2**20), os.SEEK_END)
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------------
# The cache


def _keep(digest: str, schema: pa.Schema, batches: Callable[[], Iterable[pa.RecordBatch]]) -> datasets.Dataset:
    """Map the Arrow file of a digest; write it first unless it is there. A killed run leaves no half file."""
    file = Path(datasets.config.HF_DATASETS_CACHE) / "collap" / digest / "rows.arrow"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=file.parent)
        try:
            with open(descriptor, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for batch in batches():
                    writer.write_batch(batch)
            os.replace(partial, file)
        finally:
            Path(partial).unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(file))


def _check_twice(names: list[str], path: Path):
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{path}: two columns are called {twice[0]!r}; rename one of them")


def _flat(error: BaseException) -> str:
    """Return what an error says in one line."""
    return " ".join(str(error).split())[:300]
