"""Find candidates by brute force over a few vectors of each track: the first stage of a search.

A track has the mean of its tokens and up to 32 segments of like sound (`segments.py`), each with its weight, the number
of its tokens. Its score is estimated by the model's own functions, on segments where the model has tokens:

    r^ = gamma_K mean(q . segments) + gamma_T E(q . segments)      each weighted by the frames that see it
         + gamma_S  mean over sentences of E(q_s . segments)       with an alignment; weighted by its tokens
         + gamma_M  mean of what fits each segment best: a sentence, or the blank

E is the mean that the score's softmax weighs. The last line knows no order, which is left to the exact score.

No index over the vectors: at these sizes a scan of bytes is as fast as what approximates it, and it misses nothing
(docs/search.md). Of a large library only tracks whose mean alone scores high get their segments read, where a mean says
enough.

Dimensions: `N` tracks of the index, `A` tracks that are looked at, `B` texts, `Q` sentences of a text, `R` rows of all
texts, `S` segments of a track, `D` shared width.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch

from modeling_collap.alignment_collap import free_scores, sentence_mask
from modeling_collap.scoring_collap import num_frames, softmax_mean

from .engine import Engine
from .quantize import quantized_cosines, rough_cosines
from .rescoring import CELLS_AT_A_TIME, like_lengths
from .score_function import ScoreFunction
from .segments import MOST_SEGMENTS
from .vectors import Vectors

SHARP = 0.5  # attention temperature below which few moments decide
BLOCK_CELLS = 2**24  # numbers of segments, and of their cosines, that are held at a time


def is_sharp(function: ScoreFunction) -> bool:
    """Tell whether few moments decide the score."""
    return function.attention_temperature < SHARP


def is_flat(function: ScoreFunction) -> bool:
    """Tell whether the score is near what the mean says: one vector of a text, attention that is not sharp."""
    return not function.has_sentences and not is_sharp(function)


def kept_by_means(function: ScoreFunction, num_tracks: int) -> int:
    """Return of how many tracks the segments are read: some of a large library where the score is near what the mean
    says. Else of all: the mean of a track hides its best moments, and which part of it fits which sentence."""
    return max(2048, num_tracks // 50) if is_flat(function) else num_tracks


def mean_rows(function: ScoreFunction, text_embeds: torch.Tensor) -> torch.Tensor:
    """Return the vectors (B, D) whose product with the mean token estimates the score of texts (B, Q, D)."""
    weights = function.gamma_kernel + function.gamma_temporal
    rows = weights * function.rows(text_embeds)[: len(text_embeds)]  # (B, D)
    if not function.has_sentences:
        return rows
    aligned = function.gamma_sentences + (function.gamma_path or 0.0)
    counts = sentence_mask(text_embeds).sum(-1, keepdim=True)  # (B, 1)
    return rows + aligned * text_embeds.sum(1) / counts


def segment_scores(
    function: ScoreFunction, cosines: torch.Tensor, text_embeds: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Estimate the scores of tracks with texts from their segments.

    Args:
        cosines: (A, S, R) of segments with [`ScoreFunction.rows`], finite in the padding too.
        text_embeds: (B, Q, D).
        weights: (A, S) tokens of every segment; 0 where a track has fewer.

    Returns:
        (A, B).
    """
    of_texts, of_sentences = function.split_rows(cosines, text_embeds)
    covered = frame_coverage(weights, function.kernel_size, function.stride)  # (A, S)
    covered = (covered / covered.sum(1, keepdim=True)).unsqueeze(-1)  # (A, S, 1)
    kernel = (of_texts * covered).sum(1)  # (A, B)
    temporal = softmax_mean(of_texts, function.attention_temperature, covered, dim=1)  # (A, B)
    gammas, tokens = (function.gamma_kernel, function.gamma_temporal), weights.sum(1)  # (A,)
    if function.score_reduction == "printed":  # sums that the other axis divides
        ratio = num_frames(tokens, function.kernel_size, function.stride) / function.kernel_size  # (A,)
        gammas = gammas[0] * ratio.unsqueeze(1), gammas[1] / ratio.unsqueeze(1)
    score = gammas[0] * kernel + gammas[1] * temporal
    if not function.has_sentences:
        return score
    cosines = of_sentences.unflatten(-1, (len(text_embeds), -1)).permute(0, 2, 3, 1)  # (A, B, Q, S)
    is_sentence = sentence_mask(text_embeds)  # (B, Q)
    score = score + function.gamma_sentences * free_scores(cosines, is_sentence, weights, function.sentence_temperature)
    if function.gamma_path is None:
        return score
    shares = (weights / tokens.unsqueeze(1)).unsqueeze(-1)  # (A, S, 1)
    return score + function.gamma_path * best_sentence_scores(cosines, is_sentence, shares, function.blank)


