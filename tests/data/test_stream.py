"""Streams of audio and text: opening them, rows once in an epoch, exact resuming, and bad files."""

import io
import json
from collections import Counter

import datasets
import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_processor
from torch.utils.data import DataLoader

from collap.data.batches import AudioTextBatch, AudioTextCollator
from collap.data.samples import AudioTextDataset, SampleReader
from collap.data.sources import open_dataset, open_stream
from collap.data.stream import AudioTextStream, stream_state
from processing import AudioFileError

PROCESSOR = tiny_processor()


def wav_bytes(index: int) -> bytes:
    """Noise of 0.2 to 4.2 s."""
    generator = np.random.default_rng(index)
    content = io.BytesIO()
    soundfile.write(content, generator.normal(size=generator.integers(3200, 67200)) * 0.1, 16000, format="WAV")
    return content.getvalue()


def write_shards(folder, sizes: list[int], bad: tuple[int, ...] = ()):
    """Parquet shards with the bytes of songs 0.wav, 1.wav, ...; the `bad` ones are no audio."""
    first = 0
    for shard, size in enumerate(sizes):
        rows = [
            {
                "audio": {"bytes": b"not music" if song in bad else wav_bytes(song), "path": f"{song}.wav"},
                "text": [f"song {song}", "some song"],
                "artist": "unknown",
            }
            for song in range(first, first + size)
        ]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"train-{shard:05d}-of-{len(sizes):05d}.parquet")
        first += size
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    """12 shards of 2 songs."""
    return write_shards(tmp_path_factory.mktemp("shards"), [2] * 12)


def stream_of(source, batch_size=4, **settings) -> AudioTextStream:
    dataset = open_stream(source, "train")
    return AudioTextStream(dataset, PROCESSOR, "audio", "text", batch_size, features_in_worker=False, **settings)


def first_batches(stream: AudioTextStream, count: int) -> list[AudioTextBatch]:
    batches = iter(DataLoader(stream, batch_size=None, num_workers=stream.num_workers))
    return [next(batches) for _ in range(count)]


def songs(batches: list[AudioTextBatch]) -> list[str]:
    return [name.split("(")[1] for batch in batches for name in batch.names]


def assert_equal(one: AudioTextBatch, other: AudioTextBatch):
    assert (one.names, one.seconds, one.skipped, one.state) == (other.names, other.seconds, other.skipped, other.state)
    torch.testing.assert_close(one.text, other.text, rtol=0, atol=0)
    torch.testing.assert_close(one.audios, other.audios, rtol=0, atol=0)


@pytest.mark.parametrize(("num_workers", "processes"), [(0, 1), (0, 2), (0, 3), (1, 2), (2, 1), (2, 3)])
def test_every_row_once_in_an_epoch(shards, num_workers, processes):
    settings = {"num_processes": processes, "num_workers": num_workers, "window": 2}
    streams = [stream_of(shards, 2 * processes, process_index=index, **settings) for index in range(processes)]
    epoch_batches = 24 // (2 * processes)
    found = [first_batches(stream, 2 * epoch_batches) for stream in streams]
    for epoch in (0, 1):
        part = slice(epoch * epoch_batches, (epoch + 1) * epoch_batches)
        names = [song for batches in found for song in songs(batches[part])]
        assert sorted(names) == sorted(f"{song}.wav)" for song in range(24))
    assert songs(found[0][:epoch_batches]) != songs(found[0][epoch_batches:])


def recorded_epochs(monkeypatch, stream: AudioTextStream, count: int) -> Counter:
    """(epoch, row) of the samples of the first batches, which hold no song twice."""
    read, seen = SampleReader.read, Counter()

    def reading(self, example, row, epoch, stored=None):
        seen[epoch, row] += 1
        return read(self, example, row, epoch, stored)

    monkeypatch.setattr(SampleReader, "read", reading)
    for batch in first_batches(stream, count):
        assert len(set(batch.names)) == len(batch)
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize(("sizes", "processes"), [([3, 4, 1, 5, 3], 2), ([13, 10], 3)])
def test_shards_of_any_size_and_fewer_than_processes(tmp_path, monkeypatch, sizes, processes):
    source = write_shards(tmp_path, sizes)
    total = Counter()
    for index in range(processes):
        stream = stream_of(source, 3 * processes, process_index=index, num_processes=processes, window=24)
        total += recorded_epochs(monkeypatch, stream, 16)
    assert max(total.values()) == 1
    for epoch in (0, 1):
        assert len([row for found, row in total if found == epoch]) == sum(sizes)


