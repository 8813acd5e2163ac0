"""Measures of a track against what is known of the sound, and against naive ones."""

import itertools

import numpy as np
import pytest
from real_sets import speak

from collap.corpora.measures import CLIPPED_RUN, FULL_SCALE, clipped_share, is_music, measure, silent_share, steadiness
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.corpora.tracks import RATE

READING = "please call stella and ask her to bring these things with her from the store " * 4


@pytest.fixture(scope="module")
def song():
    return render_song(compose_song("song", 3, 18, 22))


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).normal(size=round(seconds * RATE))).astype(np.float32)


def naive_clipped(samples: np.ndarray) -> float:
    """Runs of one sign at full scale, one after the other."""
    signs = [int(np.sign(one)) if abs(one) >= FULL_SCALE else 0 for one in samples]
    runs = [(sign, len(list(run))) for sign, run in itertools.groupby(signs)]
    return sum(length for sign, length in runs if sign and length >= CLIPPED_RUN) / len(samples)


def test_clipping_is_that_of_the_definition():
    samples = np.random.default_rng(1).choice(np.float32([-1, 1, 0.5]), p=[0.45, 0.45, 0.1], size=5000)
    assert clipped_share(samples) == pytest.approx(naive_clipped(samples)) and clipped_share(samples) > 0.1
    assert clipped_share(np.float32([0, 1, 1, 0, 1, 1, 1, -1, -1, 0])) == 0.3
    assert clipped_share(np.zeros(0, np.float32)) == 0


def test_clipping_grows_with_the_gain(song):
    level = song / np.abs(song).max()
    shares = [clipped_share(np.clip(level * gain, -1, 1)) for gain in (0.9, 1.5, 4, 16)]
    assert shares[0] == 0 and shares == sorted(shares) and shares[3] > 0.1


def test_silence_is_the_share_that_is_silent(song):
    half = np.concatenate([song[: 10 * RATE], np.zeros(10 * RATE, np.float32)])
    assert silent_share(half) == pytest.approx(0.5, abs=0.01)
    assert silent_share(noise(2) * 10 ** (-50 / 20)) == 1  # -70 dB
    assert silent_share(noise(2) * 10 ** (-30 / 20)) == 0  # -50 dB
    assert silent_share(np.zeros(0, np.float32)) == 1


def test_levels_are_those_of_a_sine():
    found = measure((0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32))
    assert found["peak_db"] == pytest.approx(-6.02, abs=0.01) and found["rms_db"] == pytest.approx(-9.03, abs=0.01)
    assert found["heard_seconds"] == 2


def test_songs_are_music_and_speech_and_noise_are_not(song):
    assert is_music(measure(song)) and is_music(measure(0.01 * song))
    assert not is_music(measure(noise(20)))
    voice = speak(READING).astype(np.float32)
    pitch = np.cumsum(1 + 0.25 * np.sin(2 * np.pi * 0.9 * np.arange(len(voice)) / RATE))  # it rises and falls
    glides = np.interp(pitch[pitch < len(voice) - 1], np.arange(len(voice)), voice).astype(np.float32)
    words = np.repeat(np.random.default_rng(2).random(len(glides) // 3000 + 1) > 0.3, 3000)[: len(glides)]
    assert not is_music(measure(glides * words))


def test_held_notes_are_steady_and_clicks_have_a_pulse():
    time = np.arange(10 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220, 277, 330, 440)).astype(np.float32)
    assert steadiness(0.1 * chord + 0.01 * noise(10)) > 0.4 > 0.05 > abs(steadiness(noise(10)))
    beats = np.where(time % 0.5 < 0.02, noise(10), 0.01 * noise(10))
    is_late = np.zeros(len(time), bool)
    for start in np.random.default_rng(3).integers(0, len(time) - 320, 20):
        is_late[start : start + 320] = True
    uneven = np.where(is_late, noise(10), 0.01 * noise(10))
    clear, unclear = (measure(one.astype(np.float32))["pulse_clarity"] for one in (beats, uneven))
    assert clear > 0.4 > 0.25 > unclear


def test_what_is_too_short_to_measure_gives_numbers():
    for length in (0, 1, 1000, 4000):
        found = measure(np.zeros(length, np.float32))
        assert all(np.isfinite(list(found.values()))) and found["rms_db"] == -200
