"""The paper's suite from end to end: every data set in its real layout with its traps, and a model of every kind."""

import json
import math

import pytest
import real_sets
from other_models import tiny_clap_folder, tiny_pe_audio_folder
from tiny import tiny_model, tiny_processor

from collap.cli import run_command
from collap.evaluation.suite_tables import draw_table, statistics_block


@pytest.fixture(scope="module")
def models(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("models")
    tiny_model("roberta").save_pretrained(folder / "collap-roberta")
    tiny_processor("roberta").save_pretrained(folder / "collap-roberta")
    clap, pe = tiny_clap_folder(folder / "larger_clap", False), tiny_pe_audio_folder(folder / "pe")
    names = [model_folder, f"{model_folder}@music", folder / "collap-roberta", f"{clap}@tokens", pe, "random"]
    return [str(name) for name in names]


@pytest.fixture(scope="module")
def measured(models, sounds, tmp_path_factory):
    root, out = real_sets.paper_root(tmp_path_factory.mktemp("data"), sounds), tmp_path_factory.mktemp("out")
    arguments = ["--suite", "paper", "--data_root", str(root), "--models", *models, "--output_dir", str(out)]
    assert run_command("evaluate", arguments) == 0
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def pools_of(results: dict) -> dict[str, dict]:
    return {pool["title"]: pool for table in results["tables"] for pool in table["pools"]}


def test_every_pool_is_measured_by_every_model(measured, models):
    pools = pools_of(measured)
    assert len(pools) == 7
    for title, pool in pools.items():
        assert [*pool["rows"]] == models and pool["missing"] is None, title
        assert f"the pool has 2 songs, the paper's {pool['expected']}" in pool["notes"][0]
        for row in pool["rows"].values():
            for figures in row["figures"].values():
                assert figures["num_queries"] == 2 and 1 <= figures["median_rank"]["value"] <= 2
                assert all(math.isfinite(figures[name]["value"]) for name in ("mAP", "MRR", "nDCG@10"))
    # One article about both recordings of Wiki-SD: both are correct, whatever the model.
    articles = [row["figures"]["text_to_audio"]["mAP"]["value"] for row in pools["Wiki-SD"]["rows"].values()]
    assert articles == [100.0] * len(models)


def test_what_is_missing_is_said_and_left_out(measured):
    pools = pools_of(measured)
    assert pools["SongDescriber"]["notes"][1:] == ["1 without audio (1100099)"]
    assert pools["MusicCaps"]["notes"][1:] == ["2 without audio (--dead_link, empty__file)"]
    assert pools["AudioSet-Eval"]["notes"][1:] == ["1 without audio (gone_gone_g)"]
    assert pools["HarmonixSet"]["notes"][1:] == ["1 without readable audio (1001_gone)"]
    assert pools["VCTK"]["notes"][1:] == ["1 without audio (p362_002)"]


def test_data_sets_are_counted_as_in_table_one(measured):
    counted = {one["title"]: one["data"] for one in measured["data_sets"]}
    assert list(counted) == ["AudioCaps", "MusicCaps", "LAION-Audio", "LP-MusicCaps", "AudioSet-Train"]
    assert counted["MusicCaps"]["mean_seconds"] == 10 and counted["MusicCaps"]["audio_missing"] == 2
    assert counted["AudioCaps"]["pairs"] == 6  # five captions for one clip
    assert counted["AudioSet-Train"]["pairs"] == 1 and counted["AudioSet-Train"]["mean_words"] > 10
    vctk = pools_of(measured)["VCTK"]["data"]
    assert vctk["pairs"] == 2 and vctk["mean_seconds"] == pytest.approx(54, abs=2) and vctk["mean_words"] > 200
    rows = [(row.label, row.cells[0]) for row in statistics_block(measured).rows]
    assert rows[-1] == ("Wiki-MC (measured)", "2")
    place = rows.index(("AudioSet-Train", "1"))
    assert rows[place + 1] == ("CoLLAP (quoted from the paper)", "51.3k")


def test_manifests_tell_the_models_apart(measured, models):
    rows = pools_of(measured)["VCTK"]["rows"]
    assert [rows[name]["manifest"]["dataset"] for name in models] == ["vctk/test?sentences=75"] * len(models)
    assert rows[models[1]]["manifest"]["encoders"] == "music" and rows[models[0]]["manifest"]["encoders"] == "both"
    assert rows[models[3]]["manifest"]["score"] == "attention, paper"
    assert rows[models[4]]["manifest"]["window"] == "all of 30 s, the last one shorter"
    assert len({row["manifest"]["weights"] for row in rows.values()}) == 5  # `@music` has those of its model


def test_a_drawing_has_every_model_with_an_interval(measured):
    table = measured["tables"][0]
    assert draw_table(measured, table) is None  # no R@5 of two songs
    drawn = draw_table(measured, {**table, "metrics": ["R@1", "R@5", "mAP", "median_rank"]})
    panels = drawn.axes
    assert len(panels) == 8  # four pools, two directions
    for panel in panels:
        assert [label.get_text() for label in panel.get_xticklabels()] == ["R@1", "R@5", "mAP"]
        assert len(panel.patches) == 2 * len(measured["models"])  # there is no R@5
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert labels[-2:] == ["chance", "the paper's figure for this model"] and len(labels) == 2 + len(measured["models"])
