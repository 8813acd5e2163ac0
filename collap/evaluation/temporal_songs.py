"""Songs whose sections are exchanged or changed, with the descriptions that are then true.

A song is cut at its sections and joined again, the original too, so that a cut is no clue. Of rendered songs the
description is written anew for the order that is heard; of others its sentences move with their sections.

Dimensions: `N` sections.
"""

import dataclasses
import functools
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from collap.corpora.synthetic.captions import DYNAMICS_PHRASES, INSTRUMENT_PHRASES, long_caption, section_lines
from collap.corpora.synthetic.composition import Section, Song, compose_song
from collap.corpora.synthetic.songs import render_song
from collap.data.guarded_reading import load_audio
from collap.data.sections import join_pieces, section_sentences, section_times, shuffled, without_times

RATE = 16_000
SLACK = 0.1  # seconds by which an annotated section may outlast the audio
CAPTIONS = ("timed", "untimed", "content")  # whole; without clock times; and without labels and the section before
DETAILS = ("instruments", "dynamics", "presence")  # of one section, that tells two songs apart


@dataclass(frozen=True)
class SectionedSong:
    """Hold a song of a data set.

    Attributes:
        audio: path or bytes of its file.
        sections: dicts with label, start and end in seconds, one after the other.
        caption: its text, with a sentence for each section.
        composed: what it was rendered from, where that is known.
        row: of the data set.
    """

    audio: str | bytes
    sections: list[dict]
    caption: str
    composed: Song | None = None
    row: int = 0

    @property
    def own_order(self) -> list[int]:
        return list(range(len(self.sections)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name the captions that can be made: what a sentence of a stranger leaves unsaid is not known."""
        return CAPTIONS if self.composed is not None else CAPTIONS[:2]


def check_sections(sections: list, name: str) -> None:
    """Raise a ValueError that begins with `name` unless sections have times, one after the other.

    Songs are cut at these: of a wrong one, every figure would be wrong.
    """
    last = 0.0
    for index, (start, end) in enumerate(section_times(sections, name)):
        if start < last - 1e-3:
            raise ValueError(f"{name}[{index}] starts at {start:g} s, before {last:g} s; expected one after the other")
        last = end


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
    """Put sections in another order, each with the times at which it is then heard; gaps are closed."""
    moved, start = [], 0.0
    for index in order:
        length = sections[index].end - sections[index].start
        moved.append(dataclasses.replace(sections[index], start=start, end=start + length))
        start += length
    return tuple(moved)


def reordered(composed: Song, order: list[int]) -> Song:
    """Return a composed song of the same sections in another order, or of fewer of them."""
    sections = in_order(list(composed.sections), order)
    return dataclasses.replace(composed, sections=sections, seconds=sections[-1].end)


def caption_lines(song: SectionedSong, order: list[int], kind: str) -> list[str]:
    """Describe a song whose sections are heard in an order: its overview, if there is one, and a line for each section.

    Args:
        order: indexes of the sections.
        kind: one of [`CAPTIONS`]; "content" has no overview, for that names sections, and is of rendered songs.
    """
    if song.composed is not None:
        moved = reordered(song.composed, order)
        if kind == "content":
            return [without_times(line) for line in section_lines(moved, 0, labels=False, changes=False)]
        lines = long_caption(moved, 0).split("\n")
    else:
        sentences = section_sentences(song.caption, song.sections)
        overview = song.caption.split("\n")[: 1 if "\n" in song.caption else 0]
        lines = [*(overview if overview and overview[0] != sentences[0] else []), *(sentences[i] for i in order)]
    return lines if kind == "timed" else [without_times(line) for line in lines]


def query_lines(song: SectionedSong) -> list[str]:
    """Return a sentence for each section, as one asks for it alone: without times, or what was heard before it."""
    if song.composed is None:
        return caption_lines(song, song.own_order, "untimed")[-len(song.sections) :]
    return [without_times(line) for line in section_lines(song.composed, 0, changes=False)]


def true_spans(song: SectionedSong) -> np.ndarray:
    """Return start and end in seconds of every section in the joined song, (N, 2), as [`join_sections`] cuts them."""
    samples = [round(s["end"] * RATE) - round(s["start"] * RATE) for s in song.sections]
    ends = np.cumsum(samples) / RATE  # (N,)
    return np.stack([ends - np.array(samples) / RATE, ends], axis=1)  # (N, 2)


def join_sections(samples: np.ndarray, sections: list[dict], order: list[int], rate: int = RATE) -> np.ndarray:
    """Cut a song (samples,) at its sections and join them in an order; what no section covers is left out.

    Raises:
        ValueError: a section ends after the song.
    """
    last = max(section["end"] for section in sections)
    if last > len(samples) / rate + SLACK:
        raise ValueError(f"a section ends at {last:.2f} s, the audio at {len(samples) / rate:.2f} s")
    times = section_times(sections)
    return join_pieces(samples, [times[i] for i in order], rate)[0]


def of_equal_lengths(song: SectionedSong) -> SectionedSong:
    """Cut the end off every section, so that all are as long as the shortest: a length is then no clue."""
    shortest = min(section["end"] - section["start"] for section in song.sections)
    sections = [{**section, "end": section["start"] + shortest} for section in song.sections]
    composed = song.composed
    if composed is not None:
        cut = [dataclasses.replace(section, end=section.start + shortest) for section in composed.sections]
        composed = dataclasses.replace(composed, sections=tuple(cut), seconds=shortest * len(cut))
    return dataclasses.replace(song, sections=sections, composed=composed)


def orders(count: int, generator: np.random.Generator) -> dict[str, list[int]]:
    """Draw other orders of so many sections, none their own: shuffled, two neighbours exchanged, reversed, shuffled.

    The second shuffle is independent of the first, so that a model has no reason to prefer one of them.
    """
    own = list(range(count))
    place = int(generator.integers(count - 1))
    swapped = [*own[:place], place + 1, place, *own[place + 2 :]]
    once, again = shuffled(count, generator), shuffled(count, generator)
    return {"shuffled": once, "neighbours": swapped, "reversed": own[::-1], "shuffled again": again}


def changed_once(song: Song, kind: str, generator: np.random.Generator) -> Song:
    """Change one section: its instruments all for others, its dynamics by two levels, or its presence; see [`DETAILS`].

    Nothing else tells the song from the original.
    """
    place, sections = int(generator.integers(len(song.sections))), list(song.sections)
    if kind == "presence":
        return reordered(song, [index for index in range(len(sections)) if index != place])
    section = sections[place]
    if kind == "instruments":
        others = [name for name in INSTRUMENT_PHRASES if name not in section.instruments]
        chosen = generator.choice(others, min(len(section.instruments), len(others)), replace=False)
        changed = dataclasses.replace(section, instruments=tuple(map(str, chosen)))
    else:
        levels = list(DYNAMICS_PHRASES)
        level = levels.index(section.dynamics)
        other = levels[level + 2 if level < 2 else level - 2 if level > 2 else int(generator.choice([0, 4]))]
        changed = dataclasses.replace(section, dynamics=other)
    sections[place] = changed
    return dataclasses.replace(song, sections=tuple(sections))


def wav_bytes(samples: np.ndarray, rate: int = RATE) -> bytes:
    """Return samples (samples,) as a file, to be embedded block by block like any other."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@functools.lru_cache(maxsize=1)
def song_samples(audio: str | bytes) -> np.ndarray:
    """Decode a song, (samples,), to be read only; it is kept until the next one is asked for."""
    samples = load_audio(audio, RATE)
    samples.flags.writeable = False
    return samples


def joined_samples(song: SectionedSong) -> np.ndarray:
    """Return a song, cut at its sections and joined again as it was: (samples,)."""
    return join_sections(song_samples(song.audio), song.sections, song.own_order)


def song_versions(song: SectionedSong, generator: np.random.Generator) -> dict[str, tuple[list[int], bytes]]:
    """Return the original and its other orders, each with the order of its sections and its audio."""
    return _joined(song, {"original": song.own_order, **orders(len(song.sections), generator)})


def equal_versions(song: SectionedSong, generator: np.random.Generator) -> dict[str, tuple[list[int], bytes]]:
    """Return a song [`of_equal_lengths`] and one other order of it, as [`song_versions`] does."""
    return _joined(song, {"original": song.own_order, "shuffled": shuffled(len(song.sections), generator)})


def _joined(song: SectionedSong, drawn: dict[str, list[int]]) -> dict[str, tuple[list[int], bytes]]:
    samples = song_samples(song.audio)
    return {name: (order, wav_bytes(join_sections(samples, song.sections, order))) for name, order in drawn.items()}


def changed_versions(song: SectionedSong, kind: str, generator: np.random.Generator) -> list[tuple[list[str], bytes]]:
    """Return two renderings of a composed song that differ in one section, each with its untimed description."""
    versions = []
    for one in (song.composed, changed_once(song.composed, kind, generator)):
        lines = [without_times(line) for line in long_caption(one, 0).split("\n")]
        versions.append((lines, wav_bytes(render_song(one, RATE))))
    return versions
