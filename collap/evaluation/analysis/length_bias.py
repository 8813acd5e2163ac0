"""Whether a long song has a better score than a short one with texts about neither.

The paper's score as printed adds up over a song where it should average, so that it grows with the song; see
`modeling_collap/scoring_collap.py`.

Dimensions: `A` songs, `B` texts, `R` resamples.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..embedders import Embedder
from ..metrics import Measure
from ..songs import RetrievalSet
from .analysis import Analysis, Outcome
from .changes import ORIGINAL, Change
from .pool_run import PoolRun
from .statistics import figure, rank_correlation

MAX_STEPS, TOLERANCE = 200, 1e-9  # of the least squares, by turns of both levels
RANK_CORRELATION = Measure(
    "rank_correlation",
    "rank correlation of score and duration",
    "",
    3,
    False,
    "Spearman's, over songs, of their level in scores with texts about others; 0: no bias, 1: the longer, the higher",
)
SLOPE = Measure(
    "slope",
    "what twice the duration adds to a score",
    "",
    3,
    False,
    "by regression on log2 of the seconds, in standard deviations of a text's scores over songs; 0: no bias",
)


def foreign_scores(scores: np.ndarray, songs: RetrievalSet) -> tuple[np.ndarray, float]:
    """Return every song's level (A,) in its scores with texts about other songs, the mean of all songs 0; and the
    standard deviation over songs of a text's scores, a mean over texts.

    A score is fitted, by least squares, as a level of the song plus one of the text. The mean of a song's scores would
    do if no text were left out; so it would have lost the level of the song that each text is about.

    Args:
        scores: (A, B).

    Raises:
        ValueError: a song has no such text, or a text describes all songs but one.
    """
    foreign = np.ones(scores.shape, dtype=bool)  # (A, B)
    for text, described in enumerate(songs.songs_of_texts()):
        foreign[described, text] = False
    foreign[:, foreign.sum(axis=0) < 2] = False  # of one song alone nothing can be compared
    if not foreign.any(axis=1).all():
        raise ValueError("a song has no text about two other songs")
    kept = np.where(foreign, scores.astype(np.float64), np.nan)  # (A, B)
    kept = kept[:, foreign.any(axis=0)]
    scale, levels = float(np.nanstd(kept, axis=0).mean()), np.zeros(len(kept))  # (A,)
    for _ in range(MAX_STEPS):
        of_texts = np.nanmean(kept - levels[:, None], axis=0)  # (at most B,)
        new = np.nanmean(kept - of_texts, axis=1)
        step, levels = np.abs(new - levels).max(), new
        if step <= TOLERANCE * scale:
            break
    return levels - levels.mean(), scale


def slope(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return by how much the second grows with the first, over the last axis of two (..., A); NaN where the first does
    not vary."""
    first = first - first.mean(-1, keepdims=True)
    variance = (first**2).sum(-1)
    safe = np.where(variance > 1e-12, variance, np.nan)
    return (first * second).sum(-1) / safe


def bias_figures(scores: np.ndarray, songs: RetrievalSet, seconds: np.ndarray, seed: int) -> dict[str, dict]:
    """Return both measures of the bias, each with its interval; without one that is not defined.

    Args:
        scores: (A, B).
        seconds: (A,) durations.
    """
    means, scale = foreign_scores(scores, songs)
    doublings = np.log2(seconds)
    statistics = {
        RANK_CORRELATION.name: lambda drawn: rank_correlation(seconds[drawn], means[drawn]),
        SLOPE.name: lambda drawn: slope(doublings[drawn], means[drawn]) / (scale or np.nan),
    }
    found = {name: figure(one, len(means), 0.0, seed) for name, one in statistics.items()}
    return {name: one for name, one in found.items() if np.isfinite(one["value"])}


@dataclass(frozen=True)
class LengthBias(Analysis):
    """Compare the scores of songs with texts about other songs against how long they are, by each way of adding up."""

    name: ClassVar[str] = "length_bias"
    title: ClassVar[str] = "Length bias"
    question: ClassVar[str] = "Does a longer song get a higher score whatever the text?"

    def measures(self) -> tuple[Measure, ...]:
        return (RANK_CORRELATION, SLOPE)

    def _forms(self, embedder: Embedder) -> dict[str, Embedder]:
        return embedder.forms("reduction") or {"its score": embedder}

    def hears(self, embedder: Embedder) -> list[tuple[Embedder, Change]]:
        return [(form, ORIGINAL) for form in self._forms(embedder).values()]

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        seconds, outcome = run.seconds(), Outcome()
        outcome.notes.append(f"songs of {seconds.min():.0f} to {seconds.max():.0f} s")
        for label, form in self._forms(embedder).items():
            try:
                figures = bias_figures(run.scores(form), run.songs, seconds, run.seed)
            except ValueError as error:
                return Outcome(notes=[f"no length bias: {error}"])
            if not figures:
                outcome.notes.append(f"{form.name}: no length bias: all songs are equally long, or all scores equal")
                continue
            outcome.figures[label] = figures
        return outcome
