"""Keep the rows of one song in different batches: a song that meets itself is contrasted with itself."""

import heapq
from collections import Counter
from collections.abc import Sequence

import numpy as np


def songs_too_many(songs: np.ndarray, steps: int, batch_size: int) -> int:
    """Return how many places of `steps` batches only a song can take that is in the batch already; 0 where none.

    Args:
        songs: (rows,) int, equal for the rows of one song.
    """
    counts = np.unique(songs, return_counts=True)[1]
    return max(steps * batch_size - int(np.minimum(counts, steps).sum()), 0)


def keep_apart(
    plan: np.ndarray,
    rest: Sequence[int],
    songs: np.ndarray,
    lengths: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Exchange rows between batches until no song is twice in one, wherever the rows allow it.

    A row is exchanged for one of about its length from a batch of about the same length.

    Args:
        plan: (steps, A) rows, each once.
        rest: further rows, in no batch.
        songs: (rows,) int, equal for the rows of one song.
        lengths: (rows,) in any unit.
        generator: of the choice where a plan has to be made anew.

    Returns:
        (steps, A) rows, `plan` itself where no song is twice.
    """
    sorted_songs = np.sort(songs[plan], axis=1)  # (steps, A)
    crowded = np.flatnonzero((sorted_songs[:, 1:] == sorted_songs[:, :-1]).any(axis=1))
    if not len(crowded):
        return plan
    exchange = _Exchange(plan, rest, songs, lengths)
    left, rows = sum(map(exchange.relieve, crowded)), np.array([*plan.flatten(), *rest])
    if left and not songs_too_many(songs[rows], *plan.shape):
        return _dealt(rows, songs, plan.shape, generator)
    return exchange.plan()


class _Exchange:
    """Batches whose rows can be exchanged; the last one stands for the rows that are in none."""

    def __init__(self, plan: np.ndarray, rest: Sequence[int], songs: np.ndarray, lengths: np.ndarray):
        self.batches = [*plan.tolist(), list(rest)]
        self.songs, self.lengths = songs.tolist(), np.asarray(lengths).tolist()
        self.counts = [Counter(self.songs[row] for row in batch) for batch in self.batches]
        self.means = np.asarray(lengths)[plan].mean(axis=1)  # (steps,)

    def plan(self) -> np.ndarray:
        """Return the batches, (steps, A)."""
        return np.array(self.batches[:-1])

    def relieve(self, batch: int) -> int:
        """Exchange every second row of a song; return how many are left."""
        nearest, left = None, 0
        for place, row in enumerate(self.batches[batch]):
            if self.counts[batch][self.songs[row]] < 2:
                continue
            if nearest is None:
                order = np.argsort(np.abs(self.means - self.means[batch]), kind="stable").tolist()
                nearest = [*order, len(self.batches) - 1]
            left += not any(self._swap(batch, place, other) for other in nearest if other != batch)
        return left

    def _swap(self, batch: int, place: int, other: int) -> bool:
        """Exchange one row for that of another batch which is nearest in length and fits; tell whether there is one."""
        row, is_rest = self.batches[batch][place], other == len(self.batches) - 1
        if not is_rest and self.counts[other][self.songs[row]]:
            return False
        fitting = [
            (abs(self.lengths[one] - self.lengths[row]), index)
            for index, one in enumerate(self.batches[other])
            if not self.counts[batch][self.songs[one]]
        ]
        if not fitting:
            return False
        index = min(fitting)[1]
        taken = self.batches[other][index]
        self.batches[batch][place], self.batches[other][index] = taken, row
        self.counts[batch].subtract([self.songs[row]])
        self.counts[batch].update([self.songs[taken]])
        self.counts[other].subtract([self.songs[taken]])
        self.counts[other].update([self.songs[row]])
        return True


def _dealt(rows: np.ndarray, songs: np.ndarray, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Fill one batch after the other with the songs that have most rows left: it succeeds whenever it can be done."""
    waiting: dict[int, list[int]] = {}
    for row in generator.permutation(rows).tolist():
        waiting.setdefault(int(songs[row]), []).append(row)
    heap = [(-len(left), generator.random(), song) for song, left in waiting.items()]
    heapq.heapify(heap)
    batches = []
    for _ in range(shape[0]):
        chosen = [heapq.heappop(heap) for _ in range(shape[1])]
        batches.append([waiting[song].pop() for _, _, song in chosen])
        for count, tie, song in chosen:
            if count < -1:
                heapq.heappush(heap, (count + 1, tie, song))
    return generator.permutation(np.array(batches))  # (steps, A)
