"""Bring an index up to date with a library: read what has changed, embed what is new, publish.

A file is read if it is new, or if its size or time has changed; embedded if its content is not known. One that was
moved, copied or touched is only hashed, and one whose tags alone were changed only decoded. A shard is published as
soon as it is full, so a first index of weeks can be searched from the first hour on.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from collap.evaluation.embedders import Embedder
from collap.files import flat
from collap.models import peak_memory_bytes

from .hearing import embed_recording, sound_of
from .library import AudioFile, Walk, find_changes, read_tags, track_id
from .space import load_searched
from .store import FAILED, TAGS, TRACKS, IndexStore, file_digest
from .writing import (
    PendingTracks,
    Recording,
    clean,
    is_full,
    moved_places,
    publish,
    sparse_shards,
    stored_recordings,
    write_shard,
)

# What a run has done, as it says at its end; found again is a content that the index has and no file had.
COUNTED = "embedded", "taken from the run before", "moved", "copied", "touched", "tagged anew", "found again", "removed"


class _Unreadable(Exception):
    """A file that cannot be read: `is_damaged` if only a change of the file can help."""

    def __init__(self, reason: str, is_damaged: bool):
        super().__init__(reason)
        self.is_damaged = is_damaged


@dataclass
class Place:
    """Say where a recording is in the index: in no shard yet if `shard` is None."""

    seconds: float
    shard: str | None = None
    row: int = -1


class Update:
    """Bring an index up to date, under its lock; [`Update.run`] does it.

    Args:
        folder: of the index.
        old: the index as it is; None for a new one.
        walk: what is in the library, or in the share of it that is indexed here.
        about: `space`, `space_id`, `score`, `settings` and `library` of the manifest.
        device: where the model runs; it is loaded when the first file is to be embedded.
        retry: whether files that could not be read are tried again.
    """

    def __init__(self, folder: Path, old: IndexStore | None, walk: Walk, about: dict, device: str, retry: bool = False):
        self.folder, self.old, self.walk, self.about, self.device = folder, old, walk, about, device
        self.settings, self.root = about["settings"], about["library"]
        self.manifest = old.manifest if old else None
        self.shards = dict(self.manifest["shards"]) if old else {}
        self.tracks = old.tracks if old else TRACKS.empty_table()
        self.failures = old.failed if old else FAILED.empty_table()
        self.published = (self.tracks, self.failures)
        self.changes = find_changes(self.tracks, self.failures, walk, retry)
        self.embedder: Embedder | None = None
        self.rows: list[tuple[dict, Place]] = []  # of files that were read
        self.failed: list[dict] = []
        self.batch: list[str] = []  # digests of recordings that are in no shard yet
        self.num_batch_tokens = 0
        self.counts = dict.fromkeys(COUNTED, 0)
        self.counts["removed"] = len(self.tracks) - int(self.changes.kept.sum())  # less those that have moved
        self.heard_seconds = self.wall_seconds = 0.0

    def run(self) -> None:
        """Read what has changed, and publish."""
        started = time.perf_counter()
        self.pending = PendingTracks(self.folder, self.about["space_id"])
        clean(self.folder, self.manifest, self.pending.names())
        self._find_places()
        files = self.changes.to_read
        with tqdm(total=sum(file.size for file in files), unit="B", unit_scale=True, disable=None) as progress:
            for number, file in enumerate(files, 1):
                self._take(file)
                progress.update(file.size)
                self.wall_seconds = time.perf_counter() - started
                progress.set_postfix_str(f"{number}/{len(files)} files, {self.speed()}")
        if self.batch:
            self._close_shard()
        self._publish()
        self._put_together()
        clean(self.folder, self.manifest)
        self.wall_seconds = time.perf_counter() - started

    def speed(self) -> str:
        """Say how much faster than real time songs are embedded, and the most memory that was taken."""
        memory = peak_memory_bytes(torch.device("cpu")) / 1e6
        return f"{self.heard_seconds / max(self.wall_seconds, 1e-9):.1f} x real time, {memory:.0f} MB"

    def _find_places(self) -> None:
        """Find where every known content is, the tags of what has been read before, and what is gone, by digest."""
        self.places: dict[str, Place] = {}
        self.known_tags: dict[str, int] = {}
        self.gone: Counter[str] = Counter()
        self.held: set[str] = set()  # contents of tracks
        if not self.old or not self.changes.to_read:
            return
        for name, shard in self.old.shards.items():
            columns = (shard.rows[column].to_pylist() for column in ("digest", "seconds"))
            for row, (digest, seconds) in enumerate(zip(*columns, strict=True)):
                self.places.setdefault(digest, Place(seconds, name, row))
        columns = (self.tracks[column].to_pylist() for column in ("digest", "seconds", "shard", "row"))
        for track, (digest, *place) in enumerate(zip(*columns, strict=True)):  # of one tagged anew, another digest
            self.places.setdefault(digest, Place(*place))
            self.known_tags.setdefault(digest, track)
            self.held.add(digest)
            self.gone[digest] += not self.changes.kept[track]

    # ---- one file

    def _take(self, file: AudioFile) -> None:
        """Give a new or changed file its row, or note why it has none."""
        path = os.path.join(self.root, os.fsdecode(file.path))
        try:
            with self._naming_problems(file, path):
                digest = file_digest(path)
            place = self._known_place(file, path, digest) or self._add(self._embed(file, path, digest))
        except _Unreadable as problem:
            self._note(file, problem)
            return
        known = self.known_tags.get(digest)
        tags = read_tags(path) if known is None else {name: self.tracks[name][known].as_py() for name in TAGS}
        about = {"path": file.path, "size": file.size, "mtime_ns": file.mtime_ns, "digest": digest}
        self.rows.append(({"id": track_id(digest, file.path), **about, **tags, "seconds": place.seconds}, place))
        self.held.add(digest)
        self._drop_old(file)
        if is_full(len(self.batch), self.num_batch_tokens, self.settings["shard_tracks"]):
            self._close_shard()

    @contextlib.contextmanager
    def _naming_problems(self, file: AudioFile, path: str) -> Iterator[None]:
        """Turn what reading a file raises into [`_Unreadable`], also if it has changed meanwhile."""
        try:
            yield
            status = os.stat(path)
        except ValueError as error:
            reason = flat(error).removeprefix(f"{path}: ").removeprefix(f"{path!r}: ")
            raise _Unreadable(reason.encode("utf-8", "backslashreplace").decode(), is_damaged=True) from error
        except OSError as error:
            raise _Unreadable(error.strerror or flat(error), is_damaged=False) from error
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise _Unreadable("it was changed while it was read; run again when it is whole", is_damaged=False)

    def _note(self, file: AudioFile, problem: _Unreadable) -> None:
        """Note why a file has no row: a damaged one is not tried again until it changes, and its old row goes."""
        if not problem.is_damaged:
            self.walk.unread[file.path] = str(problem)
            return
        about = {"path": file.path, "size": file.size, "mtime_ns": file.mtime_ns}
        self.failed.append({**about, "reason": str(problem)})
        self._drop_old(file)

    def _drop_old(self, file: AudioFile) -> None:
        if file.path in self.changes.changed:
            self.changes.kept[self.changes.changed[file.path]] = False

    def _known_place(self, file: AudioFile, path: str, digest: str) -> Place | None:
        """Find the recording of a file without embedding it; None if it has to be."""
        if digest in self.places:
            self._count_known(file, digest)
            return self.places[digest]
        if (recording := self.pending.read(digest)) is not None:
            self.counts["taken from the run before"] += 1
            return self._add(recording)
        if file.path not in self.changes.changed:
            return None
        old = self.tracks.slice(self.changes.changed[file.path], 1).to_pylist()[0]
        rate = self._loaded().sampling_rate
        with self._naming_problems(file, path):
            sound = sound_of(path, rate)
        if sound != self.old.shards[old["shard"]].rows["sound"][old["row"]].as_py():
            return None
        self.counts["tagged anew"] += 1
        self.places[digest] = Place(old["seconds"], old["shard"], old["row"])
        return self.places[digest]

    def _count_known(self, file: AudioFile, digest: str) -> None:
        """Count how a known content has come to a path: of a file that is gone, of one that is there, or of neither."""
        row = self.changes.changed.get(file.path)
        if row is not None and self.tracks["digest"][row].as_py() == digest:
            self.counts["touched"] += 1
        elif self.gone[digest]:
            self.gone[digest] -= 1
            self.counts["removed"] -= 1
            self.counts["moved"] += 1
        else:
            self.counts["copied" if digest in self.held else "found again"] += 1

    def _loaded(self) -> Embedder:
        """Return the model, loaded once and only if it is needed."""
        if self.embedder is None:
            self.embedder = load_searched(self.settings["model"], self.device, self.settings["dtype"])
        return self.embedder

    def _embed(self, file: AudioFile, path: str, digest: str) -> Recording:
        """Embed a file and keep what comes of it."""
        embedder = self._loaded()
        with self._naming_problems(file, path):
            recording = embed_recording(path, digest, embedder, self.settings["stride"])
        self.pending.write(recording)
        self.counts["embedded"] += 1
        self.heard_seconds += recording.seconds
        return recording

    def _add(self, recording: Recording) -> Place:
        self.places[recording.digest] = Place(recording.seconds)
        self.batch.append(recording.digest)
        self.num_batch_tokens += recording.num_tokens
        return self.places[recording.digest]

    # ---- shards and tables

    def _close_shard(self) -> None:
        """Write the recordings that are in no shard yet as one, and publish."""
        recordings = [self.pending.read(digest) for digest in self.batch]
        if None in recordings:
            path = self.pending.path(self.batch[recordings.index(None)])
            raise OSError(f"{path}: is gone or damaged since it was written; run again")
        name = self._write(recordings)
        for row, digest in enumerate(self.batch):
            self.places[digest].shard, self.places[digest].row = name, row
        self.batch, self.num_batch_tokens = [], 0
        self._publish(keep=self.old.shards if self.old else ())  # a file that is read later may have been moved

    def _write(self, recordings: list[Recording]) -> str:
        name, files = write_shard(self.folder, recordings)
        self.shards[name] = files
        return name

    def _publish(self, keep: Iterable[str] = ()) -> None:
        """Publish the rows of all that was read so far, and of all that is as it was; not if nothing is new.

        Args:
            keep: names of shards that stay, whether or not a row is of them.
        """
        rows = [{**row, "shard": place.shard, "row": place.row} for row, place in self.rows]
        tracks = self._joined(self.tracks, self.changes.kept, rows)
        failed = self._joined(self.failures, self.changes.failed, self.failed)
        shards = {*tracks["shard"].unique().to_pylist(), *keep}
        is_same = all(map(pa.Table.equals, self.published, (tracks, failed)))
        is_same = is_same and self.manifest is not None and {*self.manifest["shards"]} == shards
        if is_same and all(self.manifest[name] == value for name, value in self.about.items()):
            return
        self._replace(tracks, failed, shards)

    def _joined(self, old: pa.Table, kept, rows: list[dict]) -> pa.Table:
        new = pa.Table.from_pylist(rows, old.schema)
        return pa.concat_tables([old.filter(pa.array(kept)), new]).sort_by("path")

    def _replace(self, tracks: pa.Table, failed: pa.Table, names: Iterable[str]) -> None:
        tables, shards = {"tracks": tracks, "failed": failed}, {name: self.shards[name] for name in names}
        self.manifest = publish(self.folder, self.about, tables, shards, self.manifest)
        self.published = (tracks, failed)
        waiting = set(self.pending.names()) - {self.pending.path(row["digest"]).name for row, _ in self.rows}
        clean(self.folder, self.manifest, waiting)

    def _put_together(self) -> None:
        """Put the used rows of sparse and of many small shards into new ones."""
        is_published = self.old is None or self.manifest is not self.old.manifest
        store = IndexStore.open(self.folder) if is_published else self.old
        used, moved = sparse_shards(store, self.settings["shard_tracks"]), {}
        batch, num_rows = [], sum(map(len, used.values()))
        for shard, row, recording in stored_recordings(store, used):
            batch.append((shard, row, recording))
            num_tokens = sum(one.num_tokens for _, _, one in batch)
            if is_full(len(batch), num_tokens, self.settings["shard_tracks"]) or len(moved) + len(batch) == num_rows:
                name = self._write([one for _, _, one in batch])
                moved |= {(old, place): (name, number) for number, (old, place, _) in enumerate(batch)}
                batch = []
        if moved:
            tracks = moved_places(store.tracks, moved)
            self._replace(tracks, store.failed, tracks["shard"].unique().to_pylist())
