"""`collap data check`: what it says of data sets that are whole, and of those that are not."""

import json
import shutil

import pytest
from datasets import Dataset, DatasetDict

from collap.cli import run_command
from collap.data.check import split_names


def report(capsys, *arguments) -> dict:
    assert run_command("data check", [*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["splits"]


def test_a_whole_corpus(capsys, corpus):
    splits = report(capsys, corpus, "--text_column", "captions")
    assert {name: split["rows"] for name, split in splits.items()} == {"train": 8, "validation": 4, "test": 4}
    rows = [json.loads(line) for line in (corpus / "train" / "metadata.jsonl").read_text().splitlines()]
    train = splits["train"]
    assert set(train["columns"]) == {"audio", *rows[0]} - {"file_name"}
    assert (train["audio_found"], train["audio_missing"], train["pairs"], train["texts"]) == (8, 0, 24, 24)
    assert train["hours"] == pytest.approx(sum(row["seconds"] for row in rows) / 3600, abs=1e-4)
    words = [len(text.split()) for row in rows for text in row["captions"]]
    assert train["mean_words"] == pytest.approx(sum(words) / len(words), abs=0.01)
    assert train["problems"] == []


def test_what_cannot_be_used_is_named(capsys, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "songs")
    folder = tmp_path / "songs" / "test"
    (folder / "test-0001.flac").unlink()
    (folder / "test-0003.flac").write_bytes(b"no audio")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[3]["captions"] = []
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = report(capsys, tmp_path / "songs", "--text_column", "captions")["test"]
    assert (split["audio_found"], split["audio_missing"], split["pairs"], split["texts"]) == (2, 2, 3, 9)
    missing, damaged, silent = split["problems"]
    assert "row 0 (test-0001.flac)" in missing and "row 2 (test-0003.flac)" in damaged and "row 3 has no text" in silent
    assert run_command("data check", [str(tmp_path / "songs"), "--text_column", "captions"]) == 0
    printed = capsys.readouterr().out
    assert "test: 4 rows; columns: audio, song_id" in printed and "2 found, 2 missing or unreadable" in printed
    assert "row 2 (test-0003.flac)" in printed


def test_nothing_usable_ends_with_1_and_a_wrong_column_is_named(capsys, corpus, tmp_path):
    assert run_command("data check", [str(corpus), "--text_column", "captons"]) == 1
    assert "did you mean 'captions'?" in capsys.readouterr().err
    (tmp_path / "metadata.csv").write_text("file_name,text\ngone.wav,a song\n")
    assert run_command("data check", [str(tmp_path)]) == 1
    assert "0 usable pairs" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert run_command("data check", [str(tmp_path / "empty")]) == 1
    assert "expected metadata.jsonl, parquet shards" in capsys.readouterr().err


def test_the_splits_of_every_layout(corpus, tmp_path):
    assert split_names(str(corpus)) == split_names(f"folder:{corpus}") == ["test", "train", "validation"]
    assert split_names(str(corpus / "train" / "metadata.jsonl")) == ["train"]
    assert split_names(str(corpus / "train")) == ["train"]
    rows = Dataset.from_dict({"audio": ["a.wav"], "text": ["a song"]})
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    assert split_names(str(tmp_path / "one")) == ["train"] and split_names(str(tmp_path / "two")) == ["train", "test"]
    for name in ("a/train-00000-of-00001.parquet", "b/data/test-00000-of-00001.parquet", "c/validation/0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        rows.to_parquet(tmp_path / name)
    assert [split_names(str(tmp_path / folder)) for folder in "abc"] == [["train"], ["test"], ["validation"]]
