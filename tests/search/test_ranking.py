"""How many tracks a search scores exactly: until those that it has found are settled, or as many as it is told."""

import numpy as np
import pytest
import torch

from benchmarks.search_library import aligned_function, score_function
from collap.search.ranking import CANDIDATES, Ranker, Texts, most_candidates

TRACKS = 10_000


class Known(Ranker):
    """A ranker of tracks whose estimates fall with their number; their exact scores are given."""

    def __init__(self, function, scores: np.ndarray):
        self.function, self.scan, self.scores, self.asked = function, self, scores, 0

    def estimate(self, function, text_embeds, signs, tracks, at_least=0):
        return [(tracks, -np.arange(len(tracks), dtype=np.float32)) for _ in signs.T]

    def exact(self, texts, tracks):
        self.asked += len(tracks)
        return self.scores[tracks, None]


def rank(function, best: list[int], k: int = 10, **how):
    """Ranking of tracks of which those at some places, from 1 on, have the highest scores, the first the highest."""
    scores = -1.0 - np.arange(TRACKS)
    scores[np.array(best) - 1] = -np.linspace(0, 0.9, len(best))
    ranker = Known(function, scores)
    (ranking,) = ranker.rank(Texts(torch.ones(1, 1, 4), torch.ones(1, 1)), np.arange(TRACKS), k, **how)
    assert ranker.asked == ranking.num_rescored  # no track twice
    return ranking


@pytest.mark.parametrize(("last", "scored"), [(10, 80), (12, 96), (50, 400), (85, 80), (90, 720)])
def test_eight_times_the_place_of_the_last_of_the_best_is_scored(last, scored):
    """Eight of the best are the first; one that is far behind is met if the ninth is not near to them."""
    ranking = rank(aligned_function(), [*range(1, 9), 30 if last == 90 else 9, last])
    assert ranking.num_rescored == scored and ranking.is_rescored and not ranking.is_certified
    assert (last - 1 in ranking.tracks[:10]) == (last != 85)
    assert (np.diff(ranking.scores) <= 0).all() and len(ranking.tracks) == scored


def test_it_goes_on_while_better_ones_are_met_and_ends_at_the_most():
    function, most = aligned_function(), most_candidates(aligned_function(), TRACKS)
    chain = [*range(1, 8), 40, 300, 700]  # each is met on the way to eight times the place of the one before
    ranking = rank(function, chain)
    assert ranking.num_rescored == most == 800
    assert sorted(ranking.tracks[:10] + 1) == chain
    assert rank(score_function(), chain).num_rescored == CANDIDATES == most_candidates(score_function(), TRACKS)
    assert rank(function, chain, k=900).num_rescored == 900


def test_so_many_are_scored_as_are_asked_for():
    function, chain = aligned_function(), [*range(1, 8), 40, 300, 700]
    assert rank(function, chain, candidates=70).num_rescored == 70
    assert rank(function, chain, candidates=4).num_rescored == 10  # k
    estimated = rank(function, chain, candidates=0)
    assert estimated.num_rescored == 0 and estimated.tracks.tolist() == list(range(10))
    assert rank(function, chain, mode="exact").is_certified
