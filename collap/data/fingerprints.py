"""Tell whether two recordings have a passage in common, whatever their files: by fingerprints of their sound.

Those of Haitsma and Kalker ("A Highly Robust Audio Fingerprinting System", ISMIR 2002): 32 bits for a frame, each the
sign of how the difference of two neighbouring bands changes from one frame to the next. Two passages are the same where
less than 35 % of their bits differ; chance is 50 %. Another codec, level or sampling rate changes few bits; another
tempo or key changes them all. Which bits differ says more than how many: those of a change that is small beside all the
sound of its frame fall over at a low bit rate, and the others only where something else is heard ([`Fingerprinter`]).

Dimensions: `F` frames of 23 ms, `N` samples, `C` bands.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

RATE = 5500  # Hz
WINDOW, HOP = 2048, 128  # samples: 372 ms and 23 ms
BANDS = np.geomspace(300, 2000, 34)  # Hz, edges of 33 bands
MAX_ERROR = 0.35  # share of bits that differ
MIN_FRAMES = round(3 * RATE / HOP)  # a passage of 3 s; shorter ones are alike by chance
CANDIDATES = 5  # places of a pair of recordings that are compared bit by bit
FRAMES_AT_A_TIME = 512  # 20 MB while they are transformed
HEARD_CHANGE = 1e-3  # of a difference of bands, beside the energy of both frames
HEARD_ENERGY = 1e-6 * (WINDOW / 4) ** 2  # of a frame: 60 dB below a sine at full scale


class Fingerprinter:
    """Make the fingerprint of samples at `RATE` that come in pieces; between them it keeps less than a window."""

    def __init__(self):
        self._left = np.zeros(0, np.float32)  # samples from the next frame on
        self._energies = np.zeros((0, len(BANDS) - 1))  # of the last frame, (1, C)
        self._bits, self._heard = ([np.zeros(0, np.uint32)] for _ in range(2))

    def add(self, samples: np.ndarray) -> None:
        """Add the samples (N,) that come next."""
        samples = np.concatenate([self._left, samples])
        num_frames = max(0, (len(samples) - WINDOW) // HOP + 1)
        if num_frames:
            frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]  # (F, WINDOW), a view
            for first in range(0, num_frames, FRAMES_AT_A_TIME):
                self._add_frames(frames[first : first + FRAMES_AT_A_TIME])
        self._left = samples[num_frames * HOP :].copy()

    def _add_frames(self, frames: np.ndarray) -> None:
        """Add frames (F, WINDOW)."""
        bins = np.searchsorted(np.fft.rfftfreq(WINDOW, 1 / RATE), BANDS)
        spectrum = np.fft.rfft(frames * np.hanning(WINDOW), axis=1)[:, bins[0] : bins[-1]]
        power = spectrum.real**2 + spectrum.imag**2
        energies = np.add.reduceat(power, bins[:-1] - bins[0], axis=1)  # (F, C)
        energies = np.concatenate([self._energies, energies])  # (F + 1, C), but for the first ones
        changes = np.diff(np.diff(energies, axis=1), axis=0)  # (F, C - 1)
        sums = energies[1:].sum(1, keepdims=True) + energies[:-1].sum(1, keepdims=True)  # (F, 1)
        self._bits.append(_packed(changes > 0))
        self._heard.append(_packed((np.abs(changes) > HEARD_CHANGE * sums) & (sums > 2 * HEARD_ENERGY)))
        self._energies = energies[-1:]

    def bits(self) -> np.ndarray:
        """Return the fingerprint (F,) uint32 of all that was added; F is 0 for less than a window and a hop."""
        return np.concatenate(self._bits)

    def heard(self) -> np.ndarray:
        """Return (F,) uint32 with ones for the bits of changes that can be heard beside the rest of their frames."""
        return np.concatenate(self._heard)


def _packed(bits: np.ndarray) -> np.ndarray:
    """Return bits (F, 32) as (F,) uint32."""
    return np.packbits(bits, axis=1).view(np.uint32).ravel()


def fingerprint(samples: np.ndarray) -> np.ndarray:
    """Return the fingerprint (F,) uint32 of samples (N,) at `RATE`, as a [`Fingerprinter`] makes it."""
    maker = Fingerprinter()
    maker.add(samples)
    return maker.bits()


def bit_error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of bits that differ between two fingerprints (F,) of the same frames."""
    return float(np.bitwise_count(one ^ other).mean() / 32)


@dataclass(frozen=True)
class Match:
    """Say that a recording has a passage of an indexed one.

    Attributes:
        name, other: the indexed recording, and the one that was compared with it.
        start, other_start: seconds at which the passage begins in them.
        error: share of bits that differ.
    """

    name: str
    other: str
    start: float
    other_start: float
    error: float


class FingerprintIndex:
    """Find passages of some recordings in others, which are read one at a time.

    Args:
        recordings: name and fingerprint (F,) of each.
    """

    def __init__(self, recordings: Iterable[tuple[str, np.ndarray]]):
        recordings = list(recordings)
        self.names = [name for name, _ in recordings]
        self.prints = [bits for _, bits in recordings]
        owners = np.repeat(np.arange(len(self.prints)), [len(bits) for bits in self.prints])
        frames = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(bits)) for bits in self.prints)])
        values = np.concatenate([np.zeros(0, np.uint32), *self.prints])
        loud = (values != 0) & (values != 2**32 - 1)  # silence is like silence
        order = np.argsort(values[loud], kind="stable")
        self.values, self.owners, self.frames = (array[loud][order] for array in (values, owners, frames))

    def matches(self, other: str, bits: np.ndarray) -> Iterator[Match]:
        """Yield the indexed recordings that have a passage of 3 s or more in common with a fingerprint (F,)."""
        first, stop = (np.searchsorted(self.values, bits, side=side) for side in ("left", "right"))
        counts = stop - first  # (F,) equal frames in the index
        places = np.repeat(first, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        offsets = np.repeat(np.arange(len(bits)), counts) - self.frames[places]
        pairs, votes = np.unique(np.stack([self.owners[places], offsets]), axis=1, return_counts=True)
        for owner in np.unique(pairs[0]):
            own = np.flatnonzero(pairs[0] == owner)
            best = own[np.argsort(-votes[own], kind="stable")[:CANDIDATES]]
            found = [self._compared(int(owner), int(pairs[1, place]), other, bits) for place in best]
            found = [match for match in found if match is not None]
            if found:
                yield min(found, key=lambda match: match.error)

    def _compared(self, owner: int, offset: int, other: str, bits: np.ndarray) -> Match | None:
        """Compare bit by bit where frame 0 of the indexed recording lies at frame `offset` of the other."""
        own = self.prints[owner]
        start, stop = max(0, -offset), min(len(own), len(bits) - offset)
        if stop - start < MIN_FRAMES:
            return None
        error = bit_error(own[start:stop], bits[start + offset : stop + offset])
        if error >= MAX_ERROR:
            return None
        seconds = (start * HOP / RATE, (start + offset) * HOP / RATE)
        return Match(self.names[owner], other, *(round(one, 2) for one in seconds), round(error, 4))
