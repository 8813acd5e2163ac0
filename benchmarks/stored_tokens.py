"""Measure what stored tokens save in training: an epoch of the demo's model, and a song of the full-size encoders."""

import contextlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import torch

from benchmarks.encode import take_turns
from benchmarks.steps import SAMPLING_RATE, TEXT_TOKENS, median_ratio, medians
from collap.cli import run_command
from collap.corpora.synthetic.songs import build_corpus
from collap.data.batches import AudioTextBatch
from collap.training.run import Run, build_run, prepare_output_dir, start_processes
from collap.training.settings import parse_settings
from collap.training.tracking import song_tokens
from collap.training.trainable import freeze
from demo.small_backbones import write_beats, write_gpt2, write_whisper
from modeling_collap import CoLLAPConfig, CoLLAPModel
from processing import CoLLAPFeatureExtractor
from train import train

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


@dataclass
class Demo:
    """Rendered songs and small backbones, as `make demo` makes them."""

    folder: Path
    batch_size: int = 16

    def run(self, **settings) -> Run:
        """A run of train.py with configs/demo.yaml, from audio files unless `settings` say otherwise."""
        backbones = self.folder / "backbones"
        places = {"dataset": self.folder / "songs", "text": backbones / "gpt2", "music": backbones / "beats"}
        places |= {"speech": backbones / "whisper", "output_dir": self.folder / "run", "eval_split": "none"}
        defaults = {"cache_features": False, "num_workers": 0, "log_every": 10_000, "batch_size": self.batch_size}
        defaults |= {"epochs": 10_000, "eval_every": 10_000}  # neither evaluation nor checkpoint
        arguments = [str(CONFIG)]
        for name, value in (places | defaults | settings).items():
            arguments += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
        with contextlib.redirect_stdout(sys.stderr):
            parsed = parse_settings(arguments)
            prepare_output_dir(parsed)
            return build_run(parsed, start_processes(parsed))

    def store_tokens(self, dtype: str) -> Path:
        """Makes the cache of the training split, unless it is there."""
        output, backbones = self.folder / f"tokens-{dtype}", self.folder / "backbones"
        names = {"--dataset": self.folder / "songs", "--splits": "train", "--output_dir": output, "--dtype": dtype}
        names |= {"--music": backbones / "beats", "--speech": backbones / "whisper", "--segment_seconds": 2.5}
        arguments = [str(part) for pair in names.items() for part in pair]
        with contextlib.redirect_stdout(sys.stderr):
            code = run_command("precompute", arguments)
        if code:
            raise RuntimeError(f"collap precompute {' '.join(arguments)} ended with {code}")
        return output


def build_demo(folder: Path, songs: int, min_seconds: float = 60.0, max_seconds: float = 300.0, **settings) -> Demo:
    """Files that are there already are kept."""
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    build_corpus(folder / "songs", {"train": songs}, min_seconds=min_seconds, max_seconds=max_seconds)
    backbones = folder / "backbones"
    if not backbones.exists():
        rows = [json.loads(line) for line in (folder / "songs" / "train" / "metadata.jsonl").read_text().splitlines()]
        torch.manual_seed(0)
        write_gpt2(backbones / "gpt2", [caption for row in rows for caption in row["captions"]])
        write_beats(backbones / "beats")
        write_whisper(backbones / "whisper")
    return Demo(folder, **settings)


def one_epoch(run: Run):
    """Go through the steps of train.py."""
    run.steps = run.step + run.data.steps_per_epoch
    train(run)


def first_epoch(run: Run) -> list[AudioTextBatch]:
    with contextlib.closing(run.data.batches(0, None)) as batches:
        return [next(batches) for _ in range(run.data.steps_per_epoch)]


def text_tower_alone(run: Run, batches: list[AudioTextBatch]):
    """Do what no cache of audio can spare: both passes of the text tower over an epoch's texts."""
    for batch in batches:
        run.model.get_text_features(**batch.text).sum().backward()
    run.model.zero_grad()


def measure_stored_tokens(demo: Demo, repeats: int) -> dict:
    """Seconds of an epoch with frozen audio encoders, no worker and one thread, so that they are those of a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    frozen = {"freeze": ["music", "speech"]}
    runs = {
        "audio files": demo.run(**frozen),
        "features on disk": demo.run(**frozen, cache_features=True),
        "float16": demo.run(**frozen, precomputed=demo.store_tokens("float16")),
        "int8": demo.run(**frozen, precomputed=demo.store_tokens("int8")),
        "float16, text frozen": demo.run(freeze=["music", "speech", "text"], precomputed=demo.store_tokens("float16")),
    }
    run = runs["float16"]
    batches = first_epoch(run)
    contestants = {name: partial(one_epoch, each) for name, each in runs.items()}
    contestants["text tower alone"] = partial(text_tower_alone, run, batches)
    contestants["loader alone"] = partial(first_epoch, run)
    seconds = take_turns(contestants, repeats, "cpu")
    torch.set_num_threads(threads)
    return {
        "songs": len(run.data.dataset),
        "mean_seconds": round(
            statistics.mean(run.data.dataset.token_cache.seconds(i) for i in range(run.data.num_rows))
        ),
        "epoch_seconds": medians(seconds),
        "audio_over": {name: median_ratio(seconds, "audio files", name) for name in list(runs)[1:]},
        "share_of_float16": {
            name: median_ratio(seconds, name, "float16") for name in ("text tower alone", "loader alone")
        },
    }


def song_contestants(config: CoLLAPConfig, song_seconds: float, longer: float) -> dict[str, Callable]:
    """Build what a song costs with frozen audio encoders: those, and the rest of the model for songs of two lengths."""
    torch.manual_seed(0)
    model = CoLLAPModel(config).train()
    freeze(model, ["music", "speech"])
    waveform = torch.randn(round(song_seconds * SAMPLING_RATE)) * 0.1
    features = CoLLAPFeatureExtractor.from_model_config(config).segment_features(waveform)
    width = config.music_config.hidden_size + config.speech_config.d_model
    ids = torch.randint(config.text_config.vocab_size, (1, TEXT_TOKENS))

    @torch.no_grad()
    def encode():
        model.audio_tower.fuse(features["music_features"], features["speech_features"], None)

    def rest(tokens: torch.Tensor, text_trains: bool):
        with torch.set_grad_enabled(text_trains):
            texts = model.get_text_features(ids)
        model(text_embeds=texts, fused_tokens=tokens).logits_per_audio.sum().backward()
        model.zero_grad()

    contestants = {"encoders": encode}
    for seconds in (song_seconds, longer):
        tokens = torch.randn(1, song_tokens(seconds, config), width)  # (1, T, M)
        contestants[f"rest of {seconds:g} s, text trains"] = partial(rest, tokens, True)
        contestants[f"rest of {seconds:g} s, text frozen"] = partial(rest, tokens, False)
    return contestants


def measure_song(config: CoLLAPConfig, repeats: int, song_seconds: float = 60.0, longer: float = 300.0) -> dict:
    """Seconds of a song in float32, and how much faster stored tokens make it; the longer song's encoders are not run:
    their time grows with the segments."""
    found = medians(take_turns(song_contestants(config, song_seconds, longer), repeats, "cpu"))
    faster = {}
    for seconds in (song_seconds, longer):
        encoders = found["encoders"] * seconds / song_seconds
        for text in ("text trains", "text frozen"):
            rest = found[f"rest of {seconds:g} s, {text}"]
            faster[f"{seconds:g} s, {text}"] = round((encoders + rest) / rest, 1)
    return {"text_tokens": TEXT_TOKENS, "seconds": found, "times_faster": faster}
