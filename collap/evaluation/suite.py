"""Measure several models on the pools of a suite, by one protocol: `collap evaluate --suite paper`.

    collap evaluate --suite paper --data_root data --models runs/collap-gpt2/best laion/clap-htsat-unfused@first random

A song is decoded once for all models of one sampling rate, embedded by each, scored with all texts of its pool, and
forgotten; its embeddings are kept in `embeddings` below `--output_dir`, so that a run that was killed goes on. Several
processes (`accelerate launch evaluate_retrieval.py --suite paper ...`) share the songs out. Writes results.json,
results.md, results.tex and a PNG for each table.

Dimensions: `A` songs, `B` texts, `Q` sentences of a text, `D` shared width.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from tqdm.auto import tqdm

from collap.data.guarded_reading import load_audio
from collap.data.rows import audio_source, naming_row
from processing.decode_audio import AudioFileError
from processing.embed_audio import check_samples

from .comparison import compare_models, holm
from .embedders import Embedder
from .embedding_store import EmbeddingStore, audio_digest, texts_digest
from .load_embedders import load_embedder
from .metrics import retrieval_metrics
from .results import DIRECTIONS, command_line
from .score_files import ScoreFiles
from .songs import ranks_by_direction
from .suite_data import NothingThere, OpenPool, check_data_root, find_pool, label_of, open_pool
from .suite_file import Pool, Suite, Table, read_suite
from .suite_tables import markdown_tables, write_tables

# Processes meet at the end of a pool, hours after one another where the songs are uneven.
WAITING = timedelta(days=7)
CUTOFFS = (1, 5, 10, 20, 100)
LIBRARIES = ("torch", "torchaudio", "transformers", "datasets", "numpy", "soundfile", "av")


def load_embedders(options) -> list[Embedder]:
    """Load all models.

    Raises:
        OSError, ValueError: one of them cannot be; or two are the same.
    """
    embedders = [load_embedder(spec, options.device, options.dtype, options.seed) for spec in options.models]
    names = [embedder.name for embedder in embedders]
    if len(set(names)) < len(names):
        raise ValueError(f"--models: {max(names, key=names.count)} is named twice")
    return embedders


def score_pool(embedders: list[Embedder], stores: list[EmbeddingStore], pool: OpenPool, title: str) -> list[np.ndarray]:
    """Score every song of a pool with all its texts, by every model: (A, B) float32 each, mapped from disk.

    Processes that Accelerate has started share the songs out; each gets all scores. A song that cannot be read leaves
    the pool, with a warning and a note.

    Raises:
        ValueError: what is kept of a song is of another width than the texts; or too few songs can be read.
    """
    texts, state = pool.songs.texts, PartialState()
    with state.main_process_first():  # the others read what it has kept
        embeds = [
            store.get(texts_digest(texts), lambda one=embedder: one.embed_texts(texts))
            for embedder, store in zip(embedders, stores, strict=True)
        ]
    # Equal texts get equal scores, whatever the order in which a product is summed: each is scored once.
    distinct = [torch.unique(one, dim=0, return_inverse=True) for one in embeds]  # (at most B, [Q,] D), (B,)
    scores = ScoreFiles(stores[0].root / "scores", len(embedders), len(pool.songs.rows), len(texts))
    for song in tqdm(scores.own_songs(), desc=title, disable=None if state.is_main_process else True):
        row = pool.songs.rows[song]
        audio = pool.dataset[row]["audio"]
        try:
            with naming_row(row, audio):
                scores.put(
                    song, list(_score_song(embedders, stores, distinct, audio_source(audio), pool.window_seconds))
                )
        except AudioFileError as error:
            print(f"warning: left out of {title}: {error}", file=sys.stderr)
            scores.skip(song)
    matrices, unreadable = scores.read()
    if not unreadable:
        return matrices
    left = [song not in set(unreadable) for song in range(len(pool.songs.rows))]  # (A,)
    texts_left = [left[song] for song in pool.songs.song_of_text]  # (B,)
    pool.leave_out(unreadable)
    return [matrix[left][:, texts_left] for matrix in matrices]


def _score_song(
    embedders: list[Embedder],
    stores: list[EmbeddingStore],
    distinct: list[tuple],
    source: bytes | str,
    window_seconds: float | None,
) -> Iterator[np.ndarray]:
    """Yield the scores (B,) of a song with all texts, by every model.

    Args:
        distinct: for each model the embeddings of the texts that differ, and which of them each text is (B,).
    """
    digest, decoded = audio_digest(source, window_seconds), _decoded_once(source, window_seconds)
    for embedder, store, (unique, inverse) in zip(embedders, stores, distinct, strict=True):
        found = store.get(digest, lambda one=embedder: one.embed_audio(decoded(one.sampling_rate)))
        store.check_width(unique, found, digest)
        yield embedder.score(unique, found).float().cpu()[inverse].numpy()  # (B,)


def _decoded_once(source: bytes | str, window_seconds: float | None) -> Callable[[int], np.ndarray]:
    """Return what decodes a song at a sampling rate, once for all who ask for that rate."""
    found: dict[int, np.ndarray] = {}

    def read(rate: int) -> np.ndarray:
        if rate not in found:
            found[rate] = load_audio(source, rate, stop=window_seconds)
            check_samples(found[rate], source, rate)
        return found[rate]

    return read


def library_versions() -> dict[str, str]:
    """Return the versions of what embeds, decodes and counts."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def make_manifest(embedder: Embedder, pool: OpenPool, options) -> dict:
    """Return what a figure depends on."""
    device = torch.device(options.device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "model": embedder.name,
        "weights": embedder.weights,
        **pool.facts,
        **embedder.settings,
        **embedder.score_settings,
        "seed": options.seed,
        "libraries": library_versions(),
        "hardware": f"{device.type}: {hardware}",
        "command": command_line(),
    }


