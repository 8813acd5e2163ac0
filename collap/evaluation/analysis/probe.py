"""Learn labels from frozen vectors: a linear probe, by the logistic regression of scikit-learn.

Dimensions: `A` songs, `L` labels, `D` shared width.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..embedders import Embedder
from ..metrics import Measure
from .analysis import Analysis, Outcome, check_numbers
from .label_metrics import LABEL_MEASURES, label_figures, label_table, mean_of_labels, right_labels, roc_auc
from .pool_run import PoolRun

MAX_ITERATIONS = 1000
TEST, VALIDATION = "test", "validation"
Fold = tuple[np.ndarray, np.ndarray]  # songs that are fitted, and songs that are scored, as indices


def group_folds(groups: np.ndarray, folds: int, seed: int) -> Iterator[Fold]:
    """Yield folds of songs in which no group stands on both sides; the groups are shuffled and dealt out.

    Args:
        groups: (A,) the group of every song.
    """
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    number = {name: place % folds for place, name in enumerate(names)}
    fold = np.array([number[group] for group in groups])
    for one in range(min(folds, len(names))):
        yield np.flatnonzero(fold != one), np.flatnonzero(fold == one)


def probe_scores(vectors: np.ndarray, has: np.ndarray, fold: Fold, strength: float) -> np.ndarray:
    """Fit songs and score others: (scored songs, L).

    Vectors are standardised by the songs that are fitted. Songs of one label each get one regression over all labels,
    others one for each label. A label that no fitted song has, or all have, scores the same for all.

    Args:
        vectors: (A, D).
        has: (A, L) bool.
        strength: C of scikit-learn, the inverse of the penalty on squared weights.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    fitted, scored = fold
    scaler = StandardScaler().fit(vectors[fitted])
    known, unknown = scaler.transform(vectors[fitted]), scaler.transform(vectors[scored])
    settings = {"C": strength, "max_iter": MAX_ITERATIONS}
    scores = np.full((len(scored), has.shape[1]), -1e9)
    if (has.sum(1) == 1).all():
        own = has[fitted].argmax(1)  # (fitted,)
        if len(np.unique(own)) > 1:
            model = LogisticRegression(**settings).fit(known, own)
            scores[:, model.classes_] = model.predict_log_proba(unknown)
        return scores
    for label in range(has.shape[1]):
        own = has[fitted, label]
        if 0 < own.sum() < len(own):
            scores[:, label] = LogisticRegression(**settings).fit(known, own).decision_function(unknown)
    return scores


def quality(scores: np.ndarray, has: np.ndarray) -> float:
    """Return what the strength is chosen by: accuracy where every song has one label, else the mean ROC-AUC."""
    if (has.sum(1) == 1).all():
        return float(right_labels(scores, has).mean())
    return float(np.nan_to_num(mean_of_labels(roc_auc, scores, has, np.arange(len(has))[None])[0]))


def chosen_strength(vectors: np.ndarray, has: np.ndarray, folds: list[Fold], strengths: tuple[float, ...]) -> float:
    """Return the strength with the best mean quality over folds, of equal ones the smallest."""
    found = [
        np.mean([quality(probe_scores(vectors, has, fold, one), has[fold[1]]) for fold in folds])
        for one in sorted(strengths)
    ]
    return sorted(strengths)[int(np.argmax(found))]