@pytest.mark.parametrize(("num_workers", "bad"), [(0, ()), (1, (7,)), (2, (3, 4, 10))])
def test_it_goes_on_after_any_batch(tmp_path, num_workers, bad):
    source = write_shards(tmp_path, [3, 5, 2, 6], bad)
    settings = {"batch_size": 2, "crop_seconds": 1.0, "seed": 5, "window": 6, "num_workers": num_workers}
    whole = first_batches(stream_of(source, **settings), 16)
    assert {epoch for batch in whole for epoch in [batch.state["start"][0]]} >= {0, 1}
    assert bool(bad) == any(batch.skipped for batch in whole)
    state = None
    for done, batch in enumerate(whole[:11], 1):
        state = json.loads(json.dumps(stream_state(state, batch.state)))
        if num_workers and done not in (1, 6, 11):
            continue  # workers take a while to start
        resumed = stream_of(source, **settings)
        resumed.load_state_dict(state)
        for expected, found in zip(whole[done : done + 3], first_batches(resumed, 3), strict=True):
            assert_equal(found, expected)


def test_resuming_decodes_nothing_of_what_was_trained_on(shards, monkeypatch):
    settings = {"window": 16}
    whole = first_batches(stream_of(shards, **settings), 3)
    state = None
    for batch in whole:
        state = stream_state(state, batch.state)
    resumed = stream_of(shards, **settings)
    resumed.load_state_dict(state)
    assert sum(recorded_epochs(monkeypatch, resumed, 1).values()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_workers": 2}, r"saved with lanes 1 \(now 2\)"),
        ({"seed": 1}, r"seed 0 \(now 1\)"),
        ({"batch_size": 6}, r"batch_size 4 \(now 6\), window 64 \(now 96\)"),
        ({"num_processes": 2}, r"processes 1 \(now 2\)"),
    ],
)
def test_the_state_of_another_stream_is_refused(shards, change, message):
    (batch,) = first_batches(stream_of(shards), 1)
    with pytest.raises(ValueError, match=message):
        stream_of(shards, **change).load_state_dict(stream_state(None, batch.state))


