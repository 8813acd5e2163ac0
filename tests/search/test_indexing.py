"""`collap index`: what is in an index is what the model makes of every file, and only what has changed is read."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import soundfile
import torch
from libraries import index, tags_of
from other_models import tiny_clap_folder, tiny_pe_audio_folder

from benchmarks.library import files_of, write_tags
from collap.evaluation.embedders import CoLLAPEmbedder
from collap.evaluation.load_embedders import load_embedder
from collap.search import updating
from collap.search.quantize import dequantize_rows
from collap.search.store import IndexStore
from processing import load_audio


@pytest.fixture
def own(tmp_path, library, indexed):
    """A library and its index, to be changed: times are those of the originals, so nothing is to be read."""
    shutil.copytree(library, tmp_path / "music")
    shutil.copytree(indexed, tmp_path / "index")
    assert index(tmp_path / "music", "--index", tmp_path / "index") == 0
    return tmp_path / "music", tmp_path / "index"


@pytest.fixture
def no_model(monkeypatch):
    """Fail where a model is loaded."""
    monkeypatch.setattr(updating, "load_searched", lambda *arguments: pytest.fail("a model is loaded"))


def rows(folder: Path) -> dict[str, dict]:
    store = IndexStore.open(folder)
    return {os.fsdecode(row["path"]): row for row in store.tracks.to_pylist()}


def test_an_index_holds_what_the_model_makes_of_every_file(library, indexed, model_folder):
    store, embedder = IndexStore.open(indexed), load_embedder(str(model_folder))
    assert store.library == library and len(store.tracks) == 12 and store.generation == 3
    assert [len(shard.rows) for shard in store.shards.values()].count(5) == 2
    shards, places = store.places
    for track, row in enumerate(store.tracks.to_pylist()):
        path = library / store.path(track)
        status, tags = path.stat(), tags_of(int(path.name[:2]))
        assert (row["size"], row["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
        assert (row["title"], row["artist"], row["year"]) == (tags["title"], tags["artist"], int(tags["date"][:4]))
        samples = load_audio(path, 16_000)
        assert row["seconds"] == len(samples) / 16_000
        vectors, expected = store.vectors(track), embedder.embed_audio(samples)
        found = dequantize_rows(vectors["tokens"], vectors["token_scales"])
        assert (found - expected).abs().max() < 0.005
        assert torch.equal(
            vectors["means"][0], list(store.shards.values())[shards[track]].vectors["means"][places[track]]
        )
        assert int(vectors["segment_tokens"].sum()) == len(expected)
    assert pc.all(pc.equal(store.tracks["path"], store.tracks.sort_by("path")["path"])).as_py()


def test_an_unchanged_library_is_not_read(own, no_model, monkeypatch, capsys):
    before = files_of(own[1])
    monkeypatch.setattr(updating, "file_digest", lambda path: pytest.fail(f"{path} is read"))
    assert index(own[0], "--index", own[1]) == 0
    assert files_of(own[1]) == before and "nothing has changed" in capsys.readouterr().out


def test_files_that_were_moved_copied_or_touched_are_not_embedded_again(own, no_model, capsys):
    music, folder = own
    before, (moved, copied, touched, gone, *_) = rows(folder), sorted(music.rglob("*.*"))
    names = [str(path.relative_to(music)) for path in (moved, copied, touched, gone)]
    (music / "new place").mkdir()
    moved.rename(music / "new place" / moved.name)
    shutil.copyfile(copied, music / "copy.flac")
    os.utime(touched, ns=(1, 1))
    gone.unlink()
    assert index(music, "--index", folder) == 0
    found = rows(folder)
    assert "; 1 moved, 1 copied, 1 touched, 1 removed\n" in capsys.readouterr().out and len(found) == 12
    for new, old in ((f"new place/{moved.name}", names[0]), ("copy.flac", names[1]), (names[2], names[2])):
        told = ("digest", "title", "artist", "album", "year", "genre", "seconds", "shard", "row")
        assert {name: found[new][name] for name in told} == {name: before[old][name] for name in told}
        assert (found[new]["id"] == before[old]["id"]) == (new == old)
    assert names[0] not in found and names[3] not in found and found[names[2]]["mtime_ns"] == 1


def test_a_file_counts_as_moved_once_and_as_found_again_if_it_was_gone(own, no_model, tmp_path, capsys):
    music, folder = own
    first, second, third, *_ = sorted(music.rglob("*.*"))
    shutil.move(first, tmp_path / first.name)
    second.rename(music / f"a{second.suffix}")
    shutil.copy2(music / f"a{second.suffix}", music / f"b{second.suffix}")  # of one gone file two are there
    third.write_bytes((tmp_path / first.name).read_bytes())  # the first has taken its place, and is gone
    assert index(music, "--index", folder) == 0
    assert "; 2 moved, 1 copied\n" in capsys.readouterr().out
    content = (music / f"a{second.suffix}").read_bytes()
    for name in "ab":
        (music / f"{name}{second.suffix}").unlink()
    assert index(music, "--index", folder) == 0
    assert "; 2 removed\n" in capsys.readouterr().out
    second.write_bytes(content)
    assert index(music, "--index", folder) == 0
    assert "; 1 found again\n" in capsys.readouterr().out


def test_a_changed_file_replaces_its_old_entry(own, capsys):
    music, folder = own
    before, path = rows(folder), next(music.rglob("*.flac"))
    name = str(path.relative_to(music))
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[: 6 * rate], rate)
    assert index(music, "--index", folder) == 0
    found, store = rows(folder), IndexStore.open(folder)
    assert "1 embedded\n" in capsys.readouterr().out and len(found) == 12
    assert found[name]["seconds"] == 6.0 and found[name]["digest"] != before[name]["digest"]
    assert len(store.vectors(list(found).index(name))["tokens"]) == 36
    assert {**found, name: None} == {**before, name: None}


def test_a_file_that_was_tagged_anew_is_not_embedded_again(own, monkeypatch, capsys):
    music, folder = own
    monkeypatch.setattr(updating, "embed_recording", lambda *arguments: pytest.fail("embedded"))
    before = rows(folder)
    for suffix in ("flac", "mp3", "ogg", "m4a"):
        path = next(music.rglob(f"*.{suffix}"))
        write_tags(path, {"title": "Renamed", "artist": "Someone", "date": "1900"})
        assert index(music, "--index", folder) == 0
        assert "1 tagged anew" in capsys.readouterr().out
        found, old = (one[str(path.relative_to(music))] for one in (rows(folder), before))
        assert (found["title"], found["year"]) == ("Renamed", 1900)
        assert (found["shard"], found["row"]) == (old["shard"], old["row"]) and found["digest"] != old["digest"]


def test_broken_files_are_listed_once_and_remembered_until_they_change(own, monkeypatch, capsys):
    music, folder = own
    whole = next(music.rglob("*.flac"))
    (music / "text.mp3").write_text("no music")
    (music / "cut.flac").write_bytes(whole.read_bytes()[:20_000])
    (music / os.fsdecode(b"empty \xff.wav")).touch()
    was = next(music.rglob("*.ogg"))
    was.write_bytes(b"OggS" + b"\0" * 500)
    assert index(music, "--index", folder) == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("broken: ")]
    assert len(lines) == 4 and str(music) not in "".join(lines)
    assert any(line.startswith("broken: 'empty \\udcff.wav': ") and "empty" in line for line in lines)
    assert any(line.startswith("broken: text.mp3: not an audio file") for line in lines)
    assert str(was.relative_to(music)) not in rows(folder) and len(rows(folder)) == 11

    monkeypatch.setattr(updating, "file_digest", lambda path: pytest.fail(f"{path} is read"))
    assert index(music, "--index", folder) == 0
    assert "4 files are broken as before" in capsys.readouterr().err
    monkeypatch.undo()
    shutil.copyfile(whole, music / "cut.flac")
    assert index(music, "--index", folder) == 0
    assert "1 copied\n" in capsys.readouterr().out and "cut.flac" in rows(folder)
    assert index(music, "--index", folder, "--retry_broken") == 0
    assert capsys.readouterr().err.count("broken: ") == 3


def test_a_file_that_kills_its_decoder_is_a_broken_file(deadly, own, capsys):
    music, folder = own
    shutil.copyfile(next(music.rglob("*.mp3")), music / "kills.mp3")
    with (music / "kills.mp3").open("ab") as file:
        file.write(b"\0")
    assert index(music, "--index", folder) == 0
    assert "broken: kills.mp3: the process that decoded it was killed by SIGSEGV" in capsys.readouterr().err


def test_songs_the_model_makes_no_numbers_of_are_broken(own, monkeypatch, capsys):
    music, folder = own
    monkeypatch.setattr(CoLLAPEmbedder, "embed_file", lambda *arguments: torch.full((3, 32), torch.nan))
    soundfile.write(music / "new.wav", np.zeros(16_000), 16_000)
    assert index(music, "--index", folder) == 0
    assert "broken: new.wav: its vectors hold NaN" in capsys.readouterr().err


def test_a_file_that_is_being_copied_waits_for_the_next_run(own, monkeypatch, capsys):
    music, folder = own
    shutil.copyfile(next(music.rglob("*.mp3")), music / "new.mp3")

    def growing(path):
        with open(path, "ab") as file:
            file.write(b"more")
        return "0" * 32

    monkeypatch.setattr(updating, "file_digest", growing)
    assert index(music, "--index", folder) == 0
    assert "not read: new.mp3: it was changed while it was read" in capsys.readouterr().err
    assert not IndexStore.open(folder).failed.num_rows and "new.mp3" not in rows(folder)


@pytest.mark.parametrize("kind", ["clap", "pe_audio"])
def test_models_of_short_clips_are_indexed_by_their_windows(kind, tmp_path, library):
    model = {"clap": lambda place: tiny_clap_folder(place, False), "pe_audio": tiny_pe_audio_folder}[kind](
        tmp_path / "model"
    )
    (tmp_path / "music").mkdir()
    song = shutil.copy(next(library.rglob("*.flac")), tmp_path / "music")
    assert index(tmp_path / "music", "--model", model, "--index", tmp_path / "index") == 0
    store, embedder = IndexStore.open(tmp_path / "index"), load_embedder(f"{model}@tokens")
    vectors = store.vectors(0)
    expected = embedder.embed_audio(load_audio(song, embedder.sampling_rate))
    found = dequantize_rows(vectors["tokens"], vectors["token_scales"])
    assert found.shape == expected.shape and (found - expected).abs().max() < 0.01
    seconds = store.tracks["seconds"][0].as_py()
    assert float(vectors["segment_seconds"].sum(1).max()) == pytest.approx(seconds, abs=1e-3)
    if kind == "clap":  # what is loaded for queries is the same model
        assert index(tmp_path / "music", "--model", f"{model}@tokens", "--index", tmp_path / "index") == 0


def test_every_second_segment_alone_is_a_space_of_its_own(tmp_path, library, model_folder, capsys):
    (tmp_path / "music").mkdir()
    song = shutil.copy(next(library.rglob("*.flac")), tmp_path / "music")
    arguments = tmp_path / "music", "--index", tmp_path / "index"
    assert index(*arguments, "--model", model_folder, "--stride", 2, "--dtype", "bfloat16") == 0
    store = IndexStore.open(tmp_path / "index")
    assert store.settings["stride"] == 2 and store.settings["dtype"] == "bfloat16"
    embedder = load_embedder(str(model_folder), dtype="bfloat16")
    expected = embedder.embed_file(song, stride=2)
    found = dequantize_rows(*(store.vectors(0)[name] for name in ("tokens", "token_scales")))
    assert (found - expected).abs().max() < 0.005
    assert index(*arguments) == 0  # the settings are those of the index
    capsys.readouterr()
    assert index(*arguments, "--stride", 1) == 1
    assert "its vectors are of another space: stride is 1, there it is 2; name" in capsys.readouterr().err
