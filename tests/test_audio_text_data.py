"""Opening data sets of audio and text, and their rows as training batches."""

import json
import os
import shutil

import datasets
import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_processor
from torch.utils.data import DataLoader

from processing import AudioFileError, audio_text_data, load_audio
from processing.audio_text_data import (
    AudioTextCollator,
    AudioTextDataset,
    audio_source,
    cache_features,
    crop_span,
    load_cached_features,
    open_dataset,
    row_texts,
    worker_message,
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


def write_table(folder, seconds: float = 1.0, text: str = "a song"):
    """A folder with song.wav, noise of that length, and songs.jsonl, whose only row it is."""
    noise = np.random.default_rng(0).normal(size=int(16000 * seconds)) * 0.1
    soundfile.write(folder / "song.wav", noise, 16000)
    (folder / "songs.jsonl").write_text(json.dumps({"audio": "song.wav", "text": text}) + "\n")
    return folder / "songs.jsonl"


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
        ("songs.csv", "audio,text\n1,a song\n", "songs.csv: the column 'audio' holds .*int64.*expected audio"),
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


def test_row_texts():
    assert row_texts("a song", 0) == ["a song"]
    assert row_texts(["a", " ", "b"], 0) == ["a", "b"]
    for empty in (None, "", [], ["  "]):
        with pytest.raises(ValueError, match="row 7 has no text"):
            row_texts(empty, 7)
    assert row_texts(["a", None], 0) == ["a"]
    for other in (3, ["a", None, 3], {"a": "b"}):
        with pytest.raises(ValueError, match="row 7 has .* as text; expected a string or a list of strings"):
            row_texts(other, 7)


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


def test_features_of_a_changed_file_are_computed_anew(tmp_path):
    dataset = open_dataset(str(write_table(tmp_path)), "train")
    extractor = tiny_processor().feature_extractor
    before = load_cached_features(cache_features(dataset, extractor, "audio")[0])
    status = os.stat(tmp_path / "song.wav")
    soundfile.write(tmp_path / "song.wav", np.zeros(16000), 16000)
    assert os.stat(tmp_path / "song.wav").st_size == status.st_size
    os.utime(tmp_path / "song.wav", ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the clock may be coarse
    after = load_cached_features(cache_features(dataset, extractor, "audio")[0])
    assert not torch.equal(before["music_features"], after["music_features"])
    fresh = AudioTextDataset(dataset, extractor, "audio", "text")[0]["features"]
    torch.testing.assert_close(after, fresh, rtol=0, atol=0)


def test_features_of_changed_code_are_computed_anew(tmp_path, monkeypatch):
    dataset = open_dataset(str(write_table(tmp_path)), "train")
    extractor = tiny_processor().feature_extractor
    files = []
    for version in (1, 1, 2):
        monkeypatch.setattr(audio_text_data, "FEATURES_VERSION", version)
        files.append(cache_features(dataset, extractor, "audio").cache_files[0]["filename"])
    assert files[0] == files[1] != files[2]


def test_caching_leaves_the_number_of_threads(tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        cache_features(open_dataset(str(write_table(tmp_path)), "train"), tiny_processor().feature_extractor, "audio")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


BAD_AUDIO = {
    "bytes": ({"bytes": b"not music", "path": None}, r"^row 1: <9 bytes>: not an audio file"),
    "named bytes": ({"bytes": b"not music", "path": "song.mp3"}, r"^row 1 \(song\.mp3\): <9 bytes>: not an audio file"),
    "path": ({"bytes": None, "path": "/nowhere/song.mp3"}, r"^row 1 \(song\.mp3\): '/nowhere/song\.mp3': cannot be"),
    "null": (None, "^row 1: has no audio"),
    "null fields": ({"bytes": None, "path": None}, "^row 1: has no audio"),
}


def rows_with_bad_audio(corpus, bad) -> datasets.Dataset:
    good = {"bytes": None, "path": str(corpus / "test" / "test-0001.flac")}
    rows = datasets.Dataset.from_dict({"audio": [good, bad], "text": ["a", "b"]})
    return rows.cast_column("audio", datasets.Audio(decode=False))


@pytest.mark.parametrize("kind", BAD_AUDIO)
def test_bad_audio_names_its_row_once(corpus, kind):
    bad, message = BAD_AUDIO[kind]
    dataset, extractor = rows_with_bad_audio(corpus, bad), tiny_processor().feature_extractor
    with pytest.raises(AudioFileError, match=message) as reading:
        AudioTextDataset(dataset, extractor, "audio", "text")[1]
    with pytest.raises(AudioFileError, match=message) as caching:
        cache_features(dataset, extractor, "audio")
    assert str(reading.value) == str(caching.value)
    assert str(reading.value).count("row 1") == 1


def test_bad_audio_in_a_worker_is_one_line(corpus):
    dataset = rows_with_bad_audio(corpus, {"bytes": b"not music", "path": "song.mp3"})
    rows = AudioTextDataset(dataset, tiny_processor().feature_extractor, "audio", "text", crop_seconds=1.0)
    with pytest.raises(AudioFileError) as caught:
        list(DataLoader(rows, batch_size=None, num_workers=1))
    assert "Traceback" in str(caught.value)
    message = worker_message(caught.value)
    assert message.startswith("AudioFileError: row 1 (song.mp3): <9 bytes>: not an audio file")
    assert "\n" not in message
    assert worker_message(ValueError("row 7 has no text")) == "row 7 has no text"


@pytest.mark.parametrize("crop_seconds", [None, 1.0])
def test_audio_below_a_tenth_of_a_second_is_refused(tmp_path, crop_seconds):
    dataset = open_dataset(str(write_table(tmp_path, seconds=0.09)), "train")
    extractor = tiny_processor().feature_extractor
    message = r"row 0 \(song\.wav\): .*song\.wav: is 0\.090 s long; expected at least 0\.1 s"
    with pytest.raises(AudioFileError, match=message):
        AudioTextDataset(dataset, extractor, "audio", "text", crop_seconds=crop_seconds)[0]
    with pytest.raises(AudioFileError, match=message):
        cache_features(dataset, extractor, "audio")
    with pytest.raises(ValueError, match="crop_seconds must be at least 0.1, found 0.05"):
        AudioTextDataset(dataset, extractor, "audio", "text", crop_seconds=0.05)


def test_paths_in_a_struct_column_may_not_leave_the_folder_either(tmp_path):
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": "/etc/hostname"}], "text": ["a song"]})
    rows.to_parquet(tmp_path / "songs.parquet")
    with pytest.raises(ValueError, match="outside of the data set's folder"):
        open_dataset(str(tmp_path / "songs.parquet"), "train")
