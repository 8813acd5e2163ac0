"""Rank tracks for queries in two stages: estimates of all, exact scores of the best.

    fixed        tracks are scored exactly in the order of their estimates, until 8 times as many are scored as the
                 place of the last one that is among the best k; or so many as the caller says
    calibrated   likewise until the next one, even if its score is above its estimate by all that was seen on other
                 queries (delta), would come below the k-th
    exact        all are scored exactly

A list is certified if nothing outside of it can belong to it: all tracks were scored; or, calibrated, with the
probability that was asked for when delta was measured. Scores depend on query and track alone, so lists of parts of a
library are merged by their scores, and the result is that of the whole.

Dimensions: `A` tracks, `B` texts, `Q` sentences of a text, `D` shared width.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .estimates import is_flat, is_sharp
from .rescoring import Tokens, score_tracks
from .scan import Scan
from .score_function import ScoreFunction

MODES = ("fixed", "calibrated", "exact")
# Chosen by what holds the true best, and how that grows with the library: docs/search.md says what was measured.
CANDIDATES = 50  # at least; and at most where the score is near its estimate: one vector of a text, not sharp
# At most, times the root of the number of tracks, or so many: sentences in order, or in any; where attention is sharp.
OF_PATHS, OF_SENTENCES, OF_SHARP = (8, 256), (12, 256), (16, 256)
SETTLED = 8  # times the place of the last of the best k by estimate: so many are scored, see [`Ranker`]
CALIBRATED_STEP = 16  # tracks that are scored between two looks at the rule


@dataclass(frozen=True)
class Ranking:
    """Hold the tracks found for one query, the best first.

    Attributes:
        tracks: (k,) numbers.
        scores: (k,) exact ones, or estimates.
        is_rescored: whether the scores are exact.
        is_certified: whether nothing else can belong here, see the top of this file.
        num_rescored: how many tracks were scored exactly.
        copies: of each track those that are copies of it and would stand here too; empty if that was not asked.
        num_passed: how many copies of the track that the query is made of were passed over.
    """

    tracks: np.ndarray
    scores: np.ndarray
    is_rescored: bool
    is_certified: bool
    num_rescored: int
    copies: tuple[tuple[int, ...], ...] = ()
    num_passed: int = 0

    def first(self, k: int) -> "Ranking":
        """Return the best k of it."""
        return replace(self, tracks=self.tracks[:k], scores=self.scores[:k])


@dataclass(frozen=True)
class Texts:
    """Hold queries as sums of texts.

    Attributes:
        embeds: (B, Q, D) unit vectors, zeros where a text has fewer sentences.
        signs: (B, queries) by which the scores of texts count.
    """

    embeds: torch.Tensor
    signs: torch.Tensor

    def of_query(self, query: int) -> "Texts":
        """Return the texts of one query alone."""
        own = self.signs[:, query].nonzero().squeeze(1)
        embeds = self.embeds[own]  # (own, Q, D)
        most = int(embeds.any(-1).sum(-1).max())
        return Texts(embeds[:, :most], self.signs[own][:, query : query + 1])


def texts_of(queries: Sequence, against: Sequence = ()) -> Texts:
    """Put queries together: the texts of all, (B, Q, D), and that those of `against` count less one in each.

    Args:
        queries, against: with `embeds` (Q, D) each.
    """
    embeds = pad_sequence([query.embeds for query in (*queries, *against)], batch_first=True)  # (B, Q, D)
    signs = torch.zeros(len(embeds), len(queries))
    signs[: len(queries)] = torch.eye(len(queries))
    signs[len(queries) :] = -1.0
    return Texts(embeds, signs)


def most_candidates(function: ScoreFunction, num_tracks: int) -> int:
    """Return how many tracks are scored exactly at most: they hold over 99 % of the best ten of all."""
    if is_flat(function):
        return CANDIDATES
    if function.gamma_path is not None:
        growth, least = OF_PATHS
    else:
        growth, least = OF_SHARP if is_sharp(function) else OF_SENTENCES
    return max(least, math.ceil(growth * math.sqrt(num_tracks)))


def sort_order(scores: np.ndarray, tracks: np.ndarray) -> np.ndarray:
    """Return the order from the highest score to the lowest; of equal ones the lower number goes first."""
    return np.lexsort((tracks, -scores))


class Ranker:
    """Rank the tracks of an index.

    Args:
        function: the score.
        scan: for estimates.
        tokens: returns the tokens of the track of a number.
    """

    def __init__(self, function: ScoreFunction, scan: Scan, tokens: Callable[[int], Tokens]):
        self.function, self.scan, self.tokens = function, scan, tokens

    def exact(self, texts: Texts, tracks: np.ndarray) -> np.ndarray:
        """Score tracks exactly with queries: (A, queries)."""
        found = score_tracks(self.function, texts.embeds, [self.tokens(int(track)) for track in tracks])  # (A, B)
        return (found @ texts.signs).numpy()

    def rank(
        self,
        texts: Texts,
        tracks: np.ndarray,
        k: int,
        mode: str = "fixed",
        candidates: int | None = None,
        delta: float | None = None,
    ) -> list[Ranking]:
        """Find the best tracks for each query.

        Args:
            texts: the queries.
            tracks: numbers of those that may be found.
            k: how many are to be the best; more are returned where more were scored, but for `calibrated`.
            mode: one of [`MODES`].
            candidates: tracks that are scored in the mode `fixed`; 0 for k by their estimates alone; None to score
                until the best k are settled.
            delta: of the mode `calibrated`.
        """
        if mode == "exact":
            scores = self.exact(texts, tracks).T  # (queries, A)
            return [_ranking(tracks, one, len(tracks)) for one in scores]
        most = most_candidates(self.function, len(tracks)) if candidates is None else candidates
        at_least = max(most, k) if mode == "fixed" else k
        estimates = self.scan.estimate(self.function, texts.embeds, texts.signs, tracks, at_least)
        rankings = []
        for query, (found, estimate) in enumerate(estimates):
            order = sort_order(estimate, found)
            found, estimate, own = found[order], estimate[order], texts.of_query(query)
            if mode == "calibrated":
                rankings.append(self._calibrated(own, found, estimate, k, delta, len(tracks)))
            elif candidates == 0:
                rankings.append(Ranking(found[:k], estimate[:k], False, False, 0))
            else:
                found = found[:at_least]
                scores = self._settled(own, found, k) if candidates is None else self.exact(own, found)[:, 0]
                rankings.append(_ranking(found[: len(scores)], scores, len(tracks)))
        return rankings

    def _settled(self, texts: Texts, found: np.ndarray, k: int) -> np.ndarray:
        """Score tracks, sorted by estimate, until [`SETTLED`] times as many are scored as the place of the last that is
        among the best k, or all."""

        def wanted(scores: np.ndarray) -> int:
            if not len(scores):
                return max(CANDIDATES, k)
            return SETTLED * (1 + sort_order(scores, found[: len(scores)])[:k].max())

        return self._scored(texts, found, wanted)

    def _calibrated(self, texts, found, estimate, k: int, delta: float, num_tracks: int) -> Ranking:
        """Score tracks, sorted by estimate, until no other is expected among the best k."""

        def wanted(scores: np.ndarray) -> int:
            done = len(scores)
            if k <= done < len(found) and estimate[done] + delta < np.partition(scores, -k)[-k]:
                return done
            return done + max(CALIBRATED_STEP, k - done)

        scores = self._scored(texts, found, wanted)
        done = len(scores)
        is_certified = done < len(found) or len(found) == num_tracks  # else the last step's tracks are used up
        return replace(_ranking(found[:done], scores, num_tracks), is_certified=is_certified).first(k)

    def _scored(self, texts: Texts, found: np.ndarray, wanted: Callable[[np.ndarray], int]) -> np.ndarray:
        """Score the first tracks with one query, step by step, until there are as many scores as `wanted` says of those
        that there are, or all."""
        scores = np.empty(0, np.float32)
        while len(step := found[len(scores) : wanted(scores)]):
            scores = np.concatenate([scores, self.exact(texts, step)[:, 0]])
        return scores


def _ranking(tracks: np.ndarray, scores: np.ndarray, num_tracks: int) -> Ranking:
    """Sort tracks by their exact scores, which certifies them if those are all."""
    order = sort_order(scores, tracks)
    return Ranking(tracks[order], scores[order], True, len(tracks) == num_tracks, len(tracks))


def merge_hits(parts: Sequence[list], k: int, indexes: Sequence = ()) -> list:
    """Merge the hits of one query in parts of a library: the best k of all, as if it had been searched whole.

    Args:
        parts: the k best hits of every part.
        indexes: the [`TrackIndex`] of every part: then hits that are copies of a better one of another part are no hits
            of their own but its `copies`, as within a part.
    """
    hits = [(hit, index) for part, index in zip(parts, indexes or [None] * len(parts), strict=True) for hit in part]
    kept: list[tuple] = []  # a hit, the index of its part, its copies
    for hit, index in sorted(hits, key=lambda one: (-one[0].score, os.fsencode(one[0].path))):
        copies = next((copies for first, own, copies in kept if _are_copies(first, own, hit, index)), None)
        if copies is not None:
            copies += [hit.path, *hit.copies]
        elif len(kept) == k:
            break
        else:
            kept.append((hit, index, [*hit.copies]))
    return [replace(hit, rank=rank, copies=tuple(copies)) for rank, (hit, _, copies) in enumerate(kept, 1)]


def _are_copies(hit, index, other, another) -> bool:
    """Tell whether two hits of different indexes are copies; those of one are folded already."""
    return index is not another and index.copies.evidence(hit.track, other.track, another.copies) is not None
