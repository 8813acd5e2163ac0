"""Fingerprints: what is the same recording in another file, and what is not."""

import io
import itertools

import numpy as np
import pytest
import soundfile

from collap.data.fingerprints import (
    BANDS,
    HOP,
    MAX_ERROR,
    RATE,
    WINDOW,
    Fingerprinter,
    FingerprintIndex,
    bit_error,
    fingerprint,
)
from processing import load_audio


@pytest.fixture(scope="module")
def songs(sounds):
    return [load_audio(sounds.folder / f"clip{index}.wav", RATE) for index in range(3)]


def as_file(samples: np.ndarray, rate: int, **settings) -> np.ndarray:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, **settings)
    return load_audio(content.getvalue(), RATE)


def naive(samples: np.ndarray, frame: int) -> int:
    """One frame's 32 bits, band by band, of its definition."""

    def energies(first):
        power = np.abs(np.fft.rfft(samples[first : first + WINDOW] * np.hanning(WINDOW))) ** 2
        frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
        return [power[(frequencies >= low) & (frequencies < high)].sum() for low, high in itertools.pairwise(BANDS)]

    before, now = energies(frame * HOP), energies((frame + 1) * HOP)
    bits = [(now[m + 1] - now[m]) - (before[m + 1] - before[m]) > 0 for m in range(32)]
    return int(np.packbits(bits).view(np.uint32)[0])


def test_bits_are_those_of_the_definition(songs):
    found = fingerprint(songs[0])
    assert [int(found[frame]) for frame in (0, 7, 100)] == [naive(songs[0], frame) for frame in (0, 7, 100)]
    assert len(fingerprint(songs[0][:2000])) == 0


def test_a_passage_is_found_in_other_files_and_no_other_song_is(songs, sounds):
    index = FingerprintIndex([(str(number), fingerprint(song)) for number, song in enumerate(songs)])
    quiet = as_file(0.3 * songs[1], RATE, format="WAV")
    shifted = np.concatenate([np.zeros(1234, np.float32), load_audio(sounds.folder / "clip1.wav")])
    encoded = as_file(shifted, 16000, format="MP3")
    for version in (songs[1], quiet, encoded):
        (match,) = index.matches("x", fingerprint(version))
        assert (match.name, match.other) == ("1", "x") and match.error < MAX_ERROR
    track = index.matches("track", fingerprint(load_audio(sounds.folder / "track.flac", RATE)))
    starts = {match.name: match.other_start - match.start for match in track}
    assert starts == {"1": pytest.approx(30, abs=0.05), "2": pytest.approx(40, abs=0.05)}
    noise = np.random.default_rng(1).normal(size=20 * RATE)
    assert not list(index.matches("noise", fingerprint(noise)))
    assert bit_error(fingerprint(noise)[:400], fingerprint(songs[0])[:400]) == pytest.approx(0.5, abs=0.05)


def test_silence_is_like_nothing(songs):
    index = FingerprintIndex([("silence", fingerprint(np.zeros(10 * RATE))), ("empty", fingerprint(np.zeros(5)))])
    assert not list(index.matches("silence", fingerprint(np.zeros(10 * RATE))))


def test_pieces_of_any_size_make_one_fingerprint_and_what_can_be_heard_is_told():
    generator = np.random.default_rng(5)
    samples = generator.standard_normal(20 * RATE) * np.repeat([0.1, 1e-6, 0.1, 0.0], 5 * RATE)  # loud, faint, silent
    samples = samples.astype(np.float32)
    maker, first = Fingerprinter(), 0
    while first < len(samples):
        count = int(generator.integers(0, 9000))
        maker.add(samples[first : first + count])
        first += count
    bits = fingerprint(samples)
    assert np.array_equal(maker.bits(), bits) and maker.heard().shape == bits.shape and len(bits) > 800
    bins = np.searchsorted(np.fft.rfftfreq(WINDOW, 1 / RATE), BANDS)
    for frame in range(0, len(bits), 23):
        energies = []
        for start in (frame * HOP, (frame + 1) * HOP):
            power = np.abs(np.fft.rfft(samples[start : start + WINDOW] * np.hanning(WINDOW))) ** 2
            energies.append([power[low:high].sum() for low, high in itertools.pairwise(bins)])
        before, after = (np.array(one) for one in energies)
        changes, both = np.diff(after) - np.diff(before), before.sum() + after.sum()
        is_heard = (np.abs(changes) > both / 1000) & (both > 2e-6 * (WINDOW / 4) ** 2)
        assert np.packbits(is_heard).view(np.uint32) == maker.heard()[frame]
    seconds = np.arange(len(bits)) * HOP / RATE
    assert maker.heard()[seconds < 4].all() and not maker.heard()[(seconds > 5.1) & (seconds < 9.5)].any()
