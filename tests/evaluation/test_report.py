"""The report files of a retrieval evaluation and the plot of a song's score over time, read back from disk."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from collap.evaluation.metrics import ranks_of_correct, retrieval_metrics
from collap.evaluation.report import plot_localization, to_markdown, write_report

NUM_SONGS, TEXTS_PER_SONG = 30, 2


def both_directions(scores: np.ndarray) -> dict:
    """Figures of an (audios, texts) score matrix with two texts per song."""
    song_of_text = np.repeat(np.arange(NUM_SONGS), TEXTS_PER_SONG)
    text_ranks = ranks_of_correct(scores.T, song_of_text[:, None])
    audio_ranks = ranks_of_correct(scores, np.arange(NUM_SONGS * TEXTS_PER_SONG).reshape(NUM_SONGS, TEXTS_PER_SONG))
    return {
        "text_to_audio": retrieval_metrics(text_ranks, NUM_SONGS, song_of_text, num_bootstrap=100),
        "audio_to_text": retrieval_metrics(audio_ranks, scores.shape[1], range(NUM_SONGS), num_bootstrap=100),
    }


@pytest.fixture
def results() -> dict:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(NUM_SONGS, NUM_SONGS * TEXTS_PER_SONG))
    scores[np.repeat(np.arange(NUM_SONGS), TEXTS_PER_SONG), np.arange(scores.shape[1])] += 2
    return {
        "model": "some/model",
        "dataset": "songs",
        "split": "test",
        "text_column": "caption",
        "num_audios": np.int64(NUM_SONGS),
        "num_texts": NUM_SONGS * TEXTS_PER_SONG,
        "command": "python evaluate_retrieval.py --model some/model --dataset songs",
        "seed": 7,
        "scores": {"collap": both_directions(scores), "mean|pooled": both_directions(scores / 2 + 1)},
        "precision": np.float32(0.5),
        "folder": Path("data/songs"),
        "lengths": np.array([1.5, 2.5]),
    }


def table_rows(markdown: str, heading: str) -> list[list[str]]:
    """Cells of the table under a heading, the header row first."""
    section = markdown.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize(
    ("direction", "heading"), [("text_to_audio", "Text to audio"), ("audio_to_text", "Audio to text")]
)
def test_markdown_tables_hold_every_figure_with_interval_and_chance(results, direction, heading):
    header, *rows = table_rows(to_markdown(results), heading)
    recalls = ["R@1", "R@5", "R@10", "R@20"]
    assert header == ["score", *recalls, "median rank", "mAP", "MRR", "nDCG@10"]
    assert [row[0] for row in rows] == ["collap", "mean\\|pooled", "chance"]
    figures = results["scores"]["collap"][direction]
    names = [*recalls, "median_rank", "mAP", "MRR", "nDCG@10"]
    for name, cell, chance in zip(names, rows[0][1:], rows[2][1:], strict=True):
        value, low, high = map(float, re.fullmatch(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", cell).groups())
        expected = [figures[name][key] for key in ("value", "low", "high", "chance")]
        assert [value, low, high, float(chance)] == pytest.approx(expected, abs=0.05001), name


def test_markdown_names_sizes_command_seed_and_further_keys(results):
    markdown = to_markdown(results)
    assert "60 texts searched in a pool of 30 songs, of 30 songs." in markdown
    assert "30 songs searched in a pool of 60 texts, of 30 songs." in markdown
    assert "95 % bootstrap interval by song (100 resamples)" in markdown
    assert f"```bash\n{results['command']}\n```" in markdown
    for line in ("- split: test", "- text column: caption", "- audios: 30", "- seed: 7", "- precision: 0.5"):
        assert f"\n{line}\n" in markdown


def test_small_chance_levels_do_not_print_as_zero(results):
    for kind in results["scores"].values():
        kind["text_to_audio"]["R@1"]["chance"] = 0.01
    assert table_rows(to_markdown(results), "Text to audio")[-1][1] == "0.01"


def test_interval_without_width_is_explained(results):
    for kind in results["scores"].values():
        for figures in kind.values():
            for name in ("R@1", "R@5", "R@10", "R@20", "median_rank", "mAP", "MRR", "nDCG@10"):
                figures[name].update(value=2, low=1, high=3)
    assert "An interval without width" not in to_markdown(results)
    results["scores"]["collap"]["text_to_audio"]["R@20"].update(value=100, low=100, high=100)
    text_to_audio, audio_to_text = to_markdown(results).split("## Audio to text")
    assert "An interval without width" in text_to_audio
    assert "An interval without width" not in audio_to_text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("command",), "results must hold command"),
        (("scores", "collap", "audio_to_text"), r"scores\['collap'\]\['audio_to_text'\] is missing"),
        (("scores", "collap", "text_to_audio", "pool_size"), "has no pool_size"),
        (("scores", "collap", "text_to_audio", "num_songs"), "has no num_songs"),
        (("scores", "collap", "text_to_audio", "mAP"), r"\['mAP'\]\['value'\] is None"),
        (("scores", "collap", "text_to_audio", "R@5", "low"), r"\['R@5'\]\['low'\] is None"),
        (("scores", "collap", "text_to_audio", "R@5", "high"), r"\['R@5'\]\['high'\] is None"),
        (("scores", "collap", "text_to_audio", "R@5", "chance"), r"\['R@5'\]\['chance'\] is None"),
        (("scores", "mean|pooled", "text_to_audio", "R@20"), "must share pool, queries and figures"),
    ],
)
def test_report_refuses_a_figure_without_its_context(results, path, message, tmp_path):
    *parents, last = path
    broken = copy.deepcopy(results)
    holder = broken
    for key in parents:
        holder = holder[key]
    del holder[last]
    with pytest.raises(ValueError, match=message):
        write_report(broken, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_report_refuses_one_song_nan_and_different_pools(results):
    one_song = copy.deepcopy(results)
    one_song["scores"]["collap"]["text_to_audio"] = retrieval_metrics([[1], [2]], 10, ["a", "a"])
    with pytest.raises(ValueError, match="An interval needs two songs or more; there are 1"):
        to_markdown(one_song)
    not_a_number = copy.deepcopy(results)
    not_a_number["scores"]["collap"]["text_to_audio"]["mAP"]["value"] = float("nan")
    with pytest.raises(ValueError, match=r"\['mAP'\]\['value'\] is nan, expected a finite number"):
        to_markdown(not_a_number)
    results["scores"]["collap"]["text_to_audio"]["pool_size"] = 31
    with pytest.raises(ValueError, match="must share pool"):
        to_markdown(results)


def test_files_parse_and_hold_the_values(results, tmp_path):
    paths = write_report(results, tmp_path / "new" / "report")
    assert {key: path.name for key, path in paths.items()} == {
        "json": "results.json",
        "md": "results.md",
        "png": "results.png",
    }
    loaded = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert loaded["scores"] == results["scores"]
    assert loaded["num_audios"] == NUM_SONGS
    assert (loaded["precision"], loaded["folder"], loaded["lengths"]) == (0.5, "data/songs", [1.5, 2.5])
    assert paths["md"].read_text(encoding="utf-8") == to_markdown(results)
    # No temporary file is left.
    assert sorted(path.name for path in paths["md"].parent.iterdir()) == ["results.json", "results.md", "results.png"]


def test_picture_follows_the_numbers_and_is_reproducible(results, tmp_path):
    first = write_report(results, tmp_path / "a")["png"]
    assert first.read_bytes() == write_report(results, tmp_path / "b")["png"].read_bytes()
    blue = color_share(first, "#0072B2")
    for direction in results["scores"]["collap"].values():
        for name in ("R@1", "R@5", "R@10", "R@20"):
            direction[name] = {**direction[name], "value": direction[name]["value"] / 2, "low": 0.0}
    # Half as high bars of the first score kind: half the blue, but for whiskers and the legend.
    assert color_share(write_report(results, tmp_path / "c")["png"], "#0072B2") == pytest.approx(blue / 2, rel=0.1)


def color_share(path: Path, color: str) -> float:
    """Share of a picture's pixels that have this colour, but for the rounding of a blend."""
    pixels = np.round(imread(path)[..., :3] * 255).astype(int)
    return float((abs(pixels - [int(color[i : i + 2], 16) for i in (1, 3, 5)]) <= 1).all(axis=-1).mean())


