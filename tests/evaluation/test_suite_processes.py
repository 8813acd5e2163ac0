"""Tables of several models by several processes, and by one that is killed: real processes, the same figures."""

import json
import multiprocessing.connection
import os
import signal
import time
from pathlib import Path

import pytest
import runs
import torch
import yaml

from collap.cli import main
from collap.evaluation import embedding_store
from collap.evaluation.embedding_store import EmbeddingStore
from collap.evaluation.score_files import ScoreFiles

SONGS = 8


@pytest.fixture(scope="module")
def arguments(corpus, model_folder, tmp_path_factory):
    """What measures two models on eight songs, but for `--output_dir`."""
    pool = {"title": "P", "dataset": "folder", "folder": corpus.name, "split": "train", "text_column": "captions"}
    metrics = ["R@1", "R@5", "median_rank", "mAP", "MRR", "nDCG@10"]
    table = {"name": "one", "title": "One", "metrics": metrics, "pools": [{**pool, "song_column": "song_id"}]}
    suite = tmp_path_factory.mktemp("suite") / "mine.yaml"
    suite.write_text(yaml.safe_dump({"title": "mine", "tables": [table]}))
    models = [str(model_folder), f"{model_folder}@mean", "random"]
    return ["evaluate", "--suite", str(suite), "--data_root", str(corpus.parent), "--models", *models]


@pytest.fixture(scope="module")
def figures(arguments, tmp_path_factory):
    """Figures and tests of an undisturbed process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main([*arguments, "--output_dir", str(folder)]) == 0
    return figures_of(folder)


def figures_of(folder: Path) -> tuple:
    pool = json.loads((folder / "results.json").read_text())["tables"][0]["pools"][0]
    return {name: row["figures"] for name, row in pool["rows"].items()}, pool["comparisons"]


def stored(folder: Path) -> dict[Path, int]:
    """Embeddings that are kept, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("embeddings/*/*/*.safetensors")}


def test_two_processes_share_the_songs_and_give_the_figures_of_one(arguments, figures, tmp_path):
    log = tmp_path / "log"
    log.touch()
    processes = runs.start_processes([*arguments, "--output_dir", str(tmp_path / "out")], log, 2, main)
    assert multiprocessing.connection.wait([one.sentinel for one in processes], timeout=60)
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0], log.read_text()
    assert figures_of(tmp_path / "out") == figures
    assert log.read_text().count("results.json") == 1  # one of them says what was found
    assert len(stored(tmp_path / "out")) == 2 * (SONGS + 1)
    assert not (tmp_path / "out" / "embeddings" / "scores").exists()


def test_a_run_that_is_killed_by_the_system_goes_on(arguments, figures, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    log.touch()
    (process,) = runs.start_processes([*arguments, "--output_dir", str(out)], log, 1, main)
    until = time.monotonic() + 60
    while len(stored(out)) < 6 and time.monotonic() < until:  # the texts and two songs of each of the models
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = stored(out)
    assert process.exitcode == -signal.SIGKILL and 6 <= len(kept) < 2 * (SONGS + 1), log.read_text()
    assert not (out / "results.json").exists()
    assert main([*arguments, "--output_dir", str(out)]) == 0
    assert figures_of(out) == figures
    assert kept.items() <= stored(out).items() and len(stored(out)) == 2 * (SONGS + 1)


def test_scores_that_were_written_elsewhere_are_missed(tmp_path):
    """What a process sees that shares no disk with the one that scored the other songs."""
    scores = ScoreFiles(tmp_path / "scores", 2, 3, 4)
    assert list(scores.own_songs()) == [0, 1, 2]
    scores.put(0, [[1.0] * 4, [2.0] * 4])
    scores.skip(2)
    with pytest.raises(FileNotFoundError, match="1 of 3 songs were scored elsewhere; .* the same --output_dir"):
        scores.read()


def test_the_suite_of_the_demo_measures_its_test_set(corpus, model_folder, tmp_path, capsys):
    (tmp_path / "demo_songs").symlink_to(corpus)
    suite = runs.REPOSITORY / "demo" / "suite.yaml"
    arguments = ["evaluate", "--suite", str(suite), "--data_root", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--models", str(model_folder), "random"]) == 0
    printed = capsys.readouterr().out
    assert "### demo songs, text to audio: 12 texts, 4 songs" in printed and "| minus random |" in printed
    assert "Table I" not in printed and "libraries" not in printed  # manifests stand in the files
    (pool,) = json.loads((tmp_path / "out" / "results.json").read_text())["tables"][0]["pools"]
    assert [*pool["rows"]] == [str(model_folder), "random"]
    assert "libraries: torch" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "songs.png").stat().st_size > 1000


def test_two_processes_may_keep_the_same_embedding_at_once(tmp_path, monkeypatch):
    store, embeds, save, begun = EmbeddingStore(tmp_path, "w", {}), torch.rand(3, 4), embedding_store.save_file, []

    def save_twice(tensors, place):
        save(tensors, place)
        if not begun:
            begun.append(place)
            EmbeddingStore(tmp_path, "w", {}).write("0a", embeds)  # begun later, finished earlier

    monkeypatch.setattr(embedding_store, "save_file", save_twice)
    store.write("0a", embeds)
    assert begun and torch.equal(store.read("0a"), embeds)
    assert sorted(path.name for path in store.folder.rglob("*.*")) == ["0a.safetensors", "about.json"]
