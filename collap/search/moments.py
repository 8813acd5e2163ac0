"""Say where in a track a query is heard: spans of seconds, the score over time, and each sentence with its own span.

All of it comes from the functions of the model's own localisation (`localization_collap.py`), which read nothing of
tokens but their cosines.

Dimensions: `T` tokens of a track, `Q` sentences of a query, `W` frames.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from modeling_collap.alignment_collap import pool_frames
from modeling_collap.localization_collap import SPAN_LEVEL, frame_times, localize_texts, path_spans, smoothed

from .score_function import ScoreFunction

MOST_SPANS = 3


@dataclass(frozen=True)
class Span:
    """A part of a track: from `start` to `end` in seconds, and the mean cosine of the query with it."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class SentenceSpan(Span):
    """Where one sentence of a query is heard best.

    Attributes:
        text: the sentence.
        heard: False where it fits worse than what no sentence describes; then it has a place for the order's sake only.
            Always True of models without `path_blank`.
    """

    text: str
    heard: bool = True


@dataclass(frozen=True)
class Curve:
    """The cosine of a query over the time of a track: of frames that begin at `starts` and end at `ends`, seconds."""

    starts: list[float]
    ends: list[float]
    scores: list[float]


def curves_over_time(
    function: ScoreFunction, cosines: torch.Tensor, seconds: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score texts or sentences over the time of a track, each alone.

    Args:
        cosines: (T, Q) of tokens and sentences.
        seconds: length of the track; its last frame does not outlast it.

    Returns:
        (Q, W) cosines; (W, 2) start and end of every frame in seconds. With an alignment they are those of its frames,
        averaged over 4 s, else those of the frames of the paper's score.
    """
    if function.has_sentences:
        frames, times = _alignment_frames(function, cosines)  # (Q, W), (W, 2)
        curves = smoothed(frames)
    else:
        embeds, mask = cosines.unsqueeze(0), torch.ones(1, len(cosines), dtype=torch.bool)  # (1, T, Q), (1, T)
        units = torch.eye(cosines.shape[1])  # (Q, Q): the product with a row of it is a column of the cosines
        starts = function.token_starts(max(len(cosines), function.kernel_size))  # (at least T,)
        found = localize_texts(units, embeds, mask, function, function.attention_temperature, starts)
        curves, times = found.scores[0], found.frame_seconds
    last = float(function.token_starts(len(cosines))[-1])
    return curves, times.clamp(max=max(seconds, last))


def _alignment_frames(function: ScoreFunction, cosines: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines of sentences with the frames of an alignment, (Q, W), and their seconds (W, 2)."""
    size, mask = function.alignment_frame_size, torch.ones(1, len(cosines), dtype=torch.bool)
    frames, _ = pool_frames(cosines.unsqueeze(0), mask, size)  # (1, W, Q)
    times = frame_times(function.token_starts(len(cosines)), function.token_seconds, size, size)
    return frames[0].T, times


def ordered_spans(function: ScoreFunction, cosines: torch.Tensor) -> list[list[float]]:
    """Lay sentences along a track in their order: start and end of each of (T, Q) in seconds, by the best path."""
    return path_spans(*_alignment_frames(function, cosines), function.blank).tolist()


def mean_span(curve: torch.Tensor, place: list[float], times: torch.Tensor) -> Span:
    """Return the span of `place`, start and end in seconds, with the mean of a curve (W,) of frames (W, 2) in it."""
    start, end = place
    inside = (times[:, 0] >= start) & (times[:, 0] < end)  # (W,)
    return Span(start, min(end, float(times[-1, 1])), curve[inside].mean().item())


def best_spans(
    curve: torch.Tensor, times: torch.Tensor, level: float = SPAN_LEVEL, most: int = MOST_SPANS
) -> list[Span]:
    """Join frames that score high for their track.

    Args:
        curve: (W,) cosines.
        times: (W, 2) start and end of every frame in seconds.
        level: share of the range of the curve, from its lowest to its highest, above which a frame is in a span.
        most: spans that are returned.

    Returns:
        The spans with the highest frames, those first; none overlaps another. All of a track that scores the same
        everywhere is one span.
    """
    lowest, highest = curve.min(), curve.max()
    inside = (curve >= lowest + level * (highest - lowest)).tolist()
    runs, place = [], 0
    for is_inside, run in itertools.groupby(inside):
        length = len(list(run))
        if is_inside:
            runs.append((place, place + length))
        place += length
    joined = [runs[0]]
    for first, last in runs[1:]:  # frames overlap: what lies between two runs may have no second of its own
        if times[first, 0] < times[joined[-1][1] - 1, 1]:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    joined.sort(key=lambda run: (-curve[run[0] : run[1]].max().item(), run))
    spans = [(*times[first:last][[0, -1], [0, 1]].tolist(), curve[first:last].mean().item()) for first, last in joined]
    return [Span(*span) for span in spans[:most]]


def sentence_spans(
    function: ScoreFunction, texts: Sequence[str], cosines: torch.Tensor, curves: torch.Tensor, times: torch.Tensor
) -> tuple[SentenceSpan, ...]:
    """Say where each sentence is heard best; several of a model that aligns them, in their order.

    Args:
        texts: the Q sentences.
        cosines: (T, Q).
        curves: (Q, W) of them over time.
        times: (W, 2) start and end of every frame in seconds.
    """
    if function.alignment == "monotone" and len(texts) > 1:
        places = ordered_spans(function, cosines)
        spans = [mean_span(*one, times) for one in zip(curves, places, strict=True)]
    else:
        spans = [best_spans(one, times, most=1)[0] for one in curves]
    least = -math.inf if function.blank is None else function.blank
    named = zip(spans, texts, strict=True)
    return tuple(SentenceSpan(*astuple(span), text, span.score >= least) for span, text in named)