def test_a_stream_and_a_table_make_the_same_inputs(shards, tmp_path):
    stream = stream_of(shards, crop_seconds=0.5, seed=2)
    (batch,) = first_batches(stream, 1)
    first = int(batch.names[0].split("(")[1].split(".")[0])
    (tmp_path / f"{first}.wav").write_bytes(wav_bytes(first))
    line = {"file_name": f"{first}.wav", "text": [f"song {first}", "some song"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    table = open_dataset(str(tmp_path), "train")
    rows = AudioTextDataset(table, PROCESSOR.feature_extractor, "audio", "text", crop_seconds=0.5, seed=2)
    expected = AudioTextCollator(PROCESSOR)([rows[0]])
    part, extractor = slice(0, 1), PROCESSOR.feature_extractor
    torch.testing.assert_close(
        batch.audio_inputs(part, "cpu", extractor), expected.audio_inputs(part, "cpu", extractor), rtol=0, atol=0
    )
    length = expected.text["input_ids"].shape[1]
    assert batch.text["input_ids"][0, :length].tolist() == expected.text["input_ids"][0].tolist()


def test_batches_are_of_about_one_length(shards):
    lengths = [[np.ceil(one / 2) for one in batch.seconds] for batch in first_batches(stream_of(shards, window=24), 6)]
    assert sum(len(set(batch)) == 1 for batch in lengths) >= 4
    by_step = [batch[0] for batch in lengths]
    assert by_step != sorted(by_step)


def test_bad_files_are_passed_over_and_named(tmp_path):
    source = write_shards(tmp_path, [6, 6, 6], bad=(2, 9, 10))
    found = first_batches(stream_of(source, 3, window=3), 5)
    assert sorted(songs(found)) == sorted(f"{song}.wav)" for song in range(18) if song not in (2, 9, 10))
    skipped = dict(bad for batch in found for bad in batch.skipped)
    assert set(skipped) == {"row 2 of shard 0 (2.wav)", "row 3 of shard 1 (9.wav)", "row 4 of shard 1 (10.wav)"}
    assert "not an audio file" in skipped["row 2 of shard 0 (2.wav)"]


def test_nothing_but_bad_files_ends(tmp_path):
    source = write_shards(tmp_path, [30], bad=tuple(range(30)))
    with pytest.raises(AudioFileError, match=r"row \d+ of shard 0 \(\d+.wav\): .*met 21 files"):
        first_batches(stream_of(source), 1)


def test_a_bad_file_without_a_row_to_stand_in_ends(tmp_path):
    source = write_shards(tmp_path, [4], bad=(2,))
    with pytest.raises(AudioFileError, match=r"row 2 of shard 0 \(2.wav\): .* no row to stand in"):
        first_batches(stream_of(source), 1)


def test_a_row_without_text_is_named(tmp_path):
    rows = [{"audio": {"bytes": wav_bytes(0), "path": None}, "text": text} for text in ("a", "b", " ", "c")]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "songs.parquet")
    with pytest.raises(ValueError, match="row 2 of shard 0 has no text"):
        first_batches(stream_of(str(tmp_path / "songs.parquet")), 1)


def test_more_workers_than_shards_or_songs(shards, tmp_path):
    with pytest.raises(ValueError, match="num_workers is 7, but of 12 shards a process has only 6.*at most 6"):
        stream_of(shards, num_processes=2, num_workers=7)
    with pytest.raises(ValueError, match="made for num_workers=2; the DataLoader has 0"):
        list(DataLoader(stream_of(shards, num_workers=2), batch_size=None))
    with pytest.raises(ValueError, match="batch_size 5 cannot be split evenly over 2 processes"):
        stream_of(shards, 5, num_processes=2)
    with pytest.raises(ValueError, match="window is 3 rows; expected at least the 4 of a batch"):
        stream_of(shards, window=3)
    with pytest.raises(ValueError, match="fewer rows than the 8 songs of a batch"):
        first_batches(stream_of(write_shards(tmp_path, [5]), 8), 1)


def test_a_folder_of_files_streams_from_its_metadata(corpus):
    dataset = open_stream(str(corpus), "train[:7]", text_column="captions")
    assert dataset.num_shards == 7
    stream = AudioTextStream(dataset, PROCESSOR, "audio", "captions", 2)
    found = first_batches(stream, 3)
    assert len(set(songs(found))) == 6 and set(songs(found)) <= {f"train-{song:04d}.flac)" for song in range(1, 8)}
    assert found[0].audios[0]["segment_mask"].all() and found[0].seconds[0] >= 12


@pytest.mark.parametrize("place", ["", "data", "train"])
def test_places_of_shards(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    write_shards(tmp_path / place, [2, 2])
    assert open_stream(str(tmp_path), "train").num_shards == 2
    with pytest.raises(ValueError, match="no metadata.jsonl, .csv or .parquet for the split 'test'"):
        open_stream(str(tmp_path), "test")
    with pytest.raises(ValueError, match=r"a stream has no slices; found split 'train\[:3\]', expected 'train'"):
        open_stream(str(tmp_path), "train[:3]")


def test_sources_that_cannot_be_streamed(shards, tmp_path):
    with pytest.raises(ValueError, match="no column 'caption'; the columns are .*'text'"):
        open_stream(shards, "train", text_column="caption")
    with pytest.raises(ValueError, match="no column 'audios'.*did you mean 'audio'"):
        open_stream(shards, "train", "audios")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_stream(str(tmp_path / "nowhere"), "train")
    with pytest.raises(FileNotFoundError, match="neither a local folder nor a Hub data set in reach"):
        open_stream("owner/songs", "train")
    datasets.Dataset.from_dict({"audio": [1], "text": ["a"]}).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(ValueError, match="column 'audio' holds .*int64.*expected audio"):
        open_stream(str(tmp_path), "train")
    (tmp_path / "train-0.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"{tmp_path}/train-0.parquet: "):
        open_stream(str(tmp_path), "train")


def test_a_stream_from_the_hub_needs_bytes(shards, tmp_path, monkeypatch):
    """The Hub's part is played by local shards."""
    load = datasets.load_dataset

    def hub(path, **settings):
        assert (path, settings.pop("name"), settings.pop("revision")) == ("owner/songs", "mini", "v1")
        return load("parquet", data_files={"train": f"{folder}/*.parquet"}, **settings)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    folder = shards
    stream = open_stream("owner/songs", "train", config_name="mini", revision="v1")
    assert len(first_batches(AudioTextStream(stream, PROCESSOR, "audio", "text", 4), 1)[0]) == 4
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": "/etc/hostname"}], "text": ["a"]})
    rows.to_parquet(tmp_path / "train-0.parquet")
    folder = tmp_path
    stream = open_stream("owner/songs", "train", config_name="mini", revision="v1")
    with pytest.raises(ValueError, match="holds paths without bytes .'/etc/hostname'.; a stream from the Hub needs"):
        first_batches(AudioTextStream(stream, PROCESSOR, "audio", "text", 1), 1)


@pytest.mark.parametrize("as_struct", [False, True])
def test_paths_in_shards_may_not_leave_the_folder(tmp_path, as_struct):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "good.wav").write_bytes(wav_bytes(1))
    (tmp_path / "secret.wav").write_bytes(wav_bytes(2))

    def found(*paths):
        audio = [{"bytes": None, "path": path} if as_struct else path for path in paths]
        rows = datasets.Dataset.from_dict({"audio": audio, "text": ["a"] * len(paths)})
        rows.to_parquet(folder / "train-0.parquet")
        return first_batches(stream_of(str(tmp_path if as_struct else folder), len(paths)), 1)[0]

    assert found("good.wav").names == ["row 0 of shard 0 (good.wav)"]
    for path in ("../secret.wav", str(tmp_path / "secret.wav")):
        with pytest.raises(ValueError, match="row 1: .*secret.wav.* lies outside of the data set's folder"):
            found("good.wav", path)