def frame_coverage(weights: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Count how often the frames of the score see segments: a token at the edge is in fewer frames than others, and
    one after the last whole frame in none.

    Args:
        weights: (A, S) tokens of consecutive segments.
        kernel_size, stride: of a frame, in tokens.

    Returns:
        (A, S) float32: summed over the tokens of a segment, the frames that a token is in.
    """
    ends = weights.double().cumsum(1)  # (A, S)
    frames = num_frames(ends[:, -1:], kernel_size, stride)  # (A, 1) W
    ended = (torch.div(ends - kernel_size, stride, rounding_mode="floor") + 1).clamp(min=0).minimum(frames)
    begun = torch.ceil(ends / stride).minimum(frames)  # of those that have not ended, some tokens are counted
    partly = (begun - ended) * ends - stride * (begun * (begun - 1) - ended * (ended - 1)) / 2
    counted = ended * kernel_size + partly  # (A, S) up to the end of each segment
    return counted.diff(dim=1, prepend=torch.zeros_like(ends[:, :1])).float()


def best_sentence_scores(
    cosines: torch.Tensor, is_sentence: torch.Tensor, shares: torch.Tensor, blank: float | None
) -> torch.Tensor:
    """Estimate the score of sentences in their order: every segment takes its best sentence, or none, in any order.

    Args:
        cosines: (A, B, Q, S).
        is_sentence: (B, Q) bool.
        shares: (A, S, 1) of a track that its segments are.
        blank: cosine of what no sentence describes, if there is such.

    Returns:
        (A, B).
    """
    best = cosines.masked_fill(~is_sentence.unsqueeze(-1), -torch.inf).amax(2)  # (A, B, S)
    if blank is not None:
        best = best.clamp(min=blank)
    return (best @ shares).squeeze(-1)


class Scan:
    """Estimate scores of the tracks of an index, from segments that are mapped into memory.

    Args:
        shards: the vectors of every shard.
        places: (N,) number of the shard of every track; (N,) its row there.
        engine: that proposes tracks, if it is not to be all whose means score high.
    """

    def __init__(self, shards: Sequence[Vectors], places: tuple[np.ndarray, np.ndarray], engine: Engine | None = None):
        self.shards, self.engine = list(shards), engine
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
        self, function: ScoreFunction, text_embeds: torch.Tensor, signs: torch.Tensor, tracks: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Estimate the scores of tracks with queries, each of which is a sum of texts.

        Args:
            text_embeds: (B, Q, D).
            signs: (B, queries) by which the scores of texts count.
            tracks: numbers of those that may be found.

        Returns:
            For each query the tracks whose segments were read, the best of [`kept_by_means`], and their estimates. An
            engine proposes them, unless the tracks are filtered: it knows of no filter.
        """
        if self.engine is not None and len(tracks) == len(self):
            return [self._proposed(function, text_embeds, signed) for signed in signs.T]
        kept = kept_by_means(function, len(tracks))
        if len(tracks) <= kept:
            estimates = self.segment_estimates(function, text_embeds, tracks) @ signs  # (A, queries)
            return [(tracks, one.numpy()) for one in estimates.T]
        codes, scales = self.means
        if len(tracks) < len(self):
            codes, scales = codes[tracks], scales[tracks]
        vectors = signs.T @ mean_rows(function, text_embeds)  # (queries, D)
        found = []
        for query, signed in zip(rough_cosines(vectors, codes, scales), signs.T, strict=True):
            best = np.sort(tracks[query.topk(kept, sorted=False).indices.numpy()])
            found.append((best, self._query_estimates(function, text_embeds, signed, best)))
        return found

    def _query_estimates(
        self, function: ScoreFunction, text_embeds: torch.Tensor, signed: torch.Tensor, tracks: np.ndarray
    ) -> np.ndarray:
        """Estimate the scores (A,) of tracks with one query, by the signs (B,) of its texts."""
        own = signed.nonzero().squeeze(1)
        return (self.segment_estimates(function, text_embeds[own], tracks) @ signed[own]).numpy()

    def _proposed(
        self, function: ScoreFunction, text_embeds: torch.Tensor, signed: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the tracks that the engine proposes for one query, by the signs (B,) of its texts, and estimates."""
        means = signed.unsqueeze(0) @ mean_rows(function, text_embeds)  # (1, D)
        segments = function.rows(text_embeds[signed > 0])  # (R, D)
        tracks = self.engine.propose(means, segments[segments.any(-1)])
        return tracks, self._query_estimates(function, text_embeds, signed, tracks)

    def segment_estimates(self, function: ScoreFunction, text_embeds: torch.Tensor, tracks: np.ndarray) -> torch.Tensor:
        """Estimate the scores of tracks with texts (B, Q, D) from their segments: (A, B)."""
        rows = function.rows(text_embeds)  # (R, D)
        scores = torch.empty(len(tracks), len(text_embeds))  # (A, B)
        at_a_time = max(1, BLOCK_CELLS // (MOST_SEGMENTS * max(len(rows), rows.shape[1] // 4)))
        order = np.argsort(self.shard[tracks], kind="stable")  # shard by shard
        for start in range(0, len(tracks), at_a_time):
            part = order[start : start + at_a_time]
            codes, places = self._gathered(tracks[part])
            cosines = quantized_cosines(rows, codes, self.scales[places]).T  # (all segments, R)
            tokens, counts = self.tokens[places], self.count[tracks[part]]
            starts = np.cumsum(counts) - counts
            for group in like_lengths(counts, max(1, CELLS_AT_A_TIME // len(rows))):
                step = np.arange(counts[group].max())
                is_real = torch.from_numpy(step < counts[group, None])  # (group, S)
                place = torch.from_numpy(np.minimum(starts[group, None] + step, len(places) - 1))
                weights = torch.where(is_real, tokens[place], 0.0)  # (group, S)
                scores[torch.from_numpy(part[group])] = segment_scores(function, cosines[place], text_embeds, weights)
        return scores

    def _gathered(self, tracks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy the segments of tracks, which come shard by shard: codes (all, D), and places in `scales` (all,)."""
        counts, shards = self.count[tracks], self.shard[tracks]
        ends = np.cumsum(counts)
        within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        local = torch.from_numpy(np.repeat(self.first[tracks], counts) + within)  # (all,) in their shards
        places = local + torch.from_numpy(np.repeat(self.base[shards], counts))
        codes = torch.empty(len(local), self.shards[0]["segments"].shape[1], dtype=torch.int8)
        numbers, firsts = np.unique(shards, return_index=True)
        borders = [*(ends - counts)[firsts].tolist(), len(local)]
        for number, (first, last) in zip(numbers, itertools.pairwise(borders), strict=True):
            torch.index_select(self.shards[number]["segments"], 0, local[first:last], out=codes[first:last])
        return codes, places

    def _by_shard(self, tracks: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of a shard and the places in `tracks` of those that are in it."""
        shards = self.shard[tracks]
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        return zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)
