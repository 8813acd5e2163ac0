"""Writing an index: killed at any moment, by two at once, to a full disk; merged, damaged, and checked."""

import errno
import itertools
import json
import os
import pty
import random
import shutil
import signal
import termios
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from libraries import index, index_process
from tiny import tiny_model, tiny_processor

from benchmarks.library import files_of
from collap.search import store as stores
from collap.search import updating, writing
from collap.search.store import IndexStore, manifest_digest


def arguments(library: Path, model_folder: Path, folder: Path, *more: object) -> list:
    return [library, "--model", model_folder, "--index", folder, "--shard_tracks", 2, *more]


@pytest.fixture
def music(tmp_path, library):
    """A copy of the library that is indexed, to be changed."""
    return shutil.copytree(library, tmp_path / "music")


@pytest.fixture
def few(tmp_path, library):
    """Five songs, one of them twice, and a broken file: three shards of two."""
    folder = tmp_path / "few"
    for song in sorted(library.rglob("*.*"))[:5]:
        (folder / song.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy2(song, folder / song.parent.name)
    (folder / "broken.mp3").write_text("no music")
    shutil.copyfile(song, folder / f"zz copy{song.suffix}")
    return folder


def kill_at(call: int):
    """Kill the process at its `call`-th change of the disk: what it renames, removes or waits for to be written."""
    count = itertools.count(1)

    def counted(function):
        def call_or_die(*given, **named):
            if next(count) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return call_or_die

    def patch() -> None:
        for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))

    return patch


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path, few, model_folder):
    """Killed again and again, at random moments and between any two changes of the disk."""
    generator, log = random.Random(7), tmp_path / "log"
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "index"
    started = time.perf_counter()
    process = index_process(log, *arguments(few, model_folder, undisturbed))
    process.join()
    seconds = time.perf_counter() - started
    assert process.exitcode == 0, log.read_text()
    for kill in ("moment", "change", "change"):
        steps = kill_at(generator.randrange(10, 70)) if kill == "change" else bool
        process = index_process(log, *arguments(few, model_folder, folder), before=steps)
        if kill == "moment":
            process.join(generator.uniform(0.2, 0.9) * seconds)
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
        if (folder / "manifest.json").exists():
            IndexStore.open(folder)
            assert not list(stores.damaged_files(folder))
    assert index(*arguments(few, model_folder, folder)) == 0
    assert files_of(folder) == files_of(undisturbed)
    assert not list((folder / "pending").iterdir())


def test_what_a_killed_run_has_embedded_is_not_embedded_again(tmp_path, few, model_folder, monkeypatch, capsys):
    folder, embed, count = tmp_path / "index", updating.embed_recording, itertools.count()

    def interrupted(*given):
        if next(count) == 3:
            raise KeyboardInterrupt
        return embed(*given)

    monkeypatch.setattr(updating, "embed_recording", interrupted)
    assert index(*arguments(few, model_folder, folder, "--shard_tracks", 5)) == 130
    pending = sorted((folder / "pending").iterdir())
    assert len(pending) == 3
    content = bytearray(pending[0].read_bytes())
    content[-7] ^= 1
    pending[0].write_bytes(content)
    monkeypatch.setattr(updating, "embed_recording", embed)
    capsys.readouterr()
    assert index(*arguments(few, model_folder, folder, "--shard_tracks", 5)) == 0
    assert "3 embedded, 2 taken from the run before, 1 copied\n" in capsys.readouterr().out


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path, music, library, indexed, model_folder, capfd):
    folder, started = tmp_path / "index", tmp_path / "started"
    shutil.copytree(indexed, folder)
    old = IndexStore.open(folder)
    before = old.vectors(0)["tokens"].clone()

    def slow() -> None:
        embed = updating.embed_recording

        def waiting(*given):
            started.touch()
            time.sleep(60)
            return embed(*given)

        updating.embed_recording = waiting

    content = bytearray(next(library.rglob("*.wav")).read_bytes())
    content[2000] ^= 1
    (music / "new.wav").write_bytes(content)
    process = index_process(tmp_path / "log", *arguments(music, model_folder, folder), before=slow)
    try:
        while not started.exists():
            assert process.is_alive(), (tmp_path / "log").read_text()
            time.sleep(0.02)
        assert index(*arguments(music, model_folder, folder)) == 1
        said = capfd.readouterr().err
        assert said == (
            f"error: {folder}: process {process.pid} is writing to it; wait until that ends (searching goes on "
            "meanwhile)\n"
        )
        assert len(IndexStore.open(folder).tracks) == 12
    finally:
        process.kill()
        process.join()
    assert index(*arguments(music, model_folder, folder)) == 0  # the lock has gone with its holder
    assert len(IndexStore.open(folder).tracks) == 13 and IndexStore.open(folder).library == music
    assert (old.vectors(0)["tokens"] == before).all() and len(old.tracks) == 12  # who has it open keeps what was


