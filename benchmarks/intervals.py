"""Say how often intervals cover the truth, and how often the paired test finds a difference that is not there.

python -m benchmarks.intervals --runs 2000

Songs differ in how hard they are, have one to four queries each, and two models that answer them are equally good: so
the true difference is zero, and the truth of each figure is known from a very large sample.

Dimensions: `Q` queries, `G` songs.
"""

import argparse

import numpy as np

from collap.evaluation.comparison import compare_models
from collap.evaluation.metrics import retrieval_metrics

POOL = 200
FIGURES = ("R@5", "R@20", "mAP", "MRR", "nDCG@10")


def draw_ranks(generator: np.random.Generator, num_songs: int, models: int = 2) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw ranks (Q, 1) of each model and the song (Q,) of each query.

    A song's difficulty is shared by its queries and by the models, and each model finds a song a little harder or
    easier than the other does.
    """
    songs = np.repeat(np.arange(num_songs), generator.integers(1, 5, num_songs))  # (Q,)
    difficulty = generator.normal(0, 1.2, num_songs)
    found = []
    for _ in range(models):
        own = difficulty + generator.normal(0, 0.5, num_songs)
        noise = generator.normal(0, 1, len(songs))
        share = 1 / (1 + np.exp(2 - own[songs] - noise))  # of the pool that is ahead
        found.append((1 + np.floor(POOL * share).clip(max=POOL - 1)).astype(int)[:, None])
    return found, songs


def true_figures(seed: int = 1) -> dict[str, float]:
    """Return what the figures are over songs without end; each query has one correct item, at one rank."""
    (ranks,), _ = draw_ranks(np.random.default_rng(seed), 400_000, models=1)  # (Q, 1)
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    found = {"R@5": ranks <= 5, "R@20": ranks <= 20, "mAP": 1 / ranks, "MRR": 1 / ranks, "nDCG@10": gains}
    return {name: 100 * values.mean() for name, values in found.items()}


def simulate(runs: int, num_songs: int, truth: dict[str, float], resamples: int = 999, seed: int = 0) -> dict:
    """Return by figure the share of runs whose interval covers the truth ("figure"), whose interval of the difference
    covers zero ("difference"), and in which the test says p <= 0.05 ("rejected") and p <= 0.01 ("rejected at 1 %")."""
    found = {name: np.zeros(4) for name in FIGURES}
    generator = np.random.default_rng(seed)
    for run in range(runs):
        (first, second), songs = draw_ranks(generator, num_songs)
        figures = retrieval_metrics(first, POOL, songs, k=(5, 20), num_bootstrap=resamples, seed=run)
        compared = compare_models(first, second, POOL, songs, k=(5, 20), num_resamples=resamples, seed=run)
        for name in FIGURES:
            one, other = figures[name], compared[name]
            covers = one["low"] <= truth[name] <= one["high"], other["low"] <= 0 <= other["high"]
            found[name] += np.array([*covers, other["p"] <= 0.05, other["p"] <= 0.01])
    names = ("figure", "difference", "rejected", "rejected at 1 %")
    return {name: dict(zip(names, counts / runs, strict=True)) for name, counts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--songs", type=int, nargs="+", default=[30, 100, 500])
    options = parser.parse_args()
    truth = true_figures()
    print("| songs | figure | interval covers truth | interval of the difference covers 0 | p <= 0.05 | p <= 0.01 |")
    print("|---|---|---|---|---|---|")
    for num_songs in options.songs:
        for name, shares in simulate(options.runs, num_songs, truth).items():
            print(f"| {num_songs} | {name} | " + " | ".join(f"{100 * share:.1f} %" for share in shares.values()) + " |")


if __name__ == "__main__":
    main()
