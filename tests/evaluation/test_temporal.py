"""The benchmark of time in songs: its figures against plain ones, and what knows all, or nothing, in it."""

import functools
import hashlib
import itertools
import json
import shutil
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_processor

from collap.cli import run_command
from collap.evaluation import temporal, temporal_places
from collap.evaluation.temporal import measure_order, open_sectioned_songs
from collap.evaluation.temporal_metrics import (
    Measured,
    boundary_f_measures,
    frame_average_precision,
    order_correct,
    overlaps_at_chosen_level,
    points_inside,
    share_with_interval,
    span_iou,
)
from collap.evaluation.temporal_places import Kept, measure_chosen_level, measure_places
from collap.evaluation.temporal_retrieval import Pool, paper_term, spoiled_descriptions
from collap.evaluation.temporal_songs import (
    CAPTIONS,
    RATE,
    SectionedSong,
    caption_lines,
    changed_once,
    check_sections,
    join_sections,
    of_equal_lengths,
    orders,
    query_lines,
    song_versions,
    true_spans,
)
from collap.models import save_model_folder
from processing import load_audio


class Options:
    """What the command's options would be."""

    audio_column, text_column, sections_column = "audio", "captions", "sections"
    dataset_config = revision = segments = None
    split, songs, pool, seed = "test", None, None, 0

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

    @functools.cache
    def heard_order(model: int, audio: bytes) -> list[int]:
        song, order = songs[model], []
        samples, heard = load_audio(song.audio), load_audio(audio)
        parts = [join_sections(samples, song.sections, [place]) for place in song.own_order]
        while len(heard):
            order += [i for i, part in enumerate(parts) if np.array_equal(heard[: len(part)], part)]
            heard = heard[len(parts[order[-1]]) :]
        return order

    def knowing(model, processor, texts, audio):
        true = [caption_lines(songs[model], heard_order(model, audio), kind) for kind in CAPTIONS]
        return np.array([float(text in true) for text in texts])

    def guessing(model, processor, texts, audio):
        digests = [hashlib.sha256(repr((zlib.crc32(audio), text)).encode()).digest() for text in texts]
        return np.array([digest[0] for digest in digests], np.float64)

    def figures(scorer):
        def score_texts(model, processor, texts, audios):
            return np.stack([scorer(model, processor, texts, audio) for audio in audios])

        monkeypatch.setattr(temporal, "score_texts", score_texts)
        found = Measured()
        for seed, index in itertools.product(range(6), range(len(songs))):
            measure_order(index, None, index, songs[index], found, seed)
        return {name: one["mean"] for name, one in found.figures(0).items()}

    right = figures(knowing)
    assert {value for name, value in right.items() if name.startswith("order")} == {100.0}
    controls = [value for name, value in right.items() if name.startswith("control")]
    assert len(controls) == 4 and all(40 <= value <= 60 for value in controls), controls
    guessed = [value for name, value in figures(guessing).items() if name.startswith("order")]
    assert 40 < np.mean(guessed) < 60


def naive_span(curve: np.ndarray, times: np.ndarray, level: float) -> np.ndarray:
    """The run around the highest point, one step at a time."""
    threshold, first = curve.min() + level * (curve.max() - curve.min()), int(curve.argmax())
    last = first
    while first > 0 and curve[first - 1] >= threshold:
        first -= 1
    while last + 1 < len(curve) and curve[last + 1] >= threshold:
        last += 1
    return np.array([times[first, 0], times[last, 1]])


def test_the_level_of_a_span_is_chosen_on_other_songs():
    generator, levels = np.random.default_rng(2), [0.2, 0.5, 0.8]
    curves = [generator.random((4, 30)) for _ in range(6)]
    times = [np.stack([np.arange(30.0), np.arange(30.0) + 1], axis=1)] * 6
    true = [np.sort(generator.random((4, 2)) * 30, axis=1) for _ in range(6)]
    found, chosen = overlaps_at_chosen_level(curves, times, true, levels)

    def overlaps(song: int, level: float) -> np.ndarray:
        return span_iou(np.array([naive_span(curve, times[song], level) for curve in curves[song]]), true[song])

    for half in (0, 1):
        shares = [np.mean([overlaps(song, level) >= 0.5 for song in range(1 - half, 6, 2)]) for level in levels]
        assert chosen[half] == levels[int(np.argmax(shares))]
        for song in range(half, 6, 2):
            np.testing.assert_allclose(found[song], overlaps(song, chosen[half]))


def test_chance_is_the_mean_of_what_was_given():
    found = Measured()
    found.add("pointing", 0, [True, False], [0.2, 0.4])
    found.add("pointing", 1, [True], 0.6)
    figure = found.figures(0)["pointing"]
    assert figure["chance"] == pytest.approx(40) and figure["mean"] == pytest.approx(200 / 3)


