"""Measure what negatives from other processes cost: two gloo processes of one thread each on one machine, and bytes."""

import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.steps import Bench, build_bench, median_ratio, medians
from collap.training.cost import PAPER, paper_config
from collap.training.tracking import song_tokens
from modeling_collap.loss_collap import gather_rows

PROCESSES = 2


def bytes_of_a_step() -> dict[str, float]:
    """Float32 values of the paper's batch that all processes hold after gathering, in MB; their gradients are as many.

    `audio tokens` is what gathering embeddings, as is usual, would take where a song has tokens and not one vector.
    """
    config, songs = paper_config(), PAPER.batch_size
    tokens = song_tokens(PAPER.max_seconds, config)
    values = {
        "texts": songs * config.projection_dim,
        "scores": songs * songs,
        "audio_tokens": songs * tokens * config.projection_dim,
    }
    sizes = {name: round(4 * count / 1e6, 3) for name, count in values.items()}
    ratio = values["audio_tokens"] / (values["texts"] + values["scores"])
    return {**sizes, "audio_tokens_over_texts_and_scores": round(ratio)}


def contestants(bench: Bench, songs: int) -> dict[str, Callable]:
    """Steps of `songs` songs on this process, with ever less that travels."""
    model, batch, extractor = bench.model(), bench.batch(songs), bench.extractor()
    everything = slice(0, songs)
    inputs = batch.text_inputs(everything, "cpu") | batch.audio_inputs(everything, "cpu", extractor)
    width = bench.config.projection_dim

    def step(gather: bool, reduce: bool):
        with nullcontext() if reduce else model.no_sync():
            model(**inputs, return_loss=True, gather_negatives=gather).loss.backward()
        model.zero_grad()

    def gather_alone():
        texts, scores = torch.randn(songs, width, requires_grad=True), torch.randn(songs, PROCESSES * songs)
        (gather_rows(texts).sum() + gather_rows(scores.requires_grad_()).sum()).backward()

    return {
        "gathering": lambda: step(gather=True, reduce=True),
        "no gathering": lambda: step(gather=False, reduce=True),
        "nothing travels": lambda: step(gather=False, reduce=False),
        "gathering alone": gather_alone,
    }


def take_turns_together(runs: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run until all processes are through, after one warm-up turn."""
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            dist.barrier()
            started = time.perf_counter()
            run()
            dist.barrier()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _process(rank: int, port: int, songs: int, repeats: int, bench: dict, result: str):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}  # without it Accelerate takes all threads
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    seconds = take_turns_together(contestants(build_bench(full=False, **bench), songs), repeats)
    if rank == 0:
        torch.save(seconds, result)
    dist.destroy_process_group()


def measure_gathering(songs: int, repeats: int, **bench) -> dict:
    """Steps of `songs` songs on each of two processes; without gathering a process contrasts its own songs alone."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        result = Path(folder) / "seconds.pt"
        multiprocessing.set_forkserver_preload([__name__])  # torch is imported once
        arguments = (port, songs, repeats, bench, str(result))
        mp.start_processes(_process, arguments, nprocs=PROCESSES, start_method="forkserver")
        seconds = torch.load(result, weights_only=True)
    alone = statistics.median(seconds["gathering alone"]) / statistics.median(seconds["gathering"])
    return {
        "songs_per_process": songs,
        "step_seconds": medians(seconds),
        "gathering_over_no_gathering": median_ratio(seconds, "gathering", "no gathering"),
        "gathering_over_nothing_travels": median_ratio(seconds, "gathering", "nothing travels"),
        "gathering_alone_share_of_step": round(alone, 5),
        "paper_mb": bytes_of_a_step(),
    }
