"""Opening data sets of every kind, and what is said of those that cannot be opened."""

import json
import shutil

import datasets
import numpy as np
import pytest
from small_sets import write_table

from collap.data.rows import audio_source
from collap.data.sources import open_dataset
from processing import load_audio


def first_audio(dataset) -> np.ndarray:
    return load_audio(audio_source(dataset[0]["audio"]))


def test_audiofolder_layout_with_splits(corpus):
    dataset = open_dataset(str(corpus), "test", text_column="captions")
    assert len(dataset) == 4
    assert dataset[0]["song_id"] == "test-0001"
    np.testing.assert_array_equal(first_audio(dataset), load_audio(corpus / "test" / "test-0001.flac"))
    assert len(open_dataset(str(corpus), "train[:3]", text_column="captions")) == 3


def test_flat_folder_is_the_train_split(corpus, tmp_path):
    shutil.copytree(corpus / "test", tmp_path / "flat")
    dataset = open_dataset(str(tmp_path / "flat"), "train", text_column="captions")
    np.testing.assert_array_equal(first_audio(dataset), load_audio(corpus / "test" / "test-0001.flac"))


def test_csv_with_relative_paths(corpus, tmp_path):
    shutil.copy(corpus / "test" / "test-0001.flac", tmp_path / "one.flac")
    (tmp_path / "songs.csv").write_text("sound,words\none.flac,a song\n")
    dataset = open_dataset(str(tmp_path / "songs.csv"), "train", "sound", "words")
    assert dataset[0]["words"] == "a song"
    assert load_audio(audio_source(dataset[0]["sound"])).size > 16000 * 10


def test_parquet_with_audio_bytes_and_save_to_disk(corpus, tmp_path):
    content = (corpus / "test" / "test-0001.flac").read_bytes()
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": content, "path": None}], "text": ["a song"]})
    rows.to_parquet(tmp_path / "songs.parquet")
    rows.save_to_disk(tmp_path / "disk")
    expected = load_audio(corpus / "test" / "test-0001.flac")
    for source in (tmp_path / "songs.parquet", tmp_path / "disk"):
        np.testing.assert_array_equal(first_audio(open_dataset(str(source), "train")), expected)


def test_a_folder_of_parquet_shards(corpus, tmp_path):
    """The same folder that is streamed, opened as a table; each split has shards of its own."""
    for split, names in (("train", ["test-0001", "test-0002", "test-0003"]), ("validation", ["test-0004"])):
        for number, name in enumerate(names):
            content = (corpus / "test" / f"{name}.flac").read_bytes()
            row = {"audio": [{"bytes": content, "path": f"{name}.flac"}], "text": [name]}
            datasets.Dataset.from_dict(row).to_parquet(tmp_path / f"{split}-{number:05d}-of-{len(names):05d}.parquet")
    assert open_dataset(str(tmp_path), "train")["text"][:] == ["test-0001", "test-0002", "test-0003"]
    assert open_dataset(str(tmp_path), "train[1:2]")["text"][:] == ["test-0002"]
    expected = load_audio(corpus / "test" / "test-0004.flac")
    np.testing.assert_array_equal(first_audio(open_dataset(str(tmp_path), "validation")), expected)


@pytest.mark.parametrize(("split", "rows"), [("test[1:3]", [1, 2]), ("test[:50%]", [0, 1]), ("test[-1:]", [3])])
def test_slices_of_every_local_source(corpus, tmp_path, split, rows):
    whole = open_dataset(str(corpus), "test", text_column="captions")
    datasets.DatasetDict({"test": whole, "train": whole}).save_to_disk(tmp_path / "disk")
    for source in (corpus, tmp_path / "disk"):
        found = open_dataset(str(source), split, text_column="captions")
        assert list(found["song_id"]) == [whole[row]["song_id"] for row in rows]
    with pytest.raises(ValueError, match=r"disk: no split 'dev'; the splits are \['test', 'train'\]"):
        open_dataset(str(tmp_path / "disk"), "dev[:2]", text_column="captions")
    with pytest.raises(ValueError, match="disk: Unrecognized instruction format"):
        open_dataset(str(tmp_path / "disk"), "test[:2", text_column="captions")


