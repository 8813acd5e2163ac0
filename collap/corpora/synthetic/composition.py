"""Composes the synthetic songs: tempo, key and form, and for each section its instruments, chords and character.

A `Song` is drawn from a seed. Its rendering and its captions depend on nothing else.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from .voices import INSTRUMENTS, PITCHED, SOLOISTS

MIN_SONG_SECONDS = 12.0  # four sections of two bars at the fastest tempo

DYNAMICS_DB = {"very soft": -40.0, "soft": -34.0, "medium": -28.0, "loud": -22.0, "very loud": -16.0}  # RMS, dBFS
DYNAMICS = tuple(DYNAMICS_DB)
REGISTER_SHIFT = {"low": -12, "middle": 0, "high": 12}  # semitones
REGISTERS = tuple(REGISTER_SHIFT)
DENSITIES = ("sparse", "moderate", "busy")
MOODS = {  # from calm to energetic
    "major": ("peaceful", "warm", "cheerful", "triumphant"),
    "minor": ("melancholic", "brooding", "tense", "fierce"),
}

KEYS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {  # scale degrees from 1, one per bar; the diminished triads are left out
    "major": (
        (1, 5, 6, 4), (1, 6, 4, 5), (6, 4, 1, 5), (1, 4, 1, 5), (4, 5, 3, 6), (1, 3, 4, 5), (2, 5, 1, 6), (1, 2, 4, 1),
    ),
    "minor": (
        (1, 6, 3, 7), (1, 4, 6, 5), (1, 7, 6, 7), (6, 7, 1, 1), (1, 3, 7, 4), (4, 1, 5, 1), (1, 5, 6, 3), (6, 3, 7, 1),
    ),
}  # fmt: skip
FORMS = {  # number of sections -> forms
    4: (
        "intro verse chorus outro",
        "intro verse solo outro",
        "verse chorus bridge chorus",
        "intro chorus verse outro",
    ),
    5: (
        "intro verse chorus verse outro",
        "intro verse chorus bridge outro",
        "verse chorus solo chorus outro",
        "intro verse breakdown chorus outro",
    ),
    6: (
        "intro verse chorus verse chorus outro",
        "intro verse chorus solo chorus outro",
        "verse chorus verse bridge chorus outro",
        "intro verse chorus breakdown solo outro",
    ),
    7: (
        "intro verse chorus verse chorus bridge outro",
        "intro verse chorus breakdown verse chorus outro",
        "intro verse chorus verse solo chorus outro",
        "verse chorus verse chorus breakdown bridge chorus",
    ),
    8: (
        "intro verse chorus verse chorus bridge chorus outro",
        "intro verse chorus solo verse chorus breakdown outro",
        "intro verse verse chorus bridge solo chorus outro",
        "intro chorus verse chorus breakdown verse chorus outro",
    ),
    9: (
        "intro verse chorus verse chorus bridge solo chorus outro",
        "intro verse chorus verse chorus breakdown bridge chorus outro",
        "intro verse chorus solo verse chorus breakdown chorus outro",
        "intro verse bridge chorus verse bridge chorus solo outro",
    ),
}


@dataclass(frozen=True)
class LabelStyle:
    """Hold what sections of one label draw from: relative length, ranges of instruments and of level indices."""

    weight: float
    instruments: tuple[int, int]
    dynamics: tuple[int, int]
    density: tuple[int, int]
    register: tuple[int, int]


LABEL_STYLES = {
    "intro": LabelStyle(0.6, (1, 2), (0, 2), (0, 1), (0, 2)),
    "verse": LabelStyle(1.2, (2, 3), (1, 3), (0, 2), (0, 1)),
    "chorus": LabelStyle(1.0, (3, 4), (2, 4), (1, 2), (1, 2)),
    "bridge": LabelStyle(0.8, (2, 3), (1, 3), (0, 2), (0, 2)),
    "solo": LabelStyle(0.8, (2, 4), (2, 4), (1, 2), (0, 2)),
    "breakdown": LabelStyle(0.7, (1, 2), (0, 1), (0, 1), (0, 2)),
    "outro": LabelStyle(0.6, (1, 3), (0, 3), (0, 1), (0, 2)),
}


@dataclass(frozen=True)
class Section:
    """Hold one part of a song. `start`, `end` in seconds; in a solo, `instruments[0]` leads; `chords`: one per bar."""

    label: str
    start: float
    end: float
    instruments: tuple[str, ...]
    dynamics: str
    register: str
    density: str
    mood: str
    chords: tuple[str, ...]


@dataclass(frozen=True)
class Song:
    """Hold a composed song; `render_song` and the captions depend on nothing else. `meter` in beats per bar."""

    song_id: str
    seed: int
    tempo_bpm: float
    key: str
    mode: str
    meter: int
    seconds: float
    sections: tuple[Section, ...]

    @property
    def bar_seconds(self) -> float:
        return self.meter * 60.0 / self.tempo_bpm


def song_rng(song_id: str, seed: int, purpose: str) -> np.random.Generator:
    """Return a stream of its own for each (song, seed, purpose), the same in every process (Python's `hash` is not)."""
    digest = hashlib.sha256(f"{song_id}\n{seed}\n{purpose}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4"))


