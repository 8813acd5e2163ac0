"""Retrieval between audio and text, in either direction: R@k, median rank and mAP with a bootstrap interval by song.

Legend: Q queries, N gallery items (the pool), C correct items of one query, G songs, B bootstrap resamples, M figures.

The metric takes ranks, not scores. A row of N scores per query would pass through evaluate's Arrow cache and come back
as Python lists: 12 times the matrix's own size when measured at 2000 x 2000, so 4.6 GB for 10k x 10k, although only
the C ranks per query are ever used. So `ranks_of_correct` reduces each chunk of score rows to those ranks, the chunk
is thrown away, and `predictions` are the ranks, `references` the gallery size of each query:

    metric = evaluate.load("./collap/hub/spaces/audio_text_retrieval", keep_in_memory=True)
    for start in range(0, Q, 512):
        scores = ...                                                                   # (512, N), any score
        ranks = metric.ranks_of_correct(scores, correct[start : start + 512], first_query=start)
        metric.add_batch(predictions=ranks, references=[N] * len(ranks))
    results = metric.compute(groups=song_of_query)

Each import below is one line, names one package and has no comment: evaluate reads them with a regular expression.
"""

import math
from collections.abc import Hashable, Sequence

import datasets
import evaluate
import numpy as np

# Bounds the (resamples, Q) work arrays of the bootstrap to 32 MB each.
MAX_BOOTSTRAP_CELLS = 4_000_000

_DESCRIPTION = """
Retrieval between audio and text: R@k, median rank of the first correct item, mean average precision over the full
ranking. A query may have several correct items. Each figure comes with a percentile bootstrap interval, in which songs
are resampled with all their queries, and with its value for random scores.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[list[int]]`): for each query the 1-based ranks of its correct items, from `ranks_of_correct`.
    references (`list[int]`): for each query the number of gallery items it was ranked against; the same for all.
    groups (`list`): for each query the label of its song; required.
    k (`list[int]`): cut-offs of R@k. A cut-off above the gallery size is left out. Default (1, 5, 10, 20, 100).
    num_bootstrap (`int`): number of bootstrap resamples. Default 1000.
    seed (`int`): seed of the bootstrap. Default 0.
    confidence (`float`): coverage of the intervals, between 0 and 1. Default 0.95.
Returns:
    `dict`: "R@k" for each k, "mAP" (both in percent) and "median_rank", each a dict with "value", "low", "high" (None
    when there is one song only) and "chance"; "pool_size", "num_queries", "num_songs", "num_bootstrap", "seed" and
    "confidence".
Examples:
    >>> metric = evaluate.load("./collap/hub/spaces/audio_text_retrieval")
    >>> ranks = metric.ranks_of_correct([[0.9, 0.1, 0.5], [0.2, 0.8, 0.3]], correct=[[0], [0, 2]])
    >>> metric.compute(predictions=ranks, references=[3, 3], groups=["song a", "song b"], k=[1])["R@1"]["value"]
    50.0
"""

_CITATION = """
@article{collap,
  title={CoLLAP: Contrastive Long-form Language-Audio Pretraining},
  journal={arXiv preprint arXiv:2410.02271},
  year={2024}
}
"""


def chance_recall(gallery_size: int, num_correct: int, k: int) -> float:
    """Probability that a random ranking of N items has one of the C correct ones among its first k.

    `1 - binom(N - C, k) / binom(N, k)`, exact: the binomials are integers of any size.
    """
    num_rankings = math.comb(gallery_size, k)
    return (num_rankings - math.comb(gallery_size - num_correct, k)) / num_rankings


def chance_average_precision(gallery_size: int, num_correct: int) -> float:
    """Expected average precision of a random ranking of N items, C of them correct; exact.

    Position i holds a correct item with probability C/N, and then (i - 1)(C - 1)/(N - 1) correct items are expected
    before it, so `E[AP] = 1/N sum_i (1 + (i - 1)(C - 1)/(N - 1)) / i = (H + (C - 1)/(N - 1) (N - H)) / N` with the
    harmonic number `H = 1 + 1/2 + ... + 1/N`.
    """
    if gallery_size == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, gallery_size + 1)).sum())
    return (harmonic + (num_correct - 1) / (gallery_size - 1) * (gallery_size - harmonic)) / gallery_size


