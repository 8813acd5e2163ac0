"""Analyses of several models end to end: figures, manifests, resuming, songs that cannot be read, bad input."""

import copy
import json
import re

import numpy as np
import pytest
import real_sets
import soundfile
import torch
import yaml
from other_models import tiny_clap_folder, tiny_pe_audio_folder
from tiny import tiny_model, tiny_processor
from torch.nn import functional as F

from collap.cli import run_command
from collap.data.guarded_reading import load_audio
from collap.evaluation.analysis import ANALYSES
from collap.evaluation.analysis.lengths import cut_words
from collap.evaluation.analysis.suite import read_analyses
from collap.evaluation.analysis.tables import draw_analysis, write_analyses
from collap.evaluation.embedders import CoLLAPEmbedder
from collap.evaluation.load_embedders import load_embedder
from collap.models import load_model
from modeling_collap import CoLLAPModel

OF_LABELS = ("tagging", "linear_probe", "audio_retrieval")  # tests/evaluation/test_label_analyses.py
SECONDS = (1.0, 1.6, 2.5, 4.0)
CAPTIONS = [
    "a slow song with piano",
    "a choir sings over strings, then a loud guitar",
    "strings",
    "a slow song with a choir, then piano and drums",
]
SUITE = {
    "title": "mine",
    "pools": [
        {"title": "songs", "dataset": "folder", "folder": "songs"},
        {"title": "SD", "dataset": "song_describer", "captions": {"dataset": "futga", "config": "SongDescriber"}},
        {"title": "MusicCaps", "dataset": "musiccaps"},
    ],
    "analyses": {
        "caption_length": {"words": [2, 4, 300], "metrics": ["R@1", "MRR"], "pools": ["songs", "SD", "MusicCaps"]},
        "audio_length": {"seconds": [1.2, 2, 300], "metrics": ["MRR"], "pools": ["songs"]},
        "encoders": {"pools": ["songs"]},
        "stability": {
            **{"shifts": [0.4], "opus": [], "channels": ["left"], "gains": [-6], "metrics": ["R@2", "MRR"]},
            "pools": ["songs"],
        },
        "length_bias": {"pools": ["songs"]},
        "hubness": {"k": [1, 2, 10], "pools": ["songs", "SD"]},
    },
}