def with_gaps() -> SectionedSong:
    """Two sections with a gap before and between them."""
    sections = [{"label": "a", "start": 1.0, "end": 2.0}, {"label": "b", "start": 4.0, "end": 4.5}]
    return SectionedSong(b"", sections, "first\nsecond")


def test_gaps_are_closed_in_the_audio_and_in_the_true_spans():
    samples = np.arange(5 * RATE, dtype=np.float32)
    joined = join_sections(samples, with_gaps().sections, [0, 1])
    assert true_spans(with_gaps()).tolist() == [[0.0, 1.0], [1.0, 1.5]] and len(joined) == 1.5 * RATE
    for (start, end), section in zip(true_spans(with_gaps()), with_gaps().sections, strict=True):
        part = joined[round(start * RATE) : round(end * RATE)]
        assert np.array_equal(part, samples[round(section["start"] * RATE) : round(section["end"] * RATE)])


def test_sections_that_outlast_the_audio_are_refused():
    with pytest.raises(ValueError, match=r"a section ends at 4.50 s, the audio at 4.00 s"):
        join_sections(np.zeros(4 * RATE, np.float32), with_gaps().sections, [1, 0])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"start": 2.0, "end": 2.0}, "expected a section with start < end"),
        ({"start": float("nan"), "end": 3.0}, "expected a section with start < end"),
        ({"start": None, "end": 3.0}, "expected a section with start < end"),
        ("verse", "expected a section with start < end"),
        ({"start": 0.5, "end": 3.0}, "starts at 0.5 s, before 1 s"),
    ],
)
def test_sections_at_which_no_song_can_be_cut_are_refused(section, message):
    with pytest.raises(ValueError, match=message):
        check_sections([{"start": 0.0, "end": 1.0}, section], "sections")


def test_songs_of_equal_sections_have_no_length_as_a_clue(songs):
    for song in map(of_equal_lengths, songs):
        assert len({round(section["end"] - section["start"], 6) for section in song.sections}) == 1
        spans = [(one.start, one.end) for one in song.composed.sections]
        assert spans == [(section["start"], section["end"]) for section in song.sections]
        backwards = caption_lines(song, song.own_order[::-1], "timed")
        assert f"{round(song.composed.seconds) // 60}:{round(song.composed.seconds) % 60:02d}" in backwards[0]


def test_captions_without_labels_or_changes_say_nothing_of_either(songs):
    for song in songs:
        content = caption_lines(song, song.own_order, "content")
        labels = {section["label"] for section in song.sections}
        words = set(" ".join(content).lower().replace(",", " ").replace(".", " ").split())
        assert not words & labels and not any(word in words for word in ("adds", "drops", "unlike"))
        assert all("part" in line.lower() for line in content) and len(query_lines(song)) == len(content)
        assert not any("adds" in line or "drops" in line for line in query_lines(song))


class Knowing:
    """Stands for a model that hears where sections are: each sentence has a direction of its own, and so has its
    section's every token."""

    config = SimpleNamespace(alignment="monotone", token_seconds=0.5)

    def localize(self, sentences, spans, mask):
        frames = torch.arange(0, float(spans[-1, 1]), 0.5, dtype=torch.float64)  # (W,)
        times = torch.stack([frames, frames + 0.5], dim=1).clamp(max=float(spans[-1, 1]))  # (W, 2)
        middles = times.mean(1)
        curves = torch.stack([(middles >= start) & (middles < end) for start, end in spans]).double()
        found = torch.from_numpy(spans)
        if sentences.ndim == 2:  # the paper's score points at the start, whatever is asked
            scores = torch.linspace(1, 0, len(frames), dtype=torch.float64).repeat(len(spans), 1)
            return SimpleNamespace(scores=scores[None], frame_mask=torch.ones(1, len(frames)) > 0, frame_seconds=times)
        shown = {"curves": curves[None, None], "spans": found[None, None], "path": found[None, None]}
        return SimpleNamespace(**shown, frame_mask=torch.ones(1, len(frames)) > 0, frame_seconds=times)


def test_who_hears_the_sections_places_them_all(songs, monkeypatch):
    for name in ("sentence_embeds", "sentences_of"):
        monkeypatch.setattr(temporal_places, name, lambda model, processor, lines: torch.ones(len(lines), 4))
    found, kept = Measured(), Kept()
    for index, song in enumerate(songs):
        samples = join_sections(load_audio(song.audio), song.sections, song.own_order)
        measure_places(Knowing(), None, index, song, (true_spans(song), None), samples, found, kept, 0)
    measure_chosen_level(kept, found)
    figures = {name: one["mean"] for name, one in found.figures(0).items()}
    own = [name for name in figures if not name.startswith("control")]
    exact = [name for name in own if "mean IoU" not in name]
    assert {figures[name] for name in exact} == {100.0} and len(exact) == 8
    assert all(figures[name] > 85 for name in own)  # frames of 0.5 s do not end where sections of 2 s do
    control = figures["control: pointing, the paper's score"]
    assert control == pytest.approx(100 * np.mean([i == 0 for song in songs for i in song.own_order]))


