"""The feature extractor on every kind of waveform users hand over, and on those it must refuse."""

import hashlib
import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from datasets import Dataset
from safetensors.torch import load_file
from tiny import REFERENCE, Decoder, tiny_config, tiny_processor, tiny_whisper_config
from transformers import AutoFeatureExtractor, AutoProcessor, TensorType, WhisperFeatureExtractor
from transformers.utils.logging import warning_once

from processing import CoLLAPFeatureExtractor, CoLLAPProcessor
from processing.feature_extraction_collap import pad_audio_features

ROOT = Path(__file__).parents[2]
LOGGER = "processing.feature_extraction_collap"
FRESH_PROCESS = """
import gc; gc.disable()  # a fifth of the time of the imports
from test_feature_extraction_collap import digest, noise
from processing import CoLLAPFeatureExtractor
print(digest(CoLLAPFeatureExtractor(segment_seconds=2)([noise(3.3), noise(0.5, channels=2)], 44100)))
"""


def noise(seconds: float, channels: int | None = None, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """(samples,) or (channels, samples) float32, quiet enough not to clip."""
    shape = round(seconds * rate) if channels is None else (channels, round(seconds * rate))
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def digest(features) -> str:
    """A hash of names, shapes and bytes."""
    state = hashlib.sha256()
    for name, tensor in sorted(features.items()):
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def assert_same_features(found, expected):
    assert set(found) == set(expected) == set(CoLLAPFeatureExtractor.model_input_names)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def extractor() -> CoLLAPFeatureExtractor:
    """Segments of 2 s."""
    return CoLLAPFeatureExtractor(segment_seconds=2)


def test_both_spectrograms_of_every_segment_equal_the_originals():
    extractor = CoLLAPFeatureExtractor(speech_mel_bins=128)
    waveform = noise(37.5)
    features = extractor(waveform, 16000)
    segments = np.pad(waveform, (0, 60 * 16000 - len(waveform))).reshape(2, -1)
    whisper = WhisperFeatureExtractor(feature_size=128)(list(segments), sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(features["speech_features"][0], whisper.input_features, rtol=0, atol=1e-4)
    for segment, found in zip(segments, features["music_features"][0], strict=True):
        fbank = torchaudio.compliance.kaldi.fbank(
            torch.from_numpy(segment)[None] * 2**15, num_mel_bins=128, sample_frequency=16000
        )
        torch.testing.assert_close(found, (fbank - 15.41663) / (2 * 6.55582), rtol=0, atol=1e-3)


def test_fbank_equals_the_original_beats():
    golden = load_file(REFERENCE / "beats_tiny.safetensors")
    waveforms = golden["waveform"][:, :51840]  # 3.24 s, a whole number of Whisper's 20 ms
    found = CoLLAPFeatureExtractor(segment_seconds=3.24)(list(waveforms), 16000)["music_features"]
    torch.testing.assert_close(found[:, 0], golden["fbank"][:, :322], rtol=0, atol=1e-3)


def test_shapes_and_masks_of_songs_of_unequal_length(extractor):
    features = extractor([noise(2 + 1 / 16000), noise(2), noise(0.1), noise(4 + 0.32)], 16000)
    assert {name: (tuple(value.shape), value.dtype) for name, value in features.items()} == {
        "music_features": ((4, 3, 198, 128), torch.float32),
        "speech_features": ((4, 3, 80, 200), torch.float32),
        "music_attention_mask": ((4, 3, 198), torch.bool),
        "segment_mask": ((4, 3), torch.bool),
        "audio_token_mask": ((4, 36), torch.bool),
    }
    assert features["segment_mask"].int().tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]]
    # A token starts every 0.16 s; that at 0.32 s of the last segment starts exactly at the end of the audio.
    tokens = features["audio_token_mask"].view(4, 3, 12)
    assert tokens.sum(-1).tolist() == [[12, 1, 0], [12, 0, 0], [1, 0, 0], [12, 12, 2]]
    assert tokens[3, 2].tolist() == [True, True] + 10 * [False]
    assert features["music_attention_mask"].sum(-1).tolist() == [[198, 1, 0], [198, 0, 0], [10, 0, 0], [198, 198, 32]]
    padding = ~features["segment_mask"]
    assert not features["music_features"][padding].any() and not features["speech_features"][padding].any()


