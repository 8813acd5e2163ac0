"""Opening data sets of audio and text, and their rows as training batches."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from tiny import tiny_processor
from torch.utils.data import DataLoader

from processing import load_audio
from processing.audio_text_data import (
    AudioTextCollator,
    AudioTextDataset,
    audio_source,
    cache_features,
    crop_span,
    load_cached_features,
    open_dataset,
    row_texts,
)


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


def test_row_texts():
    assert row_texts("a song", 0) == ["a song"]
    assert row_texts(["a", " ", "b"], 0) == ["a", "b"]
    for empty in (None, "", [], ["  "]):
        with pytest.raises(ValueError, match="row 7 has no text"):
            row_texts(empty, 7)


def test_crop_span_stays_inside():
    generator = np.random.default_rng(0)
    spans = [crop_span(60.0, 10.0, generator) for _ in range(200)]
    assert all(start >= 0 and stop <= 60 and abs(stop - start - 10) < 1e-9 for start, stop in spans)
    assert min(start for start, _ in spans) < 5 and max(start for start, _ in spans) > 45
    assert crop_span(4.0, 10.0, generator) == (0.0, 4.0)


def training_rows(corpus, crop_seconds, epoch, num_workers) -> list[dict]:
    dataset = open_dataset(str(corpus), "train", text_column="captions")
    extractor = tiny_processor().feature_extractor
    rows = AudioTextDataset(dataset, extractor, "audio", "captions", crop_seconds=crop_seconds, seed=3)
    rows.set_epoch(epoch)
    return list(DataLoader(rows, batch_size=None, num_workers=num_workers))


def test_choices_depend_on_epoch_and_row_alone(corpus):
    here, workers, later = (training_rows(corpus, 5.0, *where) for where in ((0, 0), (0, 2), (1, 0)))
    for one, other in zip(here, workers, strict=True):
        assert one["text"] == other["text"]
        torch.testing.assert_close(one["features"], other["features"], rtol=0, atol=0)
    different = [
        not torch.equal(one["features"]["music_features"], other["features"]["music_features"])
        for one, other in zip(here, later, strict=True)
    ]
    assert all(different)
    assert [row["text"] for row in here] != [row["text"] for row in later]
    assert all(row["features"]["segment_mask"].shape == (3,) for row in here)  # 5 s in segments of 2 s


def test_collator_joins_songs_of_unequal_length(corpus):
    rows = training_rows(corpus, None, 0, 0)
    batch = AudioTextCollator(tiny_processor())(rows)
    lengths = [len(row["features"]["segment_mask"]) for row in rows]
    assert len(set(lengths)) > 1
    assert batch["segment_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"].shape[0] == len(rows)
    row, length = rows[2], lengths[2]
    torch.testing.assert_close(batch["speech_features"][2, :length], row["features"]["speech_features"])
    assert not batch["music_features"][2, length:].any()


def test_cached_features_are_those_of_the_audio(corpus):
    dataset = open_dataset(str(corpus), "train", text_column="captions")
    extractor = tiny_processor().feature_extractor
    cached = cache_features(dataset, extractor, "audio", num_workers=2)
    fresh = AudioTextDataset(dataset, extractor, "audio", "captions")
    for row in (0, 7):
        torch.testing.assert_close(load_cached_features(cached[row]), fresh[row]["features"], rtol=0, atol=0)
    again = cache_features(dataset, extractor, "audio", num_workers=2)
    assert [file["filename"] for file in again.cache_files] == [file["filename"] for file in cached.cache_files]
    with pytest.raises(ValueError, match="crop_seconds needs the audio"):
        AudioTextDataset(cached, extractor, "audio", "captions", crop_seconds=5.0)
