"""Missed and false merges of `collap duplicates` on rendered songs of 60 to 75 s, and what a comparison costs.

    python -m benchmarks.duplicates --songs 12

Every song meets its copies, what is like it and is no copy, such songs at low bit rates, and all other songs.

Dimensions: `N` samples, `F` frames of a fingerprint.
"""

import argparse
import io
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import soundfile

from collap.corpora.synthetic.composition import Section, Song
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.corpora.synthetic.voices import PITCHED
from collap.corpora.tracks import RATE
from collap.data.fingerprints import RATE as PRINT_RATE
from collap.data.fingerprints import Fingerprinter
from collap.search.copies import MAX_SECONDS_APART, best_offset, compare_prints, passage_errors, probable_offset
from processing.resample_audio import resample

SAME = 1e-3  # between samples of what is one sound: a song that has no melody, the same instruments in another order
AT_LOW_RATES = ("another melody", "other instruments in one section", "half of it in common")


def at_rate(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    return np.concatenate([*resample(iter([(0, samples)]), rate, new_rate, 0)]).astype(np.float32)


def encoded(samples: np.ndarray, kind: str, codec: str, compression: float, rate: int = RATE) -> np.ndarray:
    """Return what is left of samples (N,) after a codec of libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=codec, compression_level=compression)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def as_mp3(samples: np.ndarray) -> np.ndarray:
    """Return what the lowest bit rate leaves of samples (N,)."""
    return encoded(samples, "MP3", "MPEG_LAYER_III", 0.95)


def as_vorbis(samples: np.ndarray) -> np.ndarray:
    """Return what a low bit rate leaves of samples (N,)."""
    return encoded(samples, "OGG", "VORBIS", 0.9)


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
    yield "mp3, lowest rate", as_mp3(samples)
    yield "Ogg Vorbis, low rate", as_vorbis(samples)
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
                sound = render_song(other, RATE)
            except ValueError:  # an instrument that cannot lead the solo of this song
                continue
            if is_same(samples, sound):
                continue
            yield f"none: {name}", samples, sound
            if name in AT_LOW_RATES:
                yield f"none: {name}, as mp3", samples, as_mp3(sound)
                yield f"none: {name}, as Ogg Vorbis", samples, as_vorbis(sound)
        one, other = (render_song(each, RATE) for each in looped(song))
        yield "copy: a loop as mp3", one, as_mp3(one)
        if not is_same(one, other):
            yield "none: one loop, once on other instruments", one, other
    yield from (("none: other songs", *two) for two in itertools.combinations(rendered, 2))


def is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return len(one) == len(other) and np.abs(one - other).max() <= SAME


def prints_of(samples: np.ndarray) -> np.ndarray:
    """Return the fingerprint (F, 2) of samples (N,), as `collap index` makes it."""
    maker = Fingerprinter()
    for piece in resample(iter([(0, samples)]), RATE, PRINT_RATE, 0):
        maker.add(piece)
    return np.stack([maker.bits(), maker.heard()], axis=1)


def compared(sounds: list[np.ndarray], prints: list[np.ndarray]) -> tuple[bool, float, float, float]:
    """Return whether two are copies, the shares of all bits and of those heard that differ, and milliseconds taken."""
    began = time.process_time()
    is_copy = compare_prints(*prints) is not None
    milliseconds = 1000 * (time.process_time() - began)
    _, differ = probable_offset(prints[0][:, 0], prints[1][:, 0])
    offset = best_offset(prints[0][:, 0], prints[1][:, 0])
    worst = 1.0 if offset is None else float(np.nanmax(passage_errors(*prints, offset)))
    is_near = abs(len(sounds[0]) - len(sounds[1])) <= MAX_SECONDS_APART * RATE
    return is_copy and is_near, differ, worst, milliseconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found, making = defaultdict(list), 0.0
    for name, *sounds in pairs(options.songs, options.seed):
        began = time.process_time()
        prints = [prints_of(one) for one in sounds]
        making += (time.process_time() - began) / sum(len(one) / RATE / 60 for one in sounds)
        found[name].append(compared(sounds, prints))
    print("| pair | pairs | merged | bits differ | of those heard, worst 4 s | ms |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, rows in found.items():
        same, differ, worst, milliseconds = np.array(rows).T  # (pairs,) each
        ranges = " | ".join(f"{one.min():.2f} to {one.max():.2f}" for one in (differ, worst))
        print(f"| {name} | {len(rows)} | {same.sum():.0f} | {ranges} | {np.median(milliseconds):.1f} |")
    print(f"\n{making / sum(map(len, found.values())):.3f} s of processor time make the fingerprint of a minute")


if __name__ == "__main__":
    main()
