"""Comparing two models: against naive loops, all permutations, a library of retrieval metrics, and simulations."""

import itertools

import numpy as np
import pytest
import pytrec_eval
from scipy import stats

from benchmarks.intervals import FIGURES, simulate, true_figures
from collap.evaluation.comparison import compare_models, holm, paired_bootstrap, paired_permutation_test
from collap.evaluation.metrics import (
    chance_discounted_gain,
    chance_reciprocal_rank,
    discounted_gains,
    query_values,
    ranks_of_correct,
    retrieval_metrics,
)


def random_values(seed: int, num_queries: int = 30, num_songs: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    songs = np.concatenate([np.arange(num_songs), generator.integers(num_songs, size=num_queries - num_songs)])
    first, second = generator.normal(size=(2, num_queries, 3))
    return first + 0.3, second, songs


@pytest.mark.parametrize("seed", range(3))
def test_paired_bootstrap_equals_a_loop_over_drawn_songs(seed):
    first, second, songs = random_values(seed)
    generator, means = np.random.default_rng(5), []
    for drawn in generator.integers(9, size=(200, 9)):
        rows = np.concatenate([np.flatnonzero(songs == song) for song in drawn])
        means.append(first[rows].mean(0) - second[rows].mean(0))
    low, high = paired_bootstrap(first, second, songs, num_bootstrap=200, seed=5, confidence=0.9)
    np.testing.assert_allclose([low, high], np.quantile(means, [0.05, 0.95], axis=0), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_permutation_test_equals_every_exchange_of_the_models_within_songs(seed):
    first, second, songs = random_values(seed)
    observed, as_large, total = np.abs((first - second).mean(0)), np.zeros(3), 0
    for swapped in itertools.product([False, True], repeat=9):
        rows = np.array(swapped)[songs][:, None]
        difference = np.where(rows, second, first).mean(0) - np.where(rows, first, second).mean(0)
        as_large, total = as_large + (np.abs(difference) >= observed - 1e-12), total + 1
    exact = paired_permutation_test(first, second, songs, num_permutations=512)
    np.testing.assert_allclose(exact, as_large / total)
    drawn = paired_permutation_test(first, second, songs, num_permutations=511)
    np.testing.assert_allclose(drawn, exact, atol=0.08)  # three standard errors of 511 draws at p = 0.5
    assert (drawn >= 1 / 512).all() and not np.array_equal(drawn, exact)


def test_the_permutation_test_of_single_queries_is_that_of_scipy():
    first, second, _ = random_values(0, 10, 10)
    found = paired_permutation_test(first, second, np.arange(10))
    for column in range(3):
        difference = first[:, column] - second[:, column]
        expected = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert found[column] == pytest.approx(expected.pvalue)


def test_thousands_of_songs_are_permuted():
    values = np.random.default_rng(0).normal(size=(3000, 1))
    p_value = paired_permutation_test(values + 0.5, 0 * values, np.arange(3000), num_permutations=99)
    assert p_value == pytest.approx(1 / 100)
    assert paired_permutation_test(values - values.mean(), 0 * values, np.arange(3000), num_permutations=99) == 1


def test_equal_models_have_no_difference_and_ties_between_signs_count():
    values, _, songs = random_values(0)
    assert (paired_permutation_test(values, values, songs) == 1).all()
    better = values + 1.0
    # The given signs, and all of them turned: 2 of 2 ** 9.
    assert paired_permutation_test(better, values, songs) == pytest.approx(np.full(3, 2 / 512))
    low, high = paired_bootstrap(better, values, songs)
    assert low == pytest.approx(np.ones(3)) and high == pytest.approx(np.ones(3))


@pytest.mark.parametrize("seed", range(4))
def test_holm_rejects_what_the_step_down_procedure_rejects(seed):
    p_values = np.random.default_rng(seed).choice([0.001, 0.004, 0.01, 0.02, 0.2, 0.9], 7)
    for alpha in (0.01, 0.05, 0.1):
        rejected = set()
        for step, index in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[index] > alpha / (7 - step):
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(holm(p_values) <= alpha).tolist()) == rejected
    assert holm([0.6, 0.01]).tolist() == [0.6, 0.02] and holm([]).tolist() == []


@pytest.mark.parametrize("seed", range(2))
def test_figures_without_ties_are_those_of_pytrec_eval(seed):
    generator = np.random.default_rng(seed)
    scores = generator.permuted(np.arange(40.0 * 25).reshape(40, 25), axis=None).reshape(40, 25)
    correct = [generator.choice(25, generator.integers(1, 14), replace=False) for _ in range(40)]
    values = query_values(ranks_of_correct(scores, correct), (1, 5, 10))
    truth = {f"q{q}": {f"d{d}": 1 for d in items.tolist()} for q, items in enumerate(correct)}
    run = {f"q{q}": {f"d{d}": float(score) for d, score in enumerate(row)} for q, row in enumerate(scores)}
    names = {"mAP": "map", "MRR": "recip_rank", "nDCG@10": "ndcg_cut_10", "R@5": "success_5", "R@10": "success_10"}
    found = pytrec_eval.RelevanceEvaluator(truth, {"map", "recip_rank", "ndcg_cut.10", "success.5,10"}).evaluate(run)
    for name, theirs in names.items():
        np.testing.assert_allclose(values[name] / 100, [found[f"q{q}"][theirs] for q in range(40)], atol=1e-9)


def test_mrr_and_ndcg_by_head():
    # One of two correct items at rank 1, the other at 3; a single one beyond the tenth.
    gains = discounted_gains([np.array([1, 3]), np.array([11])])
    assert gains.tolist() == pytest.approx([1.5 / (1 + 1 / np.log2(3)), 0])
    figures = retrieval_metrics([[2, 4], [8]], 12, ["a", "b"])
    assert figures["MRR"]["value"] == pytest.approx(100 * (1 / 2 + 1 / 8) / 2)
    constant = ranks_of_correct(np.zeros((1, 12)), [[5]])
    assert retrieval_metrics(constant, 12, ["a"])["nDCG@10"]["value"] == 0  # ties count against the model


@pytest.mark.parametrize(("gallery_size", "num_correct"), [(1, 1), (9, 1), (12, 3), (14, 12), (12, 12)])
def test_chance_of_mrr_and_ndcg_against_simulation(gallery_size, num_correct):
    shuffled = np.argsort(np.random.default_rng(0).random((20_000, gallery_size)), axis=1)
    ranks = np.sort(shuffled[:, :num_correct] + 1, axis=1)
    assert chance_reciprocal_rank(gallery_size, num_correct) == pytest.approx((1 / ranks[:, 0]).mean(), abs=0.008)
    assert chance_discounted_gain(gallery_size, num_correct) == pytest.approx(discounted_gains(ranks).mean(), abs=0.008)


def test_models_are_compared_by_every_mean():
    first, second, groups = [[1], [2], [30]], [[1], [9], [3]], ["a", "b", "b"]
    compared = compare_models(first, second, 40, groups, num_resamples=50)
    one, other = (retrieval_metrics(ranks, 40, groups) for ranks in (first, second))
    assert list(compared) == ["R@1", "R@5", "R@10", "R@20", "mAP", "MRR", "nDCG@10"]
    for name, row in compared.items():
        assert row["difference"] == pytest.approx(one[name]["value"] - other[name]["value"])
        assert row["low"] <= row["difference"] <= row["high"] and 0 < row["p"] <= 1
    backwards = compare_models(second, first, 40, groups, num_resamples=50)["mAP"]
    assert (-backwards["difference"], backwards["p"]) == (compared["mAP"]["difference"], compared["mAP"]["p"])
    assert compare_models([[1]], [[2]], 40, ["a"])["mAP"]["low"] is None


@pytest.mark.parametrize("second", [[[1]], [[1], [2, 3]]])
def test_models_that_were_not_asked_the_same_are_not_compared(second):
    with pytest.raises(ValueError, match="not asked the same"):
        compare_models([[1], [2]], second, 10, ["a", "b"])
    with pytest.raises(ValueError, match="query 1: expected one distinct rank in 1..10"):
        compare_models([[1], [2]], [[1], [11]], 10, ["a", "b"])


def test_intervals_cover_and_the_paired_test_holds_its_level():
    """At 120 runs three standard errors are 6 points; docs/evaluation.md has the figures of many."""
    shares = simulate(120, 60, true_figures(), resamples=199)
    for name in FIGURES:
        assert 0.87 <= shares[name]["figure"] <= 0.995, name
        assert 0.87 <= shares[name]["difference"] <= 0.995, name
        assert 0 < shares[name]["rejected"] <= 0.11, name