def mood_of(mode: str, tempo_bpm: float, dynamics: str, density: str) -> str:
    """Return the mood that mode, tempo, dynamics and density make together: nothing else decides it."""
    tempo = min(max((tempo_bpm - 64) / (168 - 64), 0.0), 1.0)
    energy = (tempo + DYNAMICS.index(dynamics) / 4 + DENSITIES.index(density) / 2) / 3
    return MOODS[mode][0 if energy < 0.3 else 1 if energy < 0.5 else 2 if energy < 0.7 else 3]


def _tempo_and_bars(
    rng: np.random.Generator, target: float, meter: int, min_seconds: float, max_seconds: float
) -> tuple[float, int]:
    """Return a tempo and a number of bars (eight or more) that end inside [min_seconds, max_seconds], near `target`."""
    fitting, possible = [], []
    for tempo in range(64, 169):
        bar = meter * 60 / tempo
        fewest, most = max(8, math.ceil(min_seconds / bar - 1e-9)), math.floor(max_seconds / bar + 1e-9)
        if fewest <= most:
            fitting.append((tempo, min(max(round(target / bar), fewest), most)))
        if 8 * bar <= target:
            possible.append((tempo, round(target / bar)))
    if fitting:
        tempo, bars = fitting[rng.integers(len(fitting))]
        return float(tempo), bars
    _, bars = possible[rng.integers(len(possible))]  # min and max too close for a whole number of BPM
    return bars * meter * 60 / target, bars


