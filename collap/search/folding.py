"""Fold copies of one recording in ranked tracks, so that so many different recordings come back as were asked for.

Dimensions: `B` texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from .copies import Copies
from .ranking import Ranking, Texts


def fold_rankings(
    copies: Copies,
    rank: Callable[[Texts, int], list[Ranking]],
    texts: Texts,
    k: int,
    num_tracks: int,
    known: Sequence[int | None],
) -> list[Ranking]:
    """Rank tracks, and fold each that is a copy of a better one into that.

    Args:
        rank: returns so many tracks for each query, or more.
        texts: the queries.
        k: recordings that are asked for.
        num_tracks: that there are; further ones are ranked where too many are copies.
        known: for each query the track that it is made of, copies of which are passed over.
    """
    found = []
    for query, (ranking, own) in enumerate(zip(rank(texts, k), known, strict=True)):
        asked = k
        while True:
            folded = _folded(copies, ranking, k, [] if own is None else [own])
            ranked = len(ranking.tracks)
            if len(folded.tracks) == k or ranked < asked or ranked == num_tracks:
                break
            asked = 2 * ranked - len(folded.tracks)  # as many more as were copies
            (ranking,) = rank(texts.of_query(query), asked)
        found.append(folded)
    return found


def _folded(copies: Copies, ranking: Ranking, k: int, known: list[int]) -> Ranking:
    """Return the first k recordings of a ranking, without those that are copies of known tracks."""
    kept = copies.fold(ranking.tracks.tolist(), k, known)
    passed, kept = kept[: len(known)], kept[len(known) :]
    place = {track: number for number, track in enumerate(ranking.tracks.tolist())}
    rows = [place[track] for track, _ in kept]
    return replace(
        ranking,
        tracks=ranking.tracks[rows],
        scores=ranking.scores[rows],
        copies=tuple(tuple(own) for _, own in kept),
        num_passed=sum(len(own) for _, own in passed),
    )