def test_value_that_json_cannot_hold_leaves_the_old_report(results, tmp_path):
    paths = write_report(results, tmp_path)
    before = {path: path.read_bytes() for path in paths.values()}
    for bad in (float("nan"), object()):
        with pytest.raises(ValueError, match="results cannot be written as JSON"):
            write_report({**results, "note": bad}, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_write_that_breaks_off_keeps_the_old_picture(results, tmp_path, monkeypatch):
    picture = write_report(results, tmp_path)["png"]
    before = picture.read_bytes()

    def break_off(figure, path, **settings):
        Path(path).write_bytes(b"half a pic")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", break_off)
    with pytest.raises(OSError, match="No space left"):
        write_report(results, tmp_path)
    assert picture.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md", "results.png"]


def test_localization_plot_draws_lines_and_sections(tmp_path):
    times = np.arange(2, 60, 2.0)
    sections = [{"label": "piano", "start": 0, "end": 30}, {"label": "choir", "start": 30, "end": 60}]
    scores = {"piano": (times < 30).astype(np.float32), "costs $5, then $6": np.zeros(len(times))}
    bare, full = tmp_path / "bare.png", tmp_path / "new" / "full.png"
    plot_localization(bare, times, scores, [], "song 1")
    plot_localization(full, times, scores, sections, "song 1")
    for path in (bare, full):
        assert color_share(path, "#0072B2") > 0.001
        assert color_share(path, "#E69F00") > 0.001
    # The section named like the first line is shaded over half of the axes in a fifth of that line's colour.
    tint = "#CCE3F0"
    assert color_share(bare, tint) < 0.001
    assert 0.15 < color_share(full, tint) < 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": [2.0, 1.0]}, "times must be ascending"),
        ({"times": []}, "times must be ascending"),
        ({"scores": {}}, "scores is empty"),
        ({"scores": {"piano": [1.0]}}, r"scores\['piano'\] must be finite with the shape \(2,\)"),
        ({"scores": {"piano": [1.0, np.nan]}}, r"scores\['piano'\] must be finite"),
        ({"sections": [{"label": "a", "start": 3, "end": 3}]}, r"sections\[0\]"),
        ({"sections": [{"label": "a", "start": 3}]}, r"sections\[0\]"),
    ],
)
def test_localization_plot_refuses_what_it_cannot_draw(changes, message, tmp_path):
    arguments = {"times": [1.0, 2.0], "scores": {"piano": [0.0, 1.0]}, "sections": [], "title": "song", **changes}
    with pytest.raises(ValueError, match=message):
        plot_localization(tmp_path / "plot.png", **arguments)
    assert not list(tmp_path.iterdir())
