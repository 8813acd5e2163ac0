"""Retrieval figures with a bootstrap interval by song and the level of chance: R@k, ranks, mAP, nDCG; pure functions.

A ranking is reduced to the ranks of its correct items (`ranks_of_correct`), and everything else is computed from those
(`retrieval_metrics`): of a row of 10,000 scores only a few numbers are ever used. The metric on the Hub is generated
from this file (`collap/hub/metric_space.py`), so it imports nothing but numpy, each package in a line of its own.

Dimensions: `Q` queries, `P` items in the pool, `C` correct items of one query, `G` songs, `R` resamples, `V` values of
a query that are averaged.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

NDCG_CUTOFF = 10
# Bounds the (R, Q) work arrays of the bootstrap to 32 MB each.
MAX_BOOTSTRAP_CELLS = 4_000_000


@dataclass(frozen=True)
class Measure:
    """Say what a figure is, how it is shown, and which way is better: `name` is its key, `title` what people read."""

    name: str
    title: str
    unit: str
    decimals: int
    higher_is_better: bool
    meaning: str

    def show(self, number: float) -> str:
        """Return the number as text; a percentage that would round to zero keeps one digit, a whole rank has none."""
        if self.unit == "rank":
            return f"{number:.{self.decimals}f}".removesuffix(f".{'0' * self.decimals}")
        return f"{number:.1g}" if 0 < number < 0.5 * 10**-self.decimals else f"{number:.{self.decimals}f}"


MEASURES = (
    Measure("R@k", "R@k", "%", 1, True, "queries with a correct item among the first k"),
    Measure(
        "median_rank", "median rank", "rank", 1, False, "median over queries of the rank of the first correct item"
    ),
    Measure("mAP", "mAP", "%", 1, True, "mean over queries of the average precision over the full ranking"),
    Measure("MRR", "MRR", "%", 1, True, "mean over queries of 1 / rank of the first correct item"),
    Measure(
        "nDCG@10", "nDCG@10", "%", 1, True, "discounted gain of the first 10, relative to that of the best ranking"
    ),
)


def measure_of(name: str) -> Measure:
    """Return what the figure of this name is: "R@5", "median_rank", "mAP", "MRR" or "nDCG@10".

    Raises:
        KeyError: there is no such figure.
    """
    known = {measure.name: measure for measure in MEASURES}
    return replace(known["R@k"], name=name, title=name) if name.startswith("R@") else known[name]


def chance_recall(gallery_size: int, num_correct: int, k: int) -> float:
    """Return the probability that a random ranking of P items has one of the C correct ones among its first k.

    `1 - binom(P - C, k) / binom(P, k)`, exact: the binomials are integers of any size.
    """
    num_rankings = math.comb(gallery_size, k)
    return (num_rankings - math.comb(gallery_size - num_correct, k)) / num_rankings


def chance_average_precision(gallery_size: int, num_correct: int) -> float:
    """Return the expected average precision of a random ranking of P items, C of them correct; exact.

    Position i holds a correct item with probability C/P, and then (i - 1)(C - 1)/(P - 1) correct items are expected
    before it, so `E[AP] = 1/P sum_i (1 + (i - 1)(C - 1)/(P - 1)) / i = (h + (C - 1)/(P - 1) (P - h)) / P` with the
    harmonic number `h = 1 + 1/2 + ... + 1/P`.
    """
    if gallery_size == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, gallery_size + 1)).sum())
    return (harmonic + (num_correct - 1) / (gallery_size - 1) * (gallery_size - harmonic)) / gallery_size


def chance_first_rank_above(gallery_size: int, num_correct: int) -> np.ndarray:
    """Return `Pr(first correct rank > r) = binom(P - C, r) / binom(P, r)` of a random ranking, (P,) for r = 1..P."""
    position = np.arange(gallery_size)
    return np.cumprod(np.maximum(gallery_size - num_correct - position, 0) / (gallery_size - position))


def chance_reciprocal_rank(gallery_size: int, num_correct: int) -> float:
    """Return the expected 1 / rank of the first of C correct items in a random ranking of P items; exact."""
    above = np.concatenate([[1.0], chance_first_rank_above(gallery_size, num_correct)])  # (P + 1,)
    return float((-np.diff(above) / np.arange(1, gallery_size + 1)).sum())


def chance_discounted_gain(gallery_size: int, num_correct: int) -> float:
    """Return the expected nDCG@10 of a random ranking of P items: each place holds a correct one with C/P; exact."""
    discounts = _discounts(min(NDCG_CUTOFF, gallery_size))
    return float(num_correct / gallery_size * discounts.sum() / discounts[:num_correct].sum())


def chance_median_rank(gallery_size: int, num_correct: np.ndarray) -> float:
    """Return the median of the first correct item's rank when every query is ranked at random.

    It is the median of the distribution over all queries, `Pr(rank > r) = mean of binom(P - C, r) / binom(P, r)`, and
    (P + 1) / 2 when each query has one correct item. The median of a finite sample of Q queries scatters around it.

    Args:
        num_correct: (Q,) correct items of each query.
    """
    above = np.zeros(gallery_size)  # (P,) Pr(rank > r), r = 1..P
    for count, num_queries in zip(*np.unique(num_correct, return_counts=True), strict=True):
        above += num_queries / len(num_correct) * chance_first_rank_above(gallery_size, count)
    # The tolerance is for the rounding of the product: at one correct item and even P it must meet 1/2 exactly.
    lower = np.argmax(above <= 0.5 + 1e-9) + 1
    upper = np.argmax(above < 0.5 - 1e-9) + 1
    return float(lower + upper) / 2


def chance_levels(gallery_size: int, num_correct: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float]:
    """Return what random scores give, by the name of the figure; all in percent but the median rank.

    Args:
        num_correct: (Q,) correct items of each query.
    """
    counts, num_queries = np.unique(num_correct, return_counts=True)
    recalls = {f"R@{k}": [chance_recall(gallery_size, int(count), k) for count in counts] for k in cutoffs}
    means = {"mAP": chance_average_precision, "MRR": chance_reciprocal_rank, "nDCG@10": chance_discounted_gain}
    per_count = recalls | {name: [mean(gallery_size, int(count)) for count in counts] for name, mean in means.items()}
    levels = {name: 100 * float(np.average(values, weights=num_queries)) for name, values in per_count.items()}
    return {**levels, "median_rank": chance_median_rank(gallery_size, num_correct)}


def ranks_of_correct(scores: np.ndarray, correct: Sequence[Sequence[int]], first_query: int = 0) -> list[np.ndarray]:
    """Reduce score rows to the ranks of their correct items; call it on chunks of queries.

    Rank 1 is the highest score. Ties are read against the model: a wrong item with the same score counts as ahead, so
    constant scores put every correct item last. Several correct items take distinct ranks.

    Args:
        scores: (Q, P) score of each query with each gallery item, higher is better. Infinite scores are allowed.
        correct: for each query the gallery indices of its correct items, one or more, each once.
        first_query: index of the first row among all queries; only error messages use it.

    Returns:
        For each query an ascending int64 array (C,) of 1-based ranks.

    Raises:
        ValueError: scores not (Q, P) or NaN, as many rows as `correct` has entries not given, or an entry of `correct`
            empty, repeated, not an integer or outside of the gallery.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or len(scores) != len(correct):
        raise ValueError(
            f"scores has the shape {scores.shape}, but correct has {len(correct)} entries: "
            "give one row of gallery scores per query."
        )
    return [
        _ranks_in_row(row, items, f"query {first_query + index}")
        for index, (row, items) in enumerate(zip(scores, correct, strict=True))
    ]