def cutoffs_of(table: Table) -> tuple[int, ...]:
    """Return k of every R@k that is measured: the usual ones, and those of the table."""
    return tuple(sorted({*CUTOFFS, *(int(name[2:]) for name in table.metrics if name.startswith("R@"))}))


def measure_pool(embedders: list[Embedder], stores: list[EmbeddingStore], table: Table, pool: Pool, options) -> dict:
    """Measure all models on a pool, and compare the first one with every other.

    Returns:
        What results.json holds of the pool: `rows` by model, each with its figures and its manifest, `comparisons`,
        and `missing`, which says why there are none. Of several processes the first alone has figures.
    """
    found = {"title": pool.title, "expected": pool.expected, "paper": pool.paper, "missing": None, "notes": []}
    found |= {"dataset": label_of(pool), "data": None}
    nothing = {"rows": {}, "comparisons": []}
    with PartialState().main_process_first():  # what it decodes, the others find done
        try:
            opened = open_pool(pool, options.data_root)
        except NothingThere as error:
            opened, found["missing"] = None, str(error)
    if opened is None:
        return {**found, **nothing}
    scores = score_pool(embedders, stores, opened, pool.title)
    if not PartialState().is_main_process:
        return {**found, **nothing}
    ranked = [ranks_by_direction(matrix, opened.songs) for matrix in scores]
    settings = {"k": cutoffs_of(table), "seed": options.seed}
    rows = {
        embedder.name: {
            "manifest": make_manifest(embedder, opened, options),
            "figures": {name: retrieval_metrics(*one, **settings) for name, one in directions.items()},
        }
        for embedder, directions in zip(embedders, ranked, strict=True)
    }
    comparisons = [
        {"first": embedders[0].name, "second": other.name, "direction": direction, "figure": name, **figures}
        for other, directions in zip(embedders[1:], ranked[1:], strict=True)
        for direction in DIRECTIONS
        for name, figures in compare_models(
            ranked[0][direction][0], directions[direction][0], *ranked[0][direction][1:], **settings
        ).items()
        if name in table.metrics
    ]
    notes = [*opened.size_note(), *opened.notes]
    return {**found, "data": opened.totals, "notes": notes, "rows": rows, "comparisons": comparisons}


