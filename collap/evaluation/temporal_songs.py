"""Songs whose sections are exchanged or changed, with the descriptions that are then true.

A song is cut at its sections and joined again, the original too, so that a cut is no clue. Of rendered songs the
description is written anew for the order that is heard; of others its sentences move with their sections.
"""

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from collap.corpora.synthetic.captions import DYNAMICS_PHRASES, long_caption
from collap.corpora.synthetic.composition import Section, Song, compose_song
from collap.corpora.synthetic.songs import render_song
from collap.data.guarded_reading import load_audio
from collap.data.sections import section_sentences, without_times

RATE = 16_000
CAPTIONS = ("timed", "untimed", "content")  # whole; without clock times; and without what is said of the section before


@dataclass(frozen=True)
class SectionedSong:
    """Hold a song of a data set.

    Attributes:
        audio: path or bytes of its file.
        sections: dicts with start and end in seconds.
        caption: its text, with a sentence for each section.
        composed: what it was rendered from, where that is known.
    """

    audio: str | bytes
    sections: list[dict]
    caption: str
    composed: Song | None = None


def compose_again(song_id: str | None, sections: list[dict], corpus: Path) -> Song | None:
    """Compose a rendered song again, from the settings of its corpus; None for any other song."""
    try:
        settings = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
        song = compose_song(song_id, settings["seed"], settings["min_seconds"], settings["max_seconds"])
    except (OSError, KeyError, TypeError, ValueError):
        return None
    times = [(section.start, section.end) for section in song.sections]
    return song if times == [(section["start"], section["end"]) for section in sections] else None


def in_order(sections: list[Section], order: list[int]) -> tuple[Section, ...]:
    """Put sections in another order, each with the times at which it is then heard."""
    moved, start = [], min(section.start for section in sections)
    for index in order:
        length = sections[index].end - sections[index].start
        moved.append(dataclasses.replace(sections[index], start=start, end=start + length))
        start += length
    return tuple(moved)


def caption_lines(song: SectionedSong, order: list[int], kind: str) -> list[str]:
    """Describe a song whose sections are heard in an order: its overview, if there is one, and a line for each section.

    Args:
        order: indexes of the sections.
        kind: one of [`CAPTIONS`].
    """
    if song.composed is not None:
        moved = dataclasses.replace(song.composed, sections=in_order(list(song.composed.sections), order))
        lines = long_caption(moved, 0).split("\n")
        if kind == "content":  # the sentence after the first is about the section before
            changes = ("Unlike", "Against", "Here the song", "Now it", "The change:")
            lines = [lines[0], *(_without_last(line, changes) for line in lines[1:])]
    else:
        sentences = section_sentences(song.caption, song.sections)
        overview = song.caption.split("\n")[: 1 if "\n" in song.caption else 0]
        lines = [*(overview if overview and overview[0] != sentences[0] else []), *(sentences[i] for i in order)]
    return lines if kind == "timed" else [without_times(line) for line in lines]


def _without_last(line: str, openings: tuple[str, ...]) -> str:
    """Leave out a last sentence that begins with one of these."""
    places = [line.rfind(f" {opening}") for opening in openings]
    return line[: max(places)] if max(places) > 0 else line


def join_sections(samples: np.ndarray, sections: list[dict], order: list[int], rate: int = RATE) -> np.ndarray:
    """Cut a song (N,) at its sections and join them in an order; what no section covers is left out."""
    parts = [samples[round(s["start"] * rate) : round(s["end"] * rate)] for s in (sections[i] for i in order)]
    return np.concatenate(parts)


def orders(count: int, generator: np.random.Generator) -> dict[str, list[int]]:
    """Draw other orders of so many sections: shuffled (never the order itself), two neighbours exchanged, reversed."""
    own = list(range(count))
    shuffled = own
    while shuffled == own:
        shuffled = generator.permutation(count).tolist()
    place = int(generator.integers(count - 1))
    swapped = [*own[:place], place + 1, place, *own[place + 2 :]]
    return {"shuffled": shuffled, "neighbours": swapped, "reversed": own[::-1]}


def changed_once(song: Song, generator: np.random.Generator) -> Song:
    """Change the dynamics of one section by two levels: all that tells the song from the original."""
    place = int(generator.integers(len(song.sections)))
    levels = list(DYNAMICS_PHRASES)
    level = levels.index(song.sections[place].dynamics)
    other = levels[level + 2 if level < 2 else level - 2 if level > 2 else int(generator.choice([0, 4]))]
    sections = list(song.sections)
    sections[place] = dataclasses.replace(sections[place], dynamics=other)
    return dataclasses.replace(song, sections=tuple(sections))


def wav_bytes(samples: np.ndarray, rate: int = RATE) -> bytes:
    """Return samples (N,) as a file, to be embedded block by block like any other."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def song_versions(song: SectionedSong, generator: np.random.Generator) -> dict[str, tuple[list[int], bytes]]:
    """Return the original and its other orders, each with the order of its sections and its audio."""
    samples = load_audio(song.audio, RATE)
    own = list(range(len(song.sections)))
    drawn = {"original": own, **orders(len(own), generator)}
    return {name: (order, wav_bytes(join_sections(samples, song.sections, order))) for name, order in drawn.items()}


def changed_versions(song: SectionedSong, generator: np.random.Generator) -> list[tuple[list[str], bytes]]:
    """Return two renderings of a composed song that differ in one section, each with its untimed description."""
    changed = changed_once(song.composed, generator)
    versions = []
    for one in (song.composed, changed):
        lines = [without_times(line) for line in long_caption(one, 0).split("\n")]
        versions.append((lines, wav_bytes(render_song(one, RATE))))
    return versions