def _ranks_in_row(row: np.ndarray, items: Sequence[int], name: str) -> np.ndarray:
    """Return the ranks (C,) of the correct `items` in a score row (P,); errors begin with `name`."""
    items = np.asarray(items)
    if items.ndim != 1 or len(items) == 0:
        raise ValueError(f"{name} has no list of correct items: leave the query out or name at least one item.")
    if not np.issubdtype(items.dtype, np.integer):
        raise ValueError(f"{name}: correct items must be integer gallery indices, found {items.dtype}.")
    if items.min() < 0 or items.max() >= len(row):
        raise ValueError(f"{name}: correct items {items.tolist()} must lie in 0..{len(row) - 1}, as in the gallery.")
    if len(np.unique(items)) != len(items):
        raise ValueError(f"{name}: a correct item is named twice in {items.tolist()}.")
    if np.isnan(row).any():
        raise ValueError(f"{name}: {int(np.isnan(row).sum())} of {len(row)} scores are NaN, so it has no ranking.")
    correct_scores = np.sort(row[items])  # (C,) ascending
    num_as_high = len(row) - np.searchsorted(np.sort(row), correct_scores, side="left")
    num_correct_as_high = len(items) - np.searchsorted(correct_scores, correct_scores, side="left")
    # Own place among the correct items, plus the wrong items that score as high or higher.
    own_place = np.arange(len(items), 0, -1)
    return (own_place + num_as_high - num_correct_as_high)[::-1].astype(np.int64)