@pytest.mark.parametrize("lengths", [(1.0, 5.5, 0.1), (4.0, 4.0), (0.3, 6.0)])
def test_batch_equals_single(extractor, lengths):
    waveforms = [noise(seconds, seed=i) for i, seconds in enumerate(lengths)]
    batch = extractor(waveforms, 16000)
    for i, waveform in enumerate(waveforms):
        single = extractor(waveform, 16000)
        segments = int(single["segment_mask"].sum())
        for name in ("music_features", "speech_features", "music_attention_mask", "segment_mask"):
            assert torch.equal(batch[name][i, :segments], single[name][0])
            assert not batch[name][i, segments:].any()
        assert torch.equal(batch["audio_token_mask"][i, : segments * 12], single["audio_token_mask"][0])
        assert not batch["audio_token_mask"][i, segments * 12 :].any()


def test_features_of_songs_computed_apart_join_to_those_of_the_batch(extractor):
    waveforms = [noise(1.0), noise(5.5, seed=1)]
    apart = [extractor.segment_features(torch.from_numpy(waveform)) for waveform in waveforms]
    assert_same_features(pad_audio_features(apart), extractor(waveforms, 16000))


def test_deterministic_in_this_and_in_a_fresh_process(extractor):
    audio = [noise(3.3), noise(0.5, channels=2)]
    before = [waveform.copy() for waveform in audio]
    found = digest(extractor(audio, 44100))
    assert digest(extractor(audio, 44100)) == found
    assert all(np.array_equal(a, b) for a, b in zip(audio, before, strict=True)), "the input was changed"
    path = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS], env=path, capture_output=True, text=True, timeout=120, check=False
    )
    assert fresh.stdout.strip() == found, fresh.stderr


def test_channels_are_averaged(extractor):
    for channels in (2, 3, 6):
        audio = noise(1.0, channels)
        assert_same_features(extractor([audio], 16000), extractor(audio.mean(0), 16000))
        assert_same_features(extractor([audio.tolist()], 16000), extractor([audio], 16000))
        assert_same_features(
            extractor({"array": audio, "sampling_rate": 16000}), extractor([torch.from_numpy(audio)], 16000)
        )
    mono = noise(1.0)
    assert_same_features(extractor(mono[None], 16000), extractor(mono, 16000))
    assert_same_features(extractor([mono[None]], 16000), extractor(mono, 16000))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_bare_array_of_two_axes_is_a_batch_of_mono_songs_as_for_whisper(extractor, caplog, kind):
    songs = noise(1.0, channels=4)
    said = "if its rows (up to 8) are the channels of one song, give it in a list, [audio] (said once)"
    with caplog.at_level(logging.WARNING, "processing.songs_collap"):
        warning_once.cache_clear()
        found = extractor(kind(songs), 16000)
        extractor(kind(songs[:2]), 16000)
        many = extractor(kind(noise(0.2, channels=9)), 16000)
    assert [said in message for message in caplog.messages] == [True]
    assert_same_features(found, extractor(list(songs), 16000))
    assert found["segment_mask"].shape == (4, 1) and many["segment_mask"].shape == (9, 1)
    whisper = WhisperFeatureExtractor(feature_size=80)(songs, sampling_rate=16000)
    assert len(whisper["input_features"]) == 4


