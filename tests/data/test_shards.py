"""Parquet as it exists in the world: whole sets of shards, columns of many types; and metadata of several splits."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from tiny import REFERENCE

from collap.data.check import split_names
from collap.data.rows import audio_source
from collap.data.sources import open_dataset, open_stream
from processing import load_audio

CASES = REFERENCE / "cases" / "parquet"
FLAC = (REFERENCE / "cases" / "csv" / "a.flac").read_bytes()


def write(path: Path, text: str = "x", **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"audio": [{"bytes": FLAC, "path": f"{text}.flac"}], "text": [text], **columns}
    pq.write_table(pa.table(rows), path)


def both(folder: Path, split: str = "train") -> list[str]:
    """The texts of a split, read as a table and as a stream, which must not differ."""
    table = open_dataset(str(folder), split)["text"][:]
    assert table == streamed(folder, split)
    return table


def streamed(folder: Path, split: str) -> list[str]:
    rows = open_stream(str(folder), split)
    tables = [table for shard in range(rows.num_shards) for table in rows.tables(shard, 0)]
    return [text for table in tables for text in table.column("text").to_pylist()]


def refusal(folder: Path, split: str = "train") -> str:
    messages = []
    for opened in (open_dataset, open_stream):
        with pytest.raises(ValueError) as caught:
            opened(str(folder), split)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]
    return messages[0]


# --------------------------------------------------------------------------------------------------------------------
# Sets of shards


def test_the_cases():
    assert "missing_shard/train-00001-of-00003.parquet: is missing, one of 3 shards" in refusal(CASES / "missing_shard")
    assert "several sets beside one another (train-00000-of-00001.parquet, " in refusal(CASES / "stale_shards")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002", "train-00001-of-00003", "train-00002-of-00003"], "several sets beside one another"),
        (["train-00000-of-00002"], "train-00001-of-00002.parquet: is missing"),
        (["train-00001-of-00002"], "train-00000-of-00002.parquet: is missing"),
        (["data/train-00000-of-00002"], "data/train-00001-of-00002.parquet: is missing"),
        (["train/0000-of-0002"], None),  # of another name: the split is the folder's
        (["train/part-00000-of-00002"], "train/part-00001-of-00002.parquet: is missing"),
        (["train-00000-of-00001", "train-0"], "several sets"),
        (["train-00000-of-00001", "train-00001-of-00001"], "a shard too many of 1"),
        (["train-00000-of-00001", "train-00000-of-00001-0123456789abcdef"], "a shard too many of 1"),
        (["train-00000-of-00001", "data/train-00000-of-00001"], "shards of 'train' lie in"),
        (["train-00000-of-00001", "train/0000"], "shards of 'train' lie in"),
        (["train/0000", "train/test-00000-of-00001"], "a shard of 'test' among those of 'train'"),
    ],
)
def test_sets_that_are_not_whole(tmp_path, names, message):
    for name in names:
        write(tmp_path / f"{name}.parquet")
    if message is None:
        assert both(tmp_path) == ["x"]
    else:
        assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet"],
        ["train-00000-of-00001.parquet"],
        ["train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba9876543210.parquet"],
        ["data/train-0.parquet", "data/train-1.parquet", "data/train-2.parquet", "data/train-10.parquet"],
        ["train/0000.parquet", "train/0001.parquet"],
    ],
)
def test_whole_sets_are_read_in_order_without_those_of_other_splits(tmp_path, names):
    for name in names:
        write(tmp_path / name, name)
    for other in ("train-clean-00000-of-00002", "training-00000-of-00001", "test-00000-of-00001", "train2"):
        write(tmp_path / f"{other}.parquet", other)
    (tmp_path / "train-00001-of-00002.parquet.incomplete").write_bytes(b"x")
    assert both(tmp_path) == names
    assert both(tmp_path, "test") == ["test-00000-of-00001"]
    assert "train" in split_names(str(tmp_path)) and "test" in split_names(str(tmp_path))
    assert "train-clean-00001-of-00002.parquet: is missing" in refusal(tmp_path, "train-clean")


def test_shards_have_the_same_columns(tmp_path):
    write(tmp_path / "train-0.parquet", "a", label=pa.nulls(1))
    write(tmp_path / "train-1.parquet", "b", label=pa.array(["seen"]))
    assert open_dataset(str(tmp_path), "train")["label"][:] == [None, "seen"]  # nothing and texts go together
    write(tmp_path / "train-1.parquet", "b", genre=["x"])
    assert "train-1.parquet: has other columns than train-0.parquet (['genre', 'label'])" in refusal(tmp_path)
    write(tmp_path / "train-1.parquet", "b", label=pa.array([1.5]))
    write(tmp_path / "train-0.parquet", "a", label=pa.array(["x"]))
    assert "its columns cannot be read" in refusal(tmp_path)


# --------------------------------------------------------------------------------------------------------------------
# Types of columns


def test_arrays_with_a_sampling_rate_are_audio(tmp_path):
    dataset = open_dataset(str(CASES / "array"), "train")
    (entry,) = pq.read_table(CASES / "array")["audio"].to_pylist()
    samples = load_audio(audio_source(dataset[0]["audio"]))
    np.testing.assert_allclose(samples, entry["array"], atol=1e-6)

    sound = np.random.default_rng(0).normal(size=(2, 4000)) * 0.1
    for array, expected in (
        (sound[0].astype(np.float32), sound[0]),
        (sound.tolist(), sound.mean(0)),
        (sound.T.tolist(), sound.mean(0)),
        ((sound[0] * 2**15).astype(np.int16), sound[0]),
    ):
        rows = [{"array": array, "sampling_rate": 16000, "path": "x.wav"}, None]
        pq.write_table(pa.table({"audio": rows, "text": ["x", "y"]}), tmp_path / "train-0.parquet")
        dataset = open_dataset(str(tmp_path), "train")
        np.testing.assert_allclose(load_audio(audio_source(dataset[0]["audio"])), expected, atol=1e-4)
        assert dataset[1]["audio"] is None or audio_is_empty(dataset[1]["audio"])
        assert both(tmp_path) == ["x", "y"]


def audio_is_empty(audio: dict) -> bool:
    return audio["bytes"] is None and audio["path"] is None


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ([0.1] * 100, "holds list<element: double>: samples without a sampling rate; expected audio: bytes, paths, or"),
        ([[0.1] * 100], "samples without a sampling rate"),
        ({"array": [0.1], "sampling_rate": None}, "row 0 has an array of audio with the sampling rate None"),
        ({"array": [0.1], "sampling_rate": 0}, "the sampling rate 0; expected Hz, above 0"),
        ({"array": [0.1], "sampling_rate": 44100.5}, "the sampling rate 44100.5"),
        ({"array": [], "sampling_rate": 16000}, "row 0 has no array of numbers as audio"),
        ({"array": [[0.1], [0.1, 0.2]], "sampling_rate": 16000}, "row 0 has no array of numbers as audio"),
        ({"array": ["a"], "sampling_rate": 16000}, "row 0 has no array of numbers as audio"),
        ({"samples": [0.1]}, r"the column 'audio' holds struct<samples: .*expected audio: bytes or paths"),
        ({"bytes": 3, "path": "a"}, "the column 'audio' holds struct<bytes: int64"),
        (["a.flac", "b.flac"], r"the column 'audio' holds list<.*expected audio"),
        (7, "the column 'audio' holds int64"),
        (True, "the column 'audio' holds bool"),
    ],
)
def test_what_is_no_audio_is_said(tmp_path, audio, message):
    pq.write_table(pa.table({"audio": [audio], "text": ["x"]}), tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(str(tmp_path), "train")
    assert "\n" not in str(caught.value)
    if isinstance(audio, list):
        assert open_refused(CASES / "list")


def open_refused(folder: Path) -> bool:
    with pytest.raises(ValueError, match=r"list/train-00000-of-00001\.parquet: the column 'audio' holds list<"):
        open_dataset(str(folder), "train")
    return True


def test_every_way_in_which_arrow_holds_paths_bytes_and_texts(tmp_path):
    (tmp_path / "a.flac").write_bytes(FLAC)
    paths = pa.array(["a.flac", "a.flac"])
    content = pa.array([FLAC, FLAC])
    columns = {
        "string": paths,
        "large_string": paths.cast(pa.large_string()),
        "category": paths.dictionary_encode(),
        "view": paths.cast(pa.string_view()),
        "binary": content,
        "large_binary": content.cast(pa.large_binary()),
        "path alone": pa.StructArray.from_arrays([paths], ["path"]),
        "bytes alone": pa.StructArray.from_arrays([content], ["bytes"]),
        "more": pa.StructArray.from_arrays([paths, content, paths], ["path", "bytes", "note"]),
        "no bytes": pa.StructArray.from_arrays([paths, pa.nulls(2)], ["path", "bytes"]),
    }
    for name, column in columns.items():
        texts = pa.array([["x", "y"], ["z"]]) if name == "string" else pa.array(["x", "z"]).dictionary_encode()
        table = pa.table({"audio": column, "text": texts})
        pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
        dataset = open_dataset(str(tmp_path), "train")
        assert len(load_audio(audio_source(dataset[1]["audio"]))) == len(load_audio(tmp_path / "a.flac")), name
        assert dataset["text"][:] == texts.to_pylist() == both(tmp_path), name


def test_features_that_datasets_wrote_are_kept(tmp_path):
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": FLAC, "path": "x.flac"}], "text": ["x"], "genre": [1]})
    rows = rows.cast_column("audio", datasets.Audio()).cast_column("genre", datasets.ClassLabel(names=["pop", "rock"]))
    rows.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    found = open_dataset(str(tmp_path), "train")
    assert found.features["genre"].names == ["pop", "rock"] and found.features["audio"].decode is False


def test_metadata_parquet_names_files(tmp_path):
    (tmp_path / "a.flac").write_bytes(FLAC)
    pq.write_table(pa.table({"file_name": ["a.flac"], "text": ["x"]}), tmp_path / "metadata.parquet")
    assert audio_source(open_dataset(str(tmp_path), "train")[0]["audio"]) == f"{tmp_path}/./a.flac"


# --------------------------------------------------------------------------------------------------------------------
# Metadata of several splits in one file


def root_metadata(folder: Path, *names: str) -> Path:
    rows = [{"file_name": name, "text": name} for name in names]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_each_split_has_the_rows_of_its_folder(tmp_path):
    root_metadata(tmp_path, "train/a.flac", "test/b.flac", "train/sub/c.flac", "validation/d.flac", "test/e.flac")
    assert open_dataset(str(tmp_path), "train")["text"][:] == ["train/a.flac", "train/sub/c.flac"]
    assert open_dataset(str(tmp_path), "test[1:]")["text"][:] == ["test/e.flac"]
    assert open_dataset(str(tmp_path), "validation")["text"][:] == ["validation/d.flac"]
    with pytest.raises(ValueError, match=r"for the split 'dev'; the splits are \['test', 'train', 'validation'\]"):
        open_dataset(str(tmp_path), "dev")
    assert split_names(str(tmp_path)) == ["test", "train", "validation"]
    assert streamed(tmp_path, "test") == ["test/b.flac", "test/e.flac"]


def test_folders_of_no_split_are_those_of_train(tmp_path):
    root_metadata(tmp_path, "audio/a.flac", "b.flac", "mp3/test.flac")
    assert len(open_dataset(str(tmp_path), "train")) == 3 and split_names(str(tmp_path)) == ["train"]
    root_metadata(tmp_path, "audio/a.flac", "b.flac", "test/c.flac")
    assert open_dataset(str(tmp_path), "train")["text"][:] == ["audio/a.flac", "b.flac"]
    assert open_dataset(str(tmp_path), "test")["text"][:] == ["test/c.flac"]
    root_metadata(tmp_path, "train/a.flac", "b.flac")
    with pytest.warns(UserWarning, match="1 rows, the first is row 1, lie in none of the folders"):
        assert open_dataset(str(tmp_path), "train")["text"][:] == ["train/a.flac"]


def test_one_metadata_file_in_a_folder(tmp_path):
    root_metadata(tmp_path, "a.flac")
    shutil.copy(tmp_path / "metadata.jsonl", tmp_path / "copy.jsonl")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.flac,other\n")
    with pytest.raises(ValueError, match=r"holds metadata\.jsonl, metadata\.csv; expected one of them"):
        open_dataset(str(tmp_path), "train")


def test_a_length_in_a_csv_is_a_number(tmp_path):
    from collap.data.lengths import song_seconds

    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    (tmp_path / "metadata.csv").write_text("file_name,text,seconds\na.wav,x,12.5\n")
    assert song_seconds(open_dataset(str(tmp_path), "train"), "audio", "seconds") == [12.5]
    for wrong in ("", "NA", "-1", "nan", "inf", "1:30"):
        (tmp_path / "metadata.csv").write_text(f"file_name,text,seconds\na.wav,x,{wrong}\n")
        with pytest.raises(ValueError, match=f"row 0 has seconds .*{wrong}.*; expected the length"):
            song_seconds(open_dataset(str(tmp_path), "train"), "audio", "seconds")
