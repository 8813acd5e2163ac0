"""Duplicates: the index against a comparison of all pairs at all offsets, and songs that must stay apart."""

import numpy as np
import pytest

from collap.corpora.duplicates import MAX_ERROR, MIN_SHARED, exact_duplicates, find_duplicates, shared_error


def print_of(seed: int, frames: int = 1500) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**32 - 1, frames, dtype=np.uint32)


def worn(bits: np.ndarray, share: float, seed: int = 99) -> np.ndarray:
    """The same with bits flipped in some of the frames, as another codec does: in others none is."""
    chance = np.random.default_rng(seed)
    flips = np.packbits(chance.random((len(bits), 32)) < 2 * share, axis=1).view(np.uint32).ravel()
    return np.where(chance.random(len(bits)) < 0.5, bits ^ flips, bits)


def naive_error(one: np.ndarray, other: np.ndarray, offset: int) -> float:
    bits = [
        bin(int(one[frame]) ^ int(other[frame + offset])).count("1")
        for frame in range(len(one))
        if 0 <= frame + offset < len(other)
    ]
    return sum(bits) / (32 * len(bits))


def test_the_error_of_two_prints_is_that_of_the_definition():
    one, other = print_of(0, 400), worn(np.concatenate([print_of(1, 50), print_of(0, 400)]), 0.1)
    for offset in (50, 0, -40, 120):
        assert shared_error(one, other, offset) == pytest.approx(naive_error(one, other, offset))
    assert shared_error(one, other, 50) == pytest.approx(0.1, abs=0.02)
    assert shared_error(one, other, -round(400 * MIN_SHARED) - 1) is None  # shares too little
    assert shared_error(np.zeros(400, np.uint32), np.zeros(400, np.uint32), 0) is None  # silence is like nothing


def test_the_index_finds_what_all_pairs_at_all_offsets_do():
    prints = [print_of(seed, 500) for seed in range(4)]
    prints += [worn(prints[1][60:], 0.15), np.concatenate([print_of(9, 33), worn(prints[2], 0.2)]), print_of(10, 500)]
    naive = {}
    for track in range(len(prints)):
        for other in range(track):
            if str(other) in naive:
                continue
            offsets = range(-len(prints[other]), len(prints[track]))
            errors = [shared_error(prints[other], prints[track], offset) for offset in offsets]
            if min((error for error in errors if error is not None), default=1) < MAX_ERROR:
                naive.setdefault(str(track), str(other))
    found = find_duplicates((str(track), bits) for track, bits in enumerate(prints))
    assert naive == {"4": "1", "5": "2"}
    assert {name: text.partition(",")[0] for name, text in found.items()} == naive


def test_a_recording_that_holds_two_songs_makes_no_copy_of_either():
    one, two = print_of(1), print_of(2)
    medley = np.concatenate([one, two])
    found = find_duplicates([("one", one), ("medley", medley), ("two", two)])
    assert set(found) == {"medley"} and found["medley"].startswith("one, 0.0% of bits differ")


def test_common_sounds_are_no_sign_of_one_recording():
    tone = np.full(600, 12345, np.uint32)  # one that many songs hold
    songs = [np.concatenate([tone, print_of(seed), tone]) for seed in range(80)]
    assert find_duplicates((str(number), song) for number, song in enumerate(songs)) == {}


def test_silence_and_nothing_at_all_are_like_no_other():
    nothing = [("a", np.zeros(0, np.uint32)), ("b", np.zeros(0, np.uint32)), ("c", np.zeros(900, np.uint32))]
    assert find_duplicates([*nothing, ("d", np.zeros(900, np.uint32))]) == {} == find_duplicates([])


def test_content_is_told_by_its_digest():
    listed = [("a", "x"), ("b", None), ("c", "y"), ("d", "x"), ("e", None), ("f", "x")]
    assert exact_duplicates(listed) == {"d": "a", "f": "a"}
