"""The benchmark of time in songs: its figures against plain ones, and what knows all, or nothing, in it."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_processor

from collap.cli import run_command
from collap.evaluation import temporal
from collap.evaluation.temporal import measure_order, open_sectioned_songs
from collap.evaluation.temporal_metrics import (
    Measured,
    boundary_f_measures,
    frame_average_precision,
    order_correct,
    points_inside,
    share_with_interval,
    span_iou,
)
from collap.evaluation.temporal_songs import (
    CAPTIONS,
    SectionedSong,
    caption_lines,
    changed_once,
    join_sections,
    orders,
    song_versions,
)
from collap.models import save_model_folder
from processing import load_audio


class Options:
    """What the command's options would be."""

    audio_column, text_column, sections_column = "audio", "captions", "sections"
    dataset_config = revision = segments = None
    split, songs, seed = "test", None, 0

    def __init__(self, dataset, **others):
        self.dataset = str(dataset)
        self.__dict__.update(others)


@pytest.fixture(scope="module")
def songs(corpus):
    return open_sectioned_songs(Options(corpus)).songs


def test_ties_of_order_count_half():
    assert order_correct([1.0, 2.0, 3.0], [0.0, 2.0, 4.0]).tolist() == [1.0, 0.5, 0.0]


def test_overlap_of_spans_is_that_of_their_hundredths():
    generator = np.random.default_rng(0)
    edges = np.sort(generator.integers(0, 100, (50, 2, 2)), axis=-1) + np.array([0, 1])
    for found, true in edges:
        one, other = set(range(*found)), set(range(*true))
        assert span_iou(found[None], true[None])[0] == pytest.approx(len(one & other) / len(one | other))


def test_average_precision_is_the_mean_over_inside_frames():
    generator = np.random.default_rng(1)
    for _ in range(20):
        curve, inside = generator.random(12), generator.random(12) < 0.4
        inside[0] = True
        precisions = [inside[curve >= curve[w]].mean() for w in np.flatnonzero(inside)]
        assert frame_average_precision(curve, inside) == pytest.approx(np.mean(precisions))


def test_pointing_asks_for_the_middle_of_the_highest_frame():
    times = np.array([[0.0, 2.0], [2.0, 4.0], [4.0, 6.0]])
    curve = np.array([0.1, 0.9, 0.3])
    assert points_inside(curve, times, (2.5, 3.5)) and not points_inside(curve, times, (3.0001, 6.0))


def test_boundaries_are_matched_within_a_window():
    assert boundary_f_measures([10.0, 20.0], [10.4, 22.0], 30.0) == [0.5, 1.0]
    assert boundary_f_measures([10.0], [10.0, 20.0], 30.0)[1] == pytest.approx(2 / 3)


def test_intervals_are_by_song():
    few = share_with_interval([1] * 50 + [0] * 50, [0] * 50 + [1] * 50)
    many = share_with_interval([1, 0] * 50, list(range(100)))
    assert few["mean"] == many["mean"] == 50 and few["songs"] == 2 and few["queries"] == 100
    assert few["high"] - few["low"] == 100 and many["high"] - many["low"] < 25


def test_songs_are_cut_and_joined_with_the_descriptions_that_are_then_true(songs):
    for index, song in enumerate(songs):
        versions = song_versions(song, np.random.default_rng(index))
        samples = load_audio(song.audio)
        own = versions["original"][0]
        assert np.array_equal(load_audio(versions["original"][1]), join_sections(samples, song.sections, own))
        assert versions["reversed"][0] == own[::-1]
        for order, audio in versions.values():
            assert sorted(order) == own
            found, place = load_audio(audio), 0
            for section in (song.sections[i] for i in order):
                first, last = (round(section[edge] * 16_000) for edge in ("start", "end"))
                assert np.array_equal(found[place : place + last - first], samples[first:last])
                place += last - first
            for kind in CAPTIONS:
                lines = caption_lines(song, order, kind)
                assert len(lines) == len(own) + (kind != "content")
                assert any("0:0" in line for line in lines) == (kind == "timed")


def test_captions_of_songs_that_were_not_rendered_move_with_their_sections():
    sections = [{"start": float(i), "end": i + 1.0, "label": "x"} for i in range(3)]
    song = SectionedSong(b"", sections, "all of it\nfirst at 0:00\nsecond\nthird")
    assert caption_lines(song, [2, 0, 1], "timed") == ["all of it", "third", "first at 0:00", "second"]
    assert caption_lines(song, [2, 0, 1], "untimed") == ["all of it", "third", "first", "second"]


