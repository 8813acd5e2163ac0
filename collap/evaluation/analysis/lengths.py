"""Retrieval against the length of the caption, of the audio, and by the encoders that hear it: one curve each.

What is correct stays what it is with whole captions and songs, so the queries and the pool are the same at every point,
and points can be compared within each song.

Dimensions: `A` songs, `B` texts.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..comparison import compare_models
from ..embedders import Embedder
from ..metrics import Measure, retrieval_metrics
from ..songs import RetrievalSet, ranks_by_direction
from .analysis import COMPARED, METRICS, Analysis, Outcome, check_metrics, check_numbers, retrieval_measures
from .changes import FIRST, ORIGINAL, Change
from .pool_run import PoolRun
from .statistics import mean_figure

WHOLE = "whole"
TOKENS = Measure("tokens", "tokens of a text", "tokens", 1, True, "mean over texts, by the tokenizer of the model")


def cut_words(text: str, number: int) -> str:
    """Return a text up to the end of its first words, with the lines between them."""
    words = list(re.finditer(r"\S+", text))
    return text[: words[min(number, len(words)) - 1].end()] if words else text


def compare_conditions(
    scores: dict[str, np.ndarray],
    songs: RetrievalSet,
    pairs: list[tuple[str, str]],
    metrics: tuple[str, ...],
    seed: int,
) -> Outcome:
    """Measure retrieval under conditions, and compare pairs of them on the same queries and pool.

    Args:
        scores: condition -> (A, B).
        pairs: of conditions, each the first minus the second, compared by the mean reciprocal rank alone: a figure
            that uses every rank, and one test for what is one question.
    """
    cutoffs = [int(name[2:]) for name in metrics if name.startswith("R@")] or [1]
    ranked = {condition: ranks_by_direction(matrix, songs) for condition, matrix in scores.items()}
    outcome = Outcome({condition: {} for condition in scores})
    for condition, directions in ranked.items():
        for direction, answers in directions.items():
            found = retrieval_metrics(*answers, k=cutoffs, seed=seed)
            outcome.figures[condition] |= {f"{direction} {name}": found[name] for name in metrics if name in found}
    for first, second in pairs:
        for direction, (ranks, *rest) in ranked[first].items():
            found = compare_models(ranks, ranked[second][direction][0], *rest, k=cutoffs, seed=seed)
            one = {"measure": f"{direction} {COMPARED}", "first": first, "second": second, **found[COMPARED]}
            outcome.comparisons.append(one)
    return outcome


@dataclass(frozen=True)
class CaptionLength(Analysis):
    """Search with the first words of every caption, and among them; words, because these are the same for all models.

    Tokens are not: each text tower has its own. How many tokens they make is shown beside them.
    """

    name: ClassVar[str] = "caption_length"
    title: ClassVar[str] = "Caption length"
    question: ClassVar[str] = "Do more words help to find a song?"
    is_curve: ClassVar[bool] = True

    words: tuple = (5, 10, 20, 40, 77, 150, 300)
    metrics: tuple = METRICS

    def __post_init__(self):
        check_numbers("words", self.words)
        check_metrics(self.metrics)

    def measures(self) -> tuple[Measure, ...]:
        return (*retrieval_measures(self.metrics), TOKENS)

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        texts, songs = run.songs.texts, run.songs
        lengths = np.array([len(text.split()) for text in texts])
        versions = {
            f"{n} words": [cut_words(text, n) for text in texts] for n in sorted(self.words) if n < lengths.max()
        }
        versions[WHOLE] = texts
        scores = {condition: run.scores_of_texts(embedder, version) for condition, version in versions.items()}
        pairs = [(WHOLE, condition) for condition in versions if condition != WHOLE]
        outcome = compare_conditions(scores, songs, pairs, self.metrics, run.seed)
        for condition, version in versions.items():
            if (counts := embedder.count_tokens(version)) is not None:
                of_song = np.array(songs.song_of_text)
                outcome.figures[condition][TOKENS.name] = mean_figure(np.array(counts), of_song, None, run.seed)
        outcome.notes = [
            f"{int((lengths >= n).sum())} of {len(texts)} captions have {n} words"
            for n in sorted(self.words)
            if n < lengths.max()
        ]
        outcome.notes.append(f"whole: {lengths.mean():.0f} words on average, {lengths.max()} at most")
        return outcome


@dataclass(frozen=True)
class AudioLength(Analysis):
    """Search among the first seconds of every song, with whole captions."""

    name: ClassVar[str] = "audio_length"
    title: ClassVar[str] = "Audio length"
    question: ClassVar[str] = "Does more of a song help to find it?"
    is_curve: ClassVar[bool] = True

    seconds: tuple = (10, 30, 60, 120, 300)
    metrics: tuple = METRICS

    def __post_init__(self):
        check_numbers("seconds", self.seconds)
        check_metrics(self.metrics)

    def measures(self) -> tuple[Measure, ...]:
        return retrieval_measures(self.metrics)

    def _cuts(self) -> dict[float, Change]:
        return {seconds: Change(f"{seconds:g} s", FIRST, float(seconds)) for seconds in sorted(self.seconds)}

    def hears(self, embedder: Embedder) -> list[tuple[Embedder, Change]]:
        return [(embedder, change) for change in (*self._cuts().values(), ORIGINAL)]

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        lengths = run.seconds()
        cuts = {seconds: change for seconds, change in self._cuts().items() if seconds < lengths.max()}
        scores = {change.label: run.scores(embedder, change) for change in cuts.values()}
        scores[WHOLE] = run.scores(embedder)
        pairs = [(WHOLE, change.label) for change in cuts.values()]
        outcome = compare_conditions(scores, run.songs, pairs, self.metrics, run.seed)
        outcome.notes = [
            f"{int((lengths > seconds).sum())} of {len(lengths)} songs are longer than {seconds:g} s"
            for seconds in cuts
        ]
        outcome.notes.append(f"whole: {lengths.mean():.0f} s on average, {lengths.max():.0f} s at most")
        return outcome


@dataclass(frozen=True)
class Encoders(Analysis):
    """Search with one audio encoder of a model at a time, the inputs of the other zeroed."""

    name: ClassVar[str] = "encoders"
    title: ClassVar[str] = "Encoders"
    question: ClassVar[str] = "What do the music and the speech encoder each bring?"

    metrics: tuple = METRICS

    def __post_init__(self):
        check_metrics(self.metrics)

    def measures(self) -> tuple[Measure, ...]:
        return retrieval_measures(self.metrics)

    def hears(self, embedder: Embedder) -> list[tuple[Embedder, Change]]:
        return [(form, ORIGINAL) for form in embedder.forms("encoders").values()]

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        forms = embedder.forms("encoders")
        if not forms:
            return Outcome(notes=[f"{embedder.name}: has no two encoders to hear apart"])
        scores = {label: run.scores(form) for label, form in forms.items()}
        both, *others = scores
        return compare_conditions(scores, run.songs, [(both, one) for one in others], self.metrics, run.seed)