def count_data_sets(suite: Suite, options) -> list[dict]:
    """Count the data sets that a suite does not measure, for the paper's Table I; what results.json holds of them."""
    counted = []
    for one in suite.data_sets:
        found = {"title": one.title, "dataset": label_of(one), "paper_row": one.statistics}
        found |= {"missing": None, "data": None}
        try:
            found["data"] = find_pool(one, options.data_root).checked.totals.figures()
        except NothingThere as error:
            found["missing"] = str(error)
            _say(f"Table I, {one.title}: not counted: {error}")
        counted.append(found)
    return counted


def adjust_p_values(pools: list[dict]) -> None:
    """Add to every comparison of a table its p-value by Holm, for the number of them in the table."""
    compared = [one for pool in pools for one in pool["comparisons"]]
    for one, adjusted in zip(compared, holm([one["p"] for one in compared]), strict=True):
        one["p_holm"] = float(adjusted)


def collapse_of(embedder: Embedder) -> str | None:
    """Return, and say, how the text tower of a model is collapsed; None if it is not."""
    spread = embedder.text_spread()
    if spread.status != "failed":
        return None
    _say(f"warning: {embedder.name}: text tower: {spread.detail}; its rows are marked")
    return spread.detail


def measure_suite(suite: Suite, embedders: list[Embedder], options) -> dict:
    """Measure a suite; what results.json holds."""
    stores = [EmbeddingStore(options.output_dir / "embeddings", one.weights, one.settings) for one in embedders]
    models = [{"name": one.name, "paper_row": one.paper_row, "collapsed": collapse_of(one)} for one in embedders]
    tables = []
    for table in suite.tables:
        pools = [measure_pool(embedders, stores, table, pool, options) for pool in table.pools]
        for pool in pools:
            if pool["missing"]:
                _say(f"{table.name}, {pool['title']}: not measured: {pool['missing']}")
        adjust_p_values(pools)
        quoted = suite.quoted.get(table.quoted) if table.quoted else None
        metrics = list(table.metrics)
        tables.append({"name": table.name, "title": table.title, "metrics": metrics, "quoted": quoted, "pools": pools})
    facts = {"suite": suite.name, "title": suite.title, "command": command_line(), "libraries": library_versions()}
    data_sets = count_data_sets(suite, options) if PartialState().is_main_process else []
    return {**facts, "models": models, "data_sets": data_sets, "tables": tables}


def _say(text: str) -> None:
    """Say something on stderr, once however many processes there are."""
    if PartialState().is_main_process:
        print(text, file=sys.stderr)


def own_device(name: str | None) -> str:
    """Meet the other processes, and return where models run: as asked for, else a GPU if there is one; of several
    processes each has its own."""
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=WAITING)])
    if accelerator.num_processes > 1 and name in (None, "cuda"):
        return str(accelerator.device)
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def run(options) -> int:
    """Do `collap evaluate --suite SUITE`; return its exit code, 1 if nothing could be measured."""
    options.device = own_device(options.device)
    suite = read_suite(options.suite)
    check_data_root(options.data_root)
    results = measure_suite(suite, load_embedders(options), options)
    state = PartialState()
    state.wait_for_everyone()
    if state.num_processes > 1:
        state.destroy_process_group()
    if not state.is_main_process:
        return 0
    if not any(pool["rows"] for table in results["tables"] for pool in table["pools"]):
        raise ValueError(f"{options.data_root}: nothing of the suite can be measured; see above what is missing")
    paths = write_tables(results, options.output_dir)
    print(markdown_tables(results))
    print("\n".join(str(path) for path in paths.values()))
    return 0