@pytest.mark.parametrize("find", [temporal_places.by_paper_score, temporal_places.by_sentences])
def test_a_peak_in_the_last_frame_is_within_the_song_though_the_frame_is_not_filled(find):
    curve, times = torch.tensor([[0.1, 0.9]]), torch.tensor([[0.0, 4.0], [4.0, 8.0]])
    span = torch.tensor([[4.0, 5.02]])  # of a last token that the song does not fill
    found = SimpleNamespace(
        **{"curves": curve[None, None], "spans": span[None, None], "path": span[None, None], "scores": curve[None]},
        **{"frame_mask": torch.ones(1, 2) > 0, "frame_seconds": times},
    )
    places = find(SimpleNamespace(localize=lambda *_: found), torch.ones(1, 4), (None, None), 5.0)
    assert points_inside(places.curves[0], places.times, (4.0, 5.0))
    assert places.spans[0].tolist() == [4.0, 5.0]


def test_texts_are_embedded_once_and_ranked_as_one_by_one(songs):
    model, processor = tiny_model(alignment="monotone", alignment_frame_seconds=0.5), None
    processor = tiny_processor(alignment="monotone", alignment_frame_seconds=0.5)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(len(songs), 1, 80, 32, generator=generator), dim=-1)
    mask = torch.ones(1, 80, dtype=torch.bool)
    pool, found = Pool(model, processor, songs, seed=3), Measured()
    for one in tokens:
        pool.add(one, mask)
    pool.measure(found)
    figures, spoiled = found.figures(0), spoiled_descriptions(songs, 3)
    for text, prefix in itertools.product(spoiled, ("", "paper's term, ")):
        ranks = []
        for own, lines in spoiled[text].items():
            with torch.no_grad():
                embeds = model.get_sentence_features(**processor(text=[lines]))
                score = paper_term if prefix else lambda model, *inputs: model.score(*inputs)
                scores = [float(score(model, embeds, one, mask)) for one in tokens]
            ranks.append(sum(other >= scores[own] for other in scores))
        name = f"R@1, {prefix}whole song, {text}"
        assert figures[name]["mean"] == pytest.approx(100 * np.mean([rank == 1 for rank in ranks]))
        assert figures[name]["chance"] == 25
    assert "R@1, first 10 s, whole description" in figures and "R@1, first 10 s, one sentence" not in figures


def test_the_papers_term_is_the_score_of_the_paper():
    generator = torch.Generator().manual_seed(1)
    text, tokens = (
        torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)
        for shape in ((3, 1, 32), (1, 40, 32))
    )
    mask, paper = torch.ones(1, 40, dtype=torch.bool), tiny_model(gamma_init_sum=1.0)
    monotone = tiny_model(alignment="monotone", alignment_frame_seconds=0.5, gamma_init_sum=1.0)
    with torch.no_grad():
        assert torch.equal(paper_term(monotone, text, tokens, mask), paper.score(text[:, 0], tokens, mask))
        assert not torch.equal(monotone.score(text, tokens, mask), paper.score(text[:, 0], tokens, mask))


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
    assert all(0 <= one["chance"] <= 100 and one["queries"] >= one["songs"] for one in results["figures"].values())
    assert (tmp_path / "found" / "temporal.png").stat().st_size > 5000
    assert {"order, neighbours, untimed", "pointing, a sentence alone", "R@1, whole song, one sentence untrue"} <= names
    assert ("mean IoU, path" in names) == (alignment == "monotone")
    if alignment == "paper":  # which cannot tell an order, but for what the edges of segments and frames leak
        assert "boundaries within 3 s, path (F)" not in names
    assert "order, shuffled, untimed" in capsys.readouterr().out


def test_parts_give_the_figures_of_the_whole_and_a_pool_may_be_larger_than_what_is_measured(
    corpus, model_folder, tmp_path
):
    arguments = ["--suite", "temporal", "--model", str(model_folder), "--dataset", str(corpus), "--songs", "2"]
    arguments += ["--text_column", "captions", "--sections_column", "sections"]
    found = {}
    for name, more in {
        "all": [],
        "place": ["--parts", "place"],
        "pool": ["--pool", "4", "--parts", "retrieval", "detail"],
    }.items():
        assert run_command("evaluate", [*arguments, *more, "--output_dir", str(tmp_path / name)]) == 0
        found[name] = json.loads((tmp_path / name / "temporal.json").read_text())
    places = found["place"]["figures"]
    assert places == {name: found["all"]["figures"][name] for name in places} and len(places) > 8
    assert all("R@" in name or "detail" in name for name in found["pool"]["figures"])
    one = found["pool"]["figures"]["R@1, whole song, whole description"]
    assert (one["queries"], one["chance"], found["pool"]["songs"], found["pool"]["pool"]) == (4, 25, 2, 4)
    details = [name for name in found["pool"]["figures"] if "detail" in name]
    assert all(found["pool"]["figures"][name] == found["all"]["figures"][name] for name in details) and details


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