@dataclass(frozen=True)
class LinearProbe(Analysis):
    """Fit labels on pooled vectors, and measure songs that were not fitted.

    Where rows have a column `split` with `test` and others, its songs are measured, those of `validation` choose the
    strength, and the rest are fitted. Without `test` songs are dealt into folds that are measured by what the others
    taught, and without `validation` folds of the fitted songs choose; no value of `group_column` is on both sides.
    """

    name: ClassVar[str] = "linear_probe"
    title: ClassVar[str] = "Linear probe"
    question: ClassVar[str] = "Do the vectors hold what labels say?"

    strengths: tuple = (0.001, 0.01, 0.1, 1.0, 10.0)
    folds: int = 5
    group_column: str = "artist"

    def __post_init__(self):
        check_numbers("strengths", self.strengths)
        if not isinstance(self.folds, int) or self.folds < 2:
            raise ValueError(f"folds: {self.folds!r}; expected a whole number above 1")
        if not isinstance(self.group_column, str):
            raise ValueError(f"group_column: {self.group_column!r}; expected the name of a column")

    def measures(self) -> tuple[Measure, ...]:
        return LABEL_MEASURES

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        if importlib.util.find_spec("sklearn") is None:
            return Outcome(notes=["the linear probe needs scikit-learn: pip install 'collap[probe]'"])
        labels, has = label_table(run.songs.texts, run.songs.song_of_text, len(run.songs.rows))
        if len(labels) < 2:
            return Outcome(notes=[f"all songs have the label {labels[0]!r}; a probe needs two labels"])
        groups, grouped = self._groups(run)
        plan = self._plan(_column(run, "split"), groups, run.seed)
        if plan is None:
            return Outcome(notes=["fewer than two groups of songs can be fitted: nothing to learn from"])
        vectors, scores, strengths = run.vectors(embedder).astype(np.float64), np.zeros(has.shape), []
        for fold, inner in plan:
            strengths.append(chosen_strength(vectors, has, inner, self.strengths))
            scores[fold[1]] = probe_scores(vectors, has, fold, strengths[-1])
        measured = np.sort(np.concatenate([fold[1] for fold, _ in plan]))
        kept = has[measured].any(0)  # (L,) labels of measured songs
        figures = label_figures(scores[np.ix_(measured, kept)], has[np.ix_(measured, kept)], run.seed)
        by = f"{self.folds} folds" if len(plan) > 1 else "the split"
        notes = [
            f"{len(measured)} songs measured, by {by}; {grouped}",
            f"{embedder.name}: C {', '.join(f'{one:g}' for one in strengths)}",
        ]
        return Outcome({f"by {by}": figures}, notes=notes)

    def _groups(self, run: PoolRun) -> tuple[np.ndarray, str]:
        """Return the group of every song, (A,) texts, and what is said of them; a song without one is alone."""
        found = _column(run, self.group_column)
        if found is None or not any(found):
            return np.array([f"row {row}" for row in run.songs.rows]), f"no {self.group_column!r} is known"
        names = [f"row {row}" if name is None else f"= {name}" for row, name in zip(run.songs.rows, found, strict=True)]
        return np.array(names), f"no {self.group_column!r} on both sides"

    def _plan(self, splits: list | None, groups: np.ndarray, seed: int) -> list[tuple[Fold, list[Fold]]] | None:
        """Return folds that are measured, each with those that choose its strength; None if none can be fitted."""
        parts = np.array(["" if one is None else str(one) for one in splits or [""] * len(groups)])
        if TEST in parts and (parts != TEST).any():
            outer = [(np.flatnonzero((parts != TEST) & (parts != VALIDATION)), np.flatnonzero(parts == TEST))]
            chosen = np.flatnonzero(parts == VALIDATION)
            if len(chosen) and len(outer[0][0]):
                return [(outer[0], [(outer[0][0], chosen)])]
        else:
            outer = list(group_folds(groups, self.folds, seed))
        plan = [(fold, self._inner(fold[0], groups, seed)) for fold in outer]
        return plan if all(inner for _, inner in plan) else None

    def _inner(self, fitted: np.ndarray, groups: np.ndarray, seed: int) -> list[Fold]:
        """Return folds among songs that are fitted; none if these are of one group."""
        if len(np.unique(groups[fitted])) < 2:
            return []
        folds = group_folds(groups[fitted], self.folds, seed + 1)
        return [(fitted[known], fitted[unknown]) for known, unknown in folds]


def _column(run: PoolRun, name: str) -> list | None:
    """Return a column's value for every song; None if there is none."""
    if name not in run.dataset.column_names:
        return None
    column = run.dataset.select_columns([name])
    return [column[row][name] for row in run.songs.rows]
