"""Measure whether a score knows time: order, pointing, spans; pure functions.

Dimensions: `n` queries, `W` frames of a curve.
"""

from collections.abc import Sequence

import mir_eval
import numpy as np

from .metrics import bootstrap_by_song


def order_correct(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Tell of every pair of scores whether the right one is higher: (n,) of 1, 0, and a half for ties."""
    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    return (right > wrong) + 0.5 * (right == wrong)


def points_inside(curve: np.ndarray, times: np.ndarray, span: tuple[float, float]) -> bool:
    """Tell whether the middle of the frame where a curve (W,) is highest lies in a span.

    Args:
        times: (W, 2) start and end of every frame in seconds.
    """
    return bool(span[0] <= times[int(np.argmax(curve))].mean() < span[1])


def span_iou(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the intersection over union of spans in seconds, (n, 2) and (n, 2) -> (n,)."""
    found, true = np.asarray(found, np.float64), np.asarray(true, np.float64)
    both = np.minimum(found[:, 1], true[:, 1]) - np.maximum(found[:, 0], true[:, 0])
    return np.clip(both, 0, None) / (np.diff(found)[:, 0] + np.diff(true)[:, 0] - np.clip(both, 0, None))


def frame_average_precision(curve: np.ndarray, inside: np.ndarray) -> float:
    """Return the mean precision at every frame that is inside, with the frames ranked by the curve.

    Args:
        curve: (W,).
        inside: (W,) bool, at least one True.
    """
    ranked = inside[np.argsort(-curve, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())


def boundary_f_measures(
    found: Sequence[float], true: Sequence[float], end: float, windows: Sequence[float] = (0.5, 3.0)
) -> list[float]:
    """Return F-measures of boundaries within so many seconds of the true ones, by mir_eval; start and end are none.

    Args:
        found, true: seconds between sections.
        end: of the song, in seconds.
    """

    def intervals(boundaries: Sequence[float]) -> np.ndarray:
        return mir_eval.util.boundaries_to_intervals(np.unique([0.0, *boundaries, end]))

    pair = intervals(true), intervals(found)
    return [float(mir_eval.segment.detection(*pair, window=window, trim=True)[2]) for window in windows]


def share_with_interval(
    values: Sequence[float], songs: Sequence[int], seed: int = 0, num_bootstrap: int = 1000
) -> dict[str, float | int]:
    """Return the mean of values in % with its 95 % bootstrap interval by song.

    Args:
        values: (n,).
        songs: (n,) song of every value, any whole numbers.
    """
    values, (names, places) = np.asarray(values, np.float64), np.unique(songs, return_inverse=True)
    means, _ = bootstrap_by_song(values[:, None], np.ones(len(values)), places, num_bootstrap, seed)
    low, high = np.quantile(100 * means[:, 0], (0.025, 0.975))
    return {
        "mean": 100 * float(values.mean()),
        "low": float(low),
        "high": float(high),
        "queries": len(values),
        "songs": len(names),
    }
