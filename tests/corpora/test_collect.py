"""Tracks from any source, and every hostile file left out with its reason."""

import io
import json
import os
import shutil
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from collap.corpora.collect import REASONS, Limits, file_tags, listen, look_at, reason_to_drop
from collap.corpora.duplicates import EvaluationSets, exact_duplicates, find_duplicates, track_fingerprint
from collap.corpora.listing import kept_bytes, read_tracks
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.corpora.tracks import RATE, Section, Track
from processing import load_audio

LIMITS = Limits(min_seconds=12, max_seconds=24)  # so that songs of 20 s stand for songs of 4 minutes


@pytest.fixture(scope="module")
def songs():
    return [render_song(compose_song(f"song-{number}", number, 18, 22)) for number in range(4)]


@pytest.fixture(scope="module")
def music(tmp_path_factory, songs):
    """A folder as users have it: artists and albums, copies, and files that are no songs."""
    folder = tmp_path_factory.mktemp("music")
    first = folder / "Some Artist" / "First Album" / "01 Söng.flac"
    first.parent.mkdir(parents=True)
    soundfile.write(first, songs[0], RATE)
    (first.with_suffix(".txt")).write_text("A song that has a text.\n")
    soundfile.write(folder / "song_1.wav", songs[1], RATE)
    soundfile.write(folder / "song_2.wav", songs[2], RATE)
    shutil.copy(folder / "song_2.wav", folder / "zz_copy_of_2.wav")
    soundfile.write(folder / "zz_mp3_of_1.mp3", 0.5 * songs[1][3 * RATE + 77 :], RATE)
    soundfile.write(folder / "broken.flac", songs[3], RATE)
    content = (folder / "broken.flac").read_bytes()
    (folder / "broken.flac").write_bytes(content[: len(content) * 9 // 10])
    (folder / "renamed.mp3").write_text("This is a letter and no song. " * 200)
    (folder / "empty.wav").touch()
    (folder / "notes.pdf").write_text("no audio by its name")
    soundfile.write(folder / "silent.wav", np.zeros(20 * RATE), RATE)
    soundfile.write(folder / "short.wav", songs[3][: 4 * RATE], RATE)
    soundfile.write(folder / "long.flac", np.tile(songs[3], 15), RATE)
    loud = np.clip(40 * songs[3] / np.abs(songs[3]).max(), -1, 1)
    soundfile.write(folder / "zz_clipped.wav", loud, RATE, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def collected(music):
    """Every track of the folder by its id, and the fingerprints of those that are kept."""
    tracks, prints = {}, []
    for track in read_tracks(str(music)):
        samples = listen(look_at(track, LIMITS), LIMITS)
        tracks[track.id] = track
        if samples is not None:
            prints.append((track.id, track_fingerprint(samples)))
    return tracks, prints


def test_hostile_files_are_left_out_with_their_reasons(collected):
    tracks, _ = collected
    reasons = {name: track.dropped.partition(":")[0] for name, track in tracks.items() if track.dropped}
    assert reasons == {
        "broken": "broken",
        "renamed": "broken",
        "empty": "broken",
        "silent": "silent",
        "short": "too_short",
        "zz_clipped": "clipped",
    }
    assert tracks["short"].dropped == "too_short: 4.0 s; expected 12 s or more"
    assert tracks["silent"].dropped == "silent: 100.0% of it; expected 50.0% or less"
    assert "renamed.mp3" in tracks["renamed"].dropped and "\n" not in tracks["broken"].dropped
    assert set(reasons.values()) <= set(REASONS)


def test_a_kept_track_says_what_is_known_of_it(collected, songs):
    tracks, _ = collected
    (name,) = (name for name in tracks if name.startswith("Some_Artist"))
    song = tracks[name]
    assert name.startswith("Some_Artist_First_Album_01_Song-") and name.isascii()
    assert song.texts == ["A song that has a text."] and song.crop is None
    assert song.seconds == song.measures["heard_seconds"] == len(songs[0]) / RATE
    power = np.mean(songs[0].astype(float) ** 2)
    assert song.measures["rms_db"] == pytest.approx(10 * np.log10(power), abs=0.01)
    assert Track.from_json(json.loads(json.dumps(song.to_json()))) == song
    assert tracks["long"].crop == (0, 24) and tracks["long"].seconds == 24


def test_copies_are_found_and_songs_stay_apart(collected):
    tracks, prints = collected
    assert exact_duplicates((name, track.digest) for name, track in tracks.items()) == {"zz_copy_of_2": "song_2"}
    near = find_duplicates(prints)
    assert {name: text.partition(",")[0] for name, text in near.items()} == {
        "zz_copy_of_2": "song_2",
        "zz_mp3_of_1": "song_1",
    }
    assert near["zz_mp3_of_1"].endswith("begins 3.0 s later")


def test_longer_ones_are_cropped_dropped_or_kept(music):
    def looked(**choice) -> Track:
        return look_at(Track("long", str(music / "long.flac")), Limits(12, 24, **choice))

    seconds = len(load_audio(str(music / "long.flac"))) / RATE
    assert looked(longer="drop").dropped == f"too_long: {seconds:.1f} s; expected 24 s or less"
    assert looked(longer="keep").seconds == pytest.approx(seconds) and looked(longer="keep").dropped is None
    middle = looked(crop_from="middle")
    assert middle.crop == pytest.approx(((seconds - 24) / 2, (seconds + 24) / 2), abs=1e-3)
    heard = listen(middle, LIMITS)
    start = round(middle.crop[0] * RATE)
    assert np.array_equal(heard, load_audio(str(music / "long.flac"))[start : start + 24 * RATE])


def test_sections_move_with_the_crop(music):
    middle = look_at(Track("long", str(music / "long.flac")), Limits(12, 24, crop_from="middle")).crop[0]
    sections = [Section(0, middle + 4, "a"), Section(middle + 4, middle + 30, "b"), Section(middle + 30, 900, "c")]
    track = look_at(Track("long", str(music / "long.flac"), sections=sections), Limits(12, 24, crop_from="middle"))
    assert [(one.label, round(one.start, 6), round(one.end, 6)) for one in track.sections] == [
        ("a", 0, 4),
        ("b", 4, 24),
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"min_seconds": 400}, "min_seconds is 400 and max_seconds is 300"),
        ({"min_seconds": 0}, "expected the first above 0"),
        ({"longer": "corp"}, "did you mean 'crop'"),
        ({"crop_from": "end"}, "expected one of start, middle"),
        ({"max_silent": 50}, "expected a share from 0 to 1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Limits(**settings)


def test_no_music_is_left_out_only_if_asked():
    track = Track("talk", "talk.wav", seconds=200, measures={"steadiness": 0.1, "pulse_clarity": 0.1})
    assert reason_to_drop(track, Limits()) is None
    assert reason_to_drop(track, Limits(music_only=True)) == "not_music: steadiness 0.10, pulse clarity 0.10"


def test_tags_of_files_are_read(tmp_path, songs):
    path = tmp_path / "tagged.m4a"
    with av.open(str(path), "w") as container:
        container.metadata.update({"title": "A  Tune", "artist": "Somebody", "genre": "Folk", "copyright": "CC BY 4.0"})
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(songs[0][None, : 15 * RATE], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    track = look_at(Track("x", str(path), tags={"genre": "as the list says"}), LIMITS)
    assert (track.artist, track.licence, track.dropped) == ("Somebody", "CC BY 4.0", None)
    assert track.tags["title"] == "A Tune" and track.tags["genre"] == "as the list says"
    (tmp_path / "text.mp3").write_text("no audio")
    assert file_tags(str(tmp_path / "text.mp3")) == {}


# ---- sources


def test_lists_of_paths_and_of_ids(tmp_path, songs):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "abcdefghijk.flac", songs[0], RATE)
    paths = [
        {"file_name": "audio/abcdefghijk.flac", "text": ["one", "two"], "artist": "A", "genre": "folk", "bpm": 120},
        {"file_name": "audio/gone.flac", "text": ["three"], "artist": "B", "genre": None, "bpm": 90},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in paths))
    found = [look_at(track, LIMITS) for track in read_tracks(str(tmp_path / "list.jsonl"))]
    assert [(track.artist, track.texts) for track in found] == [("A", ["one", "two"]), ("B", ["three"])]
    assert found[0].tags == {"genre": "folk", "bpm": "120"} and found[0].dropped is None
    assert found[1].dropped.startswith("missing: ") and found[1].origin.endswith("list.jsonl, row 1")
    (tmp_path / "ids.csv").write_text("ytid,license\nabcdefghijk,CC0\nnot_there00,CC0\n")
    found = list(read_tracks(str(tmp_path / "ids.csv")))
    assert [(track.id, track.source, track.licence) for track in found] == [
        ("abcdefghijk", "youtube:abcdefghijk", "CC0"),
        ("not_there00", "youtube:not_there00", "CC0"),
    ]
    assert look_at(found[0], LIMITS).dropped is None and found[1].dropped.startswith("missing: no audio file called")


def test_rows_of_one_file_are_one_track_with_all_texts(tmp_path, songs):
    soundfile.write(tmp_path / "a.flac", songs[0], RATE)
    soundfile.write(tmp_path / "b.flac", songs[1], RATE)
    rows = ["audio,Caption,Artist,genre", "a.flac,one,,folk", "b.flac,two,B,", "a.flac,three,A,pop", "a.flac,one,C,"]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    first, second = read_tracks(str(tmp_path / "list.csv"))
    assert (first.texts, first.artist, first.tags, second.texts) == (["one", "three"], "A", {"genre": "folk"}, ["two"])


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ([{"start": 8, "end": 16}, {"start": 0, "end": 8, "label": "intro"}], None),
        ('[{"start": 0, "end": 8, "label": "intro"}, {"start": 8, "end": 16}]', None),
        ("intro, verse", "annotation: its sections are no list of objects with start and end"),
        ([{"start": 0}], "annotation: its sections are no list of objects with start and end ('end')"),
        ([{"start": 8, "end": 8}], "annotation: a section of it does not start before it ends"),
        ([{"start": 0, "end": 9}, {"start": 8, "end": 16}], "annotation: its sections overlap"),
    ],
)
def test_sections_that_a_list_has_are_read_or_the_track_is_left_out(tmp_path, songs, sections, problem):
    soundfile.write(tmp_path / "a.flac", songs[0], RATE)
    row = {"audio": "a.flac", "sections": sections, "meta": "no object"}
    (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
    [track] = read_tracks(str(tmp_path / "list.jsonl"))
    if problem is None:
        assert [(one.label, one.start, one.end) for one in track.sections] == [("intro", 0, 8), ("", 8, 16)]
        assert track.boundaries == "annotation" and track.dropped is None
    else:
        assert track.dropped.startswith(problem) and track.sections is None


def test_what_lies_beside_a_song_is_a_caption_only_if_it_is_one(tmp_path, songs):
    for name in ("annotated", "described", "empty", "latin"):
        soundfile.write(tmp_path / f"{name}.flac", songs[0], RATE)
    (tmp_path / "annotated.txt").write_text("0.0 intro\n8.0 verse\n16.0 end\n")
    (tmp_path / "described.json").write_text('{"text": "a song", "artist": "A"}')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    found = {track.id: track for track in read_tracks(str(tmp_path))}
    assert found["annotated"].texts == [] == found["empty"].texts
    assert (found["described"].texts, found["described"].artist) == (["a song"], "A")
    assert found["latin"].texts == ["caf\ufffd"]  # which no captioner takes for words


def test_what_is_decoded_decides_over_a_header_that_says_less(music, monkeypatch):
    seconds = len(load_audio(str(music / "long.flac"))) / RATE
    monkeypatch.setattr("collap.corpora.collect.header_seconds", lambda audio: 20.0)
    track = look_at(Track("long", str(music / "long.flac")), Limits(12, 24, crop_from="middle"))
    heard = listen(track, Limits(12, 24, crop_from="middle"))
    assert track.crop == pytest.approx(((seconds - 24) / 2, (seconds + 24) / 2), abs=1e-3) and track.dropped is None
    start = round(track.crop[0] * RATE)
    assert np.array_equal(heard, load_audio(str(music / "long.flac"))[start : start + 24 * RATE])
    assert track.listed_seconds == seconds


def test_rows_that_hold_bytes_are_written_once(tmp_path, songs):
    content = io.BytesIO()
    soundfile.write(content, songs[0], RATE, format="FLAC")
    audio = [{"bytes": content.getvalue(), "path": "a.flac"}, {"bytes": content.getvalue(), "path": "A.flac"}]
    pq.write_table(pa.table({"audio": audio, "text": ["x", "y"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="holds audio as bytes; expected a folder"):
        list(read_tracks(str(tmp_path / "train.parquet")))
    found = list(read_tracks(str(tmp_path), keep_in=tmp_path / "kept"))
    assert [(track.id, track.texts) for track in found] == [("a", ["x", "y"])]  # one recording
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [os.path.basename(found[0].audio)]
    assert np.array_equal(listen(look_at(found[0], LIMITS), LIMITS), load_audio(content.getvalue()))


def test_parts_that_begin_at_one_moment_write_the_bytes_of_a_table_side_by_side(tmp_path):
    contents = [bytes([number]) * 200_000 for number in range(4)] * 8
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda content: kept_bytes(content, ".mp3", tmp_path, "table"), contents))
    assert all(Path(path).read_bytes() == content for path, content in zip(paths, contents, strict=True))
    assert len(list(tmp_path.iterdir())) == 4


def test_archives_are_read_as_they_are(tmp_path, songs):
    content = io.BytesIO()
    soundfile.write(content, songs[0], RATE, format="FLAC")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (
            ("12.flac", content.getvalue()),
            ("12.json", json.dumps({"text": ["a song"], "tag": ["piano", "calm"]}).encode()),
            ("13.flac", content.getvalue()),
            ("13.txt", b"the same song"),
            ("14.flac", content.getvalue()),
            ("14.json", b"{half"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for source in (tmp_path, tmp_path / "0.tar"):
        found = [look_at(track, LIMITS) for track in read_tracks(str(source))]
        assert [track.texts for track in found] == [["a song"], ["the same song"], []]
        assert found[0].tags == {"tag": "piano, calm"} and found[0].digest == found[1].digest
        assert found[2].dropped.startswith("broken: 14.json is no JSON object")
        assert listen(found[0], LIMITS) is not None
    (tmp_path / "1.tar").write_bytes(b"no archive")
    assert next(read_tracks(str(tmp_path / "1.tar"))).dropped.startswith("broken: ")


def test_folders_without_audio_are_refused(tmp_path):
    (tmp_path / "readme.txt").write_text("no audio here")
    with pytest.raises(ValueError, match="no audio in it or below"):
        list(read_tracks(str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_tracks(str(tmp_path / "gone")))


# ---- evaluation sets


def test_what_an_evaluation_set_holds_is_found_by_id_and_by_sound(tmp_path, songs):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    soundfile.write(evaluation / "clip.mp3", songs[0][4 * RATE : 14 * RATE], RATE)  # a clip of 10 s
    (evaluation / "metadata.csv").write_text("file_name,text\nclip.mp3,a clip\ngone.mp3,none\n")
    (evaluation / "gone.mp3").write_text("no audio")
    sets = EvaluationSets([str(evaluation)])
    assert sets.compared == {str(evaluation): {"listed": 2, "by_id": 0, "by_sound": 1}}
    held = sets.held(Track("a", "a.wav"), track_fingerprint(songs[0]))
    assert "clip.mp3" in held and "from 4.0 s on" in held
    assert all(sets.held(Track("b", "b.wav"), track_fingerprint(song)) is None for song in songs[1:])
    audio = tmp_path / "musiccaps"
    audio.mkdir()
    header = "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset"
    row = "-0Gj8-vB1q4,30,40,/m/04rlf,\"['slow']\",A slow song.,4,False,True"
    (audio / "musiccaps-public.csv").write_text(f"{header},is_audioset_eval\n{row}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sets = EvaluationSets([f"musiccaps:{audio}"])
    assert sets.compared == {f"musiccaps:{audio}": {"listed": 1, "by_id": 1, "by_sound": 0}}
    for track in (
        Track("a", "x.mp3", source="youtube:-0Gj8-vB1q4"),
        Track("b", "music/Y-0Gj8-vB1q4_30.000_40.000.wav"),
        Track("c", "music/Some Title [-0Gj8-vB1q4].m4a"),
    ):
        assert "is youtube:-0Gj8-vB1q4 too" in sets.held(track)
    assert sets.held(Track("d", "music/another_one.wav")) is None
