"""Measure how much of the exact answer the candidates hold, on libraries whose exact scores are all computed.

Tracks are read one after another and their tokens are not kept, so that a library may be larger than memory. What is
measured is the `Ranker` itself, which looks the exact scores up.

Dimensions: `N` tracks, `B` queries, `Q` sentences of a query, `T` tokens of a track, `D` shared width.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.search_library import SyntheticSongs, aligned_function, draw_tracks, score_function
from collap.evaluation.analysis.statistics import figure
from collap.search.calibration import conformal_quantile
from collap.search.estimates import mean_rows
from collap.search.index import TrackIndex
from collap.search.quantize import dequantize_rows, quantized_cosines
from collap.search.queries import text_queries
from collap.search.ranking import Ranker, Texts, most_candidates, sort_order, texts_of
from collap.search.rescoring import score_tracks
from collap.search.scan import Scan
from collap.search.score_function import ScoreFunction
from collap.search.vectors import join_tracks, track_vectors

K = 10
TEMPERATURES = (1.0, 0.2, 0.05)
BATCH = 256  # tracks whose tokens are held
SCANNED = ("segments", "segment_scales", "segment_tokens", "segment_offsets", "means", "mean_scales")
ALPHA = 0.05


class KnownRanker(Ranker):
    """Rank for one query, whose exact scores (N,) are known."""

    def __init__(self, function: ScoreFunction, scan: Scan, scores: np.ndarray):
        super().__init__(function, scan, tokens=None)
        self.scores = scores

    def exact(self, texts: Texts, tracks: np.ndarray) -> np.ndarray:
        """Look scores up: (A, 1)."""
        return self.scores[tracks, None]


@dataclass(frozen=True)
class Asked:
    """Hold a score and the queries, (B, Q, D), that are asked with it."""

    function: ScoreFunction
    embeds: torch.Tensor


def score_library(tracks: Iterable[torch.Tensor], asked: dict[str, Asked]) -> tuple[Scan, dict[str, np.ndarray]]:
    """Score all tracks exactly, and keep what finds candidates among them.

    Args:
        tracks: (T, D) unit vectors of each; read once.
        asked: by name; all read tokens of the same times.

    Returns:
        The scan; and the scores (N, B) of each name.
    """
    times, shards, scores = next(iter(asked.values())).function, [], {name: [] for name in asked}
    tracks = iter(tracks)
    while batch := list(itertools.islice(tracks, BATCH)):
        made = []
        for tokens in batch:
            starts = times.token_starts(len(tokens))
            made.append(track_vectors(tokens, starts, times.token_seconds, float(starts[-1])))
        stored = [(one["tokens"], one["token_scales"]) for one in made]
        for name, one in asked.items():
            scores[name].append(score_tracks(one.function, one.embeds, stored).numpy())
        joined = join_tracks(made)
        shards.append({name: joined[name] for name in SCANNED})
    counts = [len(shard["means"]) for shard in shards]
    places = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(count) for count in counts])
    return Scan(shards, places), {name: np.concatenate(found) for name, found in scores.items()}


def of_query(embeds: torch.Tensor, query: int) -> Texts:
    """Return one of the queries (B, Q, D) without its padding."""
    return Texts(embeds, torch.eye(len(embeds))).of_query(query)


def places_of_best(ranker: KnownRanker, texts: Texts, k: int = K) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the places of the true best k tracks, from 1 on, by their estimates (k,), N where an earlier step has left
    them out, and by their means (k,); and by how much a score of theirs is above its estimate."""
    tracks = np.arange(len(ranker.scores))
    best = sort_order(ranker.scores, tracks)[:k]
    ((found, estimates),) = ranker.scan.estimate(ranker.function, texts.embeds, texts.signs, tracks)
    places, known = np.full(len(tracks), len(tracks)), np.full(len(tracks), -np.inf)
    places[found[sort_order(estimates, found)]] = np.arange(1, len(found) + 1)
    known[found] = estimates
    means = quantized_cosines(mean_rows(ranker.function, texts.embeds), *ranker.scan.means)[0].numpy()  # (N,)
    by_mean = np.empty(len(tracks), np.int64)
    by_mean[sort_order(means, tracks)] = np.arange(1, len(tracks) + 1)
    return places[best], by_mean[best], float((ranker.scores - known)[best].max())


def found_share(ranker: KnownRanker, tracks: np.ndarray, k: int = K) -> float:
    """Return the share of the true best k among the tracks found."""
    best = sort_order(ranker.scores, np.arange(len(ranker.scores)))[:k]
    return float(np.isin(best, tracks).mean())


def quantiles(values: np.ndarray, **shares: float) -> dict[str, int]:
    """Return the smallest of some counts that these shares of them are not above."""
    ordered = np.sort(values, axis=None)
    return {name: int(ordered[int(np.ceil(share * len(ordered))) - 1]) for name, share in shares.items()}


def rounded_figure(values: list[float], seed: int = 0) -> dict[str, float]:
    """Return the mean of a value of each query with its interval of 95 %, by a bootstrap over queries."""
    values = np.array(values)
    found = figure(lambda drawn: values[drawn].mean(-1), len(values), None, seed)
    return {name: round(found[name], 4) for name in ("value", "low", "high")}


