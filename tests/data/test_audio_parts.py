"""Parts of files as audio: spans of seconds, and members of archives."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_sets import write_table

from collap.data import guarded_reading
from collap.data.audio_parts import audio_part, file_of, part_size, with_span
from collap.data.identity import rows_digest
from collap.data.rows import file_size
from collap.data.sources import open_dataset
from collap.data.token_cache import audio_identity
from processing import AudioFileError, load_audio


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    write_table(folder, seconds=5.0)
    return str(folder / "song.wav")


@pytest.mark.parametrize(("start", "stop", "of_part"), [(1, 3, {}), (0.25, 4.5, {"start": 1.0, "stop": 9.0})])
def test_a_span_is_the_slice_of_the_file(song, start, stop, of_part):
    part = with_span(song, start, stop)
    samples = load_audio(song)[round(start * 16000) : round(stop * 16000)]
    first, last = (round(of_part.get(key, other) * 16000) for key, other in (("start", 0), ("stop", 99)))
    np.testing.assert_array_equal(guarded_reading.load_audio(part, **of_part), samples[first:last])
    assert guarded_reading.header_seconds(part) == guarded_reading.header_seconds(Path(part)) == stop - start
    blocks = list(guarded_reading.stream_audio(part, block_seconds=0.5))
    np.testing.assert_array_equal(np.concatenate(blocks), samples)


def test_a_crop_lies_within_its_span(song):
    samples = load_audio(song)[16000:48000]
    np.testing.assert_array_equal(guarded_reading.load_crop(with_span(song, 1, 3), 0.5, 1.0), samples[-8000:])


def test_a_span_beyond_the_end(song):
    assert guarded_reading.header_seconds(with_span(song, 4, 9)) == 1.0
    for read in (guarded_reading.header_seconds, guarded_reading.load_audio):
        with pytest.raises(AudioFileError, match=r"ends at 5 s|beyond its end at 5 s"):
            read(with_span(song, 7, 9))
    with pytest.raises(AudioFileError, match="expected a start before the end"):
        guarded_reading.load_audio(with_span(song, 3, 3))


def test_a_file_that_is_called_so_is_taken_as_it_is(song, tmp_path):
    place = tmp_path / "song.wav#t=1,2"
    place.write_bytes(Path(song).read_bytes())
    assert audio_part(str(place)).stop is None and file_of(str(place)) == str(place)
    assert len(guarded_reading.load_audio(str(place))) == 5 * 16000
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar" / "song.wav").write_bytes(place.read_bytes())
    assert audio_part(str(tmp_path / "x.tar" / "song.wav")).source == str(tmp_path / "x.tar" / "song.wav")


def test_members_of_an_archive(song, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(song, "./1.wav")
    path = str(tmp_path / "0.tar" / "1.wav")
    np.testing.assert_array_equal(guarded_reading.load_audio(path), load_audio(song))
    np.testing.assert_array_equal(guarded_reading.load_audio(with_span(path, 1, 2)), load_audio(song)[16000:32000])
    assert part_size(path) == part_size(with_span(path, 1, 2)) == file_size(song)
    assert file_of(with_span(path, 1, 2)) == str(tmp_path / "0.tar")
    with pytest.raises(AudioFileError, match=r"0\.tar: has no member '2\.wav'"):
        audio_part(str(tmp_path / "0.tar" / "2.wav"))
    assert file_size(str(tmp_path / "0.tar" / "2.wav")) is None
    (tmp_path / "cut.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:2000])
    with pytest.raises(AudioFileError, match=r"cut\.tar: cannot be read as a tar archive"):
        audio_part(str(tmp_path / "cut.tar" / "1.wav"))


def test_spans_of_one_file_are_told_apart(song, tmp_path):
    write_table(tmp_path)
    digests = []
    for span in ("", "#t=0,0.5", "#t=0.5,1"):
        (tmp_path / "songs.jsonl").write_text(json.dumps({"audio": f"song.wav{span}", "text": "a song"}))
        rows = open_dataset(str(tmp_path / "songs.jsonl"), "train")
        digests.append(rows_digest(rows, "audio", ["text"]))
        identity = audio_identity(rows[0]["audio"])
        assert identity["name"] == f"song.wav{span}" and identity["bytes"] == file_size(tmp_path / "song.wav")
    assert len(set(digests)) == 3
