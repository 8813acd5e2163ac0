"""Rows of audio and text as training samples and batches."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from small_sets import folder_of_songs, write_table
from tiny import tiny_processor
from torch.utils.data import DataLoader

from collap.data.batches import AudioTextCollator
from collap.data.feature_cache import cache_features
from collap.data.lengths import song_segments
from collap.data.rows import check_row_texts, row_texts, worker_message
from collap.data.samples import AudioTextDataset
from collap.data.sources import open_dataset
from collap.data.token_cache import audio_sizes
from collap.evaluation.retrieval import collect_songs
from processing import AudioFileError, decode_audio, load_audio
from processing.decode_audio import audio_seconds, crop_span, load_crop
from processing.feature_extraction_collap import pad_audio_features

BAD_AUDIO = {
    "bytes": ({"bytes": b"not music", "path": None}, r"^row 1: <9 bytes>: not an audio file"),
    "named bytes": ({"bytes": b"not music", "path": "song.mp3"}, r"^row 1 \(song\.mp3\): <9 bytes>: not an audio file"),
    "path": ({"bytes": None, "path": "/nowhere/song.mp3"}, r"^row 1 \(song\.mp3\): /nowhere/song\.mp3: cannot be"),
    "null": (None, "^row 1: has no audio"),
    "null fields": ({"bytes": None, "path": None}, "^row 1: has no audio"),
}


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


# --------------------------------------------------------------------------------------------------------------------
# Only the columns that are needed are read


MEGABYTES = 24


@pytest.fixture
def large_rows(tmp_path):
    """Rows of 1 MB of bytes each, which are no audio, and what of their file has been read since this was called."""
    generator = np.random.default_rng(0)
    rows = [
        {"audio": {"bytes": generator.bytes(1_000_000), "path": f"{row}.wav"}, "text": f"song {row}", "song": row}
        for row in range(MEGABYTES)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "songs.parquet")
    dataset = open_dataset(str(tmp_path / "songs.parquet"), "train")
    (file,) = {cached["filename"] for cached in dataset.cache_files}
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

    def bytes_read() -> int:
        """Sum of the pages of the file that this process has touched."""
        total, counts = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                counts = line.endswith(file)
            elif counts and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
        return total

    return dataset, bytes_read, tmp_path / "songs.parquet"


def test_what_is_stored_is_trained_from_without_reading_the_audio(large_rows):
    dataset, bytes_read, _ = large_rows
    before = bytes_read()
    processor, tokens = tiny_processor(), [torch.randn(12, 6)] * MEGABYTES
    rows = AudioTextDataset(dataset, processor.feature_extractor, "audio", "text", token_cache=tokens)
    loader = DataLoader(rows, batch_size=8, collate_fn=AudioTextCollator(processor))
    names = [name for batch in loader for name in batch.names]
    assert names == [f"row {row} ({row}.wav)" for row in range(MEGABYTES)]
    assert check_row_texts(dataset, "text") == "song 10"
    assert list(audio_sizes(dataset, "audio")) == [(f"{row}.wav", 1_000_000) for row in range(MEGABYTES)]
    assert bytes_read() - before < 0.1 * MEGABYTES * 1e6
    assert len(dataset[3]["audio"]["bytes"]) == 1_000_000
    assert len(dataset[:]["audio"]) == MEGABYTES and bytes_read() - before > 0.9 * MEGABYTES * 1e6  # it does count


def test_stored_features_are_read_without_the_audio(large_rows):
    dataset, bytes_read, table = large_rows
    extractor = tiny_processor().feature_extractor
    cache_features(dataset, extractor, "audio")  # reads all of it
    before = bytes_read()
    cached = cache_features(open_dataset(str(table), "train"), extractor, "audio")  # maps the file anew
    rows = AudioTextDataset(cached, extractor, "audio", "text")
    for row in (0, 5):
        with pytest.raises(AudioFileError, match=rf"^row {row} \({row}\.wav\): <1000000 bytes>: not an audio file"):
            rows[row]
    assert song_segments(cached, "audio", 2) == [1] * MEGABYTES
    assert bytes_read() - before < 0.1 * MEGABYTES * 1e6
    assert len(cached[:]["audio"]) == MEGABYTES and bytes_read() - before > 0.9 * MEGABYTES * 1e6  # it does count


def test_songs_are_collected_without_reading_their_audio(large_rows):
    dataset, bytes_read, _ = large_rows
    before = bytes_read()
    songs = collect_songs(dataset, "text", "song")
    assert songs.names == [str(row) for row in range(MEGABYTES)] and songs.texts[7] == "song 7"
    assert collect_songs(dataset, "text", None).names[1] == "row 1"
    assert bytes_read() - before < 0.1 * MEGABYTES * 1e6
