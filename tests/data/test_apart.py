"""The rows of one song meet in no batch, where that can be; samples and batches tell equal songs and texts."""

import json
import warnings
from collections import Counter

import datasets
import numpy as np
import pytest
import soundfile
import torch
from tiny import tiny_processor
from torch.utils.data import DataLoader

from collap.data.apart import keep_apart, songs_too_many
from collap.data.batches import AudioTextCollator, EpochBatches, deal_rows, epoch_plan, idle_share, padding_share
from collap.data.samples import AudioTextDataset
from collap.data.sources import open_dataset, open_stream
from collap.data.stream import AudioTextStream

PROCESSOR = tiny_processor()


def crowded(plan: np.ndarray, songs: np.ndarray) -> int:
    """Places of a plan whose song is in the batch already."""
    return sum(len(batch) - len(set(songs[batch].tolist())) for batch in plan)


@pytest.mark.parametrize("batch_size", [50, 128])
def test_700_songs_of_5_rows_meet_themselves_in_no_batch(batch_size):
    songs = np.random.default_rng(0).permutation(np.repeat(np.arange(700), 5))
    segments = np.random.default_rng(1).integers(4, 11, 700)[songs]
    before = epoch_plan(3500, batch_size, 0, 0, segments)
    plan = epoch_plan(3500, batch_size, 0, 0, segments, songs=songs)
    assert crowded(before, songs) / before.size > 0.1
    assert crowded(plan, songs) == 0
    assert len(set(plan.flatten())) == plan.size == before.size
    at_random = epoch_plan(3500, batch_size, 0, 0)
    padding = [padding_share(segments[deal_rows(one, 2, segments)]) for one in (before, plan, at_random)]
    # Still of about one length. (100 songs of each length are there: 128 different ones cannot be of one.)
    assert padding[1] < padding[0] + (0.02 if batch_size == 50 else 0.1) and padding[1] < 0.5 * padding[2]
    assert idle_share(segments[deal_rows(plan, 2, segments)]) < 0.01
    assert crowded(epoch_plan(3500, batch_size, 0, 1, None, songs=songs), songs) == 0


def test_it_is_done_whenever_it_can_be():
    """Against the count of what must be: every batch takes different songs, of each song no more than the batches."""
    generator = np.random.default_rng(0)
    impossible = 0
    for case in range(400):
        steps, batch_size, extra = generator.integers(1, 6), generator.integers(1, 7), generator.integers(0, 6)
        rows = steps * batch_size + extra
        songs = generator.integers(0, generator.integers(1, rows + 1), rows)
        order = generator.permutation(rows)
        plan, rest = order[: steps * batch_size].reshape(steps, batch_size), order[steps * batch_size :]
        found = keep_apart(plan, rest, songs, generator.integers(1, 9, rows), np.random.default_rng(case))
        assert found.shape == plan.shape and len(set(found.flatten())) == found.size
        must = steps * batch_size - sum(min(count, steps) for count in Counter(songs.tolist()).values())
        assert songs_too_many(songs, steps, batch_size) == max(must, 0)
        assert crowded(found, songs) <= crowded(plan, songs)
        if must <= 0:
            assert crowded(found, songs) == 0
        impossible += must > 0
    assert 50 < impossible < 350


def test_songs_of_one_row_leave_the_plan_as_it_was():
    names = [str(row) for row in range(100)]
    for segments in (None, list(range(100))):
        plain, told = (EpochBatches(100, 8, 3, segments=segments, songs=songs) for songs in (None, names))
        assert list(plain) == list(told)


