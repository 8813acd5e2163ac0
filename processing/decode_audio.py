"""Read audio files as mono float32 samples at one rate: whole, a span, or block by block; their lengths and crops.

What is read, how exactly, how fast, and what is refused: docs/audio.md.

Dimensions: `N` samples of a file at its own rate `R`, `M` samples returned at the asked rate `r`.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO

import numpy as np

from .audio_tracks import (
    DECODING_ERRORS,
    EXPECTED,
    FRAMED_FORMATS,
    AudioFileError,
    File,
    MustStartOver,
    SndfileTrack,
    Track,
    open_track,
)
from .resample_audio import blocks, resample, resampling_start

logger = logging.getLogger(__name__)

AudioSource = str | os.PathLike | bytes | BinaryIO

REPAIR_ADVICE = "fetch the file again, or read the good part with stop="
# A file with fewer bytes for a second of sound, after a first minute, is made to fill the memory.
MIN_BYTES_PER_SECOND, FREE_SECONDS = 4, 60

# A file that lacks more than this of what it should have is refused, because it is not the recording that it is named
# for: half a second is longer than any codec's frames and padding, 1 % of a song is not what a caption is about. What
# is missing below that, or any other difference of 0.1 s between header and content, is logged.
TOLERATED_SECONDS, TOLERATED_SHARE, UNSAID_SECONDS = 0.5, 0.01, 0.1


def source_name(source: AudioSource) -> str:
    """Return what a message calls a source: its path, or what stands for one."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) if isinstance(os.fspath(source), str) else os.fsdecode(source)
    if callable(getattr(source, "read", None)) and callable(getattr(source, "seek", None)):
        return str(getattr(source, "name", "<file object>"))
    raise TypeError(
        f"audio source is a {type(source).__name__}; expected a path, bytes, or a binary file object with read and seek"
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into an AudioFileError that names it; nowhere else is that done."""
    name = name if name.isprintable() else repr(name)  # one line
    try:
        yield
    except AudioFileError as error:
        raise AudioFileError(f"{name}: {error}") from error.__cause__
    except DECODING_ERRORS as error:
        cause = " ".join(str(error).split())
        raise AudioFileError(f"{name}: cannot be read: {type(error).__name__}: {cause}; {EXPECTED}") from error


def _open_path(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file. Asked first what it is: to open a named pipe is to wait for a writer."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind == stat.S_IFREG:
            return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        cause = getattr(error, "strerror", None) or error
        raise AudioFileError(f"cannot be opened: {cause}; expected the path of an audio file") from error
    found = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}.get(kind, "device")
    raise AudioFileError(f"is a {found}; expected an audio file")


@contextmanager
def _open_binary(source: AudioSource) -> Iterator[File]:
    """Open a source as a binary file at its start; Python opens it, so no string is ever an address or protocol."""
    if isinstance(source, (str, os.PathLike)):
        with _open_path(source) as file:
            yield File(file)
        return
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if not isinstance(file.read(0), bytes):
        raise TypeError(f"{source_name(source)}: a text file object; expected a binary one, opened with mode 'rb'")
    yield File(file)


def _max_seconds(file: File) -> float:
    return FREE_SECONDS + file.size / MIN_BYTES_PER_SECOND


def _checked(file: File, track: Track, wanted: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the track's chunks; refuses what is no number, or more than the file can hold."""
    for position, samples in itertools.chain(track.chunks(wanted), [(None, np.zeros(0, np.float32))]):
        file.check()
        seconds = (track.num_samples if position is None else position) / track.rate
        if seconds > _max_seconds(file):
            raise AudioFileError(f"has over {seconds:.0f} s of audio in {file.size} bytes; expected less")
        if not np.isfinite(samples).all():
            bad = seconds + int(np.argmin(np.isfinite(samples))) / track.rate
            raise AudioFileError(f"NaN or infinite samples at {bad:.2f} s; expected numbers")
        if position is not None:
            yield position, samples


def _second_recording(file: File) -> int | None:
    """Return the byte at which another recording is joined on in Ogg: the first page of a stream after other pages."""
    place, is_begun = 0, False
    while file.seek(place) == place and len(page := file.read(27)) == 27 and page[:4] == b"OggS":
        if is_begun and page[5] & 2:  # the flag of a stream's first page
            return place
        is_begun = is_begun or not page[5] & 2
        place += 27 + page[26] + sum(file.read(page[26]))
    return None


def _judge(name: str, file: File, track: Track, seconds: float, is_end: bool) -> None:
    """Log what is missing of the seconds that were read, or raise AudioFileError if that is more than is tolerated."""
    missing, problems = track.lost / track.rate, []
    if is_end and isinstance(track, SndfileTrack) and (place := _second_recording(file)):
        track.claim = f"(libsndfile stops where another recording is joined on) by its {file.size} bytes it has about"
        track.declared = track.num_samples * file.size // place
    if track.lost:
        problems.append(f"{missing:.3f} s of {seconds:.3f} s could not be decoded and are silent")
    if is_end and track.declared is not None:
        declared, found = track.declared / track.rate, track.num_samples / track.rate
        if abs(declared - found) > UNSAID_SECONDS:
            problems.append(f"{track.claim} {declared:.3f} s of audio, {found:.3f} s could be decoded")
            is_whole = not track.is_cut and track.format in FRAMED_FORMATS
            missing += 0.0 if is_whole else max(declared - max(found, (track.end or 0) / track.rate), 0.0)
            seconds = max(declared, found)
    if is_end and track.rest:
        problems.append(f"{track.rest} bytes after its {seconds:.3f} s belong to no chunk, and no player reads them")
    if is_end and track.is_cut and track.declared is None:
        problems.append(f"its end after {seconds:.3f} s is cut or no audio")
    if not problems:
        return
    problem = "; ".join(problems)
    if missing > max(TOLERATED_SECONDS, TOLERATED_SHARE * seconds):
        raise AudioFileError(f"truncated or damaged: {problem}; {REPAIR_ADVICE}")
    logger.warning(f"{name}: {problem}; what could be decoded is used")


def _span_blocks(
    source: AudioSource, name: str, rate: int, first: int, last: int | None, block_samples: int
) -> Iterator[np.ndarray]:
    """Yield output samples first..last in blocks; a second try decodes from the start where packets mislead."""
    for may_skip in (True, False):
        try:
            with _naming(name), _open_binary(source) as file, closing(open_track(file, may_skip)) as track:
                wanted = max(resampling_start(first, track.rate, rate)[0], 0)
                num_samples, num_read = None if last is None else last - first, 0
                pieces = resample(_checked(file, track, wanted), track.rate, rate, first)
                for block in blocks(pieces, block_samples, num_samples):
                    num_read += len(block)
                    yield block
                if not num_read:
                    raise AudioFileError(
                        f"start={first / rate:g} s lies beyond its end at {track.num_samples / track.rate:g} s; "
                        "expected a smaller start"
                    )
                _judge(name, file, track, num_read / rate, is_end=num_read != num_samples)
            return
        except MustStartOver:
            continue


def _check_arguments(sampling_rate: int, start: float | None, stop: float | None, block_seconds: float) -> None:
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, (int, np.integer)) or sampling_rate <= 0:
        raise ValueError(f"sampling_rate={sampling_rate!r}; expected a whole number of samples per second above 0")
    for key, seconds in (("start", start), ("stop", stop), ("block_seconds", block_seconds)):
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"{key}={seconds!r}; expected seconds, 0 or more, or None")
    if round(block_seconds * sampling_rate) < 1:
        raise ValueError(f"block_seconds={block_seconds!r} is less than one sample at {sampling_rate} Hz")
    if stop is not None and round((start or 0.0) * sampling_rate) >= round(stop * sampling_rate):
        raise ValueError(f"start={start!r} s, stop={stop!r} s; expected start before stop by one sample or more")


