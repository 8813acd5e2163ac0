"""Say of what kind songs are, from the names of the labels alone: zero-shot tagging and genres.

The texts of the pool are the labels of its songs: of a `folder` a column of them, one or a list, by `text_column`.

Dimensions: `A` songs, `L` labels.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..embedders import Embedder
from ..metrics import Measure
from .analysis import Analysis, Outcome
from .label_metrics import LABEL_MEASURES, label_figures, label_table
from .pool_run import PoolRun

FIELD = "{label}"
MEAN = "mean of templates"


@dataclass(frozen=True)
class Tagging(Analysis):
    """Score every song with every label, written into a template, by the model's own score.

    Each template is a condition, and the mean of their scores, each brought to zero mean and unit deviation over all
    songs and labels, is another: how much wording matters is a figure.
    """

    name: ClassVar[str] = "tagging"
    title: ClassVar[str] = "Zero-shot tagging"
    question: ClassVar[str] = "Does a model know the names of genres, instruments and moods?"

    templates: tuple = ("{label}", "This is a {label} song.")

    def __post_init__(self):
        if not isinstance(self.templates, tuple) or not self.templates:
            raise ValueError(f"templates: {self.templates!r}; expected a list of texts with {FIELD} in each")
        for template in self.templates:
            if not isinstance(template, str) or FIELD not in template:
                raise ValueError(f"templates: {template!r}; expected a text with {FIELD}")

    def measures(self) -> tuple[Measure, ...]:
        return LABEL_MEASURES

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        labels, has = label_table(run.songs.texts, run.songs.song_of_text, len(run.songs.rows))
        if len(labels) < 2:
            return Outcome(notes=[f"all songs have the label {labels[0]!r}; tagging needs two labels"])
        texts = [template.replace(FIELD, label) for template in self.templates for label in labels]
        found = np.split(run.scores_of_texts(embedder, texts), len(self.templates), axis=1)  # (A, L) each
        scores = dict(zip(self.templates, found, strict=True))
        if len(found) > 1:
            scores[MEAN] = np.mean([standardised(one) for one in found], axis=0)
        notes = [f"{len(labels)} labels, {has.sum(1).mean():.3g} for a song, {has.sum(0).min()} songs for the rarest"]
        return Outcome({name: label_figures(one, has, run.seed) for name, one in scores.items()}, notes=notes)


def standardised(scores: np.ndarray) -> np.ndarray:
    """Return scores of zero mean and unit deviation over all of them; zeros where all are equal."""
    scores = scores.astype(np.float64)
    deviation = scores.std()
    return (scores - scores.mean()) / (deviation if deviation > 0 else 1.0)
