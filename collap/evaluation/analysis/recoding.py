"""Write a song as another file would hold it: as mp3 or Opus of a bit rate, as one channel; by the FFmpeg of PyAV.

Dimensions: `C` channels, `N` samples at the file's rate.
"""

import io
from collections.abc import Callable

import av
import numpy as np
import soundfile

from collap.data.audio_parts import audio_part
from processing.decode_audio import AudioFileError, source_name

SAME_BYTES = {"fflags": "+bitexact"}  # no random number of the stream in Ogg
OPUS_RATE = 48_000
MP3_RATES = (44_100, 48_000, 32_000, 22_050, 24_000, 16_000)


def read_channels(source: bytes | str) -> tuple[np.ndarray, int]:
    """Decode an audio, a span of a file too, with its channels: (1 or 2, N) float32, more are mixed to 2; and its rate.

    Raises:
        AudioFileError: FFmpeg cannot.
    """
    part, pieces = audio_part(source), []
    file = io.BytesIO(part.source) if isinstance(part.source, bytes) else part.source
    try:
        with av.open(file) as container:
            stream = container.streams.audio[0]
            layout, rate = ("mono" if stream.channels == 1 else "stereo"), stream.rate
            convert = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            for frame in container.decode(stream):
                pieces += [one.to_ndarray() for one in convert.resample(frame)]
            pieces += [one.to_ndarray() for one in convert.resample(None)]
        channels = np.concatenate(pieces, axis=1)  # (C, N)
    except (av.error.FFmpegError, OSError, IndexError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise AudioFileError(f"{source_name(source)}: cannot be re-encoded: {type(error).__name__}: {cause}") from error
    stop = None if part.stop is None else round(part.stop * rate)
    return channels[:, round(part.start * rate) : stop], rate


def encode(channels: np.ndarray, rate: int, codec: str, container: str, kbits: float, to_rate: int) -> bytes:
    """Encode channels (C, N) by a codec at a bit rate; FFmpeg resamples from `rate` to `to_rate`."""
    file = io.BytesIO()
    layout = "mono" if len(channels) == 1 else "stereo"
    with av.open(file, "w", format=container, options=SAME_BYTES) as output:
        stream = output.add_stream(codec, rate=to_rate, layout=layout)
        stream.bit_rate = round(1000 * kbits)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
        frame.sample_rate = rate
        convert = av.AudioResampler(
            format=stream.codec_context.format or "fltp", layout=layout, rate=to_rate, frame_size=stream.frame_size or 0
        )
        for piece in [*convert.resample(frame), *convert.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def as_mp3(channels: np.ndarray, rate: int, kbits: float) -> bytes:
    """Encode as mp3 by LAME, at the file's rate if mp3 has it."""
    return encode(channels, rate, "libmp3lame", "mp3", kbits, rate if rate in MP3_RATES else OPUS_RATE)


def as_opus(channels: np.ndarray, rate: int, kbits: float) -> bytes:
    """Encode as Opus, which has 48 kHz."""
    return encode(channels, rate, "libopus", "ogg", kbits, OPUS_RATE)


def as_mono(channels: np.ndarray, rate: int, _: float) -> bytes:
    """Write the mean of the channels with 16 bits."""
    return _written(channels.mean(axis=0), rate)


def as_left(channels: np.ndarray, rate: int, _: float) -> bytes:
    """Write the first channel alone with 16 bits."""
    return _written(channels[0], rate)


def _written(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


RECODINGS: dict[str, Callable] = {"mp3": as_mp3, "opus": as_opus, "mono": as_mono, "left": as_left}


def recode(source: bytes | str, kind: str, amount: float) -> bytes:
    """Return a song as another file.

    Raises:
        AudioFileError: FFmpeg cannot read it.
    """
    return RECODINGS[kind](*read_channels(source), amount)
