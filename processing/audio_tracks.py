"""Audio files as libsndfile and FFmpeg decode them: chunks of mono samples at the file's own rate, from a position on.

libsndfile (soundfile) reads what stores samples one by one (wav, aiff, caf, w64, au ...) and seeks in it exactly.
FFmpeg (PyAV ships it) reads everything else, and is asked for nothing but packets from the first on: timestamps, tables
and totals of coded files are wrong too often.

Dimensions: `N` samples of a file at its rate `R`, `C` channels. A position is the number of samples before it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np

try:
    import av
    import soundfile

    FFmpegError = av.error.FFmpegError
except (ImportError, OSError):  # where a model's code was fetched from the Hub; OSError: no libsndfile
    av, soundfile, FFmpegError = None, None, OSError

# What libsndfile reads first, by the first four bytes. Of the rest, version 1.2.2 seeks to wrong samples in one of ten
# places of Ogg Vorbis, ends an mp3 where its header or an estimate says, and decodes Opus at a third of the speed.
SNDFILE_HEADS = {b"RIFF", b"RIFX", b"RF64", b"FORM", b"riff", b"caff", b".snd", b"dns."}
SEEKABLE_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "ALAC_", "MS_ADPCM", "IMA_ADPCM")
# FFmpeg checks this list after it has recognised a file and before it follows anything in it, so that playlists (hls,
# concat, dash), which name other files or addresses, are refused.
FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,iff,ircam,loas,matroska,mlp,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,qoa,rm,shn,sox,tak,truehd,tta,voc,w64,wav,wv,xwma"
)
EXPECTED = "expected wav, aiff, flac, ogg, opus, mp3, aac, m4a/mp4, webm, wma or another audio file that FFmpeg plays"
# What a header may claim, asked before anything is allocated for it.
MIN_RATE, MAX_RATE, MAX_CHANNELS = 1_000, 768_000, 255
# Programs that write into a pipe declare 2^31 or 2^32 bytes, less a header or rounded down (sox: 0x7F000000).
UNKNOWN_SIZE = 0x7F000000 - 2**16
# Lines of libsndfile's log about (1) a size in bytes or (2) a number of samples that the file does not have.
DECLARED_BYTES = re.compile(
    r"^ *(?:data|SSND|BODY|riff|Data Size) *: (?P<declared>\d+) \(should be (?P<found>\d+)\)", re.M
)
DECLARED_SAMPLES = re.compile(r"frame count (?P<found>\d+) does not match value from 'ds64' chunk of (?P<declared>\d+)")
UNREAD_REST = re.compile(r"Unknown chunk marker .* at position (\d+)\. Exiting parser")
# FFmpeg's formats whose header counts samples or time; of others it estimates a duration.
COUNTED_FORMATS = {"aiff", "ape", "asf", "au", "avi", "flac", "matroska", "mov", "tta", "w64", "wv"}

# What stands before the samples: bytes in all, bytes of the size after the name "data", their order.
CHUNK_HEADERS = {"wav": (8, 4, "little"), "caf": (16, 8, "big")}
# Each of their frames has a header: where the last one is whole, a larger total is wrong and the file is not cut.
FRAMED_FORMATS = {"mp3", "flac"}

# (format, codec) whose packets say how long they are and leave nothing behind: those before a span are counted, not
# decoded. mp3 takes bits from up to 511 bytes before, half a second at 8 kbit/s, and overlaps two frames. Other codecs
# draw noise (aac, ac3) or converge slowly (opus), or their packets are counted wrong (vorbis).
SKIPPABLE = {("mp3", "mp3float"), ("mp3", "mp3"), ("flac", "flac"), ("ogg", "flac")}
DECODER_RUN_UP_SECONDS = 1.0
# Timestamps that lead on by less are FFmpeg's mistakes: it counts a packet of Vorbis up to 46 ms wrong.
MIN_JUMP_SECONDS = 0.05
# Samples handed to the resampler at once: a call costs as much as some thousand samples.
CHUNK_SAMPLES = 16384
# More than an encoder's padding at the end of a file (mp3: 4095, aac: 2048).
MAX_PADDING = 8192
MAX_OGG_PAGE, MAX_TAG = 65307, 2048
# FFmpeg's kinds of samples that numpy has: type and full scale.
SAMPLE_TYPES = {"u8": ("u1", 2**7), "s16": ("i2", 2**15), "s32": ("i4", 2**31), "flt": ("f4", 1), "dbl": ("f8", 1)}

# What reading damaged files raises; LibsndfileError is a RuntimeError, UnicodeError a ValueError.
DECODING_ERRORS = (FFmpegError, OSError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError, EOFError)


class AudioFileError(ValueError):
    """A file that cannot be read as asked: names the file, what was found, and what was expected or what to do."""


class Refused(Exception):
    """One of the two libraries does not read a file; says why."""


class MustStartOver(Exception):
    """Counting packets does not lead to the wanted sample: they are damaged, or of recordings joined in one file."""


class File:
    """Offer both libraries what they call of a file. It has no name, so that only the content decides what a file is,
    and keeps the error of a failed read, which they would take for the end of the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.tell, self.error = file, file.tell, None
        self.size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.head = self.read(12)

    def read(self, size: int) -> bytes:
        try:
            data = self.file.read(size)
            if len(data) > size:  # PyAV would copy it over other memory
                raise OSError(f"its read({size}) gave {len(data)} bytes")
            return data
        except Exception as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):  # a damaged header points before the start or beyond 2^63
            return -1

    def check(self) -> None:
        if self.error is not None:
            raise self.error


