"""Audio files to mono float32 samples at one rate, whole or in blocks, through PyAV alone.

PyAV ships its own FFmpeg, so one file gives the same samples on every machine and nothing but pip is needed.
Formats: wav, aiff, flac, ogg (vorbis, opus, flac), mp3, aac (adts), mp4 / m4a / mov, webm / mkv.

Letters: N samples per channel of the file at its own rate R, M samples returned at the asked rate r, C channels.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import numpy as np

try:
    import av
except ImportError:  # where a model's code was fetched from the Hub
    av = None

AudioSource = str | os.PathLike | bytes | BinaryIO

# FFmpeg checks this list after it has recognised a file and before it follows anything in it, so that playlists (hls,
# concat, dash), which name other files or addresses, are refused.
ALLOWED_FORMATS = "wav,w64,aiff,flac,ogg,mp3,aac,mov,matroska"
EXPECTED = "expected wav, aiff, flac, ogg, mp3, aac, m4a/mp4, opus or webm"
REPAIR_ADVICE = "fetch the file again, or read the good part with stop="

# Timestamps that count samples, so that a seek lands on a known sample.
SEEKABLE_FORMATS = {"wav", "w64", "aiff", "flac", "ogg", "mov"}
# A seek is a guess (mp3: by bit rate or a table of 100 points; adts: no index), but every packet says how long it is:
# the packets before the span are read and not decoded.
SKIPPABLE_FORMATS = {"mp3", "aac"}
# matroska / webm is in neither set: its timestamps are whole milliseconds, so everything before the span is decoded.

# The header gives the exact number of samples to be played.
COUNTED_FORMATS = {"wav", "w64", "aiff", "flac", "mov"}
# A larger jump between two frames is lost data. Timestamps of flac and ogg count samples; in webm and mp4 a recorder
# may leave out up to 0.4 s of silence (opus DTX).
MAX_JUMP_SECONDS = {"flac": 0.001, "ogg": 0.001, "matroska": 1.0, "mov": 1.0}

FORGIVEN_END_FORMATS = {"mp3", "wav", "w64", "aiff"}

# Decoders need a run-up to reach the state they would have had: mp3 takes bits from up to 10 frames before, vorbis and
# aac overlap 2 blocks, opus asks for 80 ms and was bit-equal to the whole file after 0.65 s (12 to 128 kbit/s).
DECODER_RUN_UP_SECONDS = 1.0
# libswresample's default filter spans 33 samples of the lower of both rates; twice that on either side.
RESAMPLER_RUN_UP_SAMPLES = 66
# Source samples handed to the resampler at once: a call costs as much as some thousand samples.
RESAMPLER_CHUNK_SAMPLES = 16384

INTEGER_FULL_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}


class AudioFileError(ValueError):
    """A file that cannot be read as asked: names the file, what was found, and what was expected or what to do."""


class _SeekMissed(Exception):
    """The container could not be brought to a known sample at or before the wanted one."""


class _Reader:
    """The three calls FFmpeg needs. It hides the file's name, so that only the content decides what a file is."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@dataclass
class _Track:
    """The first audio stream of an open file, decoded up to its first frame."""

    name: str
    file: BinaryIO
    container: av.container.InputContainer
    stream: av.AudioStream
    packets: Iterator[av.Packet]
    frames: Iterator[av.AudioFrame]
    first_frame: av.AudioFrame
    samples_per_tick: Fraction
    num_samples: int = 0  # N, known once the file has been decoded to its end

    @property
    def format(self) -> str:
        return self.container.format.name.split(",")[0]

    @property
    def rate(self) -> int:
        # Of the frame, not of the stream: an HE-AAC header may state half the rate that comes out of the decoder.
        return self.first_frame.sample_rate

    @property
    def declared_samples(self) -> int | None:
        """N as the header states it, None where it does not or where FFmpeg would only estimate it."""
        if self.format not in COUNTED_FORMATS or not self.stream.duration:
            return None
        return round(self.stream.duration * self.samples_per_tick)

    def position(self, frame: av.AudioFrame) -> float | None:
        """Samples between the first sample of the file and the first one of `frame`, by their timestamps."""
        if frame.pts is None or self.first_frame.pts is None:
            return None
        ticks = frame.pts - self.first_frame.pts
        # In integers up to the division: a Fraction for each frame took longer than decoding it.
        return ticks * self.samples_per_tick.numerator / self.samples_per_tick.denominator


