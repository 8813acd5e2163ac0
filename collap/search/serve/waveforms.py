"""Draw a recording as the loudest sample of each of its parts.

Dimensions: `P` parts of a recording, `M` samples.
"""

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock

import numpy as np

from collap.data.guarded_reading import stream_audio

PARTS = 240
SAMPLING_RATE = 8000  # what is above 4 kHz does not change the picture
KEPT = 2048  # recordings whose waveform is kept: 2 MB


def peaks_of(blocks: Iterable[np.ndarray], num_samples: int, parts: int = PARTS) -> np.ndarray:
    """Return the largest absolute sample of each part of a recording, (P,) float32 from 0 to 1.

    Args:
        blocks: of samples (M,), one after another; what is beyond `num_samples` counts to the last part.
        num_samples: that are expected.
    """
    peaks, done = np.zeros(parts, np.float32), 0
    for block in blocks:
        places = (done + np.arange(len(block))) * parts // max(num_samples, 1)  # (M,)
        np.maximum.at(peaks, np.minimum(places, parts - 1), np.abs(block))
        done += len(block)
    return peaks.clip(0, 1)


class Waveforms:
    """Compute the waveforms of files, and keep those that were asked for last."""

    def __init__(self, kept: int = KEPT):
        self._kept, self._found, self._lock = kept, OrderedDict(), Lock()

    def get(self, name: str) -> list[float] | None:
        """Return the waveform that is kept under a name, if one is."""
        with self._lock:
            if name in self._found:
                self._found.move_to_end(name)
            return self._found.get(name)

    def compute(self, name: str, path: str, seconds: float) -> list[float]:
        """Decode a file in blocks, keep its waveform under `name`, and return it.

        Raises:
            AudioFileError: it cannot be decoded.
        """
        peaks = peaks_of(stream_audio(path, SAMPLING_RATE), round(seconds * SAMPLING_RATE))
        found = [round(float(peak), 3) for peak in peaks]
        with self._lock:
            self._found[name] = found
            while len(self._found) > self._kept:
                self._found.popitem(last=False)
        return found
