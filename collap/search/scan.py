"""Find candidates by brute force over a few vectors of each track: the first stage of a search.

Estimates of the score (`estimates.py`) in up to three steps, each for fewer tracks and nearer to the score: by the mean
of a track, where that says enough; by its segments; by its segments with sentences in their order, where the score
knows one.

No index over the vectors: at these sizes a scan of bytes is as fast as what approximates it, and it misses nothing
(docs/search.md).

Dimensions: `N` tracks of the index, `A` tracks that are looked at, `B` texts, `Q` sentences of a text, `R` rows of all
texts, `S` segments of a track, `D` shared width.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch

from .engine import Engine
from .estimates import is_flat, mean_rows, segment_scores
from .quantize import cosines_with, rough_cosines
from .rescoring import CELLS_AT_A_TIME, like_lengths
from .score_function import ScoreFunction
from .segments import MOST_SEGMENTS, frame_size
from .vectors import Vectors

MIN_ORDERED, ORDERED = 1024, 16  # tracks whose sentences are placed in order: at least, times the root of all tracks
BLOCK_CELLS = 2**24  # numbers of segments, and of their cosines, that are held at a time


def kept_by_means(function: ScoreFunction, num_tracks: int) -> int:
    """Return of how many tracks the segments are read: some of a large library where the score is near what the mean
    says. Else of all: the mean of a track hides its best moments, and which part of it fits which sentence."""
    return max(2048, num_tracks // 50) if is_flat(function) else num_tracks


def kept_by_segments(num_tracks: int) -> int:
    """Return of how many tracks sentences are placed in order, where the score knows one."""
    return max(MIN_ORDERED, math.ceil(ORDERED * math.sqrt(num_tracks)))


class Scan:
    """Estimate scores of the tracks of an index, from segments that are mapped into memory.

    Args:
        shards: the vectors of every shard.
        places: (N,) number of the shard of every track; (N,) its row there.
        engine: that proposes tracks, if it is not to be all whose means score high.
    """

    def __init__(self, shards: Sequence[Vectors], places: tuple[np.ndarray, np.ndarray], engine: Engine | None = None):
        self.shards, self.engine = list(shards), engine
        self.segments = [shard["segments"].numpy() for shard in self.shards]  # (S of a shard, D) int8 each
        self.shard, self.row = (place.astype(np.int64) for place in places)
        self.first, self.count = self._spans("segment_offsets")  # (N,) segments of a track, within its shard
        self.scales, self.tokens = (self._joined(name) for name in ("segment_scales", "segment_tokens"))
        sizes = [len(shard["segments"]) for shard in self.shards]
        self.base = np.cumsum([0, *sizes])  # (shards + 1,) of a shard's segments in those two

    def _spans(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return for every track where its rows begin in its shard, and how many they are."""
        offsets = [shard[name].numpy() for shard in self.shards]
        base = np.cumsum([0, *map(len, offsets)])[self.shard] + self.row
        offsets = np.concatenate([np.zeros(0, np.int64), *offsets])
        return offsets[base], offsets[base + 1] - offsets[base] if len(base) else offsets[base]

    def _joined(self, name: str) -> torch.Tensor:
        return torch.cat([torch.zeros(0), *(shard[name].float() for shard in self.shards)])

    def __len__(self) -> int:
        return len(self.shard)

    @cached_property
    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean token of every track, codes (N, D) and scales (N,); in memory, D + 4 bytes a track."""
        codes = torch.empty(len(self), self.shards[0]["means"].shape[1], dtype=torch.int8)
        scales = torch.empty(len(self))
        for number, places in self._by_shard(np.arange(len(self))):
            rows = torch.from_numpy(self.row[places])
            codes[places], scales[places] = (self.shards[number][name][rows] for name in ("means", "mean_scales"))
        return codes, scales

    def estimate(
        self,
        function: ScoreFunction,
        text_embeds: torch.Tensor,
        signs: torch.Tensor,
        tracks: np.ndarray,
        at_least: int = 0,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Estimate the scores of tracks with queries, each of which is a sum of texts.

        Args:
            text_embeds: (B, Q, D).
            signs: (B, queries) by which the scores of texts count.
            tracks: numbers of those that may be found.
            at_least: how many of them every step looks at, if there are so many.

        Returns:
            For each query the tracks that the last step looked at, and their estimates: the best of [`kept_by_means`]
            and of [`kept_by_segments`]. An engine proposes tracks instead, unless they are filtered: it knows of no
            filter.
        """
        asked = function, text_embeds, signs
        if self.engine is not None and len(tracks) == len(self):
            promising = self._proposed(*asked)
        elif len(tracks) > (kept := max(kept_by_means(function, len(tracks)), at_least)):
            promising = self._best_by_means(*asked, tracks, kept)
        else:
            kept = max(kept_by_segments(len(tracks)), at_least)
            is_last = function.gamma_path is None or len(tracks) <= kept  # no further step, or one for all of them
            estimates = (self.segment_estimates(function, text_embeds, tracks, is_last) @ signs).T  # (queries, A)
            if is_last:
                return [(tracks, one.numpy()) for one in estimates]
            promising = _best(estimates, tracks, kept)
        return [
            (best, self._query_estimates(function, text_embeds, signed, best))
            for best, signed in zip(promising, signs.T, strict=True)
        ]

    def _proposed(
        self, function: ScoreFunction, text_embeds: torch.Tensor, signs: torch.Tensor
    ) -> Iterator[np.ndarray]:
        """Yield for each query the numbers, in order, of the tracks that the engine proposes."""
        vectors = signs.T @ mean_rows(function, text_embeds)  # (queries, D)
        for vector, signed in zip(vectors, signs.T, strict=True):
            segments = function.rows(text_embeds[signed > 0])  # (R, D)
            yield self.engine.propose(vector.unsqueeze(0), segments[segments.any(-1)])

    def _best_by_means(
        self, function: ScoreFunction, text_embeds: torch.Tensor, signs: torch.Tensor, tracks: np.ndarray, kept: int
    ) -> Iterator[np.ndarray]:
        """Yield for each query the numbers, in order, of the tracks whose means promise the most."""
        codes, scales = self.means
        if len(tracks) < len(self):
            codes, scales = codes[tracks], scales[tracks]
        vectors = signs.T @ mean_rows(function, text_embeds)  # (queries, D)
        return _best(rough_cosines(vectors, codes, scales), tracks, kept)

    def _query_estimates(
        self, function: ScoreFunction, text_embeds: torch.Tensor, signed: torch.Tensor, tracks: np.ndarray
    ) -> np.ndarray:
        """Estimate the scores (A,) of tracks with one query, by the signs (B,) of its texts, sentences in order."""
        own = signed.nonzero().squeeze(1)
        return (self.segment_estimates(function, text_embeds[own], tracks, in_order=True) @ signed[own]).numpy()

    def segment_estimates(
        self, function: ScoreFunction, text_embeds: torch.Tensor, tracks: np.ndarray, in_order: bool = False
    ) -> torch.Tensor:
        """Estimate the scores of tracks with texts (B, Q, D) from their segments, see [`segment_scores`]: (A, B)."""
        rows = function.rows(text_embeds)  # (R, D)
        cosines_of = cosines_with(rows)
        scores = torch.empty(len(tracks), len(text_embeds))  # (A, B)
        at_a_time = max(1, BLOCK_CELLS // (MOST_SEGMENTS * max(len(rows), rows.shape[1] // 4)))
        order = np.argsort(self.shard[tracks], kind="stable")  # shard by shard
        for start in range(0, len(tracks), at_a_time):
            part = order[start : start + at_a_time]
            codes, places = self._gathered(tracks[part])
            cosines = cosines_of(codes, self.scales[places]).T  # (all segments, R)
            tokens, counts = self.tokens[places], self.count[tracks[part]]
            starts = np.cumsum(counts) - counts
            lengths = counts
            if in_order:  # which also lays a track out in steps
                totals = np.add.reduceat(tokens.numpy(), starts)  # (part,)
                lengths = np.maximum(counts, np.ceil(totals / frame_size(function.token_seconds)).astype(np.int64))
            for group in like_lengths(lengths, max(1, CELLS_AT_A_TIME // len(rows))):
                step = np.arange(counts[group].max())
                is_real = torch.from_numpy(step < counts[group, None])  # (group, S)
                place = torch.from_numpy(np.minimum(starts[group, None] + step, len(places) - 1))
                weights = torch.where(is_real, tokens[place], 0.0)  # (group, S)
                own = segment_scores(function, cosines[place], text_embeds, weights, in_order)
                scores[torch.from_numpy(part[group])] = own
        return scores

    def _gathered(self, tracks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy the segments of tracks, which come shard by shard: codes (all, D), and places in `scales` (all,)."""
        counts, shards = self.count[tracks], self.shard[tracks]
        ends = np.cumsum(counts)
        within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        local = np.repeat(self.first[tracks], counts) + within  # (all,) in their shards
        places = local + np.repeat(self.base[shards], counts)
        codes = np.empty((len(local), self.segments[0].shape[1]), np.int8)
        numbers, firsts = np.unique(shards, return_index=True)
        borders = [*(ends - counts)[firsts].tolist(), len(local)]
        for number, first, last in zip(numbers.tolist(), borders, borders[1:], strict=False):
            self.segments[number].take(local[first:last], axis=0, out=codes[first:last], mode="clip")  # "raise" copies
        return torch.from_numpy(codes), torch.from_numpy(places)

    def _by_shard(self, tracks: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of a shard and the places in `tracks` of those that are in it."""
        shards = self.shard[tracks]
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        return zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)


def _best(estimates: torch.Tensor, tracks: np.ndarray, kept: int) -> Iterator[np.ndarray]:
    """Yield for each query, (queries, A), the numbers of the best tracks (A,), in order."""
    for one in estimates:
        yield np.sort(tracks[one.topk(kept, sorted=False).indices.numpy()])
