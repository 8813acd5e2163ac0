"""Songs with known structure, composed, rendered and written to disk as a `datasets` audiofolder.

    python -m processing.corpora.synthetic_songs FOLDER --train 400 --validation 50 --test 100 --seed 0

No recording is needed: a song is a `Song` (tempo, key, sections with their instruments), drawn from a seed, and
everything that a caption says about it is a field of that `Song` which `render_song` turns into sound. Section times
are exact.
"""

import argparse
import functools
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from .synthetic_captions import long_caption, short_caption

GENERATOR_VERSION = 1  # raise it whenever the same seed gives other audio or other captions
MIN_SONG_SECONDS = 12.0  # four sections of two bars at the fastest tempo
SPLITS = ("train", "validation", "test")  # the names that audiofolder recognises as splits

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
    """What sections of one label draw from: relative length, and inclusive ranges of instruments and level indices."""

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
    """One part of a song. `start`, `end` in seconds; in a solo, `instruments[0]` leads; `chords`: one per bar."""

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
    """A composed song; `render_song` and the captions depend on nothing else. `meter` in beats per bar."""

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


# --------------------------------------------------------------------------------------------------------------------
# Voices: one note of one instrument, float32, peak about 1


TABLE_SIZE = 4096  # samples of one stored cycle; a power of two, so that a phase wraps with a bit mask
KICK, SNARE, HAT = 36, 38, 42  # General MIDI percussion keys
DRUM_SECONDS = {KICK: 0.3, SNARE: 0.25, HAT: 0.08}


def _hertz(midi: int) -> float:
    return 440.0 * 2.0 ** ((midi - 69) / 12)


@functools.lru_cache(maxsize=64)
def _harmonics(frequency: float, rate: int) -> np.ndarray:
    """Harmonic numbers 1, 2, ... below 0.45 of the sampling rate, so that no voice aliases; 48 at most."""
    return np.arange(1, 1 + max(1, min(48, int(0.45 * rate / frequency))), dtype=np.float64)


def _tone(
    amplitudes: np.ndarray, frequency: float, num_samples: int, rate: int, vibrato: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """Periodic tone by table lookup, (num_samples,). `amplitudes[k - 1]` for harmonic k; `vibrato` = cents, hertz."""
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=np.complex64)
    spectrum[1 : len(amplitudes) + 1] = -1j * amplitudes
    cycle = np.fft.irfft(spectrum).astype(np.float32)
    cycle /= np.abs(cycle).max()
    phase = np.arange(num_samples) * (frequency * TABLE_SIZE / rate)
    cents, speed = vibrato
    if cents:
        deviation = frequency * (2.0 ** (cents / 1200) - 1) / (2 * np.pi * speed)  # in cycles
        wave = np.sin(np.arange(num_samples, dtype=np.float32) * np.float32(2 * np.pi * speed / rate))
        phase += deviation * TABLE_SIZE * wave
    return cycle[phase.astype(np.int64) & (TABLE_SIZE - 1)]


def _decay(num_samples: int, rate: int, seconds: float) -> np.ndarray:
    """exp(-t / seconds)."""
    return np.exp(np.arange(num_samples, dtype=np.float32) * np.float32(-1 / (seconds * rate)))


