"""Cost of the paper's score and of the scores of sentences in time against the plain matrix product of all tokens and
texts, forward and with gradient; and of the path by frames against the path by tokens.

    PYTHONPATH=. python benchmarks/alignment.py                # 50 songs of 5 minutes, 50 texts of 8 sentences
    PYTHONPATH=. python benchmarks/alignment.py --songs 16 --texts 256 --only product paper
    PYTHONPATH=. python benchmarks/alignment.py --device cuda
"""

import argparse
import time

import torch
from torch.nn import functional as F

from modeling_collap.alignment_collap import alignment_scores
from modeling_collap.scoring_collap import attention_pooled_scores

TOKENS, KERNEL, STRIDE, WIDTH = 1870, 62, 31, 512  # of 5 minutes, at the paper's defaults


def seconds_of(call, device: torch.device) -> float:
    """Return the seconds of one call: of the processor's time, in which other programs do not count, or of a GPU's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def contestants(songs: int, texts: int, sentences: int, device: torch.device) -> tuple[dict, tuple[torch.Tensor, ...]]:
    """Return the scores by name, as functions without arguments, and the embeddings that they are of."""
    generator = torch.Generator().manual_seed(0)
    audio = F.normalize(torch.randn(songs, TOKENS, WIDTH, generator=generator), dim=-1).to(device).requires_grad_()
    parts = F.normalize(torch.randn(texts, sentences, WIDTH, generator=generator), dim=-1).to(device).requires_grad_()
    mask = torch.ones(songs, TOKENS, dtype=torch.bool, device=device)
    blank = torch.zeros(1, device=device)
    scores = {
        "product": lambda: audio @ parts[:, 0].T,
        "paper": lambda: attention_pooled_scores(parts[:, 0], audio, mask, KERNEL, STRIDE, 7.0, 7.0),
        "free": lambda: alignment_scores(parts, audio, mask, 8, 20.0),
        "free and path": lambda: alignment_scores(parts, audio, mask, 8, 10.0, 10.0),
        "free and path with blanks": lambda: alignment_scores(parts, audio, mask, 8, 10.0, 10.0, blank=blank),
        "free and path, frames of one token": lambda: alignment_scores(parts, audio, mask, 1, 10.0, 10.0),
    }
    return scores, (audio, parts)


def measure(scores: dict, embeds: tuple[torch.Tensor, ...], repeats: int) -> dict[str, list[float]]:
    """Return the best seconds of every score, forward and with gradient, taken in turns."""
    device, best = embeds[0].device, {name: [float("inf")] * 2 for name in scores}
    for _ in range(repeats):
        for name, score in scores.items():
            with torch.no_grad():
                best[name][0] = min(best[name][0], seconds_of(score, device))

            def with_gradient(score=score):
                torch.autograd.grad(score().sum(), embeds)

            best[name][1] = min(best[name][1], seconds_of(with_gradient, device))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--songs", type=int, default=50)
    parser.add_argument("--texts", type=int, default=50)
    parser.add_argument("--sentences", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    scores, embeds = contestants(options.songs, options.texts, options.sentences, options.device)
    if unknown := set(options.only or ()) - set(scores):
        parser.error(f"--only: found {', '.join(sorted(unknown))}, expected some of {', '.join(scores)}")
    scores = {name: scores[name] for name in options.only or scores}
    best = measure(scores, embeds, options.repeats)
    first = next(iter(best))
    for name, (forward, gradient) in best.items():
        ratios = f"{forward / best[first][0]:.2f} and {gradient / best[first][1]:.2f} of {first}"
        print(f"{name:36} forward {forward:.3f} s, with gradient {gradient:.3f} s: {ratios}")


if __name__ == "__main__":
    main()