def _iff_end(file: BinaryIO) -> int | None:
    """wav and aiff: end of the chunk of samples. None where the writer could not know it (0 or 2^32 - 1)."""
    order = "big" if file.read(12)[:4] == b"FORM" else "little"
    long_size = None
    while len(header := file.read(8)) == 8:
        kind, size = header[:4], int.from_bytes(header[4:], order)
        if kind == b"ds64":
            long_size = int.from_bytes(file.read(16)[8:], "little")
            file.seek(-16, os.SEEK_CUR)
        if kind in (b"data", b"SSND"):
            size = long_size if size == 0xFFFFFFFF else size
            return file.tell() + size if size else None
        file.seek(size + size % 2, os.SEEK_CUR)
    return None


def _mp4_end(file: BinaryIO) -> int | None:
    """End of the last box of index or sound; other boxes do not count, a tag at the end may look like one."""
    start, end = 0, None
    while len(header := file.read(16)) >= 8:
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        size = int.from_bytes(header[8:], "big") if size == 1 else size
        if not 8 <= size < 2**62:
            break
        start += size
        end = start if kind in (b"moov", b"mdat", b"moof") else end
        file.seek(start)
    return end


def _matroska_end(file: BinaryIO) -> int | None:
    """End of the Segment element (RFC 8794). None for a live recording, whose size is all ones."""
    for _ in range(2):
        file.seek(4, os.SEEK_CUR)
        first = file.read(1)
        width = 9 - first[0].bit_length() if first else 9
        if width > 8:
            return None
        value = int.from_bytes(first + file.read(width - 1), "big") & (2 ** (7 * width) - 1)
        if value == 2 ** (7 * width) - 1:
            return None
        file.seek(value, os.SEEK_CUR)
    return file.tell()


def _ogg_end(file: BinaryIO) -> int | None:
    """End of the last page (RFC 3533); a page has at most 65307 bytes."""
    tail_start = max(file.seek(0, os.SEEK_END) - 65307, 0)
    file.seek(tail_start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return None
    segments = tail[page + 26] if len(tail) > page + 26 else 0
    return tail_start + page + 27 + segments + sum(tail[page + 27 : page + 27 + segments])


def _mp3_end(file: BinaryIO) -> int | None:
    """End of the sound by the byte count of a Xing or Info header, None without one."""
    tag = file.read(10)
    start = 0
    if tag[:3] == b"ID3" and len(tag) == 10:
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True))
    file.seek(start)
    head = file.read(4096)
    frame = next((i for i in range(len(head) - 52) if head[i] == 0xFF and head[i + 1] & 0xE0 == 0xE0), None)
    if frame is None:
        return None
    version_1, mono = head[frame + 1] & 0x08, head[frame + 3] & 0xC0 == 0xC0
    side_bytes = (17 if mono else 32) if version_1 else (9 if mono else 17)
    header = head[frame + 4 + side_bytes :][:16]
    if header[:4] not in (b"Xing", b"Info") or not header[7] & 2:
        return None
    offset = 12 if header[7] & 1 else 8
    return start + frame + int.from_bytes(header[offset : offset + 4], "big")


# Where the sound of a file ends in bytes, by its own header. flac and adts have no such figure.
DECLARED_END = {
    "wav": _iff_end,
    "aiff": _iff_end,
    "mov": _mp4_end,
    "matroska": _matroska_end,
    "ogg": _ogg_end,
    "mp3": _mp3_end,
}


def _check_complete(track: _Track, num_samples: int) -> None:
    """AudioFileError if the file, decoded to its end, is shorter than it says."""
    declared = track.declared_samples
    if declared is not None and num_samples < declared:
        found, expected = num_samples / track.rate, declared / track.rate
        raise AudioFileError(
            f"{track.name}: truncated or damaged: its header declares {expected:.3f} s of audio, "
            f"{found:.3f} s could be decoded; {REPAIR_ADVICE}"
        )
    if track.format in DECLARED_END:
        size = track.file.seek(0, os.SEEK_END)
        track.file.seek(0)
        end = DECLARED_END[track.format](track.file)
        if end is not None and end > size:
            raise AudioFileError(
                f"{track.name}: truncated: it declares {end} bytes, the file has {size} bytes and ends after "
                f"{num_samples / track.rate:.3f} s of audio; {REPAIR_ADVICE}"
            )


def source_name(source: AudioSource) -> str:
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source) if isinstance(os.fspath(source), str) else os.fsdecode(source)
    if callable(getattr(source, "read", None)) and callable(getattr(source, "seek", None)):
        return str(getattr(source, "name", "<file object>"))
    raise TypeError(
        f"audio source is a {type(source).__name__}; expected a path, bytes, or a binary file object with read and seek"
    )


