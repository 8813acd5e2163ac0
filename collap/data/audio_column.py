"""Bring a column of audio into one form: the bytes of files, or whole paths inside the data set's folder."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .arrow_cache import map_once
from .places import Place

# A binary column of more than 2 GB does not fit into one array of Arrow's plain `binary`; batches are smaller.
AUDIO_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
PATH_COLUMN = "file_name"  # what datasets' audiofolder calls the column of paths
READER_VERSION = 1  # to be raised with every change of what is made of the same rows of a parquet or Arrow file
ROWS_READ = 16  # rows, with the bytes of their audio, held at a time
MAX_CHANNELS = 64  # an array with more rows than this is one of samples with a row for each


def settle_audio(audio: pa.Array, column: str, place: Place | None, first_row: int = 0) -> pa.StructArray:
    """Turn entries of an audio column into bytes, or whole paths, of files.

    Args:
        audio: paths, bytes, structs of both, or structs of samples `array` and their `sampling_rate`.
        column: its name, for messages.
        place: the folder that paths are relative to; None where a data set names its files by whole paths of its own.
        first_row: number of the first entry, for messages.

    Returns:
        Structs of `bytes` and `path`; of samples the bytes are those of a wav file of 32-bit floats.

    Raises:
        ValueError: the column holds something else, a row names no file, or one outside the folder; names the row.
    """
    kind = audio.type
    if pa.types.is_dictionary(kind):
        audio, kind = audio.dictionary_decode(), kind.value_type
    if is_text(kind):
        return _of_fields(None, _whole_paths(audio.to_pylist(), place, first_row))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _of_fields(audio, None)
    names = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if {"array", "sampling_rate"} <= names:
        return _of_fields(pa.array(_wav_files(audio, first_row), pa.binary()), None)
    if _is_list(kind) and (_is_list(kind.value_type) or pa.types.is_primitive(kind.value_type)):
        raise ValueError(
            f"the column {column!r} holds {kind}: samples without a sampling rate; expected audio: bytes, paths, or "
            "{'array', 'sampling_rate'}"
        )
    if not names & {"bytes", "path"}:
        raise ValueError(f"the column {column!r} holds {kind}; expected audio: bytes or paths")
    return _settle_files(audio, column, place, first_row)


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
    settled = map_once(
        dataset.with_format("arrow"),
        _settle_rows,
        fn_kwargs={"place": place, "audio_column": audio_column, "source": str(source), "version": READER_VERSION},
        with_indices=True,
        batched=True,
        batch_size=ROWS_READ,
        features=datasets.Features({**dataset.features, audio_column: datasets.Audio(decode=False)}),
    )
    return settled.with_format(None)


def _settle_rows(table: pa.Table, rows: list[int], place: Place, audio_column: str, source: str, version: int):
    """Settle some rows; `version` is there for the name of what is kept."""
    return settle_table(table, place, audio_column, source, rows[0])


def _settle_files(audio: pa.StructArray, column: str, place: Place | None, first_row: int) -> pa.StructArray:
    """Make the paths of entries without bytes whole ones; entries with bytes keep theirs as a name."""
    fields = {field.name: pc.struct_field(audio, field.name) for field in audio.type}
    content, paths = fields.get("bytes"), fields.get("path")
    for field, is_kind in ((content, _is_bytes), (paths, is_text)):
        if field is not None and not is_kind(field.type) and not pa.types.is_null(field.type):
            raise ValueError(f"the column {column!r} holds {audio.type}; expected audio: bytes or paths")
    if paths is None or place is None:
        return _of_fields(content, paths)
    names = paths.to_pylist()
    alone = [True] * len(names) if content is None else pc.is_null(content).to_pylist()
    wanted = [row for row, name in enumerate(names) if name is not None and alone[row]]
    for row in wanted:
        names[row] = place.find(names[row], first_row + row)
    return _of_fields(content, pa.array(names, pa.string()) if wanted else paths)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _whole_paths(names: list[str | None], place: Place | None, first_row: int) -> pa.Array:
    if place is None:
        return pa.array(names, pa.string())
    return pa.array([place.find(name, first_row + row) for row, name in enumerate(names)], pa.string())


def _of_fields(content: pa.Array | None, paths: pa.Array | None) -> pa.StructArray:
    """Join bytes and paths, of which one may be missing; an entry without both is null."""
    content = pa.nulls(len(paths), pa.binary()) if content is None else content.cast(pa.binary())
    paths = pa.nulls(len(content), pa.string()) if paths is None else paths.cast(pa.string())
    nothing = pc.and_(pc.is_null(content), pc.is_null(paths))
    return pa.StructArray.from_arrays([content, paths], fields=list(AUDIO_TYPE), mask=nothing)


def _wav_files(audio: pa.StructArray, first_row: int) -> list[bytes | None]:
    """Write each `{array, sampling_rate}` as a wav file of 32-bit floats.

    Raises:
        ValueError: names a row whose samples or rate cannot be.
    """
    files = []
    for row, entry in enumerate(audio, first_row):
        if not entry.is_valid or not entry["array"].is_valid:
            files.append(None)
            continue
        rate = entry["sampling_rate"].as_py()
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 2**31 or rate != int(rate):
            raise ValueError(f"row {row} has an array of audio with the sampling rate {rate}; expected Hz, above 0")
        files.append(wav_bytes(_samples(entry["array"], row), int(rate)))
    return files


def _samples(array: pa.Scalar, row: int) -> np.ndarray:
    """Return (samples,) or (samples, channels) of nested lists; whole numbers are taken as 16 bits are."""
    try:
        samples = np.array(array.as_py())
    except ValueError:  # rows of different lengths
        samples = np.array(None)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf" or not samples.size:
        raise ValueError(f"row {row} has no array of numbers as audio; expected (samples,) or (channels, samples)")
    if samples.dtype.kind != "f":
        samples = samples / 2**15
    if samples.ndim == 2 and samples.shape[0] <= min(MAX_CHANNELS, samples.shape[1]):
        samples = samples.T  # (samples, channels)
    return samples.astype(np.float32)


def wav_bytes(samples: np.ndarray, sampling_rate: int) -> bytes:
    """Return a wav file of 32-bit floats; `samples` (samples,) or (samples, channels)."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, samples, sampling_rate, format="WAV", subtype="FLOAT")
    return content.getvalue()
