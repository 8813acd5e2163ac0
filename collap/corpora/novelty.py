"""Find where the sound of a track changes, and which of its sections sound alike: pure functions of `frames`.

A boundary is a peak of the novelty of timbre (Foote, "Automatic Audio Segmentation Using a Measure of Audio Novelty",
ICME 2000). His checkerboard kernel is the outer product of a vector with itself, so that the correlation with the
self-similarity matrix is the squared length of one filtered sequence: no matrix is needed, time and memory grow
with the length of the track.

Dimensions: `F` frames, `C` features of a frame, `S` sections.
"""

import numpy as np

from .frames import HOP, WINDOW
from .tracks import RATE

KERNEL_SECONDS = 28.0  # both sides of the kernel together, as in MSAF (Nieto and Bello, ISMIR 2016)
MIN_SECTION_SECONDS = 6.0
# A boundary explains so much of the variance of timbre around it: stationary noise stays below 2 %.
MIN_NOVELTY = 0.05
# Squared distances of the means of sections that sound alike, in parts of the track's variance.
ALIKE_TIMBRE, ALIKE_CHROMA = 1.0, 0.05
# Variances below which nothing changes that one could hear: 1 dB, a tenth of the length of a chroma vector.
LEAST_TIMBRE, LEAST_CHROMA = 1.0, 0.01


def standardised(features: np.ndarray, least: float) -> np.ndarray:
    """Return features (F, C) of mean 0, and of variance 1 over all C together unless it is below `least`."""
    centred = features - features.mean(0)
    return centred / np.sqrt(max(np.square(centred).sum(1).mean(), least))


def novelty_curve(features: np.ndarray, half: int) -> np.ndarray:
    """Return a quarter of the squared distance between the means of what lies before a frame and from it on.

    These means are weighted by half a Gaussian whose standard deviation is half of its `half` frames. Where all of
    them are there, this is Foote's correlation of the self-similarity matrix with a checkerboard kernel. It is the part
    of the variance that a boundary explains, if features have variance 1.

    Args:
        features: (F, C).
        half: frames of one side of the kernel.

    Returns:
        (F,), 0 for the first frame, which nothing lies before.
    """
    weights = np.exp(-0.5 * ((np.arange(min(half, len(features))) + 0.5) / (half / 2)) ** 2)  # (half,)
    before = _means_up_to(features, weights)  # (F, C)
    after = _means_up_to(features[::-1], weights)[::-1]  # (F, C)
    curve = np.zeros(len(features))
    curve[1:] = np.square(after[1:] - before[:-1]).sum(1) / 4
    return curve


def _means_up_to(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return weighted means (F, C) of every frame with those before it; the last weight is of the earliest."""
    columns = (np.convolve(column, weights)[: len(features)] for column in features.T)
    shares = np.cumsum(weights)[np.minimum(np.arange(len(features)), len(weights) - 1)]  # (F,)
    return np.stack(list(columns), axis=1) / shares[:, None]


def pick_peaks(curve: np.ndarray, half: int, distance: int, least: float) -> list[int]:
    """Return peaks of a curve (F,) that are above its mean over `half` frames on both sides.

    Args:
        distance: frames between two peaks, of which the higher one is taken, and from both ends.
        least: no peak is lower.

    Returns:
        Frames, ascending.
    """
    sums = np.concatenate([[0.0], np.cumsum(curve)])
    places = np.arange(len(curve))
    first, stop = np.maximum(places - half, 0), np.minimum(places + half + 1, len(curve))
    is_high = curve >= np.maximum((sums[stop] - sums[first]) / (stop - first), least)
    is_peak = is_high & (curve > np.roll(curve, 1)) & (curve >= np.roll(curve, -1))
    peaks = np.flatnonzero(is_peak & (places >= distance) & (places <= len(curve) - distance))
    taken: list[int] = []
    for peak in peaks[np.argsort(-curve[peaks], kind="stable")].tolist():
        if all(abs(peak - other) >= distance for other in taken):
            taken.append(peak)
    return sorted(taken)


def section_edges(timbre: np.ndarray) -> list[int]:
    """Return the frames at which sections start, and the number of frames, by the timbre (F, 13)."""
    if not len(timbre):
        return [0, 0]
    half, distance = (round(seconds * RATE / HOP) for seconds in (KERNEL_SECONDS / 2, MIN_SECTION_SECONDS))
    curve = novelty_curve(standardised(timbre, LEAST_TIMBRE), half)
    return [0, *pick_peaks(curve, half, distance, MIN_NOVELTY), len(timbre)]


def edge_seconds(edge: int) -> float:
    """Return the time between the middles of a frame and the one before it."""
    return (edge * HOP + (WINDOW - HOP) / 2) / RATE


def alike_sections(timbre: np.ndarray, chroma: np.ndarray, edges: list[int]) -> list[int]:
    """Tell which sections sound alike, in timbre and in harmony.

    Args:
        timbre, chroma: (F, 13) and (F, 12).
        edges: S + 1 frames.

    Returns:
        Of every section the number of its group, S of them, 0 for the first one's, then as they come.
    """
    if edges[-1] == 0:
        return [0]
    distances = [
        _squared_distances(np.add.reduceat(standardised(*one), edges[:-1]) / np.diff(edges)[:, None]) / alike  # (S, S)
        for one, alike in (((timbre, LEAST_TIMBRE), ALIKE_TIMBRE), ((chroma, LEAST_CHROMA), ALIKE_CHROMA))
    ]
    return average_linkage(np.maximum(*distances), 1.0)


def _squared_distances(means: np.ndarray) -> np.ndarray:
    return np.square(means[:, None] - means[None]).sum(-1)  # (S, C) -> (S, S)


def average_linkage(distances: np.ndarray, limit: float) -> list[int]:
    """Join the two groups whose mean distance is smallest, as long as it is at most `limit`.

    Args:
        distances: (S, S), symmetric.

    Returns:
        Of every item its group, numbered as they come.
    """
    distances, sizes = distances.astype(np.float64), np.ones(len(distances))
    np.fill_diagonal(distances, np.inf)
    groups = np.arange(len(distances))
    while distances.min() <= limit:
        one, other = divmod(int(distances.argmin()), len(distances))
        row = (sizes[one] * distances[one] + sizes[other] * distances[other]) / (sizes[one] + sizes[other])
        distances[one], distances[:, one] = row, row
        distances[one, one] = distances[other] = distances[:, other] = np.inf
        sizes[one] += sizes[other]
        groups[groups == groups[other]] = groups[one]
    order = {group: number for number, group in enumerate(dict.fromkeys(groups.tolist()))}
    return [order[group] for group in groups.tolist()]
