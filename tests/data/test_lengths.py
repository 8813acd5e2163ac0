"""How long songs are, by a column, by headers, and by stored features."""

import numpy as np
import pytest
import soundfile
from small_sets import folder_of_songs
from tiny import tiny_processor

from collap.data import lengths
from collap.data.feature_cache import cache_features, load_cached_features
from collap.data.lengths import num_segments, song_segments
from processing import load_audio
from processing.decode_audio import header_seconds


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
        found = num_segments(header_seconds(str(tmp_path / "song.wav")), 2)
        assert found == -(-len(samples) // 32000), rate
    assert num_segments(0.54, 0.18) == 3  # 3.0000000000000004 in floating point


def test_headers_are_read_once_and_bad_files_count_as_one_segment(tmp_path, monkeypatch):
    dataset = folder_of_songs(tmp_path, [2.5, None, 5.0])
    assert song_segments(dataset, "audio", 2) == [2, 1, 3]
    monkeypatch.setattr(lengths, "header_seconds", lambda source: 100.0)
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
