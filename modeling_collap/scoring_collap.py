"""Score songs with texts: kernel-wise and temporal attention over the moments of a song (paper, Eqs. 1-7).

`m[v, h]` is the cosine of the text with the h-th of the H tokens of frame v; the song has W frames. Within a frame, and
over the frames, every cosine counts by a softmax of the cosines themselves (tau: attention temperature):

    r^K = 1/W  sum_v  sum_h  softmax over h (m[v, .] / tau)[h]  m[v, h]      a moment anywhere within a frame
    r^T = 1/H  sum_h  sum_v  softmax over v (m[., h] / tau)[v]  m[v, h]      the frames that match best
    score = gamma_K r^K + gamma_T r^T

Both lie in [-1, 1], whatever the length of the song (`reduction="mean"`); the paper prints 1/H and 1/W the other way
round (`"printed"`), by which r^K grows with W. A song that matches the text in one of its four tokens:

    >>> text = torch.tensor([[1.0, 0.0]])
    >>> song = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    >>> everything = torch.ones(1, 4, dtype=torch.bool)
    >>> frames = dict(kernel_size=2, stride=2)
    >>> r_kernel = attention_pooled_scores(text, song, everything, **frames, gamma_kernel=1.0, gamma_temporal=0.0)
    >>> r_temporal = attention_pooled_scores(text, song, everything, **frames, gamma_kernel=0.0, gamma_temporal=1.0)
    >>> sharp = attention_pooled_scores(text, song, everything, 2, 2, 1.0, 0.0, attention_temperature=0.01)
    >>> e = torch.tensor(1.0).exp()
    >>> torch.allclose(r_kernel, (e / (e + 1) + 0) / 2)  # the first frame holds the match, the second none
    True
    >>> torch.allclose(r_temporal, (0 + e / (e + 1)) / 2)  # the second position of a frame holds it
    True
    >>> sharp, mean_pooled_scores(text, song, everything)
    (tensor([[0.5000]]), tensor([[0.3162]]))

Pure functions of embeddings. Tokens are scored once, (A, B, T), and the scores are unfolded into frames, never the
D-wide embeddings: the same numbers for H/stride times less work and memory.

Dimensions: `A` audios, `B` texts, `T` fused tokens of an audio, `D` shared width, `H` kernel size (tokens per frame),
`W` frames.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Cosines (A, texts, W, H) that are worked on at a time: 64 MB in float32, some 0.4 GB with all that is made of them.
CELLS_AT_A_TIME = 2**24


def num_frames(num_tokens: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Return W of every audio: `floor((T - H) / stride + 1)` (Eq. 1), and 1 for an audio shorter than one frame.

    Args:
        num_tokens: (A,) real tokens.

    Returns:
        (A,).
    """
    return (torch.div(num_tokens - kernel_size, stride, rounding_mode="floor") + 1).clamp(min=1)