def test_processes_share_one_plan_and_it_goes_on_at_any_step():
    songs = [str(row // 4) for row in range(200)]
    whole = list(EpochBatches(200, 8, 1, songs=songs))
    shares = [EpochBatches(200, 8, 1, index, 2, songs=songs) for index in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(row for part in parts for row in part) == sorted(batch)
        assert len({songs[row] for row in batch}) == 8
    later = EpochBatches(200, 8, 1, songs=songs)
    later.set_position(0, 11)
    assert list(later) == whole[11:]


def test_what_cannot_be_is_said_once():
    with pytest.warns(UserWarning, match="at least 32 of 64 places .* not contrasted with one another; lower") as said:
        batches = EpochBatches(64, 8, 0, songs=[str(row % 4) for row in range(64)])
        list(batches), list(batches)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EpochBatches(64, 8, 0, 1, 2, songs=["a"] * 64)  # the first process says it
        EpochBatches(64, 8, 0, songs=[str(row % 8) for row in range(64)])


# --------------------------------------------------------------------------------------------------------------------
# Songs of rows


def song_rows(folder, names: list[tuple[str, str]], texts=None, **others) -> str:
    """A folder whose rows are (file, song)."""
    rows = []
    for index, (file, song) in enumerate(names):
        soundfile.write(folder / file, np.random.default_rng(index).normal(size=4000) * 0.1, 16000)
        rows.append({"file_name": file, "text": texts[index] if texts else f"text {index}", "song": song})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def one_batch(source: str, song_column=None, rows=None):
    data = AudioTextDataset(
        open_dataset(source, "train"), PROCESSOR.feature_extractor, "audio", "text", song_column=song_column
    )
    (batch,) = DataLoader(data, batch_size=len(data), collate_fn=AudioTextCollator(PROCESSOR), num_workers=1)
    return data, batch


def pattern(ids: torch.Tensor) -> list[int]:
    """Each id as the place where it came first."""
    assert ids.dtype == torch.int64 and ids.ndim == 1
    return [ids.tolist().index(one) for one in ids.tolist()]


def test_a_batch_tells_equal_songs_and_texts(tmp_path):
    names = [("a.wav", 7), ("b.wav", "7"), ("c.wav", "07"), ("a.wav", "x")]
    source = song_rows(tmp_path, names, ["slow", "fast", " slow", "Slow"])
    data, batch = one_batch(source, "song")
    assert data.songs == ["7", "7", "07", "x"] and pattern(batch.song_ids) == [0, 0, 2, 3]
    assert pattern(batch.text_ids) == [0, 1, 0, 3]
    _, batch = one_batch(source)  # without a column the audio tells
    assert pattern(batch.song_ids) == [0, 1, 2, 0]
    data = AudioTextDataset(open_dataset(source, "train"), PROCESSOR.feature_extractor, "audio", "text")
    assert [sample.song for sample in data.__getitems__([0, 1])] == data.songs[:2]


def test_audio_as_bytes_is_told_by_its_name_size_and_beginning():
    def songs(*audios):
        rows = datasets.Dataset.from_dict({"audio": list(audios), "text": ["x"] * len(audios)})
        rows = rows.cast_column("audio", datasets.Audio(decode=False))
        return AudioTextDataset(rows, PROCESSOR.feature_extractor, "audio", "text").songs

    def pairs(found):
        return [[one == other for other in found] for one in found]

    named = songs({"bytes": b"a", "path": "x"}, {"bytes": b"a", "path": "y"}, {"bytes": b"a", "path": "x"})
    assert pairs(named)[0] == [True, False, True]
    bare = songs({"bytes": b"ab", "path": None}, {"bytes": b"ac", "path": None}, {"bytes": b"ab", "path": None}, None)
    assert pairs(bare)[0] == [True, False, True, False]


def test_a_row_without_a_song_is_named(tmp_path):
    source = song_rows(tmp_path, [("a.wav", "x"), ("b.wav", " ")])
    with pytest.raises(ValueError, match="row 1 has no 'song'; with a song column every row must name its song"):
        one_batch(source, "song")
    with pytest.raises(ValueError, match="no column 'songs'.*did you mean 'song'"):
        one_batch(source, "songs")


def test_no_row_of_a_song_in_the_batch_stands_in_for_a_bad_file(tmp_path):
    names = [(f"{index}.wav", str(index % 4)) for index in range(12)]
    source = song_rows(tmp_path, names)
    (tmp_path / "1.wav").write_text("no audio")
    data = AudioTextDataset(
        open_dataset(source, "train"), PROCESSOR.feature_extractor, "audio", "text", song_column="song"
    )
    for epoch in range(12):
        data.set_epoch(epoch)
        assert sorted(sample.song for sample in data.__getitems__([0, 1, 2])) == ["0", "2", "3"]
    assert len(data.__getitems__([0, 1, 2, 3])) == 4  # all songs are in it: then any row


# --------------------------------------------------------------------------------------------------------------------
# Streams


def write_song_shards(folder, songs: list[list[str]]):
    content = (folder / "x.wav", np.zeros(3200))
    soundfile.write(*content, 16000)
    row = 0
    for shard, names in enumerate(songs):
        rows = []
        for song in names:
            audio = {"bytes": (folder / "x.wav").read_bytes(), "path": f"{row}.wav"}
            rows.append({"audio": audio, "text": f"text {row}", "song": song})
            row += 1
        datasets.Dataset.from_list(rows).to_parquet(folder / f"train-{shard:05d}-of-{len(songs):05d}.parquet")


def stream_of(folder, batch_size: int, **settings) -> AudioTextStream:
    rows = open_stream(str(folder), "train", song_column="song")
    return AudioTextStream(
        rows, PROCESSOR, "audio", "text", batch_size, features_in_worker=False, song_column="song", **settings
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_keeps_songs_apart(tmp_path, num_workers):
    """Five rows of a song lie beside one another in a shard, as a data set of captions has them."""
    write_song_shards(tmp_path, [[str(10 * shard + row // 5) for row in range(40)] for shard in range(2)])
    stream = stream_of(tmp_path, 8, num_workers=num_workers)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=num_workers))
    seen = Counter()
    for _ in range(10):
        batch = next(batches)
        assert len(set(batch.song_ids.tolist())) == 8
        seen.update(batch.names)
    assert len(seen) == 80 and set(seen.values()) == {1}


def test_a_stream_of_too_few_songs_says_so_once_and_goes_on(tmp_path):
    write_song_shards(tmp_path, [["a"] * 8 + ["b"] * 8])
    with pytest.warns(UserWarning, match="too few songs for batches of 4 different ones"):
        batch = next(iter(stream_of(tmp_path, 4)))
    assert len(batch.names) == 4 and len(set(batch.song_ids.tolist())) <= 2


def test_a_stream_resumes_within_a_window_of_songs(tmp_path):
    from collap.data.stream import stream_state

    write_song_shards(tmp_path, [[str(row // 3) for row in range(24)]])
    whole, state = iter(stream_of(tmp_path, 4, seed=2)), None
    done = [next(whole) for _ in range(4)]
    for batch in done[:2]:
        state = stream_state(state, batch.state)
    resumed = stream_of(tmp_path, 4, seed=2)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    found = iter(resumed)
    for expected in done[2:]:
        batch = next(found)
        assert batch.names == expected.names and torch.equal(batch.song_ids, expected.song_ids)
