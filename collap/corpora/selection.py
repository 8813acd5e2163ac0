"""Choose, of all tracks that were described, those that make the data set, their captions, and their split.

Every pass reads the tracks from the disk one at a time; what is held of each is its name and why it is left out.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .captions import caption_text
from .check import CaptionCheck, CaptionTotals, check_caption
from .duplicates import EvaluationSets, exact_duplicates, find_duplicates
from .state import State
from .tracks import Caption, Track

SPLITS = ("train", "validation")
UNREAD_SHOWN = 20
# Names that stand for no artist: tracks that share one need not be of one split.
NO_ARTIST = ("various", "various artists", "va", "v.a.", "unknown", "unknown artist", "n/a", "none", "-", "[unknown]")
UNREADABLE = "no_caption: nothing that a captioner said of it can be used"


@dataclass
class Selection:
    """Hold what was chosen.

    Attributes:
        splits: id of every track that is kept -> its split; in the order of the list.
        dropped: id of every other track -> why.
        origins: id of every track that is left out -> where it was listed.
        captions: what was found in the captions that are kept.
        unread: number of captions with an answer that could not be read, not even the second time.
        unread_examples: the first of these: track, captioner, why, and the answer word for word.
        retried: number of questions that were asked twice.
        compared: evaluation set -> of how many of its recordings tracks were told apart, see [`EvaluationSets`].
        least_score: scores below it are those that were dropped; None if no model scored.
    """

    splits: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    captions: CaptionTotals = field(default_factory=CaptionTotals)
    unread: int = 0
    unread_examples: list[dict] = field(default_factory=list)
    retried: int = 0
    compared: dict[str, dict[str, int]] = field(default_factory=dict)
    least_score: float | None = None


def usable_captions(track: Track, least_score: float | None = None) -> list[tuple[Caption, str, CaptionCheck]]:
    """Return the captions of a track that are kept, as texts, and what was found in each.

    Those without words of their own, with times that contradict the track, or with a lower score are not.
    """
    is_high = [least_score is None or one.score is None or one.score >= least_score for one in track.captions]
    checked = zip(checked_captions(track), is_high, strict=True)
    return [found for found, high in checked if found[1] and not found[2].contradictions and high]


def checked_captions(track: Track) -> list[tuple[Caption, str, CaptionCheck]]:
    """Return all captions of a track, as texts, which are empty where nothing is said, and what was found in each."""
    found = []
    for caption in track.captions:
        text = "" if caption.says_nothing else caption_text(caption, track.seconds).strip()
        found.append((caption, text, check_caption(caption, text, track.seconds, track.measures)))
    return found


def select(
    state: State, names: Sequence[str], against: Sequence[str], validation: float, seed: int, drop_worst: float = 0.0
) -> Selection:
    """Choose among tracks that are done.

    Args:
        names: ids, in the order of the list; of a recording that is there twice the first is kept.
        against: evaluation sets, whose recordings are left out.
        validation: share of the artists (or sources, or tracks, where these are not known) to validate on.
        seed: of the split.
        drop_worst: share of the captions with the lowest scores of a model, which are left out.
    """
    chosen = Selection()
    for track in state.all(names):
        if track.dropped:
            chosen.dropped[track.id] = track.dropped
    drop_copies(state, names, against, chosen)
    chosen.least_score = least_score(_kept(state, names, chosen), drop_worst) if drop_worst else None
    groups: dict[str, list[str]] = {}
    for track in _kept(state, names, chosen):
        if not count_captions(track, chosen):
            chosen.dropped[track.id] = UNREADABLE
        else:
            groups[track.id] = keys_of(track)
    chosen.splits = split_tracks(groups, validation, seed)
    chosen.origins = {track.id: track.origin for track in state.all(name for name in names if name in chosen.dropped)}
    return chosen


def _kept(state: State, names: Iterable[str], chosen: Selection) -> Iterator[Track]:
    return state.all(name for name in names if name not in chosen.dropped)


def drop_copies(state: State, names: Sequence[str], against: Sequence[str], chosen: Selection) -> None:
    """Leave out tracks that are an earlier one, or that an evaluation set holds."""
    exact = exact_duplicates((track.id, track.digest) for track in _kept(state, names, chosen))
    chosen.dropped |= {name: f"duplicate: the same content as {first}" for name, first in exact.items()}
    if against:
        held = EvaluationSets(against)
        chosen.compared = held.compared
        for track in _kept(state, names, chosen):
            if found := held.held(track, state.load_print(track.id)):
                chosen.dropped[track.id] = f"evaluation: {found}"
    kept = [name for name in names if name not in chosen.dropped]
    near = find_duplicates((name, state.load_print(name)) for name in kept)
    chosen.dropped |= {name: f"near_duplicate: of {said}" for name, said in near.items()}


def count_captions(track: Track, chosen: Selection) -> int:
    """Count what was found in the captions of a track; return how many of them are kept."""
    chosen.unread += sum(one.raw is not None for one in track.captions)
    chosen.retried += sum(one.retries for one in track.captions)
    for caption in track.captions:
        if caption.raw is not None and len(chosen.unread_examples) < UNREAD_SHOWN:
            said = {"id": track.id, "captioner": caption.captioner, "problem": caption.problem, "answer": caption.raw}
            chosen.unread_examples.append(said)
    contradicting = [text for _, text, check in checked_captions(track) if text and check.contradictions]
    chosen.captions.contradicting += len(contradicting)
    kept = usable_captions(track, chosen.least_score)
    for _, text, check in kept:
        chosen.captions.add(track.id, text, check)
    return len(kept)


def least_score(tracks: Iterable[Track], drop_worst: float) -> float | None:
    """Return the score below which lies a share of all captions' scores; None if there are no scores."""
    scores = [one.score for track in tracks for one in track.captions if one.score is not None]
    return float(np.quantile(scores, drop_worst, method="higher")) if scores else None


# ---- splits


def keys_of(track: Track) -> list[str]:
    """Return what other tracks may share with a track, so that they have to be in the same split: artist and source."""
    artist, source = (" ".join((name or "").casefold().split()) for name in (track.artist, track.source))
    known = [f"artist {artist}"] if artist and artist not in NO_ARTIST else []
    known += [f"source {source}"] if source else []
    return known or [f"track {track.id}"]


def split_tracks(groups: dict[str, list[str]], validation: float, seed: int) -> dict[str, str]:
    """Give every track its split; tracks that share a key, directly or by way of others, have the same one.

    Which split it is depends on a hash of the group's first key and of the seed alone, so a set that grows keeps its
    splits but for groups that grow together. If chance gives a split no group, the nearest group is moved there; a
    single group is to train on.

    Args:
        groups: id -> its keys, see [`keys_of`].
        validation: share of the groups, from 0 to below 1.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for keys in groups.values():
        for key in keys:
            one, other = sorted((root(keys[0]), root(key)))
            parents[other] = one
    chances = {key: _chance(key, seed) for key in sorted({root(keys[0]) for keys in groups.values()})}
    held = {key for key, chance in chances.items() if chance < validation}
    if validation > 0 and len(held) in (0, len(chances)):
        by_chance = sorted(chances, key=chances.__getitem__)
        held = set(by_chance[: 1 if not held else -1]) if len(chances) > 1 else set()
    return {name: SPLITS[root(keys[0]) in held] for name, keys in groups.items()}


def _chance(key: str, seed: int) -> float:
    """Return a number from 0 to 1 that is drawn from a key and a seed."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
