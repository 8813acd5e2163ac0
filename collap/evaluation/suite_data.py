"""Open the pools of a suite: the recordings whose audio and texts are there, and what of them is missing."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from datasets import Dataset

from collap.data.catalogue import Request
from collap.data.catalogue.named import SETS
from collap.data.catalogue.named_sets import ALL, read_records
from collap.data.identity import rows_digest
from collap.data.records import Record, records_table
from collap.data.sources import open_dataset

from .songs import RetrievalSet, collect_songs
from .suite_file import Captions, Pool

NAMES_SHOWN = 3


class NothingThere(Exception):
    """Say why a pool cannot be measured with what is there; others can."""


@dataclass
class OpenPool:
    """Hold a pool that can be measured.

    Attributes:
        dataset: rows with a column `audio`, not decoded.
        songs: its songs and their texts.
        facts: for the manifest: data set, its digest, caption set, size of the pool, and how many lack audio or texts.
        notes: what people should know of it.
    """

    dataset: Dataset
    songs: RetrievalSet
    facts: dict
    notes: list[str] = field(default_factory=list)


def open_pool(pool: Pool, root: Path) -> OpenPool:
    """Open a pool.

    Raises:
        NothingThere: its folder, or one of its captions, is not there, or nothing of it can be used.
        FileNotFoundError, ValueError: a folder is of another data set, or malformed.
    """
    if pool.dataset == "folder":
        place = _place(pool.folder or pool.dataset, {}, root, "any audio folder")
        dataset = open_dataset(place, pool.split, text_column=pool.text_column)
        songs, missing = collect_songs(dataset, pool.text_column, pool.song_column), {}
        columns, captions = [pool.text_column], f"{pool.dataset}: {pool.text_column}"
    else:
        dataset, missing = _open_named(pool, root)
        songs, columns = collect_songs(dataset, "text", "id"), ["id", "text"]
        captions = _label(pool.captions) if pool.captions else f"{pool.dataset}: its own"
    if len(songs.rows) < 2:
        raise NothingThere(f"{pool.title}: one recording alone; a pool needs two")
    facts = {
        "dataset": _label(pool),
        "dataset digest": rows_digest(dataset, "audio", columns),
        "captions": captions,
        "pool": len(songs.rows),
        "texts": len(songs.texts),
    }
    return OpenPool(dataset, songs, facts, _notes(pool, len(songs.rows), missing))


def _label(one: Pool | Captions) -> str:
    """Return what a data set is called with all that chooses from it: `musiccaps/all?full_tracks=true`."""
    parts = [one.dataset, *([one.config] if one.config else []), one.split]
    return "/".join(parts) + (f"?{_query(one.settings)}" if one.settings else "")


def _query(settings: dict) -> str:
    return urlencode({name: str(value).lower() for name, value in settings.items()})


def _place(folder: str, settings: dict, root: Path, get: str) -> str:
    """Return a folder with its settings as the catalogue takes it; NothingThere says how to get it."""
    path = root / folder
    if not path.is_dir():
        raise NothingThere(f"no folder {path}; get {get}")
    return f"{path}?{_query(settings)}" if settings else str(path)


def _records(one: Pool | Captions, root: Path) -> tuple:
    """Return the folder and the records of a split of a named data set."""
    named = SETS[one.dataset]
    place = _place(one.folder or one.dataset, one.settings, root, named.get)
    folder, records = read_records(named, Request(place, one.split, config_name=one.config))
    return folder, [record for record in records if one.split in (ALL, record.split)]


def _open_named(pool: Pool, root: Path) -> tuple[Dataset, dict[str, list[str]]]:
    """Open a named data set: its usable rows, and the ids of recordings without audio and without texts.

    Raises:
        ValueError: two recordings have one id.
    """
    folder, records = _records(pool, root)
    ids = [record.id for record in records]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(
            f"{root / (pool.folder or pool.dataset)}: two recordings are called {twice!r}; keep one of them"
        )
    if pool.captions is not None:
        caption_texts = texts_by_recording(_records(pool.captions, root)[1])
        for record in records:
            record.texts = caption_texts.get(record.source) or caption_texts.get(record.id) or []
            record.sections = None
        records = [record for record in records if record.texts]
        ids = [record.id for record in records]
    used = [record for record in records if record.files and record.texts]
    missing = {
        "audio": [record.id for record in records if not record.files],
        "texts": [record.id for record in records if not record.texts],
    }
    if not used:
        raise NothingThere(_nothing(pool, missing))
    return records_table(used, folder), missing


def texts_by_recording(records: Iterable[Record]) -> dict[str, list[str]]:
    """Return the texts of every recording, by its source and by its id."""
    found: dict[str, list[str]] = {}
    for record in records:
        for key in {record.source, record.id} - {None}:
            found.setdefault(key, []).extend(record.texts)
    return found


def _shown(ids: list[str]) -> str:
    return ", ".join(ids[:NAMES_SHOWN]) + (", ..." if len(ids) > NAMES_SHOWN else "")


def _nothing(pool: Pool, missing: dict[str, list[str]]) -> str:
    """Say why nothing of a data set can be used."""
    if missing["audio"]:
        return (
            f"captions without audio: none of {len(missing['audio'])} recordings has any ({_shown(missing['audio'])}); "
            f"`collap data check {pool.dataset} FOLDER` prints what fetches it"
        )
    captions = pool.captions.dataset if pool.captions else pool.dataset
    return f"audio without captions: {captions} has no text about any recording; check its config and split"


def _notes(pool: Pool, size: int, missing: dict[str, list[str]]) -> list[str]:
    notes = []
    if pool.expected is not None and size != pool.expected:
        notes.append(f"the pool has {size} songs, the paper's {pool.expected}: figures are not comparable")
    for what, ids in missing.items():
        if ids:
            notes.append(f"{len(ids)} without {what} ({_shown(ids)})")
    return notes
