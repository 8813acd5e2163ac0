"""List tracks that are copies of one recording, by how their tokens align over time: `collap duplicates`.

    collap duplicates --index music.index
    collap duplicates --index music.index --json

Two songs of one style have like means, and a cover has a like course; a copy has the same changes at the same moments.
So what changes slowly is taken away from the tokens of both tracks, and what is left is compared at every lag. A copy is
what aligns at one lag alone (a loop aligns at many), nearly from end to end, and is about as long. Files with the same
samples are copies without any of that.

Only copies are listed: a remaster of another length, an edit or a live take is none, and nothing is said of it.

Dimensions: `N` tracks, `T`, `U` tokens of two tracks, `L` lags, `P` passages, `D` shared width.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from .library import shown
from .quantize import dequantize_rows
from .store import IndexStore

MIN_MEAN_COSINE = 0.5  # of the means of two tracks, without that of the library, for them to be aligned
MAX_SECONDS_APART = 3.0  # between the lengths of copies, and between their starts
MIN_SHARE = 0.9  # of the passages of the shorter track that align
MIN_COSINE = 0.35  # of aligned tokens, the median
MIN_MARGIN = 0.12  # by which it is above what any lag that is more than a second away has
MIN_PASSAGES = 4  # fewer say nothing
SLOW_TOKENS = 12  # tokens to either side, the mean of which is what changes slowly
PASSAGE_TOKENS = 48  # that have to agree about the lag among themselves
LAG_TOLERANCE = 1  # tokens by which a passage may disagree: segments begin elsewhere in a copy that is shifted
BLOCK = 1024  # tracks that are compared with all others at a time


@dataclass(frozen=True)
class Evidence:
    """Say how two tracks align.

    Attributes:
        offset_seconds: by which the second one is behind the first.
        share: of the passages of the shorter track that align.
        cosine: of aligned tokens, without what changes slowly; the median.
        background: the highest mean cosine at any lag more than a second away.
        same_sound: whether their samples are the same, which needs no other evidence.
    """

    offset_seconds: float
    share: float
    cosine: float
    background: float
    same_sound: bool = False


@dataclass(frozen=True)
class Group:
    """Hold copies of one recording: their numbers in the store, the longest first, and of each other how it aligns
    with the first."""

    tracks: tuple[int, ...]
    evidence: tuple[Evidence, ...]


# ---- pure functions


def quick_changes(tokens: torch.Tensor, reach: int = SLOW_TOKENS) -> torch.Tensor:
    """Take from every token (T, D) the mean of those up to `reach` before and after it, and scale to unit norm.

    A token that is that mean, as in silence, becomes zeros.
    """
    sums = torch.cat([torch.zeros(1, tokens.shape[1]), tokens.cumsum(0)])  # (T + 1, D)
    places = torch.arange(len(tokens))
    first, last = (places - reach).clamp(min=0), (places + reach + 1).clamp(max=len(tokens))
    left = tokens - (sums[last] - sums[first]) / (last - first).unsqueeze(-1)  # (T, D)
    norms = left.norm(dim=-1, keepdim=True)
    return torch.where(norms > 1e-3, left / norms.clamp(min=1e-3), 0.0)  # (T, D)


def lag_cosines(one: torch.Tensor, other: torch.Tensor, most: int) -> torch.Tensor:
    """Average the cosines of the tokens (T, D) and (U, D) that a lag puts together, for all lags up to `most`.

    By the Fourier transform: `one[t]` and `other[t + lag]` of all t are summed without the matrix of their cosines.

    Returns:
        (L,) for the lags -most to most; 0 where under half of the shorter one overlaps.
    """
    size = 2 ** (len(one) + len(other) - 1).bit_length()
    spectrum = (torch.fft.rfft(one, size, dim=0).conj() * torch.fft.rfft(other, size, dim=0)).sum(1)
    sums = torch.fft.irfft(spectrum, size)  # (size,) lag modulo size
    lags = torch.arange(-most, most + 1)
    overlaps = (len(other) - lags).clamp(max=len(one)) - (-lags).clamp(min=0)  # (L,)
    means = sums[lags % size] / overlaps.clamp(min=1)  # (L,)
    return torch.where(2 * overlaps >= min(len(one), len(other)), means, 0.0)


def aligned_passages(one: torch.Tensor, other: torch.Tensor, lag: int, reach: int) -> torch.Tensor:
    """Tell which passages of two tracks (T, D), (U, D) agree with a lag: (P,) bool.

    A passage agrees if no lag within `reach` of it, but those next to it, puts its tokens together better. Another take
    drifts: its passages want another lag each. P counts whole passages of the shorter track; those that have no
    counterpart do not agree.
    """
    if len(one) > len(other):
        one, other, lag = other, one, -lag
    agrees = []
    for first in range(0, len(one) - PASSAGE_TOKENS + 1, PASSAGE_TOKENS):
        passage = one[first : first + PASSAGE_TOKENS]
        start, stop = first + lag - reach, first + lag + PASSAGE_TOKENS + reach
        there = other[max(start, 0) : max(stop, 0)]  # as much of it as there is
        cosines = passage @ there.T  # (PASSAGE_TOKENS, tokens there)
        shifts = range(cosines.shape[1] - PASSAGE_TOKENS + 1)
        means = torch.stack([cosines.diagonal(shift).mean() for shift in shifts]) if len(shifts) else torch.zeros(1)
        best = max(start, 0) + int(means.argmax()) - first - lag
        agrees.append(len(shifts) > 0 and abs(best) <= LAG_TOLERANCE and float(means.max()) > 0)
    return torch.tensor(agrees, dtype=torch.bool)  # (P,)


def align(one: torch.Tensor, other: torch.Tensor, token_seconds: float) -> Evidence | None:
    """Find the lag at which the tokens (T, D) and (U, D) of two tracks align best, and how well; None if too short.

    Args:
        token_seconds: from one token to the next.
    """
    if min(len(one), len(other)) < MIN_PASSAGES * PASSAGE_TOKENS:
        return None
    one, other = quick_changes(one), quick_changes(other)
    near, most = max(1, round(MAX_SECONDS_APART / token_seconds)), min(len(one), len(other)) // 2
    means = lag_cosines(one, other, most)  # (L,)
    lag = int(means[most - near : most + near + 1].argmax()) - near
    distances = (torch.arange(-most, most + 1) - lag).abs()
    background = float(means[distances > 1 / token_seconds].max())
    first, stop = max(0, -lag), min(len(one), len(other) - lag)
    cosines = (one[first:stop] * other[first + lag : stop + lag]).sum(-1)  # (overlap,)
    share = float(aligned_passages(one, other, lag, near).float().mean())
    return Evidence(lag * token_seconds, share, float(cosines.median()), background)


def is_copy(found: Evidence, seconds_apart: float) -> bool:
    """Decide whether two tracks whose lengths are so far apart are copies of one recording."""
    return found.same_sound or (
        abs(seconds_apart) <= MAX_SECONDS_APART
        and found.share >= MIN_SHARE
        and found.cosine >= MIN_COSINE
        and found.cosine - found.background >= MIN_MARGIN
    )


def close_pairs(means: torch.Tensor, seconds: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of tracks, the smaller number first, whose means (N, D) are alike and whose lengths (N,) are near.

    Tracks are compared in the order of their lengths, so a block meets only those that may be its copies.
    """
    left = normalize(means - means.mean(0), dim=-1) if len(means) > 2 else normalize(means, dim=-1)  # (N, D)
    order = np.argsort(seconds, kind="stable")
    ordered, lengths = left[torch.from_numpy(order)], seconds[order]
    for first in range(0, len(order), BLOCK):
        block = ordered[first : first + BLOCK]
        stop = int(np.searchsorted(lengths, lengths[first + len(block) - 1] + MAX_SECONDS_APART, "right"))
        for second in range(first, stop, BLOCK):
            cosines = block @ ordered[second : min(second + BLOCK, stop)].T  # (block, block)
            for row, column in (cosines >= MIN_MEAN_COSINE).nonzero().tolist():
                one, other = first + row, second + column
                if one < other and lengths[other] - lengths[one] <= MAX_SECONDS_APART:
                    yield tuple(sorted((int(order[one]), int(order[other]))))


