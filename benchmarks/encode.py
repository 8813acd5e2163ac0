"""Seconds to encode 30 s of audio: BEATs-base, a plain transformer of the same size, Whisper-small's encoder, features.

    python -m benchmarks.encode                 # float32 and bfloat16 on the CPU, or on a GPU if there is one
    python -m benchmarks.encode --segments 8 --repeats 20

The alternatives take turns (A B C A B C ...), so that a machine whose speed drifts does not favour one; what is
reported is the median, and the median of the ratios within a turn. Weights are random: they do not change the time.

Goal: BEATs within 1.25 times the plain transformer (as many layers, heads, tokens and widths, without the patch and
position convolutions and the relative-position bias).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from collap.training.cost import PAPER_PARTS
from modeling_collap import BeatsConfig, BeatsModel
from processing import CoLLAPFeatureExtractor

SECONDS = 30


class PlainTransformer(nn.Module):
    """Post-norm transformer layers of torch over as many tokens as BEATs has."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
            )
            for _ in range(config.num_hidden_layers)
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


def build_contestants(dtype: torch.dtype, device: str, segments: int) -> dict[str, Callable]:
    """Build what is timed, by name; each encodes `segments` segments of 30 s."""
    config = BeatsConfig()
    beats = BeatsModel(config).eval().to(device, dtype)
    # In training mode torch takes its ordinary path, as a model that is being trained does; dropout is 0.
    plain = PlainTransformer(config).train().to(device, dtype)
    whisper = WhisperEncoder(PAPER_PARTS["openai/whisper-small"]).eval().to(device, dtype)
    extractor = CoLLAPFeatureExtractor()
    waveform = torch.randn(segments * SECONDS * 16_000, device=device) * 0.1
    features = extractor.segment_features(waveform)
    music, speech = features["music_features"].to(dtype), features["speech_features"].to(dtype)
    tokens = beats(music).last_hidden_state
    return {
        "BEATs-base": lambda: beats(music),
        "plain transformer": lambda: plain(tokens),
        "Whisper-small encoder": lambda: whisper(speech),
        "feature extractor": lambda: extractor.segment_features(waveform),
    }


def take_turns(
    contestants: dict[str, Callable], repeats: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every run by a clock, after one warm-up turn."""
    seconds = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            started = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn > 0:
                seconds[name].append(clock() - started)
    return seconds


@torch.no_grad()
def measure(dtype: torch.dtype, device: str, segments: int, repeats: int) -> dict:
    seconds = take_turns(build_contestants(dtype, device, segments), repeats, device)
    pairs = zip(seconds["BEATs-base"], seconds["plain transformer"], strict=True)
    per_segment = {name: statistics.median(runs) / segments for name, runs in seconds.items()}
    pipeline = sum(per_segment[name] for name in ("BEATs-base", "Whisper-small encoder", "feature extractor"))
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "seconds_per_30_s": {name: round(value, 4) for name, value in per_segment.items()},
        "beats_over_plain": round(statistics.median(beats / plain for beats, plain in pairs), 3),
        "feature_share": round(per_segment["feature extractor"] / pipeline, 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--segments", type=int, default=1, help="segments of 30 s at a time")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"device {options.device}, {options.threads} threads, {options.segments} segments, {options.repeats} turns")
    for dtype in (torch.float32, torch.bfloat16):
        print(json.dumps(measure(dtype, options.device, options.segments, options.repeats)))


if __name__ == "__main__":
    main()
