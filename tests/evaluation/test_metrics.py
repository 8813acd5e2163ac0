"""The retrieval metric against numbers checked by head, naive loops, simulated chance and known intervals."""

import itertools
import math
import sys

import numpy as np
import pytest
import pytrec_eval

from collap.evaluation.metrics import (
    average_precisions,
    bootstrap_by_song,
    chance_average_precision,
    chance_median_rank,
    chance_recall,
    ranks_of_correct,
    retrieval_metrics,
)
from collap.evaluation.retrieval import retrieval_figures
from collap.evaluation.songs import RetrievalSet


def random_problem(seed: int, num_queries: int = 40, gallery_size: int = 30) -> tuple[np.ndarray, list[list[int]]]:
    """Scores with many ties and one to five correct items per query."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 12, (num_queries, gallery_size)).astype(np.float32)
    correct = [
        generator.choice(gallery_size, generator.integers(1, 6), replace=False).tolist() for _ in range(num_queries)
    ]
    return scores, correct


def naive_ranking(row: np.ndarray, items: list[int]) -> list[bool]:
    """The gallery from best to worst as right or wrong, wrong ones first among equal scores."""
    return [index in items for index in sorted(range(len(row)), key=lambda index: (-row[index], index in items))]


def test_ranks_by_head():
    scores = [[0.9, 0.5, 0.1, 0.7], [0.2, 0.8, 0.4, 0.6]]
    ranks = ranks_of_correct(np.array(scores), [[1], [1, 2]])
    assert [query.tolist() for query in ranks] == [[3], [1, 3]]


def test_ties_count_against_the_model():
    constant = np.zeros((1, 10), np.float32)
    assert ranks_of_correct(constant, [[4]])[0].tolist() == [10]
    assert ranks_of_correct(constant, [[0, 4, 9]])[0].tolist() == [8, 9, 10]
    # One wrong item ties with the better of two correct ones.
    assert ranks_of_correct(np.array([[5, 5, 3, 1]]), [[0, 2]])[0].tolist() == [2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_a_full_sort(seed):
    scores, correct = random_problem(seed)
    expected = [
        [place for place, right in enumerate(naive_ranking(row, items), start=1) if right]
        for row, items in zip(scores, correct, strict=True)
    ]
    assert [query.tolist() for query in ranks_of_correct(scores, correct)] == expected


def test_chunks_give_the_ranks_of_the_whole_matrix():
    scores, correct = random_problem(0)
    whole = ranks_of_correct(scores, correct)
    for size in (1, 7, 40):
        starts = range(0, len(scores), size)
        parts = [ranks_of_correct(scores[i : i + size], correct[i : i + size], first_query=i) for i in starts]
        assert [query.tolist() for query in itertools.chain(*parts)] == [query.tolist() for query in whole]


@pytest.mark.parametrize(
    ("scores", "correct", "message"),
    [
        ([[0.0, 1.0], [math.nan, 1.0]], [[0], [1]], "query 101: 1 of 2 scores are NaN"),
        ([[0.0, 1.0]], [[]], "query 100 has no list of correct items"),
        ([[0.0, 1.0]], [[2]], r"query 100: correct items \[2\] must lie in 0..1"),
        ([[0.0, 1.0]], [[-1]], r"query 100: correct items \[-1\] must lie in 0..1"),
        ([[0.0, 1.0]], [[0, 0]], "query 100: a correct item is named twice"),
        ([[0.0, 1.0]], [[0.5]], "query 100: correct items must be integer"),
        ([[0.0, 1.0]], [[0], [1]], "correct has 2 entries"),
        ([0.0, 1.0], [[0], [1]], r"the shape \(2,\)"),
    ],
)
def test_bad_scores_and_bad_correct_items_name_the_query(scores, correct, message):
    with pytest.raises(ValueError, match=message):
        ranks_of_correct(np.array(scores), correct, first_query=100)


def test_figures_by_head():
    # Correct items at ranks 1 | 3 | 2 and 4 | 6 of a gallery of 8.
    results = retrieval_metrics([[1], [3], [2, 4], [6]], 8, ["a", "b", "c", "d"], k=(1, 2, 5, 10))
    assert results["R@1"]["value"] == 25
    assert results["R@2"]["value"] == 50
    assert results["R@5"]["value"] == 75
    assert "R@10" not in results
    assert results["median_rank"]["value"] == 2.5
    assert results["mAP"]["value"] == pytest.approx(100 * (1 + 1 / 3 + (1 / 2 + 2 / 4) / 2 + 1 / 6) / 4)
    assert (results["pool_size"], results["num_queries"], results["num_songs"]) == (8, 4, 4)
    # One correct of 8: 1/8; two of 8: 2/8.
    assert results["R@1"]["chance"] == pytest.approx(100 * (3 * 1 / 8 + 2 / 8) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_full_loops(seed):
    scores, correct = random_problem(seed)
    rankings = [naive_ranking(row, items) for row, items in zip(scores, correct, strict=True)]
    results = retrieval_metrics(ranks_of_correct(scores, correct), 30, range(40), k=(1, 5, 10))
    for k in (1, 5, 10):
        assert results[f"R@{k}"]["value"] == pytest.approx(100 * np.mean([any(right[:k]) for right in rankings]))
    assert results["median_rank"]["value"] == np.median([right.index(True) + 1 for right in rankings])
    # Average precision by its other definition: the sum over the ranking of precision times the step in recall.
    totals = []
    for right in rankings:
        recall = [sum(right[:n]) / sum(right) for n in range(len(right) + 1)]
        precision = [sum(right[:n]) / n for n in range(1, len(right) + 1)]
        totals.append(sum(p * (recall[n + 1] - recall[n]) for n, p in enumerate(precision)))
    assert results["mAP"]["value"] == pytest.approx(100 * np.mean(totals))


def test_order_of_queries_and_gallery_does_not_matter():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(40, 30))
    correct = [generator.choice(30, 2, replace=False) for _ in range(40)]
    groups = [f"song {index // 3}" for index in range(40)]
    expected = retrieval_metrics(ranks_of_correct(scores, correct), 30, groups)
    queries, gallery = generator.permutation(40), generator.permutation(30)
    moved_correct = [np.flatnonzero(np.isin(gallery, correct[query])) for query in queries]
    moved = ranks_of_correct(scores[queries][:, gallery], moved_correct)
    results = retrieval_metrics(moved, 30, [groups[query] for query in queries])
    for name in ("R@1", "R@5", "R@10", "R@20", "mAP", "median_rank"):
        assert results[name] == pytest.approx(expected[name]), name


@pytest.mark.parametrize(("gallery_size", "num_correct"), [(1, 1), (9, 1), (12, 3), (12, 12)])
def test_chance_against_simulation(gallery_size, num_correct):
    generator = np.random.default_rng(0)
    shuffled = np.argsort(generator.random((40_000, gallery_size)), axis=1)
    ranks = np.sort(shuffled[:, :num_correct] + 1, axis=1)
    for k in range(1, gallery_size + 1):
        assert chance_recall(gallery_size, num_correct, k) == pytest.approx((ranks[:, 0] <= k).mean(), abs=0.01)
    precision = average_precisions(ranks).mean()
    assert chance_average_precision(gallery_size, num_correct) == pytest.approx(precision, abs=0.005)
    assert chance_median_rank(gallery_size, np.array([num_correct])) == np.median(ranks[:, 0])


def test_chance_median_rank_of_one_correct_item_and_of_a_mixture():
    assert chance_median_rank(10_000, np.ones(7, int)) == 5000.5
    assert chance_median_rank(101, np.ones(7, int)) == 51
    generator = np.random.default_rng(0)
    first = [(np.argsort(generator.random((50_000, 40)), axis=1)[:, :c] + 1).min(axis=1) for c in (1, 1, 1, 8)]
    assert chance_median_rank(40, np.array([1, 1, 8, 1])) == np.median(np.concatenate(first))


def test_chance_recall_is_exact_for_large_pools():
    assert chance_recall(10_000, 1, 100) == 0.01
    assert chance_recall(10, 8, 5) == 1


def test_interval_of_independent_songs_is_that_of_the_binomial():
    hits = [1] * 30 + [2] * 70
    results = retrieval_metrics([[rank] for rank in hits], 10, range(100), k=(1,), num_bootstrap=20_000)
    cumulative = np.cumsum([math.comb(100, n) * 0.3**n * 0.7 ** (100 - n) for n in range(101)])
    low, high = np.searchsorted(cumulative, [0.025, 0.975])
    assert results["R@1"]["low"] == pytest.approx(low, abs=1)
    assert results["R@1"]["high"] == pytest.approx(high, abs=1)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        # Songs with 1 to 4 queries that all agree; 40 % of songs are found.
        sizes = generator.integers(1, 5, 80)
        ranks = np.repeat(np.where(generator.random(80) < 0.4, 1, 5), sizes)
        groups = np.repeat(np.arange(80), sizes)
        figure = retrieval_metrics(ranks[:, None], 10, groups, k=(1,), num_bootstrap=400, seed=seed)["R@1"]
        covered += figure["low"] <= 40 <= figure["high"]
    # Nominal 95 %; at 300 runs two standard errors are 2.5 points, and the percentile interval is slightly narrow.
    assert 0.91 <= covered / 300 <= 0.98


def test_agreeing_queries_of_a_song_do_not_narrow_the_interval():
    ranks = np.repeat(np.where(np.random.default_rng(0).random(60) < 0.5, 1, 5), 9)[:, None]
    by_song = retrieval_metrics(ranks, 10, np.repeat(np.arange(60), 9), k=(1,), num_bootstrap=4000)["R@1"]
    by_query = retrieval_metrics(ranks, 10, np.arange(540), k=(1,), num_bootstrap=4000)["R@1"]
    # Nine agreeing queries hold the information of one: sqrt(9) times the width.
    ratio = (by_song["high"] - by_song["low"]) / (by_query["high"] - by_query["low"])
    assert by_song["value"] == by_query["value"]
    assert ratio == pytest.approx(3, rel=0.12)


def test_resamples_weigh_songs_by_their_queries():
    values, ranks = np.array([[1.0], [0.0], [0.0], [0.0]]), np.array([1, 8, 8, 8])
    means, medians = bootstrap_by_song(values, ranks, np.array([0, 1, 1, 1]), num_bootstrap=200, seed=0)
    # Song 0 twice, one of each (1 hit of 4 queries), song 1 twice; never the mean of song means, 0.5.
    assert set(means[:, 0].tolist()) == {1.0, 0.25, 0.0}
    assert {(mean, median) for mean, median in zip(means[:, 0], medians, strict=True)} == {(1, 1), (0.25, 8), (0, 8)}


def test_resampled_medians_equal_numpy_medians(monkeypatch):
    module = sys.modules[bootstrap_by_song.__module__]
    ranks, songs = np.array([4, 1, 9, 2, 2, 7, 3]), np.array([0, 0, 1, 1, 2, 2, 2])
    arguments = (np.ones((7, 1)), ranks, songs, 50, 3)
    medians = bootstrap_by_song(*arguments)[1]
    draws = np.random.default_rng(3).integers(3, size=(50, 3))
    expected = [np.median(np.concatenate([ranks[songs == song] for song in draw])) for draw in draws]
    assert medians.tolist() == expected
    # Blocks of 3 resamples, as for many queries, draw the same songs.
    monkeypatch.setattr(module, "MAX_BOOTSTRAP_CELLS", 21)
    assert bootstrap_by_song(*arguments)[1].tolist() == expected


def test_seed_decides_the_interval_and_confidence_its_width():
    ranks = np.random.default_rng(0).integers(1, 50, (60, 1))
    first, again = (retrieval_metrics(ranks, 50, range(60), seed=1) for _ in range(2))
    other = retrieval_metrics(ranks, 50, range(60), seed=2)
    narrow = retrieval_metrics(ranks, 50, range(60), seed=1, confidence=0.5)
    assert first == again
    assert first["mAP"]["low"] != other["mAP"]["low"]
    assert first["mAP"]["value"] == other["mAP"]["value"]
    assert first["mAP"]["low"] < narrow["mAP"]["low"] < first["mAP"]["value"] < narrow["mAP"]["high"]


def test_one_song_has_no_interval():
    results = retrieval_metrics([[1], [2]], 10, ["a", "a"], k=(1,))
    assert results["num_songs"] == 1
    assert results["R@1"] == {"value": 50.0, "low": None, "high": None, "chance": pytest.approx(10)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": [[1], [0]]}, "query 1: expected one distinct rank in 1..10"),
        ({"ranks": [[1], [11]]}, "query 1: expected one distinct rank in 1..10"),
        ({"ranks": [[1], [0.7]]}, "not scores"),
        ({"ranks": [[1], []]}, "query 1: expected one distinct rank"),
        ({"ranks": [[1], [2, 2]]}, "query 1: expected one distinct rank"),
        ({"ranks": [], "groups": []}, "0 queries"),
        ({"groups": ["a"]}, "2 queries and 1 groups"),
        ({"groups": ["a", None]}, "query 1 has no song label"),
        ({"groups": ["a", math.nan]}, "query 1 has no song label"),
        ({"k": 5}, "k must be a list"),
        ({"k": (0,)}, "k must be a list of whole numbers of 1 or more"),
        ({"num_bootstrap": 0}, "num_bootstrap must be 1 or more"),
        ({"confidence": 95}, "between 0 and 1"),
    ],
)
def test_bad_input_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**{"ranks": [[1], [2]], "gallery_size": 10, "groups": ["a", "b"], **changes})


# --------------------------------------------------------------------------------------------------------------------
# Both directions of a matrix with several correct answers and ties


def tied_matrix(seed: int) -> tuple[np.ndarray, RetrievalSet]:
    """Scores of 120 songs and 180 texts, many of them equal; songs have several texts, and some share their words."""
    generator = np.random.default_rng(seed)
    song_of_text = [*range(120), *generator.integers(0, 120, 60).tolist()]
    texts = [f"text {generator.integers(0, 160)}" for _ in song_of_text]
    songs = RetrievalSet(list(range(120)), [f"song {index}" for index in range(120)], texts, song_of_text)
    return generator.integers(0, 30, (120, 180)).astype(np.float32), songs


def naive_figures(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Every figure by a full sort of each query (row), wrong answers first among equal scores."""
    rankings = [naive_ranking(row, np.flatnonzero(good).tolist()) for row, good in zip(scores, right, strict=True)]
    figures = {f"R@{k}": 100 * np.mean([any(one[:k]) for one in rankings]) for k in (1, 5, 10, 20, 100)}
    firsts = [one.index(True) + 1 for one in rankings]
    precisions = [
        np.mean([sum(one[: place + 1]) / (place + 1) for place in range(len(one)) if one[place]]) for one in rankings
    ]
    gains = [
        sum(good / math.log2(place + 2) for place, good in enumerate(one[:10]))
        / sum(1 / math.log2(place + 2) for place in range(min(10, sum(one))))
        for one in rankings
    ]
    means = {"mAP": precisions, "MRR": [1 / first for first in firsts], "nDCG@10": gains}
    return (
        figures | {name: 100 * np.mean(values) for name, values in means.items()} | {"median_rank": np.median(firsts)}
    )


