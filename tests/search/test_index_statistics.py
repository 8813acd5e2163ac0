"""`collap index --stats`: what an index holds, and how well it can be searched."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from libraries import command_process

from benchmarks.search_library import SyntheticSongs, draw_tracks, score_function, write_index
from collap.cli import main
from collap.search import ranking as ranking_module
from collap.search import statistics as statistics_module
from collap.search.index import TrackIndex
from collap.search.statistics import queries_of, statistics_of, told
from collap.search.store import IndexStore, named_files

WIDTH, TRACKS = 32, 90


def stats(capsys, *arguments: object) -> dict:
    assert main(["index", "--stats", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """90 songs, every third of them twice as long, of a model that is not there."""
    songs = SyntheticSongs(WIDTH, seed=5)
    tracks = [songs.track(200 if number % 3 else 400, number % 5 == 0) for number in range(TRACKS)]
    return write_index(tmp_path_factory.mktemp("synthetic") / "index", tracks, score_function(0.05), shard_tracks=40)


def test_a_library_is_counted(indexed, capsys):
    report = stats(capsys, "--index", indexed)
    store = IndexStore.open(indexed)
    assert report["contents"] == {
        "tracks": 12,
        "recordings": 12,
        "copies": 0,
        "broken": 0,
        "hours": pytest.approx(sum(store.tracks["seconds"].to_pylist()) / 3600),
    }
    sizes = report["bytes"]
    files = [path.stat().st_size for path, _, _ in named_files(indexed, store.manifest)]
    assert sizes["all"] == sum(files) == sum(size for name, size in sizes.items() if name != "all")
    tokens = sum(shard.vectors["tokens"].numel() for shard in store.shards.values())
    assert sizes["tokens"] > tokens and {"segments", "means", "tags", "digests"} <= sizes.keys()
    assert 0 <= sizes["rest"] < sizes["all"] / 3
    assert report["queries"] == {"kind": "built-in descriptions", "number": 69}
    assert report["recall"]["value"] == 1.0 and report["recall"]["scored"] == 12


def test_copies_and_broken_files_are_counted(tmp_path, library, model_folder, capsys):
    songs = sorted(library.rglob("*.flac"))
    for name in ("one", "two"):
        shutil.copy(songs[0], tmp_path / f"{name}.flac")
    (tmp_path / "broken.flac").write_bytes(b"no music")
    folder = tmp_path / "music.index"
    assert main(["index", *map(str, (tmp_path, "--model", model_folder, "--index", folder))]) == 0
    capsys.readouterr()
    report = stats(capsys, "--index", folder)
    assert {name: report["contents"][name] for name in ("tracks", "recordings", "copies", "broken")} == {
        "tracks": 2,
        "recordings": 1,
        "copies": 1,
        "broken": 1,
    }
    assert "recall" not in report and told(report)[-1] == "too few tracks to say how well they are found"


def test_without_the_model_segments_of_tracks_are_asked(folder):
    index = TrackIndex.open(folder)
    asked = queries_of(index)
    assert asked.kind.startswith("segments of its tracks, as there is no model (") and "\n" not in asked.kind
    assert len(set(asked.left_out.tolist())) == 64 == asked.texts.signs.shape[1]


def test_recall_is_that_of_searches(folder, monkeypatch):
    """Of few candidates some are missed: the share is that of searches by the same vectors, without their tracks."""
    monkeypatch.setattr(ranking_module, "most_candidates", lambda function, num_tracks: 11)
    index = TrackIndex.open(folder)
    report = statistics_of(index)
    asked, shares = queries_of(index), []
    for own, vector in zip(asked.left_out.tolist(), asked.texts.embeds[:, 0], strict=True):
        exact, fixed = (
            [hit.track for hit in index.search(vectors=[vector], k=11, candidates=11, mode=mode, moments=False)[0]]
            for mode in ("exact", "fixed")
        )
        exact, fixed = ([track for track in one if track != own][:10] for one in (exact, fixed))
        shares.append(len({*exact} & {*fixed}) / 10)
    assert 0.5 < np.mean(shares) < 1
    assert report["recall"]["value"] == pytest.approx(np.mean(shares))
    assert report["recall"]["low"] < report["recall"]["value"] < report["recall"]["high"]


def test_a_score_that_depends_on_the_length_is_seen(tmp_path, folder):
    def bias(function):
        index = TrackIndex.open(folder)
        index.function = index.ranker.function = function
        return statistics_of(index)["length_bias"]

    fair = bias(score_function())
    assert fair["low"] < 0 < fair["high"]
    assert bias(replace(score_function(), score_reduction="printed"))["high"] < -0.1  # few frames: r^T H / W
    songs = SyntheticSongs(WIDTH)
    index = TrackIndex.open(write_index(tmp_path / "equal", draw_tracks(songs, 12, 100), score_function()))
    report = statistics_of(index)
    assert report["length_bias"] is None and any("all tracks are equally long" in line for line in told(report))


def test_hubs_are_named(tmp_path):
    songs = SyntheticSongs(WIDTH)
    tracks = list(draw_tracks(songs, 80, 100))
    centre = torch.nn.functional.normalize(sum(track.mean(0) for track in tracks), dim=-1)
    tracks[17] = centre.expand(100, WIDTH).contiguous()  # near to what all have in common
    report = statistics_of(TrackIndex.open(write_index(tmp_path / "index", tracks, score_function())))
    first = report["hubs"]["tracks"][0]
    assert first["path"] == "0000017.flac" and first["share"] > 0.3
    assert 100 * first["share"] == pytest.approx(report["hubs"]["largest"]["value"])
    assert report["hubs"]["skewness"]["value"] > report["hubs"]["skewness"]["chance"]


def test_people_read_lines(folder, capsys):
    assert main(["index", "--stats", "--index", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("90 tracks of 90 recordings, ") and sum("of queries" in line for line in lines) == 5
    assert any(line.startswith("recall@10 against scoring all: 1.000 (1.000 to 1.000)") for line in lines)


def test_the_machine_stays_usable_meanwhile(folder, tmp_path):
    def before() -> None:
        def measured(*arguments, **settings):
            print(f"{os.nice(0)} {torch.get_num_threads()}")
            return {"contents": {}}

        statistics_module.statistics_of = measured

    log = tmp_path / "log"
    more = ["--stats", "--json", "--index", folder, "--nice", 7, "--threads", 3]
    process = command_process(log, "index", *more, before=before)
    process.join()
    assert process.exitcode == 0 and log.read_text().splitlines()[0] == f"{os.nice(0) + 7} 3"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json"], "--json is what --stats prints"),
        (["--stats", "/"], "--verify, --merge and --stats read no library"),
        (["--stats", "--verify"], "--verify and --stats are runs of their own"),
        (["--stats", "--calibrate"], "--stats and --calibrate are runs of their own"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, capsys, arguments, said):
    wanted = [] if "--stats" in arguments else ["--verify"]
    assert main(["index", *wanted, *arguments, "--index", str(folder)]) != 0
    assert said in capsys.readouterr().err
