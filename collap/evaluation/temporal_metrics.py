"""Measure whether a score knows time: order, pointing, spans; pure functions, and what collects their values.

Dimensions: `n` queries, `Q` sentences of a song, `W` frames of a curve.
"""

from collections.abc import Callable, Sequence

import mir_eval
import numpy as np
import torch

from modeling_collap.localization_collap import curve_spans

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


def best_iou(found: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the overlap of each span with that of some windows which it overlaps most, (n, 2) and (K, 2) -> (n,)."""
    found, windows = np.asarray(found, np.float64)[:, None], np.asarray(windows, np.float64)  # (n, 1, 2), (K, 2)
    both = np.minimum(found[..., 1], windows[:, 1]) - np.maximum(found[..., 0], windows[:, 0])  # (n, K)
    both = both.clip(0)
    lengths = (found[..., 1] - found[..., 0]) + (windows[:, 1] - windows[:, 0])  # (n, K)
    return (both / (lengths - both)).max(1)


def window_iou(found: np.ndarray, windows: Sequence[np.ndarray]) -> np.ndarray:
    """Return the overlap of each query's span with that of its true windows which it overlaps most.

    As in the evaluation of QVHighlights (Lei et al. 2021), of the one span that is found for a query.

    Args:
        found: (Q, 2) seconds.
        windows: of every query (K, 2) seconds, K at least one.

    Returns:
        (Q,).
    """
    return np.array([best_iou([span], own)[0] for span, own in zip(found, windows, strict=True)])


def covered_seconds(windows: np.ndarray) -> float:
    """Return how many seconds lie in any of the windows (K, 2), which may overlap."""
    covered, last = 0.0, -np.inf
    for start, end in sorted(map(tuple, windows)):
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    return covered


def overlaps_at_chosen_level(
    curves: Sequence[np.ndarray],
    times: Sequence[np.ndarray],
    true: Sequence,
    levels: Sequence[float],
    overlap: Callable = span_iou,
) -> tuple[list[np.ndarray], tuple[float, float]]:
    """Return the overlaps of spans whose level was chosen on other songs: even songs by odd ones, odd by even.

    The level is the one with the most overlaps of one half or more, of equal ones the lowest.

    Args:
        curves: of every song (Q, W); there are two songs or more.
        times: of every song (W, 2) seconds.
        true: of every song what `overlap` compares spans (Q, 2) with: (Q, 2) seconds.

    Returns:
        For every song the overlaps (Q,), and the levels of even and of odd songs.
    """
    table = [
        np.stack([overlap(curve_spans(*map(torch.from_numpy, (song, when)), level).numpy(), own) for level in levels])
        for song, when, own in zip(curves, times, true, strict=True)
    ]  # for every song (levels, Q)
    hits = [np.concatenate(table[half::2], axis=1) >= 0.5 for half in (0, 1)]  # (levels, Q of these songs)
    chosen = [int(hits[1 - half].mean(1).argmax()) for half in (0, 1)]
    found = [one[chosen[index % 2]] for index, one in enumerate(table)]
    return found, (levels[chosen[0]], levels[chosen[1]])


class Measured:
    """Collect values by the name of their figure, each with the song that it comes from and what chance would give."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}
        self.chances: dict[str, list[float]] = {}
        self.songs: dict[str, list[int]] = {}

    def add(self, name: str, song: int, values: Sequence[float], chance: float | Sequence[float]) -> None:
        """Add the values (n,) of a song, from 0 to 1, with their chance levels: one for all, or (n,)."""
        values = np.asarray(values, np.float64)
        self.values.setdefault(name, []).extend(values.tolist())
        self.chances.setdefault(name, []).extend(np.broadcast_to(chance, values.shape).tolist())
        self.songs.setdefault(name, []).extend([song] * len(values))

    def figures(self, seed: int) -> dict[str, dict]:
        """Return mean, interval, chance and numbers of every figure, in %."""
        return {
            name: share_with_interval(values, self.songs[name], seed)
            | {"chance": 100 * float(np.mean(self.chances[name]))}
            for name, values in self.values.items()
        }
