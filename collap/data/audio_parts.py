"""Name a part of a file as an audio of its own: a span of seconds, or a member of a tar archive.

    songs/song.mp3#t=30,40    from 30 to 40 s, written as W3C Media Fragments are
    train/0.tar/12.flac       the member 12.flac of an archive that is not compressed

So data sets of clips of 10 s are read from whole songs, and webdataset archives without unpacking them. A file that is
itself called so is taken as it is.
"""

import functools
import os
import re
import tarfile
from dataclasses import dataclass

from processing.decode_audio import AudioFileError

SPAN = re.compile(r"(?P<path>.+)#t=(?P<start>\d+(?:\.\d+)?),(?P<stop>\d+(?:\.\d+)?)", re.DOTALL)
ARCHIVE = ".tar/"
ARCHIVES_KEPT = 64  # whose lists of members are remembered, some 100 kB each


@dataclass(frozen=True)
class AudioPart:
    """Hold what is read: a file or its bytes, from `start` to `stop` seconds; None for its end."""

    source: bytes | str
    start: float = 0.0
    stop: float | None = None

    def within(self, start: float | None, stop: float | None) -> tuple[float | None, float | None]:
        """Return a span of the part, in seconds from its own beginning, as one of the file."""
        if self.stop is None:
            return start, stop
        first = self.start + (start or 0.0)
        if first >= self.stop:
            raise AudioFileError(f"start={start:g} s lies beyond the end of its span of {self.stop - self.start:g} s")
        return first, self.stop if stop is None else min(self.start + stop, self.stop)


def with_span(path: str, start: float, stop: float) -> str:
    """Return the name of the span from `start` to `stop` seconds of a file."""
    return f"{path}#t={start:.10g},{stop:.10g}"


def audio_part(source: bytes | str | os.PathLike) -> AudioPart:
    """Return what an audio source of a data set stands for.

    Raises:
        AudioFileError: an archive cannot be read, or has no such member.
    """
    if isinstance(source, bytes):
        return AudioPart(source)
    source = os.fspath(source)
    match = SPAN.fullmatch(source)
    if match is None or os.path.lexists(source):
        return AudioPart(_content(source))
    start, stop = float(match["start"]), float(match["stop"])
    if start >= stop:
        raise AudioFileError(f"{source}: from {start:g} to {stop:g} s; expected a start before the end")
    return AudioPart(_content(match["path"]), start, stop)


def file_of(path: str) -> str:
    """Return the file on the disk that a path is, or is a part of."""
    path = os.fspath(path)
    match = None if os.path.lexists(path) else SPAN.fullmatch(path)
    path = match["path"] if match else path
    archive, mark, _ = path.partition(ARCHIVE)
    return f"{archive}.tar" if mark and os.path.isfile(f"{archive}.tar") else path


def part_size(path: str) -> int:
    """Return the bytes of a file, or of the member of an archive; an OSError or AudioFileError if it is not there."""
    path = os.fspath(path)
    file, (_, _, member) = file_of(path), path.partition(ARCHIVE)
    return os.stat(file).st_size if file == path or not member else _span_of(file, path)[1]


def archive_members(archive: str) -> dict[str, tuple[int, int]]:
    """Return name -> first byte and size of every file in an archive, in order; nothing is unpacked.

    Raises:
        AudioFileError: it is damaged, or compressed.
    """
    try:
        status = os.stat(archive)
        return _members(archive, status.st_size, status.st_mtime_ns)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise AudioFileError(f"{archive}: cannot be read as a tar archive ({error}); fetch it again") from error


@functools.lru_cache(maxsize=ARCHIVES_KEPT)
def _members(archive: str, size: int, time: int) -> dict[str, tuple[int, int]]:
    """List an archive; its size and time are there so that one that was changed is listed anew."""
    with tarfile.open(archive, "r:") as tar:
        found = {member.name.removeprefix("./"): (member.offset_data, member.size) for member in tar if member.isfile()}
    for name, (first, length) in found.items():
        if first + length > size:
            raise tarfile.ReadError(f"it ends within {name}")
    return found


def read_member(archive: str, name: str) -> bytes:
    """Return the bytes of a file in an archive."""
    first, size = _span_of(archive, f"{archive}/{name}")
    with open(archive, "rb") as file:
        file.seek(first)
        return file.read(size)


def _span_of(archive: str, path: str) -> tuple[int, int]:
    member = path.partition(ARCHIVE)[2].partition("#t=")[0]
    span = archive_members(archive).get(member)
    if span is None:
        raise AudioFileError(f"{archive}: has no member {member!r}")
    return span


def _content(path: str) -> bytes | str:
    archive, mark, member = path.partition(ARCHIVE)
    if not mark or os.path.lexists(path) or not os.path.isfile(f"{archive}.tar"):
        return path
    return read_member(f"{archive}.tar", member)