# ---- of an index


def same_recording(store: IndexStore, one: int, other: int) -> Evidence | None:
    """Say how two tracks of an index align if they are copies of one recording; None if they are not, or if their
    tokens do not tell."""
    if _sound(store, one) == _sound(store, other):
        return Evidence(0.0, 1.0, 1.0, 0.0, same_sound=True)
    lengths = [store.tracks["seconds"][track].as_py() for track in (one, other)]
    if abs(lengths[0] - lengths[1]) > MAX_SECONDS_APART:
        return None
    tokens = [_tokens(store, track) for track in (one, other)]
    step = min(length / len(each) for length, each in zip(lengths, tokens, strict=True))
    found = align(*tokens, step / store.settings["stride"])
    return found if found and is_copy(found, lengths[0] - lengths[1]) else None


def groups(store: IndexStore) -> list[Group]:
    """Find all copies in an index: groups of two tracks or more, each of which is a copy of the first, the longest.

    A copy of a copy that is none of the first stays out: chains put different songs together.
    """
    seconds = store.tracks["seconds"].to_numpy()
    partners: dict[int, set[int]] = {}
    for one, other in [*_same_sounds(store), *close_pairs(_means(store), seconds)]:
        partners.setdefault(one, set()).add(other)
        partners.setdefault(other, set()).add(one)
    found, taken = [], set()
    for first in sorted(partners, key=lambda track: (-seconds[track], track)):
        if first in taken:
            continue
        others = ((other, same_recording(store, first, other)) for other in sorted(partners[first] - taken))
        copies = [(other, evidence) for other, evidence in others if evidence]
        if copies:
            tracks = (first, *(other for other, _ in copies))
            taken |= {*tracks}
            found.append(Group(tracks, tuple(evidence for _, evidence in copies)))
    return sorted(found, key=lambda group: min(group.tracks))


