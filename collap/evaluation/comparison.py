"""Compare two models on the same queries and the same pool: paired bootstrap, paired permutation test, Holm; pure
functions.

Both models answer each query, so what is resampled is the difference within a song: what makes a song easy or hard for
every model drops out, and a difference is seen that two separate intervals would hide.

Dimensions: `Q` queries, `C` correct items of one query, `G` songs, `R` resamples, `V` figures, `M` tests of a table.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from .metrics import MAX_BOOTSTRAP_CELLS, bootstrap_by_song, checked_ranks, query_values, song_indices

NUM_RESAMPLES = 10_000
# Differences that are equal but for the order of a sum must count as equal.
ROUNDING = 1e-9


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    song_of_query: np.ndarray,
    num_bootstrap: int = NUM_RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of the mean of first - second: (V,) lower and (V,) upper ends, percentiles.

    Songs are drawn with replacement, each with all its queries and with what both models made of them
    (`bootstrap_by_song`).

    Args:
        first, second: (Q, V) values of each query under either model.
        song_of_query: (Q,) song of each query as an index 0..G-1, each used.
    """
    means, _ = bootstrap_by_song(first - second, np.zeros(len(first)), song_of_query, num_bootstrap, seed)  # (R, V)
    return tuple(np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0))


def paired_permutation_test(
    first: np.ndarray,
    second: np.ndarray,
    song_of_query: np.ndarray,
    num_permutations: int = NUM_RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Return the two-sided p-value (V,) of the mean of first - second when it does not matter which model is which.

    If it does not, the two models may be exchanged within any song, which turns the sign of the song's sum of
    differences. Songs in which both are equal say nothing. All signs are tried where they are no more than
    `num_permutations`; else so many are drawn, and the observed one counts too: p = (1 + b) / (1 + R), which is never
    0 and holds its level (Phipson and Smyth 2010, "Permutation p-values should never be zero").

    Args:
        first, second: (Q, V) values of each query under either model.
        song_of_query: (Q,) song of each query as an index 0..G-1, each used.
    """
    sums = np.stack([np.bincount(song_of_query, column) for column in (first - second).T], axis=1)  # (G, V)
    sums = sums[(np.abs(sums) > ROUNDING).any(axis=1)]  # (at most G, V)
    observed = np.abs(sums.sum(axis=0)) - ROUNDING * (1 + np.abs(sums).sum(axis=0))  # (V,)
    exact = len(sums) < num_permutations.bit_length()  # 2 ** songs <= permutations
    total = 2 ** len(sums) if exact else num_permutations
    as_large, generator = np.zeros(sums.shape[1]), np.random.default_rng(seed)
    block_size = max(1, MAX_BOOTSTRAP_CELLS // max(1, len(sums)))
    for start in range(0, total, block_size):
        stop = min(start + block_size, total)
        if exact:
            bits = np.arange(start, stop)[:, None] >> np.arange(len(sums)) & 1  # (R, G)
        else:
            bits = generator.integers(2, size=(stop - start, len(sums)))  # (R, G)
        as_large += (np.abs((1 - 2 * bits) @ sums) >= observed).sum(axis=0)
    return as_large / total if exact else (1 + as_large) / (1 + total)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values (M,) adjusted for being the smallest of so many: those at most alpha keep the chance of a single
    false one at alpha (Holm 1979), whatever depends on what."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    found = np.empty_like(p_values)
    found[order] = np.minimum(adjusted, 1)
    return found


def compare_models(
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]],
    gallery_size: int,
    groups: Sequence[Hashable],
    k: Sequence[int] = (1, 5, 10, 20, 100),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, dict[str, float]]:
    """Compare what two models made of the same queries in the same pool.

    Args:
        first, second: for each query the 1-based ranks of its correct items under either model.
        gallery_size, groups, k, seed, confidence: as for `retrieval_metrics`.
        num_resamples: of the bootstrap, and of the permutation test.

    Returns:
        For each figure that is a mean over queries: "difference" (first - second, in percent points), its interval
        "low" and "high" (None if there is one song only), and "p" of the permutation test. For a table of several
        comparisons adjust these by [`holm`].

    Raises:
        ValueError: the models were not asked the same: other queries, another number of correct items, a rank outside
            of the pool.
    """
    both = [[checked_ranks(query, gallery_size, i) for i, query in enumerate(ranks)] for ranks in (first, second)]
    if [len(query) for query in both[0]] != [len(query) for query in both[1]]:
        raise ValueError(
            f"the models were not asked the same: {len(first)} and {len(second)} queries, or other correct items; "
            "compare results of one data set, caption set and pool."
        )
    song_of_query, num_songs = song_indices(groups, len(first))
    cutoffs = [cutoff for cutoff in sorted(set(k)) if cutoff <= gallery_size]
    one, other = (query_values(ranks, cutoffs) for ranks in both)
    values, others = (np.stack([*by_name.values()], axis=1) for by_name in (one, other))  # (Q, V)
    differences = (values - others).mean(axis=0)  # (V,)
    lows = highs = [None] * len(differences)
    if num_songs > 1:
        lows, highs = paired_bootstrap(values, others, song_of_query, num_resamples, seed, confidence)
        lows, highs = lows.tolist(), highs.tolist()
    p_values = paired_permutation_test(values, others, song_of_query, num_resamples, seed)
    return {
        name: {"difference": float(difference), "low": low, "high": high, "p": float(p)}
        for name, difference, low, high, p in zip(one, differences, lows, highs, p_values, strict=True)
    }
