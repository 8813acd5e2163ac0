"""Padding and idle processes on songs of 2 to 5 minutes, by simulation: batches by length against random ones."""

import numpy as np

from collap.data.batches import deal_rows, epoch_plan, idle_share, padding_share
from collap.data.lengths import num_segments
from collap.training.cost import paper_config
from collap.training.tracking import song_tokens
from modeling_collap import CoLLAPConfig

PROCESSES = 8


def simulate(seconds: np.ndarray, segments: np.ndarray, config: CoLLAPConfig, batch_size: int, by_length: bool) -> dict:
    """One epoch.

    Returns:
        idle_share: of all processes' time, waiting for the slowest one.
        padding_share: of the padded batch of a process. It takes memory; only real segments are encoded.
        encoded_over_real: tokens that are encoded over tokens that start before the end of a song.
        padded_over_real: the same if padding were encoded too.
    """
    plan = epoch_plan(len(seconds), batch_size, seed=0, epoch=0, segments=segments if by_length else None)
    rows = deal_rows(plan, PROCESSES, segments if by_length else None)  # (steps, P, n)
    real = sum(song_tokens(one, config) for one in seconds[rows].flatten())
    encoded = int(segments[rows].sum()) * config.tokens_per_segment
    padding = padding_share(segments[rows])
    return {
        "idle_share": round(idle_share(segments[rows]), 4),
        "padding_share": round(padding, 4),
        "encoded_over_real": round(encoded / real, 4),
        "padded_over_real": round(encoded / (1 - padding) / real, 4),
    }


def measure_padding(songs: int = 10_240, batch_sizes: tuple[int, ...] = (64, 128, 512)) -> dict:
    """Lengths are uniform between 2 and 5 minutes, segments have 30 s."""
    config = paper_config()
    seconds = np.random.default_rng(0).uniform(120, 300, songs)
    segments = np.array([num_segments(one, config.segment_seconds) for one in seconds])
    epochs = {
        f"batch {size}": {
            "by length": simulate(seconds, segments, config, size, by_length=True),
            "random": simulate(seconds, segments, config, size, by_length=False),
        }
        for size in batch_sizes
    }
    return {"songs": songs, "processes": PROCESSES, **epochs}