def texts_at_a_time(num_audios: int, num_tokens: int, kernel_size: int, stride: int) -> int:
    """Return how many texts are scored at a time, so that memory is bounded for songs of any length; at least 1.

    Args:
        num_audios, num_tokens: A and T.
        kernel_size, stride: of a frame, in tokens.
    """
    frames = max((num_tokens - kernel_size) // stride + 1, 1)  # W
    return max(1, CELLS_AT_A_TIME // (num_audios * frames * kernel_size))


def token_scores(text_embeds: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
    """Compute the cosine of every token with every text (Eq. 2); (B, D) and (A, T, D), unit vectors, give (A, B, T)."""
    return torch.einsum("bd,atd->abt", text_embeds, audio_embeds)  # (A, B, T)


def unfold_frames(tokens: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Return a view (..., W, H) of (..., T): the frames of the longest audio, padded with zeros if T < H."""
    missing = kernel_size - tokens.shape[-1]
    if missing > 0:
        tokens = F.pad(tokens, (0, missing))
    return tokens.unfold(-1, kernel_size, stride)  # (..., W, H)


def frame_token_mask(audio_token_mask: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Mark the tokens of an audio's own frames: (A, T) bool, real tokens first -> (A, W, H) bool.

    A frame that reaches beyond the last real token is not one of the audio's frames, except the only frame of an audio
    shorter than H, whose missing positions are masked.
    """
    frames = num_frames(audio_token_mask.sum(-1), kernel_size, stride)  # (A,)
    mask = unfold_frames(audio_token_mask, kernel_size, stride)  # (A, W, H)
    is_frame = torch.arange(mask.shape[1], device=mask.device) < frames[:, None]  # (A, W)
    return mask & is_frame[:, :, None]


def attended_scores(frame_scores: torch.Tensor, mask: torch.Tensor, temperature: torch.Tensor | float, dim: int):
    """Average scores along one axis with their own softmax as weights (Eqs. 3-4: `sum(softmax(m / tau) * m)`).

    Args:
        frame_scores: (A, B, W, H) cosines m.
        mask: (A, 1, W, H) bool.
        temperature: tau.
        dim: -1 attends within each frame (kernel-wise), -2 over the frames (temporal).

    Returns:
        (A, B, W) for `dim=-1`, (A, B, H) for `dim=-2`; 0 where nothing is unmasked.
    """
    lowest = torch.finfo(frame_scores.dtype).min
    weights = (frame_scores / temperature).masked_fill(~mask, lowest).softmax(dim)  # (A, B, W, H)
    return (weights * frame_scores.masked_fill(~mask, 0.0)).sum(dim)


def attention_pooled_scores(
    text_embeds: torch.Tensor,
    audio_embeds: torch.Tensor,
    audio_token_mask: torch.Tensor,
    kernel_size: int,
    stride: int,
    gamma_kernel: torch.Tensor | float,
    gamma_temporal: torch.Tensor | float,
    attention_temperature: torch.Tensor | float = 1.0,
    reduction: str = "mean",
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Score every audio with every text: `gamma_K r^K + gamma_T r^T` (Eq. 7), as the top of this file says.

    `reduction="mean"` divides by the axis that is left (the frames of the audio for `r^K`, its kernel positions for
    `r^T`), so the score of a match does not depend on the length of the song; `"printed"` divides by the other axis
    (Eqs. 5-6 as printed), which lets long songs outrank short ones.

    Padding never changes a score. Memory is O(A * texts * W * H), of which [`texts_at_a_time`] bounds the product.

    Args:
        text_embeds: (B, D) unit vectors.
        audio_embeds: (A, T, D) unit vectors; padding may hold any finite number.
        audio_token_mask: (A, T) bool, True = real; the real tokens come first. An audio without any has no score: its
            row is NaN (a check would wait for the device). `CoLLAPFeatureExtractor` never returns such an audio.
        kernel_size, stride: of a frame, in tokens.
        gamma_kernel, gamma_temporal: weights of the two scores.
        attention_temperature: divides the cosines inside both softmaxes.
        chunk_size: texts scored at a time; None for [`texts_at_a_time`]. Changes nothing but memory, in the backward
            pass too, which scores again what was scored in several parts.

    Returns:
        (A, B).

    Raises:
        ValueError: for another reduction, sizes below 1, or shapes that do not fit together.
    """
    _check_arguments(text_embeds, audio_embeds, audio_token_mask, kernel_size, stride, reduction, chunk_size)
    mask = frame_token_mask(audio_token_mask.bool(), kernel_size, stride).unsqueeze(1)  # (A, 1, W, H)
    frames = mask.any(-1).sum(-1)  # (A, 1)
    positions = mask.any(-2).sum(-1)  # (A, 1)
    if reduction == "printed":
        frames, positions = torch.full_like(frames, kernel_size), frames

    def score(texts: torch.Tensor) -> torch.Tensor:
        scores = unfold_frames(token_scores(texts, audio_embeds), kernel_size, stride)  # (A, B, W, H)
        kernel = attended_scores(scores, mask, attention_temperature, dim=-1).sum(-1) / frames  # (A, B)
        temporal = attended_scores(scores, mask, attention_temperature, dim=-2).sum(-1) / positions  # (A, B)
        return gamma_kernel * kernel + gamma_temporal * temporal

    if chunk_size is None:
        chunk_size = texts_at_a_time(*audio_embeds.shape[:2], kernel_size, stride)
    return in_chunks(score, text_embeds, chunk_size)  # (A, B)


def moment_scores(
    text_embeds: torch.Tensor,
    audio_embeds: torch.Tensor,
    audio_token_mask: torch.Tensor,
    kernel_size: int,
    stride: int,
    attention_temperature: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every frame of every audio with every text: the terms of which `r^K` is the mean.

    Args:
        text_embeds, audio_embeds, audio_token_mask, kernel_size, stride, attention_temperature: as in
            [`attention_pooled_scores`].

    Returns:
        (A, B, W) in [-1, 1], 0 where there is no frame; (A, W) bool, True = a frame of this audio.
    """
    mask = frame_token_mask(audio_token_mask.bool(), kernel_size, stride)  # (A, W, H)

    def score(texts: torch.Tensor) -> torch.Tensor:
        scores = unfold_frames(token_scores(texts, audio_embeds), kernel_size, stride)  # (A, B, W, H)
        return attended_scores(scores, mask.unsqueeze(1), attention_temperature, dim=-1)  # (A, B, W)

    chunk_size = texts_at_a_time(*audio_embeds.shape[:2], kernel_size, stride)
    return in_chunks(score, text_embeds, chunk_size), mask.any(-1)


def in_chunks(score: Callable, text_embeds: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Call `score` for some texts at a time and join the results, (A, B, ...), along the texts."""
    # An exported graph has one path.
    if torch.compiler.is_exporting() or chunk_size >= text_embeds.shape[0]:
        return score(text_embeds)
    chunks = text_embeds.split(chunk_size)
    return torch.cat([checkpoint(score, texts, use_reentrant=False) for texts in chunks], dim=1)


def mean_pooled_scores(
    text_embeds: torch.Tensor, audio_embeds: torch.Tensor, audio_token_mask: torch.Tensor
) -> torch.Tensor:
    """Score as every peer does, for comparison: by the cosine of the text with the mean of the tokens.

    Args:
        text_embeds, audio_embeds, audio_token_mask: as in [`attention_pooled_scores`].

    Returns:
        (A, B).
    """
    total = audio_embeds.masked_fill(~audio_token_mask.bool().unsqueeze(-1), 0.0).sum(1)  # (A, D)
    return F.normalize(total, dim=-1) @ text_embeds.T  # (A, B)


def distance_from_flat_attention(scores: torch.Tensor, flat_scores: torch.Tensor) -> torch.Tensor:
    """Measure how far the attention takes the score from a plain mean over the song: 0 if the softmaxes are flat.

    With unit vectors and a temperature of 1 they nearly are. The mean difference of the two is left out, because a
    constant changes no ranking.

    Args:
        scores: (A, B) scores.
        flat_scores: (A, B) the same with flat attention (an infinite temperature).

    Returns:
        Scalar: standard deviation of the difference over that of `flat_scores`.
    """
    return (scores - flat_scores).std(correction=0) / flat_scores.std(correction=0).clamp(min=1e-12)


def _check_arguments(text_embeds, audio_embeds, audio_token_mask, kernel_size, stride, reduction, chunk_size):
    if reduction not in ("mean", "printed"):
        raise ValueError(f"reduction must be 'mean' or 'printed', found {reduction!r}")
    for name, value in (("kernel_size", kernel_size), ("stride", stride), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    fits = text_embeds.ndim == 2 and audio_embeds.ndim == 3 and text_embeds.shape[1] == audio_embeds.shape[2]
    if not fits or audio_token_mask.shape != audio_embeds.shape[:2]:
        raise ValueError(
            "expected text_embeds (B, D), audio_embeds (A, T, D) and audio_token_mask (A, T), found "
            f"{tuple(text_embeds.shape)}, {tuple(audio_embeds.shape)} and {tuple(audio_token_mask.shape)}"
        )
