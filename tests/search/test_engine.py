"""Candidates from a vector database: the same scores as without it, and never those of another index."""

import json
import shutil
import sys

import pytest
from libraries import drawn_songs
from libraries import index as collap_index

from benchmarks.search_library import score_function, write_index
from collap.cli import main
from collap.search import engine as engine_module
from collap.search.engine import connect, fill
from collap.search.index import TrackIndex
from collap.search.store import IndexStore

WIDTH, TRACKS = 32, 120


@pytest.fixture(scope="module")
def songs():
    return drawn_songs(WIDTH, TRACKS, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, songs):
    return write_index(tmp_path_factory.mktemp("engine") / "index", songs.tokens, score_function(0.2), shard_tracks=50)


def fill_from(uri, folder) -> int:
    store = IndexStore.open(folder)
    return fill(uri, store.space.id, {name: shard.vectors for name, shard in store.shards.items()})


@pytest.fixture(scope="module")
def filled(tmp_path_factory, folder):
    uri = tmp_path_factory.mktemp("lance") / "music.lance"
    assert fill_from(uri, folder) == 3 and fill_from(uri, folder) == 0
    return uri


def counts(uri) -> list[int]:
    database = connect(uri)
    return [database.open_table(name).count_rows() for name in ("means", "segments", "shards")]


@pytest.mark.parametrize("is_approximate", [False, True])
def test_the_best_tracks_are_proposed_and_scored_as_without_it(
    folder, filled, songs, tmp_path, monkeypatch, is_approximate
):
    monkeypatch.setattr(engine_module, "PROPOSED", 20)
    if is_approximate:
        monkeypatch.setattr(engine_module, "MIN_INDEXED", 100)
        filled = shutil.copytree(filled, tmp_path / "approximate")
        fill_from(filled, folder)
        assert connect(filled).open_table("means").list_indices()
    queries = list(songs.queries(16))
    proposed = TrackIndex.open(folder, engine=filled).search(vectors=queries, moments=False)
    exact = TrackIndex.open(folder).search(vectors=queries, mode="exact", moments=False)
    assert all(results.num_rescored < TRACKS for results in proposed)  # others were left out
    right = 0
    for own, best in zip(proposed, exact, strict=True):
        scores = {hit.track: hit.score for hit in best}
        right += len({hit.track for hit in own} & {*scores})
        assert all(hit.score == pytest.approx(scores[hit.track], abs=1e-4) for hit in own if hit.track in scores)
    assert right >= 0.97 * 10 * len(queries)


def test_tracks_that_a_filter_allows_are_all_looked_at(folder, filled, songs):
    query, asked = list(songs.queries(1)), {"filters": "genre = jazz", "k": 30, "moments": False}
    own, scanned = (TrackIndex.open(folder, engine=one).search(vectors=query, **asked)[0] for one in (filled, None))
    assert [hit.track for hit in own] == [hit.track for hit in scanned] and len(own) > 20
    assert own.notes == ("the engine knows of no filter: this was searched without it",) and not scanned.notes


def test_what_an_engine_leaves_out_is_not_certified(folder, filled, songs):
    asked = {"mode": "calibrated", "candidates": 20}
    (results,) = TrackIndex.open(folder, engine=filled).search(vectors=list(songs.queries(1)), **asked)
    assert "not calibrated" in results.notes[0] and not results[0].certified


def test_a_database_of_another_state_is_refused_until_it_is_filled_again(folder, filled, songs, tmp_path):
    uri = shutil.copytree(filled, tmp_path / "copy")
    fewer = write_index(tmp_path / "fewer", songs.tokens[:100], score_function(0.2), shard_tracks=50)
    with pytest.raises(ValueError, match=r"copy: is of another state of the index; bring it up to date with"):
        TrackIndex.open(fewer, engine=uri)
    assert fill_from(uri, fewer) == 0 and counts(uri)[::2] == [100, 2]
    assert len(TrackIndex.open(fewer, engine=uri).search(vectors=list(songs.queries(1)))[0]) == 10
    assert fill_from(uri, folder) == 1 and counts(uri) == counts(filled)


def test_a_run_that_was_killed_leaves_nothing_twice(folder, filled, tmp_path):
    uri = shutil.copytree(filled, tmp_path / "copy")
    names = connect(uri).open_table("shards")
    names.delete(f"name = '{names.to_arrow()['name'][1].as_py()}'")  # its vectors were added, its name was not
    with pytest.raises(ValueError, match="another state"):
        TrackIndex.open(folder, engine=uri)
    assert fill_from(uri, folder) == 1 and counts(uri) == counts(filled)


def test_a_database_of_another_space_or_of_none_is_refused(folder, filled, tmp_path):
    with pytest.raises(ValueError, match="holds vectors of another space"):
        fill(filled, "0" * 32, {})
    with pytest.raises(ValueError, match="holds no tables of collap; fill it with collap index --engine"):
        TrackIndex.open(folder, engine=tmp_path / "nothing")


def test_a_missing_package_is_named(indexed, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    assert main(["search", "a", "--index", str(indexed), "--engine", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: collap search needs lancedb: pip install lancedb\n"


def test_the_commands_fill_and_use_it(indexed, tmp_path, capsys):
    uri = tmp_path / "music.lance"
    assert collap_index("--index", indexed, "--engine", uri) == 0
    assert "3 shards, 3 of them new" in capsys.readouterr().out
    lists = []
    for engine in ((), ("--engine", str(uri))):
        assert main(["search", "a soft piano alone", "--index", str(indexed), *engine, "--json"]) == 0
        lists.append(capsys.readouterr().out)
    assert lists[0] == lists[1]
    assert main(["search", "a", "--index", str(indexed), "--engine", str(tmp_path / "none")]) == 1
    assert "holds no tables" in capsys.readouterr().err


def test_an_index_is_verified_with_its_database(indexed, tmp_path, capsys):
    def said(*options: object) -> tuple[int, str]:
        code, printed = collap_index("--index", indexed, "--engine", uri, *options), capsys.readouterr()
        return code, printed.out + printed.err

    uri = tmp_path / "music.lance"
    code, lines = said("--verify")
    assert code == 1 and "all as they were written" in lines and "holds no tables of collap; fill it with" in lines
    assert not uri.exists() or not list(uri.iterdir())  # it is looked at, and not filled
    said()
    code, lines = said("--verify")
    assert code == 0 and lines.splitlines()[1] == f"{uri}: holds all vectors of its 3 shards"
    connect(uri).open_table("segments").delete("row = 1")
    code, lines = said("--verify")
    assert code == 1 and "its table segments has" in lines and "remove it, and fill it with" in lines


def test_recall_through_the_database_is_told_beside_that_of_the_scan(folder, filled, capsys, monkeypatch):
    monkeypatch.setattr(engine_module, "PROPOSED", 1)
    assert collap_index("--stats", "--json", "--index", folder, "--engine", filled) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["engine_recall"]["value"] < 0.9 < report["recall"]["value"]
    assert collap_index("--stats", "--index", folder, "--engine", filled) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"the same through the engine: {report['engine_recall']['value']:.3f}" in "\n".join(lines)
