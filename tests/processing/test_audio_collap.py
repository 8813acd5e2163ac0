"""Segments, both spectrograms and masks against torchaudio, transformers, the original BEATs and counts by head."""

import pytest
import torch
import torchaudio
from safetensors.torch import load_file
from tiny import REFERENCE
from transformers import WhisperFeatureExtractor

from processing.audio_collap import (
    SPECTRUM_BATCH,
    kaldi_fbank,
    music_frame_mask,
    num_kaldi_frames,
    split_segments,
    token_mask,
    whisper_log_mel,
)

BEATS_MEAN, BEATS_STD = 15.41663, 6.55582


def song(seconds: float, seed: int = 0) -> torch.Tensor:
    """A tone with noise that grows and pauses, (samples,): loud, quiet and silent frames."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * 16000)) / 16000
    noise = torch.randn(len(time), generator=generator)
    waveform = 0.3 * torch.sin(2 * torch.pi * 440 * time) + 0.05 * time / seconds * noise
    return torch.where((time % 1.0) < 0.8, waveform, torch.zeros(()))


def torchaudio_fbank(waveform: torch.Tensor, num_mel_bins: int = 128) -> torch.Tensor:
    """(samples,) -> (frames, mel bins), normalised as BEATs does."""
    fbank = torchaudio.compliance.kaldi.fbank(
        waveform[None] * 2**15, num_mel_bins=num_mel_bins, sample_frequency=16000, frame_length=25, frame_shift=10
    )
    return (fbank - BEATS_MEAN) / (2 * BEATS_STD)


def assert_same_spectrum(found: torch.Tensor, expected: torch.Tensor):
    """Logarithms of float32 sums: the quietest of many thousand values differ most, the others by rounding."""
    assert found.shape == expected.shape and found.dtype == torch.float32
    difference = (found - expected).abs().flatten()
    assert difference.mean() < 5e-6
    assert difference.kthvalue(int(0.999 * len(difference))).values < 1e-4
    assert difference.max() < 1e-2


@pytest.mark.parametrize("seconds", [0.18, 2, 2.2, 30])
def test_segments_are_consecutive_and_the_last_is_padded_with_silence(seconds):
    length = round(seconds * 16000)
    waveform = song(2.5 * seconds)
    segments = split_segments(waveform, seconds)
    assert segments.shape == (3, length)
    assert torch.equal(segments.flatten()[: len(waveform)], waveform)
    assert not segments.flatten()[len(waveform) :].any()


@pytest.mark.parametrize(("samples", "count"), [(1, 1), (31999, 1), (32000, 1), (32001, 2), (64000, 2), (64001, 3)])
def test_number_of_segments(samples, count):
    assert len(split_segments(torch.ones(samples), 2)) == count


@pytest.mark.parametrize("seconds", [0.18, 1, 2, 2.2, 10, 29.98, 30])
def test_frames_and_tokens_follow_the_rule(seconds):
    frames = round(100 * seconds) - 2
    assert num_kaldi_frames(seconds) == frames
    assert len(torchaudio_fbank(torch.zeros(round(16000 * seconds)))) == frames
    assert token_mask(1, 1, seconds, 16).shape == (1, frames // 16)
    assert music_frame_mask(1, 1, seconds).shape == (1, frames)


def test_thirty_seconds_hold_187_tokens_of_2998_frames():
    assert num_kaldi_frames(30) == 2998
    assert token_mask(1, 1, 30, 16).shape == (1, 187)


@pytest.mark.parametrize("seconds", [0.18, 1, 2.2, 30])
def test_fbank_equals_torchaudio_for_every_segment(seconds):
    segments = split_segments(song(2.4 * seconds), seconds)
    fbank = kaldi_fbank(segments, 128)
    for segment, found in zip(segments, fbank, strict=True):
        assert_same_spectrum(found, torchaudio_fbank(segment))


def test_fbank_of_other_mel_bins_and_normalisation():
    segment = song(2)
    expected = torchaudio_fbank(segment, 64) * 2 * BEATS_STD + BEATS_MEAN
    assert_same_spectrum(kaldi_fbank(segment[None], 64, mean=3.0, std=2.0)[0], (expected - 3.0) / 4.0)


def test_fbank_equals_the_original_beats():
    golden = load_file(REFERENCE / "beats_tiny.safetensors")
    assert_same_spectrum(kaldi_fbank(golden["waveform"], 128), golden["fbank"])


def test_fbank_of_silence_is_the_floor():
    floor = (torch.tensor(torch.finfo(torch.float32).eps).log() - BEATS_MEAN) / (2 * BEATS_STD)
    torch.testing.assert_close(kaldi_fbank(torch.zeros(1, 16000), 128), floor.expand(1, 98, 128))


def test_fbank_of_the_whole_song_sliced_equals_that_of_its_segments():
    waveform = song(6)
    whole = kaldi_fbank(waveform[None], 128)[0]  # 598 frames
    segments = kaldi_fbank(split_segments(waveform, 2), 128)
    for i, segment in enumerate(segments):
        assert_same_spectrum(segment, whole[200 * i : 200 * i + 198])


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("seconds", [1, 2, 10, 30])
def test_log_mel_equals_whisper_for_every_segment(seconds, mel_bins):
    segments = split_segments(song(1.4 * seconds), seconds)
    whisper = WhisperFeatureExtractor(feature_size=mel_bins, chunk_length=seconds)
    expected = whisper([segment.numpy() for segment in segments], sampling_rate=16000, return_tensors="pt")
    assert expected.input_features.shape == (2, mel_bins, 100 * seconds)
    assert_same_spectrum(whisper_log_mel(segments, mel_bins), expected.input_features)


def test_log_mel_of_a_loud_segment_does_not_touch_a_quiet_one():
    segments = torch.stack([song(2), 1e-3 * song(2, seed=1)])
    both = whisper_log_mel(segments, 80)
    torch.testing.assert_close(both[1:], whisper_log_mel(segments[1:], 80))
    assert both[0].max() > both[1].max() + 1.0


def test_more_segments_than_one_batch_of_spectra():
    segments = split_segments(song(2 * SPECTRUM_BATCH + 3), 1)
    fbank, log_mel = kaldi_fbank(segments, 128), whisper_log_mel(segments, 80)
    assert len(fbank) == len(log_mel) == 2 * SPECTRUM_BATCH + 3
    for i in (0, SPECTRUM_BATCH - 1, SPECTRUM_BATCH, 2 * SPECTRUM_BATCH + 2):
        assert_same_spectrum(fbank[i], kaldi_fbank(segments[i : i + 1], 128)[0])
        assert_same_spectrum(log_mel[i], whisper_log_mel(segments[i : i + 1], 80)[0])


# Segments of 2 s: 32000 samples, 198 frames that start every 160 samples, 12 tokens that start every 2560.
@pytest.mark.parametrize(
    ("samples", "frames", "tokens"),
    [
        (32000, [198], [12]),
        (32001, [198, 1], [12, 1]),
        (1600, [10], [1]),
        (1601, [11], [1]),
        (2560, [16], [1]),
        (2561, [17], [2]),
        (7680, [48], [3]),
        (31360, [196], [12]),
        (11 * 2560, [176], [11]),
        (11 * 2560 + 1, [177], [12]),
        (64000 + 5120, [198, 198, 32], [12, 12, 2]),
        (64000 + 5121, [198, 198, 33], [12, 12, 3]),
    ],
)
def test_masks_end_where_the_audio_ends(samples, frames, tokens):
    count = len(frames)
    frame_mask = music_frame_mask(samples, count, 2)
    tokens_mask = token_mask(samples, count, 2, 16)
    assert frame_mask.dtype == tokens_mask.dtype == torch.bool
    assert torch.equal(frame_mask, torch.arange(198) < torch.tensor(frames)[:, None])
    assert torch.equal(tokens_mask, torch.arange(12) < torch.tensor(tokens)[:, None])


def original_frame_padding(padding_mask: torch.Tensor, num_frames: int) -> torch.Tensor:
    """BEATs' rule: drop the samples beyond a multiple of the frames, a frame is padding when all its samples are."""
    kept = padding_mask[:, : padding_mask.shape[1] // num_frames * num_frames]
    return kept.view(len(kept), num_frames, -1).all(-1)


def test_frame_mask_follows_the_original_rule():
    golden = load_file(REFERENCE / "beats_tiny.safetensors")
    expected = ~original_frame_padding(golden["padding_mask"], golden["fbank"].shape[1])
    assert not expected.all() and expected.any()
    lengths = (~golden["padding_mask"]).sum(1).tolist()
    found = torch.cat([music_frame_mask(length, 1, golden["waveform"].shape[1] / 16000) for length in lengths])
    assert torch.equal(found, expected)
    for samples in (1600, 1601, 479359, 479360, 479361, 479679, 479681, 480000):
        expected = ~original_frame_padding(torch.arange(480000)[None] >= samples, 2998)
        assert torch.equal(music_frame_mask(samples, 1, 30), expected)
