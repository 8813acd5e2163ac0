"""What a folder of music holds: which files are found, what has changed, and what tags say, whatever is in them."""

import os
import random
import shutil

import av
import mutagen
import numpy as np
import pyarrow as pa
import soundfile
from audio_matrix import encode
from libraries import make_library, tags_of

from collap.data.shares import Shard
from collap.search.library import AudioFile, Walk, find_changes, read_tags, share_of, shown, walk_library
from collap.search.store import FAILED, TRACKS


def touched(folder, *names: bytes) -> None:
    for name in names:
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()


def test_all_audio_is_found_in_the_order_of_its_paths(tmp_path):
    names = [b"b/song.MP3", b"a.flac", b"b-side.ogg", b"b/c/song.m4a", b"b/\xff\xfe latin.wav", "é.opus".encode()]
    touched(tmp_path, *names, b"cover.jpg", b"notes.txt", b"mp3", b".hidden.mp3", b".trash/song.mp3", b"b/._song.mp3")
    os.mkfifo(tmp_path / "pipe.wav")
    walk = walk_library(str(tmp_path))
    assert [file.path for file in walk.files] == sorted(names)
    assert not walk.unread
    assert shown(b"b/\xff\xfe latin.wav") == repr("b/\udcff\udcfe latin.wav") and shown(b"a b.mp3") == "a b.mp3"


def test_links_are_followed_within_the_library_only(tmp_path):
    library, outside = tmp_path / "music", tmp_path / "outside"
    touched(library, b"album/song.flac", b".annex/object.flac", b"music2/x.flac")
    touched(outside, b"secret.flac")
    (library / "linked.flac").symlink_to(library / ".annex" / "object.flac")
    (library / "secret.flac").symlink_to(outside / "secret.flac")
    (library / "beside.flac").symlink_to("../outside/secret.flac")
    (library / "nothing.flac").symlink_to(library / "gone.flac")
    (library / "outside").symlink_to(outside)
    (library / "again").symlink_to(library)  # a loop
    assert [file.path for file in walk_library(str(library)).files] == [
        b"album/song.flac",
        b"linked.flac",
        b"music2/x.flac",
    ]


