"""Measure what whole songs and whole descriptions add to retrieval, and what spoiled descriptions take from it.

Every text is embedded once and every song is scored when it is there, so that a pool of any size is held in the scores.

Dimensions: `A` songs, `B` texts, `Q` sentences, `T` tokens, `D` shared width.
"""

import numpy as np
import torch

from modeling_collap.weighting_collap import paper_scores

from .embedding import embed_texts
from .temporal_metrics import Measured
from .temporal_songs import SectionedSong, caption_lines

PARTS = {"first 10 s": 10, "first 30 s": 30, "first 60 s": 60, "whole song": None}
WHOLE = "whole description"


def spoiled_descriptions(songs: list[SectionedSong], seed: int) -> dict[str, dict[int, list[str]]]:
    """Return the descriptions of all songs, whole and spoiled in each of several ways: name -> song -> lines."""
    texts: dict[str, dict[int, list[str]]] = {}
    full = [caption_lines(song, song.own_order, "untimed") for song in songs]
    for index, lines in enumerate(full):
        generator = np.random.default_rng((seed, index, 2))
        first = len(lines) - len(songs[index].sections)
        overview, own = lines[:first], lines[first:]
        stranger = full[(index + 1) % len(full)][-len(songs[(index + 1) % len(full)].sections) :]
        gap = int(generator.integers(len(own)))
        kept = sorted(generator.permutation(len(own))[:2].tolist())
        untrue = [*own]
        untrue[gap] = stranger[int(generator.integers(len(stranger)))]
        spoiled = {
            WHOLE: lines,
            "one sentence missing": [*overview, *own[:gap], *own[gap + 1 :]],
            "two sentences left": [own[i] for i in kept],
            "sentences shuffled": [*overview, *(own[i] for i in generator.permutation(len(own)))],
            "one sentence untrue": [*overview, *untrue],
            "one sentence": [own[gap]],
            **({"overview alone": overview} if overview else {}),
        }
        for name, one in spoiled.items():
            texts.setdefault(name, {})[index] = one
    return texts


def model_score(model, texts: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Score a song with texts (B, Q, D) as the model does: (1, B)."""
    return model.score(texts, tokens, mask)


def paper_term(model, texts: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Score a song with the one vector of each text (B, Q, D), by the paper's term of the score alone: (1, B)."""
    return paper_scores(model.score_parameters, texts, tokens, mask)


def score_kinds(model) -> dict:
    """Return the scores that are compared, by name: the model's, and with an alignment the paper's term of it."""
    return {"": model_score, **({"paper's term, ": paper_term} if model.config.alignment != "paper" else {})}


class Pool:
    """Score every song with all descriptions as soon as it is embedded; only the scores are kept."""

    def __init__(self, model, processor, songs: list[SectionedSong], seed: int):
        self.model, self.kinds = model, score_kinds(model)
        spoiled = spoiled_descriptions(songs, seed)
        self.songs = {name: list(texts) for name, texts in spoiled.items()}
        texts = [lines for one in spoiled.values() for lines in one.values()]
        self.texts = embed_texts(model, processor, texts)  # (B, Q, D) of all kinds, the whole descriptions first
        self.rows: dict[tuple[str, str, str], list[np.ndarray]] = {}  # (score, part, text) -> for every song (B,)

    @torch.no_grad()
    def add(self, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        """Score a song (1, T, D), and its beginnings; songs come in their order."""
        for part, seconds in PARTS.items():
            count = None if seconds is None else round(seconds / self.model.config.token_seconds)
            names = list(self.songs) if seconds is None else [WHOLE]
            sizes = [len(self.songs[name]) for name in names]
            for kind, score in self.kinds.items():
                row = score(self.model, self.texts[: sum(sizes)], tokens[:, :count], mask[:, :count])[0]
                for name, scores in zip(names, row.float().cpu().split(sizes), strict=True):
                    self.rows.setdefault((kind, part, name), []).append(scores.numpy())

    def measure(self, found: Measured) -> None:
        """Measure how often a description's own song is the first of the pool, or among the first five."""
        for (kind, part, text), rows in self.rows.items():
            scores, own = np.stack(rows), self.songs[text]  # (A, B)
            ranks = (scores >= scores[own, range(len(own))]).sum(0)  # (B,); ties count against
            for k in (1, 5):
                for song, rank in zip(own, ranks, strict=True):
                    found.add(f"R@{k}, {kind}{part}, {text}", song, [rank <= k], min(k / len(scores), 1))
