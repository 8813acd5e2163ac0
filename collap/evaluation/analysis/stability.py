"""How much a song moves when its file changes: as a vector, and in what it is found by and what it finds.

One song is changed at a time, the others are as they were: one file of a library was ripped anew. So a change that
lifts or lowers every score is seen, which it would not be if the whole library went through it.

Dimensions: `A` songs, `B` texts, `C` correct items of a query, `D` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..comparison import compare_models
from ..embedders import Embedder
from ..metrics import Measure, chance_first_rank_above
from ..results import DIRECTIONS
from ..songs import RetrievalSet, ranks_by_direction
from .analysis import COMPARED, Analysis, Outcome, check_metrics, check_numbers, retrieval_measures
from .changes import ORIGINAL, Change
from .pool_run import PoolRun
from .statistics import mean_figure

CHANNELS = {"mono": "mono file", "left": "left channel"}
ANOTHER = "another song"
COSINE = Measure("cosine", "cosine with the original", "", 4, True, f"of pooled vectors; {ANOTHER}: of two originals")
NEAREST = Measure(
    "nearest", "own original is the nearest", "%", 1, True, "changed songs that are nearest to their own original"
)
MOVED = {
    direction: Measure(
        f"{direction} ranks",
        f"ranks moved, {facts['title'].lower()}",
        "rank",
        2,
        False,
        "mean over queries of how far the (first) correct item moves in the ranking; chance: two random rankings",
    )
    for direction, facts in DIRECTIONS.items()
}


def own_ranks(own: np.ndarray, scores: np.ndarray, songs: RetrievalSet) -> np.ndarray:
    """Return the rank (B,) of every text's own song among the songs that the text does not describe.

    Args:
        own: (B,) score of each text with its own song, which alone may be changed; a wrong one of equal score is ahead.
        scores: (A, B) of all songs as they are.
    """
    wrong = np.ones(scores.shape, dtype=bool)  # (A, B)
    for text, described in enumerate(songs.songs_of_texts()):
        wrong[described, text] = False
    return 1 + ((scores >= own) & wrong).sum(axis=0)


def ranks_after(changed: np.ndarray, scores: np.ndarray, songs: RetrievalSet) -> dict[str, tuple]:
    """Return the ranks of both directions when one song at a time is changed, as [`ranks_by_direction`] does.

    Args:
        changed, scores: (A, B) of the changed songs and of the songs as they are.
    """
    own = changed[songs.song_of_text, np.arange(len(songs.texts))]  # (B,)
    text_names = [songs.names[song] for song in songs.song_of_text]
    ranks = own_ranks(own, scores, songs)[:, None]
    return {
        "text_to_audio": (ranks, len(scores), text_names),
        "audio_to_text": ranks_by_direction(changed, songs)["audio_to_text"],
    }


def chance_moved(gallery_size: int, num_correct: int) -> float:
    """Return the expected distance of the first of C correct ranks in two random rankings of P items; exact.

    `E|X - Y| = 2 sum_r Pr(X > r) Pr(X <= r)` for two independent X and Y of one distribution.
    """
    above = chance_first_rank_above(gallery_size, num_correct)  # (P,)
    return float(2 * (above * (1 - above)).sum())


def vector_figures(changed: np.ndarray, originals: np.ndarray, seed: int) -> dict[str, dict]:
    """Compare changed vectors (A, D) with the originals (A, D), both of unit norm: cosine, and how often the own
    original is nearest; another as near counts as nearer."""
    cosines = changed.astype(np.float64) @ originals.astype(np.float64).T  # (A, A)
    songs, own = np.arange(len(cosines)), np.diagonal(cosines)  # (A,)
    nearest = ((cosines < own[:, None]) | np.eye(len(songs), dtype=bool)).all(axis=1)  # (A,)
    return {
        COSINE.name: mean_figure(own, songs, None, seed),
        NEAREST.name: mean_figure(100.0 * nearest, songs, 100 / len(songs), seed),
    }


def cosine_of_others(originals: np.ndarray, seed: int) -> dict:
    """Return the mean cosine of every song with the others: what a cosine is to be compared with.

    Args:
        originals: (A, D) of unit norm.
    """
    cosines = originals.astype(np.float64) @ originals.astype(np.float64).T  # (A, A)
    means = (cosines.sum(axis=1) - np.diagonal(cosines)) / (len(cosines) - 1)  # (A,)
    return mean_figure(means, np.arange(len(means)), None, seed)


def rank_figures(
    changed: np.ndarray, scores: np.ndarray, songs: RetrievalSet, metrics: Sequence[str], seed: int
) -> tuple[dict[str, dict], list[dict]]:
    """Return how far ranks move and by how much figures of retrieval change, and the tests of the latter.

    Args:
        changed, scores: (A, B) of the changed songs and of the songs as they are.
    """
    cutoffs = [int(name[2:]) for name in metrics if name.startswith("R@")] or [1]
    before, figures, tests = ranks_after(scores, scores, songs), {}, []
    places = {name: index for index, name in enumerate(songs.names)}
    for direction, (ranks, size, groups) in ranks_after(changed, scores, songs).items():
        firsts = [np.array([query[0] for query in one]) for one in (ranks, before[direction][0])]  # (Q,)
        moved = np.abs(firsts[0] - firsts[1]).astype(float)
        chance = float(np.mean([chance_moved(size, len(query)) for query in ranks]))
        song_of_query = np.array([places[name] for name in groups])
        figures[MOVED[direction].name] = mean_figure(moved, song_of_query, chance, seed)
        found = compare_models(ranks, before[direction][0], size, groups, k=cutoffs, seed=seed)
        for name in metrics:
            if name in found:
                one = {"value": found[name]["difference"], "low": found[name]["low"], "high": found[name]["high"]}
                figures[f"{direction} {name}"] = {**one, "chance": 0.0}
        tests.append({"measure": f"{direction} {COMPARED}", **found[COMPARED]})
    return figures, tests


@dataclass(frozen=True)
class Stability(Analysis):
    """Change one song at a time: delay it by seconds of silence, re-encode it at kbit/s, take its channels, make it
    louder by dB."""

    name: ClassVar[str] = "stability"
    title: ClassVar[str] = "Stability"
    question: ClassVar[str] = "Is another copy of a song the same song to the model?"

    shifts: tuple = (0.15, 0.4, 1.2)
    mp3: tuple = (128,)
    opus: tuple = (96,)
    channels: tuple = ("mono", "left")
    gains: tuple = (6, -6)
    metrics: tuple = ("R@10", COMPARED)

    def __post_init__(self):
        check_metrics(self.metrics)
        for name in ("shifts", "mp3", "opus"):
            if getattr(self, name) != ():
                check_numbers(name, getattr(self, name))
        if self.gains != ():
            check_numbers("gains", self.gains, -100)
        for name in self.channels if isinstance(self.channels, tuple) else (self.channels,):
            if name not in CHANNELS:
                raise ValueError(f"channels: {name!r}; expected a list of {', '.join(CHANNELS)}")
        if not self.changes():
            raise ValueError("shifts: nothing is changed; expected shifts, mp3, opus, channels or gains")

    def changes(self) -> list[Change]:
        """Return the changes that are made."""
        return [
            *(Change(f"shift {seconds:g} s", "shift", float(seconds)) for seconds in self.shifts),
            *(Change(f"mp3 {kbits:g} kbit/s", "mp3", float(kbits)) for kbits in self.mp3),
            *(Change(f"opus {kbits:g} kbit/s", "opus", float(kbits)) for kbits in self.opus),
            *(Change(CHANNELS[name], name) for name in self.channels),
            *(Change(f"{decibels:+g} dB", "gain", float(decibels)) for decibels in self.gains),
        ]

    def measures(self) -> tuple[Measure, ...]:
        differences = retrieval_measures(self.metrics, "change of ")
        return (COSINE, NEAREST, *MOVED.values(), *differences)

    def hears(self, embedder: Embedder) -> list[tuple[Embedder, Change]]:
        return [(embedder, change) for change in (ORIGINAL, *self.changes())]

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        scores, originals = run.scores(embedder), run.vectors(embedder)
        outcome = Outcome(notes=["one song at a time is changed, the others are as they were"])
        for change in self.changes():
            figures = vector_figures(run.vectors(embedder, change), originals, run.seed)
            ranks, tests = rank_figures(run.scores(embedder, change), scores, run.songs, self.metrics, run.seed)
            outcome.figures[change.label] = figures | ranks
            outcome.comparisons += [{"first": change.label, "second": ORIGINAL.label, **one} for one in tests]
        outcome.figures[ANOTHER] = {COSINE.name: cosine_of_others(originals, run.seed)}
        return outcome