@pytest.mark.parametrize("seed", range(3))
def test_both_directions_of_a_matrix_with_ties_equal_full_sorts(seed):
    scores, songs = tied_matrix(seed)
    right = np.zeros(scores.shape, bool)  # (A, B) a text is correct for all songs that have it in the same words
    for text, words in enumerate(songs.texts):
        for other, song in zip(songs.texts, songs.song_of_text, strict=True):
            right[song, text] |= words == other
    assert right.sum(0).max() > 1 and right.sum(1).max() > 3
    found = retrieval_figures(scores, songs, num_bootstrap=2)
    for direction, expected in {
        "text_to_audio": naive_figures(scores.T, right.T),
        "audio_to_text": naive_figures(scores, right),
    }.items():
        for name, value in expected.items():
            assert found[direction][name]["value"] == pytest.approx(value), (direction, name)


def test_ties_are_read_as_trec_eval_reads_them_with_correct_items_last():
    """trec_eval orders equal scores by name, the last one first: here wrong items have the later names."""
    scores, songs = tied_matrix(0)
    correct = songs.songs_of_texts()
    names = [{song: f"{'a' if song in good else 'z'}{song}" for song in range(len(scores))} for good in correct]
    truth = {f"q{q}": {names[q][song]: 1 for song in good} for q, good in enumerate(correct)}
    run = {f"q{q}": {names[q][song]: float(scores[song, q]) for song in names[q]} for q in range(len(correct))}
    theirs = pytrec_eval.RelevanceEvaluator(truth, {"map", "recip_rank", "ndcg_cut.10", "success.5,10"}).evaluate(run)
    ours = retrieval_figures(scores, songs, num_bootstrap=2)["text_to_audio"]
    pairs = {"mAP": "map", "MRR": "recip_rank", "nDCG@10": "ndcg_cut_10", "R@5": "success_5", "R@10": "success_10"}
    for name, their_name in pairs.items():
        mean = 100 * np.mean([one[their_name] for one in theirs.values()])
        assert ours[name]["value"] == pytest.approx(mean), name
