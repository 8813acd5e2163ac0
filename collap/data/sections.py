"""Cut and rearrange a song and its description together, by the sections of the song.

A caption belongs to its sections where it has a sentence (or line) for each of them, in their order, perhaps after one
about the whole song.

Dimensions: `T` fused tokens of a song, `M` music + speech width.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from processing.sentences_collap import split_sentences

# "From 0:12 to 0:31, ", "(1:05 to 1:20)", "At 0:40 ".
CLOCK_TIMES = re.compile(
    r"\(?(?:\b(?:from|between|at|until|to)\s+)?\d{1,2}:\d\d(?:\s*(?:to|and|until|-)\s*\d{1,2}:\d\d)?\)?[,:]?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Span:
    """Hold neighbouring sections of a song: from `start` to `stop` seconds, with their sentences."""

    start: float
    stop: float
    sentences: list[str]


@dataclass(frozen=True)
class SectionSettings:
    """Set what training does to songs whose sections are known; shares are those of the songs.

    Attributes:
        column: of lists of sections, each with `start` and `end` in seconds and perhaps a `text`; None for none.
        crop_sections: train on crops of one to so many neighbouring sections; None for whole songs.
        crop_epochs: so many epochs, from the first on; None for all.
        drop_times: share of captions whose clock times are left out; those of crops always are.
        drop_sentences: share of the sentences that are left out, of a text that keeps at least one.
    """

    column: str | None = None
    crop_sections: int | None = None
    crop_epochs: int | None = None
    drop_times: float = 0.0
    drop_sentences: float = 0.0

    def crops_in(self, epoch: int) -> bool:
        """Tell whether an epoch trains on crops."""
        return self.crop_sections is not None and (self.crop_epochs is None or epoch < self.crop_epochs)


def without_times(sentence: str) -> str:
    """Leave out clock times such as "from 0:12 to 0:31", which say nothing about a crop, and much about an order."""
    return " ".join(CLOCK_TIMES.sub(" ", sentence).split()).strip(" ,;:") or sentence


def section_sentences(text: str, sections: Sequence[dict]) -> list[str] | None:
    """Return the sentence of every section: its own `text`, or else that of the caption; None if these do not fit."""
    if sections and all(section.get("text") for section in sections):
        return [section["text"] for section in sections]
    sentences = split_sentences(text)
    return sentences[-len(sections) :] if sections and len(sentences) - len(sections) in (0, 1) else None


def draw_span(text: str, sections: Sequence[dict] | None, most: int, generator: np.random.Generator) -> Span | None:
    """Draw one to `most` neighbouring sections; None where sections or their sentences are not known."""
    sentences = section_sentences(text, sections or ())
    if sentences is None:
        return None
    count = int(generator.integers(1, min(most, len(sections)) + 1))
    first = int(generator.integers(len(sections) - count + 1))
    own = sections[first : first + count]
    sentences = [without_times(one) for one in sentences[first : first + count]]
    return Span(float(own[0]["start"]), float(own[-1]["end"]), sentences)


def vary_text(text: str | list[str], settings: SectionSettings, generator: np.random.Generator) -> str | list[str]:
    """Leave out times or sentences of a text, as the settings say; the text itself if they leave it whole."""
    if settings.drop_times and generator.uniform() < settings.drop_times:
        sentences = split_sentences(text) if isinstance(text, str) else text
        text = [without_times(one) for one in sentences]
    if settings.drop_sentences:
        sentences = split_sentences(text) if isinstance(text, str) else text
        kept = generator.uniform(size=len(sentences)) >= settings.drop_sentences
        if not kept.any():
            kept[int(generator.integers(len(kept)))] = True
        if not kept.all():
            text = [one for one, stays in zip(sentences, kept, strict=True) if stays]
    return text


def cut_stored(
    stored: dict[str, torch.Tensor], span: Span, tokens_per_segment: int, segment_seconds: float, token_seconds: float
) -> dict[str, torch.Tensor]:
    """Cut a span from what was stored of a song: its fused tokens (T, M), or the features of its segments, to whole
    ones; at least one of them is left."""
    starts = range(len(next(iter(stored.values()))))
    if "fused_tokens" in stored:
        times = [segment_seconds * (t // tokens_per_segment) + token_seconds * (t % tokens_per_segment) for t in starts]
        first, stop = np.searchsorted(times, [span.start, span.stop])
    else:
        first, stop = (math.floor(edge / segment_seconds + 0.5) for edge in (span.start, span.stop))
    first = min(int(first), len(starts) - 1)
    return {name: tensor[first : max(int(stop), first + 1)] for name, tensor in stored.items()}
