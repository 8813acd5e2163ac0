"""Say what an index holds, and how well it can be searched: `collap index --stats`.

    collap index --stats --index music.index
    collap index --stats --index music.index --json
    collap index --stats --index music.index --engine music.lance    recall through an engine, too

Queries are the descriptions that an index is calibrated on; where its model is not there, segments of its own tracks,
each of which is not to find its track. All tracks are scored exactly with all of them, so a large library takes its
time: this is what searches are compared with.

Dimensions: `N` tracks, `B` queries, `D` shared width.
"""

import argparse
import json
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from collap.evaluation.analysis.hubness import hub_figures, occurrences
from collap.evaluation.analysis.statistics import figure, rank_correlation

from .calibration import calibration_texts
from .index import TrackIndex
from .library import shown
from .quantize import dequantize_rows
from .queries import Query, text_queries, vector_query
from .ranking import Texts, sort_order, texts_of
from .store import ROWS, IndexStore, named_files
from .vectors import Vectors

K = 10
QUERIES = 64  # of segments
SCORED = 256  # tracks that are scored between two looks at the progress
MOST_LEVELS = 10_000  # tracks by which the bias to long ones is told
HUBS = 5  # that are named
SEED = 0
TABLES = {"tracks": "tags", "failed": "broken files"}  # by the first part of the name of a file
PARTS = {"token": "tokens", "segment": "segments", "mean": "means"}  # by that of a tensor


@dataclass(frozen=True)
class Asked:
    """Hold the queries that an index is asked.

    Attributes:
        texts: of the queries.
        left_out: (B,) number of the track that a query is made of, -1 for none; it is not to be found.
        kind: what they are, for people.
    """

    texts: Texts
    left_out: np.ndarray
    kind: str


# ---- what it holds


def contents(store: IndexStore) -> dict:
    """Count what is in an index.

    Returns:
        `tracks`; `recordings`, of different files; `copies`: tracks whose samples are those of an earlier one; `hours`;
        `broken`: files that could not be read.
    """
    shards, rows = store.places
    sounds = [shard.rows["sound"].to_pylist() for shard in store.shards.values()]
    heard = {sounds[shard][row] for shard, row in zip(shards, rows, strict=True)}
    return {
        "tracks": len(store.tracks),
        "recordings": len({*zip(shards.tolist(), rows.tolist(), strict=True)}),
        "copies": len(store.tracks) - len(heard),
        "hours": sum(store.tracks["seconds"].to_pylist()) / 3600,
        "broken": len(store.failed),
    }


def sizes(store: IndexStore) -> dict[str, int]:
    """Return the bytes on disk of each part of an index, and of all: the largest part first, `all` last.

    Parts are those of the vectors (tokens, segments, means, each with its scales and places), `digests` of files and
    samples, `tags` with paths, `broken files`, and `rest`: headers of files.
    """
    found: dict[str, int] = {}

    def add(part: str, size: int) -> None:
        found[part] = found.get(part, 0) + size

    total = 0
    for path, size, _ in named_files(store.folder, store.manifest):
        total += size
        if path.name == ROWS:
            add("digests", size)
        elif (table := path.name.partition("-")[0]) in TABLES:
            add(TABLES[table], size)
    for shard in store.shards.values():
        for name, tensor in shard.vectors.items():
            add(part_of(name), tensor.nbytes)
    add("rest", total - sum(found.values()))
    return dict(sorted(found.items(), key=lambda one: -one[1])) | {"all": total}


def part_of(tensor: str) -> str:
    """Return the part of an index that a tensor of its shards is of."""
    name = tensor.split("_")[0].removesuffix("s")
    return PARTS.get(name, name)


# ---- how it can be searched


def queries_of(index: TrackIndex) -> Asked:
    """Return descriptions, or segments of tracks where the model of the index is not there."""
    try:
        queries, kind = text_queries(index.embedder, index.function, calibration_texts()), "built-in descriptions"
    except (OSError, ValueError) as error:
        queries = segment_queries(index.store, QUERIES)
        kind = f"segments of its tracks, as there is no model ({' '.join(str(error).split())})"
    left_out = [-1 if query.left_out is None else query.left_out for query in queries]
    return Asked(texts_of(queries), np.array(left_out), kind)


def segment_queries(store: IndexStore, count: int, seed: int = SEED) -> list[Query]:
    """Draw segments of different tracks as queries, each of which leaves its track out."""
    random, found = np.random.default_rng(seed), []
    for track in random.permutation(len(store.tracks))[:count].tolist():
        segment = _segment(store.vectors(track), random)  # (D,)
        if segment.any():
            embeds = vector_query(segment, len(segment)).embeds
            found.append(Query(embeds, (), embeds, left_out=track))
    return found


def _segment(vectors: Vectors, random: np.random.Generator) -> torch.Tensor:
    segments = dequantize_rows(vectors["segments"], vectors["segment_scales"])  # (S, D)
    return segments[int(random.integers(len(segments)))]


def exact_scores(index: TrackIndex, asked: Asked) -> np.ndarray:
    """Score all tracks with all queries: (N, B), -inf for tracks that a query leaves out."""
    scores, tracks = np.empty((len(index), asked.texts.signs.shape[1]), np.float32), np.arange(len(index))
    with tqdm(total=len(tracks), unit="track", disable=None) as progress:
        for start in range(0, len(tracks), SCORED):
            part = tracks[start : start + SCORED]
            scores[part] = index.ranker.exact(asked.texts, part)
            progress.update(len(part))
    own = np.flatnonzero(asked.left_out >= 0)
    scores[asked.left_out[own], own] = -np.inf
    return scores


