"""Bring a column of audio into one form: the bytes of files, or whole paths inside the data set's folder."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .places import Place

# A binary column of more than 2 GB does not fit into one array of Arrow's plain `binary`; batches are smaller.
AUDIO_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
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
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise ValueError(
            f"the column {column!r} holds {kind}: lists without a sampling rate; expected audio: bytes, paths, or "
            "{'array', 'sampling_rate'}"
        )
    if not names & {"bytes", "path"}:
        raise ValueError(f"the column {column!r} holds {kind}; expected audio: bytes or paths")
    return _settle_files(audio, column, place, first_row)


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
