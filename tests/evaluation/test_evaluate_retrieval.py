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
from collap.evaluation.retrieval import embed_row, embed_texts, retrieval_figures, score_songs
from collap.evaluation.songs import RetrievalSet, collect_songs, count_shared_texts
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
    songs = RetrievalSet([0, 1], ["a", "b"], ["one", "two", "three"], [0, 0, 1])
    figures = retrieval_figures(scores, songs, k=(1,))
    assert figures["audio_to_text"]["R@1"]["value"] == 50.0
    # Text 0 prefers song 1 (wrong), text 1 song 0 (right), text 2 song 1 (right).
    assert figures["text_to_audio"]["R@1"]["value"] == pytest.approx(200 / 3)
    assert figures["text_to_audio"]["num_songs"] == 2


def test_a_text_of_several_songs_is_correct_for_all_of_them():
    """Texts 0 and 2 are the same words: each finds its song or the other one."""
    scores = np.array([[0.9, 0.1, 0.9], [0.2, 0.3, 0.2], [0.8, 0.2, 0.8]], dtype=np.float32)
    songs = RetrievalSet([0, 1, 2], ["a", "b", "c"], ["a song", "a tune", "a  song\n"], [0, 1, 2])
    assert songs.songs_of_texts() == [[0, 2], [1], [0, 2]]
    figures = retrieval_figures(scores, songs, k=(1, 2))
    assert figures["text_to_audio"]["R@1"]["value"] == 100 and figures["audio_to_text"]["R@1"]["value"] == 100
    assert figures["text_to_audio"]["R@1"]["chance"] == pytest.approx(100 * (2 + 1 + 2) / 9)
    alone = retrieval_figures(scores, RetrievalSet(songs.rows, songs.names, ["x", "y", "z"], [0, 1, 2]), k=(1,))
    assert alone["text_to_audio"]["R@1"]["value"] < 100
    one, other = songs.subset([2, 1]), RetrievalSet([2, 1], ["c", "b"], ["a tune", "a  song\n"], [1, 0])
    assert one == other


def test_with_all_captions_equal_both_scores_are_at_chance(corpus, model_folder, tmp_path, capsys):
    """Songs of other lengths and texts of other batches would differ in their last bits."""
    shutil.copytree(corpus / "test", tmp_path / "test")
    table = tmp_path / "test" / "metadata.jsonl"
    rows = [json.loads(line) | {"captions": ["the same words"] * 3} for line in table.read_text().splitlines()]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(model_folder), "--dataset", str(tmp_path), "--text_column", "captions"]
    assert run_command("evaluate", [*arguments, "--chunk_size", "5", "--output_dir", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for by_direction in results["scores"].values():
        for figures in by_direction.values():
            for name in ("R@1", "median_rank", "mAP"):
                assert figures[name]["value"] == pytest.approx(figures[name]["chance"])
    assert (results["texts_of_several_songs"], results["texts_read_alike"]) == (12, 0)
    assert "12 of 12 texts describe several songs in the same words: all are correct" in capsys.readouterr().err


def test_equal_texts_get_equal_scores_wherever_they_stand():
    model, processor, generator = tiny_model(), tiny_processor(), torch.Generator().manual_seed(0)
    words = ["slow", "song", "piano", "drums", "choir", "guitar"]
    texts = [" ".join(words[i] for i in torch.randint(6, (1 + n % 9,), generator=generator)) for n in range(60)]
    texts[7] = texts[31] = texts[58] = "a slow song with piano and drums"
    embeds = embed_texts(model, processor, texts)
    for start in range(0, 60, 7):  # in other batches, one by one
        alone = torch.cat([embed_texts(model, processor, [text]) for text in texts[start : start + 7]])
        torch.testing.assert_close(embeds[start : start + 7], alone, atol=1e-5, rtol=0)
    audio = torch.nn.functional.normalize(torch.randn(1, 30, 32, generator=generator), dim=-1)
    mask = torch.ones(1, 30, dtype=torch.bool)
    for size in (1, 7, 100):
        scores = score_songs(model, embeds, [(audio, mask)], chunk_size=size)
        for kind, naive in (
            ("collap", model.score(embeds, audio, mask)),
            ("mean_pooled", mean_pooled_scores(embeds[:, 0], audio, mask)),
        ):
            np.testing.assert_allclose(scores[kind], naive.detach().numpy(), atol=1e-4)
            assert len({*scores[kind][0, [7, 31, 58]].tolist()}) == 1


def test_texts_that_are_cut_to_the_same_beginning_are_counted():
    processor = tiny_processor()  # reads 128 tokens
    long = "a slow song " * 60
    texts = [long + "with piano", long + "with drums", "a choir", long + "with piano", "a guitar"]
    songs = RetrievalSet([0, 1, 2], ["a", "b", "c"], texts, [0, 1, 2, 2, 0])
    # 0 and 3 are the same words of songs a and c; 1 begins as they do, and they as 1.
    assert count_shared_texts(songs, processor) == {"texts_of_several_songs": 2, "texts_read_alike": 3}
    apart = RetrievalSet([0, 1], ["a", "b"], ["a choir", "a guitar", long, long + "x"], [0, 1, 1, 1])
    assert count_shared_texts(apart, processor) == {"texts_of_several_songs": 0, "texts_read_alike": 0}


def test_collecting_songs_reads_no_audio():
    class Rows:
        """Says which columns were asked for."""

        def __init__(self, columns=None):
            self.columns = columns

        def select_columns(self, columns):
            return Rows(columns)

        def __iter__(self):
            assert set(self.columns) == {"text", "song"}
            return iter([{"text": "a", "song": "x"}, {"text": "b", "song": "y"}])

    assert collect_songs(Rows(), "text", "song").names == ["x", "y"]


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
