"""Tables of several models on data sets in their real layout: figures, manifests, what is missing, resuming, errors."""

import copy
import json
import re

import pytest
import real_sets
import soundfile
import torch
import yaml
from other_models import tiny_clap_folder

from collap.cli import run_command
from collap.evaluation import suite as suite_module
from collap.evaluation.embedders import CoLLAPEmbedder
from collap.evaluation.embedding_store import EmbeddingStore
from collap.evaluation.suite_file import read_suite
from collap.evaluation.suite_tables import beside_paper, latex_text, table_blocks, to_markdown, write_tables

CAPTIONS = {1004034: "A slow song with piano.", 214: "A guitar and drums, **loud**.", 1100099: "A choir sings."}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return real_sets.Sounds(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def root(tmp_path_factory, sounds):
    """Song Describer with two of three tracks and FUTGA's captions, and pairs of articles; no other data set."""
    root = tmp_path_factory.mktemp("data")
    real_sets.song_describer(root / "song_describer", sounds)
    (root / "song_describer" / "audio" / "audio" / "14" / "214.2min.mp3").unlink()
    sounds.put("clip1.wav", root / "song_describer" / "audio" / "audio" / "14" / "214.2min.mp3")
    rows = [["index", "caption"], *([index, text] for index, text in CAPTIONS.items())]
    real_sets.write_csv(root / "futga" / "SongDescriber.csv", rows)
    real_sets.wiki(root / "wiki_sd", sounds)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("clap")
    return [
        str(model_folder),
        f"{model_folder}@mean",
        f"{tiny_clap_folder(folder / 'c', False, collapsed=True)}@first",
        "random",
    ]


@pytest.fixture(scope="module")
def measured(root, models, tmp_path_factory):
    """What the paper's suite writes."""
    folder = tmp_path_factory.mktemp("out")
    arguments = ["--suite", "paper", "--data_root", str(root), "--models", *models, "--output_dir", str(folder)]
    assert run_command("evaluate", arguments) == 0
    return folder, json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_the_papers_tables_are_written_with_what_is_missing(measured, models, root):
    folder, results = measured
    tables = {table["name"]: table for table in results["tables"]}
    assert list(tables) == ["table_2", "table_3", "table_4"]
    pools = {pool["title"]: pool for table in results["tables"] for pool in table["pools"]}
    assert [title for title, pool in pools.items() if pool["rows"]] == ["SongDescriber", "Wiki-SD"]
    assert f"no folder {root / 'musiccaps'}; get" in pools["MusicCaps"]["missing"]
    own = pools["SongDescriber"]
    assert list(own["rows"]) == models
    assert "the pool has 2 songs, the paper's 706" in own["notes"][0] and "1 without audio (1100099)" in own["notes"]
    markdown = (folder / "results.md").read_text(encoding="utf-8")
    assert "### SongDescriber, text to audio: 2 texts, 2 songs (the paper's: 706)" in markdown
    assert "| Cacophony (quoted from the paper) | 5.92 |" in markdown
    assert "- not measured: no folder" in markdown and "| pool too small |" in markdown
    assert "| SongDescriber (measured) | 2 | " in markdown and "| CoLLAP (quoted from the paper) | 51.3k |" in markdown
    assert not list(folder.glob("*.png"))  # no R@5 of two songs
    latex = (folder / "results.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 15 and r"95 \%" not in latex


def test_every_row_says_what_its_figures_depend_on(measured, models):
    rows = measured[1]["tables"][0]["pools"][0]["rows"]
    manifest = rows[models[0]]["manifest"]
    assert manifest["dataset"] == "song_describer/test" and manifest["captions"] == "futga/SongDescriber/all"
    assert (manifest["pool"], manifest["precision"], manifest["reduction"], manifest["seed"]) == (
        2,
        "float32",
        "mean",
        0,
    )
    assert manifest["attention temperature"] == 1.0 and "transformers" in manifest["libraries"] and manifest["hardware"]
    assert len(manifest["weights"]) == 16 and len(manifest["dataset digest"]) == 32
    assert rows[models[1]]["manifest"]["score"] == "mean token"
    assert rows[models[2]]["manifest"]["window"] == "the first 10 s"


def test_a_collapsed_baseline_is_marked(measured, models):
    folder, results = measured
    assert [bool(model["collapsed"]) for model in results["models"]][2:] == [True, False]
    assert f"| {models[2]}† |" in (folder / "results.md").read_text(encoding="utf-8")


def test_figures_are_those_of_collap_evaluate(measured, models, root, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{track}.mp3", "text": CAPTIONS[track]}) + "\n" for track in (1004034, 214))
    )
    for track, folder in ((1004034, "34"), (214, "14")):
        source = root / "song_describer" / "audio" / "audio" / folder / f"{track}.2min.mp3"
        (own / f"{track}.mp3").write_bytes(source.read_bytes())
    arguments = ["--model", models[0], "--dataset", str(own), "--split", "train", "--output_dir", str(tmp_path / "out")]
    assert run_command("evaluate", arguments) == 0
    alone = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]
    rows = measured[1]["tables"][0]["pools"][0]["rows"]
    for name, kind in ((models[0], "collap"), (models[1], "mean_pooled")):
        for direction, figures in rows[name]["figures"].items():
            for figure in ("median_rank", "mAP", "MRR"):
                assert figures[figure] == pytest.approx(alone[kind][direction][figure]), (kind, figure)


def test_a_killed_run_goes_on_and_gives_the_same(measured, models, root, tmp_path, monkeypatch):
    arguments = ["--suite", "paper", "--data_root", str(root), "--models", *models, "--output_dir", str(tmp_path)]
    made, embed, decoded, load = [], CoLLAPEmbedder.embed_audio, [], suite_module.load_audio

    def embed_until_killed(self, samples):
        made.append(len(samples))
        if len(made) == 2:
            raise KeyboardInterrupt
        return embed(self, samples)

    monkeypatch.setattr(CoLLAPEmbedder, "embed_audio", embed_until_killed)
    monkeypatch.setattr(
        suite_module, "load_audio", lambda source, rate, **span: decoded.append(rate) or load(source, rate, **span)
    )
    assert run_command("evaluate", arguments) == 130
    assert run_command("evaluate", arguments) == 0
    assert len(made) == 5  # four songs, of which the second was begun twice; none for `@mean`
    # The first song for CoLLAP and `random` at one rate, once, and for CLAP; the second was begun twice.
    assert sorted(decoded) == [16000] * 5 + [48000] * 4
    again = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for table, first in zip(again["tables"], measured[1]["tables"], strict=True):
        for pool, other in zip(table["pools"], first["pools"], strict=True):
            assert pool["comparisons"] == other["comparisons"]
            for name, row in pool["rows"].items():
                assert row["figures"] == other["rows"][name]["figures"]


def test_no_figure_without_manifest_and_a_mark_on_another_protocol(measured, models, tmp_path):
    results = copy.deepcopy(measured[1])
    row = results["tables"][0]["pools"][0]["rows"][models[1]]
    row["manifest"]["libraries"] = {"torch": "1.0"}
    block = next(table_blocks(results, results["tables"][0]))
    assert block.rows[1].label == f"{models[1]}‡" and "another libraries than the first row" in " ".join(block.notes)
    del row["manifest"]["weights"]
    for write in (to_markdown, lambda one: write_tables(one, tmp_path / "none")):
        with pytest.raises(ValueError, match="table_2, SongDescriber, .*: no weights in its manifest"):
            write(results)
    assert not (tmp_path / "none").exists()


def test_beside_the_paper_and_in_latex():
    figure = {"value": 10.0, "low": 8.0, "high": 12.0, "chance": 1.0}
    assert beside_paper(figure, 12.0) == "12.00 (-2.00, covered)"
    assert beside_paper(figure, 6.65) == "6.65 (+3.35, not covered)"
    assert beside_paper({**figure, "low": None, "high": None}, 6.65) == "6.65 (+3.35, not known)"
    assert latex_text(r"a_b & 5 % {x} \y #†") == r"a\_b \& 5 \% \{x\} \textbackslash{}y \#\dag{}"


# --------------------------------------------------------------------------------------------------------------------
# Bad input


def evaluate(capsys, *arguments) -> str:
    code = run_command("evaluate", [str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert code == 1 and "Traceback" not in error
    return error.strip().splitlines()[-1]


def write_suite(path, **pool):
    content = {"title": "mine", "tables": [{"name": "one", "title": "One", "pools": [{"title": "P", **pool}]}]}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"dataset": "music_caps"}, "no data set is called 'music_caps'; did you mean 'musiccaps'?"),
        ({"dataset": "futga", "poool": 1}, "unknown key 'poool'"),
        ({}, "lacks dataset"),
        ({"dataset": "wiki", "captions": {"dataset": "futgaa"}}, "did you mean 'futga'?"),
        ({"dataset": "song_describer", "folder": "wiki_sd"}, "holds no song_describer; .*it looks like"),
        ({"dataset": "song_describer", "captions": {"dataset": "wiki", "folder": "wiki_sd"}}, "nothing of the suite"),
        ({"dataset": "wiki", "window_seconds": 0}, "window_seconds: 0; expected 1 or more"),
        ({"dataset": "wiki", "window_seconds": "10 s"}, "window_seconds: '10 s'; expected a number or nothing"),
        ({"dataset": "wiki", "settings": 3}, r"pools\[0\]: settings: 3; expected a mapping"),
        ({"dataset": "wiki", "expected": "706"}, r"expected: '706'; expected a number or nothing"),
        ({"dataset": "wiki", "captions": ["futga"]}, r"captions: \['futga'\]; expected a mapping or nothing"),
        ({"dataset": "wiki", "folder": "wiki_sd", "split": "tset"}, "nothing of the suite"),
        ({"dataset": "vctk", "settings": {"sentence": 2}, "folder": "wiki_sd"}, "no setting 'sentence'"),
    ],
)
def test_a_bad_suite_is_one_line(pool, message, root, tmp_path, capsys):
    path = write_suite(tmp_path / "suite.yaml", **pool)
    line = evaluate(capsys, "--suite", path, "--data_root", root, "--models", "random", "--output_dir", tmp_path / "o")
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\ntables: 3\n", "tables: 3; expected a list"),
        ("title: x\ntables: [3]\n", r"tables\[0\]: expected a mapping of name, title, pools"),
        ("title: x\ntables: []\n", "expected tables with names of their own"),
        ("title: x\n", "lacks tables"),
        ("- 1\n", "expected a mapping of title, tables"),
        ("title: [\n", "not YAML"),
        ("title: x\nquoted: none.json\ntables: []\n", "none.json"),
        ("title: x\nquoted: suite.yaml\ntables: []\n", "suite.yaml: not JSON"),
        ("title: x\ndata_sets: [{title: a, dataset: wiki, statistics: CoLAP}]\ntables: [a]\n", "expected a mapping"),
    ],
)
def test_a_malformed_suite_is_one_line(text, message, root, tmp_path, capsys):
    (tmp_path / "suite.yaml").write_text(text)
    rest = ("--data_root", root, "--models", "random", "--output_dir", tmp_path / "o")
    line = evaluate(capsys, "--suite", tmp_path / "suite.yaml", *rest)
    assert re.search(message, line), line


