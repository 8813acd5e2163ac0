"""Open files of the indexed library, and no others, whatever paths and links have become of them since."""

import os
import stat
from pathlib import Path

from starlette.responses import FileResponse

# By suffix, what browsers call the audio that they may be able to play. What is not here is sent as bytes.
AUDIO_TYPES = {
    ".aac": "audio/aac",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".m4b": "audio/mp4",
    ".mka": "audio/x-matroska",
    ".mp3": "audio/mpeg",
    ".mp4": "audio/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
    ".webm": "audio/webm",
    ".wma": "audio/x-ms-wma",
}


class NotServed(LookupError):
    """Say that something is not there for whoever asks, in one line that names no place of this machine."""


def open_library_file(library: Path, path: bytes, size: int) -> tuple[int, str]:
    """Open a file of a library for reading; return its descriptor, which the caller closes, and its path without links.

    Links are followed as far as they stay in the library. What is found so is opened folder by folder without following
    any, so that a folder or a file that is replaced by a link meanwhile is refused.

    Args:
        library: its root.
        path: within it, as the index has it.
        size: bytes that the file had when it was indexed.

    Raises:
        NotServed: the file is gone, has been replaced, or is outside of the library.
    """
    root = os.path.realpath(os.fsencode(library))
    found = os.path.realpath(os.path.join(root, path))
    inside = os.path.join(root, b"")
    if not found.startswith(inside):
        raise NotServed("the file is a link out of the library; it is not served")
    try:
        descriptor = _open_without_links(root, found[len(inside) :].split(b"/"))
    except OSError as error:
        raise NotServed("the file is not where it was when it was indexed; run collap index again") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        os.close(descriptor)
        raise NotServed("the file is not the one that was indexed; run collap index again")
    return descriptor, os.fsdecode(found)


def _open_without_links(root: bytes, names: list[bytes]) -> int:
    """Open a file by the names of its folders within `root` and its own; an OSError if one of them is a link."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names[:-1]:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        # A named pipe would wait for a writer.
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


class OpenFileResponse(FileResponse):
    """Send a file that is open, or the ranges of it that are asked for, and close it, also if the client goes away."""

    def __init__(self, descriptor: int, media_type: str):
        self.descriptor = descriptor
        super().__init__(f"/dev/fd/{descriptor}", media_type=media_type, stat_result=os.fstat(descriptor))

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self.descriptor)


def audio_type(path: str) -> str:
    """Return the media type of an audio file by its suffix."""
    return AUDIO_TYPES.get(os.path.splitext(path)[1].lower(), "application/octet-stream")