def test_a_reader_that_finds_a_file_gone_looks_at_the_manifest_again(tmp_path, indexed, monkeypatch):
    folder = tmp_path / "index"
    shutil.copytree(indexed, folder)
    old = json.loads((folder / "manifest.json").read_text())
    for name in old["tables"]:
        (folder / name).rename(folder / name.replace("-3", "-4"))
    new = {**old, "generation": 4, "tables": {name.replace("-3", "-4"): one for name, one in old["tables"].items()}}
    new["checksum"] = manifest_digest(new)
    (folder / "manifest.json").write_text(json.dumps(new))
    found, read = iter((old, new)), stores.read_manifest
    monkeypatch.setattr(stores, "read_manifest", lambda place: next(found))
    assert IndexStore.open(folder).generation == 4
    monkeypatch.setattr(stores, "read_manifest", lambda place: old)
    with pytest.raises(ValueError, match="is missing"):
        IndexStore.open(folder)
    monkeypatch.setattr(stores, "read_manifest", read)
    assert len(IndexStore.open(folder).tracks) == 12


def test_progress_is_shown_and_the_machine_stays_usable(tmp_path, few, model_folder):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    said = tmp_path / "said"

    def before() -> None:
        os.dup2(slave, 2)
        embed = updating.embed_recording

        def saying(*given):
            said.write_text(f"{os.nice(0)} {torch.get_num_threads()}")
            return embed(*given)

        updating.embed_recording = saying

    more = ["--nice", 7, "--threads", 3]
    process = index_process(tmp_path / "log", *arguments(few, model_folder, tmp_path / "index", *more), before=before)
    process.join()
    os.close(slave)
    shown = os.read(master, 2**20).decode()
    assert process.exitcode == 0 and said.read_text() == f"{os.nice(0) + 7} 3"
    assert "100%" in shown and "7/7 files, " in shown and " x real time, " in shown and " MB" in shown
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].endswith("5 embedded, 1 copied") and lines[0].startswith(f"{tmp_path / 'index'}: 6 tracks, ")
    assert " hours embedded in " in lines[1] and lines[1].endswith(" MB")


