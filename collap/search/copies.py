"""Tell which tracks of an index are copies of one recording, by the fingerprints of their sound that it holds.

Two tracks of near length are laid over each other at the offset at which fewest bits of their fingerprints differ. Of
the bits that can be heard in one of them, few may differ in any passage of 4 s: another codec, level or rate changes
those that cannot be heard, while one other section, melody or instrument changes what is heard while it is heard
(`collap.data.fingerprints`). How alike the embeddings are is not asked: a model hears a cover on the same drums as a
copy.

In a list of hits each track is compared with the better ones that stay. Few are of near length, and a pair takes about
a millisecond, so no groups are kept in the index: they would have to be made of all pairs, and anew with every change.

Dimensions: `N` tracks, `F`, `G` frames of two fingerprints, `O` offsets, `P` passages.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa

from collap.corpora.duplicates import is_sound
from collap.data.fingerprints import HOP, MAX_ERROR, RATE, bit_error

from .store import IndexStore

MAX_SECONDS_APART = 3.0  # between the lengths of copies, and between their starts
MAX_OFFSET = round(MAX_SECONDS_APART * RATE / HOP)  # frames
PASSAGE_FRAMES = round(4 * RATE / HOP)
MAX_HEARD_ERROR = 0.12  # share of the heard bits that differ in the worst passage
MIN_HEARD = 0.02  # share of bits of a passage: fewer say nothing
MIN_TOLD = 0.5  # share of passages that say something
PROBED_FRAMES = 128  # by which the offset is found, and most pairs are told apart
MAX_PROBED_ERROR = 0.4  # of all bits at the best offset: chance is 0.5, and copies have under 0.25
NEAR_OFFSETS = 4  # to either side, that are compared in full
REMEMBERED = 2**16  # pairs


@dataclass(frozen=True)
class Evidence:
    """Say how two copies lie over each other.

    Attributes:
        offset_seconds: by which the second one is behind the first.
        share: of the shorter track that overlaps with the other at that offset.
        error: share of all bits of the fingerprints that differ.
        worst_error: share of the bits that can be heard that differ in the worst passage of 4 s.
        same_sound: whether the samples are the same, which needs no other evidence.
    """

    offset_seconds: float
    share: float
    error: float
    worst_error: float
    same_sound: bool = False


# ---- pure functions; a fingerprint is (F, 2) uint32: all bits, and ones for those that can be heard


def probable_offset(one: np.ndarray, other: np.ndarray) -> tuple[int, float] | None:
    """Find by some frames where the bits (F,) and (G,) of two tracks agree best.

    Returns:
        The frame of `other` at which frame 0 of `one` lies, within 3 s, and the share of bits that differ; None if they
        have no passage in common.
    """
    most, least = MAX_OFFSET, PASSAGE_FRAMES - len(one)
    offsets = np.arange(max(-most, least), min(most, len(other) - PASSAGE_FRAMES) + 1)  # (O,)
    frames = np.flatnonzero(is_sound(one))
    if not len(offsets) or not len(frames) or len(one) < PASSAGE_FRAMES:
        return None
    frames = frames[np.linspace(0, len(frames) - 1, min(PROBED_FRAMES, len(frames))).astype(np.int64)]
    places = offsets[:, None] + frames  # (O, frames)
    is_there = (places >= 0) & (places < len(other))
    words = other[places.clip(0, len(other) - 1)]
    is_there &= is_sound(words)
    counts, numbers = (np.bitwise_count(words ^ one[frames]) * is_there).sum(1), is_there.sum(1)  # (O,)
    errors = np.where(2 * numbers >= numbers.max(initial=1), counts / (32 * numbers.clip(min=1)), 1.0)  # (O,)
    best = int(np.lexsort((np.abs(offsets), errors))[0])
    return int(offsets[best]), float(errors[best])


def best_offset(one: np.ndarray, other: np.ndarray) -> int | None:
    """Find as [`probable_offset`] does, and by all frames near it; None if the two are not alike at any offset."""
    probable = probable_offset(one, other)
    if probable is None or probable[1] > MAX_PROBED_ERROR:
        return None
    errors = {}
    for offset in range(probable[0] - NEAR_OFFSETS, probable[0] + NEAR_OFFSETS + 1):
        first, stop = overlap(one, other, offset)
        if abs(offset) <= MAX_OFFSET and stop - first >= PASSAGE_FRAMES:
            errors[offset] = bit_error(one[first:stop], other[first + offset : stop + offset])
    return min(errors, key=lambda offset: (errors[offset], abs(offset)))


def overlap(one: np.ndarray, other: np.ndarray, offset: int) -> tuple[int, int]:
    """Return the frames of a fingerprint, the first and the one behind the last, that another covers."""
    return max(0, -offset), min(len(one), len(other) - offset)


def passage_errors(one: np.ndarray, other: np.ndarray, offset: int) -> np.ndarray:
    """Return the share of heard bits that differ in each passage of 4 s that two tracks (F, 2), (G, 2) share: (P,).

    A bit counts that is heard in one of them: where the other is silent, half of those differ. The last passage ends
    with the last frame, so that all frames are in one. One of which hardly a bit can be heard is NaN.
    """
    first, stop = overlap(one, other, offset)
    one, other = one[first:stop], other[first + offset : stop + offset]  # (F', 2)
    heard = one[:, 1] | other[:, 1]
    counts = np.stack([np.bitwise_count((one[:, 0] ^ other[:, 0]) & heard), np.bitwise_count(heard)])  # (2, F')
    sums = np.pad(counts.cumsum(1, np.int64), ((0, 0), (1, 0)))  # (2, F' + 1)
    starts = np.unique([*range(0, stop - first - PASSAGE_FRAMES + 1, PASSAGE_FRAMES), stop - first - PASSAGE_FRAMES])
    differ, heard = sums[:, starts + PASSAGE_FRAMES] - sums[:, starts]  # (P,) each
    return np.where(heard >= MIN_HEARD * 32 * PASSAGE_FRAMES, differ / heard.clip(min=1), np.nan)  # (P,)


def compare_prints(one: np.ndarray, other: np.ndarray) -> Evidence | None:
    """Say how two tracks (F, 2), (G, 2) lie over each other if they are copies of one recording; None if not."""
    offset = best_offset(one[:, 0], other[:, 0])
    if offset is None:
        return None
    errors = passage_errors(one, other, offset)
    is_told = ~np.isnan(errors)
    if is_told.mean() < MIN_TOLD or errors[is_told].max() > MAX_HEARD_ERROR:
        return None
    first, stop = overlap(one, other, offset)
    here, there = one[first:stop, 0], other[first + offset : stop + offset, 0]
    sound = is_sound(here) & is_sound(there)
    error = bit_error(here[sound], there[sound]) if sound.any() else 1.0
    if error >= MAX_ERROR:
        return None
    return Evidence(
        offset * HOP / RATE, (stop - first) / min(len(one), len(other)), error, float(errors[is_told].max())
    )


# ---- of an index


class Copies:
    """Tell which tracks of an index are copies; decisions are remembered. May be used by several threads."""

    def __init__(self, store: IndexStore):
        self.seconds, (self._shards, self._rows) = store.tracks["seconds"].to_numpy(), store.places
        stored = [shard.vectors for shard in store.shards.values()]
        self._prints = [(one["print_offsets"].numpy(), one["prints"].numpy().view(np.uint32)) for one in stored]
        self._digests = [shard.rows["sound"] for shard in store.shards.values()]
        self._compared = lru_cache(REMEMBERED)(self._compare)

    def evidence(self, one: int, other: int, others: "Copies | None" = None) -> Evidence | None:
        """Say how two tracks lie over each other if they are copies of one recording; None if they are not.

        Args:
            others: of the index that the second one is of, if that is another.
        """
        if abs(self.seconds[one] - (others or self).seconds[other]) > MAX_SECONDS_APART:
            return None
        return self._compared(one, other) if others is None else self._compare(one, other, others)

    def _compare(self, one: int, other: int, others: "Copies | None" = None) -> Evidence | None:
        others = others or self
        if self.sound(one) == others.sound(other):
            return Evidence(0.0, 1.0, 0.0, 0.0, same_sound=True)
        return compare_prints(self.prints(one), others.prints(other))

    def sound(self, track: int) -> str:
        """Return the digest of the samples of a track."""
        return self._digests[self._shards[track]][int(self._rows[track])].as_py()

    @cached_property
    def sounds(self) -> np.ndarray:
        """Return a number (N,) for every track, the same for the same samples."""
        starts = np.cumsum([0, *map(len, self._digests)])
        digests = [pa.array([], pa.string()), *(one.combine_chunks() for one in self._digests)]
        numbers = pa.concat_arrays(digests).dictionary_encode().indices.to_numpy()
        return numbers[starts[self._shards] + self._rows]

    def prints(self, track: int) -> np.ndarray:
        """Return the fingerprint (F, 2) uint32 of a track, of memory that is mapped."""
        (offsets, prints), row = self._prints[self._shards[track]], self._rows[track]
        return prints[offsets[row] : offsets[row + 1]]

    def fold(self, tracks: Iterable[int], k: int, known: Iterable[int] = ()) -> list[tuple[int, list[int]]]:
        """Take the first k recordings of a list of tracks, the best first, and with each those that are copies of it.

        Taken are the tracks before the first one that is a recording more. A copy of a copy that is none of the first
        is a recording of its own: chains put different songs together.

        Args:
            known: tracks that stand before all others.

        Returns:
            A track and its copies, of the known ones too, for each recording.
        """
        kept: list[tuple[int, list[int]]] = [(track, []) for track in known]
        most = len(kept) + k
        for track in tracks:
            found = next((copies for first, copies in kept if self.evidence(first, track)), None)
            if found is not None:
                found.append(track)
            elif len(kept) == most:
                break
            else:
                kept.append((track, []))
        return kept
