"""A folder of music: which files are in it, what has changed since it was last looked at, and what their tags say.

Names are bytes, as the file system has them: those of another encoding are as good as others.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

import mutagen
import numpy as np
import pyarrow as pa

from collap.corpora.collect import TAG_CHARACTERS, file_tags
from collap.data.set_folder import AUDIO_SUFFIXES
from collap.data.shares import Shard

SUFFIXES = tuple(suffix.encode() for suffix in AUDIO_SUFFIXES)
# What a tag is called in Vorbis comments and in MPEG files as mutagen's easy forms have them, ID3 and ASF.
TAG_NAMES = {
    "title": ("title", "TIT2", "Title"),
    "artist": ("artist", "TPE1", "Author"),
    "album": ("album", "TALB", "WM/AlbumTitle"),
    "date": ("date", "year", "TDRC", "WM/Year"),
    "genre": ("genre", "TCON", "WM/Genre"),
}
YEAR = re.compile(r"(?<!\d)[12]\d{3}(?!\d)")


@dataclass(frozen=True, order=True)
class AudioFile:
    """Hold a file as a walk finds it: its path within the library, its bytes, and when its content last changed."""

    path: bytes
    size: int
    mtime_ns: int


@dataclass
class Walk:
    """Hold what is in a library.

    Attributes:
        files: in the order of their paths.
        unread: folders and files that could not be looked at, and why.
    """

    files: list[AudioFile] = field(default_factory=list)
    unread: dict[bytes, str] = field(default_factory=dict)


def shown(path: bytes) -> str:
    """Return a path as one printable line."""
    name = os.fsdecode(path)
    return name if name.isprintable() else repr(name)


def walk_library(root: str) -> Walk:
    """Find all audio files in a folder and below, by their suffixes.

    Hidden files and folders are left out. So are links out of the folder, and links to folders in it, which are found
    under their own name.

    Args:
        root: the folder, without links in its path.
    """
    walk, folders = Walk(), [b""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(os.fsencode(root), folder)) as entries:
                found = [entry for entry in entries if not entry.name.startswith(b".")]
        except OSError as error:
            walk.unread[folder] = error.strerror or str(error)
            continue
        for entry in found:
            path = os.path.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.name.lower().endswith(SUFFIXES) and not _leads_out(entry, root):
                _add(walk, entry, path)
    walk.files.sort()
    return walk


def _leads_out(entry: os.DirEntry, root: str) -> bool:
    inside = os.path.join(os.fsencode(root), b"")
    return entry.is_symlink() and not os.path.realpath(entry.path).startswith(inside)


def _add(walk: Walk, entry: os.DirEntry, path: bytes) -> None:
    try:
        status = entry.stat()
    except FileNotFoundError:  # a link to nothing; or it has gone meanwhile
        return
    except OSError as error:
        walk.unread[path] = error.strerror or str(error)
        return
    if stat.S_ISREG(status.st_mode):
        walk.files.append(AudioFile(path, status.st_size, status.st_mtime_ns))


def share_of(walk: Walk, shard: Shard) -> Walk:
    """Return what of a library is a machine's share: by a digest of the path, so it is the same on every machine."""
    numbers = (int.from_bytes(hashlib.blake2b(file.path, digest_size=8).digest()) for file in walk.files)
    files = [file for file, number in zip(walk.files, numbers, strict=True) if shard.has(number)]
    return Walk(files, walk.unread)


def track_id(digest: str, path: bytes) -> str:
    """Return what a track is known by: 16 hexadecimal digits of its content and its path."""
    return hashlib.blake2b(digest.encode() + b"\0" + path, digest_size=8).hexdigest()


# ---- what has changed


@dataclass
class Changes:
    """Hold what a walk has found that an index does not say.

    Attributes:
        kept: (N,) bool, tracks of the index whose file is there: unchanged, or to be looked at.
        failed: (N,) bool, files that could not be read and are as they were.
        to_read: new and changed files, in the order of their paths.
        changed: rows of the index that are replaced, by path.
    """

    kept: np.ndarray
    failed: np.ndarray
    to_read: list[AudioFile]
    changed: dict[bytes, int]


def find_changes(tracks: pa.Table, failed: pa.Table, walk: Walk, retry: bool = False) -> Changes:
    """Compare the tables of an index with the files that are there, by path, size and time; none is read.

    Args:
        retry: whether files that could not be read are tried again.
    """
    there = {file.path: file for file in walk.files}
    known, kept, changed = set(), np.zeros(len(tracks), bool), {}
    for row, file in _files(tracks):
        unread = _is_unread(file.path, walk)
        kept[row] = file.path in there or unread
        if unread or there.get(file.path) == file:
            known.add(file.path)
        elif file.path in there:
            changed[file.path] = row
    still_failed = np.zeros(len(failed), bool)
    for row, file in _files(failed):
        still_failed[row] = not retry and (there.get(file.path) == file or _is_unread(file.path, walk))
        known |= {file.path} if still_failed[row] else set()
    return Changes(kept, still_failed, [file for file in walk.files if file.path not in known], changed)


def _files(table: pa.Table) -> Iterator[tuple[int, AudioFile]]:
    columns = (table[name].to_pylist() for name in ("path", "size", "mtime_ns"))
    yield from enumerate(map(AudioFile, *columns))


def _is_unread(path: bytes, walk: Walk) -> bool:
    """Tell whether a path, or a folder above it, could not be looked at, so that nobody knows whether it is there."""
    if not walk.unread:
        return False
    parts = path.split(b"/")
    return any(b"/".join(parts[:length]) in walk.unread for length in range(len(parts) + 1))


# ---- tags


def read_tags(path: str) -> dict[str, str | int | None]:
    """Read title, artist, album, year and genre of a file that could be decoded; None for what it does not say.

    mutagen reads them; of files whose tags it does not know (Matroska, RIFF's INFO) FFmpeg does. A tag has one line, of
    at most 300 characters.
    """
    try:
        found = _mutagen_tags(path) or file_tags(path)
    except Exception:  # files from anywhere make mutagen raise anything; tags are not worth a track
        found = {}
    year = YEAR.search(found.get("date") or "")
    tags = {name: found.get(name) or None for name in ("title", "artist", "album", "genre")}
    return {**tags, "year": int(year[0]) if year else None}


def _mutagen_tags(path: str) -> dict[str, str]:
    tags = getattr(mutagen.File(path, easy=True), "tags", None) or {}
    found = {}
    for name, keys in TAG_NAMES.items():
        values = next((tags[key] for key in keys if key in tags), [])
        values = getattr(values, "genres", None) or getattr(values, "text", None) or values  # of a frame of ID3
        found[name] = _line(", ".join(map(str, values if isinstance(values, list) else [values])))
    return {name: text for name, text in found.items() if text}


def _line(text: str) -> str:
    """Return text in one line of what can be printed."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:TAG_CHARACTERS]
