"""Figures of labels: accuracy, average precision and area under the ROC curve, of songs that are drawn again.

A resample is a number of times for every song, so that scores are sorted once. Equal scores are one threshold, as in
scikit-learn; a test compares.

Dimensions: `A` songs, `L` labels, `R` resamples.
"""

from collections.abc import Sequence

import numpy as np

from ..metrics import Measure, chance_average_precision
from .statistics import figure

ACCURACY = Measure("accuracy", "accuracy", "%", 1, True, "songs whose highest score is that of their label")
MEAN_PRECISION = Measure("mAP", "mAP", "%", 1, True, "mean over labels of the average precision with which songs rank")
ROC_AUC = Measure(
    "ROC-AUC", "ROC-AUC", "%", 1, True, "mean over labels of how often a song with it is above one without, ties half"
)
LABEL_MEASURES = (ACCURACY, MEAN_PRECISION, ROC_AUC)


def label_table(texts: Sequence[str], song_of_text: Sequence[int], num_songs: int) -> tuple[list[str], np.ndarray]:
    """Return the labels of songs, sorted, and which song has which: (A, L) bool.

    Args:
        texts: the labels of all songs, and `song_of_text` whose each is.
    """
    words = [" ".join(text.split()) for text in texts]
    labels = sorted(set(words))
    place = {label: index for index, label in enumerate(labels)}
    has = np.zeros((num_songs, len(labels)), dtype=bool)
    for word, song in zip(words, song_of_text, strict=True):
        has[song, place[word]] = True
    return labels, has


def drawn_counts(drawn: np.ndarray) -> np.ndarray:
    """Return how often every song is drawn, (R, A) indices -> (R, A) counts."""
    num_draws, num_songs = drawn.shape
    places = drawn + num_songs * np.arange(num_draws)[:, None]
    return np.bincount(places.ravel(), minlength=num_draws * num_songs).reshape(num_draws, num_songs)


def threshold_counts(scores: np.ndarray, has: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many songs with a label, and how many without, stand at every distinct score or above.

    Args:
        scores: (A,) of one label.
        has: (A,) bool, which songs have it.
        counts: (R, A) how often each song is drawn.

    Returns:
        (R, thresholds) each, from the highest score down.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of every run of equal scores
    ordered, own = counts[:, order], has[order]
    return np.cumsum(ordered * own, axis=1)[:, last], np.cumsum(ordered * ~own, axis=1)[:, last]


def average_precision(scores: np.ndarray, has: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the average precision of a label in every resample, (R,); NaN where no song drawn has it.

    The sum over thresholds of what recall they add times their precision.
    """
    with_label, without = threshold_counts(scores, has, counts)  # (R, thresholds)
    total = with_label[:, -1]
    added = np.diff(with_label, axis=1, prepend=0)
    precision = with_label / np.maximum(with_label + without, 1)
    return np.where(total > 0, (added * precision).sum(1) / np.maximum(total, 1), np.nan)


def roc_auc(scores: np.ndarray, has: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the area under a label's ROC curve in every resample, (R,); NaN where all songs drawn have it, or none."""
    with_label, without = threshold_counts(scores, has, counts)  # (R, thresholds)
    pairs = with_label[:, -1] * without[:, -1]
    below = without[:, -1:] - without + np.diff(without, axis=1, prepend=0) / 2  # and half of those that are equal
    area = (np.diff(with_label, axis=1, prepend=0) * below).sum(1)
    return np.where(pairs > 0, area / np.maximum(pairs, 1), np.nan)


def mean_of_labels(statistic, scores: np.ndarray, has: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the mean over labels, in percent, of a statistic of songs that are drawn: (R,).

    A label that is undefined in a resample is left out of its mean.

    Args:
        statistic: [`average_precision`] or [`roc_auc`].
        scores: (A, L).
        has: (A, L) bool.
        drawn: (R, A) songs, as indices.
    """
    counts = drawn_counts(drawn)
    total, defined = np.zeros(len(drawn)), np.zeros(len(drawn))
    for label in range(has.shape[1]):
        values = statistic(scores[:, label], has[:, label], counts)  # (R,)
        total += np.nan_to_num(values)
        defined += np.isfinite(values)
    return 100 * np.where(defined > 0, total / np.maximum(defined, 1), np.nan)


def right_labels(scores: np.ndarray, has: np.ndarray) -> np.ndarray:
    """Return which songs have the highest score at their one label, (A,); a tie with another label is wrong."""
    own = np.where(has, scores, -np.inf).max(1)
    others = np.where(has, -np.inf, scores).max(1)
    return own > others


def label_figures(scores: np.ndarray, has: np.ndarray, seed: int) -> dict[str, dict]:
    """Return all figures of labels with intervals by song, and what random scores give.

    Accuracy is of songs that have one label each; where any has more or none, it is left out.

    Args:
        scores: (A, L).
        has: (A, L) bool; every label is had by a song.
    """
    num_songs, sizes = len(has), has.sum(0)  # (L,)
    found = {}
    if (has.sum(1) == 1).all():
        right = 100.0 * right_labels(scores, has)
        found[ACCURACY.name] = figure(lambda drawn: right[drawn].mean(-1), num_songs, 100 / has.shape[1], seed)
    chances = {
        MEAN_PRECISION.name: 100 * float(np.mean([chance_average_precision(num_songs, int(one)) for one in sizes])),
        ROC_AUC.name: 50.0,
    }
    for name, statistic in ((MEAN_PRECISION.name, average_precision), (ROC_AUC.name, roc_auc)):
        found[name] = figure(
            lambda drawn, one=statistic: mean_of_labels(one, scores, has, drawn), num_songs, chances[name], seed
        )
    return found
