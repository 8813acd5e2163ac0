"""Open a folder of parquet shards."""

import re
from pathlib import Path

import datasets

from collap.data.tables import read_table, split_name, take_split

from .entry import Entry, Request

# train.parquet, train-00000.parquet, train-00000-of-00002.parquet, and with the digest that push_to_hub used to add.
SHARD = re.compile(r"(?P<split>.+?)(?:-(?P<index>\d+)(?:-of-(?P<total>\d+))?(?:-[0-9a-f]{8,})?)?\.parquet")
OTHER_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}


def parquet_shards(folder: Path, split: str) -> list[Path]:
    """Return the shards of a split in a folder: `train-*.parquet`, `data/train-*.parquet` or `train/*.parquet`.

    Returns:
        The files in order; none if there are no shards of this split.

    Raises:
        ValueError: a shard is missing, or one is of another number of shards or of another split; names it.
    """
    found = _places(folder, split_name(split))
    if len(found) > 1:
        listed = " and ".join(str(files[0].parent) for files in found)
        raise ValueError(f"{folder}: shards of {split_name(split)!r} lie in {listed}; remove those that do not belong")
    return _whole_set(found[0], split_name(split)) if found else []


def _places(folder: Path, name: str) -> list[list[Path]]:
    """Return the parquet files of a split in each of the places that have some."""
    found = []
    for place in (folder, folder / "data", folder / name):
        files = _shards_in(place)
        if place != folder / name:
            files = [file for file in files if SHARD.fullmatch(file.name)["split"] == name]
        found.append(files)
    return [files for files in found if files]


def _shards_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [file for file in sorted(folder.iterdir()) if SHARD.fullmatch(file.name) and file.is_file()]
    return [file for file in files if file.name != "metadata.parquet"]


def _whole_set(files: list[Path], name: str) -> list[Path]:
    """Return shards in order, after a look at their numbers."""
    groups: dict[str, dict[Path, tuple[str, str]]] = {}
    for file in files:
        match = SHARD.fullmatch(file.name)
        groups.setdefault(match["split"], {})[file] = match["index"], match["total"]
    ordered = []
    for word, group in groups.items():
        if word != name and word in OTHER_SPLITS:
            raise ValueError(f"{next(iter(group))}: is a shard of {word!r} among those of {name!r}; move it")
        _check_numbers(word, group)
        ordered += sorted(group, key=lambda file: (int(group[file][0] or 0), file.name))
    return ordered


def _check_numbers(word: str, group: dict[Path, tuple[str, str]]):
    """Raise a ValueError unless the shards have one total, and each number up to it is there once."""
    totals = {total for _, total in group.values()}
    first = next(iter(group))
    if len(totals) > 1:
        listed = ", ".join(file.name for file in group)
        raise ValueError(f"{first.parent}: shards of several sets beside one another ({listed}); remove the old ones")
    (total,) = totals
    if total is None:
        return
    places: dict[int, Path] = {}
    for file, (index, _) in group.items():
        other = places.setdefault(int(index), file)
        if other != file or int(index) >= int(total):
            raise ValueError(f"{file}: is a shard too many of {int(total)}; remove it, or the other of its number")
    for index in range(int(total)):
        if index not in places:
            wanted = f"{word}-{index:0{len(group[first][0])}d}-of-{total}.parquet"
            raise ValueError(f"{first.parent / wanted}: is missing, one of {int(total)} shards; fetch it again")


def _has_shards(request: Request) -> bool:
    return request.path.is_dir() and bool(_places(request.path, split_name(request.split)))


def _splits(request: Request) -> list[str]:
    """Return the splits that the files and folders of shards are named after."""
    files = [file for place in (request.path, request.path / "data") for file in _shards_in(place)]
    names = {SHARD.fullmatch(file.name)["split"] for file in files}
    names |= {place.name for place in request.path.iterdir() if place.name != "data" and _shards_in(place)}
    return sorted(names)


def _open_shards(request: Request) -> datasets.Dataset:
    files = parquet_shards(request.path, request.split)
    rows = read_table(files, request.audio_column)
    return take_split({split_name(request.split): rows}, request.split, request.path)


LAYOUT = "a folder of parquet shards such as train-00000-of-00008.parquet"
ENTRY = Entry("shards", LAYOUT, _has_shards, _splits, _open_shards)
