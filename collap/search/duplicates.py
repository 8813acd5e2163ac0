"""List tracks that are copies of one recording: `collap duplicates`.

    collap duplicates --index music.index
    collap duplicates --index music.index --json

Tracks that share some frames of their fingerprints are candidates; whether they are copies is told as in a search, see
`copies.py`. The files are not read.

Only copies are listed: a remaster of another length, an edit or a live take is none, and nothing is said of it.
"""

import argparse
import json
from dataclasses import asdict, dataclass

from collap.corpora.duplicates import SampledIndex

from .copies import Copies, Evidence
from .library import shown
from .store import IndexStore


@dataclass(frozen=True)
class Group:
    """Hold copies of one recording: their numbers in the store, the longest first, and of each other how it lies over
    the first."""

    tracks: tuple[int, ...]
    evidence: tuple[Evidence, ...]


def groups(store: IndexStore) -> list[Group]:
    """Find all copies in an index: groups of two tracks or more, each of which is a copy of the first, the longest.

    A copy of a copy that is none of the first stays out: chains put different songs together. Takes 20 kB of
    memory for a track of 5 minutes, and three times that while candidates are sorted.
    """
    copies, same = Copies(store), {}  # number of a sound -> tracks
    for track in range(len(store.tracks)):
        same.setdefault(int(copies.sounds[track]), []).append(track)
    sounds = list(same.values())
    partners = _partners(copies, [tracks[0] for tracks in sounds])
    found, taken = [], set()
    for number in sorted(range(len(sounds)), key=lambda one: (-copies.seconds[sounds[one][0]], sounds[one][0])):
        if number in taken:
            continue
        first, *others = sounds[number]
        for other in sorted(partners[number] - taken):
            if copies.evidence(first, sounds[other][0]):
                taken.add(other)
                others += sounds[other]
        taken.add(number)
        if others:
            found.append(Group((first, *others), tuple(copies.evidence(first, other) for other in others)))
    return sorted(found, key=lambda group: min(group.tracks))


def _partners(copies: Copies, tracks: list[int]) -> list[set[int]]:
    """Return for each of some tracks the places in the list of those that share frames of their fingerprints."""
    prints = [copies.prints(track)[:, 0] for track in tracks]
    index, partners = SampledIndex(prints), [set() for _ in tracks]
    for place, bits in enumerate(prints):
        for earlier, _ in index.candidates(place, bits):
            partners[earlier].add(place)
            partners[place].add(earlier)
    return partners


# ---- the command


def run(options: argparse.Namespace) -> int:
    """Do `collap duplicates`; return its exit code."""
    store = IndexStore.open(options.index)
    found = groups(store)
    if options.json:
        print(json.dumps([_described(store, group) for group in found]))
        return 0
    for group in found:
        first, *others = (shown(store.tracks["path"][track].as_py()) for track in group.tracks)
        print(first)
        for path, one in zip(others, group.evidence, strict=True):
            print(f"    {path}: {_told(one)}")
    copies = sum(len(group.evidence) for group in found)
    print(f"{options.index}: {copies} copies of {len(found)} recordings among {len(store.tracks)} tracks")
    return 0


def _told(one: Evidence) -> str:
    if one.same_sound:
        return "the same samples"
    return (
        f"{one.offset_seconds:+.2f} s, {one.share:.0%} overlaps, {one.error:.1%} of bits differ, and "
        f"{one.worst_error:.1%} of those that can be heard in the worst 4 s"
    )


def _described(store: IndexStore, group: Group) -> list[dict]:
    """Return the tracks of a group as JSON has them, each but the first with its evidence."""
    named = [{"id": store.tracks["id"][track].as_py(), "path": store.path(track)} for track in group.tracks]
    return [named[0], *({**name, **asdict(one)} for name, one in zip(named[1:], group.evidence, strict=True))]
