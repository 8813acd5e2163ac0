"""The notes that each instrument plays in a section of a synthetic song."""

from dataclasses import dataclass

import numpy as np

from .composition import KEYS, REGISTER_SHIFT, SCALES, Section, Song, song_rng
from .voices import HAT, INSTRUMENTS, KICK, PITCHED, SNARE, SOLOISTS


@dataclass(frozen=True)
class Note:
    """Hold a note: `start` and `beats` in beats from the start of the part; `midi` a pitch, or of drums a key."""

    start: float
    beats: float
    midi: int
    velocity: float


def _chord_classes(chord: str) -> tuple[int, int, int]:
    """Return pitch classes of a triad such as "F#m" or "Bb", root first."""
    root = KEYS.index(chord.removesuffix("m"))
    return root, (root + (3 if chord.endswith("m") else 4)) % 12, (root + 7) % 12


def _nearest(pitch_class: int, center: int) -> int:
    """Return the MIDI pitch of a class that lies closest to `center`."""
    return center + (pitch_class - center + 6) % 12 - 6


def _accent(beat: float, meter: int) -> float:
    if beat % meter == 0:
        return 1.0
    return 0.8 if beat % 1 == 0 else 0.65


def _drum_part(chords: list[str], density: str, meter: int, center: int) -> list[Note]:
    """Return kick, snare and hi-hat; the hats tick 1, 2 or 4 times a beat."""
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
    """Return roots: one a bar, one a beat, or eighth notes with the fifth and the octave."""
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
    """Return triads: one a bar, one a beat, or two a beat."""
    step = {"sparse": meter, "moderate": 1, "busy": 0.5}[density]
    return [
        Note(bar * meter + i * step, step, _nearest(pitch_class, center), _accent(i * step, meter))
        for bar, chord in enumerate(chords)
        for i in range(round(meter / step))
        for pitch_class in _chord_classes(chord)
    ]


def _power_chord_part(chords: list[str], density: str, meter: int, center: int) -> list[Note]:
    """Return root and fifth in the rhythm of `_chord_part`."""
    step = {"sparse": meter, "moderate": 1, "busy": 0.5}[density]
    roots = [_nearest(_chord_classes(chord)[0], center) for chord in chords]
    return [
        Note(bar * meter + i * step, step, root + interval, _accent(i * step, meter))
        for bar, root in enumerate(roots)
        for i in range(round(meter / step))
        for interval in (0, 7)
    ]


def _arpeggio_part(chords: list[str], density: str, meter: int, center: int) -> list[Note]:
    """Return broken chords: 1, 2 or 4 notes a beat."""
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
    """Return note lengths of one bar in beats: about 2, 4 or 8 of them; a quarter of the notes are split in two."""
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
    """Walk at random on the scale, meeting a chord tone on every bar's first beat; `scale` holds MIDI pitches."""
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


def leads_solo(section: Section, name: str) -> bool:
    """Tell whether an instrument takes the tune of a solo."""
    return section.label == "solo" and name == section.instruments[0] and name in SOLOISTS


def instrument_part(song: Song, section: Section, name: str, num_bars: int) -> list[Note]:
    """Return the notes of one instrument over `num_bars` bars of a section."""
    instrument = INSTRUMENTS[name]
    chords = [section.chords[bar % len(section.chords)] for bar in range(num_bars)]
    center = instrument.center + (REGISTER_SHIFT[section.register] if name in PITCHED else 0)
    if instrument.role != "melody" and not leads_solo(section, name):
        return PARTS[instrument.role](chords, section.density, song.meter, center)
    tonic = KEYS.index(song.key)
    scale = [pitch for pitch in range(128) if (pitch - tonic) % 12 in SCALES[song.mode]]
    rng = song_rng(song.song_id, song.seed, f"melody of the {section.label}")  # a label that returns has the same tune
    return _melody_part(chords, section.density, song.meter, center, rng, scale)
