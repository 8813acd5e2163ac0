"""The files of an index, and reading them: memory-mapped, checked before they are trusted, whatever a writer does.

    manifest.json                       what is below, with sizes and checksums: an index is what its manifest names
    tracks-7.arrow                      a row for each track, by path: where its file and its vectors are, and its tags
    failed-7.arrow                      files that could not be read, and why
    shards/NAME/vectors.safetensors     of up to some hundred recordings, as `collap.search.vectors` says; never changed
    shards/NAME/rows.arrow              of each of them: digest of the file, digest of the sound, seconds
    pending/                            tracks that are embedded and not yet in a shard
    lock                                held by the one who writes

Files are added, then the manifest is replaced, then what nothing names any more is removed: who reads sees the old
index or the new one. No file holds a time of day: the same library and model give the same bytes.

Dimensions: `N` tracks, `T` tokens of a track, `D` shared width.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from .space import Space
from .vectors import Vectors, check_vectors, map_vectors, one_track

VERSION = 2  # 2: with fingerprints
MANIFEST, LOCK, SHARDS, PENDING = "manifest.json", "lock", "shards", "pending"
VECTORS, ROWS = "vectors.safetensors", "rows.arrow"
TABLE_NAME = re.compile(r"(tracks|failed)-\d{1,12}\.arrow")
SHARD_NAME = re.compile(r"[0-9a-f]{32}")
# A path that would leave the library, or that the system does not take.
OUTSIDE = r"^$|^/|(^|/)\.{1,2}(/|$)|\x00"


def _schema(optional: tuple[str, ...] = (), **columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name in optional) for name, kind in columns.items()])


TAGS = ("title", "artist", "album", "year", "genre")
TRACKS = _schema(
    optional=TAGS,
    id=pa.string(),  # of content and path
    path=pa.binary(),  # within the library, as the file system has it
    size=pa.int64(),  # bytes
    mtime_ns=pa.int64(),
    digest=pa.string(),  # of the file's bytes
    title=pa.string(),
    artist=pa.string(),
    album=pa.string(),
    year=pa.int32(),
    genre=pa.string(),
    seconds=pa.float64(),
    shard=pa.string(),
    row=pa.int32(),  # in the shard
)
FAILED = _schema(path=pa.binary(), size=pa.int64(), mtime_ns=pa.int64(), reason=pa.string())
SHARD_ROWS = _schema(digest=pa.string(), sound=pa.string(), seconds=pa.float64())


def file_digest(path: Path | str) -> str:
    """Return the BLAKE2b of a file's bytes, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def json_digest(content: object) -> str:
    """Return the BLAKE2b of what JSON can hold."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Map an Arrow file into memory.

    Raises:
        ValueError: it is damaged or has other columns; names the file.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()
        table.validate(full=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is damaged ({' '.join(str(error).split())})") from error
    if not table.schema.equals(schema):
        raise ValueError(f"{path}: has the columns {table.column_names}; expected those of version {VERSION}")
    if empty := [field.name for field in schema if not field.nullable and table[field.name].null_count]:
        raise ValueError(f"{path}: is damaged (a row has no {empty[0]})")
    return table


@dataclass(frozen=True)
class Shard:
    """Hold the vectors of some recordings, and of each its digests and seconds."""

    vectors: Vectors
    rows: pa.Table

    @classmethod
    def open(cls, folder: Path) -> "Shard":
        """Map a shard into memory; a ValueError says which of its files is damaged."""
        rows, vectors = read_table(folder / ROWS, SHARD_ROWS), map_vectors(folder / VECTORS)
        try:
            check_vectors(vectors, len(rows))
        except ValueError as error:
            raise ValueError(f"{folder / VECTORS}: is damaged ({error})") from error
        return cls(vectors, rows)


class IndexStore:
    """Hold an open index; made by [`IndexStore.open`]. It stays as it was opened, whatever is written meanwhile.

    Attributes:
        folder: where it lies.
        manifest: what is in it.
        space: that its vectors are of.
        settings: `model`, `dtype`, `stride`, ... that it was made with.
        library: folder that the paths of tracks are within.
        tracks: a row for each, with the columns `TRACKS`.
        failed: files that could not be read, with the columns `FAILED`.
        shards: by name, in the order of names.
    """

    def __init__(self, folder: Path, manifest: dict):
        self.folder, self.manifest = folder, manifest
        self.space, self.settings = Space(manifest["space"]), manifest["settings"]
        self.library = Path(manifest["library"])
        check_sizes(folder, manifest)
        tables = {name.partition("-")[0]: name for name in manifest["tables"]}
        self.tracks = read_table(folder / tables["tracks"], TRACKS)
        self.failed = read_table(folder / tables["failed"], FAILED)
        self.shards = {name: Shard.open(folder / SHARDS / name) for name in sorted(manifest["shards"])}
        self._check_rows()

    @classmethod
    def open(cls, folder: str | Path) -> "IndexStore":
        """Open an index: versions, sizes and places are checked, checksums are not (see [`damaged_files`]).

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version; one line that names the file.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            return cls(folder, manifest)
        except (FileNotFoundError, ValueError):
            latest = read_manifest(folder)  # was it replaced meanwhile, and what it named removed?
            if latest == manifest:
                raise
            return cls(folder, latest)

    @property
    def generation(self) -> int:
        """Return how many times it was published."""
        return self.manifest["generation"]

    def path(self, track: int) -> str:
        """Return the path of the file of a track within the library."""
        return os.fsdecode(self.tracks["path"][track].as_py())

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Return of every track (N,) the number of its shard, in the order of `shards`, and its row there."""
        shards = pc.index_in(self.tracks["shard"], pa.array(self.shards, pa.string()))
        return shards.to_numpy(), self.tracks["row"].to_numpy()

    def vectors(self, track: int) -> Vectors:
        """Return what is stored of one track, as views: `tokens` (T, D), `token_scales` (T,), ..."""
        shard = self.shards[self.tracks["shard"][track].as_py()]
        return one_track(shard.vectors, self.tracks["row"][track].as_py())

    def tokens(self, track: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return of [`vectors`] what the exact score needs, `tokens` and `token_scales`, faster than all."""
        shards, rows = self.places
        vectors, row = self._vectors[shards[track]], int(rows[track])
        first, last = vectors["token_offsets"][row : row + 2].tolist()
        return vectors["tokens"][first:last], vectors["token_scales"][first:last]

    @cached_property
    def _vectors(self) -> list[Vectors]:
        """Return the vectors of every shard, by number."""
        return [shard.vectors for shard in self.shards.values()]

    def _check_rows(self) -> None:
        """Raise a ValueError if a row of the table names a shard or a row that is not there, or a path outside."""
        widths = {shard.vectors["means"].shape[1] for shard in self.shards.values()}
        if len(widths) > 1:
            raise ValueError(f"{self.folder / SHARDS}: vectors of the widths {sorted(widths)}; expected one")
        shards, rows = self.places
        sizes = np.array([len(shard.rows) for shard in self.shards.values()])
        if np.isnan(shards.astype(float)).any():
            raise ValueError(f"{self.folder}: a track is of a shard that the index does not have")
        if len(rows) and ((rows < 0) | (rows >= sizes[shards])).any():
            raise ValueError(f"{self.folder}: a track is of a row that its shard does not have")
        for table in (self.tracks, self.failed):
            if pc.any(pc.match_substring_regex(table["path"], OUTSIDE)).as_py():
                raise ValueError(f"{self.folder}: names a path outside of the library; expected paths within it")