def recall(index: TrackIndex, asked: Asked, scores: np.ndarray, k: int) -> dict:
    """Return which share of the best k tracks by exact scores (N, B) a search finds as it is by default.

    Returns:
        `value`, `low` and `high`: the mean over queries, and its interval of 95 %; `scored`: tracks that a search
        scores exactly, the median.
    """
    tracks = np.arange(len(index))
    rankings = index.ranker.rank(asked.texts, tracks, k + 1)
    shares = []
    for own, exact, ranking in zip(asked.left_out, scores.T, rankings, strict=True):
        found = ranking.tracks[ranking.tracks != own][:k]
        shares.append(np.isin(sort_order(exact, tracks)[:k], found).mean())
    shares = np.array(shares)
    mean = figure(lambda drawn: shares[drawn].mean(-1), len(shares), None, SEED)
    scored = int(np.median([one.num_rescored for one in rankings]))
    return {name: mean[name] for name in ("value", "low", "high")} | {"scored": scored}


def length_bias(scores: np.ndarray, seconds: np.ndarray) -> dict | None:
    """Return the rank correlation of the mean score of a track with its length, with its interval by tracks.

    Args:
        scores: (N, B), -inf where a track is left out.
        seconds: (N,).

    Returns:
        None if it is not defined: all tracks are equally long.
    """
    chosen = np.unique(np.linspace(0, len(scores) - 1, min(MOST_LEVELS, len(scores))).astype(np.int64))
    scores = np.where(np.isfinite(scores[chosen]), scores[chosen], np.nan)
    levels = np.nanmean(scores - np.nanmean(scores, axis=0), axis=1)  # (chosen,)
    seconds = seconds[chosen]
    found = figure(lambda drawn: rank_correlation(seconds[drawn], levels[drawn]), len(levels), 0.0, SEED)
    return found if np.isfinite(found["value"]) else None


def hubs(store: IndexStore, scores: np.ndarray, k: int) -> dict:
    """Return whether a few tracks are found by most queries: figures of `collap.evaluation.analysis.hubness`.

    Returns:
        `skewness` of N_k, `never` and `largest` in percent, each with its interval and what random scores give; and
        `tracks`: those found most often, with the share of queries.
    """
    counts = occurrences(scores, k).sum(axis=1)  # (N,)
    often = sort_order(counts, np.arange(len(counts)))[:HUBS]
    named = [
        {"path": shown(store.tracks["path"][int(track)].as_py()), "share": float(counts[track] / scores.shape[1])}
        for track in often
    ]
    return hub_figures(scores, np.arange(scores.shape[1]), k, SEED) | {"tracks": named}


@torch.no_grad()
def statistics_of(index: TrackIndex, k: int = K, proposing: TrackIndex | None = None) -> dict:
    """Measure an index.

    Args:
        proposing: the same index with an engine, whose recall is measured, too.

    Returns:
        `contents`, `bytes`; and, if it holds more than k tracks, `k`, `queries` (their `kind` and `number`), `recall`,
        `length_bias`, `hubs` and, with an engine, `engine_recall`.
    """
    report = {"contents": contents(index.store), "bytes": sizes(index.store)}
    if len(index) <= k:
        return report
    asked = queries_of(index)
    scores = exact_scores(index, asked)
    if proposing is not None:
        report["engine_recall"] = recall(proposing, asked, scores, k)
    return report | {
        "k": k,
        "queries": {"kind": asked.kind, "number": scores.shape[1]},
        "recall": recall(index, asked, scores, k),
        "length_bias": length_bias(scores, index.tracks["seconds"].to_numpy()),
        "hubs": hubs(index.store, scores, k),
    }


# ---- the command


def run(options: argparse.Namespace) -> int:
    """Do `collap index --stats`; return its exit code."""
    index = TrackIndex.open(options.index, options.model, options.device or "cpu")
    proposing = TrackIndex(index.store, engine=options.engine) if options.engine else None
    report = statistics_of(index, proposing=proposing)
    print(json.dumps(report) if options.json else "\n".join(told(report)))
    return 0


def told(report: dict) -> list[str]:
    """Return the lines that people read."""
    about, parts = report["contents"], dict(report["bytes"])
    total, num_tracks = parts.pop("all"), about["tracks"]
    lines = [
        f"{num_tracks} tracks of {about['recordings']} recordings, {about['hours']:.2f} hours of audio",
        f"{about['copies']} with the same samples as another, {about['broken']} files could not be read",
        f"{total / 1e6:.1f} MB on disk, {total / 1e3 / max(1, num_tracks):.1f} kB a track:",
        *(f"    {name:14}{size / 1e6:10.2f} MB {size / max(1, total):6.1%}" for name, size in parts.items()),
    ]
    if "recall" not in report:
        return [*lines, "too few tracks to say how well they are found"]
    k, found, bias, often = (report[name] for name in ("k", "recall", "length_bias", "hubs"))
    through = report.get("engine_recall")
    lines += [
        f"asked: {report['queries']['number']} {report['queries']['kind']}",
        f"recall@{k} against scoring all: {_interval(found)}; half of the searches score {found['scored']} or fewer",
        *([f"the same through the engine: {_interval(through)}"] if through else []),
        f"rank correlation of mean score and length: {_interval(bias) if bias else 'all tracks are equally long'}",
        f"skewness of N_{k}, how often a track is among the best {k}: {_interval(often['skewness'])}, "
        f"by chance {often['skewness']['chance']:.2f}",
        f"tracks that no query finds: {often['never']['value']:.1f} %, by chance {often['never']['chance']:.1f} %",
        "found most often:",
    ]
    return [*lines, *(f"    {one['share']:6.1%} of queries  {one['path']}" for one in often["tracks"])]


def _interval(one: dict) -> str:
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
