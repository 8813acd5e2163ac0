"""Find recordings that two data sets, or two parts of one, share: by where they are from, or by how they sound."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from processing.decode_audio import AudioFileError

from .catalogue import Request, find_entry
from .catalogue.named import SETS
from .catalogue.named_sets import read_records
from .fingerprints import RATE, FingerprintIndex, fingerprint
from .guarded_reading import Source, load_audio
from .records import Record
from .set_folder import SetFolder

Parts = dict[str, dict[str, str]]  # part of a data set -> source of each recording -> its id
WITHOUT_IDS = ("wiki",)  # holds whatever has a column of texts: no neighbour to be compared with unasked


@dataclass(frozen=True)
class Leak:
    """Say which recordings are in two places.

    Attributes:
        between: the two places.
        by: `"id"`, `"flag"` (the data set says so itself) or `"audio"`.
        ids: of the recordings, as the first place calls them.
        details: of each, for those found by their sound.
    """

    between: tuple[str, str]
    by: str
    ids: list[str] = field(default_factory=list)
    details: list[dict] = field(default_factory=list)


def sources_by_part(records: Iterable[Record]) -> Parts:
    """Return the sources of the recordings of every part of a data set."""
    parts: Parts = {}
    for record in records:
        note_source(parts, record)
    return parts


def note_source(parts: Parts, record: Record) -> None:
    """Add a recording to the parts."""
    parts.setdefault(record.part, {})[record.source] = record.id


def leaks_by_id(name: str, parts: Parts, others: dict[str, Parts]) -> list[Leak]:
    """Compare the parts of a data set with one another, and with those of others; only what is shared is returned.

    Args:
        parts: as [`sources_by_part`].
        others: name of a data set -> its parts.
    """
    places = [(f"{name} {part}", own) for part, own in parts.items()]
    pairs = [(places[i], places[j]) for i in range(len(places)) for j in range(i + 1, len(places))]
    for other, their_parts in others.items():
        pairs += [(place, (f"{other} {part}", theirs)) for place in places for part, theirs in their_parts.items()]
    found = []
    for (one, own), (two, theirs) in pairs:
        shared = [own[source] for source in own if source in theirs]
        found += [Leak((one, two), "id", shared)] if shared else []
    return found


def is_flagged(record: Record) -> bool:
    """Tell whether a data set itself says that a recording is of AudioSet's training set."""
    return record.meta.get("audioset") == "train"


def leaks_by_flag(name: str, ids: list[str]) -> list[Leak]:
    """Return the recordings that are flagged, such as 2,663 of MusicCaps."""
    return [Leak((name, "AudioSet's training set"), "flag", ids)] if ids else []


def neighbours(name: str, folder: SetFolder) -> dict[str, Parts]:
    """Return the sources of other named data sets that lie in the same folder."""
    found = {}
    for other, named in SETS.items():
        if other not in (name, *WITHOUT_IDS) and named.tables(folder):
            own = copy.copy(folder)
            own.problems = []  # not those of the data set that was asked for
            found[other] = sources_by_part(named.read(own, named.settings))
    return found


def named_sources(sources: Iterable[str]) -> dict[str, Parts]:
    """Return the sources of data sets that are named as `NAME:FOLDER`.

    Raises:
        ValueError: one is no named data set; names it.
    """
    found = {}
    for source in sources:
        entry, request = find_entry(Request(source))
        if entry.name not in SETS:
            raise ValueError(f"--against {source}: has no ids to compare; expected NAME:FOLDER, NAME one of {[*SETS]}")
        found[source] = sources_by_part(read_records(SETS[entry.name], request)[1])
    return found


def fingerprints(recordings: Iterable[tuple[str, tuple[Source, ...]]]) -> Iterator[tuple]:
    """Yield name and fingerprint (F,) of recordings; those that cannot be read are left out."""
    for name, sources in recordings:
        for source in sources:
            try:
                yield name, fingerprint(load_audio(source, RATE))
            except AudioFileError:
                continue


def leaks_by_audio(
    name: str,
    recordings: Iterable[tuple[str, tuple[Source, ...]]],
    other: str,
    other_recordings: Iterable[tuple[str, tuple[Source, ...]]],
) -> list[Leak]:
    """Compare how the recordings of two data sets sound; those of the first are kept in memory, 170 bytes a second."""
    index = FingerprintIndex(fingerprints(recordings))
    found = [match for one, bits in fingerprints(other_recordings) for match in index.matches(one, bits)]
    ids = list(dict.fromkeys(match.name for match in found))
    return [Leak((name, other), "audio", ids, [vars(match) for match in found])] if found else []