def write_songs(folder, seconds=SECONDS, captions=CAPTIONS):
    """Songs in two channels, each on a note of its own, and their captions."""
    folder.mkdir(parents=True)
    for index, length in enumerate(seconds):
        time = np.arange(round(22_050 * length)) / 22_050
        notes = 110 * 2 ** ((index + np.floor(2 * time) % (3 + index)) / 3)
        left = 0.2 * np.sin(2 * np.pi * np.cumsum(notes) / 22_050)
        right = 0.1 * np.random.default_rng(index).normal(size=len(time))
        soundfile.write(folder / f"{index}.wav", np.stack([left, right], axis=1), 22_050)
    rows = [{"file_name": f"{index}.wav", "text": text} for index, text in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def root(tmp_path_factory, sounds):
    """A folder of songs, and Song Describer in its layout with FUTGA's captions of one of two tracks."""
    root = tmp_path_factory.mktemp("data")
    write_songs(root / "songs" / "test")
    real_sets.song_describer(root / "song_describer", sounds)
    rows = [["index", "caption"], [1004034, "A slow song with piano, then a choir."], [214, "A guitar and drums."]]
    real_sets.write_csv(root / "futga" / "SongDescriber.csv", rows)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("models")
    tiny_model("roberta", seed=1, score_reduction="printed").save_pretrained(folder / "roberta")
    tiny_processor("roberta").save_pretrained(folder / "roberta")
    others = [tiny_clap_folder(folder / "clap", False), tiny_pe_audio_folder(folder / "pe")]
    return [str(model_folder), str(folder / "roberta"), *map(str, others), "random"]


def arguments_of(root, models, folder, content=SUITE):
    suite = folder / "mine.yaml"
    suite.write_text(yaml.safe_dump(content, sort_keys=False))
    rest = ["--suite", str(suite), "--data_root", str(root), "--output_dir", str(folder / "out")]
    return [*rest, "--models", *map(str, models)]


@pytest.fixture(scope="module")
def measured(root, models, tmp_path_factory):
    """What a suite of all analyses writes."""
    folder = tmp_path_factory.mktemp("measured")
    assert run_command("evaluate", arguments_of(root, models, folder)) == 0
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    return folder / "out", {one["name"]: one for one in results["analyses"]}, results


def row_of(measured, analysis, model, pool="songs"):
    (found,) = [one for one in measured[1][analysis]["pools"] if one["title"] == pool]
    return found["rows"][model]


def test_every_analysis_is_measured_where_it_can_be(measured, models):
    analyses = measured[1]
    assert list(analyses) == [name for name in ANALYSES if name not in OF_LABELS]
    assert {name: list(row_of(measured, name, models[0])["figures"]) for name in analyses} == {
        "caption_length": ["2 words", "4 words", "whole"],
        "audio_length": ["1.2 s", "2 s", "whole"],
        "encoders": ["both encoders", "music alone", "speech alone"],
        "stability": ["shift 0.4 s", "mp3 128 kbit/s", "left channel", "-6 dB", "another song"],
        "length_bias": ["mean", "printed"],
        "hubness": ["k = 1", "k = 2"],
    }
    assert list(row_of(measured, "length_bias", models[1])["figures"]) == ["printed", "mean"]
    assert list(row_of(measured, "length_bias", "random")["figures"]) == ["its score"]
    encoders, words, lengths = (analyses[name]["pools"] for name in ("encoders", "caption_length", "audio_length"))
    assert list(encoders[0]["rows"]) == models[:2]
    assert "random: has no two encoders to hear apart" in encoders[0]["notes"]
    assert [pool["title"] for pool in words] == ["songs", "SD", "MusicCaps"] and list(words[1]["rows"]) == models
    assert "no folder" in words[2]["missing"] and len(lengths) == 1
    assert "2 of 4 songs are longer than 2 s" in lengths[0]["notes"]
    assert "3 of 4 captions have 4 words" in words[0]["notes"]


def test_every_row_has_a_manifest_and_every_figure_an_interval(measured):
    count = 0
    for analysis in measured[1].values():
        for pool in analysis["pools"]:
            for row in pool["rows"].values():
                assert row["manifest"]["analysis"] == analysis["name"] and row["manifest"]["pool"] in (2, 4)
                for one in (one for figures in row["figures"].values() for one in figures.values()):
                    assert one["low"] <= one["high"] and np.isfinite(one["value"]) and "chance" in one
                    count += 1
    assert count > 300


def test_tables_and_curves_are_written(measured, models):
    folder = measured[0]
    text = (folder / "results.md").read_text(encoding="utf-8")
    assert "### songs: MRR, text to audio in percent; 4 songs, 4 texts" in text
    assert "| model | 1.2 s | 2 s | whole |" in text and "whole - 1.2 s" in text
    assert "not measured" in text and "captions: futga/SongDescriber/all" in text
    assert text.count("- songs: model: ") == len(models)  # the manifests, once for each model and pool
    latex = (folder / "results.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") > 20
    for name in ("caption_length.png", "audio_length.png"):
        assert (folder / name).stat().st_size > 10_000
    assert not (folder / "hubness.png").exists()
    lines = draw_analysis(measured[1]["audio_length"]).axes[0].lines
    figures = row_of(measured, "audio_length", models[0])["figures"].values()
    assert lines[0].get_ydata().tolist() == [one["text_to_audio MRR"]["value"] for one in figures]
    assert len(lines) == len(models) + 1  # and chance


def test_no_figure_without_a_manifest(measured, models, tmp_path):
    results = copy.deepcopy(measured[2])
    (pool,) = next(one for one in results["analyses"] if one["name"] == "stability")["pools"]
    del pool["rows"][models[2]]["manifest"]["weights"]
    with pytest.raises(ValueError, match="stability, songs, .*: no weights in its manifest"):
        write_analyses(results, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --------------------------------------------------------------------------------------------------------------------
# What a user would compute by hand


def reciprocal_rank(scores: np.ndarray) -> float:
    """Mean over texts, in percent; scores (A, B) of as many songs as texts."""
    ranks = [
        1 + sum(scores[other, i] >= scores[i, i] for other in range(len(scores)) if other != i)
        for i in range(len(scores))
    ]
    return 100 * np.mean(1 / np.array(ranks))


@pytest.mark.parametrize("place", [0, 2, 3])
def test_cut_songs_and_cut_captions_are_searched(measured, models, root, place):
    embedder = load_embedder(models[place])
    songs = [load_audio(str(root / "songs" / "test" / f"{i}.wav"), embedder.sampling_rate) for i in range(4)]

    def scores_of(texts, samples):
        embeds = embedder.embed_texts(texts)
        return np.stack([embedder.score(embeds, embedder.embed_audio(one)).numpy() for one in samples])

    cut = [one[: round(1.2 * embedder.sampling_rate)] for one in songs]
    found = row_of(measured, "audio_length", models[place])["figures"]
    assert found["1.2 s"]["text_to_audio MRR"]["value"] == pytest.approx(reciprocal_rank(scores_of(CAPTIONS, cut)))
    words = [cut_words(text, 2) for text in CAPTIONS]
    found = row_of(measured, "caption_length", models[place])["figures"]
    assert found["2 words"]["text_to_audio MRR"]["value"] == pytest.approx(reciprocal_rank(scores_of(words, songs)))
    tokenizer = embedder.processor.tokenizer
    assert found["2 words"]["tokens"]["value"] == np.mean([len(tokenizer(text)["input_ids"]) for text in words])
    quiet = [F.normalize(embedder.embed_audio(one / 10**0.3).mean(0), dim=0) for one in songs]
    whole = [F.normalize(embedder.embed_audio(one).mean(0), dim=0) for one in songs]
    cosines = [float(one @ other) for one, other in zip(quiet, whole, strict=True)]
    stable = row_of(measured, "stability", models[place])["figures"]
    assert stable["-6 dB"]["cosine"]["value"] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_encoders_and_reductions_are_those_of_the_model(models, measured, root):
    embedder = load_embedder(models[0])
    samples = load_audio(str(root / "songs" / "test" / "3.wav"), 16_000)
    texts = embedder.embed_texts(CAPTIONS)
    for label, form in embedder.forms("encoders").items():
        alone = load_embedder(form.name)
        assert form.model is embedder.model and (form.name, form.settings) == (alone.name, alone.settings)
        assert torch.equal(form.embed_audio(samples), alone.embed_audio(samples)), label
    tokens = embedder.embed_audio(samples)
    forms = embedder.forms("reduction")
    assert forms["mean"].name == embedder.name and torch.equal(
        forms["mean"].score(texts, tokens), embedder.score(texts, tokens)
    )
    printed, _ = load_model(models[0], "cpu", "float32")
    assert isinstance(printed, CoLLAPModel)
    printed.config.score_reduction = "printed"
    mask = torch.ones(1, len(tokens), dtype=torch.bool)
    with torch.no_grad():
        expected = printed.score(texts, tokens[None], mask)[0]
    assert torch.allclose(forms["printed"].score(texts, tokens), expected)
    assert embedder.score_settings["reduction"] == "mean" != forms["printed"].score_settings["reduction"]
    assert load_embedder(f"{models[0]}@mean").forms("reduction") == {}


# --------------------------------------------------------------------------------------------------------------------
# Runs that are killed, songs that cannot be read, and bad input


def test_a_killed_run_goes_on_and_gives_the_same(measured, models, root, tmp_path, monkeypatch):
    made, embed = [], CoLLAPEmbedder.embed_audio

    def embed_until_killed(self, samples):
        made.append(len(samples))
        if len(made) == 15:
            raise KeyboardInterrupt
        return embed(self, samples)

    monkeypatch.setattr(CoLLAPEmbedder, "embed_audio", embed_until_killed)
    analyses = {name: SUITE["analyses"][name] for name in ("encoders", "stability", "length_bias")}
    suite = {"title": "mine", "pools": SUITE["pools"][:1], "analyses": analyses}
    arguments = arguments_of(root, [models[0], "random"], tmp_path, suite)
    assert run_command("evaluate", arguments) == 130
    assert run_command("evaluate", arguments) == 0
    embedded = len(SECONDS) * (3 + 4) + 1  # as they are, by either encoder alone, 4 changes; one was begun twice
    assert len(made) == embedded
    assert run_command("evaluate", arguments) == 0 and len(made) == embedded
    again = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    for one in again["analyses"]:
        for name, row in one["pools"][0]["rows"].items():
            assert row["figures"] == row_of(measured, one["name"], name)["figures"]


def test_a_song_that_cannot_be_read_leaves_the_pool(tmp_path, capsys):
    write_songs(tmp_path / "songs" / "test")
    bad = tmp_path / "songs" / "test" / "1.wav"
    bad.write_bytes(bad.read_bytes()[:60_000])
    suite = {"title": "mine", "pools": SUITE["pools"][:1], "analyses": {"hubness": {"k": [1]}, "audio_length": {}}}
    assert run_command("evaluate", arguments_of(tmp_path, ["random"], tmp_path, suite)) == 0
    assert "warning: left out of songs: row 1" in capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    pool = results["analyses"][0]["pools"][0]
    assert pool["rows"]["random"]["manifest"]["pool"] == 3 and "1 songs left out" in pool["notes"][0]
    for path in (tmp_path / "songs" / "test").glob("*.wav"):
        path.write_bytes(b"")
    assert run_command("evaluate", arguments_of(tmp_path, ["random"], tmp_path, suite)) == 1
    assert "nothing of the suite can be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"analyses": {"hubnes": {}}}, "no analysis is called 'hubnes'; did you mean 'hubness'?"),
        ({"analyses": {"hubness": {"kk": [1]}}}, "analyses.hubness: unknown key 'kk'; did you mean 'k'"),
        ({"analyses": {"hubness": {"k": [0.5]}}}, "analyses.hubness.k: .*expected whole numbers"),
        ({"analyses": {"hubness": {"k": 5}}}, "analyses.hubness.k: 5; expected a list of numbers"),
        ({"analyses": {"hubness": [1]}}, r"analyses.hubness: expected a mapping of k; found \[1\]"),
        ({"analyses": {"hubness": {"pools": ["song"]}}}, "no pool is called 'song'; did you mean 'songs'?"),
        ({"analyses": {"hubness": {"pools": 3}}}, "no pool is called 3; expected one of songs"),
        (
            {"analyses": {"caption_length": {"words": [-1]}}},
            "caption_length.words: .*expected a list of numbers above 0",
        ),
        ({"analyses": {"caption_length": {"metrics": ["R@x"]}}}, r"metrics: 'R@x'; expected a list of R@k, mAP"),
        ({"analyses": {"encoders": {"metrics": ["R@1"]}}}, "metrics: R@1; expected MRR among them"),
        ({"analyses": {"stability": {"channels": ["right"]}}}, "channels: 'right'; expected a list of mono, left"),
        ({"analyses": {}}, "analyses: expected a mapping of caption_length, audio_length"),
        ({"pools": []}, "pools: expected a list of pools"),
        ({"pools": [{"title": "P", "dataset": "songs"}]}, "no data set is called 'songs'"),
        ({"pools": [{**SUITE["pools"][0], "window_seconds": 30}]}, "window_seconds: analyses hear whole recordings"),
        ({"tables": []}, "unknown key 'tables'"),
    ],
)
def test_a_bad_suite_is_one_line(changed, message, root, tmp_path, capsys):
    assert run_command("evaluate", arguments_of(root, ["random"], tmp_path, SUITE | changed)) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and re.search(message, error.strip().splitlines()[-1]), error


def test_several_processes_are_refused(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command("evaluate", arguments_of(root, ["random"], tmp_path)) == 1
    assert "analyses run in one process" in capsys.readouterr().err


def test_our_suite_has_every_analysis_on_real_sets():
    suite = read_analyses("analysis")
    assert [analysis.name for analysis, _ in suite.analyses] == list(ANALYSES)
    captioned = {pool.title for pool in suite.pools if pool.captions and pool.captions.dataset == "futga"}
    labelled = {pool.title for pool in suite.pools if pool.dataset == "gtzan"}
    assert len(captioned) + len(labelled) == len(suite.pools)
    assert all(set(titles) <= (labelled if one.name in OF_LABELS else captioned) for one, titles in suite.analyses)
