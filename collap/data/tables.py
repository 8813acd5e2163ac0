"""Read a table, or the shards of one: .csv, .tsv, .json, .jsonl and .parquet files whose audio lies beside them."""

from pathlib import Path

import datasets
import pyarrow.compute as pc

TABLE_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def split_name(split: str) -> str:
    """Return `"test"` of `"test[:100]"`."""
    return split.split("[")[0]


def read_table(files: list[Path], split: str, audio_column: str) -> datasets.Dataset:
    """Read a table, or the shards of one, all in one folder, and point its paths into that folder.

    Raises:
        ValueError: names a file that is malformed, empty or of another kind, or a row without audio inside the folder.
    """
    path = files[0]
    if path.suffix not in TABLE_READERS:
        raise ValueError(f"{path}: expected one of {', '.join(TABLE_READERS)}, found {path.suffix or 'no suffix'}")
    if not path.stat().st_size:
        raise ValueError(f"{path}: is empty (0 bytes); expected a table")
    separator = {"sep": "\t"} if path.suffix == ".tsv" else {}
    data_files = {split_name(split): [str(file) for file in files]}
    try:
        dataset = datasets.load_dataset(TABLE_READERS[path.suffix], data_files=data_files, split=split, **separator)
    except (ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:  # StopIteration: JSON without a row
        raise ValueError(f"{path}: {str(error.__cause__ or error).strip() or 'has no rows'}") from error
    if "file_name" in dataset.column_names and audio_column not in dataset.column_names:
        dataset = dataset.rename_column("file_name", audio_column)
    if audio_column not in dataset.column_names:
        return dataset
    places = {"column": audio_column, "folder": str(path.resolve().parent)}
    kind = getattr(dataset.features[audio_column], "dtype", "struct")  # of bytes and path
    if kind in ("string", "large_string"):
        features = datasets.Features({**dataset.features, audio_column: datasets.Value("string")})
        return dataset.map(resolve_path, with_indices=True, fn_kwargs=places, features=features)
    if kind not in ("struct", "dict"):
        return dataset  # open_dataset says what is wrong with it
    # On the Arrow column: a loop over the rows would read the bytes of every audio only to look at its path.
    audio = dataset.cast_column(audio_column, datasets.Audio(decode=False)).data.column(audio_column)
    has_bytes = pc.is_valid(pc.struct_field(audio, "bytes")).to_pylist()
    for row, name in enumerate(pc.struct_field(audio, "path").to_pylist()):
        if name is not None and not has_bytes[row]:
            resolve_path({audio_column: name}, row, **places)
    return dataset


def resolve_path(example: dict, row: int, column: str, folder: str) -> dict:
    """Turn a path of a table, relative to the table's folder, into a whole one; it may not leave that folder."""
    name = example[column]
    if not name:
        raise ValueError(f"row {row} has no audio: its {column!r} is empty; expected a path in {folder}")
    path = (Path(folder) / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"row {row}: {name!r} lies outside of the data set's folder {folder}; audio must stay inside")
    return {column: str(path)}