def _swell(num_samples: int, rate: int, attack: float, release: float) -> np.ndarray:
    """Rise over `attack` seconds, hold, fall to zero over `release` seconds; both shrink in a short note."""
    envelope = np.ones(num_samples, dtype=np.float32)
    rise = max(1, min(int(attack * rate), num_samples // 2))
    fall = max(1, min(int(release * rate), num_samples // 2))
    envelope[:rise] = np.arange(rise, dtype=np.float32) / rise
    envelope[-fall:] *= np.arange(fall - 1, -1, -1, dtype=np.float32) / fall
    return envelope


@functools.lru_cache(maxsize=2)
def _noise_store(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, num_samples).astype(np.float32)


def _noise(num_samples: int) -> np.ndarray:
    """The same white noise each time, so that a repeated note is the same note."""
    return np.resize(_noise_store(1 << 16), num_samples)


def _drums(midi: int, num_samples: int, rate: int) -> np.ndarray:
    time = np.arange(num_samples, dtype=np.float32) / rate
    if midi == KICK:
        sweep = 48 * time + 4.5 * (1 - np.exp(-time / 0.03))  # cycles: 200 Hz falling to 48 Hz
        return np.sin(2 * np.pi * sweep) * np.exp(-time / 0.1)
    if midi == SNARE:
        return 0.6 * _noise(num_samples) * np.exp(-time / 0.08) + 0.4 * np.sin(1170 * time) * np.exp(-time / 0.05)
    return 0.3 * np.diff(_noise(num_samples + 2), n=2) * np.exp(-time / 0.025)


def _bass(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    k = _harmonics(frequency, rate)
    body = _tone(1 / k**2.2, frequency, num_samples, rate) * _decay(num_samples, rate, 1.0)
    pluck = _tone(1 / k / (1 + (k * frequency / 700) ** 2), frequency, num_samples, rate)
    return (0.7 * body + 0.3 * pluck * _decay(num_samples, rate, 0.1)) * _swell(num_samples, rate, 0.004, 0.03)


def _piano(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    k = _harmonics(frequency, rate)
    strike = np.abs(np.sin(np.pi * k / 8)) + 0.05  # the hammer hits at an eighth of the string
    ring = _decay(num_samples, rate, 1.2 * (262 / frequency) ** 0.5)
    body = _tone(strike / k**1.7, frequency, num_samples, rate) * ring
    bright = _tone(strike / k**0.9, frequency * 1.0007, num_samples, rate) * _decay(num_samples, rate, 0.18)
    hammer = _noise(num_samples) * _decay(num_samples, rate, 0.006)
    return (0.6 * body + 0.35 * bright + 0.08 * hammer) * _swell(num_samples, rate, 0.002, 0.03)


def _strings(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    k = _harmonics(frequency, rate)
    amplitudes = 1 / k / (1 + (k * frequency / 2600) ** 2)
    desks = ((0.9965, 4.7), (1.0, 5.4), (1.0035, 6.1))  # detuning and vibrato speed of three players
    ensemble = sum(_tone(amplitudes, frequency * detune, num_samples, rate, (12, speed)) for detune, speed in desks)
    return ensemble / 3 * _swell(num_samples, rate, 0.14, 0.07)


def _formants(frequencies: np.ndarray, vowel: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Vocal tract gain; a vowel is a row of (centre Hz, width Hz, gain)."""
    return 0.01 + sum(gain * np.exp(-0.5 * ((frequencies - centre) / width) ** 2) for centre, width, gain in vowel)


def _vocals(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    k = _harmonics(frequency, rate)
    ooh = _formants(k * frequency, ((350, 110, 1.0), (750, 120, 0.3), (2600, 180, 0.06))) / k**0.8
    aah = _formants(k * frequency, ((780, 130, 1.0), (1180, 130, 0.7), (2800, 200, 0.25))) / k**0.8
    opening = np.clip(np.arange(num_samples, dtype=np.float32) / (0.12 * rate), 0, 1)  # ooh to aah: a moving formant
    closed = _tone(ooh, frequency, num_samples, rate, (35, 5.6))
    opened = _tone(aah, frequency, num_samples, rate, (35, 5.6))
    voice = closed + opening * (opened - closed) + 0.015 * _noise(num_samples)
    return voice * _swell(num_samples, rate, 0.05, 0.05)


def _electric_guitar(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    amplitudes = 1 / _harmonics(frequency, rate)[:12]
    pair = _tone(amplitudes, frequency, num_samples, rate) + _tone(amplitudes, frequency * 1.004, num_samples, rate)
    driven = np.tanh(4.0 * pair * _decay(num_samples, rate, 2.5))
    return driven * _swell(num_samples, rate, 0.004, 0.02)


def _acoustic_guitar(midi: int, num_samples: int, rate: int) -> np.ndarray:
    """A string as Karplus and Strong's, where higher harmonics die sooner, without the tuning error of their delay."""
    frequency = _hertz(midi)
    k = _harmonics(frequency, rate)
    plucked = np.abs(np.sin(np.pi * k * 0.17)) / k**0.8
    note = np.zeros(num_samples, dtype=np.float32)
    for lowest, highest, seconds in ((1, 3, 0.7), (4, 9, 0.25), (10, 48, 0.07)):
        band = np.where((k >= lowest) & (k <= highest), plucked, 0)
        if band.any():
            tone = _tone(band, frequency, num_samples, rate) * _decay(num_samples, rate, seconds)
            note += band.sum() / plucked.sum() * tone
    note += 0.1 * _noise(num_samples) * _decay(num_samples, rate, 0.003)  # the nail
    return note * _swell(num_samples, rate, 0.001, 0.02)


def _flute(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    amplitudes = np.array((1.0, 0.3, 0.08, 0.03))[: len(_harmonics(frequency, rate))]
    breath = np.convolve(_noise(num_samples), (0.5, 0.5), mode="same") * 0.1
    return (_tone(amplitudes, frequency, num_samples, rate, (14, 5.0)) + breath) * _swell(num_samples, rate, 0.07, 0.06)


def _brass(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    k = _harmonics(frequency, rate)
    dark = _tone(1 / k**1.8, frequency, num_samples, rate)
    bell = _formants(k * frequency, ((1300, 800, 1.0), (2600, 900, 0.4)))
    bright = _tone(bell / k**0.3, frequency, num_samples, rate)
    blare = np.clip(np.arange(num_samples, dtype=np.float32) / (0.07 * rate), 0, 1)  # brass brightens while it speaks
    return (dark + blare * (bright - dark)) * _swell(num_samples, rate, 0.045, 0.04)


def _organ(midi: int, num_samples: int, rate: int) -> np.ndarray:
    sub_octave = _hertz(midi) / 2
    drawbars = np.zeros(16)
    drawbars[[0, 1, 2, 3, 5, 7, 11, 15]] = (0.8, 1.0, 0.7, 0.8, 0.6, 0.5, 0.35, 0.3)
    tone = _tone(drawbars[: len(_harmonics(sub_octave, rate))], sub_octave, num_samples, rate)
    rotor = np.sin(np.arange(num_samples, dtype=np.float32) * np.float32(2 * np.pi * 6.6 / rate))
    return tone * (1 - 0.25 * rotor) * _swell(num_samples, rate, 0.008, 0.015)


def _glockenspiel(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    note = np.zeros(num_samples, dtype=np.float32)
    for ratio, gain, seconds in ((1, 0.5, 0.9), (2.756, 0.35, 0.4), (5.404, 0.25, 0.2)):  # modes of a free bar
        if ratio * frequency < 0.45 * rate:
            note += gain * _tone(np.ones(1), ratio * frequency, num_samples, rate) * _decay(num_samples, rate, seconds)
    return note * _swell(num_samples, rate, 0.001, 0.03)


def _synthesizer(midi: int, num_samples: int, rate: int) -> np.ndarray:
    frequency = _hertz(midi)
    k = _harmonics(frequency, rate)
    pulse = np.abs(np.sin(np.pi * k * 0.25)) / k
    swept = _tone(pulse * k**0.4, frequency, num_samples, rate) * _decay(num_samples, rate, 0.09)
    held = _tone(pulse / (1 + (k * frequency / 1200) ** 2), frequency * 1.002, num_samples, rate)
    return (0.6 * swept + 0.4 * held) * _swell(num_samples, rate, 0.002, 0.01)


@dataclass(frozen=True)
class Instrument:
    """How an instrument sounds (`voice`), what it plays outside a solo (`role`), around which MIDI pitch, how loud."""

    voice: Callable[[int, int, int], np.ndarray]
    role: str
    center: int
    gain: float = 1.0
    held: float = 1.0  # share of a note's time that it sounds


INSTRUMENTS = {
    "drums": Instrument(_drums, "drums", 0),
    "bass": Instrument(_bass, "bass", 38),
    "piano": Instrument(_piano, "chords", 60),
    "strings": Instrument(_strings, "chords", 58, gain=0.8),
    "vocals": Instrument(_vocals, "melody", 60),
    "electric guitar": Instrument(_electric_guitar, "power chords", 48, gain=0.9, held=0.9),
    "acoustic guitar": Instrument(_acoustic_guitar, "arpeggio", 57),
    "flute": Instrument(_flute, "melody", 74),
    "brass": Instrument(_brass, "chords", 57, gain=0.9, held=0.55),
    "organ": Instrument(_organ, "chords", 60, gain=0.8, held=0.97),
    "glockenspiel": Instrument(_glockenspiel, "melody", 86, gain=0.8),
    "synthesizer": Instrument(_synthesizer, "arpeggio", 64, gain=0.8, held=0.7),
}
PITCHED = tuple(name for name, instrument in INSTRUMENTS.items() if instrument.role not in ("drums", "bass"))
SOLOISTS = tuple(name for name in PITCHED if name not in ("strings", "vocals"))
SOLO_GAIN = 1.6


# --------------------------------------------------------------------------------------------------------------------
# Parts: what an instrument plays


@dataclass(frozen=True)
class Note:
    """`start` and `beats` in beats from the start of the part; `midi` a pitch, for drums a General MIDI key."""

    start: float
    beats: float
    midi: int
    velocity: float


def _chord_classes(chord: str) -> tuple[int, int, int]:
    """Pitch classes of a triad such as "F#m" or "Bb", root first."""
    root = KEYS.index(chord.removesuffix("m"))
    return root, (root + (3 if chord.endswith("m") else 4)) % 12, (root + 7) % 12


def _nearest(pitch_class: int, center: int) -> int:
    """The MIDI pitch of a class that lies closest to `center`."""
    return center + (pitch_class - center + 6) % 12 - 6


def _accent(beat: float, meter: int) -> float:
    if beat % meter == 0:
        return 1.0
    return 0.8 if beat % 1 == 0 else 0.65


def _drum_part(chords: list[str], density: str, meter: int, center: int) -> list[Note]:
    """Kick, snare and hi-hat; the hats tick 1, 2 or 4 times a beat."""
    hats = {"sparse": 1, "moderate": 2, "busy": 4}[density]
    notes = []
    for bar in range(len(chords)):
        beats = [bar * meter + beat for beat in range(meter)]
        backbeats = beats[1::2] if meter == 4 else beats[1:]
        kicks = [beats[0]] if density == "sparse" else [beats[0], *([beats[2]] if meter == 4 else [])]
        if density == "busy":
            kicks += [beats[0] + 1.5, beats[-1] + 0.5]
        notes += [Note(beat, 0, KICK, 1.0) for beat in kicks]
        notes += [Note(beat, 0, SNARE, 0.8) for beat in (backbeats[-1:] if density == "sparse" else backbeats)]
        notes += [Note(beat + i / hats, 0, HAT, 0.5 * _accent(i / hats, 1)) for beat in beats for i in range(hats)]
    return notes


def _bass_part(chords: list[str], density: str, meter: int, center: int) -> list[Note]:
    """Roots: one a bar, one a beat, or eighth notes with the fifth and the octave."""
    notes = []
    for bar, chord in enumerate(chords):
        root = _nearest(_chord_classes(chord)[0], center)
        step = {"sparse": meter, "moderate": 1, "busy": 0.5}[density]
        pattern = (root, root, root + 7, root + 12) if density == "busy" else (root,)
        for i in range(round(meter / step)):
            start = bar * meter + i * step
            notes.append(Note(start, step, pattern[i % len(pattern)], _accent(start, meter)))
    return notes


def _chord_part(chords: list[str], density: str, meter: int, center: int) -> list[Note]:
    """Triads: one a bar, one a beat, or two a beat."""
    step = {"sparse": meter, "moderate": 1, "busy": 0.5}[density]
    return [
        Note(bar * meter + i * step, step, _nearest(pitch_class, center), _accent(i * step, meter))
        for bar, chord in enumerate(chords)
        for i in range(round(meter / step))
        for pitch_class in _chord_classes(chord)
    ]


def _power_chord_part(chords: list[str], density: str, meter: int, center: int) -> list[Note]:
    """Root and fifth in the rhythm of `_chord_part`."""
    step = {"sparse": meter, "moderate": 1, "busy": 0.5}[density]
    roots = [_nearest(_chord_classes(chord)[0], center) for chord in chords]
    return [
        Note(bar * meter + i * step, step, root + interval, _accent(i * step, meter))
        for bar, root in enumerate(roots)
        for i in range(round(meter / step))
        for interval in (0, 7)
    ]


def _arpeggio_part(chords: list[str], density: str, meter: int, center: int) -> list[Note]:
    """Broken chords: 1, 2 or 4 notes a beat."""
    per_beat = {"sparse": 1, "moderate": 2, "busy": 4}[density]
    notes = []
    for bar, chord in enumerate(chords):
        voicing = sorted(_nearest(pitch_class, center) for pitch_class in _chord_classes(chord))
        order = (voicing[0], voicing[1], voicing[2], voicing[0] + 12)
        for i in range(meter * per_beat):
            start = bar * meter + i / per_beat
            notes.append(Note(start, 1 / per_beat, order[i % 4], _accent(start, meter)))
    return notes


def _melody_rhythm(rng: np.random.Generator, density: str, meter: int) -> list[float]:
    """Note lengths of one bar in beats: about 2, 4 or 8 of them; a quarter of the notes are split in two."""
    if density == "sparse":
        return [2.0, float(meter - 2)]
    step = 1.0 if density == "moderate" else 0.5
    lengths = []
    for _ in range(round(meter / step)):
        lengths += [step / 2, step / 2] if rng.random() < 0.25 else [step]
    return lengths


def _melody_part(
    chords: list[str], density: str, meter: int, center: int, rng: np.random.Generator, scale: list[int]
) -> list[Note]:
    """A random walk on the scale that meets a chord tone on every bar's first beat. `scale` holds MIDI pitches."""
    scale = [pitch for pitch in scale if abs(pitch - center) <= 9]
    position, notes = len(scale) // 2, []
    for bar, chord in enumerate(chords):
        start = float(bar * meter)
        for i, beats in enumerate(_melody_rhythm(rng, density, meter)):
            position = int(np.clip(position + rng.integers(-2, 3), 0, len(scale) - 1))
            if i == 0:
                tones = [p for p in range(len(scale)) if scale[p] % 12 in _chord_classes(chord)]
                position = min(tones, key=lambda p: abs(p - position))
            notes.append(Note(start, beats, scale[position], _accent(start, meter)))
            start += beats
    return notes


PARTS = {
    "drums": _drum_part,
    "bass": _bass_part,
    "chords": _chord_part,
    "power chords": _power_chord_part,
    "arpeggio": _arpeggio_part,
}


def _rng(song_id: str, seed: int, purpose: str) -> np.random.Generator:
    """A stream of its own for each (song, seed, purpose), the same in every process (Python's `hash` is not)."""
    digest = hashlib.sha256(f"{song_id}\n{seed}\n{purpose}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4"))


def _leads(section: Section, name: str) -> bool:
    """Whether an instrument takes the tune of a solo."""
    return section.label == "solo" and name == section.instruments[0] and name in SOLOISTS


def _part(song: Song, section: Section, name: str, num_bars: int) -> list[Note]:
    """The notes of one instrument over `num_bars` bars of a section."""
    instrument = INSTRUMENTS[name]
    chords = [section.chords[bar % len(section.chords)] for bar in range(num_bars)]
    center = instrument.center + (REGISTER_SHIFT[section.register] if name in PITCHED else 0)
    if instrument.role != "melody" and not _leads(section, name):
        return PARTS[instrument.role](chords, section.density, song.meter, center)
    tonic = KEYS.index(song.key)
    scale = [pitch for pitch in range(128) if (pitch - tonic) % 12 in SCALES[song.mode]]
    rng = _rng(song.song_id, song.seed, f"melody of the {section.label}")  # a label that returns brings its tune back
    return _melody_part(chords, section.density, song.meter, center, rng, scale)


# --------------------------------------------------------------------------------------------------------------------
# Rendering


LOOP_BARS = 8  # a section repeats its first eight bars: two rounds of the chords, each with its own melody


@functools.lru_cache(maxsize=512)
def _render_note(name: str, midi: int, num_samples: int, rate: int) -> np.ndarray:
    note = INSTRUMENTS[name].voice(midi, num_samples, rate).astype(np.float32, copy=False)
    note.flags.writeable = False
    return note


def _render_part(name: str, notes: list[Note], beat_samples: float, num_samples: int, rate: int) -> np.ndarray:
    """One instrument alone, (num_samples,), RMS 1."""
    stem = np.zeros(num_samples, dtype=np.float32)
    for note in notes:
        start = round(note.start * beat_samples)
        seconds = DRUM_SECONDS[note.midi] if name == "drums" else None
        length = round(seconds * rate) if seconds else round(note.beats * INSTRUMENTS[name].held * beat_samples)
        target = stem[start : start + length]
        target += note.velocity * _render_note(name, note.midi, length, rate)[: len(target)]
    return stem / math.sqrt(float(np.dot(stem, stem)) / num_samples)


def _render_section(song: Song, section: Section, num_samples: int, rate: int) -> np.ndarray:
    """One section, (num_samples,), at the RMS of its dynamics, faded at its end so that nothing rings into the next."""
    beat_samples = 60.0 / song.tempo_bpm * rate
    num_bars = round((section.end - section.start) / song.bar_seconds)
    loop_bars = min(LOOP_BARS, num_bars)
    loop_samples = loop_bars * song.meter * beat_samples
    loop = np.zeros(math.ceil(loop_samples), dtype=np.float32)
    for name in section.instruments:
        gain = INSTRUMENTS[name].gain * (SOLO_GAIN if _leads(section, name) else 1)
        loop += gain * _render_part(name, _part(song, section, name, loop_bars), beat_samples, len(loop), rate)
    loop *= 10 ** (DYNAMICS_DB[section.dynamics] / 20) / math.sqrt(float(np.dot(loop, loop)) / len(loop))
    audio = np.zeros(num_samples, dtype=np.float32)
    for repeat in range(math.ceil(num_bars / loop_bars)):
        target = audio[round(repeat * loop_samples) :][: len(loop)]
        target[:] = loop[: len(target)]
    fade = min(num_samples, rate // 100)
    audio[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return audio


def _limit(audio: np.ndarray) -> np.ndarray:
    """Soft knee above 0.6, so that the peaks of loud drums stay below 0.98; in place."""
    over = np.flatnonzero(np.abs(audio) > 0.6)
    peaks = audio[over]
    audio[over] = np.sign(peaks) * (0.6 + 0.38 * np.tanh((np.abs(peaks) - 0.6) / 0.38))
    return audio


def check_sampling_rate(sampling_rate: int) -> None:
    """Raise ValueError below 8000 Hz, where the voices lose what tells them apart."""
    if sampling_rate < 8000:
        raise ValueError(
            f"sampling_rate is {sampling_rate}; the voices need 8000 or more. Render at 16000 and resample."
        )


def render_song(song: Song, sampling_rate: int = 16000) -> np.ndarray:
    """Turn a song into sound.

    Args:
        song: from `compose_song`, or put together by hand.
        sampling_rate: samples per second, 8000 or more.

    Returns:
        float32, (round(song.seconds * sampling_rate),), mono, inside (-1, 1). The same song gives the same samples.

    Raises:
        ValueError: a section names an instrument, or the call a rate, that cannot be rendered.
    """
    check_sampling_rate(sampling_rate)
    unknown = {name for section in song.sections for name in section.instruments} - set(INSTRUMENTS)
    if unknown:
        known = ", ".join(INSTRUMENTS)
        raise ValueError(f"song {song.song_id!r} names unknown instruments {sorted(unknown)}; known: {known}.")
    audio = np.zeros(round(song.seconds * sampling_rate), dtype=np.float32)
    for section in song.sections:
        start, end = round(section.start * sampling_rate), round(section.end * sampling_rate)
        audio[start:end] = _render_section(song, section, len(audio[start:end]), sampling_rate)
    return _limit(audio)


# --------------------------------------------------------------------------------------------------------------------
# Composition


def mood_of(mode: str, tempo_bpm: float, dynamics: str, density: str) -> str:
    """The mood that mode, tempo, dynamics and density make together: nothing else decides it."""
    tempo = min(max((tempo_bpm - 64) / (168 - 64), 0.0), 1.0)
    energy = (tempo + DYNAMICS.index(dynamics) / 4 + DENSITIES.index(density) / 2) / 3
    return MOODS[mode][0 if energy < 0.3 else 1 if energy < 0.5 else 2 if energy < 0.7 else 3]


def _tempo_and_bars(
    rng: np.random.Generator, target: float, meter: int, min_seconds: float, max_seconds: float
) -> tuple[float, int]:
    """A tempo and a number of bars (eight or more) that end inside [min_seconds, max_seconds], near `target`."""
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
    """Instruments of a section: never those of the section before; a label that returns changes about one."""
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
    rng = _rng(song_id, seed, "composition")
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


# --------------------------------------------------------------------------------------------------------------------
# The corpus on disk


def _metadata_row(song: Song, captions_per_song: int) -> dict:
    sections = [{name: value for name, value in asdict(s).items() if name != "chords"} for s in song.sections]
    return {
        "file_name": f"{song.song_id}.flac",
        "song_id": song.song_id,
        "captions": [long_caption(song, variant) for variant in range(captions_per_song)],
        "short_captions": [short_caption(song, variant) for variant in range(captions_per_song)],
        "seconds": song.seconds,
        "tempo_bpm": song.tempo_bpm,
        "key": song.key,
        "mode": song.mode,
        "sections": sections,
    }


def _write_song(folder: Path, settings: dict, song_id: str) -> dict:
    """Render one song to folder/<song_id>.flac (16 bit) and return its metadata row."""
    song = compose_song(song_id, settings["seed"], settings["min_seconds"], settings["max_seconds"])
    samples = (render_song(song, settings["sampling_rate"]) * 32767).astype(np.int16)
    soundfile.write(folder / f"{song_id}.flac", samples, settings["sampling_rate"])
    return _metadata_row(song, settings["captions_per_song"])


def _write_split(folder: Path, split: str, settings: dict, num_workers: int) -> None:
    folder = folder / split
    folder.mkdir()
    song_ids = [f"{split}-{number:04d}" for number in range(1, settings["num_songs"][split] + 1)]
    write = functools.partial(_write_song, folder, settings)
    progress = functools.partial(tqdm, total=len(song_ids), desc=f"rendering {split}", unit="song")
    if num_workers == 1:
        rows = list(progress(map(write, song_ids)))
    else:
        with ProcessPoolExecutor(num_workers) as pool:
            rows = list(progress(pool.map(write, song_ids)))
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def _is_complete(folder: Path, settings: dict) -> bool:
    """Whether `folder` holds the corpus of these settings; ValueError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "corpus.json").is_file():
        raise ValueError(f"{folder} exists but holds no corpus.json: it is no corpus built here. Name another folder.")
    found = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    names = [name for name in {**settings, **found} if settings.get(name) != found.get(name)]
    if names:
        differences = "; ".join(f"{name} is {found.get(name)!r}, asked for {settings.get(name)!r}" for name in names)
        raise ValueError(f"{folder} holds a corpus of other settings: {differences}. Name another folder or delete it.")
    return True


def _check_settings(settings: dict, num_workers: int) -> None:
    check_seconds(settings["min_seconds"], settings["max_seconds"])
    check_sampling_rate(settings["sampling_rate"])
    wrong = [name for name in settings["num_songs"] if name not in SPLITS]
    if wrong or not settings["num_songs"]:
        raise ValueError(f"num_songs names the splits {wrong}; expected one or more of {', '.join(SPLITS)}.")
    counts = {f"num_songs[{split!r}]": count for split, count in settings["num_songs"].items()}
    for name, count in {
        **counts,
        "captions_per_song": settings["captions_per_song"],
        "num_workers": num_workers,
    }.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, expected 1 or more.")


def build_corpus(
    folder: str | Path,
    num_songs: dict[str, int] | None = None,
    seed: int = 0,
    min_seconds: float = 60.0,
    max_seconds: float = 300.0,
    num_workers: int = 2,
    sampling_rate: int = 16000,
    captions_per_song: int = 3,
) -> Path:
    """Write a corpus that `datasets.load_dataset("audiofolder", data_dir=folder)` reads, and return its folder.

    Per split: `<song_id>.flac` (mono, 16 bit) and `metadata.jsonl` with `file_name, song_id, captions, short_captions,
    seconds, tempo_bpm, key, mode, sections`. `folder/corpus.json` holds the settings. A corpus with the same settings
    is returned as it is. Songs are written to `<folder>.partial-*`, which is renamed when all are there: a killed
    build leaves that, never `folder`. Audio and captions depend on the seed, not on `num_workers`.

    `datasets` 5 wants torchcodec for audiofolder, even where nothing is decoded; without it read each metadata.jsonl
    with `load_dataset("json")`.

    Args:
        num_songs: split ("train", "validation", "test") -> number of songs; 400, 50 and 100 if None.

    Raises:
        ValueError: settings that cannot be met, or a `folder` that holds something else (the message names it).
    """
    folder = Path(folder)
    settings = {
        "generator_version": GENERATOR_VERSION,
        "num_songs": dict(num_songs) if num_songs is not None else {"train": 400, "validation": 50, "test": 100},
        "seed": seed,
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "sampling_rate": sampling_rate,
        "captions_per_song": captions_per_song,
    }
    _check_settings(settings, num_workers)
    if _is_complete(folder, settings):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        for split in settings["num_songs"]:
            _write_split(partial, split, settings, num_workers)
        (partial / "corpus.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if not _is_complete(folder, settings):  # another process may have finished the same build meanwhile
            partial.chmod(0o755)  # mkdtemp makes it private
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Render songs with captions and section times as an audiofolder.")
    parser.add_argument("folder", type=Path, help="folder to create")
    for split, count in zip(SPLITS, (400, 50, 100), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"songs in this split, 0 for none ({count})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min_seconds", type=float, default=60.0)
    parser.add_argument("--max_seconds", type=float, default=300.0)
    parser.add_argument("--sampling_rate", type=int, default=16000)
    parser.add_argument("--captions_per_song", type=int, default=3)
    parser.add_argument("--num_workers", type=int, default=2)
    arguments = vars(parser.parse_args())
    num_songs = {split: arguments.pop(split) for split in SPLITS}
    try:
        build_corpus(num_songs={split: count for split, count in num_songs.items() if count != 0}, **arguments)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