def stream_audio(
    source: AudioSource,
    sampling_rate: int = 16000,
    start: float | None = None,
    stop: float | None = None,
    block_seconds: float = 30.0,
) -> Iterator[np.ndarray]:
    """Read mono audio in blocks; the memory used depends on `block_seconds`, not on the length of the file.

    Args:
        source: a path, the bytes of a file, or a seekable binary file object (read from its first byte, left open).
            A string is always a path, never an address. Of several audio tracks the first is read.
        sampling_rate: r, samples per second of the result. Channels are averaged.
        start, stop: the span in seconds, each rounded to the nearest output sample. A stop beyond the end reads to
            the end. The result is the slice of the whole file, bit for bit. Samples, flac and mp3 are decoded from a
            run-up before the span on, other codecs from the start of the file.
        block_seconds: length of a block; the concatenation of the blocks does not depend on it.

    Yields:
        (round(block_seconds * r),) float32, full scale 1.0; the last block may be shorter.
        A whole file of N samples at rate R gives ceil(N r / R).

    Raises:
        AudioFileError: not audio, no audio track, empty, an implausible rate, NaN or infinite samples in the span,
            `start` beyond the end, or more than 0.5 s and 1 % of what was asked for cannot be decoded or, at the end,
            is missing by the header. Less than that is logged as a warning.
        ValueError, TypeError: an argument is out of range or of another type; raised by the call, before any reading.
    """
    name = source_name(source)
    _check_arguments(sampling_rate, start, stop, block_seconds)
    rate = int(sampling_rate)
    first = round((start or 0.0) * rate)
    last = None if stop is None else round(stop * rate)
    return _span_blocks(source, name, rate, first, last, round(block_seconds * rate))


