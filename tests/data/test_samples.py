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

from collap.data import samples as audio_text_data
from collap.data.samples import (
    AudioTextCollator,
    AudioTextDataset,
    audio_source,
    cache_features,
    check_row_texts,
    length_buckets,
    load_cached_features,
    open_dataset,
    row_texts,
    song_segments,
    worker_message,
)
from processing import AudioFileError, decode_audio, load_audio
from processing.decode_audio import audio_seconds, crop_span, header_seconds, load_crop
from processing.feature_extraction_collap import pad_audio_features


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
    assert crop_span(60.0, 10.0, 0.0) == (0.0, 10.0)
    assert crop_span(60.0, 10.0, 0.5) == (25.0, 35.0)
    assert crop_span(60.0, 10.0, 1.0) == (50.0, 60.0)
    assert crop_span(4.0, 10.0, 0.7) == (0.0, 10.0)


@pytest.mark.parametrize("estimate", [0.5, 1.0, 1.3, 5.0])
def test_a_crop_has_its_length_however_wrong_the_header_is(corpus, monkeypatch, estimate):
    """Headers of mp3 and ogg may only estimate the length: of a longer one, the crop is taken from the decoded file."""
    path = str(corpus / "train" / "train-0002.flac")
    seconds = audio_seconds(path)
    monkeypatch.setattr(decode_audio, "header_seconds", lambda source: estimate * seconds)
    for place in (0.0, 0.6, 1.0):
        samples = load_crop(path, 4.0, place)
        assert len(samples) == pytest.approx(4.0 * 16000, rel=0.01)
        if estimate in (1.0, 5.0):
            start, stop = crop_span(seconds, 4.0, place)
            assert np.array_equal(samples, load_audio(path, start=start, stop=stop))
    assert len(load_crop(path, 100.0, 0.5)) == len(load_audio(path))


def test_all_texts_are_checked_before_training(corpus):
    dataset = open_dataset(str(corpus), "train", text_column="captions")
    assert check_row_texts(dataset, "captions") == max((t for texts in dataset["captions"] for t in texts), key=len)
    texts = ["a"] * 1500
    with pytest.raises(ValueError, match="row 1203 has no text"):
        check_row_texts(datasets.Dataset.from_dict({"text": [*texts[:1203], " ", *texts]}), "text")


def training_rows(corpus, crop_seconds, epoch, num_workers) -> list:
    dataset = open_dataset(str(corpus), "train", text_column="captions")
    extractor = tiny_processor().feature_extractor
    rows = AudioTextDataset(dataset, extractor, "audio", "captions", crop_seconds=crop_seconds, seed=3)
    rows.set_epoch(epoch)
    return list(DataLoader(rows, batch_size=None, num_workers=num_workers))


def test_choices_depend_on_epoch_and_row_alone(corpus):
    here, workers, later = (training_rows(corpus, 5.0, *where) for where in ((0, 0), (0, 2), (1, 0)))
    for one, other in zip(here, workers, strict=True):
        assert one.text == other.text
        torch.testing.assert_close(one.audio, other.audio, rtol=0, atol=0)
    different = [
        not torch.equal(one.audio["music_features"], other.audio["music_features"])
        for one, other in zip(here, later, strict=True)
    ]
    assert all(different)
    assert [row.text for row in here] != [row.text for row in later]
    assert all(row.audio["segment_mask"].shape == (3,) for row in here)  # 5 s in segments of 2 s


