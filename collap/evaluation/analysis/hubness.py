"""Whether a few songs answer everything, and how many answer nothing: how often a song is among the first k of a text.

Hubs are a matter of high-dimensional vectors, not of the songs (Radovanovic, Nanopoulos and Ivanovic 2010, "Hubs in
space"): their k-occurrence N_k is skewed, where random rankings give nearly symmetric counts.

Dimensions: `A` songs, `B` texts, `R` resamples.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..embedders import Embedder
from ..metrics import Measure
from .analysis import Analysis, Outcome, check_numbers
from .pool_run import PoolRun
from .statistics import figure, mean_figure, skewness

MAX_RANDOM_CELLS, MAX_RANDOM_DRAWS = 30_000_000, 100  # a second or two
SKEWNESS = Measure("skewness", "skewness of N_k", "", 2, False, "of how often a song is among the first k of a text")
NEVER = Measure("never", "songs that no text finds", "%", 1, False, "songs that are among the first k of no text")
LARGEST = Measure(
    "largest",
    "texts that find the largest hub",
    "%",
    1,
    False,
    "texts that have the song of the largest N_k among their first k; the interval is that of this one song",
)


def occurrences(scores: np.ndarray, k: int) -> np.ndarray:
    """Return whether a song is among the first k of a text: (A, B), 1 or 0; songs that tie for the last places share
    them, so that a text always has k in sum.

    Args:
        scores: (A, B).
    """
    last = -np.partition(-scores, k - 1, axis=0)[k - 1]  # (B,) the k-th highest
    above, tied = scores > last, scores == last  # (A, B)
    return above + tied * ((k - above.sum(axis=0)) / tied.sum(axis=0))


@functools.lru_cache(maxsize=16)
def chance_hubness(num_songs: int, num_texts: int, k: int, seed: int) -> tuple[float, float, float]:
    """Return skewness, percent of songs never found, and percent of texts that find the largest hub of random scores:
    means of up to 100 simulated pools."""
    generator = np.random.default_rng(seed)
    draws = min(MAX_RANDOM_DRAWS, max(1, MAX_RANDOM_CELLS // (num_songs * num_texts)))
    found = []
    for _ in range(draws):
        counts = occurrences(generator.random((num_songs, num_texts), dtype=np.float32), k).sum(axis=1)  # (A,)
        found.append((skewness(counts), 100 * (counts == 0).mean(), 100 * counts.max() / num_texts))
    return tuple(np.mean(found, axis=0).tolist())


def hub_figures(scores: np.ndarray, song_of_text: np.ndarray, k: int, seed: int) -> dict[str, dict]:
    """Return the figures of hubness of scores (A, B), each with what random scores give.

    The intervals of the first two are by the songs that are found; that of the largest hub by the songs of the texts
    that find it.

    Args:
        song_of_text: (B,) song of each text as an index.
    """
    found = occurrences(scores, k)  # (A, B)
    counts = found.sum(axis=1)  # (A,)
    skewed, never, largest = chance_hubness(*scores.shape, k, seed)
    return {
        SKEWNESS.name: figure(lambda drawn: skewness(counts[drawn]), len(counts), skewed, seed),
        NEVER.name: figure(lambda drawn: 100 * (counts[drawn] == 0).mean(-1), len(counts), never, seed),
        LARGEST.name: mean_figure(100.0 * found[counts.argmax()], song_of_text, largest, seed),
    }


@dataclass(frozen=True)
class Hubness(Analysis):
    """Count how often each song is among the first k songs of all texts."""

    name: ClassVar[str] = "hubness"
    title: ClassVar[str] = "Hubness"
    question: ClassVar[str] = "Do a few songs answer every text, and how many answer none?"

    k: tuple = (1, 10)

    def __post_init__(self):
        check_numbers("k", self.k)
        if not all(isinstance(one, int) for one in self.k):
            raise ValueError(f"k: {self.k!r}; expected whole numbers")

    def measures(self) -> tuple[Measure, ...]:
        return (SKEWNESS, NEVER, LARGEST)

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        scores = run.scores(embedder)
        cutoffs = [k for k in sorted(set(self.k)) if k < len(scores)]
        if not cutoffs:
            return Outcome(notes=[f"no hubness: a k below the {len(scores)} songs of the pool is needed"])
        of_text = np.array(run.songs.song_of_text)
        return Outcome({f"k = {k}": hub_figures(scores, of_text, k, run.seed) for k in cutoffs})