def with_segments(corpus, folder, last: str = "end"):
    """The test split as a stranger's folder: no column of sections, no settings; files of segments instead."""
    shutil.copytree(corpus / "test", folder / "songs" / "test")
    (folder / "segments").mkdir()
    table = folder / "songs" / "test" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for number, row in enumerate(rows):
        mark = "\t" if number % 2 else " "
        lines = [f"{section['start']}{mark}{section['label']}" for section in row["sections"]]
        lines += [f"{row['sections'][-1]['end']}{mark}end"] if last == "end" else []
        (folder / "segments" / f"{row['song_id']}.txt").write_text("\n".join(lines) + "\n")
    kept = ("file_name", "captions")
    table.write_text("".join(json.dumps({name: row[name] for name in kept}) + "\n" for row in rows))
    return Options(folder / "songs", sections_column=None, segments=str(folder / "segments"))


@pytest.mark.parametrize("last", ["end", "none"])
def test_files_of_segments_give_the_same_songs(corpus, songs, tmp_path, last):
    found = open_sectioned_songs(with_segments(corpus, tmp_path, last)).songs
    assert len(found) == len(songs) and all(song.composed is None for song in found)
    for one, other in zip(found, songs, strict=True):
        np.testing.assert_allclose(true_spans(one), true_spans(other), atol=1e-3)
        assert [s["label"] for s in one.sections] == [s["label"] for s in other.sections]
        lines = caption_lines(one, one.own_order[::-1], "untimed")
        assert lines[1:] == caption_lines(one, one.own_order, "untimed")[:0:-1]


def test_songs_that_are_left_out_are_counted_and_the_first_is_named(corpus, tmp_path):
    options = with_segments(corpus, tmp_path)
    names = sorted((tmp_path / "segments").iterdir())
    names[0].write_text("0.0 intro\nverse 8\n")
    names[1].unlink()
    found = open_sectioned_songs(options)
    assert (len(found.songs), found.left_out) == (2, 2)
    assert found.reason.startswith("row 0 (test-0001.flac): ") and "line 2 is 'verse 8'" in found.reason
    names[2].unlink()
    with pytest.raises(ValueError, match=r"1 songs of 'test' have two sections .*row 0 \(test-0001.flac\)"):
        open_sectioned_songs(options)


def test_only_one_source_of_sections_is_taken(corpus, tmp_path):
    with pytest.raises(ValueError, match="--suite temporal needs --sections_column"):
        open_sectioned_songs(Options(corpus, segments=str(tmp_path)))
    with pytest.raises(ValueError, match="no such folder"):
        open_sectioned_songs(Options(corpus, sections_column=None, segments=str(tmp_path / "nowhere")))


def test_the_command_measures_songs_with_files_of_segments(corpus, model_folder, tmp_path):
    options = with_segments(corpus, tmp_path)
    arguments = ["--model", str(model_folder), "--dataset", options.dataset, "--segments", options.segments]
    arguments += ["--text_column", "captions", "--songs", "2", "--output_dir", str(tmp_path / "found")]
    assert run_command("evaluate", ["--suite", "temporal", *arguments]) == 0
    figures = json.loads((tmp_path / "found" / "temporal.json").read_text())["figures"]
    names = ("order, neighbours, untimed", "mean IoU, a sentence alone", "R@1, whole song, overview alone")
    assert all(name in figures for name in names)
    assert not any("detail" in name or "content" in name for name in figures)  # what only a composed song tells


def test_a_song_whose_sections_outlast_it_is_named(corpus, model_folder, tmp_path, capsys):
    options = with_segments(corpus, tmp_path)
    path = tmp_path / "segments" / "test-0001.txt"
    *lines, _ = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "500 end"]) + "\n")
    arguments = ["--model", str(model_folder), "--dataset", options.dataset, "--segments", options.segments]
    arguments += ["--text_column", "captions", "--output_dir", str(tmp_path / "found")]
    assert run_command("evaluate", ["--suite", "temporal", *arguments]) == 1
    assert "error: row 0: a section ends at 500.00 s, the audio at" in capsys.readouterr().err
    assert not (tmp_path / "found").exists()
