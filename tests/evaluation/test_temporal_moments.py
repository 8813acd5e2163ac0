"""Moments that are asked for: figures against plain ones, who knows all and who nothing, and the real layouts of
CASTELLA, MusTBench and HarmonixSet, by the command."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_processor

from collap.cli import run_command
from collap.data.records import FIRST, LAST
from collap.evaluation import temporal_moments
from collap.evaluation.temporal_metrics import covered_seconds, window_iou
from collap.evaluation.temporal_moments import (
    ALONE,
    RATE,
    MomentMeasure,
    Query,
    measure_moments,
    point_chance,
    point_of,
    read_queries,
    window_around,
    within,
)
from collap.evaluation.temporal_places import Places
from collap.models import save_model_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*recordings of .* have no audio")


def drawn_windows(generator, seconds: int = 60) -> list[np.ndarray]:
    """Windows (K, 2) of some queries, in whole seconds, which may overlap and come in any order."""
    return [
        np.sort(generator.integers(0, seconds, (generator.integers(1, 5), 2)), axis=1) + np.array([0, 1])
        for _ in range(6)
    ]


def test_an_overlap_is_with_the_best_window_and_covered_seconds_count_once():
    generator = np.random.default_rng(0)
    for _ in range(20):
        windows, found = drawn_windows(generator), np.sort(generator.integers(0, 60, (6, 2)), axis=1) + np.array([0, 1])
        for value, span, own in zip(window_iou(found, windows), found, windows, strict=True):
            seconds = [set(range(*one)) for one in own.tolist()]
            mine = set(range(*span.tolist()))
            assert value == pytest.approx(max(len(mine & one) / len(mine | one) for one in seconds))
            assert covered_seconds(own) == len(set.union(*seconds))


def test_a_point_is_where_a_curve_first_or_last_stands_high():
    times = np.stack([np.arange(8.0), np.arange(8.0) + 1], axis=1)
    curve = np.array([0.0, 0.79, 0.8, 0.2, 1.0, 0.9, 0.5, 0.1])
    assert point_of(curve, times, FIRST) == 2.0 and point_of(curve, times, LAST) == 6.0
    assert point_of(curve, times, FIRST, 0.3) == 1.0 and point_of(curve, times, LAST, 0.3) == 7.0


@pytest.mark.parametrize("point", [0.0, 2.0, 30.0, 59.0])
def test_the_chance_of_a_point_is_that_of_random_times(point):
    times = np.random.default_rng(0).uniform(0, 60, 200_000)
    assert point_chance(point, 60.0) == pytest.approx((abs(times - point) <= 3).mean(), abs=0.003)


def test_queries_gather_their_windows_and_end_with_the_recording():
    sections = [
        {"label": "chorus", "start": 4.0, "end": 6.0},
        {"label": "moment", "start": 0.0, "end": 3.0, "text": " a  bell "},
        {"label": "chorus", "start": 8.0, "end": 99.0, "text": None},
        {"label": FIRST, "start": 5.0, "end": 5.0, "text": "a bell"},
        {"label": LAST, "start": 50.0, "end": 50.0, "text": "a bell"},
        {"label": "moment", "start": 50.0, "end": 51.0, "text": "late"},
    ]
    queries = {(query.text, query.kind): query.windows.tolist() for query in within(read_queries(sections), 10.0)}
    assert queries == {
        ("chorus", "span"): [[4.0, 6.0], [8.0, 10.0]],
        ("a bell", "span"): [[0.0, 3.0]],
        ("a bell", FIRST): [[5.0, 5.0]],
    }
    for bad, message in {
        "point": {"label": "verse", "start": 2.0, "end": 2.0},
        "start < end": {"label": "verse", "start": 3.0, "end": 2.0},
        "seconds": {"label": "verse", "start": None, "end": None},
    }.items():
        with pytest.raises(ValueError, match=bad):
            read_queries([message])


def drawn_recordings(generator, count: int) -> list[tuple[list[Query], np.ndarray]]:
    recordings = []
    for _ in range(count):
        spans = [Query(f"query {i}", "span", one.astype(float)) for i, one in enumerate(drawn_windows(generator))]
        points = [Query("first", FIRST, np.full((1, 2), 20.0)), Query("last", LAST, np.full((1, 2), 40.0))]
        recordings.append((spans + points, generator.standard_normal(60 * RATE).astype(np.float32)))
    return recordings


def knowing(queries: list[Query]) -> Places:
    """Curves that are 1 in the first window of each query, and between the points that are asked for."""
    times = np.stack([np.arange(60.0), np.arange(60.0) + 1], axis=1)
    windows = [np.array([20, 40.0]) if query.kind != "span" else query.windows[0] for query in queries]
    curves = np.stack([(times[:, 0] >= start) & (times[:, 1] <= end) for start, end in windows]).astype(float)
    return Places(curves, times, np.stack(windows))


def test_who_knows_the_moments_finds_them_all_and_guesses_are_at_chance():
    measure, generator = MomentMeasure(0), np.random.default_rng(1)
    for index, (queries, samples) in enumerate(drawn_recordings(generator, 30)):
        measure.add(index, queries, {ALONE: knowing(queries)}, samples)
    levels = measure.finish()
    figures = measure.found.figures(0)
    own = {name: one["mean"] for name, one in figures.items() if ALONE in name}
    assert set(own.values()) == {100.0} and len(own) == 9 and set(levels) == {ALONE}
    for name in (
        "pointing at random",
        "IoU at least 0.5, at random",
        "mean IoU, at random",
        f"{FIRST} within 3 s, at random",
    ):
        one = figures[f"control: {name}"]
        assert one["low"] - 2 < one["chance"] < one["high"] + 2, name
    assert figures[f"control: {LAST} within 3 s, at the middle"]["mean"] == 0  # 30 s, and 40 s are asked for
    whole = figures["control: mean IoU, the whole recording"]
    plain = [
        max((end - start) / 60 for start, end in query.windows)
        for queries, _ in drawn_recordings(np.random.default_rng(1), 30)
        for query in queries
        if query.kind == "span"
    ]
    assert whole["mean"] == pytest.approx(100 * np.mean(plain)) and whole["queries"] == 180 and whole["songs"] == 30


def test_windows_around_a_point_stay_in_the_recording():
    assert window_around(1.0, 4.0, 10.0).tolist() == [0, 4] and window_around(9.5, 4.0, 10.0).tolist() == [6, 10]
    assert window_around(5.0, 40.0, 10.0).tolist() == [0, 10]


def test_queries_after_the_end_of_all_recordings_are_an_error(monkeypatch):
    late = SimpleNamespace(audio=b"", name="row 0 (a.wav)", queries=[Query("x", "span", np.array([[90.0, 95.0]]))])
    monkeypatch.setattr(temporal_moments, "load_audio", lambda audio, rate: np.zeros(RATE, np.float32))
    with pytest.raises(ValueError, match="all 1 queries are heard after the end of their recording"):
        measure_moments(None, None, [late], 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of each alignment."""
    folder = tmp_path_factory.mktemp("moments")
    for alignment in ("paper", "monotone"):
        torch.manual_seed(0)
        settings = {
            "alignment": alignment,
            "alignment_frame_seconds": 0.5,
            "kernel_seconds": 1.0,
            "stride_seconds": 0.5,
        }
        save_model_folder(tiny_model(**settings), tiny_processor(**settings), folder / alignment)
    return folder