STEREO = noise(1.0, channels=2)
ENTRY = STEREO[0].copy()
READ_ONLY = ENTRY.copy()
READ_ONLY.setflags(write=False)
SAME_AUDIO = {
    "torch": torch.from_numpy(ENTRY),
    "a batch of one": [ENTRY],
    "a tuple": (ENTRY,),
    "a row of a stereo array": STEREO[0],
    "float64": ENTRY.astype(np.float64),
    "float64 torch": torch.from_numpy(ENTRY).double(),
    "long double": ENTRY.astype(np.longdouble),
    "big-endian": ENTRY.astype(">f4"),
    "read-only": READ_ONLY,
    "a reversed view": ENTRY[::-1].copy()[::-1],
    "every second sample": np.repeat(ENTRY, 2)[::2],
    "every second sample, torch": torch.from_numpy(np.repeat(ENTRY, 2))[::2],
    "a column of (samples, channels)": np.ascontiguousarray(STEREO.T)[:, 0],
}


@pytest.mark.parametrize("kind", SAME_AUDIO)
def test_kinds_of_arrays_give_the_same_features(extractor, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_features(extractor(SAME_AUDIO[kind], 16000), extractor(ENTRY, 16000))


def test_transposed_view_of_interleaved_stereo(extractor):
    interleaved = np.ascontiguousarray(STEREO.T)  # (samples, channels), as soundfile returns it
    assert_same_features(extractor([interleaved.T], 16000), extractor([STEREO], 16000))


def test_half_precision_is_computed_in_float32(extractor):
    half = torch.from_numpy(ENTRY).bfloat16()
    assert_same_features(extractor(half, 16000), extractor(half.float(), 16000))
    assert_same_features(extractor(ENTRY.astype(np.float16), 16000), extractor(torch.from_numpy(ENTRY).half(), 16000))


def test_resampling_equals_torchaudio_and_is_said_once(extractor, caplog):
    waveform = noise(2.7, rate=22040, channels=2)
    with caplog.at_level(logging.WARNING, LOGGER):
        found = extractor([waveform], 22040)
        extractor([waveform, waveform], np.int64(22040))
        extractor([waveform], 22040.0)
        extractor([waveform], 16000)
    mono = torch.from_numpy(waveform).mean(0)
    resampled = torchaudio.functional.resample(mono, 22040, 16000)
    assert_same_features(found, extractor(resampled, 16000))
    assert found["audio_token_mask"].sum() == 17  # 2.7 s: 12 tokens, and those at 2.00, 2.16 ... 2.64 s
    assert caplog.messages == ["resampling audio from 22040 Hz to 16000 Hz (said once)"]


def test_settings_survive_save_and_load(tmp_path):
    settings = {
        "segment_seconds": 2.2,
        "music_mel_bins": 64,
        "speech_mel_bins": 40,
        "patch_size": 8,
        "fbank_mean": 1.5,
        "fbank_std": 2.5,
    }
    extractor = CoLLAPFeatureExtractor(**settings)
    extractor.save_pretrained(tmp_path)
    expected = extractor(noise(3.0), 16000)
    assert expected["music_features"].shape == (1, 2, 218, 64) and expected["audio_token_mask"].shape == (1, 2 * 27)
    for loaded in (CoLLAPFeatureExtractor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert type(loaded) is CoLLAPFeatureExtractor
        assert {name: getattr(loaded, name) for name in settings} == settings
        assert_same_features(loaded(noise(3.0), 16000), expected)
    plain = CoLLAPFeatureExtractor(**{**settings, "fbank_mean": 0.0, "fbank_std": 0.5})(noise(3.0), 16000)
    torch.testing.assert_close(expected["music_features"], (plain["music_features"] - 1.5) / 5.0)


def test_settings_come_from_the_model_configuration():
    config = tiny_config()
    extractor = CoLLAPFeatureExtractor.from_model_config(config)
    features = extractor(noise(3.0), 16000)
    assert features["music_features"].shape == (1, 2, 198, config.music_config.num_mel_bins)
    assert features["speech_features"].shape == (1, 2, config.speech_config.num_mel_bins, 200)
    assert features["audio_token_mask"].shape == (1, 2 * config.tokens_per_segment)


def test_device_argument_moves_every_output(extractor):
    # The meta device computes shapes alone: a tensor left on the CPU would fail or show.
    features = extractor([noise(3.0), noise(1.0, channels=2)], 44100, device="meta")
    assert {tensor.device.type for tensor in features.values()} == {"meta"}


def test_twenty_minutes_are_read_whole():
    waveform = np.resize(noise(7.3), 1200 * 16000)
    features = CoLLAPFeatureExtractor(speech_mel_bins=8, music_mel_bins=16)(waveform, 16000)
    assert features["music_features"].shape == (1, 40, 2998, 16)
    assert features["audio_token_mask"].shape == (1, 40 * 187) and features["audio_token_mask"].all()
    assert features["music_features"].isfinite().all() and features["speech_features"].isfinite().all()
    last = CoLLAPFeatureExtractor(speech_mel_bins=8, music_mel_bins=16)(waveform[-30 * 16000 :], 16000)
    torch.testing.assert_close(features["speech_features"][0, -1], last["speech_features"][0, 0])


def with_bad_sample(value: float) -> np.ndarray:
    audio = noise(1.0)
    audio[7] = value
    return audio


BAD_AUDIO = {
    "no samples": (np.zeros(0, np.float32), r"audio\[0\] is empty \(shape \(0,\)\); expected at least 0.1 s"),
    "no samples in two channels": ([np.zeros((2, 0), np.float32)], r"audio\[0\] is empty \(shape \(2, 0\)\)"),
    "no channels": ([np.zeros((0, 16000), np.float32)], r"audio\[0\] is empty \(shape \(0, 16000\)\)"),
    "NaN": (with_bad_sample(np.nan), r"audio\[0\] has 1 samples that are NaN or infinite; expected finite"),
    "Inf": (with_bad_sample(np.inf), r"audio\[0\] has 1 samples that are NaN or infinite"),
    "minus Inf": (torch.from_numpy(with_bad_sample(-np.inf)), r"audio\[0\] has 1 samples that are NaN or infinite"),
    "NaN in one channel": ([np.stack([noise(1.0), with_bad_sample(np.nan)])], r"audio\[0\] has 1 samples that are NaN"),
    "beyond float32": (noise(1.0).astype(np.float64) * 1e300, r"audio\[0\] has 16000 samples that are NaN or inf"),
    "50 ms": (noise(0.05), r"audio\[0\] is 0.050 s long; expected at least 0.1 s"),
    "one sample too short": (np.zeros(1599, np.float32), r"audio\[0\] is 0.100 s long; expected at least 0.1 s"),
    "no songs": (np.zeros((0, 9), np.float32), r"audio is empty \(shape \(0, 9\)\); expected at least one song"),
    "songs of no samples": (np.zeros((2, 0), np.float32), r"audio\[0\] is empty \(shape \(0,\)\)"),
    "NaN in one song": (np.stack([noise(1.0), with_bad_sample(np.nan)]), r"audio\[1\] has 1 samples that are NaN"),
    "(samples, channels)": (
        noise(1.0, 3).T,
        r"shape \(16000, 3\); expected \(channels, samples\): transpose it, and give one song .*, \[audio.T\]",
    ),
    "(samples, channels) in a list": ([noise(1.0, 3).T], r"shape \(16000, 3\); expected .*, samples\): transpose it$"),
    "(samples, channels) as numbers": ([noise(1.0, 3).T.tolist()], r"shape \(16000, 3\); expected .*: transpose it"),
    "three axes": (np.zeros((1, 2, 16000), np.float32), r"shape \(1, 2, 16000\); expected \(samples,\) or \(chann"),
    "a number": (np.array(0.5), r"audio\[0\] has shape \(\); expected \(samples,\)"),
    "int16": (np.zeros(16000, np.int16), r"dtype int16; expected floating point in \[-1, 1\] \(divide 16-bit .* 32768"),
    "int16 torch": (torch.zeros(16000, dtype=torch.int16), r"dtype torch.int16; expected floating point"),
    "ragged": (np.array([noise(1.0), noise(0.5)], dtype=object), r"audio\[0\] has dtype object; expected floating"),
    "list of whole numbers": ([0] * 16000, r"audio\[0\] has dtype int64; expected floating point"),
    "channels of two lengths": ([[[0.5] * 9, [0.5] * 8]], r"audio\[0\] is a list of lists of different lengths"),
    "a list of lists of texts": ([[["a"]]], r"audio\[0\] has dtype <U1; expected floating point"),
    "path": ("song.wav", r"audio\[0\] is a str; expected a numpy array or torch tensor; .*processing.load_audio"),
    "bytes": (b"RIFF", r"audio\[0\] is a bytes; expected .*; read files with processing.load_audio"),
    "no rate": ({"array": noise(1.0)}, r"audio\[0\] is a dict of array; expected array \(or raw\) and sampling_rate$"),
    "an unread row": ([{"bytes": b"RIFF", "path": None}], r"\[0\] is a dict of bytes, path; .*processing.load_audio"),
    "samples and rate": ((noise(1.0), 16000), r"audio\[1\] is a int; expected a numpy array or torch tensor"),
    "a bad rate": ([{"array": noise(1.0), "sampling_rate": 44.1}], "sampling_rate must be a whole number of Hz"),
    "three axes of numbers": ([noise(0.2, 2).tolist(), [[[0.5]]]], r"audio\[1\] has shape \(1, 1, 1\); expected"),
    "None": (None, r"audio\[0\] is a NoneType; expected a numpy array or torch tensor"),
    "nothing": ([], r"found an empty list of audios; expected at least one waveform"),
    "the third of three": ([noise(1.0), noise(1.0), with_bad_sample(np.nan)], r"audio\[2\] has 1 samples"),
    "the second too short": ([noise(1.0), noise(0.05)], r"audio\[1\] is 0.050 s long"),
    "the second a path": ([noise(1.0), "song.wav"], r"audio\[1\] is a str"),
}


@pytest.mark.parametrize("kind", BAD_AUDIO)
def test_bad_audio_is_refused_by_name(extractor, kind):
    audio, message = BAD_AUDIO[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            extractor(audio, 16000)


@pytest.mark.parametrize(
    "rate", [0, -16000, 44100.5, 44.1, 48, True, float("nan"), float("inf"), "16000", "a", [16000]]
)
def test_impossible_sampling_rate_is_refused(extractor, rate):
    with pytest.raises(ValueError, match="sampling_rate must be a whole number of Hz, at least 1000, found"):
        extractor(noise(1.0), rate)


@pytest.mark.parametrize("rate", [768_001, 16_000_000, 2**31, 10**400])
def test_implausible_sampling_rate_is_refused(extractor, rate):
    with pytest.raises(ValueError, match="sampling_rate must be at most 768000 Hz, found"):
        extractor(noise(1.0), rate)


def test_missing_sampling_rate_is_refused(extractor):
    with pytest.raises(ValueError, match="sampling_rate is missing: say at how many Hz"):
        extractor(noise(1.0))


def test_length_counts_after_resampling(extractor):
    assert extractor(noise(0.1, rate=48000), 48000)["audio_token_mask"].sum() == 1
    with pytest.raises(ValueError, match=r"audio\[0\] is 0.033 s long"):
        extractor(noise(0.1), 48000)


@pytest.mark.parametrize("kind", ["np", None, "pt", TensorType.NUMPY, TensorType.PYTORCH])
def test_tensors_of_the_wanted_library(extractor, kind):
    audio = [noise(1.0), noise(2.5)]
    found, expected = extractor(audio, 16000, return_tensors=kind), extractor(audio, 16000)
    library = torch.Tensor if kind == "pt" else np.ndarray
    assert {type(values) for values in found.values()} == {library}
    assert_same_features({name: torch.as_tensor(values) for name, values in found.items()}, expected)


def test_other_tensors_are_refused(extractor):
    with pytest.raises(ValueError, match="return_tensors must be 'pt', 'np' or None, found 'tf'"):
        extractor(noise(1.0), 16000, return_tensors="tf")


def test_arguments_of_other_extractors(extractor):
    """Songs are padded to the longest and never cut: what asks for that is taken, and what asks for more is refused."""
    audio = [noise(1.0), noise(2.5)]
    expected = extractor(audio, 16000)
    for same in ({"padding": True}, {"padding": "longest"}, {"padding": None, "truncation": False}):
        assert_same_features(extractor(audio, sampling_rate=16000, return_tensors="pt", **same), expected)
    for other, message in (
        ({"padding": "max_length"}, "padded to the longest of their batch: expected padding=True, found 'max_length'"),
        ({"padding": False}, "padded to the longest of their batch: expected padding=True, found False"),
        ({"truncation": True}, "songs are read whole.*cut the samples instead of giving truncation=True"),
        ({"max_length": 16000, "truncation": True}, "songs are read whole.*instead of giving max_length=16000"),
    ):
        with pytest.raises(ValueError, match=message):
            extractor(audio, 16000, **other)
    with pytest.raises(TypeError, match="return_attention_mask"):
        extractor(audio, 16000, return_attention_mask=True)


def test_songs_as_a_data_set_hands_them_over(extractor):
    songs = [noise(1.0), noise(2.5, seed=1), noise(0.6, channels=2, seed=2)]
    expected = extractor(songs, 16000)
    rows = Dataset.from_list([{"audio": {"array": song.tolist(), "sampling_rate": 16000}} for song in songs[:2]])
    lists = Dataset.from_dict({"audio": [song.tolist() for song in songs[:2]]})
    column, column_of_lists = rows["audio"], lists["audio"]
    assert not isinstance(column, list), "datasets hands over columns of its own"
    for two in (column, list(column), rows.with_format("numpy")["audio"], rows.with_format("torch")["audio"]):
        assert_same_features(extractor(two), extractor(songs[:2], 16000))
    for two in (column_of_lists, lists[:]["audio"], lists.with_format("numpy")["audio"]):
        assert_same_features(extractor(two, 16000), extractor(songs[:2], 16000))
    assert_same_features(extractor(rows[1]["audio"]), extractor(songs[1], 16000))
    assert_same_features(extractor(songs[1].tolist(), 16000), extractor(songs[1], 16000))
    decoders = [Decoder(torch.from_numpy(song), 16000) for song in songs]
    assert_same_features(extractor(decoders), expected)
    assert_same_features(extractor(decoders[2]), extractor(songs[2:], 16000))
    assert_same_features(extractor([decoder.samples for decoder in decoders]), expected)
    mixed = [songs[0], {"raw": songs[1], "sampling_rate": 16000}, {"array": songs[2].tolist(), "sampling_rate": 16000}]
    assert_same_features(extractor(mixed, 16000), expected)


def test_the_rate_that_a_song_says_counts(extractor):
    song = noise(2.0, rate=44100)
    expected = extractor(song, 44100)
    for own in ({"array": song, "sampling_rate": 44100}, Decoder(torch.from_numpy(song), 44100)):
        assert_same_features(extractor(own), expected)
        assert_same_features(extractor(own, 16000), expected)
    mixed = extractor([{"array": song, "sampling_rate": 44100}, noise(1.0)], 16000)
    assert torch.equal(mixed["music_features"][0], expected["music_features"][0])


BAD_SETTINGS = {
    "fbank_std": ([-1, 0, float("nan"), float("inf"), "6.5", None, True, [6.5]], "a number from 1e-06 to 1e"),
    "fbank_mean": ([float("nan"), -float("inf"), "15", None], "a number from -1e"),
    "music_mel_bins": ([0, -128, 128.0, 257, 10**9, "128", True, None], "a whole number from 1 to 256"),
    "speech_mel_bins": ([0, 201, 80.5, 10**9], "a whole number from 1 to 200"),
    "patch_size": ([0, -16, 10**9, 16.0], "a whole number from 1 to 60000"),
    "segment_seconds": ([float("nan"), float("inf"), 10**9, "30", None, True], "a multiple of 0.02 up to 600"),
    "sampling_rate": ([48000, None, "16000", float("nan")], "BEATs and Whisper read 16000 Hz"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_refused_in_one_line_that_names_them(name, tmp_path):
    values, expected = BAD_SETTINGS[name]
    CoLLAPFeatureExtractor(segment_seconds=2).save_pretrained(tmp_path / "alone")
    tiny_processor().save_pretrained(tmp_path / "with tokenizer")
    for value in values:
        with pytest.raises(ValueError, match=name) as error:
            CoLLAPFeatureExtractor(**{name: value})
        message = str(error.value)
        assert expected in message and message.endswith((f", found {value!r}", f"={value}")) and "\n" not in message
    saved = tmp_path / "alone" / "preprocessor_config.json"
    nested = tmp_path / "with tokenizer" / "processor_config.json"
    for kind, file in ((CoLLAPFeatureExtractor, saved), (AutoFeatureExtractor, saved), (AutoProcessor, nested)):
        with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*{name}"):
            kind.from_pretrained(file.parent, **{name: values[0]})
    settings = json.loads(nested.read_text())
    settings["feature_extractor"][name] = values[0]
    nested.write_text(json.dumps(settings))
    for kind in (CoLLAPFeatureExtractor, CoLLAPProcessor, AutoProcessor):
        with pytest.raises(ValueError, match=f"^{re.escape(str(nested))}: .*{name}"):
            kind.from_pretrained(nested.parent)


@pytest.mark.parametrize("seconds", [0, -2, 0.01, 0.03, 2.01, 0.16])
def test_impossible_segment_length_is_refused(seconds):
    with pytest.raises(ValueError, match=r"segment_seconds must be a multiple of 0.02 .* patch of 16 frames"):
        CoLLAPFeatureExtractor(segment_seconds=seconds)


@pytest.mark.parametrize("seconds", [0.18, 0.58, 1.1, 2.2, 8.2])
def test_segment_lengths_that_floating_point_rounds(seconds):
    # 50 * 2.2 is 110.00000000000001.
    config = tiny_config(segment_seconds=seconds, speech_config=tiny_whisper_config(max_source_positions=500))
    features = CoLLAPFeatureExtractor.from_model_config(config)(noise(9.0), 16000)
    assert config.tokens_per_segment == (round(100 * seconds) - 2) // 16
    assert features["audio_token_mask"].shape[1] == features["segment_mask"].shape[1] * config.tokens_per_segment
    assert features["speech_features"].shape[-1] == round(100 * seconds)


def test_other_rates_of_the_encoders_are_refused():
    with pytest.raises(ValueError, match="BEATs and Whisper read 16000 Hz; found sampling_rate=48000"):
        CoLLAPFeatureExtractor(sampling_rate=48000)


def test_a_rate_without_a_small_ratio_is_refused_before_it_eats_the_memory():
    with pytest.raises(ValueError, match="22051 has no small ratio to 16000.*load_audio"):
        tiny_processor().feature_extractor(np.ones(30000, np.float32), sampling_rate=22051)


def test_integers_cast_to_float_are_noticed():
    with pytest.raises(ValueError, match=r"audio\[1\] peaks at 3000.*divide 16-bit samples"):
        tiny_processor().feature_extractor([np.ones(8000), np.full(8000, 3000.0)], sampling_rate=16000)
