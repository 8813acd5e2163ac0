"""Measure searching: how long it takes and how it grows, and how much of the exact answer the candidates hold.

    python benchmarks/search.py --sizes 1000 10000 50000 --plot docs/search.png
    python benchmarks/search.py --recall 2000
    python benchmarks/search.py --index demo.index --queries queries.txt --enlarge 4000

Times are of ranking alone, without embedding a text, beside a product of the query with one float32 vector of each
track (numpy) and, where faiss is installed, its flat and its HNSW index of those vectors, in the same run: read the
ratios. Vectors of the latency tables are random, as what they hold changes no time; a few tracks of 5 minutes lend
their tokens to all, so that these are read from memory and not from the disk.

Dimensions: `N` tracks, `B` queries, `S` segments, `T` tokens, `D` shared width.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch

from benchmarks.search_library import score_function
from benchmarks.search_recall import K, index_recall, synthetic_recall
from collap.search.index import TrackIndex
from collap.search.ranking import Ranker, Texts, default_candidates
from collap.search.scan import Scan

WIDTH, TOKENS, SEGMENTS = 512, 1875, 9.2  # of a track of 5 minutes
SHARD = 4096  # tracks
POOL = 256  # tracks whose tokens stand for all
MOST_IN_GRAPH = 100_000  # tracks: a graph of more takes minutes to build


def milliseconds(
    call: Callable[[int], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return p50 and p95 of some calls after a first one; they get their number."""
    call(0)
    times = []
    for number in range(repeats):
        start = clock()
        call(number)
        times.append(1e3 * (clock() - start))
    return {"p50": round(float(np.median(times)), 3), "p95": round(float(np.quantile(times, 0.95)), 3)}


# ---- time


def random_shard(count: int, width: int, random: torch.Generator) -> dict[str, torch.Tensor]:
    """Make means and segments of some tracks, without tokens."""
    segments = torch.randint(1, round(2 * SEGMENTS), (count,), generator=random)
    total = int(segments.sum())
    codes = {
        name: torch.randint(-127, 128, (rows, width), dtype=torch.int8, generator=random)
        for name, rows in (("means", count), ("segments", total))
    }
    return {
        **codes,
        "mean_scales": torch.full((count,), 0.5 / 127),
        "segment_scales": torch.full((total,), 0.6 / 127),
        "segment_tokens": torch.full((total,), 200, dtype=torch.int32),
        "segment_offsets": torch.cat([torch.zeros(1, dtype=torch.int64), segments.cumsum(0)]),
    }


def random_ranker(size: int, width: int, tokens: int) -> Ranker:
    """Make a library of random vectors, the tokens of a few tracks standing for all."""
    random = torch.Generator().manual_seed(0)
    counts = [min(SHARD, size - start) for start in range(0, size, SHARD)]
    shards = [random_shard(count, width, random) for count in counts]
    places = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(count) for count in counts])
    pool = torch.randint(-127, 128, (POOL, tokens, width), dtype=torch.int8, generator=random)
    scales = torch.full((tokens,), 1 / (127 * 13), dtype=torch.float16)
    return Ranker(score_function(), Scan(shards, places), lambda track: (pool[track % POOL], scales))


def rivals(vectors: np.ndarray, queries: np.ndarray) -> dict[str, Callable[[int], object]]:
    """Return what else finds the nearest of one vector for each track: (N, D) and (B, D) float32."""
    found = {"numpy": lambda number: np.argpartition(vectors @ queries[number % len(queries)], -K)[-K:]}
    try:
        import faiss
    except ModuleNotFoundError:
        return found
    indexes = {"faiss flat": faiss.IndexFlatIP(vectors.shape[1])}
    if len(vectors) <= MOST_IN_GRAPH:
        indexes["faiss HNSW16 ef 512"] = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        indexes["faiss HNSW16 ef 512"].hnsw.efSearch = 512
    for name, one in indexes.items():
        one.add(vectors)
        found[name] = lambda number, one=one: one.search(queries[number % len(queries)][None], K)
    return found


