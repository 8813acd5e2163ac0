"""Read a table, or the shards of one: .csv, .tsv, .json, .jsonl and .parquet files whose audio lies beside them.

No name of a file is taken as a pattern.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path

import datasets
import pyarrow as pa

from collap.files import flat

from .arrow_cache import file_stamp, keep_rows
from .audio_column import PATH_COLUMN, READER_VERSION, settle_table
from .parquet_tables import ParquetShards
from .places import Place
from .text_tables import read_text_table

TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")


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
        raise ValueError(f"{path}: {flat(error, 300)}") from error
    place.warn(path)
    return dataset


def _read_text(path: Path, place: Place, audio_column: str) -> datasets.Dataset:
    columns = read_text_table(path, (audio_column, PATH_COLUMN), place.holds)
    table = pa.table({name: column_array(name, values, path) for name, values in columns.items()})
    return keep_table(settle_table(table, place, audio_column, path))


def keep_table(table: pa.Table) -> datasets.Dataset:
    """Map a table as a file in the cache of `datasets` that is called by its content."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    return keep_rows(hashlib.blake2b(content, digest_size=16).hexdigest(), table.schema, table.to_batches)


def _read_parquet(files: list[Path], place: Place, audio_column: str) -> datasets.Dataset:
    shards = ParquetShards(files, audio_column, place)
    digest = hashlib.blake2b(repr((READER_VERSION, place.folder, audio_column)).encode(), digest_size=16)
    for file in files:
        digest.update(repr((file.name, file_stamp(file))).encode())
    return keep_rows(digest.hexdigest(), shards.features.arrow_schema, shards.batches)


# --------------------------------------------------------------------------------------------------------------------
# Columns of JSON


def column_array(name: str, values: list, path: Path) -> pa.Array:
    """Return a column of JSON: of one kind, numbers beside texts as texts, texts beside lists as lists of one.

    Raises:
        ValueError: the values are of other kinds that do not go together; names the column.
    """
    kinds = {type(value) for value in values} - {type(None)}
    if str in kinds:  # not a number: what pandas writes for nothing
        values = [None if isinstance(value, float) and value != value else value for value in values]
    if kinds == {str, list}:
        values = [[value] if isinstance(value, str) else value for value in values]
    elif kinds <= {str, int, float, bool} and (str in kinds or any(map(_is_huge, values))):
        values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    for attempt in (values, None):
        try:
            return pa.array(values if attempt is not None else _without_surrogates(values, name, path))
        except UnicodeEncodeError:
            continue
        except (pa.ArrowException, OverflowError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}: the column {name!r} holds values of different kinds or too large ones "
                f"({flat(error, 300)}); use one kind in all rows"
            ) from error
    raise AssertionError("a text without surrogates can be encoded")


def _is_huge(value) -> bool:
    return type(value) is int and not -(2**63) <= value < 2**63


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
