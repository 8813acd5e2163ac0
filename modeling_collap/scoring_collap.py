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

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Numbers that are worked on at a time; of more of them the backward pass keeps nothing, and scores once more.
CELLS_AT_A_TIME = 2**24
TILE_CELLS = 3 * 2**19  # that a processor works on at a time: 6 MB stay in its cache
FAR = -1e30  # logarithm of the weight of what does not count; finite, so that a sum of nothing has a gradient


def num_frames(num_tokens: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Return W of every audio: `floor((T - H) / stride + 1)` (Eq. 1), and 1 for an audio shorter than one frame.

    Args:
        num_tokens: (A,) real tokens.

    Returns:
        (A,).
    """
    return (torch.div(num_tokens - kernel_size, stride, rounding_mode="floor") + 1).clamp(min=1)


def token_scores(text_embeds: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
    """Compute the cosine of every token with every text (Eq. 2); (B, D) and (A, T, D), unit vectors, give (A, T, B)."""
    return audio_embeds @ text_embeds.T  # (A, T, B)


def attend(logits: torch.Tensor, values: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Average values along one axis with weights of `2 ** logits`, which is faster than `e`.

    The mean of a whole is the same average over its parts: of their means, by their log weights.

    Args:
        logits, values: of one shape, or shapes that broadcast.

    Returns:
        The means, and the log weights `log2 sum 2 ** logits`; both without the axis.
    """
    top = logits.detach().amax(dim, keepdim=True)
    weights = (logits - top).exp2_()
    total = weights.sum(dim)
    return (weights * values).sum(dim) / total, top.squeeze(dim) + total.log2()


def softmax_mean(
    scores: torch.Tensor,
    temperature: torch.Tensor | float,
    weights: torch.Tensor | None = None,
    dim: int = -1,
) -> torch.Tensor:
    """Average scores along one axis with their own softmax as weights: `sum(w e^(m / tau) m) / sum(w e^(m / tau))`.

    Args:
        scores: m.
        temperature: tau.
        weights: w, not negative, which broadcast to the scores: durations of what was scored, or a mask; None for 1.

    Returns:
        The means, without the axis. Where all weights are 0, some mean of the scores.
    """
    values = scores.to(torch.promote_types(scores.dtype, torch.float32))
    logits = values / (math.log(2) * temperature)
    if weights is not None:
        logits = logits + log_weight(weights, logits.dtype)
    return attend(logits, values, dim)[0].to(scores.dtype)


def log_weight(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the binary logarithm of weights or of a mask, [`FAR`] where they are 0; `dtype` holds float32's range."""
    return weights.to(dtype).log2().clamp(min=FAR)


def frame_means(logits: torch.Tensor, values: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Attend within every frame (Eq. 3); a token is exponentiated once, however many frames it is in.

    Args:
        logits, values: (A, N, S, B) as of [`stride_blocks`]: N blocks of S tokens; frame v begins with block v.

    Returns:
        (A, W, B).
    """
    stride = logits.shape[2]
    reach, rest = frame_reach(kernel_size, stride)
    # Parts of blocks: the first `rest` tokens, and the others, which the last block of a frame does not give it.
    heads = attend(logits[:, :, :rest], values[:, :, :rest], dim=2)  # (A, N, B)
    parts = [[_windows(part, reach) for part in heads]]  # (A, reach, W, B)
    if rest < stride and reach > 1:
        tails = attend(logits[:, :-1, rest:], values[:, :-1, rest:], dim=2)  # (A, N - 1, B)
        parts.append([_windows(part, reach - 1) for part in tails])  # (A, reach - 1, W, B)
    means, weights = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))  # (A, parts of a frame, W, B)
    return attend(weights, means, dim=1)[0]


def _windows(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """Return the windows of so many blocks, (A, N, B) -> (A, size, windows, B): of each the first, the second, ..."""
    return blocks.unfold(1, size, 1).movedim(-1, 1)


def frame_reach(kernel_size: int, stride: int) -> tuple[int, int]:
    """Return how many blocks of a stride a frame reaches into, and how many tokens of the last of them are its own."""
    reach = -(-kernel_size // stride)
    return reach, kernel_size - (reach - 1) * stride


def position_means(logits: torch.Tensor, values: torch.Tensor, frames: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Attend over the frames at every kernel position (Eq. 4); a token is exponentiated once, whatever its positions.

    Position j S + s holds the s-th token of blocks j, ..., j + W - 1. Most blocks are in all these ranges; only the
    first few and the last few are not, and are joined to the others for each j.

    Args:
        logits, values: as in [`frame_means`].
        frames: (A,) W of every audio.

    Returns:
        (A, H, B).
    """
    songs, blocks, stride, _ = logits.shape
    reach = frame_reach(kernel_size, stride)[0]
    device, frames = logits.device, frames.unsqueeze(1)  # (A, 1)
    block = torch.arange(blocks, device=device)
    is_shared = (block >= reach - 1) & (block < frames)  # (A, N)
    shared_logits = logits + log_weight(is_shared, logits.dtype)[:, :, None, None]  # (A, N, S, B)
    means, weights = attend(shared_logits, values, dim=1)  # (A, S, B)
    if reach == 1:
        return means[:, :kernel_size]
    few = torch.arange(reach - 1, device=device)
    edges = torch.cat([few.expand(songs, -1), frames.clamp(min=reach - 1) + few], dim=1)  # (A, E)
    place = torch.arange(songs, device=device).unsqueeze(1), edges.clamp(max=blocks - 1)
    logits = torch.cat([weights.unsqueeze(1), logits[place]], dim=1)  # (A, 1 + E, S, B)
    values = torch.cat([means.unsqueeze(1), values[place]], dim=1)  # (A, 1 + E, S, B)
    positions = []
    for first in range(reach):  # j
        is_in = F.pad((edges >= first) & (edges < first + frames), (1, 0), value=True)  # (A, 1 + E)
        own_logits = logits + log_weight(is_in, logits.dtype)[:, :, None, None]  # (A, 1 + E, S, B)
        positions.append(attend(own_logits, values, dim=1)[0])  # (A, S, B)
    return torch.cat(positions, dim=1)[:, :kernel_size]  # (A, H, B)


def stride_blocks(
    cosines: torch.Tensor,
    audio_token_mask: torch.Tensor,
    kernel_size: int,
    stride: int,
    temperature: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay tokens in blocks of one stride, as many as the frames of the longest audio reach into.

    Args:
        cosines: (A, T, B).
        audio_token_mask: (A, T) bool.
        temperature: tau.

    Returns:
        (A, N, S, B) logits: cosines over tau ln 2, [`FAR`] where there is no token; (A, N, S, B) cosines, 0 there.
        float32, or what is more exact.
    """
    values = cosines.to(torch.promote_types(cosines.dtype, torch.float32))
    # A condition, and not `max`, which would burden a graph with every size that follows from it.
    tokens = cosines.shape[1] if cosines.shape[1] >= kernel_size else kernel_size
    blocks = (tokens - kernel_size) // stride + frame_reach(kernel_size, stride)[0]  # N
    missing = blocks * stride - cosines.shape[1]  # negative: tokens after the last frame are cut off
    values, mask = F.pad(values, (0, 0, 0, missing)), F.pad(audio_token_mask, (0, missing)).unsqueeze(-1)
    values = values * mask  # (A, N S, B)
    logits = (values / (math.log(2) * temperature)).add_(log_weight(mask, values.dtype))  # (A, N S, B)
    return tuple(one.unfold(1, stride, stride).movedim(-1, 2) for one in (logits, values))  # (A, N, S, B)


def attention_pooled_cosines(
    cosines: torch.Tensor,
    audio_token_mask: torch.Tensor,
    kernel_size: int,
    stride: int,
    gamma_kernel: torch.Tensor | float,
    gamma_temporal: torch.Tensor | float,
    attention_temperature: torch.Tensor | float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Score every audio with every text as [`attention_pooled_scores`], from the cosines of its tokens.

    Args:
        cosines: (A, T, B), finite in the padding too.
        audio_token_mask, kernel_size, stride, gamma_kernel, gamma_temporal, attention_temperature, reduction: as in
            [`attention_pooled_scores`].

    Returns:
        (A, B).
    """
    logits, values = stride_blocks(cosines, audio_token_mask, kernel_size, stride, attention_temperature)
    tokens = audio_token_mask.sum(1)  # (A,)
    frames, positions = num_frames(tokens, kernel_size, stride), tokens.clamp(max=kernel_size)  # (A,)
    kernel = masked_sum(frame_means(logits, values, kernel_size), frames)  # (A, B)
    temporal = masked_sum(position_means(logits, values, frames, kernel_size), positions)  # (A, B)
    frames = frames * (tokens > 0)  # of an audio without tokens: 0, and its score is NaN
    over_kernel, over_temporal = (frames, positions) if reduction == "mean" else (kernel_size + 0 * frames, frames)
    kernel = (kernel / over_kernel.unsqueeze(1)).to(cosines.dtype)
    temporal = (temporal / over_temporal.unsqueeze(1)).to(cosines.dtype)
    return gamma_kernel * kernel + gamma_temporal * temporal


def masked_sum(means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Sum over the first `counts` (A,) of (A, W or H, B): (A, B)."""
    is_counted = torch.arange(means.shape[1], device=means.device) < counts.unsqueeze(1)  # (A, W or H)
    return (means * is_counted.unsqueeze(-1)).sum(1)


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

    Padding never changes a score. Memory is O(A * B * T), of which [`in_tiles`] bounds the product.

    Args:
        text_embeds: (B, D) unit vectors.
        audio_embeds: (A, T, D) unit vectors; padding may hold any number whose cosines are finite.
        audio_token_mask: (A, T) bool, True = real; the real tokens come first. An audio without any has no score: its
            row is NaN (a check would wait for the device). `CoLLAPFeatureExtractor` never returns such an audio.
        kernel_size, stride: of a frame, in tokens.
        gamma_kernel, gamma_temporal: weights of the two scores.
        attention_temperature: divides the cosines inside both softmaxes.
        chunk_size: texts scored at a time; None for as many as [`in_tiles`] takes. Changes nothing but memory, in the
            backward pass too, which scores again what was scored in several parts.

    Returns:
        (A, B).

    Raises:
        ValueError: for another reduction, sizes below 1, or shapes that do not fit together.
    """
    _check_arguments(text_embeds, audio_embeds, audio_token_mask, kernel_size, stride, reduction, chunk_size)
    settings = kernel_size, stride, gamma_kernel, gamma_temporal, attention_temperature, reduction

    def score(texts: torch.Tensor, audios: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return attention_pooled_cosines(token_scores(texts, audios), mask, *settings)  # (A, B)

    cells = cells_of_pair(audio_embeds.shape[1], kernel_size, stride)
    return in_tiles(score, (text_embeds,), (audio_embeds, audio_token_mask.bool()), cells, chunk_size)  # (A, B)


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
    tokens = audio_token_mask.sum(1)  # (A,)
    frames = num_frames(tokens, kernel_size, stride) * (tokens > 0)  # (A,)

    def score(texts: torch.Tensor, audios: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        blocks = stride_blocks(token_scores(texts, audios), mask, kernel_size, stride, attention_temperature)
        return frame_means(*blocks, kernel_size).transpose(1, 2).to(audios.dtype)  # (A, B, W)

    cells = cells_of_pair(audio_embeds.shape[1], kernel_size, stride)
    scores = in_tiles(score, (text_embeds,), (audio_embeds, audio_token_mask.bool()), cells)  # (A, B, W)
    is_frame = torch.arange(scores.shape[-1], device=scores.device) < frames.unsqueeze(1)  # (A, W)
    return scores * is_frame.unsqueeze(1), is_frame


def cells_of_pair(num_tokens: int, kernel_size: int, stride: int) -> int:
    """Return how many numbers a song and a text make at a time: of tokens, and of the parts of frames and positions."""
    reach = frame_reach(kernel_size, stride)[0]
    frames = max((num_tokens - kernel_size) // stride + 1, 1)  # W
    return num_tokens + (2 * reach - 1) * (frames + reach * stride)


def in_tiles(
    score: Callable[..., torch.Tensor],
    texts: tuple[torch.Tensor, ...],
    audios: tuple[torch.Tensor, ...],
    cells: int,
    chunk_size: int | None = None,
    tile_cells: int | None = None,
) -> torch.Tensor:
    """Score some texts with some audios at a time and join the results.

    So memory is bounded for songs of any length, and a processor works in its cache. What a backward pass would have to
    keep is scored again where it is more than [`CELLS_AT_A_TIME`], or the caller wants chunks.

    Args:
        score: `score(*texts, *audios)` -> (A, B, ...).
        texts: tensors (B, ...).
        audios: tensors (A, ...).
        cells: numbers that one text and one audio make.
        chunk_size: texts at a time; None for what fits.
        tile_cells: numbers that a processor works on at a time; None for [`TILE_CELLS`].

    Returns:
        (A, B, ...).
    """
    # An exported graph has one path.
    if torch.compiler.is_exporting():
        return score(*texts, *audios)
    num_texts, num_audios = max(len(texts[0]), 1), max(len(audios[0]), 1)
    limit = CELLS_AT_A_TIME
    if num_texts * num_audios * cells > limit or (chunk_size or num_texts) < num_texts:
        score = partial(checkpoint, score, use_reentrant=False)
    if audios[0].device.type == "cpu" and not torch.compiler.is_compiling():
        limit = min(limit, tile_cells or TILE_CELLS)
    texts_at_a_time = min(chunk_size or max(limit // cells, 1), num_texts)
    if chunk_size is None and 64 < texts_at_a_time < num_texts:
        even = -(-num_texts // -(-num_texts // texts_at_a_time))  # no small rest
        even += -even % 64  # matrix products of other widths take a quarter longer
        texts_at_a_time = even if even <= texts_at_a_time else texts_at_a_time - texts_at_a_time % 64
    audios_at_a_time = max(limit // (cells * texts_at_a_time), 1)
    if texts_at_a_time >= num_texts and audios_at_a_time >= num_audios:
        return score(*texts, *audios)  # splitting would copy the gradient
    columns = list(zip(*(tensor.split(texts_at_a_time) for tensor in texts), strict=True))
    rows = zip(*(tensor.split(audios_at_a_time) for tensor in audios), strict=True)
    return torch.cat([torch.cat([score(*column, *row) for column in columns], dim=1) for row in rows])


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
