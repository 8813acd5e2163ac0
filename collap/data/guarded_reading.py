"""Read audio files in a process beside this one, so that a file that kills its decoder is a bad file like others.

A damaged file can end the process that decodes it (SIGSEGV in a library, no memory left), and with it a run of days.
So data sets are read here: the functions are those of `processing.decode_audio`, with the same samples, errors and
warnings, and are carried out by a [`collap.data.reader_process`]. One is started by the first file that a process
reads, and is kept; forked workers start their own. A block of samples is held at a time on either side.
"""

import contextlib
import fcntl
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import processing
from processing.decode_audio import AudioFileError, crop_span, source_name

from .audio_parts import audio_part

Source = bytes | str

START = (
    "import pickle, sys; sys.path[:], folder = pickle.load(sys.stdin.buffer); "
    "from collap.data.reader_process import serve; serve(folder)"
)
PIPE_BYTES = 2**20  # with the usual 64 KiB, 5 minutes of samples take 300 turns of both processes
CAUSES = {
    "SIGKILL": "perhaps because memory was at its end",
    "SIGXCPU": "because it took more processor time than any recording needs",
}


class _Reader:
    """A process that decodes, and the pipes to it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy would start a thread for every core
            start_new_session=True,  # Ctrl-C is for the process that asks
        )
        with contextlib.suppress(AttributeError, OSError):  # not Linux, or too many of them: slower, no more
            fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            self.send((sys.path, str(Path(processing.__file__).parent)))
            self.receive()  # "ready"
        except (OSError, EOFError) as error:
            raise OSError(f"the process that reads audio {self.end()} before it could begin") from error

    def send(self, request: tuple) -> None:
        pickle.dump(request, self.process.stdin, protocol=5)
        self.process.stdin.flush()

    def receive(self) -> tuple[str, object]:
        return pickle.load(self.process.stdout)

    def close(self) -> None:
        """Close the pipes, by which the process ends if nobody else holds them."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what could not be sent
                pipe.close()

    def end(self) -> str:
        """Make an end, if there is none yet, and say which one it was."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1)  # one that has died closes its pipes a little earlier
        self.process.kill()
        code = self.process.wait()
        self.close()
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:  # a real-time signal
            name = f"signal {-code}"
        return f"was killed by {name}" + (f", {CAUSES[name]}," if name in CAUSES else "")


_idle: list[_Reader] = []


def _leave_to_the_parent() -> None:
    for reader in _idle:
        reader.process.returncode = 0  # not ours to wait for
        reader.close()
    _idle.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _free_reader() -> _Reader:
    with contextlib.suppress(IndexError):  # there is none, or another thread has just taken the last one
        while True:
            reader = _idle.pop()
            if reader.process.poll() is None:
                return reader
            reader.close()
    return _Reader()


def _carry_out(function: str, source: Source, *arguments) -> Iterator:
    """Yield what a function of `decode_audio`, or `read_tags`, returns or yields, from another process.

    Raises:
        AudioFileError: as the function does, or the process that read the file died of it.
        OSError: no such process can be started.
    """
    place = None if isinstance(source, bytes) or os.path.isabs(source) else os.getcwd()
    reader, is_free = _free_reader(), False
    try:
        reader.send((function, (source, *arguments), place))
        while True:
            kind, content = reader.receive()
            if kind == "item":
                yield content
            elif kind == "log":
                name, level, message = content
                logging.getLogger(name).log(level, "%s", message)
            else:
                is_free = True
                break
    except (OSError, EOFError, pickle.UnpicklingError):
        raise AudioFileError(
            f"{source_name(source)}: the process that decoded it {reader.end()}; remove the file, or convert it"
        ) from None
    finally:
        if is_free:
            _idle.append(reader)
        else:  # dead, or left in the middle of a file
            reader.process.kill()
            reader.end()
    if kind == "error":
        error_class, message = content
        raise error_class(message)


def stream_audio(
    source: Source,
    sampling_rate: int = 16000,
    start: float | None = None,
    stop: float | None = None,
    block_seconds: float = 30.0,
) -> Iterator[np.ndarray]:
    """Read mono audio in blocks, see `processing.decode_audio.stream_audio`; the next one is decoded meanwhile.

    Here, and in the functions below, a path may also name a part of a file, see [`collap.data.audio_parts`]; `start`
    and `stop` are seconds of that part.
    """
    part = audio_part(source)
    return _carry_out("stream_audio", part.source, sampling_rate, *part.within(start, stop), block_seconds)


def load_audio(
    source: Source, sampling_rate: int = 16000, start: float | None = None, stop: float | None = None
) -> np.ndarray:
    """Read a file or a span of it as mono float32 samples (M,), see `processing.decode_audio.load_audio`."""
    return np.concatenate(list(stream_audio(source, sampling_rate, start, stop)))


def load_crop(source: Source, crop_seconds: float, place: float) -> np.ndarray:
    """Read a crop of mono float32 samples (M,) at 16 kHz, see `processing.decode_audio.load_crop`."""
    part = audio_part(source)
    if part.stop is None:
        (samples,) = _carry_out("load_crop", part.source, crop_seconds, place)
        return samples
    start, stop = crop_span(header_seconds(source), crop_seconds, place)
    return load_audio(source, start=start, stop=stop)


def header_seconds(source: Source) -> float:
    """Return the length by the header or the packets, see `processing.decode_audio.header_seconds`."""
    part = audio_part(source)
    (seconds,) = _carry_out("header_seconds", part.source)
    if part.stop is None:
        return seconds
    if seconds <= part.start:
        raise AudioFileError(f"{source_name(source)}: the file ends at {seconds:g} s; expected the whole recording")
    return min(seconds, part.stop) - part.start


def audio_tags(source: Source) -> dict[str, str]:
    """Return the tags of a file, names in small letters; none if they cannot be read.

    Raises:
        AudioFileError: the process that read them died of the file.
    """
    (tags,) = _carry_out("read_tags", audio_part(source).source)
    return tags
