"""The paper's model on one GPU in bfloat16: utilisation, memory against the plan, and the largest batch."""

import gc
import statistics
from collections.abc import Callable

import torch

from benchmarks.encode import take_turns
from benchmarks.steps import Bench
from collap.training.cost import RunCost

MATRIX = 8192
PRODUCTS = 20
MOST_SONGS = 256  # where the search for the largest batch ends: a step takes half a minute by then
HEADROOM = 0.8  # share of the memory that a planned batch may take


def songs_that_fit(bench: Bench, checkpointing: bool) -> int:
    """The largest power of two of songs, at most 64, for which the plan leaves headroom; at least 2."""
    total, songs = torch.cuda.get_device_properties(0).total_memory, 2
    while songs < 64 and bench.plan(2 * songs, None, checkpointing).peak_memory < HEADROOM * total:
        songs *= 2
    return songs


def training_step(bench: Bench, songs: int, micro_batch_size: int | None, checkpointing: bool) -> Callable:
    """A whole step of training: features, both passes, clipping and AdamW."""
    model = bench.model(checkpointing)
    optimizer = bench.accelerator.prepare_optimizer(torch.optim.AdamW(model.parameters()))
    return bench.step(model, bench.batch(songs), micro_batch_size, optimizer)


def free_memory(bench: Bench):
    """After the last reference to a model is gone."""
    bench.accelerator.free_memory()
    gc.collect()
    torch.cuda.empty_cache()


def matrix_products() -> Callable:
    """The fastest that this GPU does in bfloat16."""
    one, other = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def run():
        for _ in range(PRODUCTS):
            one @ other

    return run


def utilisation(
    bench: Bench, seconds: dict[str, list[float]], planned: RunCost, songs: int, peak: float | None
) -> dict:
    """From the seconds of `"step"` and `"matrix products"`, in the same turns.

    Args:
        peak: TFLOP/s of the device as its maker states it, if known.
    """
    step = statistics.median(seconds["step"])
    products = PRODUCTS * 2 * MATRIX**3 / statistics.median(seconds["matrix products"]) / 1e12
    model = planned.model_flops_per_step / step / 1e12
    found = {
        "songs": songs,
        "step_seconds": round(step, 3),
        "hours_of_audio_per_second": round(songs * bench.song_seconds / 3600 / step, 4),
        "model_tflops": round(model, 1),
        "all_tflops": round(planned.flops_per_step / step / 1e12, 1),  # with what is computed twice
        "matrix_product_tflops": round(products, 1),
        "model_over_matrix_products": round(model / products, 3),
    }
    return found | ({"model_flop_utilisation": round(model / peak, 3)} if peak else {})


def measure_utilisation(bench: Bench, peak_tflops: float | None, repeats: int) -> dict:
    """Full fine-tuning steps against matrix products, and their peak memory against the plan."""
    unrolled, songs = songs_that_fit(bench, checkpointing=False), songs_that_fit(bench, checkpointing=True)
    variants = {
        "plain": (unrolled, None, False),
        "checkpointed": (songs, None, True),
        "cached": (2 * unrolled, unrolled, False),
        "checkpointed and cached": (2 * songs, songs, True),
    }
    found = {}
    for name, (size, micro, checkpointing) in variants.items():
        planned = bench.plan(size, micro, checkpointing)
        step = training_step(bench, size, micro, checkpointing)
        step()  # the optimizer's states are there from now on
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated()
        seconds = take_turns({"step": step, "matrix products": matrix_products()}, repeats, "cuda")
        found[name] = utilisation(bench, seconds, planned, size, peak_tflops) | {
            "peak_memory_gb": round(peak / 1e9, 2),
            "memory_over_plan": round(peak / planned.peak_memory, 3),
        }
        del step
        free_memory(bench)
    return found


def fits(bench: Bench, songs: int, micro_batch_size: int | None, checkpointing: bool) -> bool:
    """Whether two steps run within the GPU's memory: the second finds the optimizer's states there."""
    try:
        step = training_step(bench, songs, micro_batch_size, checkpointing)
        step()
        step()
        return True
    except torch.OutOfMemoryError:
        return False


def measure_largest_batch(bench: Bench, micro_batch_size: int) -> dict:
    """Songs of a step, doubled until the memory is full; at the limit of the search, `at_limit`."""
    found = {}
    for name, micro, checkpointing in (
        ("plain", None, False),
        ("checkpointed", None, True),
        ("cached", micro_batch_size, False),
        ("checkpointed and cached", micro_batch_size, True),
    ):
        songs = 0
        while songs < MOST_SONGS:
            is_there_room = fits(bench, max(2 * songs, 1), micro, checkpointing)
            free_memory(bench)  # here, when the exception and its frames are gone
            if not is_there_room:
                break
            songs = max(2 * songs, 1)
        found[name] = {"songs": songs, "at_limit": songs >= MOST_SONGS}
    return {"song_seconds": bench.song_seconds, "micro_batch_size": micro_batch_size, **found}
