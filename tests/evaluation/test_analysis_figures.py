"""Every figure of the analyses against a naive reference, with ties, several texts of a song and songs of one text."""

import itertools

import numpy as np
import pytest
import scipy.stats

from collap.evaluation.analysis.hubness import chance_hubness, hub_figures, occurrences
from collap.evaluation.analysis.length_bias import bias_figures, foreign_scores, slope
from collap.evaluation.analysis.lengths import compare_conditions, cut_words
from collap.evaluation.analysis.stability import chance_moved, cosine_of_others, rank_figures, vector_figures
from collap.evaluation.analysis.statistics import figure, mean_figure, rank_correlation, skewness
from collap.evaluation.songs import RetrievalSet

# Song 0 has two texts; one text describes the songs 2 and 4 in the same words.
SONGS = RetrievalSet(list(range(6)), list("abcdef"), list("uvwxyxz"), [0, 0, 1, 2, 3, 4, 5])
DESCRIBED = [{0}, {0}, {1}, {2, 4}, {3}, {2, 4}, {5}]
TEXT = "A slow\nsong,  then drums."
GENERATOR = np.random.default_rng(0)
TIED = GENERATOR.integers(4, size=(6, 7)).astype(np.float32)
CHANGED = GENERATOR.integers(4, size=(6, 7)).astype(np.float32)
TIED[:, 5], CHANGED[:, 5] = TIED[:, 3], CHANGED[:, 3]  # the same words have the same scores


def naive_interval(statistic, count: int, seed: int = 0) -> list[float]:
    """The ends of the middle 95 % of a statistic of songs drawn one resample after the other."""
    draws = np.random.default_rng(seed).integers(count, size=(1000, count))
    return np.quantile([statistic(list(drawn)) for drawn in draws], [0.025, 0.975]).tolist()


def test_a_figure_is_the_statistic_with_its_bootstrap_by_song():
    values, of_song = GENERATOR.normal(size=9), np.array([0, 1, 1, 2, 3, 3, 3, 4, 5])

    def mean(drawn):
        return np.mean([value for song in drawn for value in values[of_song == song]])

    found = mean_figure(values, of_song, 0.5)
    assert found["value"] == pytest.approx(values.mean()) and found["chance"] == 0.5
    assert [found["low"], found["high"]] == pytest.approx(naive_interval(mean, 6))
    assert mean_figure(values[:1], of_song[:1], None)["low"] is None
    rare = figure(lambda drawn: np.where((drawn == 0).all(-1), 1.0, np.nan), 5, None)
    assert rare["low"] is None  # hardly any resample has a value


def test_skewness_and_rank_correlation_are_scipys():
    values = GENERATOR.integers(5, size=(4, 30)).astype(float)
    np.testing.assert_allclose(skewness(values), scipy.stats.skew(values, axis=1))
    assert skewness(np.ones((2, 5))).tolist() == [0, 0]
    others = GENERATOR.integers(5, size=(4, 30)).astype(float)
    expected = [scipy.stats.spearmanr(one, other).statistic for one, other in zip(values, others, strict=True)]
    np.testing.assert_allclose(rank_correlation(values, others), expected)
    assert np.isnan(rank_correlation(np.ones(5), values[0, :5]))
    np.testing.assert_allclose(slope(values, others)[1], scipy.stats.linregress(values[1], others[1]).slope)


@pytest.mark.parametrize(
    ("number", "expected"), [(1, "A"), (3, "A slow\nsong,"), (4, "A slow\nsong,  then"), (5, TEXT), (9, TEXT)]
)
def test_captions_are_cut_at_the_borders_of_words(number, expected):
    assert cut_words(TEXT, number) == expected and cut_words("", number) == ""


def test_conditions_are_compared_on_the_same_queries():
    found = compare_conditions({"cut": CHANGED, "whole": TIED}, SONGS, [("whole", "cut")], ("R@2", "MRR", "R@9"), 0)
    for condition, scores in (("cut", CHANGED), ("whole", TIED)):
        firsts = []
        for text, own in enumerate(DESCRIBED):
            wrong = [scores[song, text] for song in range(6) if song not in own]
            firsts.append(1 + min(sum(score >= scores[song, text] for score in wrong) for song in own))
        figures = found.figures[condition]
        assert figures["text_to_audio R@2"]["value"] == pytest.approx(100 * np.mean(np.array(firsts) <= 2))
        assert figures["text_to_audio MRR"]["value"] == pytest.approx(100 * np.mean(1 / np.array(firsts)))
        assert figures["text_to_audio R@2"]["chance"] > 100 / 3 and "text_to_audio R@9" not in figures
    both = [one["text_to_audio MRR"]["value"] for one in found.figures.values()]
    test, other = found.comparisons
    assert test["difference"] == pytest.approx(both[1] - both[0]) and 0 < test["p"] <= 1
    assert (test["first"], test["second"], test["measure"]) == ("whole", "cut", "text_to_audio MRR")
    assert other["measure"] == "audio_to_text MRR"


