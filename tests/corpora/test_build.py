"""`collap corpus build`: from tracks and hostile files to a data set that trains, whatever kills it on the way."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import runs
import soundfile

from collap.cli import main, run_command
from collap.corpora.state import State
from collap.data.guarded_reading import load_audio
from collap.data.rows import audio_source
from collap.data.shares import Shard, parse_shard
from collap.data.sources import open_dataset

LIMITS = ["--min_seconds", "10", "--max_seconds", "25"]
ARTISTS = ("Ann", "ann ", "Bob", "Cleo", "Dan", "Eve", "Fay", "Gus")  # two rows spell one artist differently
COPIES = ("duplicate", "near_duplicate")
OPTIONS = [*LIMITS, "--num_workers", "1", "--validation", "0.3"]


@pytest.fixture(scope="module")
def truth(corpus) -> dict[str, dict]:
    """What rendering says of each song."""
    lines = (corpus / "train" / "metadata.jsonl").read_text().splitlines()
    return {row["song_id"]: row for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def listed(corpus, truth, tmp_path_factory) -> Path:
    """A list of eight songs and of what must not be kept of the rest."""
    folder = tmp_path_factory.mktemp("tracks")
    rate, rows = 16000, []
    for artist, name in zip(ARTISTS, truth, strict=True):
        (folder / f"{name}.flac").symlink_to(corpus / "train" / f"{name}.flac")
        rows.append({"audio": f"{name}.flac", "artist": artist, "licence": "CC BY 4.0", "genre": "pop"})
    songs = [soundfile.read(folder / row["audio"], dtype="float32")[0] for row in rows]
    soundfile.write(folder / "again.mp3", songs[2] * 0.7, rate, format="MP3")
    soundfile.write(folder / "silent.wav", np.zeros(15 * rate, np.float32), rate)
    soundfile.write(folder / "short.flac", songs[0][: 5 * rate], rate)
    soundfile.write(folder / "long.flac", np.concatenate([songs[3][::-1], songs[4][::-1]])[: 30 * rate], rate)
    (folder / "text.mp3").write_text("this is no song\n" * 500)
    (folder / "broken.flac").write_bytes((folder / rows[5]["audio"]).read_bytes()[:60] + b"\0" * 5000)
    (folder / "copy.flac").write_bytes((folder / rows[1]["audio"]).read_bytes())
    hostile = ("again.mp3", "silent.wav", "short.flac", "long.flac", "text.mp3", "broken.flac", "copy.flac", "gone.mp3")
    rows += [{"audio": name} for name in hostile]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


def build(listed: Path, out: Path, *more: str) -> dict:
    """Run the command in this process; return the report."""
    assert run_command("corpus build", [str(listed), str(out), *OPTIONS, *more]) == 0
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def built(listed, tmp_path_factory) -> tuple[Path, dict]:
    """The data set, made by two processes."""
    out = tmp_path_factory.mktemp("built") / "set"
    return out, build(listed, out, "--num_workers", "2")


def hashes(out: Path) -> dict[str, str]:
    """Digest of every file that is written but the state."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and "work" not in path.relative_to(out).parts]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(out: Path) -> list[dict]:
    return [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_number_of_the_report_is_true(built, truth):
    out, report = built
    seconds = {name: row["seconds"] for name, row in truth.items()} | {"long": 25.0}
    assert report["drop_counts"] == {
        "missing": 1,
        "broken": 2,
        "too_short": 1,
        "silent": 1,
        "duplicate": 1,
        "near_duplicate": 1,
    }
    assert {one["id"] for one in report["dropped"]} == {"again", "silent", "short", "text", "broken", "copy", "gone"}
    (again,) = (one for one in report["dropped"] if one["id"] == "again")
    assert again["reason"].startswith(f"near_duplicate: of {list(truth)[2]}") and "row 8" in again["origin"]
    assert (report["listed"], report["kept"]) == (16, 9)
    assert report["hours"] == pytest.approx(sum(seconds.values()) / 3600, abs=1e-4)
    assert report["licences"] == {"CC BY 4.0": 8, "not stated": 1}
    assert report["boundaries"] == {"audio": 9}
    rows = rows_of(out)
    assert {row["song_id"]: row["seconds"] for row in rows} == pytest.approx(seconds, abs=1e-3)
    texts = [text for row in rows for text in row["text"]]
    assert report["captions"]["captions"] == len(texts) == report["table_one"]["pairs"] == 9
    words = sum(len(text.split()) for text in texts) / 9
    assert report["captions"]["mean_words"] == report["table_one"]["mean_words"] == pytest.approx(words, abs=0.01)
    assert report["captions"]["mean_sections"] == pytest.approx(sum(len(row["sections"]) for row in rows) / 9, abs=0.01)
    assert report["captions"]["cover_the_track"] == 1.0 and report["captions"]["contradicting_dropped"] == 0
    counted = {split: len(open_dataset(str(out), split)) for split in ("train", "validation")}
    assert {split: one["songs"] for split, one in report["splits"].items()} == counted
    assert report["paper"]["hours"] == 4109.5 and report["captioners"]["template"]["tracks"] == 9


def test_what_is_measured_is_what_was_rendered(built, truth):
    rows = {row["song_id"]: row for row in rows_of(built[0])}
    tempi = {name: json.loads(rows[name]["measures"])["tempo"] for name in truth}
    known = {name: tempo for name, tempo in tempi.items() if tempo}
    right = [
        any(abs(tempo / (ratio * truth[name]["tempo_bpm"]) - 1) < 0.06 for ratio in (0.5, 1, 2))
        for name, tempo in known.items()
    ]
    assert len(known) >= 4 and sum(right) > len(known) / 2  # of 12 to 20 s; longer ones are told better


def test_the_audio_is_that_of_the_tracks(built, listed):
    rows = {row["song_id"]: row for row in rows_of(built[0])}
    song = next(name for name in rows if name != "long")
    assert rows[song]["audio"]["bytes"] == (listed.parent / f"{song}.flac").read_bytes()
    assert (rows["long"]["start"], rows["long"]["end"]) == (0.0, 25.0)
    whole = load_audio(str(listed.parent / "long.flac"))
    np.testing.assert_allclose(load_audio(rows["long"]["audio"]["bytes"]), whole[: 25 * 16000], atol=2 / 32768)


def test_load_dataset_takes_the_folder(built):
    from datasets import Audio, load_dataset

    songs = load_dataset(str(built[0]))
    assert {split: len(rows) for split, rows in songs.items()} == {
        split: one["songs"] for split, one in built[1]["splits"].items()
    }
    assert isinstance(songs["train"].features["audio"], Audio)
    streamed = load_dataset(str(built[0]), split="train", streaming=True).cast_column("audio", Audio(decode=False))
    assert next(iter(streamed))["song_id"] == songs["train"]["song_id"][0]


def test_train_trains_on_it(built, backbones, tmp_path):
    more = {"sections_column": "sections", "crop_sections": 2, "text_column": "text", "epochs": 1, "batch_size": 3}
    done = runs.train(tmp_path, runs.settings(built[0], backbones, **more))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(runs.evaluations(tmp_path / "run")) == 1


def test_no_artist_is_in_two_splits(built):
    rows = {
        split: pq.read_table(sorted((built[0] / "data").glob(f"{split}-*"))[0]).to_pylist()
        for split in ("train", "validation")
    }
    artists = [{(row["artist"] or row["song_id"]).strip().lower() for row in one} for one in rows.values()]
    assert all(artists) and not artists[0] & artists[1]
    assert sum((row["artist"] or "").strip().lower() == "ann" for one in rows.values() for row in one) == 2


def start(arguments: list[str], log: str | Path = os.devnull) -> multiprocessing.Process:
    """A process of the command, forked from this one."""
    process = multiprocessing.get_context("fork").Process(target=_build, args=(arguments, log))
    process.start()
    return process


def _build(arguments: list[str], log: str | Path) -> None:
    with open(log, "w", buffering=1) as sys.stderr, contextlib.redirect_stdout(sys.stderr):
        code = main(["corpus", "build", *arguments])
    os._exit(code)


def wait_for(out: Path, count: int, process: multiprocessing.Process) -> None:
    """Wait until so many tracks are done."""
    while process.is_alive() and len(list((out / "work" / "tracks").glob("*.json"))) < count:
        time.sleep(0.002)


def test_a_build_that_is_killed_goes_on_to_the_same_bytes(built, listed, tmp_path):
    out, draw = tmp_path / "set", random.Random(0)
    arguments = [str(listed), str(out), *OPTIONS]
    for count in (1, 5, 9, 16):  # tracks that are done when the kill comes
        process = start(arguments)
        wait_for(out, count, process)
        time.sleep(draw.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    build(listed, out)
    expected = hashes(built[0])
    assert hashes(out) == expected and len(expected) >= 5


def test_ctrl_c_is_one_line(listed, tmp_path):
    process = start([str(listed), str(tmp_path / "set"), *OPTIONS], tmp_path / "log")
    wait_for(tmp_path / "set", 3, process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    lines = [line for line in (tmp_path / "log").read_text().replace("\r", "\n").splitlines() if line.strip()]
    assert process.exitcode == 130 and lines[-1] == "error: interrupted" and "Traceback" not in "".join(lines)


def test_parts_of_several_machines_make_the_same_bytes(built, listed, tmp_path, capsys):
    one, other = tmp_path / "one" / "set", tmp_path / "other" / "set"
    for part, out in (("0/2", one), ("1/2", other)):
        assert run_command("corpus build", [str(listed), str(out), *OPTIONS, "--shard", part]) == 0
        assert "without --shard" in capsys.readouterr().out and not (out / "data").exists()
    done = [{path.name for path in (out / "work" / "tracks").iterdir()} for out in (one, other)]
    assert len(done[0]) == len(done[1]) == 8 and not done[0] & done[1]
    for path in (other / "work").rglob("*.*"):
        path.rename(one / "work" / path.relative_to(other / "work"))
    build(listed, one)
    assert hashes(one) == hashes(built[0])


def test_processes_of_accelerate_share_the_tracks_and_make_the_same_bytes(built, listed, tmp_path):
    out, log = tmp_path / "set", tmp_path / "log"
    log.touch()
    command = ["corpus", "build", str(listed), str(out), *OPTIONS]
    processes = runs.start_processes(command, log, 2, script=main)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0], log.read_text()[-2000:]
    heard = re.findall(r"heard ([\d.]+) hours", log.read_text())
    whole = sum(json.loads(path.read_text())["measures"].get("heard_seconds", 0) for path in out.glob("work/tracks/*"))
    assert len(heard) == 2 and sum(map(float, heard)) == pytest.approx(whole / 3600, abs=0.011)
    assert min(map(float, heard)) > 0 and hashes(out) == hashes(built[0])


def test_references_are_links_that_train_reads(listed, tmp_path):
    out = tmp_path / "set"
    build(listed, out, "--audio", "reference")
    songs = {row["song_id"]: row for row in open_dataset(str(out), "train")}
    songs |= {row["song_id"]: row for row in open_dataset(str(out), "validation")}
    for name, row in songs.items():
        samples = load_audio(audio_source(row["audio"]))
        np.testing.assert_array_equal(samples, load_audio(str(listed.parent / f"{name}.flac"))[: len(samples)])
        assert len(samples) / 16000 == pytest.approx(row["seconds"], abs=1e-3)
    assert sum(path.stat().st_size for path in (out / "data").glob("*.parquet")) < 200_000


OWN = """
from collap.corpora.tracks import Caption, Section

class Own:
    name, licence = "own@1", "cc-by-nc-4.0"
    def describe(self, tracks, samples):
        with open(r"%s", "a") as file:
            file.write(" ".join(track.id for track in tracks) + "\\n")
        return [self.one(track, len(sound) / 16000) for track, sound in zip(tracks, samples)]
    def one(self, track, seconds):
        sections = [Section(0, 2 * seconds if track.artist == "Bob" else seconds, "verse", "It is the " + track.id)]
        return Caption(f"A song at 3{len(track.id)} BPM.", sections, self.name, self.licence)

def load():
    return Own()
"""


def test_own_captions_are_scored_and_checked(listed, model_folder, tmp_path):
    (tmp_path / "own.py").write_text(OWN % (tmp_path / "calls"))
    more = [
        "--captioner",
        "template",
        str(tmp_path / "own.py"),
        "--score_model",
        str(model_folder),
        "--drop_worst",
        "0.2",
    ]
    report = build(listed, tmp_path / "set", *more)
    assert report["captioners"]["own@1"] == {
        "licence": "cc-by-nc-4.0",
        "trained_on": "not known",
        "tracks": sum("own@1" in row["captioner"] for row in rows_of(tmp_path / "set")),
        "commercial_use": False,
    }
    assert report["captions"]["contradicting_dropped"] == 1  # Bob's, which ends after the song
    assert report["captions"]["untrue"]["tempo"] >= 1
    rows = rows_of(tmp_path / "set")
    kept = {
        (row["song_id"], name): score
        for row in rows
        for name, score in zip(row["captioner"], row["score"], strict=True)
    }
    assert {name for _, name in kept} == {"template", "own@1"} and ("train-0003", "own@1") not in kept
    states = [json.loads(path.read_text()) for path in (tmp_path / "set" / "work" / "tracks").glob("*.json")]
    scores = {(one["id"], said["captioner"]): said["score"] for one in states for said in one["captions"]}
    dropped = {key for key, score in scores.items() if score < report["least_score"]}
    assert dropped and not dropped & set(kept) and all(scores[key] == score for key, score in kept.items())
    heard = [one["id"] for one in report["dropped"] if one["reason"].partition(":")[0] in ("no_caption", *COPIES)]
    calls = (tmp_path / "calls").read_text().split()
    assert sorted(calls) == sorted([*(row["song_id"] for row in rows), *heard])  # once each, none that was dropped


def test_a_list_that_was_changed_is_heard_anew_where_it_was(listed, built, tmp_path):
    rows = [json.loads(line) for line in listed.read_text().splitlines()][:3]
    changed = listed.with_name("changed.jsonl")
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(changed, tmp_path / "set")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set" / "work" / "tracks").iterdir()}
    rows[1]["genre"] = "ambient"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(changed, tmp_path / "set")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set" / "work" / "tracks").iterdir()}
    name = rows[1]["audio"].removesuffix(".flac")
    assert {one for one in after if after[one] != before[one]} == {f"{name}.json"}
    (row,) = (row for row in rows_of(tmp_path / "set") if row["song_id"] == name)
    assert json.loads(row["tags"])["genre"] == "ambient" and "ambient" in row["text"][0]


def test_a_state_of_other_settings_is_refused(tmp_path):
    State(tmp_path / "work", {"seed": 0, "captioner": ["template"]})
    State(tmp_path / "work", {"seed": 0, "captioner": ["template"]})
    with pytest.raises(ValueError, match=r"other settings \(seed was 0, is 1\); delete it, or name another folder"):
        State(tmp_path / "work", {"seed": 1, "captioner": ["template"]})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shard", "2/2"], "--shard 2/2: expected i/n"),
        (["--validation", "1"], "--validation 1: expected a share"),
        (["--drop_worst", "0.1"], "--score_model and --drop_worst go together"),
        (["--longer", "cut"], "longer is 'cut'"),
        (["--min_seconds", "100"], "expected the first above 0"),
        (["--captioner", "no/such.py"], "no/such.py: no such file"),
    ],
)
def test_a_mistake_is_one_line(listed, tmp_path, capsys, more, said):
    assert run_command("corpus build", [str(listed), str(tmp_path / "set"), *OPTIONS, *more]) == 1
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1


def test_a_folder_of_others_is_left_alone(listed, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("x")
    assert run_command("corpus build", [str(listed), str(tmp_path), *OPTIONS]) == 1
    assert "was not made by this command" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1


def test_a_list_is_cut_into_parts():
    assert parse_shard(None) == Shard(0, 1) and parse_shard("1/3") == Shard(1, 3)
    parts = [Shard(1, 3).part(rank, 2) for rank in (0, 1)]
    owners = [[part for part in [Shard(0, 3), *parts, Shard(2, 3)] if part.has(block)] for block in range(60)]
    assert all(len(one) == 1 for one in owners)