def test_what_cannot_be_looked_at_is_named_with_its_reason(tmp_path, monkeypatch):
    touched(tmp_path, b"a/x.mp3", b"b/y.mp3")
    scandir = os.scandir

    def failing(path):
        if path.endswith(b"/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    walk = walk_library(str(tmp_path))
    assert [file.path for file in walk.files] == [b"b/y.mp3"] and walk.unread == {b"a": "Permission denied"}


def table(schema: pa.Schema, *files: AudioFile) -> pa.Table:
    rows = [{"path": file.path, "size": file.size, "mtime_ns": file.mtime_ns} for file in files]
    return pa.Table.from_pylist(rows, schema)


def test_changes_are_told_by_size_and_time():
    same, touch, grown, gone = (AudioFile(name, 10, 5) for name in (b"a", b"b", b"c", b"d"))
    bad, mended = AudioFile(b"e", 3, 1), AudioFile(b"f", 3, 1)
    there = [same, AudioFile(b"b", 10, 6), AudioFile(b"c", 11, 5), bad, AudioFile(b"f", 4, 2), AudioFile(b"new", 1, 1)]
    tables = table(TRACKS, same, touch, grown, gone), table(FAILED, bad, mended, AudioFile(b"lost", 1, 1))
    found = find_changes(*tables, Walk(there))
    assert [file.path for file in found.to_read] == [b"b", b"c", b"f", b"new"]
    assert found.kept.tolist() == [True, True, True, False] and found.failed.tolist() == [True, False, False]
    assert found.changed == {b"b": 1, b"c": 2}
    retried = find_changes(*tables, Walk(there), retry=True)
    assert [file.path for file in retried.to_read] == [b"b", b"c", b"e", b"f", b"new"] and not retried.failed.any()


def test_what_lies_in_a_folder_that_cannot_be_read_is_not_taken_for_gone():
    files = AudioFile(b"a/b/x", 1, 1), AudioFile(b"ab/x", 1, 1), AudioFile(b"a/y", 1, 1)
    found = find_changes(table(TRACKS, *files), table(FAILED, AudioFile(b"a/z", 1, 1)), Walk([], {b"a": "I/O error"}))
    assert found.kept.tolist() == [True, False, True] and found.failed.tolist() == [True] and not found.to_read


def test_shares_of_a_library_are_disjoint_and_all_of_it():
    walk = Walk([AudioFile(b"%d.mp3" % number, 1, 1) for number in range(300)])
    shares = [share_of(walk, Shard(index, 3)).files for index in range(3)]
    assert sorted(sum(shares, [])) == sorted(walk.files) and all(70 < len(share) < 130 for share in shares)  # noqa: RUF017
    assert share_of(Walk(walk.files[::-1]), Shard(1, 3)).files == shares[1][::-1]


# ---- tags


def test_tags_of_every_format_are_read(library):
    for path in library.rglob("*.*"):
        tags = tags_of(int(path.name[:2]))
        year = int(tags.pop("date")[:4])
        assert read_tags(str(path)) == {**tags, "year": year}, path


def test_tags_that_mutagen_does_not_know_are_read_by_ffmpeg(tmp_path):
    samples = np.zeros((8000, 1), np.float32)
    with soundfile.SoundFile(tmp_path / "info.wav", "w", 8000, 1) as file:  # a LIST INFO chunk
        file.title, file.artist, file.date, file.genre = "Title", "Artist", "1987", "Jazz"
        file.write(samples)
    assert encode("mkv, AAC", tmp_path / "plain.mka", np.zeros((48_000, 1), np.float32), 48_000)
    with av.open(tmp_path / "plain.mka") as source, av.open(tmp_path / "song.mka", "w", format="matroska") as target:
        target.metadata.update(title="Title", artist="Artist", date="1987", genre="Jazz")
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    expected = {"title": "Title", "artist": "Artist", "album": None, "genre": "Jazz", "year": 1987}
    assert read_tags(str(tmp_path / "info.wav")) == expected
    assert read_tags(str(tmp_path / "song.mka")) == expected


def test_odd_tags_are_one_line_of_what_can_be_printed(tmp_path, corpus):
    folder = make_library(tmp_path, sorted(corpus.rglob("*.flac"))[:3], ("flac", "mp3", "ogg"))
    for path in folder.rglob("*.*"):
        file = mutagen.File(path, easy=True)
        file["title"], file["artist"] = ["  two\nlines\x07 and \u202e more "], ["One", "Other"]
        file["album"], file["date"] = ["x" * 5000], ["recorded 12345, released 2003-02"]
        file.save()
        tags = read_tags(str(path))
        assert tags["title"] == "two lines and more" and tags["artist"] == "One, Other"
        assert len(tags["album"]) == 300 and tags["year"] in (2003, None)


def test_no_damage_of_a_file_makes_its_tags_fatal(tmp_path, library):
    generator = random.Random(0)
    for path in sorted(library.rglob("*.*"))[:6]:
        content = path.read_bytes()
        for number in range(12):
            damaged = bytearray(content[: generator.randrange(1, len(content))] if number % 3 == 0 else content)
            for _ in range(8):
                damaged[generator.randrange(min(len(damaged), 600))] = generator.randrange(256)
            target = tmp_path / f"damaged{path.suffix}"
            target.write_bytes(damaged)
            tags = read_tags(str(target))
            assert tags.keys() == {"title", "artist", "album", "genre", "year"}
            pa.Table.from_pylist([tags], pa.schema([field for field in TRACKS if field.name in tags]))
    shutil.rmtree(tmp_path)
    assert read_tags(str(tmp_path / "gone.mp3"))["title"] is None
