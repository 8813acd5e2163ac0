"""List tracks that are copies of one recording: `collap duplicates`.

    collap duplicates --index music.index
    collap duplicates --index music.index --json

Tracks of near length and like means are candidates. Their tokens are aligned in time, without what changes slowly:
songs of one style fall out here. Tokens do not tell a cover on the same drums from a copy at a low bit rate, so what is
left is read again, and the fingerprints of the sound decide (`collap.data.fingerprints`): at one offset every passage
of 4 s has to agree, and none may stand out. One other section, melody or instrument makes two recordings. Files that
cannot be read again are no copies, unless their samples were the same.

Only copies are listed: a remaster of another length, an edit or a live take is none, and nothing is said of it.

Dimensions: `N` tracks, `T`, `U` tokens of two tracks, `L` lags, `F`, `G` frames of two fingerprints, `P` passages, `D`
shared width.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from collap.corpora.duplicates import is_sound, track_fingerprint
from collap.corpora.tracks import RATE
from collap.data.fingerprints import HOP, bit_error
from collap.data.fingerprints import RATE as PRINT_RATE
from processing.decode_audio import AudioFileError, load_audio

from .library import shown
from .quantize import dequantize_rows
from .store import IndexStore

MIN_MEAN_COSINE = 0.3  # of the means of two tracks, without that of the library, for them to be aligned
MAX_SECONDS_APART = 3.0  # between the lengths of copies, and between their starts
MIN_COSINE = 0.3  # of aligned tokens, the median: below it the files are not read again
MIN_TOKENS = 64  # that have to overlap: fewer say nothing
PASSAGE_FRAMES = round(4 * PRINT_RATE / HOP)
MAX_PASSAGE_ERROR = 0.32  # share of bits that differ in the worst passage
MAX_STANDING_OUT = 0.16  # of the worst passage over all of the track: a low bit rate is bad everywhere
SEARCHED_FRAMES = 5  # of which one is compared while the offset is looked for
SLOW_TOKENS = 12  # tokens to either side, the mean of which is what changes slowly
BLOCK = 1024  # tracks that are compared with all others at a time


@dataclass(frozen=True)
class Evidence:
    """Say how two tracks align.

    Attributes:
        offset_seconds: by which the second one is behind the first.
        share: of the shorter track that overlaps with the other at that offset.
        cosine, background: median of aligned tokens, without what changes slowly, and the highest mean at any lag that
            is more than a second away.
        error, worst_error: share of bits of the fingerprints that differ in all, and in the worst passage of 4 s.
        same_sound: whether the samples are the same, which needs no other evidence.
    """

    offset_seconds: float
    share: float
    cosine: float
    background: float
    error: float
    worst_error: float
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


def token_cosines(one: torch.Tensor, other: torch.Tensor, token_seconds: float) -> tuple[float, float] | None:
    """Align the tokens (T, D) and (U, D) of two tracks: median cosine at the best lag, and the highest mean elsewhere.

    Args:
        token_seconds: from one token to the next.

    Returns:
        None if they are too short to tell.
    """
    near, shorter = max(1, round(MAX_SECONDS_APART / token_seconds)), min(len(one), len(other))
    most = shorter // 2
    if shorter < MIN_TOKENS or most <= near:
        return None
    one, other = quick_changes(one), quick_changes(other)
    means = lag_cosines(one, other, most)  # (L,)
    lag = int(means[most - near : most + near + 1].argmax()) - near
    distances = (torch.arange(-most, most + 1) - lag).abs()  # (L,)
    first, stop = max(0, -lag), min(len(one), len(other) - lag)
    cosines = (one[first:stop] * other[first + lag : stop + lag]).sum(-1)  # (overlap,)
    return float(cosines.median()), float(means[distances > max(1, 1 / token_seconds)].max())


def best_offset(one: np.ndarray, other: np.ndarray) -> int:
    """Return the frame of a fingerprint (G,) at which frame 0 of another (F,) lies, within 3 s, by fewest bits."""
    most = round(MAX_SECONDS_APART * PRINT_RATE / HOP)
    errors = {}
    for offset in sorted(range(-most, most + 1), key=abs):
        first, stop = _overlap(one, other, offset)
        if stop - first >= PASSAGE_FRAMES:
            places = np.arange(first, stop, SEARCHED_FRAMES)
            errors[offset] = bit_error(one[places], other[places + offset])
    return min(errors, key=errors.get, default=0)


def passage_errors(one: np.ndarray, other: np.ndarray, offset: int) -> np.ndarray:
    """Return the share of bits that differ in each passage of 4 s that two fingerprints (F,), (G,) share: (P,).

    Passages of silence are left out; one that is silent in one track alone differs in half of its bits.
    """
    first, stop = _overlap(one, other, offset)
    errors = []
    for start in range(first, stop - PASSAGE_FRAMES + 1, PASSAGE_FRAMES):
        here, there = one[start : start + PASSAGE_FRAMES], other[start + offset : start + offset + PASSAGE_FRAMES]
        sound, other_sound = is_sound(here), is_sound(there)
        both = sound & other_sound
        if both.sum() >= PASSAGE_FRAMES // 4:
            errors.append(bit_error(here[both], there[both]))
        elif max(sound.sum(), other_sound.sum()) >= PASSAGE_FRAMES // 2:
            errors.append(0.5)
    return np.array(errors)  # (P,)


def _overlap(one: np.ndarray, other: np.ndarray, offset: int) -> tuple[int, int]:
    return max(0, -offset), min(len(one), len(other) - offset)


def are_copies(errors: np.ndarray) -> bool:
    """Decide by the errors (P,) of passages whether two tracks of one length are copies."""
    return len(errors) > 0 and errors.max() <= min(MAX_PASSAGE_ERROR, errors.mean() + MAX_STANDING_OUT)


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
    """Say how two tracks of an index align if they are copies of one recording; None if they are not, or if that cannot
    be told. Reads both files again if their tokens align and their samples are not the same."""
    if _sound(store, one) == _sound(store, other):
        return Evidence(0.0, 1.0, 1.0, 0.0, 0.0, 0.0, same_sound=True)
    lengths = [store.tracks["seconds"][track].as_py() for track in (one, other)]
    if abs(lengths[0] - lengths[1]) > MAX_SECONDS_APART:
        return None
    tokens = [_tokens(store, track) for track in (one, other)]
    step = min(length / len(each) for length, each in zip(lengths, tokens, strict=True))
    cosines = token_cosines(*tokens, step / store.settings["stride"])
    if cosines is None or cosines[0] < MIN_COSINE:
        return None
    try:
        prints = [track_fingerprint(load_audio(store.library / store.path(track), RATE)) for track in (one, other)]
    except (AudioFileError, OSError):
        return None  # the file has gone, or is another one by now
    offset = best_offset(*prints)
    errors = passage_errors(*prints, offset)
    if not are_copies(errors):
        return None
    first, stop = _overlap(*prints, offset)
    share = (stop - first) / min(map(len, prints))
    return Evidence(offset * HOP / PRINT_RATE, share, *cosines, float(errors.mean()), float(errors.max()))


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
        f"{one.offset_seconds:+.2f} s, {one.share:.0%} overlaps, {one.error:.1%} of bits differ and "
        f"{one.worst_error:.1%} at worst, cosine {one.cosine:.2f} (at other lags {one.background:.2f})"
    )


def _described(store: IndexStore, group: Group) -> list[dict]:
    """Return the tracks of a group as JSON has them, each but the first with its evidence."""
    named = [{"id": store.tracks["id"][track].as_py(), "path": store.path(track)} for track in group.tracks]
    return [named[0], *({**name, **asdict(one)} for name, one in zip(named[1:], group.evidence, strict=True))]
