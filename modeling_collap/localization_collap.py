"""Say where in a song a text, or each of its sentences, is heard.

Dimensions: `A` audios, `B` texts, `Q` sentences of a text, `T` fused tokens of an audio, `W` frames, `D` shared width.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .alignment_collap import best_path, frame_cosines, pool_frames, sentence_mask
from .configuration_collap import CoLLAPConfig
from .loss_collap import location_losses
from .scoring_collap import moment_scores
from .structure_collap import token_start_seconds

SMOOTHED_FRAMES = 3  # over which the curve of a sentence is averaged: 4 s
SPAN_LEVEL = 0.8  # a span is where a curve stays above this share of its range


@dataclass
class CoLLAPLocalization(ModelOutput):
    """Where in each audio each text is heard: `scores` for one vector of each text, the others for its sentences.

    Attributes:
        scores: (A, B, W) kernel-attended cosine of every frame, in [-1, 1]; 0 where `frame_mask` is False.
        frame_mask: (A, W) bool, True = a frame of this audio.
        frame_seconds: (W, 2) start and end of every frame in seconds; the last one of a song may outlast it.
        curves: (A, B, Q, W) cosine of every sentence, averaged over 4 s; 0 where there is no frame or no sentence.
        spans: (A, B, Q, 2) start and end in seconds of each sentence by its curve alone: around its highest point, as
            far as it stays in the upper fifth of its range. NaN where there is no sentence.
        path: (A, B, Q, 2) the same by the best way to lay all sentences along the song in their order.
    """

    scores: torch.Tensor | None = None
    frame_mask: torch.Tensor | None = None
    frame_seconds: torch.Tensor | None = None
    curves: torch.Tensor | None = None
    spans: torch.Tensor | None = None
    path: torch.Tensor | None = None


def frame_times(token_starts: torch.Tensor, token_seconds: float, kernel_size: int, stride: int) -> torch.Tensor:
    """Return start and end of every frame in seconds, (W, 2).

    Args:
        token_starts: (at least H,) start of every token in seconds; a last frame may have fewer tokens.
        token_seconds: that a token lasts.
    """
    last = max(len(token_starts) - kernel_size, 0) if stride != kernel_size else len(token_starts) - 1
    first = torch.arange(0, last + 1, stride, device=token_starts.device)  # (W,)
    ends = token_starts[(first + kernel_size - 1).clamp(max=len(token_starts) - 1)] + token_seconds
    return torch.stack([token_starts[first], ends], dim=-1)  # (W, 2)


def localize_texts(text_embeds, audio_embeds, audio_token_mask, config, temperature, token_starts):
    """Score every text over the time of every audio.

    Args:
        text_embeds: (B, D).
        audio_embeds, audio_token_mask: (A, T, D) and (A, T).
        config: of the model.
        temperature: tau.
        token_starts: (max(T, H),) seconds.

    Returns:
        [`CoLLAPLocalization`] with `scores`: the terms that the kernel-wise attention sums.
    """
    grid = config.kernel_size, config.stride
    scores, frame_mask = moment_scores(text_embeds, audio_embeds, audio_token_mask, *grid, temperature)  # (A, B, W)
    times = frame_times(token_starts, config.token_seconds, *grid)[: frame_mask.shape[1]]  # (W, 2)
    return CoLLAPLocalization(scores, frame_mask, times)


def localize_sentences(sentence_embeds, audio_embeds, audio_token_mask, config, blank, token_starts):
    """Find every sentence of every text in every audio.

    Args:
        sentence_embeds: (B, Q, D).
        audio_embeds, audio_token_mask, config: as in [`localize_texts`].
        blank: cosine of frames without a sentence; None for paths without them.
        token_starts: (T,) seconds.

    Returns:
        [`CoLLAPLocalization`] with `curves`, `spans` and `path`.
    """
    size, is_sentence = config.alignment_frame_size, sentence_mask(sentence_embeds)  # (B, Q)
    cosines, frame_mask = frame_cosines(sentence_embeds, audio_embeds, audio_token_mask, size)  # (A, B, Q, W)
    times = frame_times(token_starts, config.token_seconds, size, size)  # (W, 2)
    curves = torch.zeros_like(cosines)
    spans = cosines.new_full((*cosines.shape[:3], 2), torch.nan)  # (A, B, Q, 2)
    path = spans.clone()
    for a, frames in enumerate(frame_mask.sum(-1).tolist()):
        own = times[:frames].clone()
        own[-1, 1] = token_starts[int(audio_token_mask[a].sum()) - 1] + config.token_seconds  # a frame may end early
        for b, count in enumerate(is_sentence.sum(-1).tolist()):
            found = cosines[a, b, :count, :frames]  # (Q, W)
            curves[a, b, :count, :frames] = smoothed(found)
            spans[a, b, :count] = curve_spans(curves[a, b, :count, :frames], own)
            path[a, b, :count] = path_spans(found, own, blank)
    return CoLLAPLocalization(None, frame_mask, times, curves, spans, path)


def smoothed(curves: torch.Tensor) -> torch.Tensor:
    """Average curves (Q, W) over [`SMOOTHED_FRAMES`] frames; at the ends over those that there are."""
    reach = SMOOTHED_FRAMES // 2
    return F.avg_pool1d(curves.unsqueeze(0), SMOOTHED_FRAMES, 1, reach, count_include_pad=False)[0]  # (Q, W)


def curve_spans(curves: torch.Tensor, times: torch.Tensor, level: float = SPAN_LEVEL) -> torch.Tensor:
    """Return start and end in seconds of the run around each curve's highest point.

    Args:
        curves: (Q, W).
        times: (W, 2) seconds.
        level: share of the range of a curve above which a run goes on.

    Returns:
        (Q, 2).
    """
    lowest, (highest, peak) = curves.min(-1, keepdim=True).values, curves.max(-1, keepdim=True)  # (Q, 1)
    below = (curves < lowest + level * (highest - lowest)).to(torch.int64)  # (Q, W)
    before = below.cumsum(-1)  # frames below so far: constant within a run
    inside = (before == before.gather(-1, peak)) & (below == 0)  # (Q, W)
    first = inside.int().argmax(-1)  # (Q,)
    last = inside.shape[-1] - 1 - inside.flip(-1).int().argmax(-1)  # (Q,)
    return torch.stack([times[first, 0], times[last, 1]], dim=-1)


def path_spans(cosines: torch.Tensor, times: torch.Tensor, blank: float | None) -> torch.Tensor:
    """Return start and end in seconds of each sentence on the best path.

    Args:
        cosines: (Q, W).
        times: (W, 2) seconds.
        blank: as in [`best_path`].

    Returns:
        (Q, 2).
    """
    repeats = -(-len(cosines) // cosines.shape[1])  # of the frames of a song that has fewer of them than sentences
    path = best_path(cosines.repeat_interleave(repeats, dim=1).cpu(), blank)  # (W,)
    frames = torch.arange(len(path)) // repeats
    places = [frames[path == sentence] for sentence in range(len(cosines))]
    return torch.stack([torch.stack([times[place[0], 0], times[place[-1], 1]]) for place in places])  # (Q, 2)


def pair_location_losses(
    config: CoLLAPConfig,
    text_embeds: torch.Tensor,
    audio_embeds: torch.Tensor,
    audio_token_mask: torch.Tensor,
    sentence_spans: torch.Tensor,
) -> torch.Tensor:
    """Compute the [`location_losses`] of texts in their own audios, in float32: A x B cosines are not needed.

    Args:
        config: of the model.
        text_embeds: (B, Q, D), or (B, D) of texts that are one sentence.
        audio_embeds, audio_token_mask: as returned by `get_audio_features`; audio i is described by text i.
        sentence_spans: (B, Q, 2) start and end in seconds; NaN where that is not known.

    Returns:
        (B,).
    """
    device, mask = audio_embeds.device, audio_token_mask.to(audio_embeds.device).bool()
    sentences = text_embeds.to(device).float()
    sentences = sentences if sentences.ndim == 3 else sentences.unsqueeze(1)  # (B, Q, D)
    middles = token_start_seconds(config, mask.shape[1], device) + config.token_seconds / 2  # (T,)
    middles = middles.to(sentences.dtype).expand(mask.shape).unsqueeze(-1)  # (B, T, 1)
    with torch.autocast(device.type, enabled=False):
        frames, frame_mask = pool_frames(audio_embeds.float(), mask, config.alignment_frame_size)  # (B, W, D), (B, W)
        seconds = pool_frames(middles, mask, config.alignment_frame_size)[0].squeeze(-1)  # (B, W)
        cosines = torch.einsum("bqd,bwd->bqw", sentences, frames)  # (B, Q, W)
        spans = sentence_spans.to(device, seconds.dtype)
        return location_losses(cosines, spans, seconds, frame_mask, config.sentence_temperature)
