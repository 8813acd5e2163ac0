"""Seconds to decode 5 minutes of music to 16 kHz, and a span of 30 s in its middle, against PyAV alone.

    PYTHONPATH=. python benchmarks/decoding.py

PyAV alone is its plain use: every frame through its resampler to 16 kHz mono. It decodes from the start for a span.
"""

import tempfile
import time
from pathlib import Path

import av
import numpy as np
import soundfile

from collap.corpora.synthetic.songs import compose_song, render_song
from processing.decode_audio import load_audio

RATE, SECONDS, SPAN = 44_100, 300.0, (150.0, 180.0)
FILES = ("wav", "flac", "mp3", "ogg", "m4a")


def write_song(path: Path, samples: np.ndarray) -> None:
    """Write (N, 2) samples; libsndfile has no encoder for m4a."""
    if path.suffix != ".m4a":
        with soundfile.SoundFile(path, "w", RATE, 2) as file:
            for start in range(0, len(samples), RATE):  # minutes at once kill libsndfile's encoder of Vorbis
                file.write(samples[start : start + RATE])
        return
    with av.open(path, "w", format="ipod") as file:
        stream = file.add_stream("aac", rate=RATE, layout="stereo")
        for start in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[start : start + 1024].T.copy(), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = RATE, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def pyav_alone(path: Path, start: float = 0.0, stop: float | None = None) -> np.ndarray:
    """Decode a file, or cut a span from it, by nothing but PyAV."""
    parts, resampler, read = [], av.AudioResampler(format="flt", layout="mono", rate=16_000), 0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            for output in resampler.resample(frame):
                parts.append(output.to_ndarray()[0])
                read += output.samples
            if stop is not None and read >= stop * 16_000:
                break
    return np.concatenate(parts)[round(start * 16_000) : None if stop is None else round(stop * 16_000)]


def seconds_of(call, *arguments) -> float:
    started = time.process_time()
    call(*arguments)
    return time.process_time() - started


def measure(repeats: int = 5) -> dict[str, dict[str, float]]:
    """Return the best CPU seconds of both, alternating, and their ratio (ours / PyAV alone)."""
    mono = np.resize(render_song(compose_song("decoding", seed=0), RATE), round(RATE * SECONDS))
    samples, figures = np.stack([mono, 0.8 * np.roll(mono, 300)], axis=1).astype(np.float32), {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in FILES:
            path = Path(folder) / f"song.{suffix}"
            write_song(path, samples)
            for name, span in (("whole", (0.0, None)), ("30 s", SPAN)):
                ours, plain = [], []
                for _ in range(repeats):
                    plain.append(seconds_of(pyav_alone, path, *span))
                    ours.append(seconds_of(load_audio, path, 16_000, *span))
                row = {"ours": min(ours), "PyAV alone": min(plain), "ratio": min(ours) / min(plain)}
                figures[f"{suffix}, {name}"] = {key: round(value, 3) for key, value in row.items()}
            path.unlink()
    return figures


if __name__ == "__main__":
    for label, figures in measure().items():
        print(label, figures)
