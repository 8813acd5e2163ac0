"""Files and folders by their literal names, links as the Hub, DVC and git-annex lay them, and nothing outside."""

import io
import json
import os
import shutil
import time
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from tiny import REFERENCE, tiny_processor

from collap.data.feature_cache import cache_features
from collap.data.places import Place, name_within
from collap.data.rows import audio_source
from collap.data.samples import AudioTextDataset
from collap.data.sources import open_dataset, open_stream
from collap.data.stream import AudioTextStream
from processing import load_audio

CASES = REFERENCE / "cases"
AWKWARD = [
    "Live [AB]",
    "a*b",
    "who?",
    "left::right",
    "100%20",
    "a#b",
    "{x,y}",
    "it's",
    'say "hi"',
    "~",
    "ümläut",
    "a b",
]


def wav(seed: int, seconds: float = 0.3) -> bytes:
    content = io.BytesIO()
    samples = np.random.default_rng(seed).normal(size=int(16000 * seconds)) * 0.1
    soundfile.write(content, samples, 16000, format="WAV")
    return content.getvalue()


def songs(folder: Path, *names: str, metadata: str = "metadata.jsonl") -> Path:
    """A folder of audio files and its metadata; the text of each is its name."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(wav(seed))
        rows.append(json.dumps({"file_name": name, "text": f"text of {name}"}) + "\n")
    (folder / metadata).write_text("".join(rows))
    return folder


def contents(dataset) -> list[bytes]:
    return [Path(audio_source(audio)).read_bytes() for audio in dataset["audio"][:]]


# --------------------------------------------------------------------------------------------------------------------
# Literal names


@pytest.mark.parametrize("place", ["Live A", "Live [AB]", "alone [AB]"])
def test_a_folder_with_brackets_has_its_own_rows(place):
    dataset = open_dataset(str(CASES / "brackets" / place), "train")
    assert dataset["text"][:] == ["caption of ANOTHER data set" if place == "Live A" else "the right caption"]
    assert contents(dataset) == [(CASES / "brackets" / place / "a.flac").read_bytes()]


@pytest.mark.parametrize("name", AWKWARD)
def test_names_are_literal_in_every_kind_of_source(tmp_path, monkeypatch, name):
    """Also from within the folder, by a relative path."""
    folder = songs(tmp_path / name / "set", f"{name}.wav")
    decoy = songs(tmp_path / "Live A" / "set", "Live A.wav")  # what a pattern would find
    assert decoy != folder
    rows = open_dataset(str(folder), "train")
    assert rows["text"][:] == [f"text of {name}.wav"] and contents(rows) == [wav(0)]
    monkeypatch.chdir(tmp_path)
    assert open_dataset(f"./{name}/set/metadata.jsonl", "train")["text"][:] == rows["text"][:]

    stored = datasets.Dataset.from_dict({"audio": [{"bytes": wav(0), "path": "x.wav"}], "text": [name]})
    stored = stored.cast_column("audio", datasets.Audio(decode=False))
    shards, disk = tmp_path / name / "shards", tmp_path / name / "disk"
    shards.mkdir()
    with open(shards / "train-00000-of-00001.parquet", "wb") as file:
        stored.to_parquet(file)
    stored.save_to_disk(tmp_path / "plain")
    shutil.move(tmp_path / "plain", disk)
    for source in (shards, shards / "train-00000-of-00001.parquet", disk):
        rows = open_dataset(str(source), "train")
        assert rows["text"][:] == [name] and rows[0]["audio"]["bytes"] == wav(0)
        cached = cache_features(rows, tiny_processor().feature_extractor, "audio")
        assert len(AudioTextDataset(cached, tiny_processor().feature_extractor, "audio", "text")[0].audio) == 5
    stream = AudioTextStream(open_stream(str(shards), "train"), tiny_processor(), "audio", "text", 1)
    assert next(iter(stream)).names == ["row 0 of shard 0 (x.wav)"]


# --------------------------------------------------------------------------------------------------------------------
# Links


def test_a_snapshot_of_links_into_blobs_is_followed(tmp_path):
    """As the Hub's cache lays a data set out: metadata and audio are links into a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    plain = songs(tmp_path / "plain", "a.wav", "sub/b.wav")
    blobs.mkdir()
    for number, file in enumerate(path for path in sorted(plain.rglob("*")) if path.is_file()):
        link = snapshot / "train" / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, blobs / f"{number}")
        link.symlink_to(os.path.relpath(blobs / f"{number}", link.parent))
    dataset = open_dataset(str(snapshot), "train")
    assert contents(dataset) == [wav(0), wav(1)]
    assert [name_within(audio["path"]) for audio in dataset["audio"][:]] == ["a.wav", "sub/b.wav"]
    assert open_dataset(str(snapshot / "train" / "metadata.jsonl"), "train")["text"][:] == dataset["text"][:]


