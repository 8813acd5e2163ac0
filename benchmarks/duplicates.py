"""Missed and false merges of `collap duplicates` on rendered songs of 60 to 75 s.

    python -m benchmarks.duplicates --model runs/best --songs 12

Every song meets its copies, what is like it and is no copy, and all other songs. "tokens" is how many pairs pass by
their lengths and the cosines of their means and tokens, "fingerprints" how many by the bits of their sound, and
"merged" by both. The mean of four further songs stands for that of a library.

Dimensions: `N` samples.
"""

import argparse
import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import soundfile
import torch

from collap.corpora.duplicates import track_fingerprint
from collap.corpora.synthetic.composition import Section, Song
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.corpora.synthetic.voices import PITCHED
from collap.corpora.tracks import RATE
from collap.search.duplicates import (
    MAX_SECONDS_APART,
    MIN_COSINE,
    MIN_MEAN_COSINE,
    are_copies,
    best_offset,
    passage_errors,
    token_cosines,
)
from collap.search.space import load_searched
from processing.resample_audio import resample


def at_rate(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    return np.concatenate([*resample(iter([(0, samples)]), rate, new_rate, 0)]).astype(np.float32)


def encoded(samples: np.ndarray, kind: str, codec: str, compression: float, rate: int = RATE) -> np.ndarray:
    """Return what is left of samples (N,) after a codec of libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=codec, compression_level=compression)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def late(samples: np.ndarray, seconds: float) -> np.ndarray:
    return np.concatenate([np.zeros(round(seconds * RATE), np.float32), samples])


def arranged(song: Song, sections: Iterable[Section]) -> Song:
    """Return a song of these sections, one after another."""
    end, placed = 0.0, []
    for one in sections:
        placed.append(replace(one, start=end, end=end + one.end - one.start))
        end = placed[-1].end
    return replace(song, sections=tuple(placed), seconds=end)


def at_tempo(song: Song, factor: float) -> Song:
    sections = (replace(one, start=one.start / factor, end=one.end / factor) for one in song.sections)
    return arranged(replace(song, tempo_bpm=song.tempo_bpm * factor), sections)


def by_others(section: Section) -> Section:
    """Return a section with every pitched instrument exchanged."""
    names = sorted(PITCHED)
    exchanged = (names[(names.index(one) + 5) % len(names)] if one in PITCHED else one for one in section.instruments)
    return replace(section, instruments=tuple(dict.fromkeys(exchanged)))


def copies(samples: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield copies of a song (N,), and what they are called."""
    yield "mp3, lowest rate", encoded(samples, "MP3", "MPEG_LAYER_III", 0.95)
    yield "Ogg Vorbis, low rate", encoded(samples, "OGG", "VORBIS", 0.9)
    yield "Opus, low rate", encoded(samples, "OGG", "OPUS", 0.95)
    yield "6 dB softer", samples / 2
    yield "6 dB louder, clipped", np.clip(2 * samples, -1, 1)
    for seconds in (0.5, 1.03, 2.0):
        yield f"{seconds} s of silence in front", late(samples, seconds)
    high = encoded(at_rate(samples, RATE, 44_100), "MP3", "MPEG_LAYER_III", 0.9, 44_100)
    yield "mp3 of 44.1 kHz, 0.7 s later", late(at_rate(high, 44_100, RATE), 0.7)
    yield "through 8 kHz", at_rate(at_rate(samples, RATE, 8000), 8000, RATE)


def likenesses(song: Song) -> Iterator[tuple[str, Song]]:
    """Yield songs that are like one and no copies of it, and what they are called."""
    parts, middle = song.sections, len(song.sections) // 2
    yield "another melody", replace(song, seed=song.seed + 1000)
    for factor in (1.06, 1.01, 1.003):
        yield f"{factor} times as fast", at_tempo(song, factor)
    yield "other instruments", replace(song, sections=tuple(map(by_others, parts)))
    yield (
        "other instruments in one section",
        replace(song, sections=(*parts[:middle], by_others(parts[middle]), *parts[middle + 1 :])),
    )
    yield "sections exchanged", arranged(song, (parts[2], *parts[:2], *parts[3:]))
    yield "half of it in common", arranged(song, (*parts[:middle], *map(by_others, parts[middle:])))


def looped(song: Song) -> tuple[Song, Song]:
    """Return two songs of one loop of 8 bars, one of which has it on other instruments once."""
    loop = max(song.sections, key=lambda one: len(one.instruments))
    loop, count = replace(loop, start=0, end=8 * song.bar_seconds), max(4, int(7.5 / song.bar_seconds))
    return arranged(song, [loop] * count), arranged(song, [*[loop] * (count - 2), by_others(loop), loop])


def pairs(num_songs: int, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield what a pair is called and its samples; copies first."""
    songs = [compose_song(f"copied-{number}", seed, 60.0, 75.0) for number in range(num_songs)]
    rendered = [render_song(song, RATE) for song in songs]
    for song, samples in zip(songs, rendered, strict=True):
        yield from ((f"copy: {name}", samples, other) for name, other in copies(samples))
        for name, other in likenesses(song):
            try:
                yield f"none: {name}", samples, render_song(other, RATE)
            except ValueError:  # an instrument that cannot lead the solo of this song
                continue
        one, other = (render_song(each, RATE) for each in looped(song))
        yield "copy: a loop as mp3", one, encoded(one, "MP3", "MPEG_LAYER_III", 0.95)
        if np.abs(one - other).max() > 1e-3:  # else the exchange has given the same instruments in another order
            yield "none: one loop, once on other instruments", one, other
    yield from (("none: other songs", *two) for two in itertools.combinations(rendered, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a model that is searched with")
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    embedder, found = load_searched(options.model), defaultdict(list)
    composed = (compose_song(f"other-{number}", options.seed, 60.0, 61.0) for number in range(4))
    library = torch.stack([embedder.embed_audio(render_song(song, RATE)).mean(0) for song in composed]).mean(0)  # (D,)
    for name, *sounds in pairs(options.songs, options.seed):
        tokens = [embedder.embed_audio(one) for one in sounds]
        means = [one.mean(0) - library for one in tokens]
        cosine = token_cosines(*tokens, embedder.token_seconds)[0]
        passes = cosine >= MIN_COSINE and torch.cosine_similarity(*means, dim=0) >= MIN_MEAN_COSINE
        passes &= abs(len(sounds[0]) - len(sounds[1])) <= MAX_SECONDS_APART * RATE
        prints = [track_fingerprint(one) for one in sounds]
        errors = passage_errors(*prints, best_offset(*prints))
        found[name].append((bool(passes), are_copies(errors), cosine, float(errors.mean()), float(errors.max())))
    print("| pair | pairs | tokens | fingerprints | merged | cosine | bits differ | worst |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, rows in found.items():
        passed, same, *figures = np.array(rows).T  # (pairs,) each
        ranges = " | ".join(f"{one.min():.2f} to {one.max():.2f}" for one in figures)
        print(
            f"| {name} | {len(rows)} | {passed.sum():.0f} | {same.sum():.0f} | {(passed * same).sum():.0f} | {ranges} |"
        )


if __name__ == "__main__":
    main()