def measured(folders, place, dataset: str, alignment: str, *more: str) -> dict:
    arguments = ["--suite", "temporal", "--parts", "moments", "--model", str(folders / alignment)]
    arguments += ["--dataset", dataset, "--split", "all", "--output_dir", str(place), *more]
    assert run_command("evaluate", arguments) == 0
    return json.loads((place / "temporal.json").read_text())


def test_castella_by_the_command(real, folders, tmp_path, capsys):
    column = ("--sections_column", "sections")
    source = f"castella:{real['castella']}"
    found = measured(folders, tmp_path / "a", source, "monotone", "--dataset_config", "castella", *column)
    assert (found["songs"], found["queries_outside"], found["parts"]) == (2, 1, ["moments"])
    assert "1 queries are heard after the end" in capsys.readouterr().err
    figures = found["figures"]
    names = {
        "pointing, a query alone",
        "IoU at least 0.7, a query alone",
        "mean IoU, a query alone, level of other songs",
    }
    assert names <= set(figures) and "control: pointing, the paper's score" in figures
    assert all(one["queries"] == 3 and one["songs"] == 2 for one in figures.values())
    # Of 10 s: 4 in one window, 1 + 2 + 1 in three, and in the other recording 4 + 1 in two of one text.
    assert figures["pointing, a query alone"]["chance"] == pytest.approx(100 * (4 + 4 + 5) / 3 / 10)
    assert (tmp_path / "a" / "temporal.png").stat().st_size > 5000
    both = measured(folders, tmp_path / "b", source, "paper", *column)
    assert both["songs"] == 3 and not any("the paper's score" in name for name in both["figures"])


def test_mustbench_and_the_segments_of_harmonixset_by_the_same_code(real, folders, tmp_path):
    found = measured(
        folders, tmp_path / "a", f"mustbench:{real['mustbench']}", "monotone", "--sections_column", "sections"
    )["figures"]
    points = {name: one for name, one in found.items() if "within 3 s" in name}
    assert len(points) == 2 * (2 + 3) and all(one["queries"] == 1 for one in points.values())
    assert points[f"{FIRST} within 3 s, a query alone"]["chance"] == pytest.approx(100 * 6 / 11, abs=0.2)
    assert found["pointing, a query alone"]["queries"] == 2
    segments = str(real["harmonixset"] / "dataset" / "segments")
    source = f"harmonixset:{real['harmonixset']}"
    column = measured(folders, tmp_path / "b", source, "paper", "--sections_column", "sections", "--songs", "1")
    files = measured(folders, tmp_path / "c", source, "paper", "--segments", segments, "--songs", "1")
    assert column["figures"]["pointing, a query alone"] == files["figures"]["pointing, a query alone"]
    assert column["figures"]["pointing, a query alone"]["queries"] == 4  # intro, verse, chorus, outro


def test_what_cannot_be_measured_is_one_line(real, folders, tmp_path, capsys):
    arguments = ["--suite", "temporal", "--model", str(folders / "paper"), "--output_dir", str(tmp_path / "found")]
    castella = ["--dataset", f"castella:{real['castella']}", "--split", "test", "--sections_column", "sections"]
    for more, message in {
        (*castella, "--parts", "moments", "place"): "--parts moments is measured alone",
        (*castella,): "are measured by --parts moments",
        ("--dataset", f"vctk:{real['vctk']}", "--parts", "moments", "--sections_column", "sections"): (
            "no recording of 'test' has sections; row 0"
        ),
        ("--dataset", f"vctk:{real['vctk']}", "--parts", "moments"): "needs --sections_column",
    }.items():
        assert run_command("evaluate", [*arguments, *more]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "found").exists()
