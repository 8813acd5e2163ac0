"""evaluate_retrieval.py as a user runs it, and its parts against naive ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_processor

from collap.cli import run_command
from collap.data.sources import open_dataset
from collap.evaluation import retrieval as evaluate_retrieval
from collap.evaluation.retrieval import collect_songs, embed_row, retrieval_figures, score_songs
from collap.models import load_model
from modeling_collap import mean_pooled_scores
from processing import AudioFileError, load_audio

REPOSITORY = Path(__file__).parents[2]


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
    assert run_command("evaluate", ["--model", str(model_folder), "--dataset", str(corpus), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_data_set_is_named(model_folder, tmp_path, capsys):
    assert run_command("evaluate", ["--model", str(model_folder), "--dataset", str(tmp_path / "nowhere")]) == 1
    assert "nowhere: no such file or folder" in capsys.readouterr().err


def test_a_missing_model_is_named(corpus, tmp_path, monkeypatch, capsys):
    arguments = ("--model", tmp_path / "nowhere", "--dataset", corpus, "--text_column", "captions")
    assert "nowhere" in fails_before_encoding(monkeypatch, capsys, *arguments)


def test_a_process_without_songs_has_no_scores():
    scores = score_songs(tiny_model(), torch.eye(5, 32), [], chunk_size=2)
    assert {kind: (rows.shape, rows.dtype) for kind, rows in scores.items()} == {
        "collap": ((0, 5), np.float32),
        "mean_pooled": ((0, 5), np.float32),
    }


@pytest.mark.parametrize("missing", [None, " "])
def test_a_row_without_a_song_is_named(missing):
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "song": ["x", missing, missing]})
    with pytest.raises(ValueError, match="row 1 has no 'song'"):
        collect_songs(rows, "text", "song")


def test_bad_audio_names_its_row():
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": b"not music", "path": "song.mp3"}], "text": ["a"]})
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    with pytest.raises(AudioFileError, match=r"^row 0 \(song\.mp3\): <9 bytes>: not an audio file"):
        embed_row(tiny_model(), tiny_processor(), rows, 0, "audio")


def fails_before_encoding(monkeypatch, capsys, *arguments) -> str:
    """The one line that `main` ends with; nothing may be encoded before."""
    monkeypatch.setattr(evaluate_retrieval, "evaluate_model", lambda *_: pytest.fail("encoded first"))
    assert run_command("evaluate", list(map(str, arguments))) == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and error.rstrip().endswith(lines[0])
    return lines[0]


def test_one_song_is_refused(corpus, model_folder, monkeypatch, capsys):
    arguments = ("--model", model_folder, "--dataset", corpus, "--text_column", "captions", "--split", "test[:1]")
    assert "retrieval needs at least two songs" in fails_before_encoding(monkeypatch, capsys, *arguments)


def test_a_file_as_output_folder_is_refused(corpus, model_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("")
    arguments = ("--model", model_folder, "--dataset", corpus, "--text_column", "captions", "--output_dir")
    assert "out: is a file" in fails_before_encoding(monkeypatch, capsys, *arguments, tmp_path / "out")


def test_a_failing_report_ends_with_one_line(corpus, model_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--model", str(model_folder), "--dataset", str(corpus), "--text_column", "captions"]
    assert (
        run_command("evaluate", [*arguments, "--split", "test[:2]", "--output_dir", str(tmp_path / "file" / "out")])
        == 1
    )
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("verse", "'sections' of row 0 is 'verse'; expected a list of sections"),
        ([{"label": "verse", "start": 0.0}], r"'sections' of row 0[0] is {'label': 'verse', 'start': 0.0}; expected"),
        ([{"label": "verse", "start": 2.0, "end": 1.0}], "expected a text as label and seconds start < end"),
        ([{"label": "verse", "start": None, "end": 1.0}], "expected a text as label and seconds start < end"),
    ],
)
def test_bad_sections_are_refused(model_folder, tmp_path, monkeypatch, capsys, sections, message):
    rows = [{"file_name": f"{name}.wav", "text": name, "sections": sections} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--model", model_folder, "--dataset", tmp_path, "--split", "train", "--sections_column", "sections")
    assert message in fails_before_encoding(monkeypatch, capsys, *arguments)


def test_another_model_is_refused(corpus, backbones, monkeypatch, capsys):
    arguments = ("--model", backbones["gpt2"], "--dataset", corpus, "--text_column", "captions")
    assert "a 'gpt2' model; expected a CoLLAP model" in fails_before_encoding(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize("device", ["cuda:99", "gramophone"])
def test_a_missing_device_is_refused(corpus, model_folder, monkeypatch, capsys, device):
    arguments = ("--model", model_folder, "--dataset", corpus, "--text_column", "captions", "--device", device)
    assert f"--device {device}: " in fails_before_encoding(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize("model_type", ["collap", "elsewhere"])
def test_code_in_a_model_folder_never_runs(model_folder, tmp_path, monkeypatch, model_type):
    """Not even where somebody would say yes to transformers' question."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name, kinds in (
        ("config.json", ("AutoConfig", "AutoModel")),
        ("processor_config.json", ("AutoProcessor", "AutoFeatureExtractor")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        settings = json.loads((folder / name).read_text())
        code = [None, "evil.Evil"] if name == "tokenizer_config.json" else "evil.Evil"
        settings["auto_map"] = dict.fromkeys(kinds, code)
        (folder / name).write_text(json.dumps(settings | ({"model_type": model_type} if name == "config.json" else {})))
    if model_type == "collap":
        load_model(str(folder))
    else:
        with pytest.raises(ValueError, match="trust_remote_code"):
            load_model(str(folder))
    assert not (tmp_path / "ran").exists()
