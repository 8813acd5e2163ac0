"""Cost of sentence vectors from one pass over each text against one pass for each sentence, forward and with gradient,
by text towers of random weights.

    PYTHONPATH=. python benchmarks/sentences.py                # 16 texts of 8 sentences of 40 tokens
    PYTHONPATH=. python benchmarks/sentences.py --device cuda
"""

import argparse
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModel, GPT2Config, PreTrainedConfig, RobertaConfig

from benchmarks.alignment import seconds_of
from modeling_collap.configuration_collap import TEXT_POOLING
from modeling_collap.towers_collap import TextTower

TOWERS = {"gpt2": GPT2Config(), "roberta": RobertaConfig(vocab_size=50265, max_position_embeddings=514)}  # small, base
WIDTH = 512


def encodings(config: PreTrainedConfig, shape: tuple[int, int, int], device: torch.device) -> dict[str, Callable]:
    """Return how to embed the sentences of texts (B, Q, L), by name, with one tower."""
    tower = TextTower(
        AutoModel.from_config(config), nn.Linear(config.hidden_size, WIDTH), TEXT_POOLING[config.model_type]
    )
    tower = tower.to(device).eval()
    input_ids = torch.randint(5, config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones_like(input_ids)
    return {
        "separate": lambda: tower(input_ids.flatten(0, 1), mask.flatten(0, 1)),
        "joint": lambda: tower.embed_jointly(input_ids, mask),
    }


def measure(
    config: PreTrainedConfig, shape: tuple[int, int, int], device: torch.device, repeats: int
) -> dict[str, tuple[float, float]]:
    """Return the best seconds of every way, forward and with gradient, taken in turns."""
    calls = encodings(config, shape, device)
    seconds = {name: ([], []) for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            with torch.no_grad():
                seconds[name][0].append(seconds_of(call, device))
            seconds[name][1].append(seconds_of(lambda call=call: call().sum().backward(), device))
    return {name: (min(forward), min(gradient)) for name, (forward, gradient) in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--sentences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    shape = options.texts, options.sentences, options.tokens
    for name, config in TOWERS.items():
        best = measure(config, shape, options.device, options.repeats)
        for way, (forward, gradient) in best.items():
            ratios = f"{forward / best['separate'][0]:.2f} and {gradient / best['separate'][1]:.2f} of separate"
            print(f"{name:8} {way:9} forward {forward:.2f} s, with gradient {gradient:.2f} s: {ratios}", flush=True)


if __name__ == "__main__":
    main()
