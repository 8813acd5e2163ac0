"""Text-to-audio and audio-to-text retrieval of a CoLLAP model on a data set of audio and text.

    python evaluate_retrieval.py --model runs/demo/collap-gpt2/best --dataset data/demo_songs --text_column captions
    python evaluate_retrieval.py --model you/collap-gpt2 --dataset owner/songs --split test --audio_column audio

Every audio is embedded whole, in bounded memory, and scored against all texts before the next one is read; only the
score matrix is kept. Rows that share `--song_column` are one song: its texts are all correct answers for it. Writes
results.json, results.md, results.png, and with `--sections_column` localization.png, to `--output_dir`.

Dimensions: `A` audios, `B` texts.
"""

import math
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from collap.data.feature_cache import CACHED_COLUMN, load_cached_features
from collap.data.rows import audio_source, check_column, named_audio, naming_row, row_texts
from collap.data.sources import open_dataset
from collap.evaluation.report import plot_localization, to_markdown, write_report
from collap.models import load_model, weights_digest
from modeling_collap import mean_pooled_scores
from processing.embed_audio import embed_audio, embed_segments

METRIC = Path(__file__).resolve().parent.parent / "hub" / "spaces" / "audio_text_retrieval"
RANK_CHUNK = 512  # queries ranked at a time


@dataclass
class RetrievalSet:
    """Songs and the texts that describe them.

    Attributes:
        rows: data set row of every song.
        names: label of every song.
        texts: all texts, song by song.
        song_of_text: index of the song that each text describes.
    """

    rows: list[int]
    names: list[str]
    texts: list[str]
    song_of_text: list[int]


def collect_songs(dataset, text_column: str, song_column: str | None) -> RetrievalSet:
    """Rows with the same `song_column` are one song (the audio of the first is used); without it each row is one.

    Raises:
        ValueError: names a row without a song or without a text.
    """
    songs = RetrievalSet([], [], [], [])
    index_of: dict[str, int] = {}
    # Only what is needed: a row of all columns would bring the bytes of its audio.
    for row, example in enumerate(dataset.select_columns(list({text_column, song_column or text_column}))):
        name = f"row {row}"
        if song_column:
            name = "" if example[song_column] is None else str(example[song_column]).strip()
        if not name:
            raise ValueError(f"row {row} has no {song_column!r}; with a song column every row must name its song")
        if name not in index_of:
            index_of[name] = len(songs.rows)
            songs.rows.append(row)
            songs.names.append(name)
        texts = row_texts(example[text_column], row)
        songs.texts.extend(texts)
        songs.song_of_text.extend([index_of[name]] * len(texts))
    return songs


@torch.no_grad()
def embed_texts(model, processor, texts: list[str], batch_size: int = 32) -> torch.Tensor:
    """(B, D) float32 on the model's device."""
    embeds = []
    for start in range(0, len(texts), batch_size):
        inputs = processor(text=texts[start : start + batch_size], device=model.device)
        embeds.append(model.get_text_features(**inputs))
    return torch.cat(embeds)  # (B, D)