@pytest.mark.parametrize("kind", ["file", "folder", "data set"])
def test_links_that_an_owner_made_lead_elsewhere(tmp_path, kind):
    """To another disk, as DVC does, into .git/annex/objects, or to the place of the whole data set."""
    elsewhere = songs(tmp_path / "disk2" / "objects", "sub/a.wav")
    folder = tmp_path / "set"
    if kind == "data set":
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir()
        shutil.copy(elsewhere / "metadata.jsonl", folder)
        if kind == "file":
            (folder / "sub").mkdir()
            (folder / "sub" / "a.wav").symlink_to(elsewhere / "sub" / "a.wav")
        else:
            (folder / "sub").symlink_to(elsewhere / "sub")
    assert contents(open_dataset(str(folder), "train")) == [wav(0)]


def test_a_link_whose_target_was_not_fetched_is_a_missing_file(tmp_path):
    folder = songs(tmp_path / "set", "a.wav")
    (folder / "a.wav").unlink()
    (folder / "a.wav").symlink_to(".git/annex/objects/not/fetched")
    rows = AudioTextDataset(open_dataset(str(folder), "train"), tiny_processor().feature_extractor, "audio", "text")
    with pytest.raises(ValueError, match=r"row 0 \(a\.wav\): .*a\.wav"):
        rows[0]


@pytest.mark.parametrize(
    "path",
    [
        "../out.wav",
        "sub/../../out.wav",
        "sub/link/../../../out.wav",
        "/etc/hostname",
        "..",
        "..\\out.wav",
        "./../out.wav",
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "struct", "stream", "disk", "disk struct"])
def test_a_path_may_not_leave_its_folder(tmp_path, path, kind):
    folder = songs(tmp_path / "set", "sub/a.wav")
    (folder / "sub" / "link").symlink_to(tmp_path)
    (tmp_path / "out.wav").write_bytes(wav(3))
    entry = {"bytes": None, "path": path} if "struct" in kind else path
    table = datasets.Dataset.from_dict({"audio": [entry], "text": ["x"]})
    if kind in ("jsonl", "csv"):
        (folder / "metadata.jsonl").unlink()
        row = json.dumps({"file_name": path, "text": "x"}) if kind == "jsonl" else f"file_name,text\n{path},x\n"
        (folder / f"metadata.{kind}").write_text(row)
    elif "disk" in kind:
        table.save_to_disk(tmp_path / "disk")
    else:
        table.to_parquet(folder / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="row 0: .*outside of the data set's folder") as caught:
        source = tmp_path / "disk" if "disk" in kind else folder
        if kind == "stream":
            next(open_stream(str(source), "train").tables(0, 0))
        else:
            open_dataset(str(source), "train")
    assert "\n" not in str(caught.value)


def test_a_folder_above_is_that_of_the_name_and_not_of_a_link(tmp_path):
    """The system would take `link/..` for the folder above the link's target."""
    folder = songs(tmp_path / "set", "sub/a.wav", "b.wav")
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "b.wav").write_bytes(wav(7))
    (folder / "link").symlink_to(tmp_path / "other" / "deep")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "link/../b.wav", "text": "x"}))
    assert contents(open_dataset(str(folder), "train")) == [wav(1)]


def test_a_saved_folder_names_files_in_itself_alone(tmp_path):
    table = datasets.Dataset.from_dict({"audio": ["a.wav", "sub/b.wav"], "text": ["x", "y"]})
    table.save_to_disk(tmp_path / "disk")
    for seed, name in enumerate(("a.wav", "sub/b.wav")):
        (tmp_path / "disk" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "disk" / name).write_bytes(wav(seed))
    assert contents(open_dataset(str(tmp_path / "disk"), "train")) == [wav(0), wav(1)]
    state = tmp_path / "disk" / "state.json"
    state.write_text(state.read_text().replace('"data-', '"../disk/data-'))
    with pytest.raises(ValueError, match="not a whole folder of save_to_disk .*lies outside of it"):
        open_dataset(str(tmp_path / "disk"), "train")


def test_paths_in_the_folder_may_be_whole_or_roundabout(tmp_path):
    folder = songs(tmp_path / "set", "sub/a.wav")
    for name in (
        "sub/a.wav",
        "./sub/a.wav",
        "sub/../sub/a.wav",
        "sub//a.wav",
        " sub/a.wav ",
        "sub\\a.wav",
        str(folder / "sub/a.wav"),
    ):
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}))
        dataset = open_dataset(str(folder), "train")
        assert contents(dataset) == [wav(0)]
        assert name_within(dataset[0]["audio"]["path"]) == "sub/a.wav"
    (tmp_path / "link").symlink_to(folder)
    assert contents(open_dataset(str(tmp_path / "link"), "train")) == [
        wav(0)
    ]  # its own path is through the link's target


