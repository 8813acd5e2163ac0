"""Score tracks exactly, from tokens of 8 bits: the second stage of a search.

The number is the model's own up to the rounding of tokens to 8 bits (1e-4 of a cosine). Tracks of like length are
scored together, so that little is padding and memory is bounded whatever their lengths.

Dimensions: `A` tracks, `B` texts, `Q` sentences of a text, `R` rows of all texts, `T` tokens of a track, `D` shared
width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .quantize import cosines_with, quantized_cosines
from .score_function import ScoreFunction

CELLS_AT_A_TIME = 2**21  # cosines that are held at a time: 8 MB, and a few times that in the score

Tokens = tuple[torch.Tensor, torch.Tensor]  # (T, D) int8 and (T,) scales of a track


def like_lengths(lengths: Sequence[int] | np.ndarray, cells: int) -> Iterator[np.ndarray]:
    """Group what is of like length: places of the next group, whose number times its longest is at most `cells`.

    Args:
        lengths: each at least 1; what is longer than `cells` is a group of its own.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, cells // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def token_cosines(function: ScoreFunction, text_embeds: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return the cosines (T, R) of the tokens of a track with the rows of texts (B, Q, D)."""
    return quantized_cosines(function.rows(text_embeds), *tokens).T  # (T, R)


def score_tracks(function: ScoreFunction, text_embeds: torch.Tensor, tracks: Sequence[Tokens]) -> torch.Tensor:
    """Score tracks with texts.

    Args:
        function: of the model.
        text_embeds: (B, Q, D) unit vectors, zeros where a text has fewer sentences.
        tracks: the tokens of each; read once, one after another.

    Returns:
        (A, B) float32.
    """
    rows = function.rows(text_embeds)  # (R, D)
    cosines_of = cosines_with(rows)
    lengths = [len(codes) for codes, _ in tracks]
    scores = torch.empty(len(tracks), len(text_embeds))  # (A, B)
    for group in like_lengths(lengths, max(1, CELLS_AT_A_TIME // len(rows))):
        cosines = [cosines_of(*tracks[i]).T for i in group]  # (T, R) each
        counts = torch.tensor([len(one) for one in cosines]).unsqueeze(1)  # (group, 1)
        padded = pad_sequence(cosines, batch_first=True)  # (group, T, R)
        mask = torch.arange(padded.shape[1]) < counts  # (group, T)
        scores[torch.from_numpy(group)] = function.scores(padded, text_embeds, mask)
    return scores