@pytest.mark.parametrize("fails", ["pending", "shard", "tables", "manifest"])
def test_a_full_disk_is_one_line_and_the_old_index_stays(fails, tmp_path, music, indexed, model_folder, monkeypatch):
    folder = tmp_path / "index"
    shutil.copytree(indexed, folder)
    samples = next(music.rglob("*.wav")).read_bytes()
    (music / "new.wav").write_bytes(samples[:44] + samples[3000:])
    before = files_of(folder)

    def full(*given, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    name = {"pending": "save_file", "shard": "write_folder", "tables": "_write_arrow", "manifest": "replace_text"}
    monkeypatch.setattr(writing, name[fails], full)
    log = tmp_path / "log"
    process = index_process(log, *arguments(music, model_folder, folder))
    process.join()
    (said,) = [line for line in log.read_text().splitlines() if "rror" in line]
    assert process.exitcode == 1 and said.startswith("error: ") and "[Errno 28] No space left on device" in said
    assert {name: content for name, content in files_of(folder).items() if name in before} == before
    assert len(IndexStore.open(folder).tracks) == 12
    monkeypatch.undo()
    assert index(*arguments(music, model_folder, folder)) == 0
    assert len(IndexStore.open(folder).tracks) == 13


def test_small_and_sparse_shards_are_put_together(tmp_path, library, model_folder, monkeypatch):
    music, folder = tmp_path / "music", tmp_path / "index"
    music.mkdir()
    monkeypatch.setattr(writing, "SMALL_SHARDS", 3)
    songs, shards = sorted(library.rglob("*.*"))[:5], []
    for song in songs:  # one more each day
        shutil.copy2(song, music)
        assert index(music, "--model", model_folder, "--index", folder) == 0
        shards.append(len(IndexStore.open(folder).shards))
    assert shards == [1, 2, 3, 1, 2]
    store = IndexStore.open(folder)
    before = {store.path(track): store.vectors(track) for track in range(5)}
    for song in songs[:3]:
        (music / song.name).unlink()
    assert index(music, "--index", folder) == 0
    store = IndexStore.open(folder)
    assert [len(shard.rows) for shard in store.shards.values()] == [1, 1]
    for track in range(2):
        found, expected = store.vectors(track), before[store.path(track)]
        assert all((found[name] == expected[name]).all() for name in expected)
    assert len(os.listdir(folder / "shards")) == 2 and not list(stores.damaged_files(folder))


def test_what_moved_behind_new_files_is_found_though_shards_are_published_before(tmp_path, few, model_folder, capsys):
    """Whole shards lose their tracks while new ones are published, and are needed again."""
    folder = tmp_path / "index"
    assert index(*arguments(few, model_folder, folder)) == 0
    before = {row["digest"]: row for row in IndexStore.open(folder).tracks.to_pylist()}
    for path in [path for path in few.iterdir() if path.is_dir()]:
        path.rename(few / f"zz {path.name}")
    content = bytearray(next(few.rglob("*.wav")).read_bytes())
    for number in range(2):
        content[2000] ^= 1 + number
        (few / f"{number} new.wav").write_bytes(content)
    whole, interrupted = shutil.copytree(folder, tmp_path / "whole"), shutil.copytree(folder, tmp_path / "interrupted")
    capsys.readouterr()
    assert index(few, "--index", whole) == 0
    assert "2 embedded, 5 moved\n" in capsys.readouterr().out
    tracks = IndexStore.open(whole).tracks.to_pylist()
    assert len(tracks) == 8 and not list(stores.damaged_files(whole))
    for row in tracks:
        if (old := before.get(row["digest"])) is not None:
            assert (row["title"], row["seconds"]) == (old["title"], old["seconds"])

    digest, count = updating.file_digest, itertools.count()

    def interrupting(path):
        if next(count) == 4:
            raise KeyboardInterrupt
        return digest(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updating, "file_digest", interrupting)
        assert index(few, "--index", interrupted) == 130
    assert len(IndexStore.open(interrupted).tracks) == 3  # what is new, and what has stayed
    assert index(few, "--index", interrupted) == 0
    assert "embedded" not in capsys.readouterr().out and files_of(interrupted) == files_of(whole)


# ---- other libraries, other models, other folders


def test_another_library_or_model_or_folder_is_refused_in_one_line(tmp_path, music, indexed, model_folder, capfd):
    folder = tmp_path / "index"
    shutil.copytree(indexed, folder)
    before = files_of(folder)
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    tiny_processor().save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    shutil.copy(next(music.rglob("*.mp3")), tmp_path / "one")
    (tmp_path / "taxes").mkdir()
    (tmp_path / "taxes" / "2025.pdf").touch()
    (tmp_path / "file").touch()
    cases = [
        ([music, "--model", tmp_path / "other", "--index", folder], "another space: model.weights is "),
        ([music, "--dtype", "bfloat16", "--index", folder], "dtype is 'bfloat16', there it is 'float32'"),
        ([music, "--shard", "0/2", "--index", folder], "holds the whole of a library, asked for is part 0/2"),
        ([music, "--shard", "2/2", "--index", folder], "--shard 2/2: expected i/n"),
        ([tmp_path / "empty", "--index", folder], "holds no audio files; expected a library of music (is its disk"),
        ([tmp_path / "one", "--index", folder], "of its 12 files"),
        ([tmp_path / "nowhere", "--index", folder], "no such folder"),
        ([music, "--index", tmp_path / "new"], "is new; name the model"),
        ([music, "--model", tmp_path / "empty", "--index", tmp_path / "new"], "no model that can be read"),
        ([music, "--model", model_folder, "--index", tmp_path / "taxes"], "holds '2025.pdf' and no index"),
        ([music, "--model", model_folder, "--index", tmp_path / "file"], "File exists"),
        ([music, "--index", folder, "--threads", 0], "--threads must be 1 or more"),
        ([music, "--index", folder, "--nice", -5], "--nice must be from 0 to 19"),
        ([music, "--verify", "--index", folder], "read no library"),
        (["--verify", "--index", tmp_path / "nowhere"], "holds no index"),
    ]
    for given, said in cases:
        assert index(*given) == 1, given
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: ") and said in line, line
    assert files_of(folder) == before and (tmp_path / "taxes" / "2025.pdf").exists()


def test_parts_of_a_library_are_merged(tmp_path, few, model_folder, capfd):
    parts = [tmp_path / f"part{number}" for number in range(2)]
    for number, part in enumerate(parts):
        assert index(*arguments(few, model_folder, part, "--shard", f"{number}/2")) == 0
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    assert index(*arguments(few, model_folder, whole)) == 0
    assert index("--merge", *parts, "--index", merged) == 0
    one, other = IndexStore.open(whole), IndexStore.open(merged)
    places = [name for name in one.tracks.column_names if name not in ("shard", "row")]
    assert one.tracks.select(places).equals(other.tracks.select(places)) and one.failed.equals(other.failed)
    for track in range(len(one.tracks)):
        assert all((one.vectors(track)[name] == other.vectors(track)[name]).all() for name in one.vectors(track))
    assert index("--verify", "--index", merged) == 0
    assert index(few, "--index", merged) == 0 and IndexStore.open(merged).generation == 1  # it is of the whole
    capfd.readouterr()
    for given, said in (
        ([*parts, parts[0], "--index", tmp_path / "x"], "which"),
        ([*parts, "--index", merged], "holds an index already"),
        ([parts[0], tmp_path / "nothing", "--index", tmp_path / "x"], "holds no index"),
    ):
        assert index("--merge", *given) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert said in line


# ---- damage


def test_every_damaged_file_is_named(tmp_path, indexed, capfd):
    whole = files_of(indexed)
    for number, name in enumerate(sorted(whole)):
        folder = tmp_path / str(number)
        shutil.copytree(indexed, folder)
        content = bytearray(whole[name])
        content[len(content) // 2] ^= 4
        (folder / name).write_bytes(content)
        assert index("--verify", "--index", folder) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert str(folder / name) in line and ("checksum" in line or "damaged" in line)
        for damage in ("cut", "gone"):
            (folder / name).write_bytes(whole[name][:-3]) if damage == "cut" else (folder / name).unlink()
            with pytest.raises((ValueError, FileNotFoundError), match=f"{name}|holds no index"):
                IndexStore.open(folder)
            assert index("--verify", "--index", folder) == 1
            (line,) = capfd.readouterr().err.splitlines()
            assert str(folder) in line
    assert index("--verify", "--index", indexed) == 0


def rewritten(folder: Path, change) -> None:
    """Change a manifest as somebody would who means harm: with a checksum that matches."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["checksum"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def renamed(kind: str, name: str):
    def change(manifest: dict) -> None:
        old = next(iter(manifest[kind]))
        manifest[kind][name] = manifest[kind].pop(old)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.update(version=99), "is of version 99"),
        (lambda manifest: manifest.update(generation="x"), "generation is 'x'"),
        (lambda manifest: manifest.update(shards=[]), "shards is []"),
        (lambda manifest: manifest["space"].update(stride=2), "space_id"),
        (renamed("tables", "../../tracks-1.arrow"), "tables are"),
        (renamed("tables", "tracks-/../../x.arrow"), "is no name of a table"),
        (renamed("shards", "../../../etc"), "is no name of a shard"),
        (lambda manifest: next(iter(manifest["shards"].values())).update({"../x": [1, ""]}), "has other files than"),
        (lambda manifest: manifest["tables"].update({"tracks-3.arrow": [-1, 5]}), "no size and checksum"),
    ],
)
def test_a_manifest_that_names_other_places_is_refused(change, said, tmp_path, indexed):
    shutil.copytree(indexed, tmp_path / "index")
    rewritten(tmp_path / "index", change)
    with pytest.raises(ValueError) as caught:
        IndexStore.open(tmp_path / "index")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("path", b"../../etc/passwd.mp3", "outside"),
        ("path", b"/etc/passwd.mp3", "outside"),
        ("path", b"a/../../b.mp3", "outside"),
        ("path", b"\xff\xfe/../b.mp3", "outside"),
        ("path", b"a\0b", "outside"),
        ("path", None, "a row has no path"),
        ("row", 5000, "a row that its shard does not have"),
        ("row", -1, "a row that its shard does not have"),
        ("shard", "0" * 32, "a shard that the index does not have"),
    ],
)
def test_a_table_that_names_other_places_is_refused(column, value, said, tmp_path, indexed):
    folder = tmp_path / "index"
    shutil.copytree(indexed, folder)
    store = IndexStore.open(folder)
    rows = store.tracks.to_pylist()
    rows[3][column] = value
    name = "tracks-3.arrow"
    (folder / name).unlink()
    writing._write_arrow(folder / name, pa.Table.from_pylist(rows, stores.TRACKS))
    rewritten(folder, lambda manifest: manifest["tables"].update({name: writing._entry(folder / name)}))
    with pytest.raises(ValueError, match=said):
        IndexStore.open(folder)


def test_an_index_is_read_by_mapping_it(indexed):
    store = IndexStore.open(indexed)
    maps = Path("/proc/self/maps").read_text()
    for name in store.shards:
        assert str(indexed / "shards" / name / "vectors.safetensors") in maps
    assert str(indexed / "tracks-3.arrow") in maps