def measure_recall(asked: Asked, scan: Scan, exact: np.ndarray) -> dict:
    """Search for queries in the modes `fixed` and `calibrated`, the latter calibrated on the other half of them.

    Args:
        exact: (N, B) scores of all tracks.

    Returns:
        `recall@10` of both modes with intervals; how many candidates hold 99 % of the best, and all; and the same of a
        list by the means alone.
    """
    tracks = np.arange(len(exact))
    rankers = [KnownRanker(asked.function, scan, scores) for scores in exact.T]
    texts = [of_query(asked.embeds, query) for query in range(exact.shape[1])]
    places, by_mean, above = zip(*map(places_of_best, rankers, texts), strict=True)
    fixed, calibrated, scored = [], [], {"fixed": [], "calibrated": []}
    for query, (ranker, own) in enumerate(zip(rankers, texts, strict=True)):
        (ranking,) = ranker.rank(own, tracks, K)
        fixed.append(found_share(ranker, ranking.tracks[:K]))
        scored["fixed"].append(ranking.num_rescored)
        delta = conformal_quantile(np.array(above[(query + 1) % 2 :: 2]), ALPHA)
        (ranking,) = ranker.rank(own, tracks, K, "calibrated", delta=delta)
        calibrated.append(found_share(ranker, ranking.tracks))
        scored["calibrated"].append(ranking.num_rescored)
    return {
        "queries": len(texts),
        "scored at most": most_candidates(asked.function, len(exact)),
        "recall@10 fixed": rounded_figure(fixed),
        "recall@10 calibrated": rounded_figure(calibrated),
        **{f"scored, {mode}": quantiles(np.array(one), p50=0.5, p95=0.95) for mode, one in scored.items()},
        "places by estimates": quantiles(np.array(places), C99=0.99, worst=1.0),
        "places by means": quantiles(np.array(by_mean), C99=0.99, worst=1.0),
    }


def measure_library(tracks: Iterable[torch.Tensor], asked: dict[str, Asked]) -> dict:
    """Measure recall of several scores on one library."""
    scan, exact = score_library(tracks, asked)
    report = {"tracks": len(scan), "segments": round(len(scan.scales) / len(scan), 2)}
    return report | {name: measure_recall(one, scan, exact[name]) for name, one in asked.items()}


def at_temperatures(name: str, function: ScoreFunction) -> dict[str, ScoreFunction]:
    """Return a score at several temperatures of its attention, called after it."""
    return {f"{name}, temperature {one:g}": replace(function, attention_temperature=one) for one in TEMPERATURES}


# ---- synthetic


def synthetic_recall(size: int, many: float, queries: int = 64, width: int = 256, tokens: int = 1000) -> dict:
    """Measure recall on a synthetic library, a share `many` of it with 15 to 40 sections: of the paper's score for
    queries of one vector, and of alignments for descriptions of several sentences.

    The library is drawn twice with the same seed, as queries are made of what is in it.
    """
    songs = SyntheticSongs(width)
    for _ in draw_tracks(songs, size, tokens, many):
        pass
    embeds, descriptions, ordered = songs.queries(queries).unsqueeze(1), songs.descriptions(queries), aligned_function()
    one_vector = at_temperatures("paper", score_function())
    one_vector["paper as printed"] = replace(score_function(), score_reduction="printed")
    aligned = at_temperatures("sentences in order", ordered)
    aligned["sentences in any order"] = replace(ordered, alignment="free", gamma_path=None)
    asked = {name: Asked(function, embeds) for name, function in one_vector.items()}
    asked |= {name: Asked(function, descriptions) for name, function in aligned.items()}
    return measure_library(draw_tracks(SyntheticSongs(width), size, tokens, many), asked)


# ---- an index


def stored_tracks(index: TrackIndex) -> Iterator[torch.Tensor]:
    """Yield the tokens (T, D) of all tracks of an index."""
    return (dequantize_rows(*index.tokens(track)) for track in range(len(index)))


def recombined_tracks(index: TrackIndex, size: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Yield tokens (T, D) of `size` tracks that were never heard: of two songs of the index, of which the segments take
    turns at random, each song's in their order, until there is as much as the longer one has.

    So every song is in several tracks, and the best of a query are closer to each other than those of real songs.
    """
    random = np.random.default_rng(seed)
    for _ in range(size):
        runs, length = [], 0
        for track in random.choice(len(index), 2, replace=False):
            vectors = index.store.vectors(int(track))
            own = dequantize_rows(vectors["tokens"], vectors["token_scales"]).split(vectors["segment_tokens"].tolist())
            runs.append(list(own))
            length = max(length, sum(map(len, own)))
        taken = []
        while any(runs) and sum(map(len, taken)) < length:
            song = runs[int(random.integers(2))]
            if song:
                taken.append(song.pop(0))
        yield torch.cat(taken)


def index_recall(folder: Path, texts: list[str], size: int | None = None) -> dict:
    """Measure recall of an index for texts of its model: of its own score and the paper's, at several temperatures.

    Args:
        size: tracks of a library that is recombined from it; default: it is measured as it is.
    """
    index = TrackIndex.open(folder)
    embeds = texts_of(text_queries(index.embedder, index.function, texts)).embeds  # (B, Q, D)
    functions = at_temperatures(index.function.alignment, index.function)
    if index.function.has_sentences:
        paper = {"alignment": "paper", "gamma_sentences": None, "gamma_path": None, "blank": None}
        functions |= at_temperatures("paper", replace(index.function, **paper))
    asked = {name: Asked(function, embeds) for name, function in functions.items()}
    return measure_library(stored_tracks(index) if size is None else recombined_tracks(index, size), asked)
