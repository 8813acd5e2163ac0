"""Embeddings of recordings of any length in bounded memory: decode a block, encode it, keep only its tokens.

Dimensions: `S` segments, `K` fused tokens of a segment, `T = S K`, `D` shared width.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from .decode_audio import AudioFileError, AudioSource, source_name, stream_audio
from .songs_collap import MAX_PEAK, MIN_SECONDS


def check_samples(samples: np.ndarray, source: AudioSource, sampling_rate: int, is_start: bool = True):
    """Refuses what [`CoLLAPFeatureExtractor`] refuses of a waveform, by the name of its file.

    Args:
        samples: the whole audio, or a block of it.
        is_start: whether `samples` begins the audio; a later block may be as short as it likes.

    Raises:
        AudioFileError: less than 0.1 s, or louder than any recording.
    """
    seconds = len(samples) / sampling_rate
    if is_start and seconds < MIN_SECONDS:
        raise AudioFileError(f"{source_name(source)}: is {seconds:.3f} s long; expected at least {MIN_SECONDS} s")
    peak = np.abs(samples).max(initial=0.0)
    if peak > MAX_PEAK:
        raise AudioFileError(
            f"{source_name(source)}: peaks at {peak:.0f}; expected samples in [-1, 1] (divide 16-bit samples by 32768)"
        )


@torch.no_grad()
def embed_segments(model, blocks: Iterable[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeds one audio whose features come in blocks of whole segments.

    Args:
        model: a `CoLLAPModel`.
        blocks: what `CoLLAPFeatureExtractor.segment_features` returns for consecutive parts of the audio.

    Returns:
        Embeddings (1, T, D) float32, unit norm, and token mask (1, T), on the model's device.
    """
    tokens, masks = [], []
    for block in blocks:
        block = {name: tensor.to(model.device) for name, tensor in block.items()}
        tokens.append(
            model.encode_segments(block["music_features"], block["speech_features"], block["music_attention_mask"])
        )  # (S, K, D)
        masks.append(block["audio_token_mask"])  # (S, K)
    mask = torch.cat(masks).flatten().unsqueeze(0)  # (1, T)
    tokens = torch.cat(tokens).flatten(0, 1).unsqueeze(0)  # (1, T, D)
    return model.normalize_tokens(tokens, mask), mask  # (1, T, D)


def feature_blocks(
    feature_extractor,
    source: AudioSource,
    segments_per_block: int,
    device: str | torch.device = "cpu",
    read: Callable[..., Iterator[np.ndarray]] = stream_audio,
) -> Iterator[dict[str, torch.Tensor]]:
    """Features of a file, `segments_per_block` segments at a time; the borders fall between segments.

    `read` is `stream_audio`, or does the same elsewhere.
    """
    rate = feature_extractor.sampling_rate
    block_seconds = segments_per_block * feature_extractor.segment_seconds
    for index, block in enumerate(read(source, rate, block_seconds=block_seconds)):
        # All blocks but the last are whole segments, which are longer than 0.1 s: a short first one is all there is.
        check_samples(block, source, rate, is_start=index == 0)
        yield feature_extractor.segment_features(torch.from_numpy(block).to(device))


def embed_audio(
    model, feature_extractor, source: AudioSource, read: Callable[..., Iterator[np.ndarray]] = stream_audio
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeds a file, or its bytes, without ever holding more than a few segments of audio or features.

    The numbers are those of `model.get_audio_features` on the whole file; only the embeddings grow with its length
    (187 x 512 float32 per 30 s: 46 MB an hour), and with `structure_layers` the activations of its 2,805 frames. `read`
    is that of [`feature_blocks`].

    Raises:
        AudioFileError: names the file and says why it cannot be read or embedded.
    """
    segments = model.audio_tower.segment_batch_size
    return embed_segments(model, feature_blocks(feature_extractor, source, segments, model.device, read))