def test_a_single_table_is_the_train_split(tmp_path):
    table = write_table(tmp_path)
    assert len(open_dataset(str(table), "train[:1]")) == 1
    for path in (table, shutil.copy(table, tmp_path / "metadata.jsonl")):
        with pytest.raises(ValueError, match="no split 'test'; a single table is the split 'train'"):
            open_dataset(str(path), "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("songs.jsonl", '{"audio": "a.wav", "text"\n', "songs.jsonl: JSON parse error"),
        ("songs.csv", "", "songs.csv: is empty"),
        ("songs.json", "", "songs.json: is empty"),
        ("songs.csv", "audio,text\na.wav,b\na.wav,b,c,d\n", "songs.csv: .*Expected 2 fields in line 3, saw 4"),
        (
            "songs.jsonl",
            '{"audio": 1, "text": "a song"}\n',
            "songs.jsonl: the column 'audio' holds .*int64.*expected audio",
        ),
        ("songs.csv", "audio,text\na.wav,a song\n,a song\n", "row 1 has no audio"),
    ],
)
def test_malformed_tables_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path / name), "train")


def test_a_damaged_save_to_disk_is_named(tmp_path):
    datasets.Dataset.from_dict({"audio": ["a.wav"], "text": ["a"]}).save_to_disk(tmp_path / "disk")
    (tmp_path / "disk" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="disk: not a whole folder of save_to_disk"):
        open_dataset(str(tmp_path / "disk"), "train")


def test_unknown_column_names_the_nearest(corpus):
    with pytest.raises(ValueError, match="no column 'caption'.*'captions'.*did you mean 'captions'"):
        open_dataset(str(corpus), "test", text_column="caption")


def test_missing_folder_split_and_metadata(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_dataset(str(tmp_path / "nowhere"), "train")
    with pytest.raises(FileNotFoundError, match="owner/name"):
        open_dataset("nowhere", "train")
    with pytest.raises(FileNotFoundError, match="neither a local folder nor a Hub data set in reach"):
        open_dataset("owner/songs", "train")
    with pytest.raises(ValueError, match=r"'dev'; the splits are \['test', 'train', 'validation'\]"):
        open_dataset(str(corpus), "dev", text_column="captions")
    with pytest.raises(ValueError, match="expected one with the columns file_name"):
        open_dataset(str(tmp_path), "train")
    (tmp_path / "songs.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected one of \.csv"):
        open_dataset(str(tmp_path / "songs.txt"), "train")


@pytest.mark.parametrize("path", ["../secret.flac", "/etc/hostname", "sub/../../secret.flac"])
def test_paths_may_not_leave_the_folder(tmp_path, path):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.flac").write_bytes(b"x")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": path, "text": "a song"}) + "\n")
    with pytest.raises(ValueError, match="outside of the data set's folder"):
        open_dataset(str(folder), "train")


def test_paths_in_a_struct_column_may_not_leave_the_folder_either(tmp_path):
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": "/etc/hostname"}], "text": ["a song"]})
    rows.to_parquet(tmp_path / "songs.parquet")
    with pytest.raises(ValueError, match="outside of the data set's folder"):
        open_dataset(str(tmp_path / "songs.parquet"), "train")


def test_a_kind_of_data_set_can_be_named(corpus, tmp_path, monkeypatch):
    """`NAME:PLACE` of the catalogue; a folder that is called so is that folder."""
    assert len(open_dataset(f"folder:{corpus}", "test", text_column="captions")) == 4
    assert open_dataset(f"table:{write_table(tmp_path)}", "train")["text"][:] == ["a song"]
    with pytest.raises(FileNotFoundError, match=r"songs\.jsonl: expected a folder of audio files with metadata"):
        open_dataset(f"folder:{tmp_path / 'songs.jsonl'}", "train")
    with pytest.raises(FileNotFoundError, match="neither a local folder nor a Hub data set in reach"):
        open_dataset("hub:owner/songs", "train")
    (tmp_path / "hub:owner").mkdir()
    shutil.copytree(corpus / "test", tmp_path / "hub:owner" / "songs")
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("hub:owner/songs", "train", text_column="captions")) == 4
