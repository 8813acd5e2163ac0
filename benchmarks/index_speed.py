"""Measure how fast songs are indexed with the paper's encoders, and what the fast settings cost in ranking.

    python -m benchmarks.index_speed                                   # BEATs-base and Whisper-small, random weights
    python -m benchmarks.index_speed --ranking runs/demo/collap-gpt2/best --data data/demo_songs/test

Speed: one rendered song is decoded and embedded as `collap index` does it, the settings taking turns; weights do not
change the time. Ranking: every caption is scored with every song, from embeddings made with a setting, and compared
with those of float32 and all segments. What is measured is told at once, on stderr.

Dimensions: `A` songs, `B` captions.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from scipy.stats import kendalltau

from benchmarks.encode import take_turns
from collap.cli import INDEX_DTYPES
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.data.guarded_reading import stream_audio
from collap.evaluation.embedders import CoLLAPEmbedder, Embedder
from collap.evaluation.temporal_metrics import share_with_interval
from collap.search.hearing import embed_recording
from collap.search.int8 import INT8, run_in_int8
from collap.search.space import load_searched
from collap.training.cost import paper_config
from modeling_collap import CoLLAPModel
from processing import CoLLAPFeatureExtractor
from processing.embed_audio import feature_blocks

RATE = 16_000
STRIDES = (1, 2)  # every so many segments are embedded
SONG_SECONDS = 210.0  # that a speed is told for
TOPS = (1, 5)


class Untrained(CoLLAPEmbedder):
    """Embed as a folder of the paper's model does, with random weights; it reads no texts."""

    def __init__(self, dtype: str):
        self.model, self.reading = CoLLAPModel(paper_config()).eval(), "attention"
        if dtype == INT8:
            run_in_int8(self.model)
        else:
            self.model.to(getattr(torch, dtype))
        self.processor = SimpleNamespace(feature_extractor=CoLLAPFeatureExtractor())
        self.sampling_rate, self.token_seconds = RATE, self.model.config.token_seconds


def named(dtype: str, stride: int) -> str:
    return dtype if stride == 1 else f"{dtype}, every second segment"


# ---- speed


def telling(name: str, run: Callable, clock: Callable[[], float]) -> Callable:
    """Return what runs, and says at once how long it took."""

    def told():
        started = clock()
        run()
        print(f"{name}: {clock() - started:.2f} s", file=sys.stderr, flush=True)

    return told


def measure_speed(
    embedders: dict[str, CoLLAPEmbedder],
    path: Path,
    seconds: float,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict:
    """Time what `collap index` does with a file.

    Args:
        embedders: by the precision of their encoders; float32 first.
        path: of a file of so many seconds.
        clock: that tells seconds; one of processor time does not see the process that decodes.

    Returns:
        By setting `songs a minute`, of 3.5 minutes, and `of float32`, its time over that of float32; and the shares of
        that time that decoding, and decoding with features, take.
    """
    extractor = next(iter(embedders.values())).processor.feature_extractor
    contestants = {
        named(dtype, stride): lambda one=one, stride=stride: embed_recording(str(path), "", one, stride)
        for dtype, one in embedders.items()
        for stride in STRIDES
    }
    contestants["decoding"] = lambda: list(stream_audio(path, RATE))
    contestants["decoding and features"] = lambda: list(feature_blocks(extractor, path, 4, "cpu"))
    contestants = {name: telling(name, run, clock) for name, run in contestants.items()}
    runs = take_turns(contestants, repeats, "cpu", clock)
    times = {name: statistics.median(found) for name, found in runs.items()}
    whole = next(iter(times.values()))
    shares = {name: round(times.pop(name) / whole, 4) for name in ("decoding", "decoding and features")}
    return {
        name: {"songs a minute": round(60 * seconds / SONG_SECONDS / one, 2), "of float32": round(one / whole, 2)}
        for name, one in times.items()
    } | {"shares": shares}


# ---- ranking


def score_all(embedder: Embedder, texts: torch.Tensor, songs: list[torch.Tensor]) -> np.ndarray:
    """Score captions with songs: (B, A)."""
    return torch.stack([embedder.score(texts, song) for song in songs], dim=1).float().numpy()


def measure_ranking(name: str, data: Path, most: int) -> dict:
    """Compare the rankings of songs of a data set by its captions with those of float32 and all segments.

    Returns:
        By setting `R@1`, `R@5` and `same first`: shares of captions, in percent with intervals by song; `tau`:
        Kendall's, mean and lowest over captions.
    """
    lines = (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:most]
    rows = [json.loads(line) for line in lines]
    captions = [(number, text) for number, row in enumerate(rows) for text in row["captions"]]
    owners = np.array([number for number, _ in captions])
    report, first = {}, None
    for dtype, stride in itertools.product(INDEX_DTYPES, STRIDES):
        embedder = load_searched(name, dtype=dtype)
        songs = [embedder.embed_file(data / row["file_name"], stride) for row in rows]
        scores = score_all(embedder, embedder.embed_texts([text for _, text in captions]), songs)  # (B, A)
        first = scores if first is None else first
        taus = [kendalltau(*pair).statistic for pair in zip(first, scores, strict=True)]
        ranks = (scores > scores[np.arange(len(owners)), owners, None]).sum(1)  # (B,)
        report[named(dtype, stride)] = {
            **{f"R@{top}": share_with_interval(ranks < top, owners) for top in TOPS},
            "same first": share_with_interval(scores.argmax(1) == first.argmax(1), owners),
            "tau": {"mean": float(np.mean(taus)), "lowest": float(np.min(taus))},
        }
        print(json.dumps({named(dtype, stride): report[named(dtype, stride)]}), file=sys.stderr, flush=True)
    return report


# ---- the command


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the song that is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; default: one for each core")
    parser.add_argument("--processor_time", action="store_true", help="of this process, and not time by the clock")
    parser.add_argument("--ranking", help="a trained model, to measure its rankings and not the speed")
    parser.add_argument("--data", type=Path, help="for --ranking: a folder with a metadata.jsonl that has captions")
    parser.add_argument("--songs", type=int, default=100)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.ranking:
        report = measure_ranking(options.ranking, options.data, options.songs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path, song = Path(folder) / "song.flac", compose_song("speed-0001", 0, options.seconds, options.seconds + 1)
            samples = render_song(song, RATE)[: round(options.seconds * RATE)]
            soundfile.write(path, samples, RATE)
            embedders = {dtype: Untrained(dtype) for dtype in INDEX_DTYPES}
            clock = time.process_time if options.processor_time else time.perf_counter
            report = measure_speed(embedders, path, len(samples) / RATE, options.repeats, clock)
    print(json.dumps({"threads": torch.get_num_threads(), "load": os.getloadavg()[0], **report}, indent=2))


if __name__ == "__main__":
    main()