def test_persistent_workers_see_the_next_epoch(corpus):
    dataset = open_dataset(str(corpus), "train[:2]", text_column="captions")
    rows = AudioTextDataset(dataset, tiny_processor().feature_extractor, "audio", "captions", crop_seconds=5.0, seed=3)
    loader = DataLoader(rows, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (0, 4):
        rows.set_epoch(epoch)
        for sample, expected in zip(loader, training_rows(corpus, 5.0, epoch, 0), strict=False):
            torch.testing.assert_close(sample.audio, expected.audio, rtol=0, atol=0)


def test_the_choice_follows_the_file_and_not_its_row_or_kind_of_storage(corpus, tmp_path):
    dataset = open_dataset(str(corpus), "train", text_column="captions")
    path = dataset[5]["audio"]["path"]
    content = {"bytes": (corpus / "train" / os.path.basename(path)).read_bytes(), "path": os.path.basename(path)}
    unnamed = [{**content, "path": None}] * 2
    stored = datasets.Dataset.from_dict({"audio": [content, *unnamed], "captions": [dataset[5]["captions"]] * 3})
    stored = stored.cast_column("audio", datasets.Audio(decode=False))
    expected = training_rows(corpus, 5.0, 2, 0)[5].audio
    rows = AudioTextDataset(stored, tiny_processor().feature_extractor, "audio", "captions", crop_seconds=5.0, seed=3)
    rows.set_epoch(2)
    torch.testing.assert_close(rows[0].audio, expected, rtol=0, atol=0)
    torch.testing.assert_close(rows[1].audio, rows[2].audio, rtol=0, atol=0)


def loader_of(corpus, **settings) -> DataLoader:
    """All 8 songs in one batch from a worker, whole or as `settings` say."""
    dataset = open_dataset(str(corpus), "train", text_column="captions")
    processor = tiny_processor()
    rows = AudioTextDataset(dataset, processor.feature_extractor, "audio", "captions", **settings)
    return DataLoader(rows, batch_size=8, collate_fn=AudioTextCollator(processor), num_workers=1)


@pytest.mark.parametrize("crop_seconds", [None, 5.0])
def test_features_of_a_worker_and_of_the_device_are_the_same(corpus, crop_seconds):
    settings = {"crop_seconds": crop_seconds, "seed": 3}
    (features,) = loader_of(corpus, **settings)
    (waveforms,) = loader_of(corpus, features_in_worker=False, **settings)
    assert [list(audio) for audio in waveforms.audios] == [["waveform"]] * 8
    assert waveforms.seconds == features.seconds == [len(audio["waveform"]) / 16000 for audio in waveforms.audios]
    extractor = tiny_processor().feature_extractor
    rows = training_rows(corpus, crop_seconds, 0, 0)
    assert [row.name for row in rows] == features.names == waveforms.names
    assert features.names[0] == "row 0 (train-0001.flac)"
    assert (
        features.text["input_ids"].tolist() == tiny_processor()(text=[row.text for row in rows])["input_ids"].tolist()
    )
    for part in (slice(0, 8), slice(3, 5)):
        expected = dict(pad_audio_features([row.audio for row in rows[part]]))
        for batch in (features, waveforms):
            torch.testing.assert_close(batch.audio_inputs(part, "cpu", extractor), expected, rtol=0, atol=0)
            assert batch.text_inputs(part, "cpu")["attention_mask"].shape[0] == len(rows[part])


def test_a_worker_sends_one_tensor_for_each_input(corpus):
    (batch,) = loader_of(corpus)
    assert len(batch) == 8
    for name in batch.audios[0]:
        assert len({audio[name].untyped_storage().data_ptr() for audio in batch.audios}) == 1, name


def test_stored_tokens_replace_the_audio(corpus):
    tokens = [torch.randn(length, 6).half() for length in (12, 30, 25, 12, 12, 12, 12, 12)]
    (batch,) = loader_of(corpus, token_cache=tokens)
    inputs = batch.audio_inputs(slice(1, 4), "cpu", None)
    assert inputs["fused_tokens"].shape == (3, 30, 6) and inputs["fused_tokens"].dtype == torch.float32
    assert inputs["audio_token_mask"].sum(1).tolist() == [30, 25, 12]
    torch.testing.assert_close(inputs["fused_tokens"][1, :25], tokens[2].float(), rtol=0, atol=0)
    assert not inputs["fused_tokens"][1, 25:].any() and not inputs["audio_token_mask"][1, 25:].any()
    assert batch.seconds[1] == pytest.approx(4 + 6 * 0.16)  # 12 tokens in a segment of 2 s
    with pytest.raises(ValueError, match="crop_seconds needs the audio, but the token cache"):
        loader_of(corpus, token_cache=tokens, crop_seconds=5.0)


def test_cached_features_are_those_of_the_audio(corpus):
    dataset = open_dataset(str(corpus), "train", text_column="captions")
    extractor = tiny_processor().feature_extractor
    cached = cache_features(dataset, extractor, "audio", num_workers=2)
    fresh = AudioTextDataset(dataset, extractor, "audio", "captions")
    for row in (0, 7):
        torch.testing.assert_close(load_cached_features(cached[row]), fresh[row].audio, rtol=0, atol=0)
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
    fresh = AudioTextDataset(dataset, extractor, "audio", "text")[0].audio
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
    cached = cache_features(dataset, extractor, "audio")
    assert song_segments(cached, "audio", 2)[1] == 1
    with pytest.raises(AudioFileError, match=message) as using:
        AudioTextDataset(cached, extractor, "audio", "text")[1]
    assert str(reading.value) == str(using.value)
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
        AudioTextDataset(cache_features(dataset, extractor, "audio"), extractor, "audio", "text")[0]
    with pytest.raises(ValueError, match="crop_seconds must be at least 0.1, found 0.05"):
        AudioTextDataset(dataset, extractor, "audio", "text", crop_seconds=0.05)


def test_paths_in_a_struct_column_may_not_leave_the_folder_either(tmp_path):
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": "/etc/hostname"}], "text": ["a song"]})
    rows.to_parquet(tmp_path / "songs.parquet")
    with pytest.raises(ValueError, match="outside of the data set's folder"):
        open_dataset(str(tmp_path / "songs.parquet"), "train")


def folder_of_songs(folder, seconds: list[float | None]):
    """A folder of wav files of noise and their metadata; None for a file that is no audio."""
    lines = []
    for index, length in enumerate(seconds):
        path = folder / f"{index}.wav"
        if length is None:
            path.write_bytes(b"not music")
        else:
            soundfile.write(path, np.random.default_rng(index).normal(size=round(16000 * length)) * 0.1, 16000)
        lines.append(json.dumps({"file_name": path.name, "text": f"song {index}", "duration": length}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return open_dataset(str(folder), "train")


def batches_of(dataset, batches: list[list[int]], epoch: int = 0, num_workers: int = 0) -> list:
    processor = tiny_processor()
    rows = AudioTextDataset(dataset, processor.feature_extractor, "audio", "text", features_in_worker=False)
    rows.set_epoch(epoch)
    collate = AudioTextCollator(processor)
    return list(DataLoader(rows, batch_sampler=batches, collate_fn=collate, num_workers=num_workers))


def test_bad_files_are_replaced_and_named(tmp_path):
    dataset = folder_of_songs(tmp_path, [0.5, None, 0.5, None, 0.5, 0.5, 0.5, 0.5])
    plan = [[0, 1, 2], [3, 4, 5], [6, 7, 0]]
    here = batches_of(dataset, plan)
    for batch, rows in zip(here, plan, strict=True):
        good = [f"row {row} ({row}.wav)" for row in rows if row not in (1, 3)]
        assert [name for name in batch.names if name in good] == good
        assert len(set(batch.names)) == 3
        assert not {"row 1 (1.wav)", "row 3 (3.wav)"} & set(batch.names)
    assert here[0].skipped[0][0] == "row 1 (1.wav)"
    assert "1.wav: not an audio file" in here[0].skipped[0][1]
    assert here[1].skipped[0][0] == "row 3 (3.wav)" and here[2].skipped == []
    there = batches_of(dataset, plan, num_workers=2)
    assert [(batch.names, batch.skipped) for batch in there] == [(batch.names, batch.skipped) for batch in here]
    stand_ins = {tuple(batches_of(dataset, plan[:1], epoch)[0].names) for epoch in range(6)}
    assert len(stand_ins) > 1


def test_a_batch_without_a_row_to_stand_in_names_the_files(tmp_path):
    dataset = folder_of_songs(tmp_path, [0.5, None, 0.5, None])
    with pytest.raises(AudioFileError, match=r"row 1 \(1\.wav\): .*not an audio.*; row 3 \(3\.wav\): .*met 2 files"):
        batches_of(dataset, [[0, 1, 2]])
    with pytest.raises(AudioFileError, match=r"row 1 \(1\.wav\)"):
        batches_of(dataset, [[0, 1, 2, 3]])


def test_a_missing_text_is_no_bad_file(tmp_path):
    dataset = folder_of_songs(tmp_path, [0.5, 0.5, 0.5])
    dataset = dataset.map(lambda example, row: {"text": "" if row == 1 else "a"}, with_indices=True)
    with pytest.raises(ValueError, match="^row 1 has no text"):
        batches_of(dataset, [[0, 1]])


def test_length_buckets():
    lengths = np.repeat([3, 9, 1, 5], 25)
    buckets = length_buckets(lengths, 10, np.random.default_rng(0))
    assert sorted(buckets.flatten()) == list(range(100))
    assert sum(len(set(lengths[batch])) for batch in buckets) <= 10 + 3
    means = lengths[buckets].mean(1)
    assert means.tolist() != sorted(means)
    assert not np.array_equal(buckets, length_buckets(lengths, 10, np.random.default_rng(1)))


def test_segments_by_duration_column_header_and_cached_features(tmp_path):
    lengths = [0.5, 2.0, 2.0001, 5.0]
    dataset = folder_of_songs(tmp_path, lengths)
    extractor = tiny_processor().feature_extractor
    assert song_segments(dataset, "audio", 2, "duration") == [1, 1, 2, 3]
    assert song_segments(dataset, "audio", 2) == [1, 1, 2, 3]
    cached = cache_features(dataset, extractor, "audio")
    assert song_segments(cached.select([3, 0]), "audio", 2) == [3, 1]
    assert song_segments(cached, "audio", 2) == [len(load_cached_features(row)["segment_mask"]) for row in cached]


def test_segments_equal_those_of_the_features_at_every_rate(tmp_path):
    for rate in (8000, 11025, 44100, 48000):
        soundfile.write(tmp_path / "song.wav", np.zeros(4 * rate + (rate == 11025)), rate)
        samples = load_audio(tmp_path / "song.wav")
        found = audio_text_data.num_segments(header_seconds(str(tmp_path / "song.wav")), 2)
        assert found == -(-len(samples) // 32000), rate
    assert audio_text_data.num_segments(0.54, 0.18) == 3  # 3.0000000000000004 in floating point


def test_headers_are_read_once_and_bad_files_count_as_one_segment(tmp_path, monkeypatch):
    dataset = folder_of_songs(tmp_path, [2.5, None, 5.0])
    assert song_segments(dataset, "audio", 2) == [2, 1, 3]
    monkeypatch.setattr(audio_text_data, "header_seconds", lambda source: 100.0)
    assert song_segments(dataset, "audio", 2) == [2, 1, 3]
    soundfile.write(tmp_path / "1.wav", np.zeros(16000), 16000)
    assert song_segments(dataset, "audio", 2) == [50, 50, 50]


@pytest.mark.parametrize("value", [None, float("nan"), -1.0, 0.0, float("inf")])
def test_durations_that_are_none_name_their_row(tmp_path, value):
    dataset = folder_of_songs(tmp_path, [0.5, 0.5])
    dataset = dataset.remove_columns("duration").add_column("duration", [0.5, value])
    with pytest.raises(ValueError, match=f"row 1 has duration {value}; expected the length of its audio in seconds"):
        song_segments(dataset, "audio", 2, "duration")
    with pytest.raises(ValueError, match="no column 'durations'.*did you mean 'duration'"):
        song_segments(dataset, "audio", 2, "durations")


def test_the_header_of_a_coded_file_says_about_how_long_it_is(tmp_path):
    soundfile.write(tmp_path / "song.ogg", np.random.default_rng(0).normal(size=16000 * 7) * 0.1, 16000)
    assert header_seconds(str(tmp_path / "song.ogg")) == pytest.approx(7.0, abs=0.1)