def check_plausible(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioFileError(f"has a sampling rate of {rate} Hz; expected {MIN_RATE} to {MAX_RATE} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioFileError(f"has {channels} channels; expected 1 to {MAX_CHANNELS}")


class SndfileTrack:
    """A file as libsndfile reads it: rate R, `num_samples` N, and as [`FfmpegTrack`] what is missing of it."""

    format, lost, is_cut, claim, rest = "", 0, False, "its header declares", 0

    def __init__(self, file: File, may_skip: bool) -> None:
        try:
            self.sound = soundfile.SoundFile(file)
        except soundfile.LibsndfileError as error:
            raise Refused(f"not an audio file, or its header is missing or cut; {EXPECTED}") from error
        self.rate, self.num_samples = self.sound.samplerate, self.sound.frames
        check_plausible(self.rate, self.sound.channels)
        is_mp3_in_wav = file.head[:4] in SNDFILE_HEADS and self.sound.subtype.startswith("MPEG")
        if self.num_samples == 0 or is_mp3_in_wav:
            raise Refused(f"its audio track has no samples; {EXPECTED}")
        # soundfile would seek after each read, which loses the state of some codecs.
        self.sound.seekable = lambda: False
        self.declared = None
        found = DECLARED_BYTES.search(self.sound.extra_info) or DECLARED_SAMPLES.search(self.sound.extra_info)
        if found and 0 < int(found["found"]) < int(found["declared"]) < UNKNOWN_SIZE:
            self.declared = self.num_samples * int(found["declared"]) // int(found["found"])
        if found := UNREAD_REST.search(self.sound.extra_info):
            self.rest = file.size - int(found[1])

    def header_seconds(self) -> float:
        return self.num_samples / self.rate

    def chunks(self, wanted: int) -> Iterator[tuple[int, np.ndarray]]:
        position = 0
        if wanted and self.sound.subtype.startswith(SEEKABLE_SUBTYPES):
            position = self.sound.seek(min(wanted, self.num_samples))
        frames = max(CHUNK_SAMPLES // self.sound.channels, 1)
        while len(samples := self.sound.read(frames, dtype="float32", always_2d=True)):  # (N', C)
            yield position, _mix(list(samples.T))
            position += len(samples)
        self.num_samples = self.end = position

    def close(self) -> None:
        self.sound.close()


def _mix(channels: list[np.ndarray]) -> np.ndarray:
    """Return the plain mean (N',) float32 of C channels (N',); each sample by itself, so that no span differs."""
    mono = channels[0].astype(np.float32)
    for channel in channels[1:]:
        mono += channel
    return mono / np.float32(len(channels))


def _mono(frames: list[av.AudioFrame]) -> np.ndarray:
    """Mix frames of one kind to (N',) float32, full scale 1.0."""
    kind, count = frames[0].format, frames[0].layout.nb_channels
    dtype, full_scale = SAMPLE_TYPES[kind.name.removesuffix("p")]
    planes = [[] for _ in range(count if kind.is_planar else 1)]
    for frame in frames:
        for plane, samples in zip(planes, frame.planes, strict=True):
            plane.append(np.frombuffer(samples, dtype, frame.samples * count // len(planes)))
    planes = [np.concatenate(plane) for plane in planes]  # (N',) each, or (N' C,)
    mono = _mix(planes if kind.is_planar else [planes[0][channel::count] for channel in range(count)])
    return (mono - np.float32(full_scale if dtype == "u1" else 0)) / np.float32(full_scale)


class FfmpegTrack:
    """The first audio track of a file as FFmpeg decodes it, opened up to its first frame.

    Attributes:
        rate, num_samples: R, and N once the end has been reached.
        declared: N by the header, None where it is not counted there.
        end: N by the last packet's timestamp.
        lost: samples that could not be decoded within what was read.
        is_cut: the last packet cannot be decoded: the file ends within it.
    """

    claim, rest = "its header declares", 0

    def __init__(self, file: File, may_skip: bool) -> None:
        self.file = file
        # A wav is read as a stream: where FFmpeg can seek it jumps over all chunks of samples but the last.
        reader = SimpleNamespace(read=file.read) if file.head[8:] == b"WAVE" else file
        options = {"format_whitelist": FFMPEG_FORMATS, "protocol_whitelist": "none"}
        try:
            self.container = av.open(reader, mode="r", container_options=options, metadata_errors="replace")
        except (FFmpegError, OSError) as error:
            raise Refused(f"not an audio file, or its header is missing or cut; {EXPECTED}") from error
        self.format = self.container.format.name.split(",")[0]
        self.stream = self._first_stream()
        context, self.codec = self.stream.codec_context, self.stream.codec.name
        self.rate, self.tick = context.sample_rate or MIN_RATE, self.stream.time_base.as_integer_ratio()
        check_plausible(self.rate, context.channels or 1)
        if (self.format, self.codec) == ("ogg", "vorbis") and context.channels > 2:
            raise Refused("FFmpeg decodes one channel in 5.1 of Vorbis wrong, and libsndfile does not read it")
        if self.format == "mp3":
            # FFmpeg cuts an encoder's padding where the header says that it is; here it is cut at the end.
            context.options = {"flags2": "+skip_manual"}
        if self.codec == "flac":
            # Without it FFmpeg hands out damaged frames as if they were sound.
            context.options = {"err_detect": "crccheck+explode"}
        self.can_skip, self.skip_to = may_skip and (self.format, self.codec) in SKIPPABLE, -1
        self.position = self.lost = self.lead = self.padding = self.num_samples = self.passed_bytes = 0
        self.origin = self.end = None
        self.first_packet, self.declared, self.is_cut, self.converters = None, None, False, {}
        self.packets, self.decoded = self._packets(), self._decoded()
        self.first = next(self.decoded, None)
        if self.first is None:
            raise Refused(f"its {self.codec} track has no samples that could be decoded; {EXPECTED}")
        self.declared = self._declared()

    def _first_stream(self) -> av.AudioStream:
        streams = self.container.streams
        if not streams.audio:
            found = ", ".join(sorted({stream.type for stream in streams})) or "nothing"
            raise Refused(f"has no audio track (found: {found}); expected at least one")
        if streams.audio[0].codec_context is None:
            raise Refused(f"its audio has a codec that FFmpeg cannot decode; {EXPECTED}")
        for stream in streams:
            if stream is not streams.audio[0]:
                stream.discard = av.stream.Discard.all
        return streams.audio[0]

    def _samples(self, ticks: int | None) -> int:
        numerator, denominator = self.tick
        return ((ticks or 0) * numerator * self.rate * 2 + denominator) // (denominator * 2)

    def _packets(self) -> Iterator[tuple[av.Packet, int]]:
        """Yield each packet and its length in samples by its own account, to the end of the file."""
        last, page, page_bytes = None, 0, 0  # several packets of a page of ogg have its position
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    self.first_packet = self.first_packet or packet
                    if packet.pos != page:
                        self.passed_bytes = (packet.pos or 0) - (page or 0) - page_bytes if last is not None else 0
                        page, page_bytes = packet.pos, 0
                    last, page_bytes = packet, page_bytes + packet.size
                if self.format == "mp3" and packet.has_sidedata("skip_samples"):
                    trims = bytes(packet.get_sidedata("skip_samples"))
                    self.lead += int.from_bytes(trims[:4], "little")
                    self.padding += int.from_bytes(trims[4:8], "little")
                yield packet, self._samples(packet.duration)
        except FFmpegError as error:
            self.file.check()
            byte = last.pos if last is not None and last.pos else 0
            if self.format == "ogg" and isinstance(error, av.error.PatchWelcomeError):
                error = "another recording, of other channels or another rate, is joined on"
            self.is_cut, self.claim = True, f"(FFmpeg stops: {error}) by its {self.file.size} bytes it has about"
            self.declared = max(self.declared or 0, self.position * self.file.size // max(byte, 1))
        if last is not None:
            self._look_at_end(last)

    def _look_at_end(self, last: av.Packet) -> None:
        """Set what FFmpeg does not tell at the end of a file: whether it is cut."""
        if self.format == "mp3":
            # Part of a frame is decoded as if it were one; FFmpeg's parser hands out whole ones.
            self.is_cut = not av.CodecContext.create("mp3", "r").parse(bytes(last))
        elif self.format == "ogg":
            self.file.seek(max(self.file.size - MAX_OGG_PAGE, 0))
            tail = self.file.read(MAX_OGG_PAGE)
            self.is_cut = not tail[tail.rfind(b"OggS") :][5:6] >= b"\x04"  # the flag of a stream's last page
        elif self.format in CHUNK_HEADERS:
            length, size_bytes, order = CHUNK_HEADERS[self.format]
            header = self._before_sound()[-length:]
            size = int.from_bytes(header[4 : 4 + size_bytes], order) if header[:4] == b"data" else 0
            num_read = (last.pos or 0) + last.size - (self.first_packet.pos or 0)
            self.declared = self.position * size // max(num_read, 1) if 0 < size < UNKNOWN_SIZE else None

    def _missing_before(self, packet: av.Packet, position: int) -> int:
        """Return the samples between `position` and a packet, by timestamps, if FFmpeg passed over the bytes for them:
        those are damaged. Where no bytes are missing timestamps may jump: a pause, or recordings joined in one file."""
        if packet.pts is None or not packet.size or self.format == "mp3":  # an mp3 has none, FFmpeg counts
            return 0
        start = self._samples(packet.pts)
        self.origin = start if self.origin is None else self.origin
        jump, self.end = start - (self.end or start), start + self._samples(packet.duration)
        is_numbered = (self.format, self.codec) in SKIPPABLE  # frames of flac
        if is_numbered and 0 < start - self.origin - position <= self.rate:
            return start - self.origin - position
        is_damaged = self.passed_bytes > jump * (packet.pos or 0) / max(start, 1) / 2
        return jump if is_damaged and jump > MIN_JUMP_SECONDS * self.rate else 0

    def _decoded(self) -> Iterator[tuple[int, list[av.AudioFrame]]]:
        """Yield (position, frames) of each packet that can be decoded, from `skip_to` on."""
        gap, count, has_skipped = 0, 0, False
        for packet, length in self.packets:
            missing = self._missing_before(packet, self.position + gap)
            if packet.size and self.position + length <= self.skip_to:
                if self.format == "mp3":
                    is_next = length == count
                else:
                    is_next = length and packet.pts is not None and self.end - length - self.origin == self.position
                if not is_next:
                    raise MustStartOver
                self.position, has_skipped = self.position + length, True
                continue
            if has_skipped:
                self.stream.codec_context.flush_buffers()
            try:
                frames = packet.decode()
            except FFmpegError:
                lost = length if (self.format, self.codec) in SKIPPABLE else count
                gap, self.is_cut = gap + missing + min(lost, self.rate), True
                self.origin = self.origin if self.position else None
                continue
            gap += missing
            if not frames:
                continue
            if not self.position:
                # Not the stream's rate: an HE-AAC header may state half of what comes out of the decoder.
                self.rate, gap = frames[0].sample_rate, 0
                check_plausible(self.rate, frames[0].layout.nb_channels)
            elif has_skipped and frames[0].sample_rate != self.rate:
                raise MustStartOver
            frames = [converted for frame in frames for converted in self._converted(frame)]
            count = sum(frame.samples for frame in frames)
            position = self.position + gap
            self.position, gap, has_skipped, self.is_cut = position + count, 0, False, False
            yield position, frames

    def _converted(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """Return the frame at the file's rate, in a form that numpy reads: with 8 planes `planes` leaves its memory."""
        kind, channels = frame.format, frame.layout.nb_channels
        is_readable = kind.name.removesuffix("p") in SAMPLE_TYPES and (channels < 8 or not kind.is_planar)
        if is_readable and frame.sample_rate == self.rate:
            return [frame]
        check_plausible(frame.sample_rate, channels)
        converter = av.AudioResampler(format="flt", rate=self.rate)
        return self.converters.setdefault((kind.name, channels, frame.sample_rate), converter).resample(frame)

    def _declared(self) -> int | None:
        if self.format == "mp3":  # FFmpeg keeps to itself what a file declares but does not have
            before = self._before_sound()
            tag = before[max(before.rfind(b"Xing"), before.rfind(b"Info"), 0) :][:12]
            if tag[:4] not in (b"Xing", b"Info") or len(tag) < 12 or not tag[7] & 1:
                return None
            return int.from_bytes(tag[8:], "big") * self._samples(self.first_packet.duration) - self.lead
        if self.format not in COUNTED_FORMATS or not self._counted_seconds():
            return None
        if self.stream.duration is None and len(self.container.streams) > 1:  # the picture may be longer
            return None
        return round(self._counted_seconds() * self.rate)

    def _counted_seconds(self) -> float:
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        return (self.container.duration or 0) / av.time_base

    def _before_sound(self) -> bytes:
        """Return the bytes before the first packet: the header of a wav's chunk, or a frame with a tag in an mp3."""
        here, first = self.file.tell(), self.first_packet.pos or 0
        self.file.seek(max(first - MAX_TAG, 0))
        before = self.file.read(min(first, MAX_TAG))
        self.file.seek(here)
        return before

    def header_seconds(self) -> float:
        """Return the length by the header if that counts it, else by the packets, all of which are read for it."""
        if self.format in COUNTED_FORMATS - FRAMED_FORMATS and self._counted_seconds():
            return self._counted_seconds()
        seconds = (self.position + sum(length for _, length in self.packets) - self.lead - self.padding) / self.rate
        return max(seconds, self._counted_seconds()) if self.format == "ogg" else seconds

    def chunks(self, wanted: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (position, (N',)) from `wanted` or before it to the end, without the encoder's padding."""
        if self.can_skip:
            self.skip_to = wanted + self.lead - round(DECODER_RUN_UP_SECONDS * self.rate)
        held = None  # what may be padding
        for start, samples in self._pieces(wanted):
            if held is not None and len(samples) < MAX_PADDING:
                held = held[0], np.concatenate([held[1], samples])
                continue
            if held is not None:
                yield held
            held = start, samples
        self.num_samples = max(self.position - self.lead - min(self.padding, MAX_PADDING), 0)
        # FFmpeg leaves the encoder's padding in the last packet of an mp4, whose header has the true length.
        if self.format == "mov" and self.declared and 0 < self.num_samples - self.declared < MAX_PADDING:
            self.num_samples = self.declared
        if held is not None:
            yield held[0], held[1][: max(self.num_samples - held[0], 0)]

    def _pieces(self, wanted: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (position, (N',)) in one row from `wanted` or before it on; what is lost is silent."""
        group, kind, start, end = [], None, 0, 0
        for position, frames in itertools.chain([self.first], self.decoded):
            position -= self.lead
            new_kind = frames[0].format.name, frames[0].layout.nb_channels
            if group and (position != end or new_kind != kind or end - start >= CHUNK_SAMPLES):
                yield max(start, 0), _mono(group)[max(-start, 0) :]
                group = []
            if position > max(end, wanted):
                self.lost += position - max(end, wanted)
                yield max(end, wanted), np.zeros(position - max(end, wanted), np.float32)
            end = position + sum(frame.samples for frame in frames)
            if end > max(wanted, 0):
                start, kind = start if group else position, new_kind
                group += frames
        if group:
            yield max(start, 0), _mono(group)[max(-start, 0) :]

    def close(self) -> None:
        self.container.close()


Track = SndfileTrack | FfmpegTrack


def open_track(file: File, may_skip: bool) -> Track:
    """Open a file with the library for its kind, or with the other one where that refuses it."""
    if av is None:
        raise AudioFileError("files are decoded by PyAV and soundfile (pip install av soundfile); or pass samples")
    if file.size == 0:
        raise AudioFileError(f"is empty (0 bytes); {EXPECTED}")
    readers, reasons = [FfmpegTrack, SndfileTrack], {}
    for reader in reversed(readers) if file.head[:4] in SNDFILE_HEADS else readers:
        file.seek(0)
        try:
            return reader(file, may_skip)
        except Refused as error:
            file.check()
            reasons[reader] = error
    raise AudioFileError(str(reasons[FfmpegTrack])) from reasons[FfmpegTrack].__cause__
