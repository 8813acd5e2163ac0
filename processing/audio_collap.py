"""From a waveform to the inputs of both audio encoders: segments, filter bank, log-mel and masks. Pure functions.

Dimensions: `N` real segments, `K` tokens of a segment. A segment has 100 log-mel frames a second, and two fbank frames
less: the windows of 25 ms that fit, one every 10 ms.
"""

import torch
from torchaudio.compliance.kaldi import get_mel_banks
from transformers.audio_utils import mel_filter_bank

SAMPLING_RATE = 16_000
HOP_LENGTH = 160  # 10 ms: one column of either spectrogram
KALDI_WINDOW = 400  # 25 ms
KALDI_FFT = 512  # the next power of two
KALDI_LOW_FREQUENCY = 20.0
KALDI_PREEMPHASIS = 0.97
WAVEFORM_SCALE = 2**15  # Kaldi reads 16-bit integers
WHISPER_FFT = 400
# Segments whose spectra are computed at a time: 30 s take 12 MB in float32 at 512 complex bins and 3000 frames.
SPECTRUM_BATCH = 8


def num_kaldi_frames(segment_seconds: float) -> int:
    """Count the fbank frames of a segment, whole windows of 25 ms every 10 ms; 2998 for 30 s."""
    return (round(segment_seconds * SAMPLING_RATE) - KALDI_WINDOW) // HOP_LENGTH + 1


def split_segments(waveform: torch.Tensor, segment_seconds: float) -> torch.Tensor:
    """Cut a waveform into consecutive segments, the last one padded with silence.

    Args:
        waveform: (samples,), at least one sample, 16 kHz.

    Returns:
        (N, segment samples).
    """
    length = round(segment_seconds * SAMPLING_RATE)
    missing = -len(waveform) % length
    return torch.nn.functional.pad(waveform, (0, missing)).view(-1, length)  # (N, segment samples)


def kaldi_fbank(
    segments: torch.Tensor, num_mel_bins: int, mean: float = 15.41663, std: float = 6.55582
) -> torch.Tensor:
    """Compute the filter bank that BEATs was trained on: `torchaudio.compliance.kaldi.fbank` of every segment times
    2^15 (25 ms povey windows every 10 ms, no dither), then normalised, but for a batch and on any device.

    Args:
        segments: (N, samples) float32 in [-1, 1], 16 kHz.
        num_mel_bins: 128 for BEATs.
        mean, std: of the training data of BEATs; the result is `(x - mean) / (2 std)`.

    Returns:
        (N, fbank frames, num_mel_bins) float32.
    """
    device = segments.device
    window = torch.hann_window(KALDI_WINDOW, periodic=False, device=device).pow(0.85)  # "povey"
    filters, _ = get_mel_banks(num_mel_bins, KALDI_FFT, SAMPLING_RATE, KALDI_LOW_FREQUENCY, 0.0, 100.0, -500.0, 1.0)
    filters = filters.to(device)  # (mel bins, 256): without the bin of the Nyquist frequency
    epsilon = torch.finfo(torch.float32).eps
    features = []
    for batch in segments.split(SPECTRUM_BATCH):
        frames = (batch * WAVEFORM_SCALE).unfold(-1, KALDI_WINDOW, HOP_LENGTH)  # (N, fbank frames, window)
        frames = frames - frames.mean(-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - KALDI_PREEMPHASIS * previous) * window
        power = torch.fft.rfft(frames, n=KALDI_FFT).abs().square()[..., :-1]  # (N, fbank frames, 256)
        features.append((power @ filters.T).clamp(min=epsilon).log())  # (N, fbank frames, mel bins)
    return (torch.cat(features) - mean) / (2 * std)


def whisper_log_mel(segments: torch.Tensor, num_mel_bins: int) -> torch.Tensor:
    """Compute the log-mel that Whisper was trained on, as `WhisperFeatureExtractor`, for a batch and on any device.

    Args:
        segments: (N, samples) float32 in [-1, 1], 16 kHz.
        num_mel_bins: 80, or 128 for large-v3.

    Returns:
        (N, num_mel_bins, log-mel frames) float32.
    """
    window = torch.hann_window(WHISPER_FFT, device=segments.device)
    filters = mel_filter_bank(
        1 + WHISPER_FFT // 2, num_mel_bins, 0.0, 8000.0, SAMPLING_RATE, norm="slaney", mel_scale="slaney"
    )
    filters = torch.from_numpy(filters.T).to(segments)  # (mel bins, 201)
    features = []
    for batch in segments.split(SPECTRUM_BATCH):
        spectrum = torch.stft(batch, WHISPER_FFT, HOP_LENGTH, window=window, return_complex=True)
        power = spectrum[..., :-1].abs().square()  # (N, 201, log-mel frames)
        log_mel = (filters @ power).clamp(min=1e-10).log10()  # (N, mel bins, log-mel frames)
        features.append(torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0))
    return (torch.cat(features) + 4.0) / 4.0


def music_frame_mask(num_samples: int, num_segments: int, segment_seconds: float) -> torch.Tensor:
    """Mark the fbank frames that start before the audio ends: (N, fbank frames) bool.

    For segments over 3.22 s this is the rule of the original BEATs, which divides the samples evenly among the frames;
    in shorter ones its frames drift from their place in time.
    """
    starts = torch.arange(num_kaldi_frames(segment_seconds)) * HOP_LENGTH  # (fbank frames,)
    return _starts_before_end(starts, num_samples, num_segments, segment_seconds)


def token_mask(num_samples: int, num_segments: int, segment_seconds: float, patch_size: int) -> torch.Tensor:
    """Mark the fused tokens that start before the audio ends: (N, K) bool."""
    starts = torch.arange(num_kaldi_frames(segment_seconds) // patch_size) * HOP_LENGTH * patch_size  # (K,)
    return _starts_before_end(starts, num_samples, num_segments, segment_seconds)


def _starts_before_end(starts: torch.Tensor, num_samples: int, num_segments: int, segment_seconds: float):
    segment_samples = round(segment_seconds * SAMPLING_RATE)
    left = num_samples - torch.arange(num_segments) * segment_samples  # (N,)
    return starts < left[:, None]
