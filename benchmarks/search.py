"""Measure searching: how long it takes and how it grows, and how much of the exact answer the candidates hold.

    python -m benchmarks.search --sizes 1000 10000 50000 --plot docs/search_growth.png --cold_start 50000
    python -m benchmarks.search --recall 2000
    python -m benchmarks.search --index demo.index --queries queries.txt --enlarge 4000

Times are of ranking alone, without embedding a text, beside a product of the query with one float32 vector of each
track (numpy), and beside LanceDB proposing the candidates (up to --most_in_engine tracks), in the same run: read the
ratios. Of the libraries (`search_growth.py`) means and segments are in memory; a few tracks of 5 minutes lend their
tokens to all while times are measured, so that these are read from memory and not from the disk. So many are scored as
the median search scores where tracks have their own tokens.

Two scores: the paper's, and that of sentences in order, whose queries are four sentences about one track. Recall is of
the exact best 10 among the 300 (1500) best by the estimates of all tracks; numpy's is of means alone, by the paper's.

Dimensions: `N` tracks, `B` queries, `S` segments, `T` tokens, `D` shared width.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch

from benchmarks.search_growth import TRACK_TOKENS, GrownLibrary, write_grown
from benchmarks.search_library import aligned_function, score_function
from benchmarks.search_recall import K, index_recall, synthetic_recall
from collap.search.engine import Engine, fill
from collap.search.index import TrackIndex
from collap.search.ranking import Ranker, Texts
from collap.search.rescoring import Tokens
from collap.search.scan import Scan
from collap.search.score_function import ScoreFunction

WIDTH, TOKENS = 512, 1875  # of a track of 5 minutes
POOL = 256  # tracks whose tokens stand for all
REFERENCE, MANY_REFERENCE = 300, 1500  # tracks by estimate among which the exact best are; of sentences
ASKED, FEW_ASKED = 16, 8  # queries of which recall is measured; of sentences
MOST_IN_ENGINE = 50_000  # tracks: filling it with more takes minutes
SPACE_ID = "synthetic"
IN_ENGINE, MEANS = "LanceDB, then exact", "numpy, means alone"
OPENING = """
import sys, time
import torch
from collap.search.index import TrackIndex
started = time.perf_counter()
index = TrackIndex.open(sys.argv[1])
opened = time.perf_counter()
index.search(vectors=[torch.ones(int(sys.argv[2])) / int(sys.argv[2]) ** 0.5])
print(opened - started, time.perf_counter() - started)
"""


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


def with_engine(library: GrownLibrary, folder: Path) -> tuple[Scan, dict[str, float]]:
    """Put a library into LanceDB; return a scan that it proposes tracks to, and seconds and MB that it took."""
    names, start = [f"{number:08d}" for number in range(len(library.shards))], time.perf_counter()
    fill(folder, SPACE_ID, dict(zip(names, library.shards, strict=True)))
    seconds = time.perf_counter() - start
    places = library.scan.shard, library.scan.row
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    cost = {"seconds to fill": round(seconds, 1), "MB": round(size / 1e6, 1)}
    return Scan(library.shards, places, Engine(folder, SPACE_ID, names, places)), cost


def time_ranker(
    ranker: Ranker, rows: torch.Tensor, scored: int, repeats: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Time the queries (B, Q, D), one by one and together; so many tracks are scored for each."""
    tracks = np.arange(len(ranker.scan))
    one = [Texts(row[None], torch.ones(1, 1)) for row in rows]
    every = Texts(rows, torch.eye(len(rows)))

    def rank(number: int, candidates: int = scored):
        return ranker.rank(one[number % len(one)], tracks, K, "fixed", candidates)

    batch = milliseconds(lambda _: ranker.rank(every, tracks, K, "fixed", scored), 2, clock)
    return {
        "": milliseconds(rank, repeats, clock),
        ", stage 1": milliseconds(lambda number: rank(number, 0), repeats, clock),
        ", in a batch": {name: round(one / len(rows), 3) for name, one in batch.items()},
    }


def exact_best(ranker: Ranker, texts: Texts) -> list[set[int]]:
    """Return the tracks of the exact best K for each query, among the best REFERENCE by the estimates of all."""
    tracks, scan = np.arange(len(ranker.scan)), ranker.scan
    estimates, best = scan.segment_estimates(ranker.function, texts.embeds, tracks), []  # (N, B)
    reference = MANY_REFERENCE if ranker.function.has_sentences else REFERENCE
    for query, near in enumerate(estimates.topk(min(reference, len(tracks)), dim=0).indices.T):
        scores = ranker.exact(texts.of_query(query), near.numpy())[:, 0]
        best.append({*near[np.argsort(-scores)[:K]].tolist()})
    return best


def recall_of(best: list[set[int]], found: list[np.ndarray]) -> float:
    """Return the share of the best that was found."""
    return round(
        float(np.mean([len(own & {*some.tolist()}) / len(own) for own, some in zip(best, found, strict=True)])), 4
    )


