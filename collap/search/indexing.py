"""Index a library of music: `collap index`.

    collap index ~/Music --model runs/best --index music.index
    collap index ~/Music --index music.index                    again, after changes: only those are read
    collap index --verify --index music.index
    collap index --stats --index music.index
    collap index ~/Music --model runs/best --index part.0 --shard 0/4    one of four machines
    collap index --merge part.0 part.1 part.2 part.3 --index music.index

What cannot be read is listed at the end with its reason. A run that was killed goes on with the same command. The files
of an index are described in `store.py`.
"""

import argparse
import errno
import os
import sys
from pathlib import Path

import torch

from collap.data.shares import parse_shard

from .calibration import calibrate, write_calibration
from .engine import check_filled, connect, fill
from .index import TrackIndex
from .library import Walk, share_of, shown, walk_library
from .merging import merge_indexes
from .score_function import ScoreFunction
from .space import best_device, fetched_space
from .store import MANIFEST, IndexStore, damaged_files, named_files
from .updating import Update
from .writing import writing_to

DEFAULTS = {"model": None, "dtype": "float32", "stride": 1, "shard_tracks": 256}
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
MIN_KEPT = 0.5  # share of an index's files that another folder must hold to be the same library


def run(options: argparse.Namespace) -> int:
    """Do `collap index`; return its exit code: 1 if `--verify` finds damage."""
    check_options(options)
    os.nice(options.nice)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.stats:
        from .statistics import run as run_statistics  # it brings all analyses

        return run_statistics(options)
    if options.verify:
        return verify(options.index, options.engine)
    if options.merge:
        merge_indexes(options.merge, options.index)
        print(f"{options.index}: {_contents(options.index)}")
    if options.folder:
        report(index_library(options), options.index)
    if options.engine:
        store = IndexStore.open(options.index)
        added = fill(options.engine, store.space.id, {name: shard.vectors for name, shard in store.shards.items()})
        print(f"{options.engine}: {len(store.shards)} shards, {added} of them new")
    if options.calibrate:
        print(calibrate_index(options.index, options.model, options.device))
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raise a ValueError for options that cannot work, before anything is read."""
    if options.folder and (options.verify or options.merge or options.stats):
        raise ValueError(
            f"{options.folder}: --verify, --merge and --stats read no library; name the index with --index alone"
        )
    if options.json and not options.stats:
        raise ValueError("--json is what --stats prints; expected both")
    asked = [f"--{name}" for name in ("verify", "stats", "merge", "calibrate") if getattr(options, name)]
    if len(asked) > 1 and asked != ["--merge", "--calibrate"]:
        raise ValueError(f"{' and '.join(asked)} are runs of their own; expected one of them")
    for name in ("threads", "stride", "shard_tracks"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, found {getattr(options, name)}")
    if not 0 <= options.nice <= 19:
        raise ValueError(f"--nice must be from 0 to 19, found {options.nice}")
    if options.folder and not os.path.isdir(options.folder):
        raise FileNotFoundError(f"{options.folder}: no such folder; expected a library of music")
    if options.engine:
        connect(options.engine)


def verify(folder: Path, engine: str | None = None) -> int:
    """Read all of an index, and say what is not as it was written; return an exit code.

    Args:
        engine: database that is to hold the shards of the index, see `engine.py`.

    Raises:
        ModuleNotFoundError, OSError, ValueError: of an index or a database that cannot be opened, or one of another
            state; one line.
    """
    damaged = list(damaged_files(folder))
    for line in damaged:
        print(f"damaged: {line}", file=sys.stderr)
    if damaged:
        return 1
    store = IndexStore.open(folder)
    print(f"{folder}: {len(list(named_files(folder, store.manifest)))} files, all as they were written")
    if engine:
        check_filled(engine, store.space.id, {name: shard.vectors for name, shard in store.shards.items()})
        print(f"{engine}: holds all vectors of its {len(store.shards)} shards")
    return 0


def index_library(options: argparse.Namespace) -> Update:
    """Bring an index up to date with a library, or make it.

    Raises:
        OSError, ValueError: there is no such model or library, the index is another one's or damaged, another process
            writes to it, or the disk is full; one line, and the index is as it was.
    """
    root, folder = os.path.realpath(options.folder), options.index
    with writing_to(folder):
        old = IndexStore.open(folder) if (folder / MANIFEST).exists() else None
        settings = settings_of(options, old)
        device = options.device or best_device(settings["dtype"])
        space = fetched_space(settings["model"], device, settings["dtype"], settings["stride"])
        if old:
            space.check(old.space, folder)
        walk = walk_library(root)
        check_library(walk, root, old)
        score = ScoreFunction.read(settings["model"], settings["stride"]).to_dict()
        about = {"space": space.about, "space_id": space.id, "score": score, "settings": settings, "library": root}
        update = Update(
            folder, old, share_of(walk, parse_shard(options.shard)), about, device, retry=options.retry_broken
        )
        try:
            update.run()
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise OSError(f"{folder}: {error}; what is published stays, and the same command goes on") from error
            raise
    return update


def settings_of(options: argparse.Namespace, old: IndexStore | None) -> dict:
    """Return the settings of a run: those of the index, unless an option says otherwise.

    Raises:
        ValueError: no model is named, or another part of the library is asked for.
    """
    known = old.settings if old else {}
    settings = {name: known.get(name, default) for name, default in DEFAULTS.items()}
    settings |= {name: value for name in DEFAULTS if (value := getattr(options, name)) is not None}
    if settings["model"] is None:
        raise ValueError(f"{options.index}: is new; name the model that embeds the library with --model")
    if os.path.isdir(settings["model"]):
        settings["model"] = os.path.abspath(settings["model"])
    shard = parse_shard(options.shard)
    settings["shard"] = None if shard.count == 1 else f"{shard.index}/{shard.count}"
    if old and known.get("shard") != settings["shard"]:
        held, asked = (f"part {one}" if one else "the whole" for one in (known.get("shard"), settings["shard"]))
        raise ValueError(f"{options.index}: holds {held} of a library, asked for is {asked}; name another --index")
    return settings


def check_library(walk: Walk, root: str, old: IndexStore | None) -> None:
    """Raise a ValueError if a folder may be another library than an index is of, or its disk is not there: an index of
    weeks is not emptied by a slip."""
    if not walk.files and not walk.unread.keys() - {b""}:
        reason = walk.unread.get(b"", "holds no audio files")
        raise ValueError(f"{root}: {reason}; expected a library of music (is its disk there?)")
    if not old or not len(old.tracks) or str(old.library) == root:
        return
    there = {file.path for file in walk.files}
    found = sum(path in there for path in old.tracks["path"].to_pylist())
    if found < MIN_KEPT * len(old.tracks):
        raise ValueError(
            f"{old.folder}: is of the library {old.library}, and of its {len(old.tracks)} files {root} holds {found}; "
            "name another --index"
        )


def calibrate_index(folder: Path, model: str | None, device: str | None) -> str:
    """Measure on an index what its searches may say, keep it there, and return a line about it."""
    index = TrackIndex.open(folder, model, device or "cpu")
    found = calibrate(index)
    write_calibration(folder, found)
    bound = "no bound was found, so the mode calibrated is not offered"
    if found.delta is not None:
        bound = f"the {found.k} best score {found.delta:.4f} above their estimates at most, but for {found.alpha:.0%}"
    return f"{folder}: calibrated on {len(found.best)} descriptions: {bound}"


def _contents(folder: Path) -> str:
    """Say how much is in an index."""
    store = IndexStore.open(folder)
    hours = sum(store.tracks["seconds"].to_pylist()) / 3600
    size = sum(size for _, size, _ in named_files(folder, store.manifest)) / 1e6
    return f"{len(store.tracks)} tracks, {hours:.2f} hours of audio in {size:.1f} MB"


def report(update: Update, folder: Path) -> None:
    """Say what could not be read, what was done, and how fast."""
    for file in update.failed:
        print(f"broken: {shown(file['path'])}: {file['reason']}", file=sys.stderr)
    for path, reason in sorted(update.walk.unread.items()):
        print(f"not read: {shown(path) or '.'}: {reason}", file=sys.stderr)
    if before := int(update.changes.failed.sum()):
        print(f"{before} files are broken as before; --retry_broken tries them again", file=sys.stderr)
    done = [f"{count} {name}" for name, count in update.counts.items() if count]
    print(f"{folder}: {_contents(folder)}; {', '.join(done) or 'nothing has changed'}")
    if update.heard_seconds:
        print(f"{update.heard_seconds / 3600:.2f} hours embedded in {update.wall_seconds:.1f} s: {update.speed()}")
