"""Cut and rearrange a song and its description together, by the sections of the song.

A caption belongs to its sections where it has a sentence (or line) for each of them, in their order, perhaps after one
about the whole song.

Dimensions: `N` sections, `Q` sentences of a caption, `T` fused tokens of a song, `S` segments, `K` tokens of a segment,
`M` music + speech width.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from processing.decode_audio import AudioFileError
from processing.sentences_collap import split_sentences

UNKNOWN = (math.nan, math.nan)  # when a sentence is heard that is about the whole song, or about nobody knows what
# "From 0:12 to 0:31, ", "(1:05 to 1:20)", "At 0:40 ".
CLOCK_TIMES = re.compile(
    r"\(?(?:\b(?:from|between|at|until|to)\s+)?\d{1,2}:\d\d(?:\s*(?:to|and|until|-)\s*\d{1,2}:\d\d)?\)?[,:]?",
    re.IGNORECASE,
)


class Sentence(NamedTuple):
    """Hold a sentence, and when it is heard.

    Attributes:
        span: start and end in seconds of the song; NaN where that is not known.
        piece: of those that a [`Passage`] has, which one it is about.
    """

    text: str
    span: tuple[float, float] = UNKNOWN
    piece: int = 0

    @property
    def is_placed(self) -> bool:
        """Tell whether it is known when it is heard."""
        return not math.isnan(self.span[0])


@dataclass(frozen=True)
class Passage:
    """Hold what a sample takes of a song, and what is said of that.

    Attributes:
        caption: as it is written, or its sentences.
        pieces: start and stop in seconds of the song, heard one after the other; None for the whole song.
    """

    caption: str | list[Sentence]
    pieces: list[tuple[float, float]] | None = None

    @property
    def sentences(self) -> list[Sentence]:
        """Return the sentences of a caption."""
        if isinstance(self.caption, str):
            return [Sentence(one) for one in split_sentences(self.caption)]
        return self.caption

    @property
    def text(self) -> str | list[str]:
        """Return what the processor reads."""
        return self.caption if isinstance(self.caption, str) else [one.text for one in self.caption]

    def heard_spans(self, shifts: list[float]) -> list[tuple[float, float]]:
        """Return start and end of every sentence in seconds of what is heard.

        Args:
            shifts: of every piece, by how many seconds it is heard earlier than in the song.
        """
        return [tuple(edge - shifts[one.piece] for edge in one.span) for one in self.sentences]


@dataclass(frozen=True)
class SectionSettings:
    """Set what training does to songs whose sections are known; shares are those of the songs.

    Attributes:
        column: of lists of sections, each with `start` and `end` in seconds and perhaps a `text`; None for none.
        crop_sections: train on crops of one to so many neighbouring sections; None for whole songs.
        crop_epochs: so many epochs, from the first on; None for all.
        drop_times: share of captions whose clock times are left out; those of crops always are.
        drop_sentences: share of the sentences that are left out, of a text that keeps at least one.
        exchange_sections: share of the whole songs whose sections are heard, and told, in another order.
        order_negatives: whether samples have another order of their sentences, that is not the song's.
        tell_spans: whether samples say when each of their sentences is heard.
    """

    column: str | None = None
    crop_sections: int | None = None
    crop_epochs: int | None = None
    drop_times: float = 0.0
    drop_sentences: float = 0.0
    exchange_sections: float = 0.0
    order_negatives: bool = False
    tell_spans: bool = False

    @property
    def places_sentences(self) -> bool:
        """Tell whether the caption of a whole song is needed by its sentences, each with its section."""
        return self.order_negatives or self.tell_spans

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


def section_times(sections: Sequence[dict], name: str = "sections") -> list[tuple[float, float]]:
    """Return start and end of every section in seconds.

    Raises:
        ValueError: begins with `name`, and names the first that has none.
    """
    for index, section in enumerate(sections):
        times = [section.get(edge) if isinstance(section, dict) else None for edge in ("start", "end")]
        is_time = all(isinstance(time, (int, float)) and 0 <= time < math.inf for time in times)
        if not is_time or times[0] >= times[1]:
            raise ValueError(f"{name}[{index}] is {section!r}; expected a section with start < end in seconds")
    return [(float(section["start"]), float(section["end"])) for section in sections]


def overview(text: str, count: int) -> list[str]:
    """Return what a caption says of the whole song, at most a sentence, before one for each of `count` sections."""
    sentences = split_sentences(text)
    return sentences[:1] if len(sentences) == count + 1 else []


def placed_sentences(text: str, sections: Sequence[dict]) -> list[Sentence]:
    """Return the sentences of a caption with the times of their sections; without, where these do not fit."""
    sentences, count = split_sentences(text), len(sections)
    if not count or len(sentences) - count not in (0, 1):
        return [Sentence(one) for one in sentences]
    times = [*[UNKNOWN] * (len(sentences) - count), *section_times(sections)]
    return [Sentence(one, span) for one, span in zip(sentences, times, strict=True)]


def draw_passage(
    text: str, sections: Sequence[dict], settings: SectionSettings, epoch: int, generator: np.random.Generator
) -> Passage:
    """Draw what an epoch takes of a song, and of its caption; `sections` are empty where they are not known."""
    passage = None
    if settings.crops_in(epoch):
        passage = draw_crop(text, sections, settings.crop_sections, generator)
    if passage is None and settings.exchange_sections:
        passage = draw_exchange(text, sections, settings.exchange_sections, generator)
    if passage is None:
        passage = Passage(placed_sentences(text, sections) if settings.places_sentences else text)
    return vary_caption(passage, settings, generator)


def draw_crop(text: str, sections: Sequence[dict], most: int, generator: np.random.Generator) -> Passage | None:
    """Draw one to `most` neighbouring sections; None where sections or their sentences are not known."""
    sentences = section_sentences(text, sections)
    if sentences is None:
        return None
    count = int(generator.integers(1, min(most, len(sections)) + 1))
    first = int(generator.integers(len(sections) - count + 1))
    times = section_times(sections)[first : first + count]
    told = zip(sentences[first : first + count], times, strict=True)
    return Passage([Sentence(without_times(one), span) for one, span in told], [(times[0][0], times[-1][1])])


def draw_exchange(text: str, sections: Sequence[dict], share: float, generator: np.random.Generator) -> Passage | None:
    """Draw another order of a song's sections, for a share of the songs; None for the others, and where there are no
    two sections, or their sentences are not known."""
    sentences = section_sentences(text, sections)
    if sentences is None or len(sections) < 2 or generator.uniform() >= share:
        return None
    order, times = shuffled(len(sections), generator), section_times(sections)
    told = [Sentence(without_times(sentences[i]), times[i], piece) for piece, i in enumerate(order)]
    whole = [Sentence(without_times(one)) for one in overview(text, len(sections))]
    return Passage([*whole, *told], [times[i] for i in order])


def shuffled(count: int, generator: np.random.Generator) -> list[int]:
    """Draw an order of so many sections, two or more, that is not their own."""
    order = list(range(count))
    while order == list(range(count)):
        order = generator.permutation(count).tolist()
    return order


def vary_caption(passage: Passage, settings: SectionSettings, generator: np.random.Generator) -> Passage:
    """Leave out times or sentences of a caption, as the settings say; the passage itself if they leave it whole."""
    sentences = passage.sentences
    if settings.drop_times and generator.uniform() < settings.drop_times:
        sentences = [one._replace(text=without_times(one.text)) for one in sentences]
        passage = Passage(sentences, passage.pieces)
    if settings.drop_sentences:
        kept = generator.uniform(size=len(sentences)) >= settings.drop_sentences
        if not kept.any():
            kept[int(generator.integers(len(kept)))] = True
        if not kept.all():
            passage = Passage(list(itertools.compress(sentences, kept)), passage.pieces)
    return passage


def draw_order(sentences: list[Sentence], generator: np.random.Generator) -> list[int]:
    """Draw another order of those sentences whose sections are known, which says something else.

    Returns:
        Of each of the Q places, which sentence stands there: others stay. -1 everywhere where there is no such order.
    """
    places = [place for place, one in enumerate(sentences) if one.is_placed]
    words = [sentences[place].text for place in places]
    order = list(range(len(sentences)))
    if len(set(words)) < 2:
        return [-1] * len(order)
    drawn = places
    while [sentences[place].text for place in drawn] == words:
        drawn = generator.permutation(places).tolist()
    for place, other in zip(places, drawn, strict=True):
        order[place] = other
    return order


def join_pieces(samples: np.ndarray, pieces: list[tuple[float, float]], rate: int) -> tuple[np.ndarray, list[float]]:
    """Cut pieces out of a song (samples,) and join them; what lies in none of them is left out.

    Returns:
        The joined samples; of every piece, by how many seconds it is heard earlier than in the song.

    Raises:
        AudioFileError: a piece begins after the end of the song.
    """
    edges = [[min(round(edge * rate), len(samples)) for edge in piece] for piece in pieces]
    for (start, stop), piece in zip(edges, pieces, strict=True):
        if start == stop:
            raise AudioFileError(f"a section starts at {piece[0]:.2f} s, the audio ends at {len(samples) / rate:.2f} s")
    offsets = itertools.accumulate((stop - start for start, stop in edges), initial=0)
    shifts = [(start - offset) / rate for (start, _), offset in zip(edges, offsets, strict=False)]
    return np.concatenate([samples[start:stop] for start, stop in edges]), shifts


def cut_stored(
    stored: dict[str, torch.Tensor],
    pieces: list[tuple[float, float]],
    tokens_per_segment: int,
    segment_seconds: float,
    token_seconds: float,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Cut pieces out of what was stored of a song, and join them: its fused tokens (T, M), or the features of its
    segments (S, ...), to whole ones. At least one of them is left of each piece. Of several pieces, none has the last
    segment if that is partly filled: silence would stand within the song.

    Returns:
        What is left; of every piece, by how many seconds it is heard earlier than in the song.

    Raises:
        AudioFileError: there is no filled segment for several pieces.
    """
    count = len(next(iter(stored.values())))
    per_segment = tokens_per_segment if "fused_tokens" in stored else 1

    def start(index):
        return segment_seconds * (index // per_segment) + token_seconds * (index % per_segment)

    if "fused_tokens" in stored:
        edges = np.searchsorted(start(np.arange(count)), pieces).tolist()  # (pieces, 2)
    else:
        edges = [[math.floor(edge / segment_seconds + 0.5) for edge in piece] for piece in pieces]
        if len(pieces) > 1:
            count = int(stored["audio_token_mask"].view(count, -1).all(-1).sum())
        if not count:
            raise AudioFileError("is shorter than a segment: sections of cached features cannot be exchanged")
    edges = [(min(first, count - 1), min(max(stop, first + 1), count)) for first, stop in edges]
    offsets = itertools.accumulate((stop - first for first, stop in edges), initial=0)
    shifts = [float(start(first) - start(offset)) for (first, _), offset in zip(edges, offsets, strict=False)]
    return {name: torch.cat([tensor[slice(*edge)] for edge in edges]) for name, tensor in stored.items()}, shifts
