"""Measure what a model knows of time in whole songs: `collap evaluate --suite temporal`.

    collap evaluate --suite temporal --model runs/demo/collap-gpt2/best --dataset data/demo_songs --split test \
        --text_column captions --sections_column sections

Order: which of two songs with the same sections in another order a description fits. Localisation: where the sentence
of a section is heard, alone and within its description. Detail: two songs that differ in one section. Long form: what
whole songs and descriptions add to retrieval. Partial: descriptions that leave out, exchange or invent. Songs are
embedded one version at a time. Writes temporal.json, temporal.md and temporal.png to `--output_dir`. docs/structure.md
explains.

Dimensions: `B` texts, `T` tokens, `D` shared width.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from collap.data.rows import audio_source, named_audio, row_name, row_texts
from collap.data.sections import section_sentences
from processing.embed_audio import embed_audio

from .results import command_line
from .temporal_metrics import Measured, order_correct
from .temporal_moments import run as run_moments
from .temporal_places import (
    Kept,
    Places,
    by_paper_score,
    by_sentences,
    measure_chosen_level,
    measure_places,
    sentence_embeds,
    sentences_of,
)
from .temporal_report import draw_song, to_markdown, write_temporal_report
from .temporal_retrieval import Pool
from .temporal_rows import open_model, open_rows, sections_of_row
from .temporal_songs import (
    DETAILS,
    SectionedSong,
    caption_lines,
    changed_versions,
    check_sections,
    compose_again,
    equal_versions,
    joined_samples,
    of_equal_lengths,
    query_lines,
    song_versions,
    true_spans,
    wav_bytes,
)

CHANCE = 0.5  # of a choice between two


@torch.no_grad()
def score_texts(model, processor, texts: list[list[str]], songs: Iterable[tuple]) -> np.ndarray:
    """Score texts, each a list of lines, with embedded songs, texts embedded once: (A, B)."""
    embeds = model.get_sentence_features(**processor(text=texts, device=model.device))  # (B, Q, D)
    return torch.cat([model.score(embeds, *song) for song in songs]).float().cpu().numpy()  # (A, B)


@torch.no_grad()
def embed(model, processor, audio) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed a file or the bytes of one: tokens (1, T, D), mask (1, T)."""
    return embed_audio(model, processor.feature_extractor, audio)


def measure_order(model, processor, index: int, song: SectionedSong, found: Measured, seed: int):
    """Compare the descriptions of a song and of its other orders with both; return the embedded original."""
    generator = np.random.default_rng((seed, index))
    versions = song_versions(song, generator)
    embedded = {name: embed(model, processor, audio) for name, (_, audio) in versions.items()}
    for kind in song.kinds:
        texts = [caption_lines(song, order, kind) for order, _ in versions.values()]
        scores = dict(zip(embedded, score_texts(model, processor, texts, embedded.values()), strict=True))
        for place, name in enumerate(versions):
            if name not in ("original", "shuffled again"):
                right, wrong = (
                    [scores["original"][0], scores[name][place]],
                    [scores[name][0], scores["original"][place]],
                )
                found.add(f"order, {name}, {kind}", index, order_correct(right, wrong), CHANCE)
        # The caption is kept and its song is exchanged for a third order: neither is right.
        third = order_correct(scores["shuffled again"][:1], scores["shuffled"][:1])
        found.add(f"control: caption kept, songs shuffled, {kind}", index, third, CHANCE)
    orderless = caption_lines(song, song.own_order, song.kinds[-1])[-len(song.sections) :]
    orderless = [[orderless[i] for i in generator.permutation(len(orderless))]]
    pair = score_texts(model, processor, orderless, [embedded["original"], embedded["shuffled"]])  # (2, 1)
    found.add("control: sentences in no order", index, order_correct(*pair), CHANCE)
    return embedded["original"]


def measure_equal_lengths(model, processor, index: int, song: SectionedSong, found: Measured, seed: int) -> None:
    """Repeat the order test with sections cut to one length, in which no length is a clue."""
    song = of_equal_lengths(song)
    versions = equal_versions(song, np.random.default_rng((seed, index, 4)))
    embedded = [embed(model, processor, audio) for _, audio in versions.values()]
    texts = [caption_lines(song, order, "untimed") for order, _ in versions.values()]
    scores = score_texts(model, processor, texts, embedded)  # (2 songs, 2 texts)
    right = order_correct(np.diag(scores), np.diag(scores[::-1]))
    found.add("order, shuffled, untimed, sections of equal length", index, right, CHANCE)


def measure_detail(model, processor, index: int, song: SectionedSong, found: Measured, seed: int) -> None:
    """Tell two renderings that differ in one section; the songs take turns in how."""
    if song.composed is None:
        return
    kind = DETAILS[index % len(DETAILS)]
    versions = changed_versions(song, kind, np.random.default_rng((seed, index, 1)))
    texts = [lines for lines, _ in versions]
    scores = score_texts(model, processor, texts, [embed(model, processor, audio) for _, audio in versions])  # (2, 2)
    for name in ("detail, one section", f"detail, {kind} of one section"):
        found.add(name, index, order_correct(np.diag(scores), np.diag(scores[::-1])), CHANCE)


@dataclass
class Sectioned:
    """Hold the songs that are used.

    Attributes:
        songs: the pool in which descriptions are searched; the first `measured` of them are measured.
        left_out: songs of the data set that cannot be used before the last of these.
        reason: why the first is left out.
    """

    songs: list[SectionedSong]
    measured: int = 0
    left_out: int = 0
    reason: str | None = None