def _section_bars(rng: np.random.Generator, labels: list[str], num_bars: int) -> list[int]:
    """Share the bars out by the labels' weights, in pairs where the song is long enough; the last takes the rest."""
    unit = 2 if num_bars >= 4 * len(labels) else 1
    weights = [LABEL_STYLES[label].weight * rng.uniform(0.8, 1.25) for label in labels]
    units = [1] * len(labels)
    for _ in range(num_bars // unit - len(labels)):
        units[max(range(len(labels)), key=lambda i: weights[i] / units[i])] += 1
    bars = [unit * count for count in units]
    bars[-1] += num_bars - sum(bars)
    return bars


def _choose_instruments(
    rng: np.random.Generator, label: str, palette: list[str], earlier: tuple[str, ...], previous: tuple[str, ...]
) -> tuple[str, ...]:
    """Return instruments of a section: never those of the section before; a label that returns changes about one."""
    fewest, most = LABEL_STYLES[label].instruments
    while True:
        if earlier:
            room = len(earlier) < most
            leaving = earlier[rng.integers(len(earlier))]
            chosen = {name for name in earlier if room or name != leaving} | {palette[rng.integers(len(palette))]}
        else:
            chosen = set(rng.permutation(palette)[: rng.integers(fewest, most + 1)].tolist())
        if set(previous) == chosen or not fewest <= len(chosen) <= most or not chosen & set(PITCHED):
            earlier = () if rng.random() < 0.1 else earlier  # a palette may leave no way to vary the earlier choice
            continue
        leads = [name for name in SOLOISTS if name in chosen] if label == "solo" else []
        if label == "solo" and not leads:
            continue
        lead = leads[rng.integers(len(leads))] if leads else None
        return tuple(sorted(chosen, key=lambda name: (name != lead, list(INSTRUMENTS).index(name))))


def _chord_names(key: str, mode: str, degrees: tuple[int, ...]) -> tuple[str, ...]:
    tonic, scale = KEYS.index(key), SCALES[mode]
    names = []
    for degree in degrees:
        root, third = scale[degree - 1], scale[(degree + 1) % 7]
        names.append(KEYS[(tonic + root) % 12] + ("m" if (third - root) % 12 == 3 else ""))
    return tuple(names)


def _compose_sections(
    rng: np.random.Generator, labels: list[str], bars: list[int], key: str, mode: str, tempo_bpm: float, meter: int
) -> tuple[Section, ...]:
    weights = np.array([2.0 if name in ("drums", "bass") else 1.0 for name in INSTRUMENTS])
    size = rng.integers(5, 9)
    palette = rng.choice(list(INSTRUMENTS), size, replace=False, p=weights / weights.sum()).tolist()
    if not set(palette) & set(SOLOISTS):
        palette[0] = SOLOISTS[rng.integers(len(SOLOISTS))]
    progressions = rng.permutation(len(PROGRESSIONS[mode]))
    chords = {
        label: _chord_names(key, mode, PROGRESSIONS[mode][i])
        for label, i in zip(dict.fromkeys(labels), progressions, strict=False)
    }
    sections, first_bar, earlier, previous = [], 0, {}, ()
    for label, num_bars in zip(labels, bars, strict=True):
        style = LABEL_STYLES[label]
        previous = earlier[label] = _choose_instruments(rng, label, palette, earlier.get(label, ()), previous)
        dynamics = DYNAMICS[rng.integers(style.dynamics[0], style.dynamics[1] + 1)]
        density = DENSITIES[rng.integers(style.density[0], style.density[1] + 1)]
        register = REGISTERS[rng.integers(style.register[0], style.register[1] + 1)]
        start, end = (bar * meter * 60 / tempo_bpm for bar in (first_bar, first_bar + num_bars))
        mood = mood_of(mode, tempo_bpm, dynamics, density)
        sections.append(Section(label, start, end, previous, dynamics, register, density, mood, chords[label]))
        first_bar += num_bars
    return tuple(sections)


def check_seconds(min_seconds: float, max_seconds: float) -> None:
    """Raise ValueError unless songs of `min_seconds` to `max_seconds` can be composed."""
    if not MIN_SONG_SECONDS <= min_seconds <= max_seconds:
        raise ValueError(
            f"min_seconds is {min_seconds} and max_seconds is {max_seconds}; "
            f"expected {MIN_SONG_SECONDS:g} <= min_seconds <= max_seconds."
        )


def compose_song(song_id: str, seed: int, min_seconds: float = 60.0, max_seconds: float = 300.0) -> Song:
    """Draw a song from (song_id, seed): the same arguments give the same song on every machine.

    Short songs are more frequent than long ones: 60 to 300 s average about 110 s. A song ends on a bar.

    Raises:
        ValueError: the bounds are in the wrong order, or below 12 s, where four sections have no room.
    """
    check_seconds(min_seconds, max_seconds)
    rng = song_rng(song_id, seed, "composition")
    target = min_seconds * (max_seconds / min_seconds) ** (rng.random() ** 2.3)
    meter = 4 if rng.random() < 0.8 else 3
    key, mode = KEYS[rng.integers(12)], ("major", "minor")[rng.integers(2)]
    tempo_bpm, num_bars = _tempo_and_bars(rng, target, meter, min_seconds, max_seconds)
    seconds = min(num_bars * meter * 60 / tempo_bpm, max_seconds)
    fewest, most = min(max(4, int(1 + seconds / 40)), 7), min(max(4, int(3 + seconds / 30)), 9)
    forms = FORMS[min(int(rng.integers(fewest, most + 1)), num_bars // 2)]
    labels = forms[rng.integers(len(forms))].split()
    bars = _section_bars(rng, labels, num_bars)
    sections = _compose_sections(rng, labels, bars, key, mode, tempo_bpm, meter)
    return Song(song_id, seed, tempo_bpm, key, mode, meter, seconds, sections)