@dataclass
class Growing:
    """Measure searches of one library by one score.

    Attributes:
        library, function: of the searches.
        rows: queries (B, Q, D).
        asked: of how many of them the recall is measured.
        repeats, clock: of the times.
        tokens: of a track while times are measured.
    """

    library: GrownLibrary
    function: ScoreFunction
    rows: torch.Tensor
    asked: int
    repeats: int
    clock: Callable[[], float]
    tokens: int

    def __post_init__(self):
        texts = self.rows[: self.asked]
        self.texts, self.tracks = Texts(texts, torch.eye(len(texts))), np.arange(len(self.library.scan))
        self.best = exact_best(Ranker(self.function, self.library.scan, self.exact_tokens), self.texts)

    def exact_tokens(self, track: int) -> Tokens:
        """Return the tokens of a track, all of them for a score that reads their times; few for the paper's."""
        return self.library.tokens(track, self.tokens if self.function.has_sentences else TRACK_TOKENS)

    def measure(self, name: str, scan: Scan) -> tuple[dict[str, dict[str, float]], dict[str, float], int]:
        """Return times and recall, each beginning with a name, and how many tracks the median search scores."""
        rankings = Ranker(self.function, scan, self.exact_tokens).rank(self.texts, self.tracks, K)
        recall = recall_of(self.best, [ranking.tracks[:K] for ranking in rankings])
        scored = int(np.median([ranking.num_rescored for ranking in rankings]))
        pool = torch.randint(-127, 128, (POOL, self.tokens, self.rows.shape[-1]), dtype=torch.int8)
        scales = torch.full((self.tokens,), 1 / (127 * 13), dtype=torch.float16)
        timed = Ranker(self.function, scan, lambda track: (pool[track % POOL], scales))
        times = time_ranker(timed, self.rows, scored, self.repeats, self.clock)
        return {name + part: one for part, one in times.items()}, {name: recall}, scored


def measure_growth(
    size: int,
    width: int = WIDTH,
    tokens: int = TOKENS,
    repeats: int = 20,
    batch: int = 32,
    clock: Callable[[], float] = time.perf_counter,
    most_in_engine: int = MOST_IN_ENGINE,
) -> dict:
    """Time single queries and a batch on `size` tracks, numpy and LanceDB beside them, and measure their recall: by the
    paper's score, and by that of sentences in order.

    Returns:
        `ms` p50 and p95 by name; `ratio` of their p50 to that of numpy; `recall@10`; `scored` tracks; `MB` that the
        scan holds, that it maps, and of numpy's vectors; `LanceDB`: seconds to fill it and MB on disk.
    """
    library = GrownLibrary(size, width)
    rows, how = library.queries(batch).unsqueeze(1), (repeats, clock, tokens)  # (B, 1, D)
    paper = Growing(library, score_function(), rows, ASKED, *how)
    times, recall, few = paper.measure("search", library.scan)
    engine = {}
    if size <= most_in_engine:
        with tempfile.TemporaryDirectory() as folder:
            scan, engine = with_engine(library, Path(folder) / "lance")
            own, found, _ = paper.measure(IN_ENGINE, scan)
        times[IN_ENGINE], recall = own[IN_ENGINE], recall | found
    sentences = Growing(library, aligned_function(), library.descriptions(batch), FEW_ASKED, *how)
    own, found, many = sentences.measure("sentences in order", library.scan)
    times, recall = times | own, recall | found
    vectors = torch.cat([shard["means"] * shard["mean_scales"].unsqueeze(1) for shard in library.shards]).numpy()
    queries = rows[:, 0].numpy()  # (B, D)

    def nearest(number: int) -> np.ndarray:
        return np.argpartition(vectors @ queries[number % len(queries)], -K)[-K:]

    times[MEANS] = milliseconds(nearest, repeats, clock)
    recall[MEANS] = recall_of(paper.best, [nearest(number) for number in range(len(paper.best))])
    return {
        "tracks": size,
        "ms": times,
        "ratio": {name: round(one["p50"] / times[MEANS]["p50"], 3) for name, one in times.items()},
        "recall@10": recall,
        "scored": {"search": few, "sentences in order": many},
        "MB": {name: round(one / 1e6, 1) for name, one in {**memory(library.scan), "float32": vectors.nbytes}.items()},
        "LanceDB": engine,
    }


def memory(scan: Scan) -> dict[str, int]:
    """Return the bytes that a scan holds once it has searched, and those of segments that it maps."""
    held = [*scan.means, scan.scales, scan.tokens, scan.shard, scan.row, scan.first, scan.count]
    return {"held": sum(one.nbytes for one in held), "mapped": sum(one["segments"].nbytes for one in scan.shards)}


def measure_cold_start(size: int, width: int = WIDTH) -> dict[str, float]:
    """Write an index, and open and search it with a vector in a new process; its files are in the system's memory.

    Returns:
        Seconds to open it, to the first answer, and of the whole process, with importing.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = write_grown(Path(place) / "index", GrownLibrary(size, width))
        start = time.perf_counter()
        line = [sys.executable, "-c", OPENING, str(folder), str(width)]
        done = subprocess.run(line, check=True, capture_output=True, text=True)
        whole = time.perf_counter() - start
    opened, answered = map(float, done.stdout.split())
    return {"tracks": size, "opened": round(opened, 2), "first answer": round(answered, 2), "process": round(whole, 2)}


def draw_growth(rows: list[dict], path: Path) -> None:
    """Draw the times over the number of tracks, both logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(name for row in rows for name in row["ms"]):
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
    parser.add_argument("--most_in_engine", type=int, default=MOST_IN_ENGINE, help="tracks, of larger ones no LanceDB")
    parser.add_argument("--plot", type=Path, help="with --sizes: file for a picture of the growth")
    parser.add_argument("--cold_start", type=int, help="tracks of an index that is written, opened and searched")
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
    rows = []
    for size in options.sizes:
        rows.append(measure_growth(size, clock=clock, most_in_engine=options.most_in_engine))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)  # the next one may take long
    report = {"threads": torch.get_num_threads(), "load": os.getloadavg(), "growth": rows}
    if options.plot:
        draw_growth(rows, options.plot)
    if options.cold_start:
        report["cold start, s"] = measure_cold_start(options.cold_start)
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