def embed_row(model, processor, dataset, row: int, audio_column: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (1, T, D) and token mask (1, T) of one row, from its cached features if it has them.

    Raises:
        AudioFileError: names the row and its file.
    """
    if CACHED_COLUMN in dataset.column_names:
        with naming_row(row, named_audio(dataset, row, audio_column)):
            return embed_segments(model, [load_cached_features(dataset.select_columns(CACHED_COLUMN)[row])])
    audio = dataset[row][audio_column]
    with naming_row(row, audio):
        return embed_audio(model, processor.feature_extractor, audio_source(audio))


@torch.no_grad()
def score_songs(
    model, text_embeds: torch.Tensor, audio_embeds: Iterable[tuple[torch.Tensor, torch.Tensor]], chunk_size: int
) -> dict[str, np.ndarray]:
    """Score rows of songs that are embedded one at a time.

    Args:
        text_embeds: (B, D).
        audio_embeds: embeddings (1, T, D) and token mask (1, T) of every song; may be empty.
        chunk_size: texts scored at a time.

    Returns:
        `{"collap": (A, B), "mean_pooled": (A, B)}` float32: CoLLAP's score, and the cosine with the mean token.
    """
    empty = np.zeros((0, len(text_embeds)), np.float32)  # a process may have no songs
    rows = {"collap": [empty], "mean_pooled": [empty]}
    for tokens, mask in audio_embeds:
        rows["collap"].append(model.score(text_embeds, tokens, mask, chunk_size=chunk_size).cpu().numpy())
        rows["mean_pooled"].append(mean_pooled_scores(text_embeds, tokens, mask).cpu().numpy())
    return {kind: np.concatenate(scores) for kind, scores in rows.items()}


def retrieval_figures(scores: np.ndarray, song_of_text: list[int], names: list[str], seed: int = 0, **settings) -> dict:
    """Both directions through the metric module.

    Args:
        scores: (A, B).
        song_of_text: (B,) song of every text.
        names: (A,) labels of the songs.
        seed, **settings: of the metric.
    """
    texts_of_song = [[] for _ in names]
    for text, song in enumerate(song_of_text):
        texts_of_song[song].append(text)
    text_songs = [names[song] for song in song_of_text]
    return {
        "text_to_audio": _direction(scores.T, [[song] for song in song_of_text], text_songs, seed, settings),
        "audio_to_text": _direction(scores, texts_of_song, names, seed, settings),
    }


def _direction(scores: np.ndarray, correct: list[list[int]], groups: list[str], seed: int, settings: dict) -> dict:
    metric = evaluate.load(str(METRIC), keep_in_memory=True)
    for start in range(0, len(correct), RANK_CHUNK):
        chunk = slice(start, start + RANK_CHUNK)
        ranks = metric.ranks_of_correct(scores[chunk], correct[chunk], first_query=start)
        metric.add_batch(predictions=ranks, references=[scores.shape[1]] * len(ranks))
    return metric.compute(groups=groups, seed=seed, **settings)


def report_of(figures: dict[str, dict], **names: str | None) -> dict:
    """The results as `collap.evaluation.report` and model cards read them.

    Args:
        figures: score kind -> figures of both directions.
        **names: model, dataset, config_name, revision, split and caption_column; weights, from `weights_digest`.
    """
    sizes = next(iter(figures.values()))["text_to_audio"]
    numbers = {"num_audios": sizes["pool_size"], "num_texts": sizes["num_queries"], "seed": sizes["seed"]}
    return {**names, **numbers, "command": shlex.join(["python", *sys.argv]), "scores": figures}


@torch.no_grad()
def localize_song(model, processor, dataset, row: int, texts: list[str], audio_column: str):
    """Score over time of one song for each text: centre of every frame in seconds (W,), scores (len(texts), W)."""
    tokens, mask = embed_row(model, processor, dataset, row, audio_column)
    found = model.localize(embed_texts(model, processor, texts), tokens, mask)
    frames = found.frame_mask[0]  # (W,)
    return found.frame_seconds[frames].mean(-1).cpu().numpy(), found.scores[0][:, frames].cpu().numpy()


def draw_localization(model, processor, dataset, songs: RetrievalSet, options, path: Path):
    """The first song's score over time, over its true sections, for its own text and for that of the next song; each
    relative to the mean of all texts, because what all texts have in common says nothing about this one."""
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
    """Raises a ValueError that names what is no section, in the form that `collap.evaluation.report` draws."""
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
    """The data set and its songs; all that can be told to be wrong before anything is encoded."""
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


def evaluate_model(model, processor, dataset, songs: RetrievalSet, options) -> dict:
    """Embeds, scores and measures; returns the results as `collap.evaluation.report` reads them."""
    weights = weights_digest(options.model)  # now: training may write the folder again meanwhile
    text_embeds = embed_texts(model, processor, songs.texts)
    audios = (
        embed_row(model, processor, dataset, row, options.audio_column)
        for row in tqdm(songs.rows, desc="songs", disable=None)
    )
    scores = score_songs(model, text_embeds, audios, options.chunk_size)
    figures = {
        kind: retrieval_figures(matrix, songs.song_of_text, songs.names, options.seed)
        for kind, matrix in scores.items()
    }
    names = {"model": options.model, "weights": weights, "dataset": options.dataset}
    names |= {"config_name": options.dataset_config, "revision": options.revision, "split": options.split}
    return report_of(figures, **names, caption_column=options.text_column)


def run(options) -> int:
    """Do `collap evaluate`; return its exit code."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dataset, songs = open_songs(options)
    model, processor = load_model(options.model, device, options.dtype)
    results = evaluate_model(model, processor, dataset, songs, options)
    print(to_markdown(results))
    paths = write_report(results, options.output_dir)
    if options.sections_column:
        paths["localization"] = options.output_dir / "localization.png"
        draw_localization(model, processor, dataset, songs, options, paths["localization"])
    print("\n".join(str(path) for path in paths.values()))
    return 0