# ---- the manifest


def read_manifest(folder: Path) -> dict:
    """Read and check what an index says that it is.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: the manifest is damaged, of another version, or names files elsewhere; one line.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{folder}: holds no index; expected one that collap index has made") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged ({' '.join(str(error).split())})") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else None
        raise ValueError(
            f"{path}: is of version {found!r}, this is collap for version {VERSION}; index the library again, into "
            "another --index"
        )
    if problem := _problem(manifest):
        raise ValueError(f"{path}: is damaged ({problem})")
    return manifest


def manifest_digest(manifest: dict) -> str:
    """Return the checksum of a manifest, of all that is in it but itself."""
    return json_digest({name: value for name, value in manifest.items() if name != "checksum"})


def _problem(manifest: dict) -> str | None:
    """Say what is wrong with a manifest; None if nothing is."""
    kinds = {"space": dict, "space_id": str, "score": dict, "settings": dict, "library": str, "generation": int}
    kinds |= {"tables": dict, "shards": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            return f"{name} is {manifest.get(name)!r}, expected a {kind.__name__}"
    if manifest.get("checksum") != manifest_digest(manifest):
        return "its checksum does not match"
    if manifest["space_id"] != Space(manifest["space"]).id:
        return "space_id is not that of its space"
    tables, shards = manifest["tables"], manifest["shards"]
    if sorted(name.partition("-")[0] for name in tables) != ["failed", "tracks"]:
        return f"tables are {sorted(tables)}, expected one of tracks and one of failed"
    if bad := [name for name in tables if not TABLE_NAME.fullmatch(name)]:
        return f"{bad[0]!r} is no name of a table"
    if bad := [name for name in shards if not SHARD_NAME.fullmatch(name)]:
        return f"{bad[0]!r} is no name of a shard"
    if bad := [name for name, files in shards.items() if not isinstance(files, dict) or {*files} != {VECTORS, ROWS}]:
        return f"shard {bad[0]} has other files than {VECTORS} and {ROWS}"
    entries = [*tables.values(), *(entry for files in shards.values() for entry in files.values())]
    if not all(_is_entry(entry) for entry in entries):
        return "a file has no size and checksum"
    return None


def _is_entry(entry) -> bool:
    return isinstance(entry, list) and [type(one) for one in entry] == [int, str]


def named_files(folder: Path, manifest: dict) -> Iterator[tuple[Path, int, str]]:
    """Yield path, size in bytes and checksum of every file that a manifest names."""
    for name, (size, digest) in manifest["tables"].items():
        yield folder / name, size, digest
    for shard, files in sorted(manifest["shards"].items()):
        for name, (size, digest) in files.items():
            yield folder / SHARDS / shard / name, size, digest


def check_sizes(folder: Path, manifest: dict) -> None:
    """Raise a ValueError that names the first file that is missing, or is not as long as it was written."""
    for path, size, _ in named_files(folder, manifest):
        if problem := _size_problem(path, size):
            raise ValueError(f"{path}: {problem}; collap index --verify says what else is damaged")


def _size_problem(path: Path, size: int) -> str | None:
    if not path.is_file():
        return "is missing"
    found = path.stat().st_size
    return None if found == size else f"has {found} bytes, expected {size}: it is cut or overwritten"


def damaged_files(folder: Path) -> Iterator[str]:
    """Read all of an index and yield one line for every file that is not as it was written.

    Raises:
        FileNotFoundError, ValueError: see [`read_manifest`].
    """
    for path, size, digest in named_files(folder, read_manifest(folder)):
        problem = _size_problem(path, size)
        if problem is None and file_digest(path) != digest:
            problem = "its bytes are not those that were written: a checksum does not match"
        if problem:
            yield f"{path}: {problem}"
