"""Figures with an interval by song, and what describes a distribution; pure functions.

Dimensions: `A` songs, `Q` queries, `R` resamples.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from ..metrics import MAX_BOOTSTRAP_CELLS

NUM_RESAMPLES = 1000


def figure(
    statistic: Callable[[np.ndarray], np.ndarray],
    num_songs: int,
    chance: float | None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
) -> dict[str, float | None]:
    """Return a statistic of songs with its percentile interval by a bootstrap over them.

    Args:
        statistic: of songs (R, A), as indices, to its values (R,).
        chance: what random scores give; None where nothing does.

    Returns:
        "value", "low" and "high" (None if there is one song only), "chance". Resamples without a value, in which all
        songs are the same one, say, are left out; with less than half of them there is no interval.
    """
    found = {"value": float(statistic(np.arange(num_songs)[None])[0]), "low": None, "high": None, "chance": chance}
    if num_songs < 2:
        return found
    generator, values = np.random.default_rng(seed), []
    block = max(1, MAX_BOOTSTRAP_CELLS // num_songs)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        values.append(statistic(generator.integers(num_songs, size=(size, num_songs))))
    values = np.concatenate(values)
    defined = values[np.isfinite(values)]
    if 2 * len(defined) > len(values):
        found["low"], found["high"] = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return found


def mean_figure(values: np.ndarray, song_of_value: np.ndarray, chance: float | None, seed: int = 0) -> dict:
    """Return the mean of values (Q,), of which a song may have several, as [`figure`] does.

    Args:
        song_of_value: (Q,) song of each as an index.
    """
    num_songs = int(song_of_value.max()) + 1
    sums, counts = (
        np.bincount(song_of_value, values, num_songs),
        np.bincount(song_of_value, minlength=num_songs),
    )  # (A,)
    return figure(lambda drawn: sums[drawn].sum(-1) / counts[drawn].sum(-1), num_songs, chance, seed)


def skewness(values: np.ndarray) -> np.ndarray:
    """Return the third central moment of (..., A) by the cube of the standard deviation; 0 where all are equal."""
    centred = values - values.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1))
    safe = np.where(deviation > 1e-12, deviation, 1)
    return np.where(deviation > 1e-12, (centred**3).mean(-1) / safe**3, 0.0)


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation over the last axis of two (..., A); NaN where one does not vary."""
    first, second = (one - one.mean(-1, keepdims=True) for one in (first, second))
    norms = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return np.where(norms > 1e-12, (first * second).sum(-1) / np.where(norms > 1e-12, norms, 1), np.nan)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation over the last axis of two (..., A), equal values of equal rank; NaN where one does
    not vary."""
    return correlation(rankdata(first, axis=-1), rankdata(second, axis=-1))
