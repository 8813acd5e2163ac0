"""`collap duplicates`: copies of one recording are found, whatever their format, and nothing else is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from audio_matrix import encode
from libraries import index

from collap.cli import main
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.search.duplicates import are_copies, best_offset, close_pairs, lag_cosines, passage_errors, quick_changes

RATE = 16_000


@pytest.fixture(scope="module")
def copies(tmp_path_factory, model_folder):
    """The folder and the index of a song, three copies of it, and four tracks that are none."""
    folder = tmp_path_factory.mktemp("copies")
    song = compose_song("copied", 1, 20.0, 24.0)
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
        "another": compose_song("another", 1, 20.0, 24.0),
    }
    music = folder / "music"
    music.mkdir()
    soundfile.write(music / "song.flac", samples, RATE)
    assert encode("mp3 (libmp3lame)", music / "song.mp3", samples[:, None], RATE)
    soundfile.write(music / "late.wav", np.concatenate([np.zeros(RATE, np.float32), samples]), RATE)
    soundfile.write(music / "same.wav", soundfile.read(music / "song.flac")[0], RATE)
    soundfile.write(music / "longer.flac", np.concatenate([samples, samples[: 5 * RATE]]), RATE)
    for name, other in others.items():
        soundfile.write(music / f"{name}.flac", render_song(other, RATE), RATE)
    assert index(music, "--index", folder / "index", "--model", model_folder) == 0
    return music, folder / "index"


def test_copies_are_listed_with_their_evidence_and_nothing_else_is(copies, capsys):
    capsys.readouterr()
    assert main(["duplicates", "--index", str(copies[1]), "--json"]) == 0
    [group] = json.loads(capsys.readouterr().out)
    assert sorted(one["path"] for one in group) == ["late.wav", "same.wav", "song.flac", "song.mp3"]
    assert group[0]["path"] == "late.wav"
    for one in group[1:]:
        assert abs(one["offset_seconds"] + 1.0) < 0.1 and one["share"] > 0.95 and one["worst_error"] < 0.32
    assert main(["duplicates", "--index", str(copies[1])]) == 0
    assert "3 copies of 1 recordings among 8 tracks" in capsys.readouterr().out


def test_without_its_files_only_equal_samples_are_copies(copies, capsys):
    hidden = copies[0].rename(copies[0].with_name("hidden"))
    assert main(["duplicates", "--index", str(copies[1]), "--json"]) == 0
    hidden.rename(copies[0])
    [group] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(one["path"] for one in group) == ["same.wav", "song.flac"] and group[1]["same_sound"]


@pytest.mark.parametrize("lengths", [(40, 40), (37, 52), (52, 37)])
def test_lags_are_those_of_the_matrix_of_cosines(lengths):
    one, other = (torch.randn(length, 8, generator=torch.Generator().manual_seed(length)) for length in lengths)
    matrix, most = one @ other.T, 18
    expected = [matrix.diagonal(lag).mean() for lag in range(-most, most + 1)]
    long_enough = [2 * len(matrix.diagonal(lag)) >= min(lengths) for lag in range(-most, most + 1)]
    found = lag_cosines(one, other, most)
    assert torch.allclose(found, torch.stack(expected) * torch.tensor(long_enough), atol=1e-5)


def test_what_changes_slowly_is_taken_away():
    tokens = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    for place, found in enumerate(quick_changes(tokens, 5)):
        left = tokens[place] - tokens[max(place - 5, 0) : place + 6].mean(0)
        assert torch.allclose(found, left / left.norm(), atol=1e-5)
    assert torch.equal(quick_changes(torch.ones(30, 4)), torch.zeros(30, 4))


def test_one_other_passage_makes_another_recording():
    bits = np.random.default_rng(0).integers(1, 2**32 - 1, 2000, dtype=np.uint32)
    late = np.concatenate([np.zeros(50, np.uint32), bits])
    assert best_offset(bits, late) == 50 and best_offset(late, bits) == -50
    assert are_copies(passage_errors(bits, late, 50))
    late[700:900] = late[1200:1400]
    assert not are_copies(passage_errors(bits, late, 50)) and not are_copies(np.zeros(0))


def test_close_pairs_are_those_of_the_whole_matrix(monkeypatch):
    monkeypatch.setattr("collap.search.duplicates.BLOCK", 7)
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(40, 4, generator=generator)
    seconds = (20 * torch.rand(40, generator=generator)).double().numpy()
    left = torch.nn.functional.normalize(means - means.mean(0), dim=-1)
    expected = {
        (one, other)
        for one in range(40)
        for other in range(one + 1, 40)
        if left[one] @ left[other] >= 0.3 and abs(seconds[one] - seconds[other]) <= 3
    }
    found = list(close_pairs(means, seconds))
    assert {*found} == expected and len(found) == len(expected) > 20
