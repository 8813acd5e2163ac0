"""CoLLAP's feature extractor: waveforms of any length to the inputs of BEATs and the Whisper encoder."""

import math

import numpy as np
import torch
import torchaudio
from transformers import BatchFeature, FeatureExtractionMixin
from transformers.utils import logging

from .audio_collap import (
    SAMPLING_RATE,
    kaldi_fbank,
    music_frame_mask,
    num_kaldi_frames,
    split_segments,
    token_mask,
    whisper_log_mel,
)

logger = logging.get_logger(__name__)

MIN_SECONDS = 0.1
MIN_SAMPLING_RATE = 1000  # below it the caller means kHz; 48 Hz for 48 kHz would make an hour out of 4 s
MAX_RATIO = 8192  # of a rate to its common divisor with 16 kHz: the resampling filter grows with it, to gigabytes
MAX_PEAK = 100.0  # louder than any clipped float recording: integers that were cast


class CoLLAPFeatureExtractor(FeatureExtractionMixin):
    r"""Cuts waveforms into segments and computes both spectrograms of each. Deterministic; nothing is truncated.

    Args:
        segment_seconds: L, as in `CoLLAPConfig`; a multiple of 0.02.
        music_mel_bins: mel bins of the Kaldi filter bank.
        speech_mel_bins: mel bins of Whisper's log-mel: 80, or 128 for large-v3.
        patch_size: side of BEATs' patches, for the token mask.
        fbank_mean, fbank_std: normalisation of the filter bank (BEATs' training data).
        sampling_rate: of what the encoders read; 16000, and nothing else.
    """

    model_input_names = [
        "music_features",
        "speech_features",
        "music_attention_mask",
        "segment_mask",
        "audio_token_mask",
    ]

    def __init__(
        self,
        segment_seconds: float = 30,
        music_mel_bins: int = 128,
        speech_mel_bins: int = 80,
        patch_size: int = 16,
        fbank_mean: float = 15.41663,
        fbank_std: float = 6.55582,
        sampling_rate: int = SAMPLING_RATE,
        **kwargs,
    ):
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"BEATs and Whisper read {SAMPLING_RATE} Hz; found sampling_rate={sampling_rate}")
        check_segment_seconds(segment_seconds, patch_size)
        super().__init__(**kwargs)
        self.segment_seconds = segment_seconds
        self.music_mel_bins = music_mel_bins
        self.speech_mel_bins = speech_mel_bins
        self.patch_size = patch_size
        self.fbank_mean = fbank_mean
        self.fbank_std = fbank_std
        self.sampling_rate = sampling_rate

    @classmethod
    def from_model_config(cls, config) -> "CoLLAPFeatureExtractor":
        """The extractor that fits a `CoLLAPConfig`."""
        return cls(
            segment_seconds=config.segment_seconds,
            music_mel_bins=config.music_config.num_mel_bins,
            speech_mel_bins=config.speech_config.num_mel_bins,
            patch_size=config.music_config.patch_size,
        )

    def __call__(
        self,
        audio: np.ndarray | torch.Tensor | list,
        sampling_rate: int | None = None,
        device: str | torch.device = "cpu",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Args:
            audio: one waveform or a list of them, numpy or torch, each (samples,) or (channels, samples), floating
                point in [-1, 1]; channels are averaged. At least 0.1 s, no upper limit.
            sampling_rate: Hz of all of them; resampled with torchaudio if it is not 16000.
            device: where the features are computed and returned.
            return_tensors: only `"pt"`.

        Returns:
            music_features (A, S, F, music_mel_bins), speech_features (A, S, speech_mel_bins, 100 L), both float32;
            music_attention_mask (A, S, F), segment_mask (A, S) and audio_token_mask (A, S * K), bool, True = audio.
            S is the number of segments of the longest audio; the segments that others lack are zero.

        Raises:
            ValueError: for an unknown or impossible sampling rate, and for audio that is empty, shorter than 0.1 s,
                not finite, not floating point or of another shape; the message names its place in the list.
        """
        check_return_tensors(return_tensors)
        waveforms = audio if isinstance(audio, (list, tuple)) else [audio]
        if len(waveforms) == 0:
            raise ValueError("found an empty list of audios; expected at least one waveform")
        if isinstance(waveforms[0], (float, int)):
            raise ValueError("found a list of numbers; expected a numpy array or torch tensor, or a list of those")
        checked = [check_waveform(waveform, f"audio[{i}]") for i, waveform in enumerate(waveforms)]
        rate = check_sampling_rate(sampling_rate)
        resampled = [self._resample(waveform.to(device), rate) for waveform in checked]
        for i, waveform in enumerate(resampled):
            if len(waveform) < MIN_SECONDS * SAMPLING_RATE:
                seconds = len(waveform) / SAMPLING_RATE
                raise ValueError(f"audio[{i}] is {seconds:.3f} s long; expected at least {MIN_SECONDS} s")
        return pad_audio_features([self.segment_features(waveform) for waveform in resampled])

    def _resample(self, waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        if sampling_rate == SAMPLING_RATE:
            return waveform
        if sampling_rate // math.gcd(sampling_rate, SAMPLING_RATE) > MAX_RATIO:
            raise ValueError(
                f"sampling_rate {sampling_rate} has no small ratio to {SAMPLING_RATE}: resampling would take minutes; "
                "read the file with processing.load_audio, which returns 16000 Hz"
            )
        logger.warning_once(f"resampling audio from {sampling_rate} Hz to {SAMPLING_RATE} Hz (said once)")
        return torchaudio.functional.resample(waveform, sampling_rate, SAMPLING_RATE)

    def segment_features(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        """The five inputs of one audio (samples,), each with the segment as its first dimension."""
        segments = split_segments(waveform, self.segment_seconds)  # (S, samples)
        count, samples = len(segments), len(waveform)
        return {
            "music_features": kaldi_fbank(segments, self.music_mel_bins, self.fbank_mean, self.fbank_std),
            "speech_features": whisper_log_mel(segments, self.speech_mel_bins),
            "music_attention_mask": music_frame_mask(samples, count, self.segment_seconds).to(waveform.device),
            "segment_mask": torch.ones(count, dtype=torch.bool, device=waveform.device),
            "audio_token_mask": token_mask(samples, count, self.segment_seconds, self.patch_size).to(waveform.device),
        }


def pad_audio_features(audios: list[dict[str, torch.Tensor]]) -> BatchFeature:
    """Joins the features of single audios, each with the segment as first dimension, into one padded batch.

    The masks of padding are False, its features zero; the model never encodes it.
    """
    batch = {}
    for name in CoLLAPFeatureExtractor.model_input_names:
        padded = torch.nn.utils.rnn.pad_sequence([audio[name] for audio in audios], batch_first=True)
        batch[name] = padded.flatten(1) if name == "audio_token_mask" else padded  # (A, S, ...); (A, S K)
    return BatchFeature(batch)


def check_segment_seconds(segment_seconds: float, patch_size: int):
    """ValueError unless a segment is a whole number of Whisper's 20 ms tokens and holds one patch of BEATs."""
    speech_tokens = segment_seconds * 50
    whole = math.isclose(speech_tokens, round(speech_tokens), abs_tol=1e-6)
    if not whole or num_kaldi_frames(segment_seconds) < patch_size:
        raise ValueError(
            f"segment_seconds must be a multiple of 0.02 that holds a patch of {patch_size} frames of 10 ms, found "
            f"{segment_seconds}"
        )


def check_return_tensors(return_tensors: str):
    """ValueError for anything but torch tensors."""
    if return_tensors != "pt":
        raise ValueError(f"the model reads torch tensors; expected return_tensors='pt', found {return_tensors!r}")


def check_sampling_rate(sampling_rate: int | None) -> int:
    """The rate as an integer.

    Raises:
        ValueError: if it is missing or not a whole number of Hz, at least 1000.
    """
    if sampling_rate is None:
        raise ValueError("sampling_rate is missing: say at how many Hz the audio was recorded, e.g. 16000")
    try:
        whole = int(sampling_rate) == sampling_rate
    except (TypeError, ValueError, OverflowError):  # a list, NaN, infinity
        whole = False
    if not whole or sampling_rate < MIN_SAMPLING_RATE:
        raise ValueError(
            f"sampling_rate must be a whole number of Hz, at least {MIN_SAMPLING_RATE}, found {sampling_rate!r}"
        )
    return int(sampling_rate)


def check_waveform(waveform: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """One finite mono waveform, (samples,) float32; channels are averaged.

    Raises:
        ValueError: names the audio, says what was found and what was expected.
    """
    if not isinstance(waveform, (np.ndarray, torch.Tensor)):
        found = type(waveform).__name__
        hint = "; read files with processing.load_audio" if isinstance(waveform, (str, bytes)) else ""
        raise ValueError(f"{name} is a {found}; expected a numpy array or torch tensor{hint}")
    is_array = isinstance(waveform, np.ndarray)
    if not (np.issubdtype(waveform.dtype, np.floating) if is_array else waveform.is_floating_point()):
        raise ValueError(
            f"{name} has dtype {waveform.dtype}; expected floating point in [-1, 1] (divide 16-bit samples by 32768)"
        )
    if is_array:
        # torch takes no reversed array, no foreign byte order, no long double, and read-only ones with a warning.
        with np.errstate(over="ignore"):
            waveform = np.require(waveform, np.float32, ["C", "W"])
    tensor = torch.as_tensor(waveform, dtype=torch.float32)
    if tensor.ndim == 2 and tensor.shape[0] > tensor.shape[1] > 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (channels, samples): transpose it")
    if tensor.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (samples,) or (channels, samples)")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty (shape {tuple(tensor.shape)}); expected at least {MIN_SECONDS} s of samples")
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} has {bad} samples that are NaN or infinite; expected finite numbers in [-1, 1]")
    if tensor.abs().max() > MAX_PEAK:
        raise ValueError(
            f"{name} peaks at {tensor.abs().max():.0f}; expected samples in [-1, 1] (divide 16-bit samples by 32768)"
        )
    return tensor.mean(0) if tensor.ndim == 2 else tensor  # (samples,)
