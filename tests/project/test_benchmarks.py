"""The parts of the benchmarks run, at sizes of seconds, and report ratios; their values are not checked."""

import json
import math
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import tiny_config, tiny_text_config

from benchmarks import ablation, train_step
from benchmarks.encode import take_turns
from benchmarks.export import measure as measure_export
from benchmarks.gathering import measure_gathering
from benchmarks.gpu import utilisation
from benchmarks.index_speed import measure_ranking, measure_speed
from benchmarks.loader import measure_loader, measure_wait_share
from benchmarks.padding import measure_padding
from benchmarks.search import draw_growth, measure_cold_start, measure_growth
from benchmarks.search_matches import said_not_to_match
from benchmarks.search_recall import index_recall, recombined_tracks, stored_tracks, synthetic_recall
from benchmarks.sentences import measure as measure_sentences
from benchmarks.steps import build_bench, measure_caching, measure_caching_memory, measure_plan, small_config
from benchmarks.stored_tokens import build_demo, measure_song, measure_stored_tokens
from collap.cli import INDEX_DTYPES
from collap.search.calibration import Calibration
from collap.search.index import TrackIndex
from collap.search.queries import text_queries
from collap.search.space import load_searched
from collap.training.settings import parse_settings
from modeling_collap.configuration_collap import check_settings

NAMES = tuple("abcdefghijklmnopqrst")
TINY_SENTENCES = (2, 3, 5)  # texts, sentences, tokens
TINY = {"song_seconds": 2.0, "width": 64, "layers": 1, "segment_seconds": 1.0}


def numbers(report) -> list[float]:
    if isinstance(report, dict):
        return [number for value in report.values() for number in numbers(value)]
    return [number for value in report for number in numbers(value)] if isinstance(report, list) else [report]


def check(report: dict, *ratios: str):
    """The report is JSON of finite numbers, none negative, and has these entries, not empty."""
    assert numbers(report)
    assert all(math.isfinite(number) and number >= 0 for number in numbers(json.loads(json.dumps(report))))
    for name in ratios:
        assert numbers(report[name]), name


@pytest.fixture(scope="module")
def bench():
    return build_bench(full=False, **TINY)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return build_demo(tmp_path_factory.mktemp("demo"), songs=4, min_seconds=12.0, max_seconds=20.0, batch_size=2)


def test_time_is_that_of_the_clock_without_the_warm_up():
    asleep = {"asleep": lambda: time.sleep(0.05)}
    passed = take_turns(asleep, 2, "cpu")["asleep"]
    of_processor = take_turns(asleep, 2, "cpu", clock=time.process_time)["asleep"]
    assert len(passed) == len(of_processor) == 2
    assert min(passed) >= 0.05 and max(of_processor) < 0.025


def test_gradient_caching(bench):
    report = measure_caching(bench, songs=2, micro_batch_size=1, repeats=1)
    check(report, "time_over", "flop_over")
    assert report["flop_over"]["cached / plain"] > 1.1  # one more forward pass


def test_memory_of_gradient_caching(bench):
    report = measure_caching_memory(bench, songs=2, micro_batch_size=1)
    check(report, "peak")
    peak = report["peak"]
    assert peak["cached"]["growth"] < peak["plain"]["growth"]
    assert peak["checkpointed and cached"]["mb"][1] < peak["plain"]["mb"][1]


def test_plan_against_measurement():
    report = measure_plan(build_bench(full=False, **TINY), songs=2, micro_batch_size=1)
    check(report, "measured")
    assert all(entry["flop_over_plan"] == pytest.approx(1, abs=0.01) for entry in report["measured"].values())


def test_gathering():
    report = measure_gathering(songs=2, repeats=1, **TINY)
    check(report, "gathering_over_no_gathering", "gathering_over_nothing_travels", "gathering_alone_share_of_step")
    # Texts 50 x 512 and scores 50 x 50 in float32; tokens 50 x 1870 x 512.
    assert report["paper_mb"]["texts"] == pytest.approx(0.1024, abs=1e-3)
    assert report["paper_mb"]["scores"] == pytest.approx(0.01, abs=1e-3)
    assert report["paper_mb"]["audio_tokens"] == pytest.approx(50 * 1870 * 512 * 4 / 1e6, rel=1e-3)


