"""Write an index: one writer at a time, and at any moment the disk holds a whole index, the old or the new one.

A track that is embedded is kept in `pending/` until its shard is written, so that a kill loses one track at most. A
shard is closed by what is in it alone, so that a run that was killed and goes on makes the same files as one that was
not.

Dimensions: `T` tokens of a track.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from collap.files import flush_path, replace_file, replace_text, write_folder

from .store import (
    LOCK,
    MANIFEST,
    PENDING,
    ROWS,
    SHARD_NAME,
    SHARD_ROWS,
    SHARDS,
    TABLE_NAME,
    VECTORS,
    VERSION,
    IndexStore,
    file_digest,
    json_digest,
    manifest_digest,
)
from .vectors import DTYPES, check_vectors, join_tracks, one_track

HEADER = "collap_track"  # the only metadata entry of a pending track: safetensors writes several in no fixed order
SHARD_TOKENS = 2**19  # that close a shard of fewer tracks: 270 MB at a width of 512
SMALL_SHARDS = 8  # shards under half full that stay apart; more are put together
PENDING_NAME = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{32}\.safetensors")
PARTIAL = ".partial"  # as `replace_file` calls what is not yet in place


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Hold the lock of an index, making its folder if it is not there.

    The lock goes with the process that holds it, in whatever way that ends.

    Raises:
        ValueError: another process holds it; or the folder holds other things than an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if strange := [path.name for path in folder.iterdir() if not _is_ours(path.name)]:
        raise ValueError(f"{folder}: holds {strange[0]!r} and no index; name a new folder with --index")
    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise ValueError(
                f"{folder}: process {pid} is writing to it; wait until that ends (searching goes on meanwhile)"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _is_ours(name: str) -> bool:
    known = name in (LOCK, SHARDS, PENDING) or TABLE_NAME.fullmatch(name.removesuffix(PARTIAL)) is not None
    return known or name.removesuffix(PARTIAL) == MANIFEST


# ---- recordings


@dataclass(frozen=True)
class Recording:
    """Hold what is stored of the content of a file, whatever it is called and wherever it lies.

    Attributes:
        digest: of the file's bytes.
        sound: of the samples that the model hears.
        seconds: its length.
        vectors: from `track_vectors`.
    """

    digest: str
    sound: str
    seconds: float
    vectors: dict

    @property
    def num_tokens(self) -> int:
        """Return T."""
        return len(self.vectors["tokens"])


class PendingTracks:
    """Keep recordings that are in no shard yet, a file each."""

    def __init__(self, folder: Path, space_id: str):
        self.folder, self.space_id = folder / PENDING, space_id
        self.folder.mkdir(exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return where the recording of a digest is kept."""
        return self.folder / f"{digest}.{self.space_id}.safetensors"

    def names(self) -> list[str]:
        """Return the names of the files of this space."""
        return [path.name for path in self.folder.glob(f"*.{self.space_id}.safetensors")]

    def write(self, recording: Recording) -> None:
        """Keep a recording.

        Raises:
            OSError: the disk is full, or cannot be written to.
        """
        about = {name: getattr(recording, name) for name in ("digest", "sound", "seconds")}
        header = {HEADER: json.dumps({**about, "checksum": _checksum(recording.vectors)})}
        replace_file(self.path(recording.digest), lambda path: save_file(recording.vectors, path, metadata=header))

    def read(self, digest: str) -> Recording | None:
        """Return a recording; None if it is not there, or not as it was written."""
        try:
            with safe_open(self.path(digest), framework="pt") as file:
                about = json.loads(file.metadata()[HEADER])
                vectors = {name: file.get_tensor(name) for name in DTYPES}
            if about.pop("checksum") != _checksum(vectors) or about["digest"] != digest:
                return None
            return Recording(**about, vectors=vectors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None


def _checksum(vectors: dict) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in DTYPES:
        digest.update(vectors[name].contiguous().numpy())
    return digest.hexdigest()


# ---- shards


def is_full(num_recordings: int, num_tokens: int, shard_tracks: int) -> bool:
    """Tell whether a shard of so many recordings and tokens is closed."""
    return num_recordings >= shard_tracks or num_tokens >= SHARD_TOKENS


def write_shard(folder: Path, recordings: Sequence[Recording]) -> tuple[str, dict[str, list]]:
    """Write recordings as a shard, called after what is in it.

    Returns:
        Its name; and size and checksum of its files, as the manifest has them.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    vectors = join_tracks([recording.vectors for recording in recordings])
    check_vectors(vectors, len(recordings))
    about = {name: [getattr(one, name) for one in recordings] for name in SHARD_ROWS.names}
    name = json_digest([about["digest"], [_checksum(one.vectors) for one in recordings]])

    def write(place: Path) -> None:
        _write_arrow(place / ROWS, pa.table(about, SHARD_ROWS))
        save_file(vectors, place / VECTORS)
        shutil.copymode(place / ROWS, place / VECTORS)  # safetensors lets nobody else read what it writes

    write_folder(folder / SHARDS / name, write)
    return name, {file: _entry(folder / SHARDS / name / file) for file in (VECTORS, ROWS)}


def _write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(os.fspath(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _entry(path: Path) -> list:
    return [path.stat().st_size, file_digest(path)]


def used_rows(tracks: pa.Table) -> dict[str, list[int]]:
    """Return the rows of every shard that tracks are of, in order."""
    used: dict[str, set[int]] = {}
    for name, row in zip(tracks["shard"].to_pylist(), tracks["row"].to_pylist(), strict=True):
        used.setdefault(name, set()).add(row)
    return {name: sorted(used[name]) for name in sorted(used)}


def sparse_shards(store: IndexStore, shard_tracks: int) -> dict[str, list[int]]:
    """Return the used rows of shards to be put together: of which under half is used, and small ones if many are."""
    sparse, small = {}, {}
    for name, rows in used_rows(store.tracks).items():
        shard = store.shards[name]
        if 2 * len(rows) < len(shard.rows):
            sparse[name] = rows
        elif not is_full(2 * len(shard.rows), 2 * len(shard.vectors["tokens"]), shard_tracks):
            small[name] = rows
    return {**sparse, **(small if len(small) > SMALL_SHARDS else {})}


def stored_recordings(store: IndexStore, used: dict[str, list[int]]) -> Iterator[tuple[str, int, Recording]]:
    """Yield shard, row and content of rows of shards, in the order of their names."""
    for name in sorted(used):
        shard = store.shards[name]
        for row in used[name]:
            about = {column: shard.rows[column][row].as_py() for column in SHARD_ROWS.names}
            yield name, row, Recording(**about, vectors=one_track(shard.vectors, row))


def moved_places(tracks: pa.Table, moved: dict[tuple[str, int], tuple[str, int]]) -> pa.Table:
    """Return tracks whose recordings were put into other shards."""
    places = zip(tracks["shard"].to_pylist(), tracks["row"].to_pylist(), strict=True)
    places = [moved.get(place, place) for place in places]
    for column, values in zip(("shard", "row"), zip(*places, strict=True), strict=True):
        number = tracks.schema.get_field_index(column)
        tracks = tracks.set_column(
            number, tracks.schema.field(column), pa.array(values, tracks.schema.field(column).type)
        )
    return tracks


# ---- publication


def publish(
    folder: Path,
    about: dict,
    tables: dict[str, pa.Table],
    shards: dict[str, dict],
    old: dict | None,
) -> dict:
    """Make tables and shards the content of an index, and remove what it no longer names.

    Args:
        about: `space`, `space_id`, `score`, `settings` and `library` of the manifest.
        tables: tracks and failed.
        shards: size and checksum of the files of every shard.
        old: the manifest that is replaced, if there is one.

    Returns:
        The manifest.

    Raises:
        OSError: the disk is full, or cannot be written to; the old index is as it was.
    """
    generation, files = (old["generation"] if old else 0) + 1, {}
    for kind, table in tables.items():
        path = folder / f"{kind}-{generation}.arrow"
        replace_file(path, lambda place, table=table: _write_arrow(place, table))
        files[path.name] = _entry(path)
    manifest = {
        "version": VERSION,
        **about,
        "generation": generation,
        "tables": files,
        "shards": {name: shards[name] for name in sorted(shards)},
        "calibration": (old or {}).get("calibration"),
    }
    manifest["checksum"] = manifest_digest(manifest)
    (folder / SHARDS).mkdir(exist_ok=True)
    flush_path(folder / SHARDS)
    flush_path(folder)
    replace_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    flush_path(folder)
    return manifest


def clean(folder: Path, manifest: dict | None, keep: Iterable[str] = ()) -> None:
    """Remove what a manifest does not name: what a killed run has left, and what has been replaced.

    Only what is called as a writer calls it is removed.

    Args:
        keep: names of pending tracks that stay.
    """
    tables, shards = ((manifest or {}).get(name, {}) for name in ("tables", "shards"))
    keep = set(keep)
    for path in folder.glob("*.arrow*"):
        if TABLE_NAME.fullmatch(path.name.removesuffix(PARTIAL)) and path.name not in tables:
            path.unlink()
    for path in (folder / SHARDS).glob("*"):
        name = path.name.removeprefix(".").removesuffix(".tmp").removesuffix(".old")
        if SHARD_NAME.fullmatch(name) and path.name not in shards:
            shutil.rmtree(path)
    for path in (folder / PENDING).glob("*"):
        if PENDING_NAME.fullmatch(path.name.removesuffix(PARTIAL)) and path.name not in keep:
            path.unlink()