def chance_median_rank(gallery_size: int, num_correct: np.ndarray) -> float:
    """Median of the first correct item's rank when every query is ranked at random.

    It is the median of the distribution over all queries, `P(rank > r) = mean of binom(N - C, r) / binom(N, r)`, and
    (N + 1) / 2 when each query has one correct item. The median of a finite sample of Q queries scatters around it.

    Args:
        num_correct: (Q,) correct items of each query.
    """
    above = np.zeros(gallery_size)  # (N,) P(rank > r), r = 1..N
    position = np.arange(gallery_size)
    for count, num_queries in zip(*np.unique(num_correct, return_counts=True), strict=True):
        still_wrong = np.maximum(gallery_size - count - position, 0) / (gallery_size - position)
        above += num_queries / len(num_correct) * np.cumprod(still_wrong)
    # The tolerance is for the rounding of the product: at one correct item and even N it must meet 1/2 exactly.
    lower = np.argmax(above <= 0.5 + 1e-9) + 1
    upper = np.argmax(above < 0.5 - 1e-9) + 1
    return float(lower + upper) / 2


def chance_levels(gallery_size: int, num_correct: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float]:
    """What random scores give: R@k for each cut-off and mAP in percent, averaged over the queries, and the median rank.

    Args:
        num_correct: (Q,) correct items of each query.
    """
    counts, num_queries = np.unique(num_correct, return_counts=True)
    recalls = {f"R@{k}": [chance_recall(gallery_size, int(count), k) for count in counts] for k in cutoffs}
    per_count = {**recalls, "mAP": [chance_average_precision(gallery_size, int(count)) for count in counts]}
    levels = {name: 100 * float(np.average(values, weights=num_queries)) for name, values in per_count.items()}
    return {**levels, "median_rank": chance_median_rank(gallery_size, num_correct)}


def ranks_of_correct(scores: np.ndarray, correct: Sequence[Sequence[int]], first_query: int = 0) -> list[np.ndarray]:
    """Reduce score rows to the ranks of their correct items; call it on chunks of queries.

    Rank 1 is the highest score. Ties are read against the model: a wrong item with the same score counts as ahead, so
    constant scores put every correct item last. Several correct items take distinct ranks.

    Args:
        scores: (Q, N) score of each query with each gallery item, higher is better. Infinite scores are allowed.
        correct: for each query the gallery indices of its correct items, one or more, each once.
        first_query: index of the first row among all queries; only error messages use it.

    Returns:
        For each query an ascending int64 array (C,) of 1-based ranks.

    Raises:
        ValueError: scores not (Q, N) or NaN, as many rows as `correct` has entries not given, or an entry of `correct`
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
    """Ranks (C,) of the correct `items` in one score row (N,); `name` says which query an error is about."""
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
    """Average precision (Q,) over the full ranking: the mean over a query's ascending ranks (C,) of place / rank."""
    return np.array([np.mean(np.arange(1, len(query) + 1) / query) for query in ranks])


