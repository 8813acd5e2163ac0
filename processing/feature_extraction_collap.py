"""CoLLAP's feature extractor: waveforms of any length to the inputs of BEATs and the Whisper encoder.

Dimensions: `A` audios, `S` segments of an audio, `K` tokens of a segment.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
import torchaudio
from transformers import BatchFeature, FeatureExtractionMixin
from transformers.utils import FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME, logging

from .audio_collap import (
    KALDI_FFT,
    SAMPLING_RATE,
    WHISPER_FFT,
    kaldi_fbank,
    music_frame_mask,
    num_kaldi_frames,
    split_segments,
    token_mask,
    whisper_log_mel,
)
from .songs_collap import MIN_SECONDS, Song, list_songs, read_song

logger = logging.get_logger(__name__)

MAX_RATIO = 8192  # of a rate to its common divisor with 16 kHz: the resampling filter grows with it, to gigabytes
MAX_SEGMENT_SECONDS = 600  # a segment is the least that is encoded at once
# Kind, least and most of every setting; no more mel bins than frequencies.
RANGES = {
    "music_mel_bins": (int, 1, KALDI_FFT // 2),
    "speech_mel_bins": (int, 1, WHISPER_FFT // 2),
    "patch_size": (int, 1, 100 * MAX_SEGMENT_SECONDS),
    "fbank_mean": (float, -1e6, 1e6),
    "fbank_std": (float, 1e-6, 1e6),
}


class CoLLAPFeatureExtractor(FeatureExtractionMixin):
    r"""Cut waveforms into segments and compute both spectrograms of each; deterministic, and nothing is truncated.

    Args:
        segment_seconds: as in `CoLLAPConfig`; a multiple of 0.02.
        music_mel_bins: mel bins of the Kaldi filter bank.
        speech_mel_bins: mel bins of Whisper's log-mel: 80, or 128 for large-v3.
        patch_size: side of BEATs' patches, for the token mask.
        fbank_mean, fbank_std: normalisation of the filter bank (BEATs' training data).
        sampling_rate: of what the encoders read; 16000, and nothing else.

    Raises:
        ValueError: names a setting of another type or range.
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
        super().__init__(**kwargs)
        self.segment_seconds = segment_seconds
        self.music_mel_bins = music_mel_bins
        self.speech_mel_bins = speech_mel_bins
        self.patch_size = patch_size
        self.fbank_mean = fbank_mean
        self.fbank_std = fbank_std
        self.sampling_rate = sampling_rate
        check_settings(vars(self))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "CoLLAPFeatureExtractor":
        """Load as [`~transformers.FeatureExtractionMixin.from_pretrained`] does, and name the file of a bad setting.

        Raises:
            ValueError: a setting, saved or given, is of another type or range.
            OSError: from transformers, for a folder, repository, revision or file that cannot be found.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except ValueError as error:
            folder = Path(pretrained_model_name_or_path)
            alone = folder.is_dir() and not (folder / PROCESSOR_NAME).is_file()
            file = "" if folder.is_file() else f"/{FEATURE_EXTRACTOR_NAME if alone else PROCESSOR_NAME}"
            raise ValueError(f"{pretrained_model_name_or_path}{file}: {error}") from error

    @classmethod
    def from_model_config(cls, config) -> "CoLLAPFeatureExtractor":
        """Return the extractor that fits a `CoLLAPConfig`."""
        return cls(
            segment_seconds=config.segment_seconds,
            music_mel_bins=config.music_config.num_mel_bins,
            speech_mel_bins=config.speech_config.num_mel_bins,
            patch_size=config.music_config.patch_size,
        )

    def __call__(
        self,
        audio: Song | Iterable[Song],
        sampling_rate: int | None = None,
        device: str | torch.device = "cpu",
        return_tensors: str | None = "pt",
        padding: bool | str | None = True,
        truncation: bool | str | None = None,
        max_length: int | None = None,
    ) -> BatchFeature:
        """Compute the model inputs of one song or several, of any length from 0.1 s.

        Args:
            audio: one song or a list, tuple or column of songs. A song is an array or tensor of floating point in
                [-1, 1], (samples,) or (channels, samples), whose channels are averaged; the same as lists of numbers;
                a row of `datasets`, `{"array": samples, "sampling_rate": Hz}`; or a decoder of torchcodec. A bare
                array of two axes is a batch of mono songs (songs, samples), as for CLAP and Whisper.
            sampling_rate: Hz of songs that do not say their own; resampled with torchaudio if it is not 16000.
            device: where the features are computed and returned.
            return_tensors: `"pt"`; or `"np"` or None for numpy arrays.
            padding: True or `"longest"`: to the longest song of the batch, which is all there is.
            truncation, max_length: only False or None, because songs are never cut.

        Returns:
            music_features (A, S, fbank frames, music_mel_bins), speech_features (A, S, speech_mel_bins, log-mel
            frames), both float32; music_attention_mask (A, S, fbank frames), segment_mask (A, S) and audio_token_mask
            (A, S * K), bool, True = audio. S is that of the longest audio; the segments that others lack are zero.

        Raises:
            ValueError: for an unknown or impossible sampling rate, and for audio that is empty, shorter than 0.1 s,
                not finite, not floating point or of another shape; the message names its place in the list.
        """
        check_return_tensors(return_tensors)
        check_whole_songs(padding, truncation, max_length)
        songs = [
            self.song_features(song, sampling_rate, device, f"audio[{i}]") for i, song in enumerate(list_songs(audio))
        ]
        batch = pad_audio_features(songs)
        if return_tensors != "pt":
            batch = BatchFeature({name: tensor.numpy(force=True) for name, tensor in batch.items()})
        return batch

    def song_features(
        self, song: Song, sampling_rate: int | None = None, device: str | torch.device = "cpu", name: str = "audio"
    ) -> dict[str, torch.Tensor]:
        """Return what [`segment_features`] does for one song of any form in memory.

        Args:
            song, sampling_rate, device: as for a call.
            name: of the song in messages.

        Raises:
            ValueError: as for a call.
        """
        waveform, rate = read_song(song, sampling_rate, name)
        waveform = self._resample(waveform.to(device), rate)  # (samples,)
        if len(waveform) < MIN_SECONDS * SAMPLING_RATE:
            seconds = len(waveform) / SAMPLING_RATE
            raise ValueError(f"{name} is {seconds:.3f} s long; expected at least {MIN_SECONDS} s")
        return self.segment_features(waveform)

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
        """Return the five inputs of one audio (samples,), each with the segment as its first dimension."""
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
    """Join the features of single audios, each with the segment as first dimension, into one padded batch.

    The masks of padding are False, its features zero; the model never encodes it.
    """
    batch = {}
    for name in CoLLAPFeatureExtractor.model_input_names:
        padded = torch.nn.utils.rnn.pad_sequence([audio[name] for audio in audios], batch_first=True)
        batch[name] = padded.flatten(1) if name == "audio_token_mask" else padded  # (A, S, ...); (A, S K)
    return BatchFeature(batch)


def check_settings(settings: dict):
    """Refuse settings that no feature can be computed with.

    Raises:
        ValueError: names the setting, says what was found and what was expected.
    """
    for name, (kind, least, most) in RANGES.items():
        value = settings[name]
        if not is_number(value, kind) or not least <= value <= most:
            number = "whole number" if kind is int else "number"
            raise ValueError(f"{name} must be a {number} from {least:g} to {most:g}, found {value!r}")
    if settings["sampling_rate"] != SAMPLING_RATE:
        raise ValueError(f"BEATs and Whisper read {SAMPLING_RATE} Hz; found sampling_rate={settings['sampling_rate']}")
    seconds, patch_size = settings["segment_seconds"], settings["patch_size"]
    valid = is_number(seconds, float) and 0 < seconds <= MAX_SEGMENT_SECONDS
    speech_tokens = seconds * 50 if valid else 0  # in floating point: 2.2 s are 110.00000000000001
    whole = math.isclose(speech_tokens, round(speech_tokens), abs_tol=1e-6)
    if not valid or not whole or num_kaldi_frames(seconds) < patch_size:
        raise ValueError(
            f"segment_seconds must be a multiple of 0.02 up to {MAX_SEGMENT_SECONDS} that holds a patch of "
            f"{patch_size} frames of 10 ms, found {seconds!r}"
        )


def is_number(value, kind: type) -> bool:
    """Tell whether it is a whole number for `int`, or any number for `float`; True and False are none."""
    return isinstance(value, (int, kind)) and not isinstance(value, bool)


def check_return_tensors(return_tensors: str | None):
    """Refuse anything but torch tensors, numpy arrays and lists with a ValueError."""
    if return_tensors not in ("pt", "np", None):
        raise ValueError(f"return_tensors must be 'pt', 'np' or None, found {return_tensors!r}")


def check_whole_songs(padding: bool | str | None, truncation: bool | str | None, max_length: int | None):
    """Refuse a wish to cut songs, or to pad them to anything but the longest, with a ValueError."""
    if padding not in (True, None, "longest"):
        raise ValueError(f"songs are padded to the longest of their batch: expected padding=True, found {padding!r}")
    if truncation not in (False, None, "do_not_truncate") or max_length is not None:
        given = f"truncation={truncation!r}" if max_length is None else f"max_length={max_length!r}"
        raise ValueError(f"songs are read whole, however long: cut the samples instead of giving {given}")
