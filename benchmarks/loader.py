"""Songs a second of the loader alone against what the model needs, and how long a training run waits for data."""

import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from benchmarks.stored_tokens import Demo, one_epoch
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.data.batches import AudioTextCollator
from collap.data.samples import AudioTextDataset
from collap.training.cost import PAPER, TYPICAL_TFLOPS, run_cost
from modeling_collap import CoLLAPConfig
from processing import CoLLAPProcessor

SOURCE_RATE = 44_100
KINDS = {  # what the loader makes of a song
    "waveforms": {"features_in_worker": False},
    "features": {"features_in_worker": True},
    "crops of 30 s": {"features_in_worker": False, "crop_seconds": 30.0},
}


def write_songs(folder: Path, suffix: str, songs: int, seconds: float) -> list[str]:
    """The same rendered stereo song of `seconds`, under several names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.{suffix}" for number in range(songs)]
    if not all(path.exists() for path in paths):
        rendered = render_song(compose_song("loader", seed=0), SOURCE_RATE)
        mono = np.resize(rendered, round(seconds * SOURCE_RATE))  # (samples,)
        for path in paths:
            soundfile.write(path, np.stack([mono, 0.9 * mono], axis=1), SOURCE_RATE)  # (samples, 2)
    return [str(path) for path in paths]


def songs_per_second(paths: list[str], processor: CoLLAPProcessor, workers: int, batch_size: int, **settings) -> float:
    """Time one pass over the files, workers' start included."""
    rows = datasets.Dataset.from_dict({"audio": paths, "text": ["a song"] * len(paths)})
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    dataset = AudioTextDataset(rows, processor.feature_extractor, "audio", "text", **settings)
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=AudioTextCollator(processor))
    started = time.perf_counter()
    songs = sum(len(batch) for batch in loader)
    return songs / (time.perf_counter() - started)


def needed_songs_per_second(config: CoLLAPConfig) -> dict[str, float]:
    """Compute what a step of the paper's run takes in on one device, checkpointing as in configs/, by throughput."""
    planned = run_cost(config, replace(PAPER, gradient_checkpointing=("all",)))
    songs = PAPER.songs_per_process
    return {f"{tflops} TFLOP/s": round(songs / planned.times(tflops)[0], 2) for tflops in TYPICAL_TFLOPS}


def measure_loader(demo: Demo, config: CoLLAPConfig, songs: int = 8, seconds: float = 300.0) -> dict:
    """Files of 5 minutes, stereo at 44.1 kHz, with 0, 1 and 2 workers; the files lie in the page cache."""
    tokenizer = AutoTokenizer.from_pretrained(demo.folder / "backbones" / "gpt2")
    processor = CoLLAPProcessor.from_model_config(config, tokenizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    rates = {}
    for suffix in ("flac", "mp3"):
        paths = write_songs(demo.folder / suffix, suffix, songs, seconds)
        for kind, settings in KINDS.items():
            for workers in (0, 1, 2):
                name = f"{suffix}, {kind}, {workers} workers"
                rates[name] = round(songs_per_second(paths, processor, workers, batch_size=2, **settings), 2)
    torch.set_num_threads(threads)
    return {"song_seconds": seconds, "songs_per_second": rates, "needed": needed_songs_per_second(config)}


def measure_wait_share(demo: Demo) -> dict:
    """Share of an epoch of the demo's model, trained in full from audio files by one thread, that waits for the loader;
    the start of the workers and the first batch are part of it."""
    shares, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for workers in (0, 1, 2):
        run = demo.run(num_workers=workers)
        one_epoch(run)
        figures = run.meter.figures(run.accelerator)
        shares[f"{workers} workers"] = {
            name: round(figures[f"train/{name}"], 4) for name in ("data_wait_share", "songs_per_second")
        }
    torch.set_num_threads(threads)
    return shares