# --------------------------------------------------------------------------------------------------------------------
# Stability


def test_vectors_are_compared_with_all_originals():
    originals, changed = (one / np.linalg.norm(one, axis=1)[:, None] for one in GENERATOR.normal(size=(2, 5, 3)))
    originals[1] = originals[0]  # as near as the own one, which does not count as found
    changed[0] = originals[0]
    found = vector_figures(changed, originals, 0)
    cosines = [[float(a @ b) for b in originals] for a in changed]
    nearest = [all(row[i] > one for j, one in enumerate(row) if j != i) for i, row in enumerate(cosines)]
    assert found["cosine"]["value"] == pytest.approx(np.mean([row[i] for i, row in enumerate(cosines)]))
    assert found["nearest"]["value"] == pytest.approx(100 * np.mean(nearest)) and not nearest[0]
    assert found["nearest"]["chance"] == 20
    assert [found["nearest"]["low"], found["nearest"]["high"]] == pytest.approx(
        naive_interval(lambda drawn: 100 * np.mean([nearest[song] for song in drawn]), 5)
    )
    pairs = [float(originals[i] @ originals[j]) for i, j in itertools.permutations(range(5), 2)]
    assert cosine_of_others(originals, 0)["value"] == pytest.approx(np.mean(pairs))


def test_ranks_move_when_one_song_is_changed():
    found, tests = rank_figures(CHANGED, TIED, SONGS, ("R@2", "MRR"), 0)
    before, after = [], []
    for text, song in enumerate(SONGS.song_of_text):
        library = TIED.copy()
        for ranks in (before, after):
            wrong = [library[other, text] for other in range(6) if other not in DESCRIBED[text]]
            ranks.append(1 + sum(score >= library[song, text] for score in wrong))
            library[song] = CHANGED[song]  # this one alone
    moved = np.abs(np.array(after) - before)
    assert moved.any() and found["text_to_audio ranks"]["value"] == pytest.approx(moved.mean())

    def mean(drawn):
        return np.mean([moved[text] for song in drawn for text in range(7) if SONGS.song_of_text[text] == song])

    interval = [found["text_to_audio ranks"][end] for end in ("low", "high")]
    assert interval == pytest.approx(naive_interval(mean, 6))
    recalls = [100 * np.mean(np.array(ranks) <= 2) for ranks in (after, before)]
    assert found["text_to_audio R@2"]["value"] == pytest.approx(recalls[0] - recalls[1])
    reciprocal = 100 * np.mean(1 / np.array(after) - 1 / np.array(before))
    assert tests[0]["difference"] == pytest.approx(reciprocal) == found["text_to_audio MRR"]["value"]

    firsts = []
    for scores in (CHANGED, TIED):
        own = [[text for text in range(7) if song in DESCRIBED[text]] for song in range(6)]
        wrong = [[scores[song, text] for text in range(7) if text not in own[song]] for song in range(6)]
        firsts.append([1 + sum(one >= max(scores[song, own[song]]) for one in wrong[song]) for song in range(6)])
    moved = np.abs(np.array(firsts[0]) - firsts[1])
    assert found["audio_to_text ranks"]["value"] == pytest.approx(moved.mean())
    same, _ = rank_figures(TIED, TIED, SONGS, ("MRR",), 0)
    assert {one["value"] for one in same.values()} == {0.0}


@pytest.mark.parametrize(("size", "correct"), [(1, 1), (4, 1), (5, 2), (5, 5)])
def test_chance_of_moving_is_that_of_two_random_rankings(size, correct):
    firsts = [min(places) for places in itertools.combinations(range(size), correct)]
    expected = np.mean([abs(one - other) for one in firsts for other in firsts])
    assert chance_moved(size, correct) == pytest.approx(expected)


# --------------------------------------------------------------------------------------------------------------------
# Length bias