def test_what_a_pool_lacks_is_said_and_does_not_stop_the_others(root, sounds, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("song_describer", "wiki_sd"):
        (data / name).symlink_to(root / name)
    real_sets.harmonixset(data / "harmonixset", sounds)
    real_sets.write_csv(data / "futga" / "Harmonixset.csv", [["index", "caption"], ["0009_other", "Another song."]])
    out = tmp_path / "out"
    rest = ("--data_root", data, "--models", "random", "--output_dir", out)
    assert run_command("evaluate", [str(one) for one in ("--suite", "paper", *rest)]) == 0
    error = capsys.readouterr().err
    assert re.search("SongDescriber: not measured: .*futga: no config 'SongDescriber'.*; get hf download", error)
    assert "HarmonixSet: not measured: audio without captions: futga has no text about any recording" in error
    assert "Table I, AudioCaps: not counted: no folder" in error
    results = json.loads((out / "results.json").read_text())
    assert results["tables"][2]["pools"][0]["rows"]
    suite = write_suite(tmp_path / "s.yaml", dataset="wiki", folder="wiki_sd", split="tset")
    assert run_command("evaluate", [str(one) for one in ("--suite", suite, *rest)]) == 1
    assert "no recording of split 'tset'" in capsys.readouterr().err


def test_a_song_that_is_damaged_in_its_middle_leaves_the_pool(root, sounds, tmp_path, capsys):
    songs = tmp_path / "data" / "songs"
    rows = [["file_name", "text"], *([f"{index}.flac", f"song {index}"] for index in range(3))]
    real_sets.write_csv(songs / "metadata.csv", rows)
    for index in range(3):
        sounds.put(f"clip{index}.wav", songs / f"{index}.flac")
    suite = write_suite(tmp_path / "s.yaml", dataset="folder", folder="songs", split="train")
    rest = ("--suite", suite, "--data_root", tmp_path / "data", "--models", "random", "--output_dir", tmp_path / "out")
    whole = (songs / "1.flac").read_bytes()
    (songs / "1.flac").write_bytes(whole[: len(whole) // 2])
    assert run_command("evaluate", [str(one) for one in rest]) == 0
    assert re.search(r"warning: left out of P: row 1.*1\.flac: truncated or damaged", capsys.readouterr().err)
    pool = json.loads((tmp_path / "out" / "results.json").read_text())["tables"][0]["pools"][0]
    assert pool["notes"] == ["1 cannot be read (row 1)"]
    row = pool["rows"]["random"]
    assert row["manifest"]["pool"] == 2 and row["figures"]["text_to_audio"]["num_queries"] == 2
    (songs / "0.flac").write_bytes(whole[: len(whole) // 2])
    assert "2 of 3 songs cannot be read" in evaluate(capsys, *rest)


def test_a_window_is_the_same_as_files_that_are_cut_there(corpus, tmp_path):
    files = sorted((corpus / "test").glob("*.flac"))
    for name, seconds in (("whole", None), ("cut", 4)):
        rows = [["file_name", "text"], *([file.name, f"song {file.stem}"] for file in files)]
        real_sets.write_csv(tmp_path / name / "metadata.csv", rows)
        for file in files:
            samples, rate = soundfile.read(file)
            soundfile.write(tmp_path / name / file.name, samples[: seconds * rate] if seconds else samples, rate)
    found = {}
    for name, window in (("whole", None), ("whole", 4), ("whole", 3600), ("cut", None)):
        pool = {"dataset": "folder", "folder": name, "split": "train", "window_seconds": window}
        suite, out = write_suite(tmp_path / "s.yaml", **pool), tmp_path / "out"
        arguments = ["--suite", suite, "--data_root", tmp_path, "--models", "random", "--output_dir", out]
        assert run_command("evaluate", [str(one) for one in arguments]) == 0
        (row,) = json.loads((out / "results.json").read_text())["tables"][0]["pools"][0]["rows"].values()
        found[name, window] = row["figures"], row["manifest"]["audio"]
    assert found["whole", 4][0] == found["cut", None][0] != found["whole", None][0] == found["whole", 3600][0]
    assert found["whole", 4][1] == "the first 4 s" and found["whole", None][1] == "whole recordings"


def test_other_bad_input_is_one_line(root, models, tmp_path, capsys):
    out = ("--output_dir", tmp_path / "out")
    rest = ("--data_root", root, *out)
    assert "no such folder, and no model that can be read" in evaluate(
        capsys, "--suite", "paper", "--models", tmp_path / "nothing", *rest
    )
    assert "@meen: did you mean 'mean'?" in evaluate(capsys, "--suite", "paper", "--models", f"{models[0]}@meen", *rest)
    assert "did you mean 'paper'?" in evaluate(capsys, "--suite", "papr", "--models", "random", *rest)
    assert "named twice" in evaluate(capsys, "--suite", "paper", "--models", "random", "random", *rest)
    assert "no such folder" in evaluate(
        capsys, "--suite", "paper", "--models", "random", "--data_root", tmp_path / "none", *out
    )
    with pytest.raises(SystemExit):
        run_command("evaluate", ["--suite", "paper"])
    assert "--models, --data_root" in capsys.readouterr().err


def test_captions_without_audio_and_two_files_with_one_id(root, sounds, tmp_path, capsys):
    data = tmp_path / "data"
    real_sets.song_describer(data / "song_describer", sounds)
    suite = write_suite(tmp_path / "s.yaml", dataset="song_describer")
    rest = ("--suite", suite, "--data_root", data, "--models", "random", "--output_dir", tmp_path / "out")
    sounds.put("clip0.wav", data / "song_describer" / "copy" / "14" / "214.wav")
    assert "two files for" in evaluate(capsys, *rest)
    for path in (data / "song_describer").rglob("*.*"):
        if path.suffix in (".mp3", ".wav"):
            path.unlink()
    assert run_command("evaluate", [str(one) for one in rest]) == 1
    assert "captions without audio: none of 3 recordings has any" in capsys.readouterr().err


def test_a_cache_of_another_width_is_refused(root, tmp_path, capsys):
    suite = write_suite(tmp_path / "s.yaml", dataset="wiki", folder="wiki_sd")
    rest = ("--suite", suite, "--data_root", root, "--models", "random", "--output_dir", tmp_path / "out")
    assert run_command("evaluate", [str(one) for one in rest]) == 0
    (folder,) = (tmp_path / "out" / "embeddings").iterdir()
    stored = sorted(folder.glob("*/*.safetensors"))
    assert len(stored) == 3  # two songs and the texts
    store = EmbeddingStore(
        tmp_path / "out" / "embeddings", "seed-0", json.loads((folder / "about.json").read_text())["settings"]
    )
    for path in stored:
        if store.read(path.stem).shape == (1, 512):
            store.write(path.stem, torch.zeros(1, 8))
    capsys.readouterr()
    assert "embeddings of width 8, the texts' have 512" in evaluate(capsys, *rest)
    stored[0].write_bytes(b"x")
    stored[1].write_bytes(b"x")
    assert "a damaged embedding" in evaluate(capsys, *rest)


def test_the_papers_suite_names_columns_of_the_paper_and_known_pools():
    suite = read_suite("paper")
    sizes = {pool.title: pool.expected for table in suite.tables for pool in table.pools}
    assert sizes == {
        **{"SongDescriber": 706, "MusicCaps": 974, "AudioSet-Eval": 454, "HarmonixSet": 842},
        **{"VCTK": 570, "Wiki-SD": 706, "Wiki-MC": 974},
    }
    named = [column for table in suite.tables for pool in table.pools for column in pool.paper.values()]
    quoted = [c for t in suite.tables for c in suite.quoted[t.quoted]["columns"] if c != "Average"]
    assert named == quoted
