"""The built-in set: eight clips of 5 to 6 s, one instrument each, with three texts each, to check any model on.

The clips are rendered by `render_probes.py` and are part of CoLLAP (Apache-2.0). The texts say instrument, tempo,
loudness, register and mood, in words that a music model knows and that the captions of the synthetic songs use too.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from processing import load_audio

PROBES_FOLDER = Path(__file__).with_name("probe_clips")
SAMPLING_RATE = 16_000


@dataclass(frozen=True)
class Probe:
    """Hold a clip, `waveform` (samples,) float32 at 16 kHz, and the texts that describe it."""

    name: str
    waveform: np.ndarray
    texts: tuple[str, ...]


@functools.cache
def load_probes() -> tuple[Probe, ...]:
    """Return the clips in the order of `captions.jsonl`, each with the same number of texts."""
    lines = (PROBES_FOLDER / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple(
        Probe(
            Path(row["file_name"]).stem, load_audio(PROBES_FOLDER / row["file_name"], SAMPLING_RATE), (*row["texts"],)
        )
        for row in rows
    )


def probe_texts() -> list[str]:
    """Return all texts, those of a clip one after the other."""
    return [text for probe in load_probes() for text in probe.texts]


@functools.cache
def probe_digest() -> str:
    """Return SHA-256 of the samples and texts: golden vectors of one set say nothing about another."""
    digest = hashlib.sha256()
    for probe in load_probes():
        digest.update(np.ascontiguousarray(probe.waveform, dtype="<f4").tobytes())
        digest.update(json.dumps(probe.texts).encode())
    return digest.hexdigest()
