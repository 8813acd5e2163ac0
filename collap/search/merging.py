"""Put indexes of parts of a library together, as `collap index --shard i/n` makes them on several machines."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from collap.files import write_folder

from .store import MANIFEST, SHARDS, IndexStore, file_digest
from .writing import clean, publish, writing_to


def merge_indexes(parts: Sequence[Path], folder: Path) -> dict:
    """Write an index that holds what several hold; those are not changed.

    Returns:
        Its manifest. The library is that of the first part.

    Raises:
        FileNotFoundError, ValueError: a part is no index or is damaged, they are of different spaces, or a file is in
            two of them; one line.
        OSError: the disk is full, or cannot be written to.
    """
    stores = [IndexStore.open(part) for part in parts]
    for store in stores[1:]:
        stores[0].space.check(store.space, store.folder)
    _check_disjoint(stores)
    with writing_to(folder):
        if (folder / MANIFEST).exists():
            raise ValueError(f"{folder}: holds an index already; name a new folder")
        clean(folder, None)
        shards = {}
        for store in stores:
            for name in store.tracks["shard"].unique().to_pylist():
                shards[name] = _copied(store, name, folder)
        first = stores[0].manifest
        about = {name: first[name] for name in ("space", "space_id", "score", "settings", "library")}
        about["settings"] = {**about["settings"], "shard": None}
        tables = {name: pa.concat_tables([getattr(one, name) for one in stores]) for name in ("tracks", "failed")}
        return publish(folder, about, {name: table.sort_by("path") for name, table in tables.items()}, shards, None)


def _check_disjoint(stores: Sequence[IndexStore]) -> None:
    seen: dict[bytes, Path] = {}
    for store in stores:
        for number, path in enumerate(store.tracks["path"].to_pylist()):
            if path in seen:
                raise ValueError(f"{store.folder}: has {store.path(number)!r}, which {seen[path]} has too")
            seen[path] = store.folder


def _copied(store: IndexStore, name: str, folder: Path) -> dict:
    """Copy a shard and return its entry in the manifest, once what was copied is what was written."""
    source, entry = store.folder / SHARDS / name, store.manifest["shards"][name]
    write_folder(folder / SHARDS / name, lambda place: shutil.copytree(source, place, dirs_exist_ok=True))
    for file, (_, digest) in entry.items():
        if file_digest(folder / SHARDS / name / file) != digest:
            raise ValueError(f"{source / file}: its bytes are not those that were written: a checksum does not match")
    return entry
