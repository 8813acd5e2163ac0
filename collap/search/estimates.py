"""Estimate the score of a text and a track from few vectors of the track: its mean, or its segments. Pure functions.

A track has the mean of its tokens and up to 32 segments of like sound (`segments.py`), each with its weight, the number
of its tokens. Its score is estimated by the model's own functions, on segments where the model has tokens:

    r^ = gamma_K mean(q . segments) + gamma_T E(q . segments)      each weighted by the frames that see it
         + gamma_S  mean over sentences of E(q_s . segments)       with an alignment; weighted by its tokens
         + gamma_M  mean of what fits each segment best: a sentence, or the blank

E is the mean that the score's softmax weighs. The last line knows no order. For fewer tracks it is the model's own, of
paths over the segments laid out in time.

Dimensions: `A` tracks, `B` texts, `Q` sentences of a text, `R` rows of all texts, `S` segments of a track, `W` steps of
4 s of a track, `D` shared width.
"""

import torch

from modeling_collap.alignment_collap import free_scores, monotone_scores, sentence_mask
from modeling_collap.scoring_collap import num_frames, softmax_mean

from .score_function import ScoreFunction
from .segments import frame_size

SHARP = 0.5  # attention temperature below which few moments decide


def is_sharp(function: ScoreFunction) -> bool:
    """Tell whether few moments decide the score."""
    return function.attention_temperature < SHARP


def is_flat(function: ScoreFunction) -> bool:
    """Tell whether the score is near what the mean says: one vector of a text, attention that is not sharp."""
    return not function.has_sentences and not is_sharp(function)


def mean_rows(function: ScoreFunction, text_embeds: torch.Tensor) -> torch.Tensor:
    """Return the vectors (B, D) whose product with the mean token estimates the score of texts (B, Q, D)."""
    weights = function.gamma_kernel + function.gamma_temporal
    rows = weights * function.rows(text_embeds)[: len(text_embeds)]  # (B, D)
    if not function.has_sentences:
        return rows
    aligned = function.gamma_sentences + (function.gamma_path or 0.0)
    counts = sentence_mask(text_embeds).sum(-1, keepdim=True)  # (B, 1)
    return rows + aligned * text_embeds.sum(1) / counts


def segment_scores(
    function: ScoreFunction,
    cosines: torch.Tensor,
    text_embeds: torch.Tensor,
    weights: torch.Tensor,
    in_order: bool = False,
) -> torch.Tensor:
    """Estimate the scores of tracks with texts from their segments.

    Args:
        cosines: (A, S, R) of segments with [`ScoreFunction.rows`], finite in the padding too.
        text_embeds: (B, Q, D).
        weights: (A, S) tokens of every segment; 0 where a track has fewer.
        in_order: whether sentences are placed in their order, which takes longer.

    Returns:
        (A, B).
    """
    of_texts, of_sentences = function.split_rows(cosines, text_embeds)
    covered = frame_coverage(weights, function.kernel_size, function.stride)  # (A, S)
    covered = (covered / covered.sum(1, keepdim=True)).unsqueeze(-1)  # (A, S, 1)
    kernel = (of_texts * covered).sum(1)  # (A, B)
    temporal = softmax_mean(of_texts, function.attention_temperature, covered, dim=1)  # (A, B)
    gammas, tokens = (function.gamma_kernel, function.gamma_temporal), weights.sum(1)  # (A,)
    if function.score_reduction == "printed":  # sums that the other axis divides
        ratio = num_frames(tokens, function.kernel_size, function.stride) / function.kernel_size  # (A,)
        gammas = gammas[0] * ratio.unsqueeze(1), gammas[1] / ratio.unsqueeze(1)
    score = gammas[0] * kernel + gammas[1] * temporal
    if not function.has_sentences:
        return score
    cosines = of_sentences.unflatten(-1, (len(text_embeds), -1)).permute(0, 2, 3, 1)  # (A, B, Q, S)
    is_sentence = sentence_mask(text_embeds)  # (B, Q)
    score = score + function.gamma_sentences * free_scores(cosines, is_sentence, weights, function.sentence_temperature)
    if function.gamma_path is None:
        return score
    if in_order:
        return score + function.gamma_path * ordered_scores(function, cosines, is_sentence, weights)
    shares = (weights / tokens.unsqueeze(1)).unsqueeze(-1)  # (A, S, 1)
    return score + function.gamma_path * best_sentence_scores(cosines, is_sentence, shares, function.blank)


def frame_coverage(weights: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Count how often the frames of the score see segments: a token at the edge is in fewer frames than others, and
    one after the last whole frame in none.

    Args:
        weights: (A, S) tokens of consecutive segments.
        kernel_size, stride: of a frame, in tokens.

    Returns:
        (A, S) float32: summed over the tokens of a segment, the frames that a token is in.
    """
    ends = weights.double().cumsum(1)  # (A, S)
    frames = num_frames(ends[:, -1:], kernel_size, stride)  # (A, 1) W
    ended = (torch.div(ends - kernel_size, stride, rounding_mode="floor") + 1).clamp(min=0).minimum(frames)
    begun = torch.ceil(ends / stride).minimum(frames)  # of those that have not ended, some tokens are counted
    partly = (begun - ended) * ends - stride * (begun * (begun - 1) - ended * (ended - 1)) / 2
    counted = ended * kernel_size + partly  # (A, S) up to the end of each segment
    return counted.diff(dim=1, prepend=torch.zeros_like(ends[:, :1])).float()


def best_sentence_scores(
    cosines: torch.Tensor, is_sentence: torch.Tensor, shares: torch.Tensor, blank: float | None
) -> torch.Tensor:
    """Estimate the score of sentences in their order: every segment takes its best sentence, or none, in any order.

    Args:
        cosines: (A, B, Q, S).
        is_sentence: (B, Q) bool.
        shares: (A, S, 1) of a track that its segments are.
        blank: cosine of what no sentence describes, if there is such.

    Returns:
        (A, B).
    """
    best = cosines.masked_fill(~is_sentence.unsqueeze(-1), -torch.inf).amax(2)  # (A, B, S)
    if blank is not None:
        best = best.clamp(min=blank)
    return (best @ shares).squeeze(-1)


def ordered_scores(
    function: ScoreFunction, cosines: torch.Tensor, is_sentence: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Estimate the score of sentences in their order: of all paths over steps of 4 s, which segments were made of.

    A step stands for several frames of the model, so a path weighs what it collects there so many times.

    Args:
        cosines: (A, B, Q, S).
        is_sentence: (B, Q) bool.
        weights: (A, S) tokens of every segment; 0 where a track has fewer.

    Returns:
        (A, B).
    """
    size, ends = frame_size(function.token_seconds), weights.cumsum(1)  # (A, S)
    steps = (ends[:, -1:] / size).ceil()  # (A, 1)
    step = torch.arange(int(steps.max()))  # (W,)
    middle = torch.minimum((step + 0.5) * size, ends[:, -1:] - 0.5)  # (A, W) of a step, in tokens
    segment = torch.searchsorted(ends, middle, right=True)  # (A, W)
    place = segment[:, None, None].expand(-1, *cosines.shape[1:3], -1)  # (A, B, Q, W)
    temperature = function.path_temperature * function.alignment_frame_size / size
    blank = None if function.blank is None else torch.tensor(function.blank)
    return monotone_scores(cosines.gather(-1, place), is_sentence, step < steps, temperature, blank)
