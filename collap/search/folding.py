"""Fold copies of one recording in ranked tracks, so that so many different recordings come back as were asked for.

Dimensions: `B` texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from .copies import Copies
from .ranking import Ranking, Texts


def first_reach(k: int, mode: str, candidates: int, num_tracks: int) -> int:
    """Return how many ranked tracks, k or more, cost no more than k do: all that are scored."""
    return max(k, {"exact": num_tracks + 1, "fixed": candidates}.get(mode, k))  # one more: all, and no more to ask for


def fold_rankings(
    copies: Copies,
    rank: Callable[[Texts, int], list[Ranking]],
    texts: Texts,
    k: int,
    reach: int,
    known: Sequence[int | None],
) -> list[Ranking]:
    """Rank tracks, and fold each that is a copy of a better one into that.

    Args:
        rank: returns so many tracks for each query.
        texts: the queries.
        k: recordings that are asked for.
        reach: tracks that are ranked first, k or more; further ones where too many of them are copies.
        known: for each query the track that it is made of, copies of which are passed over.
    """
    found = []
    for query, (ranking, own) in enumerate(zip(rank(texts, reach), known, strict=True)):
        asked = reach
        while True:
            folded = _folded(copies, ranking, k, [] if own is None else [own])
            if len(folded.tracks) == k or len(ranking.tracks) < asked:
                break
            asked += asked - len(folded.tracks)  # so many were copies; of a library of copies, twice as many
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
