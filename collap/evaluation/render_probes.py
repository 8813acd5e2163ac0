"""Render the clips of the built-in set from the voices of the synthetic songs; `probes.py` reads them.

    python -m collap.evaluation.render_probes FOLDER

Nothing here is needed to check a model: the clips come with the package. A change of a clip or of a text makes golden
vectors stored earlier incomparable, which the doctor says.
"""

import sys
from pathlib import Path

import numpy as np
import soundfile

from collap.corpora.synthetic.composition import Section, Song, mood_of
from collap.corpora.synthetic.songs import render_song

SAMPLING_RATE = 16_000
# name, instruments, tempo in BPM, beats per bar, bars, key, mode, dynamics, register, density, chords. As unlike each
# other as the voices allow: timbre first, then tempo, mode, loudness and register. Each lasts 4.8 to 6 s.
CLIPS = (
    ("piano", ("piano",), 84, 4, 2, "C", "major", "soft", "middle", "sparse", ("C", "F")),
    ("drums", ("drums",), 160, 4, 4, "E", "minor", "very loud", "middle", "busy", ("Em", "Em", "Em", "Em")),
    ("strings", ("strings",), 66, 3, 2, "A", "minor", "medium", "low", "sparse", ("Am", "Dm")),
    ("singing", ("vocals",), 90, 4, 2, "G", "major", "medium", "low", "sparse", ("G", "C")),
    ("guitar", ("electric guitar", "bass"), 144, 4, 3, "E", "minor", "very loud", "low", "busy", ("Em", "C", "D")),
    ("flute", ("flute",), 100, 3, 3, "D", "major", "medium", "high", "moderate", ("D", "G", "D")),
    ("organ", ("organ",), 80, 4, 2, "F", "minor", "loud", "low", "sparse", ("Fm", "C#")),
    ("glockenspiel", ("glockenspiel",), 132, 4, 3, "C", "major", "soft", "high", "busy", ("C", "G", "C")),
)


def compose_clip(name, instruments, tempo, meter, bars, key, mode, dynamics, register, density, chords) -> Song:
    """Return a song of one verse."""
    seconds = bars * meter * 60 / tempo
    mood = mood_of(mode, tempo, dynamics, density)
    section = Section("verse", 0.0, seconds, instruments, dynamics, register, density, mood, chords)
    return Song(name, 0, float(tempo), key, mode, meter, seconds, (section,))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for clip in CLIPS:
        samples = (render_song(compose_clip(*clip), SAMPLING_RATE) * 32767).astype(np.int16)
        soundfile.write(folder / f"{clip[0]}.flac", samples, SAMPLING_RATE, compression_level=1.0)


if __name__ == "__main__":
    main()
