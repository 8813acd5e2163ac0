"""Open the pools of a suite: the recordings whose audio and texts are there, and what of them is missing."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from datasets import Dataset

from collap.data.catalogue import Request
from collap.data.catalogue.named import SETS
from collap.data.catalogue.named_sets import ALL, NoSuchConfig, read_records
from collap.data.check import look_at, record_items, row_items
from collap.data.check_report import Checked
from collap.data.identity import rows_digest
from collap.data.records import Record, records_table
from collap.data.set_folder import SetFolder
from collap.data.sources import open_dataset

from .songs import RetrievalSet, collect_songs
from .suite_file import FOLDER, Captions, Pool

NAMES_SHOWN = 3


class NothingThere(Exception):
    """Say why a pool cannot be measured with what is there; others can."""


@dataclass
class OpenPool:
    """Hold a pool that can be measured.

    Attributes:
        dataset: rows with a column `audio`, not decoded.
        songs: its songs and their texts.
        facts: for the manifest: data set, its digest, caption set, size of the pool and number of texts.
        totals: its pairs, hours and words, see [`Totals.figures`].
        notes: what people should know of it.
        expected: the size that the pool is to have.
        window_seconds: of each recording so many from its beginning are heard; None for all.
    """

    dataset: Dataset
    songs: RetrievalSet
    facts: dict
    totals: dict
    notes: list[str] = field(default_factory=list)
    expected: int | None = None
    window_seconds: float | None = None

    def leave_out(self, songs: Sequence[int]) -> None:
        """Leave out songs that turn out to be unreadable.

        Raises:
            ValueError: fewer than two are left.
        """
        kept = [song for song in range(len(self.songs.rows)) if song not in set(songs)]
        if len(kept) < 2:
            raise ValueError(f"{self.facts['dataset']}: {len(songs)} of {len(self.songs.rows)} songs cannot be read")
        self.notes.append(f"{len(songs)} cannot be read ({_shown([self.songs.names[song] for song in songs])})")
        self.songs = self.songs.subset(kept)
        self.facts |= {"pool": len(self.songs.rows), "texts": len(self.songs.texts)}

    def size_note(self) -> list[str]:
        """Say that the pool is not of the expected size, if it is not."""
        size = len(self.songs.rows)
        if self.expected in (None, size):
            return []
        return [f"the pool has {size} songs, the paper's {self.expected}: figures are not comparable"]


@dataclass
class Found:
    """Hold what was found of a pool.

    Attributes:
        checked: of its recordings and texts.
        missing: what is missing -> ids of recordings.
        open: makes a table of what can be used.
    """

    checked: Checked
    missing: dict[str, list[str]]
    open: Callable[[], Dataset]


def check_data_root(root: Path) -> None:
    """Raise a FileNotFoundError unless there is a folder that may hold data sets."""
    if not root.is_dir():
        raise FileNotFoundError(f"--data_root {root}: no such folder; expected one with a folder for each set")


def open_pool(pool: Pool, root: Path) -> OpenPool:
    """Open a pool: the recordings whose audio is there, with a header that can be read, and whose texts are.

    Raises:
        NothingThere: its folder, or one of its captions, is not there, or nothing of it can be used.
        FileNotFoundError, ValueError: a folder is of another data set, or malformed; or two recordings have one id.
    """
    found = find_pool(pool, root)
    if not found.checked.totals.usable:
        raise NothingThere(_nothing(pool, found.missing))
    dataset = found.open()
    if pool.dataset == FOLDER:
        songs, columns = collect_songs(dataset, pool.text_column, pool.song_column), [pool.text_column]
        captions = f"{pool.dataset}: {pool.text_column}"
    else:
        songs, columns = collect_songs(dataset, "text", "id"), ["id", "text"]
        captions = label_of(pool.captions) if pool.captions else f"{pool.dataset}: its own"
    if len(songs.rows) < 2:
        raise NothingThere(f"{pool.title}: one recording alone; a pool needs two")
    facts = {
        "dataset": label_of(pool),
        "dataset digest": rows_digest(dataset, "audio", columns),
        "captions": captions,
        "audio": f"the first {pool.window_seconds:g} s" if pool.window_seconds else "whole recordings",
        "pool": len(songs.rows),
        "texts": len(songs.texts),
    }
    notes = [f"{len(ids)} without {what} ({_shown(ids)})" for what, ids in found.missing.items() if ids]
    totals = found.checked.totals.figures()
    return OpenPool(dataset, songs, facts, totals, notes, pool.expected, pool.window_seconds)


def find_pool(pool: Pool, root: Path) -> Found:
    """Read the tables of a pool, and the header of every recording.

    Raises:
        NothingThere: its folder, or that of its captions, is not there.
        FileNotFoundError, ValueError: a folder is of another data set, or malformed; or two recordings have one id.
    """
    return _find_folder(pool, root) if pool.dataset == FOLDER else _find_named(pool, root)


def _find_folder(pool: Pool, root: Path) -> Found:
    place = _place(pool.folder or pool.dataset, {}, root, "any audio folder")
    dataset = open_dataset(place, pool.split, text_column=pool.text_column)
    items = list(row_items(dataset, pool.split, "audio", pool.text_column))
    checked, audio = look_at(items, {pool.split: {}})
    readable = [row for row, item in enumerate(items) if item.recording in audio]
    missing = {"readable audio": [items[row].name for row in range(len(items)) if items[row].recording not in audio]}
    return Found(checked, missing, lambda: dataset.select(readable))


def label_of(one: Pool | Captions) -> str:
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


def _records(one: Pool | Captions, root: Path) -> tuple[SetFolder, list[Record]]:
    """Return the folder and the records of a split of a named data set."""
    named = SETS[one.dataset]
    place = _place(one.folder or one.dataset, one.settings, root, named.get)
    folder, records = read_records(named, Request(place, one.split, config_name=one.config))
    try:
        return folder, [record for record in records if one.split in (ALL, record.split)]
    except NoSuchConfig as error:
        raise NothingThere(f"{folder.path}: {error}; get {named.get}") from error


def _find_named(pool: Pool, root: Path) -> Found:
    """Find a named data set, with the texts of `captions` where a pool has them: then those alone that have some."""
    folder, records = _records(pool, root)
    if not records:
        raise NothingThere(f"{root / (pool.folder or pool.dataset)}: no recording of split {pool.split!r}")
    twice = next((name for name, count in Counter(record.id for record in records).items() if count > 1), None)
    if twice is not None and pool.statistics is None:
        raise ValueError(
            f"{root / (pool.folder or pool.dataset)}: two recordings are called {twice!r}; keep one of them"
        )
    without_texts = [record.id for record in records if not record.texts]
    if pool.captions is not None:
        caption_texts = texts_by_recording(_records(pool.captions, root)[1])
        for record in records:
            record.texts = caption_texts.get(record.source) or caption_texts.get(record.id) or []
            record.sections = None
        records, without_texts = [record for record in records if record.texts], []
    items = list(record_items(records, folder))
    checked, audio = look_at(items, {record.part: {} for record in records})
    pairs = list(zip(records, items, strict=True))
    missing = {
        "audio": [record.id for record in records if not record.files],
        "readable audio": [record.id for record, item in pairs if record.files and item.recording not in audio],
        "texts": without_texts,
    }
    used = [record for record, item in pairs if item.recording in audio and record.texts]
    return Found(checked, missing, lambda: records_table(used, folder))


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
    without = [*missing.get("audio", []), *missing["readable audio"]]
    if without:
        return (
            f"captions without audio: none of {len(without)} recordings has any that can be read ({_shown(without)}); "
            f"`collap data check {pool.dataset} FOLDER` says why, and prints what fetches it"
        )
    captions = pool.captions.dataset if pool.captions else pool.dataset
    return f"audio without captions: {captions} has no text about any recording; check its config and split"