def test_padding():
    report = measure_padding(songs=512, batch_sizes=(64,))
    check(report, "batch 64")
    assert report["batch 64"]["by length"]["padding_share"] < report["batch 64"]["random"]["padding_share"]
    assert report["batch 64"]["by length"]["idle_share"] < report["batch 64"]["random"]["idle_share"]


def test_loader(demo):
    config = small_config(width=64, layers=1, segment_seconds=10.0)
    report = measure_loader(demo, config, songs=2, seconds=4.0)
    check(report, "songs_per_second", "needed")
    assert len(report["songs_per_second"]) == 2 * 3 * 3  # formats, what is made of a song, workers


def test_wait_share(demo):
    report = measure_wait_share(demo)
    check(report, "0 workers", "1 workers", "2 workers")
    assert all(0 < entry["data_wait_share"] < 1 for entry in report.values())


def test_stored_tokens(demo):
    report = measure_stored_tokens(demo, repeats=1)
    check(report, "epoch_seconds", "audio_over")
    assert report["songs"] == 4


def test_stored_tokens_of_a_song():
    config = small_config(width=64, layers=1, segment_seconds=1.0)
    check(measure_song(config, repeats=1, song_seconds=2.0, longer=4.0), "seconds", "times_faster")


def test_utilisation_is_that_of_the_model_without_what_is_computed_twice(bench):
    planned = bench.plan(4, 2, checkpointing=True)
    seconds = {"step": [2.0], "matrix products": [0.5]}
    report = utilisation(bench, seconds, planned, songs=4, peak=1e-3)
    check(report, "model_over_matrix_products", "hours_of_audio_per_second")
    assert report["model_flop_utilisation"] == pytest.approx(planned.model_flops_per_step / 2 / 1e9, abs=1e-3)
    assert report["hours_of_audio_per_second"] == pytest.approx(4 * 2 / 3600 / 2, abs=1e-4)


@pytest.mark.parametrize(("arguments", "reason"), [(["--only", "cachin"], "cachin"), (["--full"], "GPU")])
def test_what_cannot_be_measured_is_refused(arguments, reason, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        train_step.main(arguments)
    assert reason in capsys.readouterr().err


def test_export():
    (report,) = measure_export(tiny_config(), ["text"], repeats=1)
    assert report.pop("graph") == "text"
    check(report, "seconds", "over_model", "megabytes")


@pytest.mark.parametrize("name", ["ablation.yaml", "ablation_more.yaml"])
@pytest.mark.parametrize("shared", [["ablation_small.yaml"], ["structure_gpt2.yaml", "ablation_crops.yaml"]])
def test_rows_of_the_ablation_are_settings_of_a_run(name, shared, tmp_path):
    configs = Path(ablation.ROOT) / "configs"
    base = [*(str(configs / one) for one in shared), "--rows_file", str(configs / name), "--runs", str(tmp_path)]
    base += ["--dataset", "data/ablation_songs"]
    found, digests = ablation.parse(base), set()
    rows = ablation.read_rows(found.options.rows_file, None)
    for row in rows:
        command = found.train_command(row, 2)
        settings = parse_settings([*command[2:-2], "--music", "beats"], "")
        check_settings(settings.model.model_config)
        assert settings.optimisation.seed == 2 and settings.data.dataset == "data/ablation_songs"
        own = {**settings.flat(), "output_dir": None}
        digests.add(json.dumps(own, sort_keys=True))
        for part in found.evaluate_commands(row, 2).values():
            assert part[part.index("--model") + 1] == str(Path(settings.output.output_dir) / "last")
    assert len(digests) == len(rows) > 3  # no row is another one


def test_a_row_is_like_another_and_the_table_has_medians(tmp_path):
    path = tmp_path / "rows.yaml"
    path.write_text("a: {epochs: 3, model_config: {x: 1}}\nb: {like: a, seeds: 3, model_config: {y: 2}}\n")
    rows = ablation.read_rows(path, None)
    assert rows[1].settings == {"epochs": 3, "model_config": {"x": 1, "y": 2}} and rows[1].seeds == 3
    assert [row.name for row in ablation.read_rows(path, ["b"])] == ["b"]
    with pytest.raises(ValueError, match="no row 'c'"):
        ablation.read_rows(path, ["c"])
    path.write_text("b: {like: a}\n")
    with pytest.raises(ValueError, match="'b' is like 'a', which is no row above it"):
        ablation.read_rows(path, None)

    def run(order, seconds):
        return {"measured": {"order, shuffled, untimed": order}, "seconds": seconds}

    found = {"a": [run(50.0, 10.0)], "b": [run(90.0, 10.0), run(98.0, 30.0), run(97.0, 20.0)]}
    lines = ablation.table(rows, found, "measured")
    assert lines[0] == "| | seeds | order | CPU s |"
    assert lines[2:] == ["| a | 1 | 50.0 | 10 |", "| b | 3 | 97.0 (90.0 to 98.0) | 20 (10 to 30) |"]


def test_a_run_that_fails_names_its_log(tmp_path):
    with pytest.raises(RuntimeError, match="says why"):
        ablation.run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "a.log", 1)
    assert ablation.run([sys.executable, "-c", "print('fine')"], tmp_path / "b.log", 1) > 0
    assert (tmp_path / "b.log").read_text() == "fine\n"