def time_ranker(
    ranker: Ranker, rows: torch.Tensor, repeats: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Time the queries (B, 1, D), one by one and together."""
    tracks, count = np.arange(len(ranker.scan)), default_candidates(ranker.function)
    one = [Texts(row[None], torch.ones(1, 1)) for row in rows]
    every = Texts(rows, torch.eye(len(rows)))

    def rank(number: int, candidates: int = count):
        return ranker.rank(one[number % len(one)], tracks, K, "fixed", candidates)

    batch = milliseconds(lambda _: ranker.rank(every, tracks, K, "fixed", count), 2, clock)
    return {
        "search": milliseconds(rank, repeats, clock),
        "stage 1 alone": milliseconds(lambda number: rank(number, 0), repeats, clock),
        "search, in a batch": {name: round(one / len(rows), 3) for name, one in batch.items()},
    }


def measure_latency(
    size: int,
    width: int = WIDTH,
    tokens: int = TOKENS,
    repeats: int = 20,
    batch: int = 32,
    clock: Callable[[], float] = time.perf_counter,
) -> dict:
    """Time single queries and a batch on `size` tracks, and the rivals on their mean vectors.

    Returns:
        `ms` p50 and p95 by name; `ratio` of their p50 to that of numpy; `MB` of what is scanned and of numpy's vectors.
    """
    ranker = random_ranker(size, width, tokens)
    rows = torch.randn(batch, 1, width, generator=torch.Generator().manual_seed(1))
    rows = torch.nn.functional.normalize(rows, dim=-1)
    times = time_ranker(ranker, rows, repeats, clock)
    sizes = {name: sum(shard[name].nbytes for shard in ranker.scan.shards) for name in ("segments", "means")}
    vectors = torch.cat([shard["means"] for shard in ranker.scan.shards]).float().numpy()
    del ranker
    for name, call in rivals(vectors, rows[:, 0].numpy()).items():
        times[name] = milliseconds(call, repeats, clock)
    return {
        "tracks": size,
        "ms": times,
        "ratio": {name: round(one["p50"] / times["numpy"]["p50"], 3) for name, one in times.items()},
        "MB": {name: round(one / 1e6, 1) for name, one in {**sizes, "float32": vectors.nbytes}.items()},
    }


def draw_growth(rows: list[dict], path: Path) -> None:
    """Draw the times over the number of tracks, both logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name in rows[0]["ms"]:
        known = [(row["tracks"], row["ms"][name]["p50"]) for row in rows if name in row["ms"]]
        axes.loglog(*zip(*known, strict=True), marker="o", label=name, linewidth=2.5 if name == "search" else 1)
    axes.set(xlabel="tracks", ylabel="ms for a query (p50)")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def time_index(folder: Path, texts: list[str]) -> dict[str, dict[str, float]]:
    """Time whole searches of an index, with embedding the text and finding the spans."""
    index = TrackIndex.open(folder)
    return {
        mode: milliseconds(lambda number, mode=mode: index.search(texts[number % len(texts)], mode=mode), 10)
        for mode in ("fixed", "exact")
    }


# ---- the command


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[], help="tracks, for the times")
    parser.add_argument("--plot", type=Path, help="with --sizes: file for a picture of the growth")
    parser.add_argument("--recall", type=int, help="tracks of synthetic libraries, for the recall")
    parser.add_argument("--index", type=Path, help="for the recall of --queries")
    parser.add_argument("--queries", type=Path, help="a file with a text in each line")
    parser.add_argument("--enlarge", type=int, help="--index to so many tracks, recombined of its own")
    parser.add_argument("--threads", type=int, help="of torch; default: one for each core")
    parser.add_argument("--processor_time", action="store_true", help="with one thread: what others do does not count")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    rows = [measure_latency(size, clock=clock) for size in options.sizes]
    report = {"threads": torch.get_num_threads(), "latency": rows}
    if options.plot:
        draw_growth(report["latency"], options.plot)
    if options.recall:
        report["recall"] = {
            name: synthetic_recall(options.recall, many)
            for name, many in (("normal", 0.0), ("one in five with many sections", 0.2), ("many sections", 1.0))
        }
    if options.index:
        texts = [line.replace("\\n", "\n") for line in options.queries.read_text(encoding="utf-8").splitlines()]
        report["ms with spans"] = time_index(options.index, texts)
        report["index"] = index_recall(options.index, texts, options.enlarge)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
