"""Features and the captions made of them, against what rendered songs are known to be."""

import re

import numpy as np
import pytest

from collap.corpora.captions import caption_text
from collap.corpora.features import KEYS, autocorrelation, find_key, find_tempo, measure_track, relative_key
from collap.corpora.synthetic.composition import DYNAMICS
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.corpora.template_captions import TemplateCaptioner, describe_change, section_names, tag_words
from collap.corpora.tracks import RATE, Section, Track
from collap.data.sections import section_sentences

SONGS = [compose_song(f"measured-{number}", seed=2, max_seconds=70.0) for number in range(8)]


def sections_of(song) -> list[Section]:
    return [Section(one.start, one.end, one.label) for one in song.sections]


@pytest.fixture(scope="module")
def measured():
    """Songs with samples, and features of the whole and of the sections."""
    rendered = [(song, render_song(song)) for song in SONGS]
    return [(song, samples, *measure_track(samples, sections_of(song))) for song, samples in rendered]


def test_tempo_is_that_of_the_song_or_half_or_double(measured):
    ratios = np.array([whole.tempo / song.tempo_bpm for song, _, whole, _ in measured])
    errors = np.min(np.abs(ratios[:, None] / [0.5, 1.0, 2.0] - 1), axis=1)
    assert (errors < 0.04).sum() >= 7 and (np.abs(ratios - 1) < 0.04).sum() >= 5


def test_a_key_that_is_stated_is_that_of_the_song_or_names_it_beside_its_relative(measured):
    stated = [(whole.key, f"{song.key} {song.mode}") for song, _, whole, _ in measured if whole.key]
    assert len(stated) >= 6 and sum(true in found.split(" or ") for found, true in stated) >= len(stated) - 1


def test_the_loudest_section_is_found_and_louder_means_louder(measured):
    for song, _, _, parts in measured:
        levels = [DYNAMICS.index(one.dynamics) for one in song.sections]
        assert levels[int(np.argmax([one.loudness for one in parts]))] == max(levels)
        for place in range(1, len(parts)):
            said = " ".join(describe_change(parts[place - 1], parts[place]))
            step = levels[place] - levels[place - 1]
            assert ("louder" in said) == (step > 0) and ("softer" in said) == (step < 0)


def test_onsets_follow_what_is_played(measured):
    found = {name: [] for name in ("sparse", "moderate", "busy")}
    for song, _, _, parts in measured:
        for one, features in zip(song.sections, parts, strict=True):
            found[one.density].append(features.onsets * 60 / song.tempo_bpm)
    assert np.mean(found["sparse"]) < np.mean(found["moderate"]) < np.mean(found["busy"])


def test_features_of_plain_sounds_are_what_they_must_be():
    times = np.arange(20 * RATE) / RATE
    clicks = np.zeros(20 * RATE, np.float32)
    clicks[:: RATE // 2] = 1.0  # 120 BPM
    low, high = (0.5 * np.sin(2 * np.pi * hertz * times).astype(np.float32) for hertz in (220, 3000))
    beat = measure_track(clicks, [])[0]
    assert beat.tempo == pytest.approx(120, rel=0.01) and beat.onsets == pytest.approx(2.0, abs=0.1)
    one, [first, second] = measure_track(np.concatenate([low, high]), [Section(0.0, 20.0), Section(20.0, 40.0)])
    assert one.loudness == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.01)
    assert first.brightness < 400 < 2500 < second.brightness and one.tempo is None
    noise = 0.1 * np.random.default_rng(0).normal(size=20 * RATE).astype(np.float32)
    assert measure_track(noise, [])[0].tempo is None and measure_track(noise, [])[0].key is None
    silence = measure_track(np.zeros(5 * RATE, np.float32), [Section(1.0, 2.0)])
    assert silence[0].is_silent and silence[1][0].is_silent and silence[0].key is None
    assert measure_track(noise[:50], [Section(0.0, 50 / RATE)])[0].tempo is None  # shorter than any window


def test_autocorrelation_is_the_plain_sum():
    values = np.random.default_rng(0).normal(size=50)
    centred = values - values.mean()
    sums = [np.mean(centred[: 50 - lag] * centred[lag:]) for lag in range(20)]
    assert np.allclose(autocorrelation(values, 20), np.array(sums) / sums[0])
    assert not autocorrelation(np.ones(50), 20).any() and find_tempo(np.ones(1000)) is None


def test_a_key_moves_with_its_notes():
    scale = np.array([6.0, 0, 2, 0, 4, 1, 0, 4, 0, 1, 0, 1])  # C major, with its own weights
    assert [find_key(np.roll(scale, up)) for up in range(12)] == [f"{key} major" for key in KEYS]
    both = find_key(np.array([4.0, 0, 2, 0, 3, 2, 0, 3, 0, 4, 0, 2]))
    assert set(both.split(" or ")) == {"C major", "A minor"} and relative_key("A minor") == "C major"
    assert find_key(np.ones(12)) is None and find_key(np.tile([1.0, 0.0], 6)) is None  # a whole-tone scale has none


def test_a_caption_has_a_line_for_each_section_and_states_what_is_measured(measured):
    captioner = TemplateCaptioner()
    tracks = [Track(f"t{place}", "", sections=sections_of(song)) for place, (song, *_) in enumerate(measured)]
    captions = captioner.describe(tracks, [samples for _, samples, *_ in measured])
    assert captions == [captioner.describe([one], [m[1]])[0] for one, m in zip(tracks, measured, strict=True)]
    for caption, (song, samples, whole, parts) in zip(captions, measured, strict=True):
        text, names = caption_text(caption, song.seconds), section_names(caption.sections)
        said = section_sentences(text, [{"start": one.start} for one in song.sections])
        assert said and all(name in line for name, line in zip(names, said, strict=True))
        assert f"{round(whole.tempo)} BPM" in text and (whole.key or "BPM") in text
        loudest = names[int(np.argmax([one.loudness for one in parts]))]
        assert re.search(rf"(loudest in|peaks in|loudest part is) {loudest}\b", text)
        assert len(samples) / RATE == pytest.approx(song.seconds, abs=0.1)
    assert captions != TemplateCaptioner(seed=1).describe(tracks, [m[1] for m in measured])


def test_a_song_of_six_sections_has_150_to_300_words():
    song = next(song for number in range(99) if len((song := compose_song(f"six-{number}", 3)).sections) == 6)
    samples = render_song(song)
    for seed in range(4):
        [caption] = TemplateCaptioner(seed).describe([Track("t", "", sections=sections_of(song))], [samples])
        assert 150 <= len(caption_text(caption, song.seconds).split()) <= 300


def test_tags_are_woven_in_whatever_form_they_have():
    tags = {"genre": "genre---rock;pop", "mood/theme": "calm", "Instruments": "['piano', 'drums']", "title": "Rain"}
    assert tag_words(tags) == {"genre": ["rock", "pop"], "mood": ["calm"], "instruments": ["piano", "drums"]}
    [caption] = TemplateCaptioner().describe([Track("t", "", tags=tags)], [np.zeros(30 * RATE, np.float32)])
    assert "calm rock" in caption.overview and "piano and drums" in caption.overview and "pop" in caption.overview
    assert "Rain" not in caption.overview and len(caption.sections) == 1


def test_sections_are_named_so_that_one_can_tell_them_apart():
    labels = ["Verse", "chorus", "verse", "A", "B", "A", ""]
    names = section_names([Section(0, 1, label) for label in labels])
    assert names == [
        "the first verse", "the chorus", "the second verse", "the first part A", "part B", "the second part A", "part 7"
    ]  # fmt: skip
