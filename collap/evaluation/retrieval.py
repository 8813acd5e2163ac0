"""Text-to-audio and audio-to-text retrieval of a CoLLAP model on a data set of audio and text.

    collap evaluate --model runs/demo/collap-gpt2/best --dataset data/demo_songs --text_column captions
    collap evaluate --model you/collap-gpt2 --dataset owner/songs --split test --audio_column audio

Every audio is embedded whole, in bounded memory, and scored against all texts before the next one is read; only the
score matrix is kept. Rows that share `--song_column` are one song: its texts are all correct answers for it, and so is
every text in the same words. Writes results.json, results.md, results.png, and with `--sections_column`
localization.png, to `--output_dir`.

Dimensions: `A` audios, `B` texts, `Q` sentences of a text, `T` fused tokens, `D` shared width, `W` frames.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from collap.data.rows import check_column
from collap.data.sources import open_dataset
from collap.models import load_model, weights_digest
from modeling_collap import mean_pooled_scores
from modeling_collap.alignment_collap import pool_sentences

from .embedding import embed_row, embed_texts
from .metrics import retrieval_metrics
from .report import plot_localization, to_markdown, write_report
from .results import Results, command_line
from .songs import RetrievalSet, collect_songs, count_shared_texts, ranks_by_direction


@torch.no_grad()
def score_songs(
    model,
    text_embeds: torch.Tensor,
    audio_embeds: Iterable[tuple[torch.Tensor, torch.Tensor]],
    chunk_size: int | None = None,
) -> dict[str, np.ndarray]:
    """Score songs that are embedded one at a time.

    Args:
        text_embeds: (B, Q, D) as [`embed_texts`] returns them, or (B, D).
        audio_embeds: embeddings (1, T, D) and token mask (1, T) of every song; may be empty.
        chunk_size: texts scored at a time; None for as many as fit bounded memory.

    Returns:
        `{"collap": (A, B), "mean_pooled": (A, B)}` float32: CoLLAP's score, and the cosine with the mean token.
    """
    # Equal texts get equal scores, whatever the order in which a product is summed: each is scored once.
    distinct, place = torch.unique(text_embeds, dim=0, return_inverse=True)  # (at most B, Q, D), (B,)
    pooled = pool_sentences(distinct) if distinct.ndim == 3 else distinct  # (at most B, D)
    place = place.cpu().numpy()
    empty = np.zeros((0, len(distinct)), np.float32)  # a process may have no songs
    rows = {"collap": [empty], "mean_pooled": [empty]}
    for tokens, mask in audio_embeds:
        rows["collap"].append(model.score(distinct, tokens, mask, chunk_size=chunk_size).cpu().numpy())
        rows["mean_pooled"].append(mean_pooled_scores(pooled, tokens, mask).cpu().numpy())
    return {kind: np.concatenate(scores)[:, place] for kind, scores in rows.items()}  # (A, B)


def retrieval_figures(scores: np.ndarray, songs: RetrievalSet, seed: int = 0, **settings) -> dict[str, dict]:
    """Measure both directions, see [`ranks_by_direction`].

    Args:
        scores: (A, B).
        seed, **settings: of `retrieval_metrics`.
    """
    directions = ranks_by_direction(scores, songs)
    return {name: retrieval_metrics(*ranked, seed=seed, **settings) for name, ranked in directions.items()}


def make_results(figures: dict[str, dict], **facts: str | int | None) -> Results:
    """Put together what reports and model cards read.

    Args:
        figures: score kind -> figures of both directions.
        **facts: further fields of `Results`: model, dataset, split, text_column, ...
    """
    sizes = next(iter(figures.values()))["text_to_audio"]
    numbers = {"num_audios": sizes["pool_size"], "num_texts": sizes["num_queries"], "seed": sizes["seed"]}
    return Results(**facts, **numbers, command=command_line(), scores=figures)


@torch.no_grad()
def localize_song(model, processor, dataset, row: int, texts: list[str], audio_column: str):
    """Score a song over time for each text: centre of every frame in seconds (W,), scores (B, W)."""
    tokens, mask = embed_row(model, processor, dataset, row, audio_column)
    found = model.localize(pool_sentences(embed_texts(model, processor, texts)), tokens, mask)
    frames = found.frame_mask[0]  # (W,)
    return found.frame_seconds[frames].mean(-1).cpu().numpy(), found.scores[0][:, frames].cpu().numpy()


def draw_localization(model, processor, dataset, songs: RetrievalSet, options, path: Path):
    """Draw the first song's score over time, over its true sections, for its own text and for that of the next song;
    each relative to the mean of all texts, because what all texts have in common says nothing about this one."""
    times, scores = localize_song(model, processor, dataset, songs.rows[0], songs.texts, options.audio_column)
    relative = scores - scores.mean(0)  # (B, W)
    lines = {
        "its own description": relative[songs.song_of_text.index(0)],
        "the next song's description": relative[songs.song_of_text.index(1)],
    }
    sections = dataset[songs.rows[0]][options.sections_column]
    title = f"song {songs.names[0]}: score over time, minus the mean of all {len(songs.texts)} descriptions"
    plot_localization(path, times, lines, sections, title=title)


def check_sections(sections, name: str):
    """Raise a ValueError that names what is no section, in the form that `collap.evaluation.report` draws."""
    if not isinstance(sections, list):
        raise ValueError(f"{name} is {sections!r}; expected a list of sections with label, start and end")
    for index, section in enumerate(sections):
        if not isinstance(section, dict) or not section.keys() >= {"label", "start", "end"}:
            raise ValueError(f"{name}[{index}] is {section!r}; expected a section with label, start and end")
        times = [section["start"], section["end"]]
        numbers = all(isinstance(time, (int, float)) and math.isfinite(time) for time in times)
        if not numbers or times[0] >= times[1] or not isinstance(section["label"], str):
            raise ValueError(f"{name}[{index}] is {section!r}; expected a text as label and seconds start < end")


def open_songs(options) -> tuple[Dataset, RetrievalSet]:
    """Open the data set and its songs; whatever can be told to be wrong is told before anything is encoded."""
    columns = (options.audio_column, options.text_column, options.dataset_config, options.revision)
    dataset = open_dataset(options.dataset, options.split, *columns)
    for column in filter(None, (options.song_column, options.sections_column)):
        check_column(dataset, column, options.dataset)
    songs = collect_songs(dataset, options.text_column, options.song_column)
    if len(songs.rows) < 2:
        raise ValueError(f"{options.dataset}: retrieval needs at least two songs; {options.split!r} has one")
    if options.sections_column:
        row = songs.rows[0]
        check_sections(dataset[row][options.sections_column], f"{options.sections_column!r} of row {row}")
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise ValueError(f"--output_dir {options.output_dir}: is a file; expected a folder, or the path of a new one")
    return dataset, songs


def evaluate_model(model, processor, dataset, songs: RetrievalSet, options) -> Results:
    """Embed, score and measure."""
    weights = weights_digest(options.model)  # now: training may write the folder again meanwhile
    shared = count_shared_texts(songs, processor)
    text_embeds = embed_texts(model, processor, songs.texts)
    audios = (
        embed_row(model, processor, dataset, row, options.audio_column)
        for row in tqdm(songs.rows, desc="songs", disable=None)
    )
    scores = score_songs(model, text_embeds, audios, options.chunk_size)
    figures = {kind: retrieval_figures(matrix, songs, options.seed) for kind, matrix in scores.items()}
    data = {name: getattr(options, name) for name in ("dataset", "dataset_config", "revision", "split", "text_column")}
    return make_results(figures, model=options.model, weights=weights, **data, **shared)


def say_shared_texts(results: Results) -> None:
    """Say on stderr which texts do not name one song."""
    count, total = results["texts_of_several_songs"], results["num_texts"]
    if count:
        print(f"{count} of {total} texts describe several songs in the same words: all are correct", file=sys.stderr)
    count = results["texts_read_alike"]
    if count:
        print(
            f"warning: {count} of {total} texts are, as the text tower reads them, those of another song: they begin "
            "alike and are cut, or differ in unknown words; no model can tell them apart, and they count as wrong",
            file=sys.stderr,
        )


def run(options) -> int:
    """Do `collap evaluate`; return its exit code."""
    if options.suite == "temporal":
        from .temporal import run as run_temporal  # it brings mir_eval and scipy

        return run_temporal(options)
    if options.suite != "retrieval":
        from .analysis.suite import is_of_analyses  # the models of others
        from .analysis.suite import run as run_analyses
        from .suite import run as run_suite

        return run_analyses(options) if is_of_analyses(options.suite) else run_suite(options)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dataset, songs = open_songs(options)
    model, processor = load_model(options.model, device, options.dtype)
    results = evaluate_model(model, processor, dataset, songs, options)
    say_shared_texts(results)
    print(to_markdown(results))
    paths = write_report(results, options.output_dir)
    if options.sections_column:
        paths["localization"] = options.output_dir / "localization.png"
        draw_localization(model, processor, dataset, songs, options, paths["localization"])
    print("\n".join(str(path) for path in paths.values()))
    return 0