def test_orders_are_never_the_own_one_and_one_section_is_changed(songs):
    generator = np.random.default_rng(0)
    for count, _ in itertools.product((2, 3, 6), range(20)):
        drawn = orders(count, generator)
        assert all(sorted(order) == list(range(count)) != order for order in drawn.values())
        assert sum(i != one for i, one in enumerate(drawn["neighbours"])) == 2
    for song in songs:
        for kind in ("instruments", "dynamics"):
            pairs = zip(song.composed.sections, changed_once(song.composed, kind, generator).sections, strict=True)
            ((before, after),) = [pair for pair in pairs if pair[0] != pair[1]]
            assert getattr(before, kind) != getattr(after, kind)
        fewer = changed_once(song.composed, "presence", generator)
        assert len(fewer.sections) == len(song.sections) - 1 and fewer.seconds == fewer.sections[-1].end


def test_who_knows_the_truth_is_always_right_and_who_knows_nothing_is_not(songs, monkeypatch):
    monkeypatch.setattr(temporal, "embed", lambda model, processor, audio: audio)

    def knowing(model, processor, texts, audio):
        song = songs[model]
        samples, heard = load_audio(song.audio), load_audio(audio)
        for order in itertools.permutations(range(len(song.sections))):
            if np.array_equal(join_sections(samples, song.sections, list(order)), heard):
                true = [caption_lines(song, list(order), kind) for kind in CAPTIONS]
                return np.array([float(text in true) for text in texts])
        raise AssertionError("a version that is no order of the sections")

    def guessing(model, processor, texts, audio):
        digests = [hashlib.sha256(audio + repr((model, text)).encode()).digest() for text in texts]
        return np.array([digest[0] for digest in digests], np.float64)

    def figures(scorer):
        monkeypatch.setattr(temporal, "score_texts", scorer)
        found = Measured()
        for seed, index in itertools.product(range(6 if scorer is knowing else 12), range(len(songs))):
            measure_order(index, None, index, songs[index], found, seed)
        return {name: one["mean"] for name, one in found.figures(0).items()}

    right = figures(knowing)
    assert {value for name, value in right.items() if name.startswith("order")} == {100.0}
    controls = [value for name, value in right.items() if name.startswith("control")]
    assert len(controls) == 4 and all(40 <= value <= 60 for value in controls), controls
    guessed = [value for name, value in figures(guessing).items() if name.startswith("order")]
    assert 40 < np.mean(guessed) < 60


@pytest.mark.parametrize("alignment", ["paper", "monotone"])
def test_the_command_measures_a_model(corpus, tmp_path, alignment, capsys):
    torch.manual_seed(0)
    settings = {"alignment": alignment, "alignment_frame_seconds": 0.5, "kernel_seconds": 1.0, "stride_seconds": 0.5}
    save_model_folder(tiny_model(**settings), tiny_processor(**settings), tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--dataset", str(corpus), "--split", "test", "--songs", "3"]
    arguments += ["--text_column", "captions", "--sections_column", "sections", "--output_dir", str(tmp_path / "found")]
    assert run_command("evaluate", ["--suite", "temporal", *arguments]) == 0
    results = json.loads((tmp_path / "found" / "temporal.json").read_text())
    names = set(results["figures"])
    assert results["songs"] == 3 and all(0 <= one["mean"] <= 100 for one in results["figures"].values())
    assert {"order, neighbours, untimed", "pointing, a sentence alone", "R@1, whole song, one sentence untrue"} <= names
    assert ("mean IoU, path" in names) == (alignment == "monotone")
    if alignment == "paper":  # which cannot tell an order, but for what the edges of segments and frames leak
        assert "boundaries within 3 s, path (F)" not in names
    assert "order, shuffled, untimed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sections_column": None}, "--suite temporal needs --sections_column"),
        ({"sections_column": "parts"}, "no column 'parts'"),
        ({"sections_column": "sections", "text_column": "song_id"}, None),
    ],
)
def test_data_sets_that_do_not_fit_are_named(corpus, change, message):
    if message is None:  # rendered songs are described anew, whatever their text
        assert len(open_sectioned_songs(Options(corpus, **change)).songs) == 4
        return
    with pytest.raises(ValueError, match=message):
        open_sectioned_songs(Options(corpus, **change))
