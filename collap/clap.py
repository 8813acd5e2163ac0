"""Embed sounds of any length by windows that are always the same ones, and texts, by a CLAP model of transformers.

CLAP's own feature extractor crops at random what is longer than 10 s, so that one file has many embeddings; here it
never sees more than a window. Windows follow each other without overlap; the last is as long as what is left, and is
left out below a second unless it is all there is.

Dimensions: `B` texts, `K` tokens, `M` samples, `T` windows, `D` shared width.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

WINDOW_SECONDS = 10.0
MIN_SECONDS = 1.0
BATCH = 8


def real_windows(blocks: Iterable[np.ndarray], smallest: int) -> Iterator[np.ndarray]:
    """Yield consecutive windows of samples, without a last one that has less than `smallest` unless it is all."""
    return (block for index, block in enumerate(blocks) if index == 0 or len(block) >= smallest)


def batches_of(windows: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield windows in lists of one length, at most `BATCH` each, as they come."""
    batch: list[np.ndarray] = []
    for window in windows:
        if batch and (len(batch) == BATCH or len(window) != len(batch[0])):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def embed_windows(
    windows: Iterable[np.ndarray], encode: Callable[[list[np.ndarray]], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed T windows as they come: (T, D) float32, and the samples of each (T,).

    Args:
        encode: embeds windows of one length.
    """
    found, lengths = [], []
    for batch in batches_of(windows):
        found.append(encode(batch).float().cpu())  # (windows, D)
        lengths += map(len, batch)
    return torch.cat(found), torch.tensor(lengths, dtype=torch.float32)


def mean_window(embeds: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the mean (D,) of embeddings (T, D) of windows, each by its length (T,)."""
    return lengths / lengths.sum() @ embeds


def max_clap_tokens(model, tokenizer) -> int:
    """Return how many tokens of a text a `ClapModel` reads."""
    config = model.config.text_config
    return min(tokenizer.model_max_length, config.max_position_embeddings - config.pad_token_id - 1)


def encode_clap_texts(model, inputs: dict) -> torch.Tensor:
    """Encode tokenised texts, `input_ids` and `attention_mask` (B, K), by a `ClapModel`: (B, D)."""
    return model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output


def encode_clap_windows(model, extractor, windows: list[np.ndarray]) -> torch.Tensor:
    """Encode windows of one length by a `ClapModel`: (T, D). A fused one never sees its three random crops.

    Args:
        extractor: its feature extractor.
    """
    state = np.random.get_state()  # it draws a clip that it says is longer, which is ignored
    inputs = extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    np.random.set_state(state)
    features = inputs["input_features"].to(model.device, model.dtype)  # (T, 1 or 4, fbank frames, mel)
    longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=model.device)
    return model.get_audio_features(features, is_longer=longer).pooler_output