# --------------------------------------------------------------------------------------------------------------------
# Spelling


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_another_unicode_form_of_a_name_is_found(tmp_path, on_disk, in_table):
    """macOS decomposes names when it writes them; a table keeps what was typed."""
    folder, name = tmp_path / "set", "Björk/Jóga é.wav"
    songs(folder, unicodedata.normalize(on_disk, name))
    row = {"file_name": unicodedata.normalize(in_table, name), "text": "x"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    assert contents(open_dataset(str(folder), "train")) == [wav(0)]


def test_other_upper_and_lower_case_is_named(tmp_path):
    folder = songs(tmp_path / "set", "a.wav", "Sub/B.wav")
    rows = [{"file_name": name, "text": "x"} for name in ("a.wav", "sub/b.WAV", "A.wav", "gone.wav")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(
        UserWarning, match=r"2 files are there in other upper .* row 1 names 'sub/b.WAV', there is 'Sub/B.wav'"
    ):
        dataset = open_dataset(str(folder), "train")
    assert [os.path.exists(audio["path"]) for audio in dataset["audio"][:]] == [True, False, False, False]


def test_many_missing_names_in_a_large_folder_take_no_time(tmp_path):
    for index in range(2000):
        (tmp_path / f"{index}.wav").touch()
    place = Place(tmp_path)
    for index in range(20_000):
        place.find(f"missing {index}.wav", index)
    assert len(place.listings) == 3  # as they are, and in two forms


# --------------------------------------------------------------------------------------------------------------------
# Who is who


def test_songs_of_one_file_name_in_different_folders_have_their_own_crops(tmp_path):
    songs(tmp_path / "set", *(f"{artist}/song.wav" for artist in range(8)))
    for path in (tmp_path / "set").glob("*/song.wav"):
        path.write_bytes(wav(0, 3.0))  # the same audio: the crop alone tells them apart

    def crops(folder):
        rows = open_dataset(str(folder), "train")
        data = AudioTextDataset(
            rows, tiny_processor().feature_extractor, "audio", "text", 0.5, features_in_worker=False
        )
        return [data[row].audio["waveform"].numpy().tobytes() for row in range(8)]

    found = crops(tmp_path / "set")
    assert len(set(found)) == 8
    shutil.move(tmp_path / "set", tmp_path / "moved")
    assert crops(tmp_path / "moved") == found
    assert np.array_equal(load_audio(tmp_path / "moved" / "3" / "song.wav"), load_audio(tmp_path / "moved/4/song.wav"))


# --------------------------------------------------------------------------------------------------------------------
# The Hub and large files


def test_a_hub_data_set_names_files_that_came_with_it_and_no_others(tmp_path, monkeypatch):
    """The Hub's part is played by rows in memory; `datasets` gives whole paths into its cache."""
    from collap.data.catalogue import hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    came = songs(tmp_path / "cache" / "datasets--owner--set" / "snapshots" / "0123abcd", "sub/a.wav") / "sub" / "a.wav"

    def rows(entry):
        found = datasets.Dataset.from_dict({"audio": [{"bytes": wav(0), "path": "x.wav"}, entry], "text": ["x", "y"]})
        found = found.cast_column("audio", datasets.Audio())
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **settings: found)
        return open_dataset("owner/set", "train")

    audio = rows({"bytes": None, "path": str(came)})[1]["audio"]
    assert Path(audio["path"]).read_bytes() == wav(0) and name_within(audio["path"]) == "sub/a.wav"
    for path in ("/etc/hostname", "sub/a.wav", f"{came.parent}/../../../../../out.wav"):
        with pytest.raises(ValueError, match=r"owner/set: row 1 names the file .* did not come with the data set"):
            rows({"bytes": None, "path": path})


def test_a_large_table_changed_in_its_middle_is_another(tmp_path, monkeypatch):
    from collap.data import arrow_cache

    monkeypatch.setattr(arrow_cache, "HASHED_BYTES", 100)
    path, stamps = tmp_path / "large.parquet", []
    for filling in (b"a", b"b"):
        path.write_bytes(b"x" * 3_000_000 + filling + b"x" * 3_000_000)
        os.utime(path, ns=(10**18, 10**18))
        stamps.append(arrow_cache.file_stamp(path))
        assert stamps[-1] == arrow_cache.file_stamp(path)
        time.sleep(0.05)  # the file system's clock is coarse
    assert stamps[0] != stamps[1]
