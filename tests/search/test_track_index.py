"""Searching an index from Python: modes, filters, tracks, moments, batches, threads, parts."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from libraries import drawn_songs

from benchmarks.search_library import score_function, write_index
from collap.search import calibration as calibration_module
from collap.search import scan as scan_module
from collap.search.calibration import Calibration, calibrate, conformal_quantile, write_calibration
from collap.search.index import TrackIndex
from collap.search.ranking import Texts, merge_hits
from collap.search.store import IndexStore

WIDTH, TRACKS = 32, 120


@pytest.fixture(scope="module")
def songs():
    return drawn_songs(WIDTH, TRACKS, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, songs):
    """120 songs of 32 s in shards of 50; some have no genre, two one title, one a path that is no text."""
    tags = [{"genre": None} if number % 10 == 4 else {} for number in range(TRACKS)]
    tags[7] |= {"title": "song 8"}
    tags[9] |= {"path": b"odd\xff\nname.flac", "title": None}
    folder = tmp_path_factory.mktemp("synthetic") / "index"
    return write_index(folder, songs.tokens, score_function(0.2), tags, shard_tracks=50)


@pytest.fixture(scope="module")
def index(folder):
    return TrackIndex.open(folder)


@pytest.fixture(scope="module")
def queries(songs):
    return list(songs.queries(8))


def found(results, error: float = 1e-4) -> list[tuple]:
    """Tracks and scores, to be compared with pairs of plain numbers."""
    return [(hit.track, pytest.approx(hit.score, abs=error)) for hit in results]


def pairs(results) -> list[tuple]:
    return [(hit.track, hit.score) for hit in results]


def test_the_exact_mode_is_the_score_of_every_track(index, queries):
    rows = torch.stack(queries).unsqueeze(1)
    scores = index.ranker.exact(_texts(rows), np.arange(TRACKS))
    for query, results in enumerate(index.search(vectors=queries, k=TRACKS, mode="exact")):
        order = np.argsort(-scores[:, query], kind="stable")
        assert [hit.track for hit in results] == order.tolist()
        assert all(hit.rescored and hit.certified for hit in results)
        assert [hit.rank for hit in results] == list(range(1, TRACKS + 1))


def _texts(rows: torch.Tensor) -> Texts:
    return Texts(rows, torch.eye(len(rows)))


def test_few_candidates_find_what_all_find(index, queries):
    exact = index.search(vectors=queries, mode="exact")
    fixed = index.search(vectors=queries, candidates=40)
    shares = [
        len({hit.track for hit in one} & {hit.track for hit in other}) / 10
        for one, other in zip(exact, fixed, strict=True)
    ]
    assert np.mean(shares) >= 0.99
    assert all(hit.rescored and not hit.certified for hit in fixed[0]) and fixed[0].num_rescored == 40
    assert pairs(fixed[0][:3]) == found(exact[0][:3])


def test_estimates_alone_say_that_they_are(index, queries):
    (results,) = index.search(vectors=queries[:1], candidates=0, moments=False)
    assert len(results) == 10 and not any(hit.rescored or hit.certified or hit.spans for hit in results)
    assert results.num_rescored == 0


def test_a_list_of_all_is_certified_in_any_mode(index, queries):
    (results,) = index.search(vectors=queries[:1], filters="genre = jazz")
    assert results.num_searched == 24 and all(hit.certified for hit in results)


def test_a_filter_ranks_those_that_match_as_if_there_were_no_others(index, queries):
    everything = index.search(vectors=queries, k=TRACKS, mode="exact")
    filtered = index.search(
        vectors=queries, k=5, filters="year >= 1990 and not genre = pop", min_seconds=1, candidates=100
    )
    for whole, some in zip(everything, filtered, strict=True):
        kept = [hit for hit in whole if hit.year >= 1990 and hit.genre not in (None, "pop")]
        assert pairs(some) == found(kept[:5])


def test_a_filter_that_nothing_matches_finds_nothing(index, queries):
    for filters in ({"filters": "genre = polka"}, {"min_seconds": 1e6}, {"max_seconds": 0.5}):
        (results,) = index.search(vectors=queries[:1], **filters)
        assert results == [] and results.notes == ("no track is what the filter asks for",)


def test_a_large_library_is_searched_in_three_steps(index, queries, monkeypatch):
    monkeypatch.setattr(scan_module, "kept_by_means", lambda function, num_tracks: 60)
    exact = index.search(vectors=queries, mode="exact")
    cascade = index.search(vectors=queries, candidates=60)
    shared = [
        len({hit.track for hit in one} & {hit.track for hit in other})
        for one, other in zip(exact, cascade, strict=True)
    ]
    assert np.mean(shared) > 9.5 and cascade[0].num_rescored == 60
    assert not any(hit.certified for hit in cascade[0])


def test_as_many_are_found_and_scored_as_are_asked_for(index, queries, monkeypatch):
    """Whatever the steps before would leave of a large library."""
    monkeypatch.setattr(scan_module, "kept_by_means", lambda function, num_tracks: 20)
    (results,) = index.search(vectors=queries[:1], k=50, candidates=0, moments=False, collapse=False)
    assert len(results) == 50
    (results,) = index.search(vectors=queries[:1], k=5, candidates=70, moments=False)
    assert results.num_rescored == 70


def test_a_batch_is_its_queries_one_by_one(index, queries):
    together = index.search(vectors=queries, curve=True)
    for one, query in zip(together, queries, strict=True):
        (alone,) = index.search(vectors=[query], curve=True)
        assert pairs(alone) == found(one)
        for hit, other in zip(alone, one, strict=True):
            assert hit.curve.scores == pytest.approx(other.curve.scores, abs=1e-5)
            assert [span.start for span in hit.spans] == [span.start for span in other.spans]


def test_many_threads_find_the_same(index, queries):
    expected = [found(one) for one in index.search(vectors=queries)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda one: index.search(vectors=[one])[0], queries * 4))
    assert [pairs(one) for one in answers] == expected * 4


def test_parts_of_a_library_are_merged_to_the_whole(tmp_path, songs, index, queries):
    parts = []
    for part in range(3):
        own = range(part, TRACKS, 3)
        tags = [{"path": f"{number:07d}.flac".encode(), "id": str(number)} for number in own]
        write_index(tmp_path / str(part), [songs.tokens[n] for n in own], score_function(0.2), tags)
        parts.append(TrackIndex.open(tmp_path / str(part)).search(vectors=queries, mode="exact"))
    for query, whole in enumerate(index.search(vectors=queries, mode="exact")):
        merged = merge_hits([part[query] for part in parts], 10)
        assert [round(hit.score, 4) for hit in merged] == [round(hit.score, 4) for hit in whole]
        assert [hit.rank for hit in merged] == list(range(1, 11))
        assert {hit.path for hit in merged} - {hit.path for hit in whole} <= {"0000009.flac"}


def test_more_like_a_track_is_not_the_track(index, songs):
    results = index.search(like="0000012.flac", k=TRACKS)
    assert len(results) == TRACKS - 1 and "0000012.flac" not in [hit.path for hit in results]
    assert [hit.track for hit in index.search(like="Song 12", k=3)] == [hit.track for hit in results[:3]]
    assert results[0].sentences == () and results[0].match is None


def test_more_like_a_moment_is_like_its_tokens(index, songs):
    moment = songs.tokens[12][50:75].mean(0)  # the 4 s around 0:10
    expected = found(index.search(vectors=[moment], k=6, mode="exact")[0], error=0.01)
    results = index.search(like="Song 12@0:10", k=5, mode="exact")
    assert pairs(results) == [one for one in expected if index.store.path(one[0]) != "0000012.flac"][:5]
    assert pairs(index.search(like="Song 12@10.0", k=5, mode="exact")) == found(results)


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ("Song 120", "no track 'Song 120'; did you mean"),
        ("nothing like it", "expected an id, path or title"),
        ("Song 8", "is the title of 2 tracks; name one by its path: '0000007.flac', '0000008.flac'"),
        ("Song 12@99", "this track has 32.1 s"),
    ],
)
def test_a_track_that_is_not_there_is_named(index, like, said):
    with pytest.raises(ValueError, match="^[^\n]*$") as raised:
        index.search(like=like)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "expected one of: a text, a track"),
        ({"vectors": [torch.ones(5)]}, r"\(5,\)|\(1, 5\)"),
        ({"vectors": [torch.zeros(WIDTH)]}, "zeros, NaN or infinity"),
        ({"vectors": [torch.full((WIDTH,), torch.nan)]}, "zeros, NaN or infinity"),
        ({"vectors": [torch.ones(WIDTH)], "k": 0}, "k of 1 or more"),
        ({"vectors": [torch.ones(WIDTH)], "mode": "fast"}, "expected one of fixed, calibrated, exact"),
        ({"vectors": [torch.ones(WIDTH)], "like": "Song 1"}, "expected one of"),
    ],
)
def test_what_cannot_be_searched_with_is_refused(index, arguments, said):
    with pytest.raises(ValueError, match=said):
        index.search(**arguments)


def test_vectors_of_any_length_and_of_several_sentences_are_one_query(index, queries):
    (results,) = index.search(vectors=[3 * torch.stack(queries[:2])])
    (pooled,) = index.search(vectors=[queries[0] + queries[1]])
    assert pairs(results) == found(pooled)  # the paper's score reads the direction of their mean
    assert results[0].spans and len(results[0].to_dict()["spans"]) == len(results[0].spans)


# ---- calibration


def test_the_quantile_is_exceeded_as_seldom_as_it_says():
    random = np.random.default_rng(0)
    missed = [random.normal() > conformal_quantile(random.normal(size=69), 0.05) for _ in range(4000)]
    assert 0.03 < np.mean(missed) < 0.06
    with pytest.raises(ValueError, match="expected 19 or more"):
        conformal_quantile(np.arange(10), 0.05)


def test_calibrated_is_certified_and_stops_early(index, queries):
    exact = index.search(vectors=queries, mode="exact")
    index, rows = TrackIndex(index.store), torch.stack(queries).unsqueeze(1)
    scores = torch.from_numpy(index.ranker.exact(_texts(rows), np.arange(TRACKS)))  # (A, B)
    above = scores - index.scan.segment_estimates(index.function, rows, np.arange(TRACKS))
    delta = above.gather(0, scores.topk(10, dim=0).indices).max().item()
    index.calibration = Calibration(10, 0.05, delta, TRACKS, [1.0])
    calibrated = index.search(vectors=queries, mode="calibrated")
    assert [pairs(one) for one in calibrated] == [found(one) for one in exact]
    assert all(hit.certified for one in calibrated for hit in one)
    assert max(one.num_rescored for one in calibrated) < TRACKS
    (some,) = index.search(vectors=queries[:1], mode="calibrated", filters="year > 1960")
    assert not any(hit.certified for hit in some) and "nothing is certified" in some.notes[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "the index is not calibrated"),
        (Calibration(5, 0.05, 0.1, TRACKS, [1.0]), "calibrated for 5 hits"),
        (Calibration(10, 0.05, None, TRACKS, [1.0]), "no bound was found"),
        (Calibration(10, 0.05, 0.1, TRACKS // 2, [1.0]), "held 60 tracks, and holds 120"),
    ],
)
def test_an_index_that_cannot_be_searched_calibrated_says_so(index, queries, content, said):
    index = TrackIndex(index.store)
    index.calibration = content
    (results,) = index.search(vectors=queries[:1], mode="calibrated", candidates=20)
    assert said in results.notes[0] and len(results) == 10 and not results[0].certified


def test_what_a_search_leaves_out_is_not_calibrated(indexed, monkeypatch):
    """The best that the first steps drop would be missed without a word."""
    index = TrackIndex.open(indexed)
    assert calibrate(index, k=3).delta is not None
    monkeypatch.setattr(scan_module, "kept_by_means", lambda function, num_tracks: 2)
    assert calibrate(index, k=3).delta is None


def test_an_index_is_calibrated_by_its_model(tmp_path, indexed, monkeypatch):
    folder = shutil.copytree(indexed, tmp_path / "index")
    monkeypatch.setattr(calibration_module, "CALIBRATED_K", 3)
    before = IndexStore.open(folder).manifest
    calibrated = calibrate(TrackIndex.open(folder), k=3)
    write_calibration(folder, calibrated)
    index = TrackIndex.open(folder)
    assert index.calibration == calibrated and calibrated.tracks == len(index) and len(calibrated.best) == 69
    assert {**index.store.manifest, "calibration": None, "checksum": 0} == {**before, "checksum": 0}
    results = index.search("slow piano", k=3, mode="calibrated")
    assert [hit.certified for hit in results] == [True] * 3 and 0 <= results[0].match <= 1
    index.calibration = replace(calibrated, best=[1e6])
    weak = index.search("slow piano", k=3)
    assert weak.matches_well is False and "nothing here matches well" in weak.notes
    index.calibration = replace(calibrated, best=[-1e6] + 19 * [1e6])  # one in twenty is lower
    assert index.search("slow piano", k=3).matches_well is True
    assert index.search("slow piano", not_text="drums").matches_well is None
