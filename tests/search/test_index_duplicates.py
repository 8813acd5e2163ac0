"""Copies of one recording: `collap duplicates` lists them without their files, and a search folds them into one hit."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from audio_matrix import encode
from libraries import index

from benchmarks.library import files_of
from collap.cli import main
from collap.corpora.duplicates import track_fingerprint
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.data.fingerprints import HOP
from collap.data.fingerprints import RATE as PRINT_RATE
from collap.search.copies import (
    MAX_OFFSET,
    PASSAGE_FRAMES,
    Copies,
    best_offset,
    compare_prints,
    overlap,
    passage_errors,
)
from collap.search.index import TrackIndex
from collap.search.ranking import merge_hits
from collap.search.store import MANIFEST, IndexStore, manifest_digest

RATE = 16_000
COPIES = ["late.wav", "same.wav", "song.flac", "song.mp3"]
QUERY = "a slow song with piano"


@pytest.fixture(scope="module")
def copies(tmp_path_factory, model_folder):
    """The index of a song, three copies of it, and six tracks that are none; the files are gone."""
    folder = tmp_path_factory.mktemp("copies")
    song = compose_song("copied", 2, 20.0, 24.0)
    samples, (first, second, *rest) = render_song(song, RATE), song.sections
    others = {
        "tempo": replace(
            song,
            tempo_bpm=song.tempo_bpm * 1.02,
            seconds=song.seconds / 1.02,
            sections=tuple(replace(one, start=one.start / 1.02, end=one.end / 1.02) for one in song.sections),
        ),
        "instruments": replace(
            song, sections=(first, replace(second, instruments=("organ", "flute"), density="busy"), *rest)
        ),
        "melody": replace(song, seed=song.seed + 1000),
        "another": compose_song("another", 1, 20.0, 24.0),
    }
    music = folder / "music"
    music.mkdir()
    soundfile.write(music / "song.flac", samples, RATE)
    assert encode("mp3 (libmp3lame)", music / "song.mp3", samples[:, None], RATE)
    soundfile.write(music / "late.wav", np.concatenate([np.zeros(RATE, np.float32), samples]), RATE)
    soundfile.write(music / "same.wav", soundfile.read(music / "song.flac")[0], RATE)
    soundfile.write(music / "longer.flac", np.concatenate([samples, samples[: 5 * RATE]]), RATE)
    soundfile.write(music / "short.wav", samples[: RATE // 2], RATE)
    for name, other in others.items():
        soundfile.write(music / f"{name}.flac", render_song(other, RATE), RATE)
    assert index(music, "--index", folder / "index", "--model", model_folder) == 0
    shutil.move(music, folder / "elsewhere")
    return folder


def test_copies_are_listed_with_their_evidence_and_nothing_else_is(copies, capsys):
    capsys.readouterr()
    assert main(["duplicates", "--index", str(copies / "index"), "--json"]) == 0
    [group] = json.loads(capsys.readouterr().out)
    assert sorted(one["path"] for one in group) == COPIES and group[0]["path"] == "late.wav"
    for one in group[1:]:
        assert abs(one["offset_seconds"] + 1.0) < 0.1 and one["share"] > 0.95 and one["worst_error"] < 0.1
    assert main(["duplicates", "--index", str(copies / "index")]) == 0
    said = capsys.readouterr().out
    assert "3 copies of 1 recordings among 10 tracks" in said and "    song.mp3: -1.0" in said


def test_fingerprints_of_an_index_are_those_of_whole_files(copies):
    store = IndexStore.open(copies / "index")
    of = Copies(store)
    for track in range(len(store.tracks)):
        samples = soundfile.read(copies / "elsewhere" / store.path(track), dtype="float32")[0]
        prints = of.prints(track)
        if not store.path(track).endswith("mp3"):  # which another decoder reads here
            assert np.array_equal(prints[:, 0], track_fingerprint(samples)), store.path(track)
        assert prints.shape[1] == 2 and abs(len(prints) - max(0, len(samples) / RATE - 0.4) * PRINT_RATE / HOP) < 3
    by_path = {store.path(track): int(of.sounds[track]) for track in range(len(store.tracks))}
    assert by_path["song.flac"] == by_path["same.wav"] and len({*by_path.values()}) == 9


# ---- in a search


@pytest.fixture(scope="module")
def searched(copies):
    return TrackIndex.open(copies / "index")


@pytest.mark.parametrize("how", [{}, {"mode": "exact"}, {"candidates": 0}, {"candidates": 2}])
def test_copies_are_folded_into_the_best_of_them(searched, how):
    everything = searched.search(QUERY, k=10, collapse=False, **how)
    assert len(everything) == 10 and all(hit.copies == () for hit in everything)
    ranked = [hit.path for hit in everything if hit.path in COPIES]
    for k in (1, 4, 7, 50):  # of seven recordings
        found = searched.search(QUERY, k=k, **how)
        kept = [hit.path for hit in everything if hit.path not in ranked[1:]]
        assert [hit.path for hit in found] == kept[:k]
        assert [hit.rank for hit in found] == list(range(1, min(k, 7) + 1))
        for hit in found:
            assert hit.copies == () or (hit.path == ranked[0] and list(hit.copies) == ranked[1 : len(hit.copies) + 1])
    if "candidates" not in how:  # else some copies were not looked at
        assert [list(hit.copies) for hit in found if hit.path == ranked[0]] == [ranked[1:]]


@pytest.mark.parametrize("k", [1, 3, 7, 50])
def test_copies_are_folded_across_parts_of_a_library_as_within_it(copies, searched, tmp_path, k):
    for part in ("0/2", "1/2"):
        about = ["--index", tmp_path / part[0], "--model", searched.store.settings["model"], "--shard", part]
        assert index(copies / "elsewhere", *about) == 0
    parts = [TrackIndex.open(tmp_path / part) for part in "01"]
    assert all({*COPIES} & {*map(part.store.path, range(len(part)))} for part in parts)
    whole, found = searched.search(QUERY, k=k), [part.search(QUERY, k=k) for part in parts]
    merged = merge_hits(found, k, parts)
    assert [(hit.rank, hit.path, hit.score) for hit in merged] == [(hit.rank, hit.path, hit.score) for hit in whole]
    assert [{*hit.copies} for hit in merged] == [{*hit.copies} for hit in whole]
    assert len(merge_hits(found, 50)) == 8 or k < 7  # in each part some copy is a hit


def test_what_a_song_is_like_is_no_copy_of_it(searched):
    found = searched.search(like="song.flac", k=10)
    assert not {hit.path for hit in found} & {*COPIES} and len(found) == 6
    assert found.notes == ("copies of the track that is searched with are not shown: 3",)
    assert {*COPIES} - {"song.flac"} < {hit.path for hit in searched.search(like="song.flac", k=10, collapse=False)}


def test_a_list_shows_its_copies_and_a_playlist_has_the_best_file(copies, capsys):
    given = ["search", QUERY, "--index", str(copies / "index"), "-k", "7"]
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and sum("same recording" in line for line in lines) == 3
    assert main([*given, "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert sorted(path for hit in hits for path in (hit["path"], *hit["copies"]) if path in COPIES) == COPIES
    assert main([*given, "--m3u"]) == 0
    assert capsys.readouterr().out.count("#EXTINF") == 7
    assert main([*given, "--m3u", "--all_copies"]) == 0
    playlist = capsys.readouterr().out
    assert playlist.count("#EXTINF") == 7 and sum(f"/{path}\n" in playlist for path in COPIES) > 1


def test_an_index_without_fingerprints_is_refused_in_one_line(copies, tmp_path, capsys):
    folder = tmp_path / "index"
    shutil.copytree(copies / "index", folder)
    manifest = {**json.loads((folder / MANIFEST).read_text()), "version": 1}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "checksum": manifest_digest(manifest)}))
    before = files_of(folder)
    for command in (["duplicates"], ["search", QUERY], ["index", str(copies / "elsewhere")]):
        assert main([*command, "--index", str(folder)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and "is of version 1" in line and "index the library again" in line
    assert files_of(folder) == before


# ---- pure functions


def prints_of(seed: int, frames: int = 2000) -> np.ndarray:
    """A fingerprint (F, 2) of which half of the bits can be heard."""
    return np.random.default_rng(seed).integers(1, 2**32 - 1, (frames, 2), dtype=np.uint32)


def test_the_best_offset_is_that_of_fewest_bits_of_all():
    one = prints_of(0)
    noise = prints_of(1) & prints_of(2) & prints_of(3)  # an eighth of the bits
    for offset in (-MAX_OFFSET, -37, 0, 50, MAX_OFFSET):
        other = np.concatenate([prints_of(4, max(offset, 0)), (one ^ noise)[max(-offset, 0) :]])
        errors = {}
        for shift in range(-MAX_OFFSET, MAX_OFFSET + 1):
            first, stop = overlap(one, other, shift)
            differ = (one[first:stop, 0] ^ other[first + shift : stop + shift, 0]).view(np.uint8)
            errors[shift] = np.unpackbits(differ).mean()
        assert best_offset(one[:, 0], other[:, 0]) == offset == min(errors, key=errors.get)
    assert best_offset(one[:, 0], prints_of(5)[:, 0]) is None
    assert best_offset(one[:, 0], one[: PASSAGE_FRAMES - 1, 0]) is None
    assert best_offset(np.zeros(900, np.uint32), one[:, 0]) is None


def test_errors_of_passages_are_those_of_bits_one_by_one():
    one, other, offset = prints_of(0), prints_of(1, 1900), 60
    one[600:950], other[660:1010] = 0, 0  # silence in both
    first, stop = overlap(one, other, offset)
    bits = [
        np.unpackbits(np.ascontiguousarray(words).view(np.uint8)).reshape(-1, 32)
        for words in (*one[first:stop].T, *other[first + offset : stop + offset].T)
    ]
    expected = []
    for start in [*range(0, stop - first - PASSAGE_FRAMES + 1, PASSAGE_FRAMES), stop - first - PASSAGE_FRAMES]:
        own, heard, others, others_heard = (each[start : start + PASSAGE_FRAMES].astype(bool) for each in bits)
        heard |= others_heard
        expected.append((own != others)[heard].mean() if heard.mean() > 0.02 else np.nan)
    np.testing.assert_allclose(passage_errors(one, other, offset), expected)
    assert np.isnan(expected).any()


def test_one_other_passage_makes_another_recording_and_what_cannot_be_heard_does_not():
    one = prints_of(0)
    other = np.concatenate([np.zeros((50, 2), np.uint32), one])
    found = compare_prints(one, other)
    assert found.offset_seconds == pytest.approx(50 * HOP / PRINT_RATE) and found.share == 1 and found.worst_error == 0
    noisy = other.copy()
    noisy[50:, 0] ^= prints_of(1)[:, 0] & ~one[:, 1]  # half of the bits that cannot be heard
    assert compare_prints(one, noisy).error == pytest.approx(0.25, abs=0.01)
    for place in (0, 700, 2000 - PASSAGE_FRAMES // 2):  # half a passage, also the last one
        changed = other.copy()
        changed[place + 50 : place + 50 + PASSAGE_FRAMES // 2] = prints_of(2, PASSAGE_FRAMES // 2)
        assert compare_prints(one, changed) is None
        changed[place + 50 : place + 50 + PASSAGE_FRAMES // 2, :] = 0  # a passage that one has and the other not
        assert compare_prints(one, changed) is None
    silence = np.zeros((900, 2), np.uint32)
    assert compare_prints(silence, silence) is None and compare_prints(silence[:0], silence[:0]) is None
