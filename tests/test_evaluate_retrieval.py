"""evaluate_retrieval.py as a user runs it, and its parts against naive ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_processor

from evaluate_retrieval import collect_songs, main, retrieval_figures, score_songs
from modeling_collap import mean_pooled_scores
from processing import load_audio
from processing.audio_text_data import open_dataset

REPOSITORY = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "evaluate_retrieval.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def test_the_script_writes_its_results(corpus, model_folder, tmp_path):
    done = run(
        *("--model", model_folder, "--dataset", corpus, "--split", "test", "--text_column", "captions"),
        *("--song_column", "song_id", "--sections_column", "sections", "--output_dir", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["num_audios"], results["num_texts"]) == (4, 12)
    figures = results["scores"]["collap"]["text_to_audio"]
    assert figures["R@1"]["chance"] == 25.0 and figures["pool_size"] == 4 and figures["num_queries"] == 12
    assert 0 <= figures["R@1"]["low"] <= figures["R@1"]["value"] <= figures["R@1"]["high"] <= 100
    assert "R@5" not in figures  # the pool has 4 songs
    assert results["scores"]["mean_pooled"]["audio_to_text"]["pool_size"] == 12
    for name in ("results.md", "results.png", "localization.png"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    assert "R@1" in done.stdout and "chance" in done.stdout


def test_scores_are_those_of_the_model_on_whole_files(corpus):
    model, processor = tiny_model(), tiny_processor()
    dataset = open_dataset(str(corpus), "test", text_column="captions")
    songs = collect_songs(dataset, "captions", "song_id")
    audios = [load_audio(corpus / "test" / f"{name}.flac") for name in songs.names]
    with torch.no_grad():
        output = model(**processor(text=songs.texts, audio=audios, sampling_rate=16000))
        rows = zip(output.audio_embeds.split(1), output.audio_token_mask.split(1), strict=True)
        scores = score_songs(model, output.text_embeds, rows, chunk_size=5)
        mean = mean_pooled_scores(output.text_embeds, output.audio_embeds, output.audio_token_mask)
    np.testing.assert_allclose(scores["collap"], output.logits_per_audio.numpy(), atol=1e-4)
    np.testing.assert_allclose(scores["mean_pooled"], mean.numpy(), atol=1e-5)


def test_rows_of_one_song_share_its_audio(corpus):
    dataset = open_dataset(str(corpus), "test", text_column="captions")
    doubled = dataset.map(lambda row: {"song_id": "same" if row["song_id"] in ("test-0001", "test-0003") else "other"})
    songs = collect_songs(doubled, "captions", "song_id")
    assert songs.rows == [0, 1] and songs.names == ["same", "other"]
    assert songs.song_of_text == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
    assert len(collect_songs(dataset, "captions", None).rows) == 4


def test_figures_of_a_known_matrix():
    """Song 0 finds its second text first; song 1 ranks a wrong text first and its own second."""
    scores = np.array([[0.1, 0.9, 0.2], [0.3, 0.8, 0.7]], dtype=np.float32)
    figures = retrieval_figures(scores, song_of_text=[0, 0, 1], names=["a", "b"], k=(1,))
    assert figures["audio_to_text"]["R@1"]["value"] == 50.0
    # Text 0 prefers song 1 (wrong), text 1 song 0 (right), text 2 song 1 (right).
    assert figures["text_to_audio"]["R@1"]["value"] == pytest.approx(200 / 3)
    assert figures["text_to_audio"]["num_songs"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text_column", "captoins"], "did you mean 'captions'"),
        (["--text_column", "captions", "--split", "dev"], "the splits are"),
        (["--text_column", "captions", "--song_column", "song"], "no column 'song'"),
    ],
)
def test_bad_arguments_are_named(corpus, model_folder, capsys, arguments, message):
    assert main(["--model", str(model_folder), "--dataset", str(corpus), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_data_set_is_named(model_folder, tmp_path, capsys):
    assert main(["--model", str(model_folder), "--dataset", str(tmp_path / "nowhere")]) == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_a_missing_model_ends_with_one_line(corpus, tmp_path):
    done = run("--model", tmp_path / "nowhere", "--dataset", corpus, "--text_column", "captions")
    assert done.returncode == 1
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr
