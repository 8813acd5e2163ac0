"""Measure where in a song the sentence of a section is heard, alone and within its description.

Dimensions: `A` songs, `Q` sentences, `T` tokens, `D` shared width, `W` frames.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from modeling_collap.localization_collap import curve_spans

from .temporal_metrics import (
    Measured,
    boundary_f_measures,
    frame_average_precision,
    overlaps_at_chosen_level,
    points_inside,
    span_iou,
)
from .temporal_songs import RATE, SectionedSong, caption_lines, query_lines, true_spans

# Of the range of a curve, above which a span goes on.
LEVELS = [*(round(0.3 + 0.05 * step, 2) for step in range(14)), 0.97, 0.99]
BOUNDARY_WINDOWS = (0.5, 3.0)


@dataclass
class Places:
    """Hold what was found in one song: curves (Q, W) over frames (W, 2) of seconds, spans of these, and the path
    (Q, 2), None for a model that has none."""

    curves: np.ndarray
    times: np.ndarray
    spans: np.ndarray
    path: np.ndarray | None = None


@dataclass
class Kept:
    """Keep the curves of all songs, by whose they are, until the level of a span is chosen."""

    curves: dict[str, list[np.ndarray]] = field(default_factory=dict)
    times: dict[str, list[np.ndarray]] = field(default_factory=dict)
    true: list[np.ndarray] = field(default_factory=list)

    def add(self, name: str, places: Places) -> None:
        self.curves.setdefault(name, []).append(places.curves)
        self.times.setdefault(name, []).append(places.times)


@torch.no_grad()
def sentence_embeds(model, processor, lines: list[str]) -> torch.Tensor:
    """Embed sentences, each alone: (Q, D)."""
    return model.get_sentence_features(**processor(text=[[line] for line in lines], device=model.device))[:, 0]


@torch.no_grad()
def sentences_of(model, processor, lines: list[str]) -> torch.Tensor:
    """Embed the sentences of one caption, as the model reads captions: (Q, D)."""
    return model.get_sentence_features(**processor(text=[lines], device=model.device))[0]


@torch.no_grad()
def by_paper_score(model, sentences: torch.Tensor, song: tuple, end: float) -> Places:
    """Find sentences (Q, D) by the terms of the paper's score over time; the last frame ends with the song."""
    result = model.localize(sentences, *song)
    frames = result.frame_mask[0]  # (W,)
    curves, times = result.scores[0][:, frames], result.frame_seconds[frames].clamp(max=end)  # (Q, W), (W, 2)
    return Places(curves.cpu().numpy(), times.cpu().numpy(), curve_spans(curves, times).cpu().numpy())


@torch.no_grad()
def by_sentences(model, sentences: torch.Tensor, song: tuple, end: float) -> Places:
    """Find sentences (Q, D), each by its curve and all by the best path, in a song that ends at `end` seconds."""
    result = model.localize(sentences.unsqueeze(0), *song)
    frames = result.frame_mask[0]  # (W,)
    times, spans, path = result.frame_seconds[frames], result.spans[0, 0], result.path[0, 0]  # (W, 2), (Q, 2), (Q, 2)
    found = result.curves[0, 0][:, frames], *(one.clamp(max=end) for one in (times, spans, path))
    return Places(*(one.cpu().numpy() for one in found))


def inside(points: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Tell of every point in seconds (Q,), or of one, whether it lies in its true span (Q, 2)."""
    return (true[:, 0] <= points) & (points < true[:, 1])


def loudest_second(samples: np.ndarray) -> float:
    """Return the middle of the whole second of a song (samples,) that is loudest."""
    seconds = samples[: len(samples) // RATE * RATE].reshape(-1, RATE)
    return int(seconds.std(1).argmax()) + 0.5 if len(seconds) else 0.0


def guessed_overlaps(centre: float, true: np.ndarray) -> np.ndarray:
    """Return the overlaps (Q,) of true spans with the span of mean length around one point, moved into the song."""
    length, end = np.diff(true).mean(), true[-1, 1]
    start = np.clip(centre - length / 2, 0, end - length)
    return span_iou(np.tile([start, start + length], (len(true), 1)), true)


def measure_places(
    model, processor, index: int, song: SectionedSong, embedded, samples: np.ndarray, found: Measured, kept: Kept, seed
) -> None:
    """Find the sentence of every section, beside what points without listening to the text.

    Args:
        embedded: tokens and mask of the joined song, whose samples are `samples`.
        kept: gets the curves, for [`measure_chosen_level`].
    """
    true, generator = true_spans(song), np.random.default_rng((seed, index, 3))
    points = {
        "at random": generator.uniform(0, true[-1, 1]),
        "at the loudest second": loudest_second(samples),
        "at the middle": true[-1, 1] / 2,
    }
    shares = np.diff(true)[:, 0] / true[-1, 1]  # (Q,) chance that a random point is inside
    drawn = [guessed_overlaps(point, true) >= 0.5 for point in generator.uniform(0, true[-1, 1], 100)]
    chance = np.mean(drawn, axis=0)  # (Q,) that a random span of the mean length overlaps by half
    alone = sentence_embeds(model, processor, query_lines(song))
    kept.true.append(true)
    if model.config.alignment == "paper":
        named = {"a sentence alone": by_paper_score(model, alone, embedded, true[-1, 1])}
    else:
        lines = caption_lines(song, song.own_order, "untimed")
        whole = by_sentences(model, sentences_of(model, processor, lines)[-len(true) :], embedded, true[-1, 1])
        named = {
            "a sentence alone": by_sentences(model, alone, embedded, true[-1, 1]),
            "the paper's score": by_paper_score(model, alone, embedded, true[-1, 1]),
        }
        _measure_path(index, whole.path, true, shares, chance, found)
    for name, places in named.items():
        _measure_curves(index, name, places, true, shares, chance, found)
        kept.add(name, places)
    for name, point in points.items():
        found.add(f"control: pointing {name}", index, inside(point, true), shares)
        found.add(f"control: IoU at least 0.5, {name}", index, guessed_overlaps(point, true) >= 0.5, chance)


def _measure_curves(index, name, places: Places, true, shares, chance, found: Measured) -> None:
    """Measure what each sentence's curve says; what chance gives in `IoU` is not known, and counts as 0."""
    prefix = "control: " if name == "the paper's score" else ""
    middles = places.times.mean(1)
    pointed = [points_inside(curve, places.times, span) for curve, span in zip(places.curves, true, strict=True)]
    found.add(f"{prefix}pointing, {name}", index, pointed, shares)
    for curve, span in zip(places.curves, true, strict=True):
        frames = (middles >= span[0]) & (middles < span[1])  # (W,)
        if frames.any():
            value = frame_average_precision(curve, frames)
            found.add(f"{prefix}average precision of frames, {name}", index, [value], frames.mean())
    _measure_overlaps(index, f"{prefix}{{}}, {name}", span_iou(places.spans, true), chance, true, found)


def _measure_overlaps(index, name: str, overlaps: np.ndarray, chance, true, found: Measured) -> None:
    found.add(name.format("mean IoU"), index, overlaps, np.mean(guessed_overlaps(true[-1, 1] / 2, true)))
    found.add(name.format("IoU at least 0.5"), index, overlaps >= 0.5, chance)


def _measure_path(index, path: np.ndarray, true, shares, chance, found: Measured) -> None:
    """Measure the place of every sentence on the best path of all, and the boundaries between them."""
    found.add("pointing, middle of the path", index, inside(path.mean(1), true), shares)
    _measure_overlaps(index, "{}, path", span_iou(path, true), chance, true, found)
    end, even = true[-1, 1], np.linspace(0, true[-1, 1], len(true) + 1)[1:-1]
    values = boundary_f_measures(path[1:, 0], true[1:, 0], end, BOUNDARY_WINDOWS)
    evens = boundary_f_measures(even, true[1:, 0], end, BOUNDARY_WINDOWS)
    for window, value, chance_value in zip(BOUNDARY_WINDOWS, values, evens, strict=True):
        found.add(f"boundaries within {window:g} s, path (F)", index, [value], chance_value)


def measure_chosen_level(kept: Kept, found: Measured) -> dict[str, tuple[float, float]]:
    """Measure spans whose level was chosen on the other half of the songs; return the levels."""
    chosen = {}
    for name, curves in kept.curves.items():
        overlaps, chosen[name] = overlaps_at_chosen_level(curves, kept.times[name], kept.true, LEVELS)
        prefix = "control: " if name == "the paper's score" else ""
        for index, values in enumerate(overlaps):
            true = kept.true[index]
            middle = np.mean(guessed_overlaps(true[-1, 1] / 2, true))
            found.add(f"{prefix}mean IoU, {name}, level of other songs", index, values, middle)
            drawn = [guessed_overlaps(point, true) >= 0.5 for point in np.linspace(0, true[-1, 1], 100)]
            figure = f"{prefix}IoU at least 0.5, {name}, level of other songs"
            found.add(figure, index, values >= 0.5, np.mean(drawn, 0))
    return chosen