def _sound(store: IndexStore, track: int) -> str:
    """Return the digest of the samples of a track."""
    shard, row = (store.tracks[name][track].as_py() for name in ("shard", "row"))
    return store.shards[shard].rows["sound"][row].as_py()


def _tokens(store: IndexStore, track: int) -> torch.Tensor:
    vectors = store.vectors(track)
    return dequantize_rows(vectors["tokens"], vectors["token_scales"])  # (T, D)


def _means(store: IndexStore) -> torch.Tensor:
    """Return the means (N, D) of all tracks; 0.1 GB for 50,000 tracks of 512 numbers."""
    found = [store.vectors(track) for track in range(len(store.tracks))]
    if not found:
        return torch.zeros(0, 1)
    return torch.cat([dequantize_rows(one["means"], one["mean_scales"]) for one in found])  # (N, D)


def _same_sounds(store: IndexStore) -> Iterator[tuple[int, int]]:
    """Yield pairs of every two tracks that have the same samples."""
    known: dict[str, list[int]] = {}
    for track in range(len(store.tracks)):
        tracks = known.setdefault(_sound(store, track), [])
        yield from ((earlier, track) for earlier in tracks)
        tracks.append(track)


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
        f"{one.offset_seconds:+.2f} s, {one.share:.0%} aligns, cosine {one.cosine:.2f} where other lags have "
        f"{one.background:.2f} at most"
    )


def _described(store: IndexStore, group: Group) -> list[dict]:
    """Return the tracks of a group as JSON has them, each but the first with its evidence."""
    named = [{"id": store.tracks["id"][track].as_py(), "path": store.path(track)} for track in group.tracks]
    return [named[0], *({**name, **asdict(one)} for name, one in zip(named[1:], group.evidence, strict=True))]
