"""Measure what a model knows of time in whole songs: `collap evaluate --suite temporal`.

    collap evaluate --suite temporal --model runs/demo/collap-gpt2/best --dataset data/demo_songs --split test \
        --text_column captions --sections_column sections

Order: which of two songs with the same sections in another order a description fits. Localisation: where the sentence
of a section is heard, alone and within its description. Detail: two songs that differ in one section. Long form: what
whole songs and descriptions add to retrieval. Partial: descriptions that leave out, exchange or invent. Songs are
embedded one version at a time. Writes temporal.json and temporal.md to `--output_dir`. docs/structure.md explains.

Dimensions: `A` songs, `B` texts, `Q` sentences, `T` tokens, `D` shared width, `W` frames.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from collap.data.guarded_reading import load_audio
from collap.data.rows import audio_source, check_column, naming_row
from collap.data.sections import section_sentences
from collap.data.sources import open_dataset
from collap.files import replace_text, write_json
from collap.models import load_model, weights_digest
from modeling_collap.localization_collap import curve_spans
from processing.embed_audio import embed_audio

from .results import command_line
from .temporal_metrics import (
    boundary_f_measures,
    frame_average_precision,
    order_correct,
    points_inside,
    share_with_interval,
    span_iou,
)
from .temporal_songs import (
    CAPTIONS,
    RATE,
    SectionedSong,
    caption_lines,
    changed_versions,
    compose_again,
    join_sections,
    song_versions,
)

PARTS = {"first 10 s": 10, "first 30 s": 30, "first 60 s": 60, "whole song": None}


class Measured:
    """Collect values by the name of their figure, each with the song that it comes from."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}
        self.songs: dict[str, list[int]] = {}

    def add(self, name: str, song: int, *values: float) -> None:
        self.values.setdefault(name, []).extend(map(float, values))
        self.songs.setdefault(name, []).extend([song] * len(values))

    def figures(self, seed: int) -> dict[str, dict]:
        """Return mean, interval and numbers of every figure."""
        return {name: share_with_interval(values, self.songs[name], seed) for name, values in self.values.items()}


@torch.no_grad()
def score_texts(model, processor, texts: list[list[str]], song: tuple) -> np.ndarray:
    """Score texts, each a list of lines, with one embedded song: (B,)."""
    inputs = processor(text=texts, device=model.device)
    return model.score(model.get_sentence_features(**inputs), *song)[0].cpu().numpy()


