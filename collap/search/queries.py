"""What is searched with: a text, another track, a moment of one, or vectors that a caller has already.

Dimensions: `Q` sentences of a query, `S` segments of a track, `D` shared width.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from collap.evaluation.embedders import Embedder
from collap.files import nearest
from modeling_collap.alignment_collap import sentence_mask
from processing.sentences_collap import split_sentences

from .filters import folded
from .quantize import dequantize_rows
from .score_function import ScoreFunction
from .segments import FRAME_SECONDS
from .store import IndexStore

MOMENT = re.compile(r"(?P<track>.+)@(?:(?P<minutes>\d{1,4}):)?(?P<seconds>\d+(?:\.\d+)?)", re.DOTALL)
MOST_CHARACTERS = 20_000  # of a text
MOST_GUESSED = 10_000  # names among which a slip is looked for: comparing words takes its time


@dataclass(frozen=True)
class Query:
    """Hold what a search compares tracks with.

    Attributes:
        embeds: (Q, D) unit vectors: of its sentences, or one of all of it where the model reads texts whole.
        sentences: the words of `sentence_embeds`; empty where there are no words.
        sentence_embeds: (sentences, D) unit vectors by which it is said which sentence is heard where.
        left_out: number of the track that it is made of, which is not found.
    """

    embeds: torch.Tensor
    sentences: tuple[str, ...] = ()
    sentence_embeds: torch.Tensor | None = None
    left_out: int | None = None


def text_queries(embedder: Embedder, function: ScoreFunction, texts: Sequence[str]) -> list[Query]:
    """Embed texts.

    Raises:
        ValueError: a text is empty, longer than 20,000 characters, or no text at all; one line.
    """
    for text in texts:
        check_text(text)
    sentences = [tuple(split_sentences(text)) for text in texts]
    embeds = _texts_by_sentences(embedder, list(texts))  # (Q, D) each
    if function.has_sentences:
        return [
            Query(one, own if len(own) == len(one) else (), one) for one, own in zip(embeds, sentences, strict=True)
        ]
    several = [sentence for own in sentences if len(own) > 1 for sentence in own]
    alone = iter(_texts_by_sentences(embedder, several) if several else [])
    queries = []
    for one, own in zip(embeds, sentences, strict=True):
        queries.append(Query(one, own, torch.cat([next(alone) for _ in own]) if len(own) > 1 else one))
    return queries


def check_text(text: str) -> None:
    """Raise a ValueError of one line unless this is a text that can be searched with."""
    if not isinstance(text, str):
        raise ValueError(f"a query is a {type(text).__name__}; expected a text")
    if not text.strip():
        raise ValueError("a query is empty; expected a description of music")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"a query has {len(text)} characters; expected {MOST_CHARACTERS} or fewer")


def _texts_by_sentences(embedder: Embedder, texts: list[str]) -> list[torch.Tensor]:
    """Embed texts: (Q, D) unit vectors of each, on the CPU."""
    embeds = embedder.embed_texts(texts).float().cpu()  # (B, D) or (B, Q, D)
    embeds = F.normalize(embeds if embeds.ndim == 3 else embeds.unsqueeze(1), dim=-1)  # (B, Q, D)
    return [one[mask] for one, mask in zip(embeds, sentence_mask(embeds), strict=True)]


def vector_query(embeds, width: int) -> Query:
    """Take vectors of the model's space as a query.

    Args:
        embeds: (D,) or (Q, D): of a text, or of its sentences, of any length but 0.
        width: D of the index.

    Raises:
        ValueError: they are of another shape, or not finite, or one is 0.
    """
    embeds = torch.as_tensor(embeds, dtype=torch.float32).cpu()
    embeds = embeds.unsqueeze(0) if embeds.ndim == 1 else embeds  # (Q, D)
    if embeds.ndim != 2 or embeds.shape[1] != width or not len(embeds):
        raise ValueError(f"a query is {tuple(embeds.shape)}; expected ({width},) or (sentences, {width})")
    if not torch.isfinite(embeds).all() or not embeds.any(-1).all():
        raise ValueError("a query holds a vector of zeros, NaN or infinity; expected directions")
    embeds = F.normalize(embeds, dim=-1)
    return Query(embeds, (), embeds)


def like_query(store: IndexStore, function: ScoreFunction, like: str) -> Query:
    """Make a query of a track, `TRACK`, or of the 4 s around a moment of it, `TRACK@63.5` or `TRACK@1:03.5`.

    With an alignment a track is its segments in their order, as a text is its sentences; else its mean.

    Args:
        like: the track by its id, its path within the library, or its title if no other has it.

    Raises:
        ValueError: there is no such track, or several, or it is shorter; one line.
    """
    try:
        track, moment = find_track(store, like), None
    except ValueError:
        match = MOMENT.fullmatch(like)
        if not match:
            raise
        track = find_track(store, match["track"])
        moment = 60.0 * int(match["minutes"] or 0) + float(match["seconds"])
    vectors = store.vectors(track)
    if moment is not None:
        seconds = store.tracks["seconds"][track].as_py()
        if moment > seconds:
            raise ValueError(f"{like}: this track has {seconds:.1f} s; expected a moment in it")
        starts = function.token_starts(len(vectors["tokens"]))  # (T,)
        near = (starts + function.token_seconds / 2 - moment).abs()  # (T,)
        taken = near <= max(FRAME_SECONDS / 2, float(near.min()))
        embeds = dequantize_rows(vectors["tokens"][taken], vectors["token_scales"][taken]).mean(0, keepdim=True)
    elif function.has_sentences:
        embeds = dequantize_rows(vectors["segments"], vectors["segment_scales"])  # (S, D)
    else:
        embeds = dequantize_rows(vectors["means"], vectors["mean_scales"])  # (1, D)
    embeds = F.normalize(embeds, dim=-1)
    return Query(embeds, (), embeds, left_out=track)


def find_track(store: IndexStore, name: str) -> int:
    """Return the number of a track by its id, its path within the library, or its title.

    Raises:
        ValueError: there is no such track, or several have this title; one line.
    """
    ids = store.tracks["id"].to_pylist()
    if name in ids:
        return ids.index(name)
    paths = [store.path(track) for track in range(len(ids))]
    if name in paths:
        return paths.index(name)
    titles = [None if title is None else folded(title) for title in store.tracks["title"].to_pylist()]
    found = [track for track, title in enumerate(titles) if title == folded(name)]
    if len(found) > 1:
        shown = ", ".join(repr(paths[track]) for track in found[:3])
        raise ValueError(f"{name!r} is the title of {len(found)} tracks; name one by its path: {shown}")
    if not found:
        known = [one for one in (*paths, *store.tracks["title"].to_pylist()) if one][:MOST_GUESSED]
        guess = nearest(name, known)
        raise ValueError(f"no track {name!r}; {guess if guess.startswith('did') else 'expected an id, path or title'}")
    return found[0]
