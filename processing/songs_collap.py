"""Songs as their callers hand them over: files; or arrays, lists of numbers, the rows of `datasets` and the decoders of
torchcodec, each of which becomes one checked mono waveform. Files are read elsewhere (`decode_audio.py`).
"""

from collections.abc import Iterable, Mapping
from numbers import Real
from os import PathLike

import numpy as np
import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

MIN_SECONDS = 0.1
MIN_SAMPLING_RATE = 1000  # below it the caller means kHz; 48 Hz for 48 kHz would make an hour out of 4 s
MAX_PEAK = 100.0  # louder than any clipped float recording: integers that were cast
MAX_CHANNELS = 8  # 7.1; as many rows of a bare array may be the channels of one song
Song = str | PathLike | bytes | np.ndarray | torch.Tensor | Mapping | list  # or a file object, or a decoder


def is_array(song: Song) -> bool:
    """Tell whether it is a numpy array or a torch tensor."""
    return isinstance(song, (np.ndarray, torch.Tensor))


def is_file(song: Song) -> bool:
    """Tell whether it is a path, the bytes of a file, an open file, or a row of a data set with one of those."""
    if isinstance(song, Mapping):
        return not {"array", "raw"} & set(song) and any(song.get(name) is not None for name in ("bytes", "path"))
    return isinstance(song, (str, PathLike, bytes)) or hasattr(song, "read")


def file_source(song: Song):
    """Return what `load_audio` reads of a song that [`is_file`]: of a row the bytes, or else the path."""
    if not isinstance(song, Mapping):
        return song
    return song["path"] if song.get("bytes") is None else song["bytes"]


def list_songs(audio: Song | Iterable[Song]) -> list[Song]:
    """Tell one song from several.

    Args:
        audio: one song; a list, tuple, column or other iterable of songs; a list of numbers, which is one song; or an
            array of two axes, which is a batch of mono songs, as for CLAP's and Whisper's feature extractors.

    Raises:
        ValueError: for an empty list, an array of more axes, or one that looks like (samples, channels).
    """
    if is_array(audio):
        return _list_rows(audio) if audio.ndim > 1 else [audio]
    if isinstance(audio, Mapping) or is_file(audio) or is_decoder(audio) or not isinstance(audio, Iterable):
        return [audio]
    songs = list(audio)
    if not songs:
        raise ValueError("found an empty list of audios; expected at least one waveform")
    return [songs] if isinstance(songs[0], Real) else songs


def _list_rows(songs: np.ndarray | torch.Tensor) -> list:
    shape = tuple(songs.shape)
    if songs.ndim > 2:
        raise ValueError(f"audio has shape {shape}; expected (samples,) or (channels, samples), or a list of those")
    if shape[0] > shape[1] > 0:
        raise ValueError(
            f"audio has shape {shape}; expected (channels, samples): transpose it, and give one song of several "
            "channels in a list, [audio.T]"
        )
    if shape[0] == 0:
        raise ValueError(f"audio is empty (shape {shape}); expected at least one song")
    if 1 < shape[0] <= MAX_CHANNELS:
        logger.warning_once(
            f"an array of two axes is a batch of mono songs, as for CLAP and Whisper; if its rows (up to "
            f"{MAX_CHANNELS}) are the channels of one song, give it in a list, [audio] (said once)"
        )
    return list(songs)


def is_decoder(song: Song) -> bool:
    """Tell whether it is a decoder of torchcodec, to which `datasets` decodes audio, or what that decoded."""
    return hasattr(song, "get_all_samples") or (hasattr(song, "sample_rate") and hasattr(song, "data"))


def read_song(song: Song, sampling_rate: int | None, name: str) -> tuple[torch.Tensor, int]:
    """Return the mono waveform (samples,) float32 of a song in memory, and its rate in Hz.

    Args:
        song: samples (numpy, torch, or lists of numbers), each (samples,) or (channels, samples); a dict of samples
            (`array` or `raw`) and `sampling_rate`; or a decoder of torchcodec.
        sampling_rate: Hz of samples without a rate of their own.
        name: of the song in messages.

    Raises:
        ValueError: names the song, says what was found and what was expected.
    """
    if isinstance(song, Mapping) and not is_file(song):
        samples = song.get("array", song.get("raw"))
        if samples is None or "sampling_rate" not in song:
            found = ", ".join(map(str, song)) or "nothing"
            raise ValueError(f"{name} is a dict of {found}; expected array (or raw) and sampling_rate")
        song, sampling_rate = samples, song["sampling_rate"]
    elif is_decoder(song):
        decoded = song.get_all_samples() if hasattr(song, "get_all_samples") else song
        song, sampling_rate = decoded.data, decoded.sample_rate
    return check_waveform(_as_array(song, name), name), check_sampling_rate(sampling_rate)


def _as_array(song: Song, name: str) -> np.ndarray | torch.Tensor:
    if is_array(song):
        return song
    if isinstance(song, (list, tuple)):
        try:
            return np.asarray(song)
        except ValueError as error:  # "inhomogeneous shape"
            raise ValueError(f"{name} is a list of lists of different lengths; expected channels") from error
    found = f"{type(song).__name__} of {', '.join(song)}" if isinstance(song, Mapping) else type(song).__name__
    hint = "; read files with processing.load_audio" if is_file(song) else ""
    raise ValueError(f"{name} is a {found}; expected a numpy array or torch tensor{hint}")


def check_sampling_rate(sampling_rate: int | None) -> int:
    """Return the rate as an integer.

    Raises:
        ValueError: it is missing or not a whole number of Hz, at least 1000.
    """
    if sampling_rate is None:
        raise ValueError("sampling_rate is missing: say at how many Hz the audio was recorded, e.g. 16000")
    try:
        whole = int(sampling_rate) == sampling_rate
    except (TypeError, ValueError, OverflowError):  # a list, NaN, infinity
        whole = False
    if not whole or sampling_rate < MIN_SAMPLING_RATE:
        raise ValueError(
            f"sampling_rate must be a whole number of Hz, at least {MIN_SAMPLING_RATE}, found {sampling_rate!r}"
        )
    return int(sampling_rate)


def check_waveform(waveform: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Return one finite mono waveform, (samples,) float32; channels are averaged.

    Raises:
        ValueError: names the song, says what was found and what was expected.
    """
    numpy = isinstance(waveform, np.ndarray)
    if not (np.issubdtype(waveform.dtype, np.floating) if numpy else waveform.is_floating_point()):
        raise ValueError(
            f"{name} has dtype {waveform.dtype}; expected floating point in [-1, 1] (divide 16-bit samples by 32768)"
        )
    if numpy:
        # torch takes no reversed array, no foreign byte order, no long double, and read-only ones with a warning.
        with np.errstate(over="ignore"):
            waveform = np.require(waveform, np.float32, ["C", "W"])
    tensor = torch.as_tensor(waveform, dtype=torch.float32)
    if tensor.ndim == 2 and tensor.shape[0] > tensor.shape[1] > 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (channels, samples): transpose it")
    if tensor.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (samples,) or (channels, samples)")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty (shape {tuple(tensor.shape)}); expected at least {MIN_SECONDS} s of samples")
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} has {bad} samples that are NaN or infinite; expected finite numbers in [-1, 1]")
    if tensor.abs().max() > MAX_PEAK:
        raise ValueError(
            f"{name} peaks at {tensor.abs().max():.0f}; expected samples in [-1, 1] (divide 16-bit samples by 32768)"
        )
    return tensor.mean(0) if tensor.ndim == 2 else tensor  # (samples,)