@torch.no_grad()
def embed(model, processor, audio) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed a file or the bytes of one: tokens (1, T, D), mask (1, T)."""
    return embed_audio(model, processor.feature_extractor, audio)


def measure_order(model, processor, index: int, song: SectionedSong, found: Measured, seed: int):
    """Compare the descriptions of a song and of its other orders with both; return the embedded original."""
    versions = song_versions(song, np.random.default_rng((seed, index)))
    embedded = {name: embed(model, processor, audio) for name, (_, audio) in versions.items()}
    for kind in CAPTIONS:
        texts = [caption_lines(song, order, kind) for order, _ in versions.values()]
        scores = {name: score_texts(model, processor, texts, one) for name, one in embedded.items()}
        place = {name: number for number, name in enumerate(versions)}
        for name in list(versions)[1:]:
            right = [scores["original"][0], scores[name][place[name]]]
            wrong = [scores[name][0], scores["original"][place[name]]]
            found.add(f"order, {name}, {kind}", index, *order_correct(right, wrong))
        # The caption is kept and both songs are in other orders: nothing to know.
        found.add(f"control: shuffled against reversed, {kind}", index,
                  *order_correct(scores["shuffled"][:1], scores["reversed"][:1]))  # fmt: skip
    overview = [caption_lines(song, versions["original"][0], "untimed")[0]]
    pair = [score_texts(model, processor, [overview], embedded[name])[0] for name in ("original", "shuffled")]
    found.add("control: a description without order", index, *order_correct(pair[:1], pair[1:]))
    return embedded["original"]


@torch.no_grad()
def localized(model, processor, lines: list[str], song: tuple):
    """Return curves (Q, W), times (W, 2), spans (Q, 2) by curve, and (Q, 2) by path or None."""
    sentences = model.get_sentence_features(**processor(text=[[line] for line in lines], device=model.device))
    if model.config.alignment == "paper":
        result = model.localize(sentences[:, 0], *song)
        curves = result.scores[0][:, result.frame_mask[0]]  # (Q, W)
        times = result.frame_seconds[: curves.shape[1]]
        return curves.cpu().numpy(), times.cpu().numpy(), curve_spans(curves, times).cpu().numpy(), None
    result = model.localize(sentences[:, 0].unsqueeze(0), *song)
    outputs = result.curves[0, 0], result.frame_seconds, result.spans[0, 0], result.path[0, 0]
    return tuple(one.cpu().numpy() for one in outputs)


def measure_localization(model, processor, index: int, song: SectionedSong, embedded, samples, found: Measured):
    """Find the sentence of every section, alone and with the others, beside what points without listening."""
    own = list(range(len(song.sections)))
    lines = caption_lines(song, own, "untimed")[-len(own) :]
    start = song.sections[0]["start"]  # the joined song begins with its first section
    true = np.array([[section["start"] - start, section["end"] - start] for section in song.sections])
    curves, times, spans, path = localized(model, processor, lines, embedded)
    middles = times.mean(1)
    for curve, span in zip(curves, true, strict=True):
        found.add("pointing, a sentence alone", index, points_inside(curve, times, span))
        inside = (middles >= span[0]) & (middles < span[1])
        if inside.any():
            found.add("average precision of frames", index, frame_average_precision(curve, inside))
    for name, one in {"a sentence alone": spans, "path": path}.items():
        if one is not None:
            overlaps = span_iou(one, true)
            found.add(f"mean IoU, {name}", index, *overlaps)
            found.add(f"IoU at least 0.5, {name}", index, *(overlaps >= 0.5))
    if path is not None:
        found.add("pointing, middle of the path", index, *((path.mean(1) >= true[:, 0]) & (path.mean(1) < true[:, 1])))
        for window, value in zip((0.5, 3), boundary_f_measures(path[1:, 0], true[1:, 0], true[-1, 1]), strict=True):
            found.add(f"boundaries within {window} s, path (F)", index, value)
    loudest = samples[: len(samples) // 16000 * 16000].reshape(-1, 16000).std(1).argmax() + 0.5
    total = true[-1, 1]
    found.add("control: pointing at random", index, *(np.diff(true)[:, 0] / total))
    found.add("control: pointing at the loudest second", index, *((true[:, 0] <= loudest) & (loudest < true[:, 1])))
    found.add("control: pointing at the middle", index, *((true[:, 0] <= total / 2) & (total / 2 < true[:, 1])))


def measure_detail(model, processor, index: int, song: SectionedSong, found: Measured, seed: int) -> None:
    """Tell two renderings that differ in the dynamics of one section."""
    if song.composed is None:
        return
    versions = changed_versions(song, np.random.default_rng((seed, index, 1)))
    texts = [lines for lines, _ in versions]
    scores = np.stack([score_texts(model, processor, texts, embed(model, processor, audio)) for _, audio in versions])
    found.add("detail, one section of other dynamics", index, *order_correct(np.diag(scores), np.diag(scores[::-1])))


def partial_captions(songs: list[SectionedSong], seed: int) -> dict[str, list[list[str]]]:
    """Return the descriptions of all songs, whole and spoiled in each of several ways."""
    texts: dict[str, list[list[str]]] = {}
    full = [caption_lines(song, list(range(len(song.sections))), "untimed") for song in songs]
    for index, lines in enumerate(full):
        generator = np.random.default_rng((seed, index, 2))
        first = len(lines) - len(songs[index].sections)
        overview, own = lines[:first], lines[first:]
        gap, foreign = int(generator.integers(len(own))), full[(index + 1) % len(full)]
        kept = sorted(generator.permutation(len(own))[:2].tolist())
        untrue = [*own]
        untrue[gap] = foreign[int(generator.integers(first, len(foreign)))]
        spoiled = {
            "whole description": lines,
            "one sentence missing": [*overview, *own[:gap], *own[gap + 1 :]],
            "two sentences left": [own[i] for i in kept],
            "sentences shuffled": [*overview, *(own[i] for i in generator.permutation(len(own)))],
            "one sentence untrue": [*overview, *untrue],
            "one sentence": [own[gap]],
            **({"overview alone": overview} if overview else {}),
        }
        for name, one in spoiled.items():
            texts.setdefault(name, []).append(one)
    return texts


@torch.no_grad()
def measure_retrieval(model, processor, embedded: list[tuple], songs: list[SectionedSong], found: Measured, seed: int):
    """Retrieve whole and cut songs from whole and spoiled descriptions, text to audio."""
    texts = partial_captions(songs, seed)
    for part, seconds in PARTS.items():
        count = None if seconds is None else round(seconds / model.config.token_seconds)
        kinds = texts if seconds is None else {"whole description": texts["whole description"]}
        for kind, captions in kinds.items():
            rows = [score_texts(model, processor, captions, (t[:, :count], m[:, :count])) for t, m in embedded]
            scores = np.stack(rows)  # (A, B)
            ranks = (scores >= np.diag(scores)).sum(0)  # ties count against
            for k in (1, 5):
                for index, rank in enumerate(ranks):
                    found.add(f"R@{k}, {part}, {kind}", index, rank <= k)


def open_sectioned_songs(options) -> list[SectionedSong]:
    """Open the songs of a data set that have sections and a sentence for each.

    Raises:
        ValueError: there are fewer than two, or the column of sections is missing.
    """
    if not options.sections_column:
        raise ValueError("--suite temporal needs --sections_column: lists of sections with start and end in seconds")
    columns = options.audio_column, options.text_column, options.dataset_config, options.revision
    rows = open_dataset(options.dataset, options.split, *columns)
    check_column(rows, options.sections_column, options.dataset)
    songs = []
    for row in range(len(rows)):
        example = rows[row]
        sections, texts = example[options.sections_column] or [], example[options.text_column]
        caption = texts if isinstance(texts, str) else texts[0]
        if len(sections) < 2 or section_times_overlap(sections):
            continue
        composed = compose_again(example.get("song_id"), sections, Path(options.dataset))
        song = SectionedSong(audio_source(example[options.audio_column]), sections, caption, composed)
        if composed is not None or caption_fits(song):
            songs.append(song)
        if len(songs) == options.songs:
            break
    if len(songs) < 2:
        raise ValueError(
            f"{options.dataset}: {len(songs)} songs of {options.split!r} have two sections or more, one after the "
            f"other, and a sentence for each in {options.text_column!r}; expected at least two"
        )
    return songs


def section_times_overlap(sections: list[dict]) -> bool:
    """Tell whether sections are not one after the other."""
    times = [time for section in sections for time in (section["start"], section["end"])]
    return any(before > after + 1e-3 for before, after in itertools.pairwise(times))


def caption_fits(song: SectionedSong) -> bool:
    """Tell whether a description has a sentence for each section."""
    return section_sentences(song.caption, song.sections) is not None


def to_markdown(results: dict) -> str:
    """Write the figures as a table."""
    lines = [
        f"# What {results['model']} knows of time",
        "",
        f"{results['songs']} songs of {results['dataset']}, split {results['split']}; in %, with 95 % bootstrap "
        "intervals by song. Chance of order, controls and detail: 50.",
        "",
        "| | % | 95 % | queries |",
        "|---|--:|---|--:|",
    ]
    for name, one in results["figures"].items():
        lines.append(f"| {name} | {one['mean']:.1f} | {one['low']:.1f} to {one['high']:.1f} | {one['queries']} |")
    return "\n".join([*lines, "", f"`{results['command']}`", ""])


def measure(model, processor, songs: list[SectionedSong], seed: int = 0) -> dict[str, dict]:
    """Measure a model on songs; the same songs and seed give the same figures."""
    found, embedded = Measured(), []
    for index, song in enumerate(tqdm(songs, desc="songs", disable=None)):
        with naming_row(index, None):
            embedded.append(measure_order(model, processor, index, song, found, seed))
            samples = load_audio(song.audio, RATE)
            samples = join_sections(samples, song.sections, list(range(len(song.sections))))
            measure_localization(model, processor, index, song, embedded[-1], samples, found)
            measure_detail(model, processor, index, song, found, seed)
    measure_retrieval(model, processor, embedded, songs, found, seed)
    return found.figures(seed)


def run(options) -> int:
    """Do `collap evaluate --suite temporal`; return its exit code."""
    songs = open_sectioned_songs(options)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = load_model(options.model, device, options.dtype)
    facts = {name: getattr(options, name) for name in ("model", "dataset", "split", "text_column", "seed")}
    figures = measure(model, processor, songs, options.seed)
    results = {**facts, "weights": weights_digest(options.model), "songs": len(songs), "command": command_line()}
    results["figures"] = figures
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.output_dir / "temporal.json", results)
    replace_text(options.output_dir / "temporal.md", to_markdown(results))
    print(to_markdown(results))
    return 0