def bootstrap_by_song(
    values: np.ndarray, first_ranks: np.ndarray, song_of_query: np.ndarray, num_bootstrap: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means and median rank of resamples, in which G songs are drawn with replacement, each with all its queries.

    A resampled mean is the ratio of the drawn songs' sums to their number of queries, so it estimates the same mean
    over queries as the figure itself (cluster bootstrap; Field and Welsh 2007, "Bootstrapping clustered data"). The
    gallery is not resampled: every draw keeps the ranks against the full pool.

    Args:
        values: (Q, M) per-query values to average.
        first_ranks: (Q,) rank of each query's first correct item.
        song_of_query: (Q,) song of each query as an index 0..G-1, each used.

    Returns:
        (B, M) means and (B,) medians.
    """
    num_queries, num_songs = len(first_ranks), int(song_of_query.max()) + 1
    song_sizes = np.bincount(song_of_query)  # (G,)
    song_sums = np.stack([np.bincount(song_of_query, column) for column in values.T], axis=1)  # (G, M)
    order = np.argsort(first_ranks, kind="stable")
    sorted_ranks, sorted_songs = first_ranks[order], song_of_query[order]
    generator = np.random.default_rng(seed)
    block_size = max(1, MAX_BOOTSTRAP_CELLS // num_queries)
    means, medians = [], []
    for start in range(0, num_bootstrap, block_size):
        size = min(block_size, num_bootstrap - start)
        songs = generator.integers(num_songs, size=(size, num_songs)) + num_songs * np.arange(size)[:, None]
        draws = np.bincount(songs.ravel(), minlength=size * num_songs).reshape(size, num_songs)  # (B, G)
        num_drawn = draws @ song_sizes  # (B,)
        means.append(draws @ song_sums / num_drawn[:, None])
        cumulative = draws[:, sorted_songs].cumsum(axis=1)  # (B, Q)
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
    """R@k, median rank and mAP of Q queries against one gallery, with bootstrap intervals by song and chance levels.

    R@k is the share of queries with a correct item among the first k; the median rank is that of the first correct
    item. Intervals are the percentiles of `bootstrap_by_song`. With few songs they are too narrow, and of width zero
    when every song agrees (R@k of 0 or 100): then they say nothing about the next song.

    Args:
        ranks: for each query the 1-based ranks of its correct items, from `ranks_of_correct`.
        gallery_size: N, the number of items every query was ranked against.
        groups: for each query the label of its song, no None.
        k: cut-offs; those above N are left out.

    Returns:
        See the module's inputs description. Numbers are plain int and float.

    Raises:
        ValueError: there is no query, a query's ranks are not distinct integers in 1..N, `groups` does not give one
            label per query, or a setting is out of its range.
    """
    _check_settings(k, num_bootstrap, confidence)
    ranks = [_checked_ranks(query, gallery_size, index) for index, query in enumerate(ranks)]
    song_of_query, num_songs = _song_indices(groups, len(ranks))
    first_ranks = np.array([query[0] for query in ranks])  # (Q,)
    cutoffs = [int(cutoff) for cutoff in sorted(set(k)) if cutoff <= gallery_size]
    values = [*(first_ranks <= cutoff for cutoff in cutoffs), average_precisions(ranks)]
    values = 100 * np.stack(values, axis=1).astype(np.float64)  # (Q, M), percent
    points = [*values.mean(axis=0).tolist(), float(np.median(first_ranks))]
    lows = highs = [None] * len(points)
    if num_songs > 1:
        means, medians = bootstrap_by_song(values, first_ranks, song_of_query, num_bootstrap, seed)
        resampled = np.concatenate([means, medians[:, None]], axis=1)  # (B, M + 1)
        lows, highs = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).tolist()
    chances = chance_levels(gallery_size, np.array([len(query) for query in ranks]), cutoffs)
    figures = {
        name: {"value": value, "low": low, "high": high, "chance": chance}
        for (name, chance), value, low, high in zip(chances.items(), points, lows, highs, strict=True)
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


def _checked_ranks(query: Sequence[int], gallery_size: int, index: int) -> np.ndarray:
    """Ascending ranks (C,) of one query; ValueError unless they are distinct whole numbers in 1..N."""
    given = np.asarray(query, dtype=np.float64)
    ranks = np.unique(given).astype(np.int64)
    whole = len(ranks) == len(given) and (ranks == np.sort(given)).all()
    if not whole or len(ranks) == 0 or ranks[0] < 1 or ranks[-1] > gallery_size:
        raise ValueError(
            f"query {index}: expected one distinct rank in 1..{gallery_size} per correct item, found {len(given)} "
            f"numbers, {given[:8].tolist()} first. Predictions are ranks, not scores: reduce them by ranks_of_correct."
        )
    return ranks


def _song_indices(groups: Sequence[Hashable], num_queries: int) -> tuple[np.ndarray, int]:
    """Song of each query as an index (Q,) and the number of songs G."""
    if num_queries == 0 or len(groups) != num_queries:
        raise ValueError(f"found {num_queries} queries and {len(groups)} groups: give one song label per query.")
    missing = [index for index, label in enumerate(groups) if label is None or label != label]
    if missing:
        raise ValueError(f"query {missing[0]} has no song label in groups, found {groups[missing[0]]}.")
    # Sorted, so that the order of the queries does not change which songs a seed draws.
    index_of_song = {label: index for index, label in enumerate(sorted(set(groups), key=repr))}
    return np.array([index_of_song[label] for label in groups]), len(index_of_song)


class AudioTextRetrieval(evaluate.Metric):
    """The metric module; `evaluate.load` finds it by this folder. See the top of the file and `retrieval_metrics`."""

    # Reached from a loaded metric, whose module has no importable name.
    ranks_of_correct = staticmethod(ranks_of_correct)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    # Not int64: evaluate would truncate scores given by mistake, and they could pass as ranks.
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[list[int]],
        references: list[int],
        groups: Sequence[Hashable] | None = None,
        k: Sequence[int] = (1, 5, 10, 20, 100),
        num_bootstrap: int = 1000,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> dict:
        if groups is None:
            raise ValueError("groups is missing: give compute() one song label per query; the interval is by song.")
        gallery_sizes = sorted(set(references))
        if len(gallery_sizes) != 1:
            raise ValueError(f"all queries must share one gallery, found the sizes {gallery_sizes}.")
        return retrieval_metrics(predictions, gallery_sizes[0], groups, k, num_bootstrap, seed, confidence)
