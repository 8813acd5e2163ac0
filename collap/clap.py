"""Embed sounds of any length by windows that are always the same ones, and texts, by a CLAP model of transformers.

CLAP's own feature extractor crops at random what is longer than 10 s, so that one file has many embeddings; here it
never sees more than a window. Windows follow each other without overlap; the last is as long as what is left, and is
left out below a second unless it is all there is.

Dimensions: `B` texts, `K` tokens, `M` samples, `T` windows, `D` shared width.
"""

from collections.abc import Callable

import numpy as np
import torch

WINDOW_SECONDS = 10.0
MIN_SECONDS = 1.0
BATCH = 8


def cut_windows(samples: np.ndarray, size: int, smallest: int) -> list[np.ndarray]:
    """Cut samples (M,) into consecutive windows of `size`, and a last one of what is left if it has `smallest`."""
    starts = range(0, len(samples), size)
    return [samples[start : start + size] for start in starts if start == 0 or len(samples) - start >= smallest]


def embed_windows(windows: list[np.ndarray], encode: Callable[[list[np.ndarray]], torch.Tensor]) -> torch.Tensor:
    """Embed T windows, of which only the last may be shorter: (T, D) float32.

    Args:
        encode: embeds windows of one length.
    """
    size = len(windows[0])
    whole = [window for window in windows if len(window) == size]
    batches = [whole[start : start + BATCH] for start in range(0, len(whole), BATCH)]
    batches += [windows[-1:]] if len(windows[-1]) < size else []
    return torch.cat([encode(batch).float().cpu() for batch in batches])


def mean_window(windows: list[np.ndarray], embeds: torch.Tensor) -> torch.Tensor:
    """Return the mean (D,) of embeddings (T, D) of windows, each by its length."""
    lengths = torch.tensor([len(window) for window in windows], dtype=torch.float32)
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
