"""Describe the sound of a track in frames of 256 ms: its timbre and its harmony, for sections and for the key.

Timbre is 13 mel cepstral coefficients without the one of loudness, harmony a chroma vector.

Dimensions: `N` samples at `tracks.RATE`, `F` frames.
"""

import functools

import numpy as np
from transformers.audio_utils import chroma_filter_bank, mel_filter_bank

from .tracks import RATE

WINDOW, HOP = 4096, 2048  # samples: 256 ms and 128 ms
FRAMES_AT_A_TIME = 256  # whose spectra take 8 MB
MEL_BANDS, COEFFICIENTS = 40, 13
RANGE_DB = 70.0  # below the loudest band of a track lies what nobody hears


def frame_features(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return timbre (F, 13) and harmony (F, 12) of samples (N,); F is 0 below a window.

    Timbre is in dB; harmony the square roots of the shares of the pitch classes, C first, 0 for silence.
    """
    to_mel, to_chroma = _filters()
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP] if len(samples) >= WINDOW else ()
    mel, chroma = [np.zeros((0, MEL_BANDS))], [np.zeros((0, 12))]
    for first in range(0, len(frames), FRAMES_AT_A_TIME):
        spectra = np.fft.rfft(frames[first : first + FRAMES_AT_A_TIME] * np.hanning(WINDOW), axis=1)
        power = np.abs(spectra) ** 2  # (F, bins)
        mel.append(power @ to_mel)
        chroma.append(power @ to_chroma)
    levels = 10 * np.log10(np.maximum(np.concatenate(mel), 1e-10))  # (F, bands)
    levels = np.maximum(levels, levels.max(initial=-100.0) - RANGE_DB)
    energies = np.concatenate(chroma)  # (F, 12)
    return levels @ _cosines().T, np.sqrt(energies / np.maximum(energies.sum(1, keepdims=True), 1e-10))


@functools.cache
def _filters() -> tuple[np.ndarray, np.ndarray]:
    """Return the filters of mel bands (bins, bands) and of pitch classes (bins, 12)."""
    bins = WINDOW // 2 + 1
    mel = mel_filter_bank(bins, MEL_BANDS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    return mel, chroma_filter_bank(WINDOW, 12, RATE).T


def _cosines() -> np.ndarray:
    """Return the rows 1 to 13 of the orthonormal cosine transform (13, bands); row 0 is loudness."""
    angles = np.outer(np.arange(1, COEFFICIENTS + 1), np.arange(MEL_BANDS) + 0.5) * np.pi / MEL_BANDS
    return np.cos(angles) * np.sqrt(2 / MEL_BANDS)
