"""Candidates: estimates against a plain loop, the means' selection, and how few of them an exact answer needs."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch.nn import functional as F

from benchmarks.search_library import SyntheticSongs, aligned_function, draw_tracks, score_function
from collap.search import scan as scan_module
from collap.search.estimates import frame_coverage, mean_rows, segment_scores
from collap.search.quantize import dequantize_rows
from collap.search.ranking import Texts, most_candidates
from collap.search.rescoring import score_tracks
from collap.search.scan import Scan, kept_by_means
from collap.search.score_function import ScoreFunction
from collap.search.vectors import join_tracks, one_track, track_vectors

WIDTH, TOKENS = 64, 300


@pytest.fixture(scope="module")
def library():
    """240 songs in shards of 100, one in five of them with many sections; 16 queries."""
    songs = SyntheticSongs(WIDTH)
    starts = torch.arange(TOKENS) * 0.16
    tracks = [track_vectors(one, starts, 0.16, 48.0) for one in draw_tracks(songs, 240, TOKENS, many=0.2)]
    shards = [join_tracks(tracks[start : start + 100]) for start in range(0, 240, 100)]
    order = np.random.default_rng(0).permutation(240)  # tracks do not lie in the order of their numbers
    return shards, (order // 100, order % 100), [tracks[one] for one in order], songs.queries(16).unsqueeze(1)


def naive_path_score(function: ScoreFunction, cosines: torch.Tensor) -> torch.Tensor:
    """The logarithm of all orderly readings (W, Q) of a song of 4-s steps, one by one."""
    frames, sentences = cosines.shape
    gain = 25 / function.alignment_frame_size / function.path_temperature  # a step of 25 tokens is so many frames
    totals = []
    for cuts in itertools.combinations(range(frames + sentences), 2 * sentences):  # where each begins and ends
        path = torch.full((frames,), function.blank)
        for one in range(sentences):
            begin, end = cuts[2 * one] - one, cuts[2 * one + 1] - one
            path[begin:end] = cosines[begin:end, one]
        totals.append(gain * path.sum())
    return (torch.stack(totals).logsumexp(0) - math.log(len(totals))) / (gain * frames)


def naive_score(function: ScoreFunction, texts: torch.Tensor, track: dict, in_order: bool = False) -> torch.Tensor:
    """The estimate of one track, a text at a time, each token taking the vector of its segment."""
    segments = dequantize_rows(track["segments"], track["segment_scales"])
    counts, scores = track["segment_tokens"], []
    owner = torch.arange(len(segments)).repeat_interleave(counts)
    height, stride, tokens = function.kernel_size, function.stride, int(counts.sum())
    frames = [range(v, min(v + height, tokens)) for v in range(0, max(tokens - height, 0) + 1, stride)]
    seen = torch.tensor([owner[t] for frame in frames for t in frame])
    for text in texts:
        text = text[text.any(-1)]
        pooled = segments @ F.normalize(text.mean(0), dim=0)
        softmax = ((pooled[seen] / function.attention_temperature).softmax(0) * pooled[seen]).sum()
        score = function.gamma_kernel * pooled[seen].mean() + function.gamma_temporal * softmax
        if function.has_sentences:
            cosines = (segments @ text.T)[owner]  # (T, Q)
            attended = ((cosines / function.sentence_temperature).softmax(0) * cosines).sum(0).mean()
            score = score + function.gamma_sentences * attended
            best = cosines.amax(1)
            best = (best if function.blank is None else best.clamp(min=function.blank)).mean()
            score = score + function.gamma_path * (naive_path_score(function, cosines[::25]) if in_order else best)
        scores.append(score)
    return torch.stack(scores)


def sentence_queries(queries: torch.Tensor) -> tuple[ScoreFunction, torch.Tensor]:
    """A score of sentences in order, with blanks, and texts of two sentences and of one."""
    model = tiny_model(alignment="monotone", path_blank=True)
    pairs = torch.stack([queries[0::2, 0], queries[1::2, 0]], dim=1)
    pairs[0, 1] = 0.0
    return ScoreFunction.of(model.config, model.score_parameters()), pairs


@pytest.mark.parametrize("score", ["of one vector", "of sentences", "of sentences in order"])
def test_estimates_are_those_of_a_plain_loop(library, score):
    shards, places, tracks, queries = library
    function, in_order = score_function(0.2), score.endswith("in order")
    if score != "of one vector":
        function, queries = sentence_queries(queries[:8])
        function = replace(function, token_seconds=0.16)
    found = Scan(shards, places).segment_estimates(function, queries, np.array([3, 200, 7]), in_order)
    expected = torch.stack([naive_score(function, queries, tracks[track], in_order) for track in (3, 200, 7)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sentences_are_placed_in_order_in_the_most_promising_tracks(library, monkeypatch):
    shards, places, _, queries = library
    function, queries = sentence_queries(queries)
    scan, allowed = Scan(shards, places), np.arange(0, 240, 2)
    monkeypatch.setattr(scan_module, "kept_by_segments", lambda num_tracks: 30)
    rough = scan.segment_estimates(function, queries, allowed)  # (A, B)
    exact = scan.segment_estimates(function, queries, allowed, in_order=True)
    signs = torch.eye(len(queries))
    signs[3, 0] = -1.0  # the first query is against a text
    for found, _ in scan.estimate(function, queries, signs, allowed, at_least=50):
        assert len(found) == 50
    for query, (found, estimates) in enumerate(scan.estimate(function, queries, signs, allowed)):
        best = (rough @ signs)[:, query].topk(30).indices.sort().values
        assert found.tolist() == allowed[best].tolist()
        torch.testing.assert_close(torch.from_numpy(estimates), (exact @ signs)[best, query])


@pytest.mark.parametrize("in_order", [False, True])
def test_memory_bounds_change_no_estimate(library, monkeypatch, in_order):
    shards, places, _, queries = library
    scan, function = Scan(shards, places), score_function()
    if in_order:
        function, queries = sentence_queries(queries)
    whole = scan.segment_estimates(function, queries, np.arange(240), in_order)
    monkeypatch.setattr(scan_module, "BLOCK_CELLS", 2**14)
    monkeypatch.setattr(scan_module, "CELLS_AT_A_TIME", 500)
    torch.testing.assert_close(scan.segment_estimates(function, queries, np.arange(240), in_order), whole)


@pytest.mark.parametrize(("height", "stride"), [(6, 3), (5, 2), (3, 5), (1, 1), (7, 7)])
def test_coverage_counts_the_frames_that_a_token_is_in(height, stride):
    for tokens, cut in itertools.product((1, 2, 7, 30, 61), (1, 4, 20)):
        seen = torch.zeros(tokens)
        for frame in range(max((tokens - height) // stride + 1, 1)):
            seen[frame * stride : frame * stride + height] += 1
        parts = list(seen.split(cut))
        weights = torch.tensor([len(part) for part in parts] + [0, 0])
        expected = torch.tensor([part.sum() for part in parts] + [0.0, 0.0])
        assert torch.equal(frame_coverage(weights.unsqueeze(0), height, stride)[0], expected)


def test_a_large_library_is_cut_by_its_means_and_only_within_the_filter(library, monkeypatch):
    shards, places, tracks, queries = library
    scan, function, texts = Scan(shards, places), score_function(), Texts(queries, torch.eye(len(queries)))
    monkeypatch.setattr(scan_module, "kept_by_means", lambda function, num_tracks: 40)
    allowed = np.arange(0, 240, 2)
    means = torch.stack([dequantize_rows(one["means"], one["mean_scales"])[0] for one in tracks])  # (N, D)
    products = means[allowed] @ mean_rows(function, queries).T  # (A, B)
    whole = scan.segment_estimates(function, queries, allowed)
    for query, (found, estimates) in enumerate(scan.estimate(function, texts.embeds, texts.signs, allowed)):
        own, is_kept = products[:, query], torch.from_numpy(np.isin(allowed, found))
        assert len(found) == is_kept.sum() == 40
        error = 0.01 * own.abs().max()  # of a product in bfloat16: near the last one, another may be kept
        assert own[is_kept].min() >= own[~is_kept].max() - 2 * error
        expected = whole[np.searchsorted(allowed, found), query]
        torch.testing.assert_close(torch.from_numpy(estimates), expected)


@pytest.mark.parametrize(("temperature", "needed"), [(1.0, 15), (0.2, 20), (0.05, 50)])
def test_few_candidates_hold_the_best_ten(library, temperature, needed):
    """The rank by estimate of the true best ten, of 240; docs/search.md has the figures of large libraries."""
    shards, places, tracks, queries = library
    function = score_function(temperature)
    exact = score_tracks(function, queries, [(one["tokens"], one["token_scales"]) for one in tracks])
    estimates = Scan(shards, places).segment_estimates(function, queries, np.arange(240))
    ranks = (-estimates).argsort(0).argsort(0).gather(0, exact.topk(10, dim=0).indices)
    assert (ranks < needed).float().mean() >= 0.99


@pytest.mark.parametrize(
    ("function", "num_tracks", "needed"),
    [
        (score_function(), 950, 18),
        (score_function(), 4000, 22),
        (score_function(0.2), 950, 161),
        (score_function(0.2), 4000, 768),
        (score_function(0.05), 950, 197),
        (score_function(0.05), 4000, 619),
        (aligned_function(), 950, 88),
        (aligned_function(), 4000, 111),
    ],
)
def test_a_search_scores_as_many_as_hold_the_best_of_trained_models(function, num_tracks, needed):
    """The candidates that hold 99 % of the best ten, the most that were measured; they grow with the library."""
    assert needed <= most_candidates(function, num_tracks) < 0.6 * num_tracks
    assert most_candidates(function, 100 * num_tracks) >= most_candidates(function, num_tracks)


def test_means_leave_no_track_out_where_they_hide_what_is_sought():
    """By means, a third of all tracks hold 99 % of the best ten of a sharp score, and four in five of sentences."""
    assert kept_by_means(aligned_function(), 10**6) == kept_by_means(score_function(0.2), 10**6) == 10**6
    assert 2048 < kept_by_means(score_function(), 10**6) < 10**5 and kept_by_means(score_function(), 2048) == 2048


def test_printed_sums_grow_with_the_song_in_estimates_too():
    function = ScoreFunction(6, 3, 1.0, 1.0, 1.0, "printed", 12, 2.0, 0.16)
    cosines, weights = torch.full((2, 1, 1), 0.5), torch.tensor([[6.0], [60.0]])
    short, long = segment_scores(function, cosines, torch.ones(1, 1, 4), weights)[:, 0]
    frames = (60 - 6) // 3 + 1
    assert short == pytest.approx(0.5 * (1 / 6 + 6)) and long == pytest.approx(0.5 * (frames / 6 + 6 / frames))


def test_one_track_of_a_shard_is_the_track(library):
    shards, (shard, row), tracks, _ = library
    assert torch.equal(one_track(shards[shard[17]], int(row[17]))["segments"], tracks[17]["segments"])
