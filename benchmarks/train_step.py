"""Measure training as ratios within one run: gradient caching, gathering, the loader, stored tokens, padding.

    python -m benchmarks.train_step                      # all that a CPU can tell, some ten minutes
    python -m benchmarks.train_step --only caching plan  # some of it
    python -m benchmarks.train_step --full               # on a GPU, with the paper's model and songs of 5 minutes

Each part prints one line of JSON. Contestants take turns, and what is reported is the median of the ratios within a
turn, so that a machine whose speed drifts does not favour one. Weights are random: they do not change the time.
docs/performance.md says what the figures mean.
"""

import argparse
import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gathering import measure_gathering
from benchmarks.gpu import free_memory, measure_largest_batch, measure_utilisation, songs_that_fit
from benchmarks.loader import measure_loader, measure_wait_share
from benchmarks.padding import measure_padding
from benchmarks.steps import Bench, build_bench, measure_caching, measure_caching_memory, measure_plan
from benchmarks.stored_tokens import build_demo, measure_song, measure_stored_tokens
from collap.training.cost import paper_config


def cpu_parts(folder: Path, repeats: int, songs: int) -> dict[str, Callable[[], dict]]:
    """Name -> measurement; `folder` holds what they write, `songs` are rendered for the demo's model."""

    def small():
        return build_bench(full=False)

    def demo():
        return build_demo(folder, songs)

    return {
        "padding": measure_padding,
        "plan": lambda: measure_plan(small(), songs=4, micro_batch_size=1),
        "caching_memory": lambda: measure_caching_memory(small(), songs=4, micro_batch_size=2),
        "caching": lambda: measure_caching(small(), songs=8, micro_batch_size=2, repeats=repeats),
        "gathering": lambda: measure_gathering(songs=2, repeats=repeats),
        "loader": lambda: measure_loader(demo(), paper_config()),
        "wait_share": lambda: measure_wait_share(demo()),
        "stored_tokens": lambda: measure_stored_tokens(demo(), min(repeats, 3)),
        "full_size_song": lambda: measure_song(paper_config(), min(repeats, 3)),
    }


def gpu_parts(repeats: int, song_seconds: float, peak_tflops: float | None) -> dict[str, Callable[[], dict]]:
    """Name -> measurement; batches are as large as the plan says that the memory allows."""
    bench = build_bench(full=True, song_seconds=song_seconds)

    def caching() -> dict:
        songs = songs_that_fit(bench, checkpointing=False)
        return measure_caching(bench, songs, max(songs // 4, 1), repeats)

    def caching_memory() -> dict:
        songs = max(songs_that_fit(bench, checkpointing=False) // 4, 1)
        return measure_caching_memory(bench, songs, max(songs // 4, 1))

    parts = {
        "utilisation": lambda: measure_utilisation(bench, peak_tflops, repeats),
        "caching": caching,
        "caching_memory": caching_memory,
        "largest_batch": lambda: measure_largest_batch(bench, micro_batch_size=2),
    }
    return {name: lambda measure=measure: _unless_full(bench, measure) for name, measure in parts.items()}


def _unless_full(bench: Bench, measure: Callable[[], dict]) -> dict:
    found = {"error": "out of memory: give shorter songs with --song_seconds"}
    with contextlib.suppress(torch.OutOfMemoryError):
        found = measure()
    free_memory(bench)
    return found


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="names of parts; default: all")
    parser.add_argument("--full", action="store_true", help="the paper's model on a GPU")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--songs", type=int, default=96, help="of the demo's model, rendered, 1 to 5 minutes")
    parser.add_argument("--folder", type=Path, help="for songs and models, kept for the next time; default: temporary")
    parser.add_argument("--song_seconds", type=float, default=300.0, help="with --full")
    parser.add_argument("--peak_tflops", type=float, help="of the GPU in bfloat16, dense, as its maker states it")
    options = parser.parse_args(arguments)
    if options.full and not torch.cuda.is_available():
        parser.error("--full needs a GPU, and torch finds none; without --full a small model is measured on the CPU")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.full:
            parts = gpu_parts(options.repeats, options.song_seconds, options.peak_tflops)
        else:
            os.environ["ACCELERATE_USE_CPU"] = "true"
            parts = cpu_parts(folder, options.repeats, options.songs)
        unknown = set(options.only) - set(parts)
        if unknown:
            parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
        device = torch.cuda.get_device_name() if options.full else f"{os.cpu_count()} CPUs, {platform.machine()}"
        print(json.dumps({"device": device, "threads": torch.get_num_threads(), "turns": options.repeats}), flush=True)
        for name in options.only or parts:
            print(json.dumps({"part": name, **parts[name]()}), flush=True)


if __name__ == "__main__":
    main()