def test_sentences_from_one_pass_are_timed_beside_those_of_many():
    config = tiny_text_config("roberta")
    found = measure_sentences(config, TINY_SENTENCES, torch.device("cpu"), repeats=1)
    assert set(found) == {"separate", "joint"} and all(min(seconds) > 0 for seconds in found.values())


def test_searching_is_timed_and_its_recall_measured(tmp_path):
    rows = [measure_growth(size, width=32, tokens=20, repeats=2, batch=3) for size in (50, 2500)]
    for row in rows:
        check(row, "ratio", "MB", "LanceDB")
        assert row["recall@10"]["search"] >= 0.9 <= row["recall@10"]["LanceDB, then exact"]
    check(measure_cold_start(300, width=32))
    draw_growth(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5000
    report = synthetic_recall(60, many=0.5, queries=40, width=32, tokens=120)
    check(report, "paper, temperature 1", "sentences in order, temperature 0.05", "sentences in any order")
    assert report["paper, temperature 1"]["recall@10 fixed"]["value"] >= 0.99


def test_recall_of_an_index_and_of_its_songs_recombined(indexed):
    texts = [f"A song of {name}. Then {other}." for name in ("drums", "piano") for other in NAMES]
    for size, tracks in ((None, 12), (30, 30)):
        report = index_recall(indexed, texts, size)
        check(report, "paper, temperature 1")
        assert report["tracks"] == tracks and report["paper, temperature 0.05"]["recall@10 fixed"]["value"] == 1.0
    index = TrackIndex.open(indexed)
    stored = {tuple(token) for track in stored_tracks(index) for token in track.tolist()}
    lengths = [len(track) for track in stored_tracks(index)]
    for track in recombined_tracks(index, 5):
        assert min(lengths) <= len(track) <= 2 * max(lengths) and {*map(tuple, track.tolist())} <= stored


def test_what_is_said_not_to_match_is_what_a_search_says(indexed):
    index = TrackIndex.open(indexed)
    texts = ["slow piano", "qx vbn zzt", "the train leaves"]
    queries = text_queries(index.embedder, index.function, texts)
    for best in (-1e6, 1e6):
        index.calibration = Calibration(10, 0.05, None, 12, [best])
        for text, query in zip(texts, queries, strict=True):
            assert said_not_to_match(index, query) == (index.search(text).matches_well is False) == (best > 0)


def test_indexing_is_timed_and_its_rankings_compared(corpus, model_folder):
    embedders = {dtype: load_searched(str(model_folder), dtype=dtype) for dtype in INDEX_DTYPES}
    song = next((corpus / "test").glob("*.flac"))
    report = measure_speed(embedders, song, soundfile.info(song).duration, repeats=1)
    check(report, "float32", "int8, every second segment", "shares")
    ranking = measure_ranking(str(model_folder), corpus / "test", most=3)
    assert ranking["float32"]["tau"] == {"mean": 1.0, "lowest": 1.0} and ranking["float32"]["same first"]["mean"] == 100
    assert set(ranking) == {*report} - {"shares"}