def _open_path(path: str | os.PathLike, name: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise AudioFileError(f"{name!r}: cannot be opened: {reason}; expected the path of an audio file") from error


@contextmanager
def _open_binary(source: AudioSource, name: str) -> Iterator[BinaryIO]:
    """The source as a binary file at its start; Python opens it, so no string is ever an address or protocol."""
    if not isinstance(source, (str, os.PathLike)):
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        file.seek(0)
        if not isinstance(file.read(0), bytes):
            raise TypeError(f"{name}: a text file object; expected a binary one, opened with mode 'rb'")
        yield file
        return
    with _open_path(source, name) as file:
        yield file


def _decode(name: str, stream: av.AudioStream, packets: Iterator[av.Packet]) -> Iterator[av.AudioFrame]:
    """Frames of the packets, or AudioFileError where packets cannot be decoded.

    Forgiven: a cut first frame (but in flac), and a tag or an odd byte after the last frame of mp3 or wav.
    """
    is_flac = stream.codec.name == "flac"
    forgives_end = stream.container.format.name in FORGIVEN_END_FORMATS
    last_frame, damage, packet = None, None, None
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except av.error.InvalidDataError as error:
            frames, damage = [], error
        except (av.error.FFmpegError, OSError) as error:
            raise AudioFileError(f"{name}: reading {stream.codec.canonical_name} data failed: {error}") from error
        is_end = packet is None and not (last_frame and forgives_end)
        if damage is not None and (is_flac or is_end or (last_frame and frames)):
            where = f"after {last_frame.time or 0:.2f} s" if last_frame else "at its start"
            codec = stream.codec.canonical_name
            raise AudioFileError(f"{name}: damaged or cut {codec} data {where}; {REPAIR_ADVICE}") from damage
        if packet is None:
            return
        for frame in frames:
            last_frame, damage = frame, None
            yield frame


@contextmanager
def _open_container(file: BinaryIO, name: str) -> Iterator[av.container.InputContainer]:
    if av is None:
        raise AudioFileError(f"{name}: files are decoded by PyAV (pip install av), which is missing; or pass samples")
    if file.seek(0, os.SEEK_END) == 0:
        raise AudioFileError(f"{name}: is empty (0 bytes); {EXPECTED}")
    file.seek(0)
    try:
        container = av.open(
            _Reader(file),
            mode="r",
            container_options={"format_whitelist": ALLOWED_FORMATS, "protocol_whitelist": "none"},
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, OSError) as error:
        raise AudioFileError(f"{name}: not an audio file, or its header is missing or cut; {EXPECTED}") from error
    with container:
        yield container


@contextmanager
def open_track(source: AudioSource, name: str) -> Iterator[_Track]:
    with _open_binary(source, name) as file, _open_container(file, name) as container:
        if not container.streams.audio:
            found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise AudioFileError(f"{name}: has no audio track (found: {found}); expected at least one")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise AudioFileError(f"{name}: its audio has a codec that FFmpeg cannot decode; {EXPECTED}")
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        if stream.codec.name == "flac":
            # Without it FFmpeg hands out damaged frames as if they were sound.
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        packets = container.demux(stream)
        frames = _decode(name, stream, packets)
        first_frame = next(frames, None)
        if first_frame is None:
            raise AudioFileError(f"{name}: its audio track has no samples; expected at least one")
        samples_per_tick = stream.time_base * first_frame.sample_rate
        yield _Track(name, file, container, stream, packets, frames, first_frame, samples_per_tick)


def _jump(track: _Track, target: int) -> Iterator[av.AudioFrame]:
    """Frames from a little before source sample `target` on, without decoding what lies before.

    The caller finds the position of the first one by its timestamp. Raises _SeekMissed.
    """
    time_base, origin = track.stream.time_base, track.first_frame.pts
    if origin is None:
        raise _SeekMissed
    target_pts = origin + int(Fraction(target, track.rate) / time_base)
    if track.format in SEEKABLE_FORMATS:
        try:
            track.container.seek(target_pts, stream=track.stream)
        except av.error.FFmpegError as error:
            raise _SeekMissed from error
        packets = track.container.demux(track.stream)
    else:
        packets = (packet for packet in track.packets if packet.pts is None or packet.pts >= target_pts)
        track.stream.codec_context.flush_buffers()
    return _decode(track.name, track.stream, packets)


def _positioned_frames(track: _Track, wanted: int) -> Iterator[tuple[int, av.AudioFrame]]:
    """(position, frame) in source samples, the first one at or before `wanted`. Raises _SeekMissed before any frame."""
    target = wanted - round(DECODER_RUN_UP_SECONDS * track.rate)
    position, frames = 0, track.frames
    if target > track.first_frame.samples and track.format in SEEKABLE_FORMATS | SKIPPABLE_FORMATS:
        frames = _jump(track, target)
        frame = next(frames, None)
        landed = track.position(frame) if frame is not None else None
        if landed is None or abs(landed - round(landed)) > 0.01 or landed > wanted:
            raise _SeekMissed
        position = round(landed)
    else:
        frame = track.first_frame
    max_jump, lag = MAX_JUMP_SECONDS.get(track.format, math.inf) * track.rate, 0
    while frame is not None:
        stamped = track.position(frame)
        if stamped is not None and abs(stamped - position - lag) > max_jump:
            raise AudioFileError(
                f"{track.name}: damaged, or several recordings in one: jumps from {position / track.rate:.3f} s to "
                f"{stamped / track.rate:.3f} s; fetch the file again or split it"
            )
        lag = stamped - position if stamped is not None else lag
        yield position, frame
        position += frame.samples
        frame = next(frames, None)


def _mono(frame: av.AudioFrame) -> np.ndarray:
    """(N,) float32, full scale 1.0: the plain mean over channels, not FFmpeg's weighted down-mix."""
    samples = frame.to_ndarray()  # (C, N) planar, (1, N * C) packed
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T  # (C, N)
    full_scale = INTEGER_FULL_SCALE.get(frame.format.name.removesuffix("p"))
    if full_scale is None:
        return samples.mean(axis=0, dtype=np.float32)
    offset = full_scale if frame.format.name.startswith("u8") else 0.0
    return ((samples.mean(axis=0, dtype=np.float64) - offset) / full_scale).astype(np.float32)


def _mono_chunks(track: _Track, wanted: int) -> Iterator[tuple[int, np.ndarray]]:
    """(position, samples (N',)) from `wanted` or before to the end of the file, which must be as long as it says."""
    chunk, chunk_start, last_start, end = [], 0, 0, 0
    for position, frame in _positioned_frames(track, wanted):
        if frame.sample_rate != track.rate:
            raise AudioFileError(
                f"{track.name}: its sampling rate changes from {track.rate} to {frame.sample_rate} Hz at "
                f"{position / track.rate:.1f} s; expected one rate, convert the file first"
            )
        # A chunk is handed out when the next frame comes, because the last frame may have to be cut.
        if sum(map(len, chunk)) >= RESAMPLER_CHUNK_SAMPLES:
            yield chunk_start, np.concatenate(chunk)
            chunk = []
        if not chunk:
            chunk_start = position
        last_start, end = position, position + frame.samples
        if end <= wanted:
            continue
        samples = _mono(frame)
        if not np.isfinite(samples).all():
            raise AudioFileError(
                f"{track.name}: NaN or infinite samples at {position / track.rate:.2f} s; expected numbers"
            )
        chunk.append(samples)
    _check_complete(track, end)
    # FFmpeg leaves the encoder's padding in the last packet of an mp4, whose header has the true length.
    declared = track.declared_samples
    track.num_samples = declared if declared is not None and last_start < declared < end else end
    if chunk and track.num_samples < end:
        chunk[-1] = chunk[-1][: track.num_samples - end]
    if chunk:
        yield chunk_start, np.concatenate(chunk)


def _resampling_start(first: int, source_rate: int, rate: int) -> tuple[int, int]:
    """(source sample, output sample) at which resampling has to start to give output sample `first`.

    Both grids meet every R / gcd source samples. Starting at such a point gives the filter the phases it has in the
    whole file, so a span is the same as the slice. Negative before the file, where there is silence.
    """
    divisor = math.gcd(source_rate, rate)
    source_step, output_step = source_rate // divisor, rate // divisor
    run_up = math.ceil(RESAMPLER_RUN_UP_SAMPLES * max(source_rate, rate) / (rate * source_step))
    cycle = first // output_step - run_up
    return cycle * source_step, cycle * output_step


def _resample(
    chunks: Iterator[tuple[int, np.ndarray]], source_rate: int, rate: int, first: int
) -> Iterator[np.ndarray]:
    """Output samples from `first` on; M = ceil(N r / R) in the whole file, with silence on either side of it."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)

    def convert(samples: np.ndarray) -> np.ndarray:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None, :], format="flt", layout="mono")
        frame.sample_rate = source_rate
        outputs = [output.to_ndarray()[0] for output in resampler.resample(frame)]
        return np.concatenate(outputs) if outputs else np.zeros(0, np.float32)

    start, index = _resampling_start(first, source_rate, rate)
    if start < 0:
        index += len(convert(np.zeros(-start, np.float32)))
    end = 0
    for position, samples in chunks:
        end = position + len(samples)
        samples = samples[max(start - position, 0) :]
        if len(samples):
            outputs = convert(samples)
            yield outputs[max(first - index, 0) :]
            index += len(outputs)
    # Silence, not the resampler's flush, which mirrors the end and returns nothing for less than a filter length.
    silence = np.zeros(math.ceil(RESAMPLER_RUN_UP_SAMPLES * max(source_rate / rate, 1)), np.float32)
    num_outputs = -(-end * rate // source_rate)
    yield convert(silence)[: max(num_outputs - index, 0)][max(first - index, 0) :]


def _blocks(pieces: Iterator[np.ndarray], block_samples: int, num_samples: int | None) -> Iterator[np.ndarray]:
    """The pieces, in one row and cut after `num_samples`, as blocks of `block_samples`; the last may be shorter."""
    block, filled, remaining = np.empty(block_samples, np.float32), 0, num_samples
    for piece in pieces:
        if remaining is not None:
            piece = piece[:remaining]
            remaining -= len(piece)
        while len(piece):
            taken = piece[: block_samples - filled]
            block[filled : filled + len(taken)] = taken
            filled, piece = filled + len(taken), piece[len(taken) :]
            if filled == block_samples:
                yield block
                block, filled = np.empty(block_samples, np.float32), 0
        if remaining == 0:
            break
    if filled:
        yield block[:filled].copy()


def _span_blocks(
    source: AudioSource, name: str, rate: int, first: int, last: int | None, block_samples: int
) -> Iterator[np.ndarray]:
    """Output samples first..last in blocks; a second try reads from the start of the file if seeking went wrong."""
    for may_jump in (True, False):
        try:
            with open_track(source, name) as track:
                wanted = max(_resampling_start(first, track.rate, rate)[0], 0) if may_jump else 0
                pieces = _resample(_mono_chunks(track, wanted), track.rate, rate, first)
                is_empty = True
                for block in _blocks(pieces, block_samples, None if last is None else last - first):
                    is_empty = False
                    yield block
                if is_empty:
                    raise AudioFileError(
                        f"{name}: start={first / rate:g} s lies beyond its end at "
                        f"{track.num_samples / track.rate:g} s; expected a smaller start"
                    )
            return
        except _SeekMissed:
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
            the end. Only the span and a run-up of about a second are decoded, except in webm / mkv, whose rounded
            timestamps make everything before the span be decoded and dropped. The result is the slice of the whole
            file, bit for bit, except from aac: its decoder draws the noise of noisy bands (PNS) anew.
        block_seconds: length of a block; the concatenation of the blocks does not depend on it.

    Yields:
        (round(block_seconds * r),) float32, full scale 1.0; the last block may be shorter.
        A whole file of N samples at rate R gives ceil(N r / R).

    Raises:
        AudioFileError: not audio, no audio track, empty, damaged, truncated, NaN or infinite samples in the span, or
            `start` beyond the end. Truncation shows when the end is reached. What cannot be told from a shorter
            file: mp3 without a Xing header, and adts or ogg cut exactly between two frames or pages.
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
    """Length in seconds: from the header where it counts samples (wav, aiff, flac, mp4 / m4a), else by decoding.

    Raises AudioFileError as `stream_audio` does; with a header that counts samples, damage inside the file goes unseen.
    """
    name = source_name(source)
    with open_track(source, name) as track:
        if track.declared_samples is not None:
            _check_complete(track, track.declared_samples)
            return track.declared_samples / track.rate
        for _ in _mono_chunks(track, 0):
            pass
        return track.num_samples / track.rate


def header_seconds(source: bytes | str) -> float:
    """Length without decoding: exact where the header counts samples (wav, aiff, flac, m4a), else FFmpeg's estimate.

    Good enough to sort songs by length, and hundreds of times faster than [`audio_seconds`] for mp3 or ogg.

    Raises:
        AudioFileError: not audio, or nothing says how long it is.
    """
    with open_track(source, source_name(source)) as track:
        if track.declared_samples is not None:
            return track.declared_samples / track.rate
        if track.container.duration is not None:
            return track.container.duration / av.time_base
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