def load_audio(
    source: AudioSource, sampling_rate: int = 16000, start: float | None = None, stop: float | None = None
) -> np.ndarray:
    """Read a file, or its span from `start` to `stop` seconds, as mono float32 samples (M,) at `sampling_rate`.

    The concatenated blocks of `stream_audio`, which describes arguments, accuracy and errors.
    """
    return np.concatenate(list(stream_audio(source, sampling_rate, start, stop)))


def audio_seconds(source: AudioSource) -> float:
    """Return the length in seconds, by counting (samples, flac, mp3) or decoding; raises as `stream_audio` does."""
    name = source_name(source)
    for may_skip in (True, False):
        try:
            with _naming(name), _open_binary(source) as file, closing(open_track(file, may_skip)) as track:
                for _ in _checked(file, track, 2**62):
                    pass
                _judge(name, file, track, track.num_samples / track.rate, is_end=True)
                return track.num_samples / track.rate
        except MustStartOver:
            continue


def header_seconds(source: AudioSource) -> float:
    """Return the length by the header if that counts it (wav, m4a, webm ...), else by the packets, without decoding.

    Good enough to sort songs by length, and ten times faster than decoding even where the whole file must be read.

    Raises:
        AudioFileError: not audio.
    """
    with _naming(source_name(source)), _open_binary(source) as file, closing(open_track(file, True)) as track:
        seconds = track.header_seconds()
        if 0 < seconds <= _max_seconds(file):
            return seconds
    return audio_seconds(source)


def crop_span(seconds: float, crop_seconds: float, place: float) -> tuple[float, float]:
    """A span of `crop_seconds`, the first for `place` 0 and the last for 1; of a shorter audio all there is."""
    start = place * max(seconds - crop_seconds, 0.0)
    return start, start + crop_seconds


def load_crop(source: bytes | str, crop_seconds: float, place: float, sampling_rate: int = 16_000) -> np.ndarray:
    """The samples of [`crop_span`]. Where the header only estimates the length and the estimate is too long, the file
    is decoded to know it."""
    try:
        start, stop = crop_span(header_seconds(source), crop_seconds, place)
        samples = load_audio(source, sampling_rate, start=start, stop=stop)
        if start == 0 or len(samples) >= 0.99 * crop_seconds * sampling_rate:
            return samples
    except AudioFileError:  # said below, if it is not the estimate that led beyond the end
        pass
    start, stop = crop_span(audio_seconds(source), crop_seconds, place)
    return load_audio(source, sampling_rate, start=start, stop=stop)