def average_precisions(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the average precision (Q,) over the full ranking: the mean of place / rank over a query's ranks (C,)."""
    return np.array([np.mean(np.arange(1, len(query) + 1) / query) for query in ranks])


def _discounts(count: int) -> np.ndarray:
    """Return what a correct item counts at the first `count` ranks: 1 / log2(rank + 1)."""
    return 1 / np.log2(np.arange(2, count + 2))


def discounted_gains(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """Return nDCG@10 (Q,): a correct item at rank r counts 1 / log2(r + 1), relative to the best order of as many
    (Jarvelin and Kekalainen 2002, with gains of 0 and 1)."""
    discounts = _discounts(NDCG_CUTOFF)
    gains = [discounts[query[query <= NDCG_CUTOFF] - 1].sum() / discounts[: len(query)].sum() for query in ranks]
    return np.array(gains)


def query_values(ranks: Sequence[np.ndarray], cutoffs: Sequence[int]) -> dict[str, np.ndarray]:
    """Return by name the figures that are means over queries, each as its (Q,) values in percent.

    Args:
        ranks: for each query the ascending ranks (C,) of its correct items.
        cutoffs: k of each R@k.
    """
    first_ranks = np.array([query[0] for query in ranks])  # (Q,)
    values = {f"R@{cutoff}": first_ranks <= cutoff for cutoff in cutoffs}
    values |= {"mAP": average_precisions(ranks), "MRR": 1 / first_ranks, "nDCG@10": discounted_gains(ranks)}
    return {name: 100 * one.astype(np.float64) for name, one in values.items()}


def bootstrap_by_song(
    values: np.ndarray, first_ranks: np.ndarray, song_of_query: np.ndarray, num_bootstrap: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return means and median ranks of resamples: G songs drawn with replacement, each with all its queries.

    A resampled mean is the ratio of the drawn songs' sums to their number of queries, so it estimates the same mean
    over queries as the figure itself (cluster bootstrap; Field and Welsh 2007, "Bootstrapping clustered data"). The
    gallery is not resampled: every draw keeps the ranks against the full pool.

    Args:
        values: (Q, V) per-query values to average.
        first_ranks: (Q,) rank of each query's first correct item.
        song_of_query: (Q,) song of each query as an index 0..G-1, each used.

    Returns:
        (R, V) means and (R,) medians.
    """
    num_queries, num_songs = len(first_ranks), int(song_of_query.max()) + 1
    song_sizes = np.bincount(song_of_query)  # (G,)
    song_sums = np.stack([np.bincount(song_of_query, column) for column in values.T], axis=1)  # (G, V)
    order = np.argsort(first_ranks, kind="stable")
    sorted_ranks, sorted_songs = first_ranks[order], song_of_query[order]
    generator = np.random.default_rng(seed)
    block_size = max(1, MAX_BOOTSTRAP_CELLS // num_queries)
    means, medians = [], []
    for start in range(0, num_bootstrap, block_size):
        size = min(block_size, num_bootstrap - start)
        songs = generator.integers(num_songs, size=(size, num_songs)) + num_songs * np.arange(size)[:, None]
        draws = np.bincount(songs.ravel(), minlength=size * num_songs).reshape(size, num_songs)  # (R, G)
        num_drawn = draws @ song_sizes  # (R,)
        means.append(draws @ song_sums / num_drawn[:, None])
        cumulative = draws[:, sorted_songs].cumsum(axis=1)  # (R, Q)
        lower = np.argmax(cumulative > (num_drawn[:, None] - 1) // 2, axis=1)
        upper = np.argmax(cumulative > num_drawn[:, None] // 2, axis=1)
        medians.append((sorted_ranks[lower] + sorted_ranks[upper]) / 2)
    return np.concatenate(means), np.concatenate(medians)


def retrieval_metrics(
    ranks: Sequence[Sequence[int]],
    gallery_size: int,
    groups: Sequence[Hashable],
    k: Sequence[int] = (1, 5, 10, 20, 100),
    num_bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict:
    """Measure every figure of `MEASURES` of Q queries against one gallery, with intervals by song and chance levels.

    Intervals are the percentiles of `bootstrap_by_song`. With few songs they are too narrow, and of width zero
    when every song agrees (R@k of 0 or 100): then they say nothing about the next song.

    Args:
        ranks: for each query the 1-based ranks of its correct items, from `ranks_of_correct`.
        gallery_size: P, the number of items every query was ranked against.
        groups: for each query the label of its song, no None.
        k: cut-offs; those above P are left out.

    Returns:
        "R@k" for each k, "median_rank", "mAP", "MRR" and "nDCG@10", each a dict with "value", "low", "high" (None if
        there is one song only) and "chance", see `MEASURES`; "pool_size", "num_queries", "num_songs", "num_bootstrap",
        "seed" and "confidence". Numbers are plain int and float.

    Raises:
        ValueError: there is no query, a query's ranks are not distinct integers in 1..P, `groups` does not give one
            label per query, or a setting is out of its range.
    """
    _check_settings(k, num_bootstrap, confidence)
    ranks = [checked_ranks(query, gallery_size, index) for index, query in enumerate(ranks)]
    song_of_query, num_songs = song_indices(groups, len(ranks))
    first_ranks = np.array([query[0] for query in ranks])  # (Q,)
    cutoffs = [int(cutoff) for cutoff in sorted(set(k)) if cutoff <= gallery_size]
    by_name = query_values(ranks, cutoffs)
    values = np.stack([*by_name.values()], axis=1)  # (Q, V), percent
    points = [*values.mean(axis=0).tolist(), float(np.median(first_ranks))]
    lows = highs = [None] * len(points)
    if num_songs > 1:
        means, medians = bootstrap_by_song(values, first_ranks, song_of_query, num_bootstrap, seed)
        resampled = np.concatenate([means, medians[:, None]], axis=1)  # (R, V + 1)
        lows, highs = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).tolist()
    chances = chance_levels(gallery_size, np.array([len(query) for query in ranks]), cutoffs)
    figures = {
        name: {"value": value, "low": low, "high": high, "chance": chances[name]}
        for name, value, low, high in zip([*by_name, "median_rank"], points, lows, highs, strict=True)
    }
    sizes = {"pool_size": int(gallery_size), "num_queries": len(ranks), "num_songs": num_songs}
    return {**figures, **sizes, "num_bootstrap": int(num_bootstrap), "seed": int(seed), "confidence": confidence}


def _check_settings(k: Sequence[int], num_bootstrap: int, confidence: float) -> None:
    """Raise ValueError for a setting of `retrieval_metrics` out of its range."""
    if np.ndim(k) != 1 or any(cutoff != int(cutoff) or cutoff < 1 for cutoff in k):
        raise ValueError(f"k must be a list of whole numbers of 1 or more, found {k}.")
    if num_bootstrap < 1:
        raise ValueError(f"num_bootstrap must be 1 or more, found {num_bootstrap}: each figure needs its interval.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, found {confidence}; 0.95 means 95 %.")


def checked_ranks(query: Sequence[int], gallery_size: int, index: int) -> np.ndarray:
    """Return the ascending ranks (C,) of one query; ValueError unless they are distinct whole numbers in 1..P."""
    given = np.asarray(query, dtype=np.float64)
    ranks = np.unique(given).astype(np.int64)
    whole = len(ranks) == len(given) and (ranks == np.sort(given)).all()
    if not whole or len(ranks) == 0 or ranks[0] < 1 or ranks[-1] > gallery_size:
        raise ValueError(
            f"query {index}: expected one distinct rank in 1..{gallery_size} per correct item, found {len(given)} "
            f"numbers, {given[:8].tolist()} first. Predictions are ranks, not scores: reduce them by ranks_of_correct."
        )
    return ranks


def song_indices(groups: Sequence[Hashable], num_queries: int) -> tuple[np.ndarray, int]:
    """Return the song of each query as an index (Q,), and the number of songs G."""
    if num_queries == 0 or len(groups) != num_queries:
        raise ValueError(f"found {num_queries} queries and {len(groups)} groups: give one song label per query.")
    missing = [index for index, label in enumerate(groups) if label is None or label != label]
    if missing:
        raise ValueError(f"query {missing[0]} has no song label in groups, found {groups[missing[0]]}.")
    # Sorted, so that the order of the queries does not change which songs a seed draws.
    index_of_song = {label: index for index, label in enumerate(sorted(set(groups), key=repr))}
    return np.array([index_of_song[label] for label in groups]), len(index_of_song)
