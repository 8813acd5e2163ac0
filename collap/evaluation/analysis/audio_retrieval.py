"""Find songs by a song: those that share a label, an artist or a work with it.

Dimensions: `A` songs, `P` parts of a song, `D` shared width.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from ..embedders import Embedder
from ..metrics import Measure, measure_of, ranks_of_correct, retrieval_metrics
from .analysis import Analysis, Outcome
from .pool_run import PoolRun

POOLED, MAXSIM = "pooled cosine", "MaxSim of frames"
METRICS = ("mAP", "R@1", "R@5", "R@10")


def mean_frames(tokens: torch.Tensor, number: int) -> torch.Tensor:
    """Return the mean tokens of equal parts of a song, (T, D) -> (P, D) unit vectors, P at most `number`."""
    parts = torch.tensor_split(tokens.float(), min(number, len(tokens)))
    return F.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)


def max_similarities(query: torch.Tensor, frames: torch.Tensor, songs: torch.Tensor, num_songs: int) -> torch.Tensor:
    """Return how near each song comes to a query: the mean over its frames of the highest cosine, (A,).

    Args:
        query: (P, D) unit vectors.
        frames: (all frames, D) of all songs.
        songs: (all frames,) whose each is.
    """
    cosines = query @ frames.T  # (P, all frames)
    best = torch.full((len(query), num_songs), -torch.inf)
    best.scatter_reduce_(1, songs.expand(len(query), -1), cosines, "amax")  # (P, A)
    return best.mean(0)


def related_songs(values: list) -> list[list[int]]:
    """Return for every song the others that share a value with it.

    Args:
        values: of every song one value, a list of them, or None.
    """
    sets = [set() if one is None else set(one) if isinstance(one, (list, tuple)) else {one} for one in values]
    owners: dict = {}
    for song, own in enumerate(sets):
        for value in own:
            owners.setdefault(value, set()).add(song)
    return [sorted(set().union(*(owners[value] for value in own)) - {song}) for song, own in enumerate(sets)]


def ranks_of_related(similarities: np.ndarray, related: list[list[int]]) -> tuple[list[np.ndarray], list[int]]:
    """Return the ranks of related songs among all others, and the songs that have any.

    Args:
        similarities: (A, A) of every query, a row, with all songs; its own is not looked at.
    """
    ranks, queries = [], [song for song, own in enumerate(related) if own]
    for song in queries:
        others = np.delete(similarities[song], song)[None]  # (1, A - 1)
        correct = [[one - (one > song) for one in related[song]]]
        ranks += ranks_of_correct(others, correct, song)
    return ranks, queries


@dataclass(frozen=True)
class AudioRetrieval(Analysis):
    """Rank all other songs for every song, by the cosine of pooled vectors, and by frames.

    Args:
        label_column: of what related songs share: a column of the pool's rows, one value or a list of them; `text` is
            the pool's own texts.
        frames: into so many equal parts is a song cut for MaxSim; 0 leaves it out.
    """

    name: ClassVar[str] = "audio_retrieval"
    title: ClassVar[str] = "Songs by a song"
    question: ClassVar[str] = "Are songs of one kind near each other?"

    label_column: str = "text"
    frames: int = 16

    def __post_init__(self):
        if not isinstance(self.label_column, str):
            raise ValueError(f"label_column: {self.label_column!r}; expected the name of a column, such as artist")
        if not isinstance(self.frames, int) or self.frames < 0:
            raise ValueError(f"frames: {self.frames!r}; expected a whole number, 0 for none")

    def measures(self) -> tuple[Measure, ...]:
        return tuple(map(measure_of, METRICS))

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        values = self._values(run)
        if values is None:
            return Outcome(notes=[f"no column {self.label_column!r}; the pool has {run.dataset.column_names}"])
        related = related_songs(values)
        if not any(related):
            return Outcome(notes=[f"no two songs share a {self.label_column!r}"])
        vectors = run.vectors(embedder)  # (A, D)
        found = {POOLED: vectors @ vectors.T}
        if self.frames and (matrix := self._by_frames(run, embedder)) is not None:
            found[MAXSIM] = matrix
        outcome = Outcome(notes=[f"queries: {sum(map(bool, related))} songs that share their {self.label_column!r}"])
        for condition, similarities in found.items():
            ranks, queries = ranks_of_related(similarities, related)
            measured = retrieval_metrics(ranks, len(related) - 1, queries, k=(1, 5, 10), seed=run.seed)
            outcome.figures[condition] = {name: measured[name] for name in METRICS if name in measured}
        return outcome

    def _values(self, run: PoolRun) -> list | None:
        """Return what related songs share, of every song; None if there is no such column."""
        if self.label_column == "text":
            values: list[list[str]] = [[] for _ in run.songs.rows]
            for text, song in zip(run.songs.texts, run.songs.song_of_text, strict=True):
                values[song].append(" ".join(text.split()))
            return values
        if self.label_column not in run.dataset.column_names:
            return None
        column = run.dataset.select_columns([self.label_column])
        return [column[row][self.label_column] for row in run.songs.rows]

    def _by_frames(self, run: PoolRun, embedder: Embedder) -> np.ndarray | None:
        """Return MaxSim of all songs with all, (A, A); None for a model of one vector, of which it is the cosine."""
        frames = [mean_frames(tokens, self.frames) for tokens in run.tokens(embedder)]
        if max(map(len, frames)) < 2:
            return None
        songs = torch.repeat_interleave(torch.arange(len(frames)), torch.tensor([len(one) for one in frames]))
        everything = torch.cat(frames)  # (all frames, D)
        return torch.stack([max_similarities(one, everything, songs, len(frames)) for one in frames]).numpy()
