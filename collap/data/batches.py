"""Which songs meet at which step: batches by length, dealt to processes so that none waits for another.

Pure functions of (seed, epoch), so that every process knows the plan of all, and a run resumes at any step. The rows of
a step do not depend on the number of processes.

Letters: P processes, B songs of a step over all processes, n = B / P songs of one process.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from collap.data.samples import length_buckets

MIN_SEEN = 100  # songs of a stream before a share of bad ones says anything


def padding_share(segments: np.ndarray) -> float:
    """Share of silence in batches padded to the longest song of each process.

    Args:
        segments: (steps, P, n) real segments of every song.

    Returns:
        `1 - real / padded`, where a process's padded batch holds `n * max` segments.
    """
    padded = segments.max(axis=-1).sum() * segments.shape[-1]
    return float(1 - segments.sum() / padded)


def idle_share(segments: np.ndarray) -> float:
    """Share of all processes' time spent waiting for the slowest one, which ends each step.

    Args:
        segments: (steps, P, n) real segments of every song; they alone are encoded, so a process's time for a step is
            taken to be their sum.

    Returns:
        `1 - sum of costs / (P * sum of the steps' largest costs)`.
    """
    cost = segments.sum(axis=-1)  # (steps, P)
    return float(1 - cost.sum() / (cost.max(axis=1).sum() * cost.shape[1]))


def epoch_plan(
    num_rows: int,
    batch_size: int,
    seed: int,
    epoch: int,
    segments: Sequence[int] | None = None,
    pool_batches: int = 64,
) -> np.ndarray:
    """The rows of every step of an epoch, each row at most once; a random rest that fills no batch is left out.

    Args:
        segments: of every row, to form batches of songs of about one length: random pools of `pool_batches` batches are
            sorted and cut. None for plain random batches.

    Returns:
        (steps, B) rows.
    """
    generator = np.random.default_rng((seed, epoch))
    steps = num_rows // batch_size
    rows = generator.permutation(num_rows)[: steps * batch_size]
    if segments is None:
        return rows.reshape(steps, batch_size)  # (steps, B)
    lengths, pool_rows = np.asarray(segments), pool_batches * batch_size
    pools = [rows[start : start + pool_rows] for start in range(0, len(rows), pool_rows)]
    return np.concatenate([pool[length_buckets(lengths[pool], batch_size, generator)] for pool in pools])  # (steps, B)


def deal_rows(plan: np.ndarray, num_processes: int, segments: Sequence[int] | None = None) -> np.ndarray:
    """The rows of every step split over processes, with nearly equal sums of segments if those are given.

    Args:
        plan: (steps, B) rows; P divides B.

    Returns:
        (steps, P, n) rows.
    """
    steps, songs = len(plan), plan.shape[1] // num_processes
    if segments is None:
        return plan.reshape(steps, num_processes, songs)  # (steps, P, n)
    order = np.argsort(-np.asarray(segments)[plan], axis=1, kind="stable")
    rounds = np.take_along_axis(plan, order, axis=1).reshape(steps, songs, num_processes)  # (steps, n, P)
    rounds[:, 1::2] = rounds[:, 1::2, ::-1].copy()  # as a snake: whoever got the longest gets the shortest next
    return rounds.swapaxes(1, 2)  # (steps, P, n)


def process_songs(batch_size: int, num_processes: int) -> int:
    """n, or a ValueError if the processes cannot have equal shares of a batch."""
    if batch_size % num_processes:
        raise ValueError(
            f"batch_size {batch_size} cannot be split evenly over {num_processes} processes; make it a multiple"
        )
    return batch_size // num_processes


def check_processes(accelerator: Accelerator):
    """ValueError if a launcher has started processes that do not know of one another."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, and Accelerate sees {accelerator.num_processes}: without a GPU set "
            "ACCELERATE_USE_CPU=true in front of the command"
        )


class EpochBatches(torch.utils.data.Sampler[list[int]]):
    """Batch sampler of one process over a table, from any step of any epoch on.

    Args:
        num_rows: of the data set.
        batch_size: B, songs of all processes.
        seed: of the plan of every epoch.
        process_index, num_processes: of this process.
        segments: of every row, see [`epoch_plan`]; None for plain random batches.
        pool_batches: batches whose songs are sorted together.

    Raises:
        ValueError: if B is no multiple of the processes or larger than the data set, or segments and rows differ.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        segments: Sequence[int] | None = None,
        pool_batches: int = 64,
    ):
        process_songs(batch_size, num_processes)
        if num_rows < batch_size:
            raise ValueError(f"the data set has {num_rows} rows, fewer than batch_size {batch_size}; lower batch_size")
        if segments is not None and len(segments) != num_rows:
            raise ValueError(f"found segments of {len(segments)} rows; expected those of all {num_rows}")
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.segments, self.pool_batches = segments, pool_batches
        self.set_position(0, 0)

    def set_position(self, epoch: int, step: int):
        """Where the next iteration starts."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.num_rows // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        plan = epoch_plan(self.num_rows, self.batch_size, self.seed, self.epoch, self.segments, self.pool_batches)
        rows = deal_rows(plan[self.step :], self.num_processes, self.segments)  # (steps, P, n)
        yield from rows[:, self.process_index].tolist()


class BadFiles:
    """Counts files that cannot be read, and stops a run that has too many of them.

    Args:
        max_share: of bad files that is borne.
        num_rows: of the data set; None for a stream, where the share is that of the songs seen, from the 100th on.
    """

    def __init__(self, max_share: float, num_rows: int | None):
        self.max_share, self.num_rows = max_share, num_rows
        self.reasons: dict[str, str] = {}
        self.seen = 0

    def add(self, skipped: Sequence[tuple[str, str]], num_read: int = 0):
        """Adds the bad files met while reading `num_read` good songs (needed for a stream alone).

        Raises:
            ValueError: their share is too large; names the first of them.
        """
        self.seen += num_read + len(skipped)
        self.reasons.update(skipped)
        total = self.num_rows if self.num_rows is not None else self.seen
        share = len(self.reasons) / max(total, 1)
        if share > self.max_share and (self.num_rows is not None or self.seen >= MIN_SEEN):
            first = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:3])
            raise ValueError(
                f"{len(self.reasons)} of {total} files cannot be read ({100 * share:.3g} %, allowed are "
                f"{100 * self.max_share:.3g} %): {first}; repair or remove them, or allow a larger share"
            )

    def state_dict(self) -> dict:
        """JSON-able."""
        return {"reasons": dict(self.reasons), "seen": self.seen}

    def load_state_dict(self, state: dict):
        self.reasons, self.seen = dict(state["reasons"]), state["seen"]
