"""Changes made to a song before a model hears it: cut, delayed, louder, re-encoded; pure functions of samples.

Most are made of the samples that a model is given. What a file goes through, another codec or other channels, is made
of its own channels at its own rate, and read again as any file is (`recoding.py`).

Dimensions: `M` samples at the model's rate.
"""

from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np

from collap.data.guarded_reading import load_audio

from .recoding import RECODINGS, recode


def delayed(samples: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """Return samples (M,) after so many seconds of silence, as another rip of a song begins: (M + seconds * rate,)."""
    return np.concatenate([np.zeros(round(seconds * rate), samples.dtype), samples])


def amplified(samples: np.ndarray, rate: int, decibels: float) -> np.ndarray:
    """Return samples (M,) so much louder, beyond full scale if need be: nothing is clipped."""
    return samples * np.float32(10 ** (decibels / 20))


OF_SAMPLES: dict[str, Callable] = {"shift": delayed, "gain": amplified}
FIRST = "first"


@dataclass(frozen=True)
class Change:
    """Name a change: `kind` is `FIRST`, of `OF_SAMPLES` or of `RECODINGS`, or none; `amount` in the unit of that kind:
    seconds, dB or kbit/s."""

    label: str
    kind: str = ""
    amount: float = 0.0

    def facts(self) -> list:
        """Return what tells what is heard apart from other changes of the same song."""
        return [self.kind, self.amount, *([av.__version__] if self.kind in RECODINGS else [])]

    def reader(self, source: bytes | str) -> Callable[[int], np.ndarray]:
        """Return what gives the changed song, samples (M,) at a rate; it is re-encoded once.

        Raises:
            AudioFileError: it cannot be read.
        """
        if self.kind in RECODINGS:
            changed = recode(source, self.kind, self.amount)
            return lambda rate: load_audio(changed, rate)
        if self.kind == FIRST:
            return lambda rate: load_audio(source, rate, stop=self.amount)
        if self.kind in OF_SAMPLES:
            return lambda rate: OF_SAMPLES[self.kind](load_audio(source, rate), rate, self.amount)
        return lambda rate: load_audio(source, rate)


ORIGINAL = Change("original")