def read_song(rows, row: int, options) -> SectionedSong:
    """Read a row that has sections and a sentence for each.

    Raises:
        OSError, ValueError: says what it lacks.
    """
    example, sections = rows[row], sections_of_row(rows, row, options)
    if len(sections) < 2:
        raise ValueError(f"has {len(sections)} section; expected two or more")
    check_sections(sections, options.sections_column or "sections")
    composed = compose_again(example.get("song_id"), sections, Path(options.dataset))
    caption = row_texts(example[options.text_column], row)[0]
    song = SectionedSong(audio_source(example[options.audio_column]), sections, caption, composed, row)
    if composed is None and section_sentences(caption, sections) is None:
        raise ValueError(f"has {len(sections)} sections, but {options.text_column!r} has no sentence for each")
    return song


def open_sectioned_songs(options) -> Sectioned:
    """Open the songs of a data set that have sections and a sentence for each.

    Raises:
        ValueError: there are fewer than two, or there is no column or folder of sections.
    """
    rows, found = open_rows(options), Sectioned([])
    wanted = None if options.songs is None else max(options.songs, options.pool or 0)
    for row in range(len(rows)):
        try:
            found.songs.append(read_song(rows, row, options))
        except (OSError, ValueError) as error:
            found.left_out += 1
            found.reason = found.reason or f"{row_name(row, named_audio(rows, row, options.audio_column))}: {error}"
        if len(found.songs) == wanted:
            break
    if len(found.songs) < 2:
        raise ValueError(
            f"{options.dataset}: {len(found.songs)} songs of {options.split!r} have two sections or more, one after "
            f"the other, and a sentence for each in {options.text_column!r}; expected at least two"
            + (f". {found.reason}" if found.reason else "")
            + ". Queries with times of their own, as in castella, are measured by --parts moments"
        )
    found.measured = len(found.songs) if options.songs is None else min(options.songs, len(found.songs))
    return found


def picture(model, processor, song: SectionedSong, embedded) -> Places:
    """Find the sentences of the song that is drawn."""
    end = true_spans(song)[-1, 1]
    if model.config.alignment == "paper":
        return by_paper_score(model, sentence_embeds(model, processor, query_lines(song)), embedded, end)
    lines = caption_lines(song, song.own_order, "untimed")
    return by_sentences(model, sentences_of(model, processor, lines)[-len(song.sections) :], embedded, end)


def embed_joined(model, processor, song: SectionedSong) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed a song that is cut at its sections and joined again as it was."""
    return embed(model, processor, wav_bytes(joined_samples(song)))


def measure(model, processor, opened: Sectioned, seed: int, parts: Sequence[str]) -> tuple[dict, dict, Places | None]:
    """Measure a model on songs; the same songs and seed give the same figures.

    Args:
        opened: its first `measured` songs are measured; descriptions are searched in all.
        parts: what is measured: some of order, equal_lengths, place, detail and retrieval.

    Returns:
        Figures by name, the levels that were chosen for spans, and what was found in the first song, None if its places
        are not measured.

    Raises:
        AudioFileError, ValueError: names the row whose audio cannot be used.
    """
    found, kept, first = Measured(), Kept(), None
    pool = Pool(model, processor, opened.songs, seed) if "retrieval" in parts else None
    songs = opened.songs if pool else opened.songs[: opened.measured]
    for index, song in enumerate(tqdm(songs, desc="songs", disable=None)):
        try:
            if index >= opened.measured:
                pool.add(*embed_joined(model, processor, song))
                continue
            embedded = None
            if "order" in parts:
                embedded = measure_order(model, processor, index, song, found, seed)
            elif "place" in parts or pool:
                embedded = embed_joined(model, processor, song)
            if "place" in parts:
                measure_places(model, processor, index, song, embedded, joined_samples(song), found, kept, seed)
                first = picture(model, processor, song, embedded) if first is None else first
            if "equal_lengths" in parts:
                measure_equal_lengths(model, processor, index, song, found, seed)
            if "detail" in parts:
                measure_detail(model, processor, index, song, found, seed)
        except ValueError as error:  # AudioFileError among them
            raise type(error)(f"row {song.row}: {error}") from error
        if pool:
            pool.add(*embedded)
    levels = measure_chosen_level(kept, found)
    if pool:
        pool.measure(found)
    return found.figures(seed), levels, first


def run(options) -> int:
    """Do `collap evaluate --suite temporal`; return its exit code."""
    if "moments" in options.parts:
        if len(options.parts) > 1:
            raise ValueError("--parts moments is measured alone: its recordings are not cut at sections")
        return run_moments(options)
    opened = open_sectioned_songs(options)
    if opened.left_out:
        print(f"{opened.left_out} songs are left out; the first: {opened.reason}", file=sys.stderr)
    model, processor, facts = open_model(options)
    facts |= {"songs": opened.measured, "pool": len(opened.songs)}
    figures, levels, first = measure(model, processor, opened, options.seed, options.parts)
    results = {**facts, "songs_left_out": opened.left_out, "command": command_line(), "levels": levels}
    results["figures"] = figures
    write_temporal_report(results, options.output_dir)
    if first is not None:
        draw_song(options.output_dir / "temporal.png", opened.songs[0], first)
    print(to_markdown(results))
    return 0
