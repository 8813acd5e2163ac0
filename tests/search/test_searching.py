"""`collap search`: what a user types and reads."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from hub_server import HubServer

from collap.cli import main
from collap.search.index import TrackIndex
from collap.search.score_function import ScoreFunction
from collap.search.store import IndexStore


def search(*arguments: object) -> int:
    return main(["search", *map(str, arguments)])


@pytest.fixture(scope="module")
def index(indexed, model_folder):
    return TrackIndex.open(indexed)


def test_an_index_keeps_the_score_of_its_model(indexed, model_folder):
    score = IndexStore.open(indexed).manifest["score"]
    assert ScoreFunction.from_dict(score) == ScoreFunction.read(str(model_folder))


def test_the_scores_are_those_of_the_model(index):
    """The library's own embeddings, of whole files, scored by the model."""
    results = index.search("a slow song with piano and drums", k=12, mode="exact")
    texts = index.embedder.embed_texts(["a slow song with piano and drums"])
    assert len(results) == 12
    for hit in results[::4]:
        tokens = index.embedder.embed_file(hit.file)
        assert hit.score == pytest.approx(index.embedder.score(texts, tokens).item(), abs=5e-3)
        assert 0 <= hit.spans[0].start < hit.spans[0].end <= hit.seconds


def test_a_table_is_printed(indexed, capsys):
    assert search("a slow song with piano. A choir sings.", "--index", indexed, "-k", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::3]] == ["1", "2", "3"] and len(lines) == 9
    assert "a slow song with piano." in lines[1] and "A choir sings." in lines[2]
    assert "Künstler" in lines[0] and "Lied Nº" in lines[0]


def test_json_filters_and_lengths(indexed, capsys):
    limits = ["--filter", "genre = jazz and year >= 1993", "--min-seconds", 1, "--max_seconds", 100]
    assert search("piano", "--index", indexed, "--json", "--curve", "--mode", "exact", *limits) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(hit["year"] for hit in found["hits"]) == [1993, 1996, 1999]
    assert all(hit["certified"] and os.path.exists(hit["file"]) and hit["curve"]["scores"] for hit in found["hits"])
    assert search("piano", "--index", indexed, "--filter", "genre = polka") == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "note: no track is what the filter asks for\n"


def test_like_and_not_and_playlist(index, indexed, capsys):
    first = index.search("piano", k=1)[0]
    assert search("--like", f"{first.path}@0:05", "--index", indexed, "-k", 4, "--m3u") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14 and first.file not in lines and all(os.path.exists(line) for line in lines[4::3])
    plain = {hit.id: hit.score for hit in index.search("piano", k=12, mode="exact")}
    other = {hit.id: hit.score for hit in index.search("drums", k=12, mode="exact")}
    for hit in index.search("piano", k=12, not_text="drums", mode="exact"):
        assert hit.score == pytest.approx(plain[hit.id] - other[hit.id], abs=1e-3)
    assert search("piano", "--not", "drums", "--index", indexed, "--webvtt") == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n\nNOTE\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["piano", "--filter", "yeer = 3"], "which is no field; did you mean 'year'?"),
        (["piano", "--like", "x"], "expected one of: a text"),
        ([" "], "a query is empty; expected a description"),
        (["x" * 20_001], "a query has 20001 characters"),
        (["--like", "nobody"], "no track 'nobody'"),
        (["piano", "-k", "0"], "k is 0"),
        (["piano", "--curve", "--m3u"], "--curve is what --json prints"),
        (["piano", "--model", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_mistakes_are_named(indexed, capsys, arguments, said):
    assert search(*arguments, "--index", indexed) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err and "Traceback" not in printed.err


def test_another_model_is_refused_in_one_line(tmp_path, indexed, model_folder, capsys):
    other = shutil.copytree(model_folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "kernel_seconds": 3.0}))
    assert search("piano", "--index", indexed, "--model", other) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "its vectors are of another space: model.config.json.kernel_seconds is 3.0, there it is" in line
    assert search("piano", "--index", indexed, "--model", shutil.copytree(model_folder, tmp_path / "copy")) == 0


def test_no_index_is_named(tmp_path, capsys):
    assert search("piano", "--index", tmp_path) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: holds no index; expected one that collap index has made\n"


def test_a_text_or_a_track_is_needed_and_one_format(capsys):
    for arguments, said in (
        ([], "required: text"),
        (["x", "--json", "--m3u"], "not allowed with"),
        (["x", "--jsn"], "--json"),
    ):
        with pytest.raises(SystemExit) as stopped:
            search("--index", "x", *arguments)
        assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_calibrating_an_index_is_a_command(tmp_path, indexed, capsys):
    folder = shutil.copytree(indexed, tmp_path / "index")
    assert main(["index", "--calibrate", "--index", str(folder), "--model", str(tmp_path)]) == 1
    assert f"{tmp_path}: " in capsys.readouterr().err  # the model that is named is read, not that of the index
    assert main(["index", "--calibrate", "--index", str(folder)]) == 0
    assert "calibrated on 69 descriptions: the 10 best score" in capsys.readouterr().out
    assert search("piano", "--index", folder, "--mode", "calibrated", "--json") == 0
    printed = capsys.readouterr()
    assert all(hit["certified"] and hit["match"] is not None for hit in json.loads(printed.out)["hits"])


def test_a_model_of_the_hub_is_fetched_by_the_first_search(tmp_path, indexed, model_folder):
    """As in a container that has just been started, where nothing is in the cache."""
    command = [sys.executable, "-m", "collap", "search", "piano", "--index", indexed, "--model", "you/collap", "--json"]
    with HubServer() as hub:
        hub.create("model", "you/collap")
        hub.commit("you/collap", {path.name: path.read_bytes() for path in model_folder.iterdir()})
        environment = hub.environment(tmp_path, token=None)
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and len(json.loads(done.stdout)["hits"]) == 10, done.stderr


@pytest.mark.slow
def test_a_process_of_its_own_searches(indexed):
    command = [sys.executable, "-m", "collap", "search", "piano", "--index", str(indexed), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and len(json.loads(done.stdout)["hits"]) == 10, done.stderr
