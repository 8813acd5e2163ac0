"""The instruments of the synthetic songs: how one note of each sounds, and which part it plays in which range.

A voice takes (MIDI pitch, number of samples, sampling rate) and returns one note, float32, peak about 1.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TABLE_SIZE = 4096  # samples of one stored cycle; a power of two, so that a phase wraps with a bit mask
KICK, SNARE, HAT = 36, 38, 42  # General MIDI percussion keys
DRUM_SECONDS = {KICK: 0.3, SNARE: 0.25, HAT: 0.08}


def _hertz(midi: int) -> float:
    return 440.0 * 2.0 ** ((midi - 69) / 12)


@functools.lru_cache(maxsize=64)
def _harmonics(frequency: float, rate: int) -> np.ndarray:
    """Return harmonic numbers 1, 2, ... below 0.45 of the sampling rate, so that no voice aliases; 48 at most."""
    return np.arange(1, 1 + max(1, min(48, int(0.45 * rate / frequency))), dtype=np.float64)


def _tone(
    amplitudes: np.ndarray, frequency: float, num_samples: int, rate: int, vibrato: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """Return a tone from a table, (num_samples,): `amplitudes[k - 1]` for harmonic k; `vibrato` in cents and hertz."""
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
    """Return exp(-t / seconds)."""
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
    """Return the same white noise each time, so that a repeated note is the same note."""
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
    """Return vocal tract gain; a vowel is a row of (centre Hz, width Hz, gain)."""
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
    """Return a string as Karplus and Strong's, higher harmonics dying sooner, without the tuning error of the delay."""
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
    """Hold how an instrument sounds (`voice`), what it plays outside a solo (`role`), around which pitch, how loud."""

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
