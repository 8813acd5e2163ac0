"""Features of whole songs, kept on disk."""

import os

import numpy as np
import pytest
import soundfile
import torch
from small_sets import write_table
from tiny import tiny_processor

from collap.data import feature_cache
from collap.data.feature_cache import cache_features, load_cached_features
from collap.data.samples import AudioTextDataset
from collap.data.sources import open_dataset


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
        monkeypatch.setattr(feature_cache, "FEATURES_VERSION", version)
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