def test_scores_with_texts_about_others():
    scores = GENERATOR.normal(size=(6, 7))
    means, scale = foreign_scores(scores, SONGS)
    cells = [(song, text) for song in range(6) for text in range(7) if song not in DESCRIBED[text]]
    design = np.zeros((len(cells), 13))
    for row, (song, text) in enumerate(cells):
        design[row, [song, 6 + text]] = 1
    levels = np.linalg.lstsq(design, [scores[cell] for cell in cells], rcond=None)[0][:6]
    np.testing.assert_allclose(means, levels - levels.mean(), atol=1e-8)
    spreads = [np.std([scores[song, text] for song in range(6) if song not in DESCRIBED[text]]) for text in range(7)]
    assert scale == pytest.approx(np.mean(spreads))
    alike = RetrievalSet([0, 1], ["a", "b"], ["u", "u"], [0, 1])
    with pytest.raises(ValueError, match="no text about two other songs"):
        foreign_scores(np.ones((2, 2)), alike)


def test_bias_grows_with_the_duration_and_not_with_the_own_text():
    seconds = np.array([10.0, 20, 40, 80, 160, 320])
    noise, own = 0.01 * GENERATOR.normal(size=(6, 7)), np.zeros((6, 7))
    own[SONGS.song_of_text, np.arange(7)] = 100.0  # no text of its own counts
    biased = bias_figures(noise + 0.5 * np.log2(seconds)[:, None] + own, SONGS, seconds, 0)
    assert biased["rank_correlation"]["value"] == 1 and biased["rank_correlation"]["chance"] == 0
    scale = foreign_scores(noise + 0.5 * np.log2(seconds)[:, None], SONGS)[1]
    assert biased["slope"]["value"] == pytest.approx(0.5 / scale, abs=0.02)
    means = foreign_scores(noise, SONGS)[0]
    fair = bias_figures(noise + own, SONGS, seconds, 0)
    assert fair["rank_correlation"]["value"] == pytest.approx(scipy.stats.spearmanr(seconds, means).statistic)
    assert fair["rank_correlation"]["low"] < 0 < fair["rank_correlation"]["high"]
    assert bias_figures(noise, SONGS, np.full(6, 60.0), 0) == {}


# --------------------------------------------------------------------------------------------------------------------
# Hubness


@pytest.mark.parametrize("k", [1, 2, 5])
def test_songs_that_tie_share_the_last_places(k):
    found = occurrences(TIED, k)
    for text in range(7):
        column = TIED[:, text]
        shares = np.zeros(6)
        orders = [order for order in itertools.permutations(range(6)) if (np.diff(column[list(order)]) <= 0).all()]
        for order in orders:
            shares[list(order[:k])] += 1 / len(orders)
        np.testing.assert_allclose(found[:, text], shares)
    assert np.ptp(occurrences(np.zeros((6, 7)), k)) == 0


def test_hubs_are_found_and_random_scores_have_few():
    scores = GENERATOR.normal(size=(40, 60))
    scores[3] += 5
    of_text = np.arange(60) % 40
    found = hub_figures(scores, of_text, 5, 0)
    counts = np.zeros(40)
    for text in range(60):
        for song in sorted(range(40), key=lambda one: -scores[one, text])[:5]:
            counts[song] += 1
    assert found["skewness"]["value"] == pytest.approx(scipy.stats.skew(counts)) and counts[3] > 50
    assert found["never"]["value"] == pytest.approx(100 * np.mean(counts == 0))
    assert found["largest"]["value"] == pytest.approx(100 * counts.max() / 60)
    assert found["skewness"]["value"] > 3 > 1 > found["skewness"]["chance"]
    interval = [found["skewness"]["low"], found["skewness"]["high"]]
    assert interval == pytest.approx(naive_interval(lambda drawn: scipy.stats.skew(counts[drawn]), 40))


def test_chance_of_hubness_is_that_of_the_binomial():
    chance, (skewed, never, largest) = 5 / 40, chance_hubness(40, 20, 5, 0)
    assert never == pytest.approx(100 * (1 - chance) ** 20, abs=1.0)
    assert skewed == pytest.approx((1 - 2 * chance) / np.sqrt(20 * chance * (1 - chance)), abs=0.15)
    tops = scipy.stats.binom(20, chance).cdf(np.arange(21)) ** 40  # as if songs were independent
    assert largest == pytest.approx(100 * (np.arange(21) * np.diff(tops, prepend=0)).sum() / 20, rel=0.05)
