"""Synthetic songs: what a caption says is found in the audio, by measurements that know nothing of the synthesis."""

import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, load_dataset

from collap.cli import run_command
from collap.corpora.synthetic import songs as synthetic_songs
from collap.corpora.synthetic.captions import (
    DENSITY_PHRASES,
    DYNAMICS_PHRASES,
    INSTRUMENT_PHRASES,
    MOOD_PHRASES,
    REGISTER_PHRASES,
    clock,
    long_caption,
    short_caption,
)
from collap.corpora.synthetic.composition import DYNAMICS_DB, KEYS, SCALES, mood_of
from collap.corpora.synthetic.songs import Section, Song, build_corpus, compose_song, render_song
from collap.corpora.synthetic.voices import INSTRUMENTS, PITCHED

RATE = 16000
ROOT = Path(__file__).resolve().parents[2]
SONGS = [compose_song(f"song-{number}", seed=1) for number in range(300)]


def one_section_song(*instruments: str, seed=0, tempo_bpm=120.0, key="C", mode="major", bars=4, **levels: str) -> Song:
    """A song of a single verse in 4/4 on the chords I IV V I."""
    tonic = KEYS.index(key)
    suffix = "" if mode == "major" else "m"
    chords = tuple(KEYS[(tonic + step) % 12] + suffix for step in (0, 5, 7, 0))
    seconds = bars * 4 * 60 / tempo_bpm
    levels = {"dynamics": "loud", "register": "middle", "density": "moderate", **levels}
    section = Section("verse", 0.0, seconds, instruments, mood="warm", chords=chords, **levels)
    return Song("by hand", seed, tempo_bpm, key, mode, 4, seconds, (section,))


def in_sequence(*songs: Song) -> Song:
    """The sections of several songs one after another."""
    sections, start = [], 0.0
    for section in (section for song in songs for section in song.sections):
        sections.append(replace(section, start=start, end=start + section.end - section.start))
        start = sections[-1].end
    return replace(songs[0], seconds=start, sections=tuple(sections))


def spectrogram(audio: np.ndarray, window: int = 512, hop: int = 160) -> np.ndarray:
    """Power, (frames, window // 2 + 1)."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2


def onset_strength(audio: np.ndarray) -> np.ndarray:
    """Rise of the log spectrum from frame to frame of 10 ms, (frames,)."""
    return np.maximum(np.diff(np.log(spectrogram(audio) + 1e-3), axis=0), 0).sum(axis=1)


# --- composition


def test_songs_keep_their_bounds_and_end_on_a_bar():
    for song in SONGS:
        assert 60 <= song.seconds <= 300
        assert 4 <= len(song.sections) <= 9
        assert song.sections[0].start == 0 and song.sections[-1].end == pytest.approx(song.seconds)
        assert song.seconds / song.bar_seconds == pytest.approx(round(song.seconds / song.bar_seconds))
        for before, now in pairwise(song.sections):
            assert now.start == before.end
            assert set(now.instruments) != set(before.instruments)
        for section in song.sections:
            bars = (section.end - section.start) / song.bar_seconds
            assert bars == pytest.approx(round(bars)) and bars > 1.5
            assert set(section.instruments) & set(PITCHED), "register and density need a pitched instrument"
    assert 100 < np.mean([song.seconds for song in SONGS]) < 122


@pytest.mark.parametrize("bounds", [(12, 12), (20, 20), (20, 40), (61.3, 61.3), (240, 240)])
def test_narrow_bounds_are_met(bounds):
    for number in range(30):
        song = compose_song(f"short-{number}", 0, *bounds)
        assert bounds[0] - 1e-6 <= song.seconds <= bounds[1]
        assert len(song.sections) >= 4
        assert 60 <= song.tempo_bpm <= 175


@pytest.mark.parametrize("bounds", [(5, 60), (90, 60)])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match=f"min_seconds is {bounds[0]} and max_seconds is {bounds[1]}"):
        compose_song("song", 0, *bounds)


def test_no_two_songs_have_the_same_audible_facts():
    arrangements = {tuple((s.instruments, s.dynamics, s.register, s.density) for s in song.sections) for song in SONGS}
    assert len(arrangements) == len(SONGS)
    endings = {(song.sections[0].instruments, song.sections[-1].instruments, song.key) for song in SONGS}
    assert len(endings) > 0.97 * len(SONGS)  # all that a short caption holds besides tempo and mood
    assert compose_song("song-0", seed=2) != replace(SONGS[0], seed=2)
    used = [name for song in SONGS for section in song.sections for name in section.instruments]
    assert min(used.count(name) for name in INSTRUMENTS) > 0.04 * len(used)


def test_mood_follows_from_what_is_heard():
    for song in SONGS[:50]:
        for section in song.sections:
            assert section.mood == mood_of(song.mode, song.tempo_bpm, section.dynamics, section.density)
    assert mood_of("minor", 66, "very soft", "sparse") == "melancholic"
    assert mood_of("major", 66, "very soft", "sparse") == "peaceful"
    assert mood_of("minor", 160, "very loud", "busy") == "fierce"
    assert mood_of("major", 160, "very loud", "busy") == "triumphant"


def test_another_process_composes_renders_and_captions_the_same():
    program = (
        "import hashlib; from collap.corpora.synthetic.songs import *; "
        "song = compose_song('song-3', 7, 20, 40); "
        "print(hashlib.sha256(render_song(song).tobytes() + long_caption(song, 2).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    song = compose_song("song-3", 7, 20, 40)
    render_song(SONGS[5])  # fills the note cache with another song's notes
    here = hashlib.sha256(render_song(song).tobytes() + long_caption(song, 2).encode()).hexdigest()
    assert run.stdout.strip() == here


# --- rendering


def test_rendering_is_finite_unclipped_and_of_the_exact_length():
    songs = SONGS[:12]
    for rate in (RATE, 22050):
        assert len(render_song(songs[0], rate)) == round(songs[0].seconds * rate)
    for song in songs:
        audio = render_song(song)
        assert audio.dtype == np.float32 and audio.shape == (round(song.seconds * RATE),)
        assert np.isfinite(audio).all() and np.abs(audio).max() < 0.98


def test_dynamics_are_levels():
    for song in SONGS[:25]:
        audio = render_song(song)
        for section in song.sections:
            part = audio[round(section.start * RATE) : round(section.end * RATE)]
            level = 10 * np.log10(np.mean(part**2))
            assert level == pytest.approx(DYNAMICS_DB[section.dynamics], abs=2.0), section  # levels are 6 dB apart


def test_each_dynamic_is_clearly_louder_than_the_one_below():
    song = in_sequence(*(one_section_song("piano", dynamics=level) for level in DYNAMICS_PHRASES))
    parts = np.split(render_song(song), len(DYNAMICS_PHRASES))
    levels = [10 * np.log10(np.mean(part**2)) for part in parts]
    assert min(np.diff(levels)) > 5


def test_a_section_starts_where_it_says():
    song = in_sequence(
        one_section_song("flute", tempo_bpm=97.0),
        one_section_song("flute", "drums", tempo_bpm=97.0),
        one_section_song("flute", tempo_bpm=97.0),
    )
    hats = spectrogram(render_song(song), window=128, hop=16)[:, -16:].sum(axis=1)  # 7 to 8 kHz, a frame each ms
    heard = np.flatnonzero(hats > 0.05 * hats.max()) / 1000
    assert heard[0] == pytest.approx(song.sections[1].start, abs=0.01)
    assert heard[-1] < song.sections[2].start
    assert heard[-1] > song.sections[2].start - 0.6  # hats tick each half beat


def test_audio_changes_at_the_boundaries_of_composed_songs():
    """The log spectrum of a bar differs more across a boundary than between neighbouring bars inside a section."""
    across, inside = [], []
    for song in SONGS[:15]:
        audio, bar = render_song(song), song.bar_seconds
        starts = [section.start for section in song.sections]
        bars = round(song.seconds / bar)
        pieces = [audio[round(i * bar * RATE) : round((i + 1) * bar * RATE)] for i in range(bars)]
        spectra = [10 * np.log10(spectrogram(piece, hop=512).mean(axis=0) + 1e-4) for piece in pieces]
        for i in range(1, bars):
            change = np.abs(spectra[i] - spectra[i - 1]).mean()
            (across if np.min(np.abs(np.array(starts) - i * bar)) < 1e-6 else inside).append(change)
    assert len(across) > 40
    threshold = np.quantile(inside, 0.9)
    assert np.mean(np.array(across) > threshold) > 0.8  # a bar inside a section passes it in 10 %
    assert np.median(across) > 2.5 * np.median(inside)


def log_bands(audio: np.ndarray) -> np.ndarray:
    """Decibels in 40 bands after the level is taken out, (frames, 40)."""
    power = spectrogram(audio)
    edges = np.unique(np.round(np.geomspace(2, power.shape[1] - 1, 41)).astype(int))
    return 10 * np.log10(np.add.reduceat(power / power.sum(), edges, axis=1) + 1e-9)


def test_every_named_instrument_is_heard_in_the_mix():
    """Leaving one out of a section changes its spectrum everywhere, however full the arrangement."""
    changes = []
    for song in SONGS[:15]:
        for section in song.sections:
            excerpt = replace(section, start=0.0, end=2 * song.bar_seconds)
            whole = log_bands(render_song(replace(song, seconds=excerpt.end, sections=(excerpt,))))
            for name in section.instruments if len(section.instruments) > 1 else ():
                rest = replace(excerpt, instruments=tuple(other for other in section.instruments if other != name))
                without = log_bands(render_song(replace(song, seconds=excerpt.end, sections=(rest,))))
                changes.append(np.abs(whole - without).mean())
    assert len(changes) > 100
    assert min(changes) > 0.8 and np.median(changes) > 4  # dB


def timbre_features(audio: np.ndarray) -> np.ndarray:
    """Level-free: mean log spectrum in 40 bands, and how the energy moves within notes."""
    power = spectrogram(audio)
    edges = np.unique(np.round(np.geomspace(2, power.shape[1] - 1, 41)).astype(int))
    bands = np.log10(np.add.reduceat(power, edges, axis=1) + 1e-6)
    energy = 10 * np.log10(power.sum(axis=1) + 1e-3)
    moves = np.diff(energy)
    shape = [np.std(energy), np.mean(np.abs(moves)), np.quantile(moves, 0.99), np.quantile(energy, 0.1) - energy.max()]
    return np.concatenate([bands.mean(axis=0) - bands.mean(), bands.std(axis=0), 0.1 * np.array(shape)])


def features(instrument: str, **kind: str | float) -> np.ndarray:
    return timbre_features(render_song(one_section_song(instrument, **kind)))


def test_every_instrument_can_be_told_from_the_others():
    """A render in another key, mode and tempo lies nearest to the centroid of its own instrument, at each register and
    density (these move the spectrum too, so each has its centroids; a bass in the low register is the same bass)."""
    right = dict.fromkeys(INSTRUMENTS, 0)
    conditions = list(product(("low", "middle", "high"), ("sparse", "moderate", "busy")))
    for register, density in conditions:
        levels = {"register": register, "density": density}
        centroids = [
            np.mean([features(name, key=key, **levels) for key in ("C", "F#")], axis=0) for name in INSTRUMENTS
        ]
        for index, name in enumerate(INSTRUMENTS):
            heard = features(name, key="A", mode="minor", tempo_bpm=96.0, **levels)
            right[name] += np.argmin(np.linalg.norm(np.stack(centroids) - heard, axis=1)) == index
    assert len(INSTRUMENTS) >= 10
    assert right == {name: len(conditions) for name in INSTRUMENTS}


def test_voices_differ_at_the_same_pitch():
    """Not only what is played differs: one note is told by its sound from the same note of any other instrument."""
    voices = {name: instrument.voice for name, instrument in INSTRUMENTS.items() if name != "drums"}

    def one_note(name: str, midi: int, seconds: float) -> np.ndarray:
        note = voices[name](midi, round(seconds * RATE), RATE)
        return timbre_features(note / np.abs(note).max())

    for midi in (48, 60, 72):
        centroids = np.stack([(one_note(name, midi, 0.45) + one_note(name, midi, 0.7)) / 2 for name in voices])
        for index, name in enumerate(voices):
            distances = np.linalg.norm(centroids - one_note(name, midi, 0.55), axis=1)
            assert distances[index] < 0.6 * np.delete(distances, index).min(), (name, midi)


@pytest.mark.parametrize("instrument", PITCHED)
def test_register_is_an_octave(instrument):
    """The lowest strong partial doubles from one register to the next."""
    lowest = []
    for register in ("low", "middle", "high"):
        power = spectrogram(render_song(one_section_song(instrument, register=register)), window=8192, hop=2048)
        power = power.mean(axis=0)
        lowest.append(np.flatnonzero(power > 0.005 * power.max())[0])
    for lower, upper in pairwise(lowest):
        assert 1.6 < upper / lower < 2.7, lowest


def count_onsets(audio: np.ndarray) -> int:
    """Places where the level rises by 4 dB within 60 ms; those closer than 60 ms count once."""
    energy = np.convolve(np.pad(audio, (1600, 0)) ** 2, np.hanning(960) / 480, mode="same")[::80]
    level = 10 * np.log10(energy + 1e-9)
    floor = np.lib.stride_tricks.sliding_window_view(level, 12).min(axis=1)[:-1]
    rising = np.flatnonzero(level[12:] - floor[: len(level) - 12] > 4)
    return 1 + int((np.diff(rising) > 12).sum())


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_density_is_the_number_of_onsets(instrument):
    counts = [
        count_onsets(render_song(one_section_song(instrument, density=density, tempo_bpm=90.0)))
        for density in ("sparse", "moderate", "busy")
    ]
    assert counts[1] >= 1.4 * counts[0] and counts[2] >= 1.2 * counts[1], counts


@pytest.mark.parametrize("tempo_bpm", [70.0, 101.0, 128.0, 163.0])
def test_tempo_of_a_drum_section_is_heard(tempo_bpm):
    strength = onset_strength(render_song(one_section_song("drums", "bass", tempo_bpm=tempo_bpm, bars=8)))
    strength = strength - strength.mean()
    correlation = np.correlate(strength, strength, mode="full")[len(strength) - 1 :]
    correlation = correlation / np.arange(len(strength), 0, -1)

    def strength_of(bpm):
        lags = np.arange(1, 9) * 6000 / bpm  # 1 to 8 beats, in frames of 10 ms
        return np.interp(lags, np.arange(len(correlation)), correlation).mean()

    candidates = np.arange(60, 176, 0.5)
    best = candidates[np.argmax([strength_of(bpm) for bpm in candidates])]
    octaves = [best / tempo_bpm * factor for factor in (0.5, 1, 2)]
    assert min(abs(ratio - 1) for ratio in octaves) < 0.015, best


def test_key_is_heard():
    """The key whose scale holds the most energy is the song's, or one that shares six of its seven notes."""
    for key in ("C", "Eb", "A"):
        power = spectrogram(render_song(one_section_song("organ", "flute", key=key)), window=8192, hop=4096).mean(
            axis=0
        )
        frequencies = np.fft.rfftfreq(8192, 1 / RATE)
        keep = (frequencies > 100) & (frequencies < 1200)
        classes = np.round(69 + 12 * np.log2(frequencies[keep] / 440)).astype(int) % 12
        chroma = np.bincount(classes, weights=power[keep], minlength=12)
        tonic = KEYS.index(key)
        inside = [sum(chroma[(root + step) % 12] for step in SCALES["major"]) for root in range(12)]
        assert (int(np.argmax(inside)) - tonic) % 12 in (0, 5, 7)
        assert inside[tonic] > 0.9 * chroma.sum()


def test_what_cannot_be_rendered_is_named():
    with pytest.raises(ValueError, match=r"by hand.*kazoo.*known: drums"):
        render_song(one_section_song("kazoo"))
    with pytest.raises(ValueError, match="sampling_rate is 4000"):
        render_song(SONGS[0], 4000)


# --- captions


def named_instruments(text: str) -> set[str]:
    """Instruments in a text; longer phrases first, so that "electric guitar" is not read twice."""
    words = [(phrase, name) for name, phrases in INSTRUMENT_PHRASES.items() for phrase in phrases]
    found = set()
    for phrase, name in sorted(words, key=lambda pair: -len(pair[0])):
        text, hits = re.subn(rf"\b{re.escape(phrase)}\b", "_", text)
        found |= {name} if hits else set()
    return found


@pytest.mark.parametrize("variant", range(4))
def test_a_long_caption_states_every_section_in_order(variant):
    for song in SONGS[:60]:
        overview, *lines = long_caption(song, variant).split("\n")
        assert f"{song.key} {song.mode}" in overview and str(round(song.tempo_bpm)) in overview
        assert clock(song.seconds) in overview
        assert len(lines) == len(song.sections)
        before = set()
        for line, section in zip(lines, song.sections, strict=True):
            times = re.findall(r"\d+:\d\d", line)
            assert times == [clock(section.start), clock(section.end)]
            assert section.label in line
            playing = set(section.instruments)
            assert playing <= named_instruments(line) <= playing | before  # the rest is what the section dropped
            levels = ((DYNAMICS_PHRASES, section.dynamics), (DENSITY_PHRASES, section.density))
            for phrases, level in (*levels, (REGISTER_PHRASES, section.register), (MOOD_PHRASES, section.mood)):
                assert any(phrase in line.lower() for phrase in phrases[level]), (line, level)
            before = playing


def test_a_caption_says_what_changed():
    quiet = one_section_song("flute", "drums", dynamics="very soft")
    loud = one_section_song("flute", "brass", dynamics="loud")
    last = long_caption(in_sequence(quiet, loud), 0).split("\n")[-1]
    assert "adds brass, drops drums and gets much louder." in last
    last = long_caption(in_sequence(loud, quiet), 0).split("\n")[-1]
    assert "adds drums, drops brass and gets much softer." in last


def test_caption_lengths():
    four_minutes = [compose_song(f"long-{number}", 0, 235, 245) for number in range(60)]
    assert min(len(long_caption(song, variant).split()) for song in four_minutes for variant in range(4)) >= 200
    assert max(len(long_caption(song, variant).split()) for song in SONGS for variant in range(4)) <= 460
    for song in SONGS:
        for variant in range(5):
            caption = short_caption(song, variant)
            assert 15 <= len(caption.split()) <= 35, caption
            assert caption.count(".") == 1 and caption.endswith(".")
            expected = set(song.sections[0].instruments) | set(song.sections[-1].instruments)
            assert named_instruments(caption[0].lower() + caption[1:]) == expected


def test_captions_vary_in_words_and_never_coincide():
    for caption in (long_caption, short_caption):
        texts = [caption(song, variant) for song in SONGS for variant in range(4)]
        assert len(set(texts)) == len(texts)
        assert texts[:4] == [caption(SONGS[0], variant) for variant in range(4)]
    openings = {" ".join(long_caption(song, 0).split()[:2]) for song in SONGS}
    assert len(openings) > 20
    with pytest.raises(ValueError, match="variant is -1"):
        long_caption(SONGS[0], -1)


# --- the corpus on disk

SMALL = {"num_songs": {"train": 3, "validation": 1, "test": 2}, "min_seconds": 12.0, "max_seconds": 16.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("data") / "songs", num_workers=2, **SMALL)


def test_datasets_reads_the_corpus(corpus, tmp_path, monkeypatch):
    # datasets 5.2 imports torchcodec, which needs FFmpeg on the system, before it looks at what it encodes.
    # A path needs neither, and everything else of audiofolder runs as it is.
    monkeypatch.setattr(Audio, "encode_example", lambda self, path: {"bytes": None, "path": path})
    splits = load_dataset("audiofolder", data_dir=str(corpus), cache_dir=str(tmp_path)).cast_column(
        "audio", Audio(decode=False)
    )
    assert {name: len(rows) for name, rows in splits.items()} == SMALL["num_songs"]
    row = splits["test"][1]
    assert set(row) == {
        *("audio", "song_id", "captions", "short_captions", "seconds", "tempo_bpm", "key", "mode", "sections"),
    }
    song = compose_song("test-0002", 0, 12.0, 16.0)
    audio, rate = soundfile.read(row["audio"]["path"], dtype="float32")
    assert rate == RATE and row["song_id"] == song.song_id
    np.testing.assert_allclose(audio, render_song(song), atol=1.1 / 32768 + 1.0 / 32768)  # 16 bits, full scale 32767
    assert row["captions"] == [long_caption(song, variant) for variant in range(3)]
    assert row["short_captions"] == [short_caption(song, variant) for variant in range(3)]
    assert (row["seconds"], row["tempo_bpm"], row["key"], row["mode"]) == (
        *(song.seconds, song.tempo_bpm, song.key, song.mode),
    )
    assert [(s["label"], s["start"], s["end"], tuple(s["instruments"])) for s in row["sections"]] == [
        (s.label, s.start, s.end, s.instruments) for s in song.sections
    ]
    assert set(row["sections"][0]) == {
        *("label", "start", "end", "instruments", "dynamics", "register", "density", "mood"),
    }
    ids = [song_id for rows in splits.values() for song_id in rows["song_id"]]
    captions = [caption for rows in splits.values() for row in rows["captions"] for caption in row]
    assert len(set(ids)) == 6 and len(set(captions)) == 18


def test_metadata_is_read_without_torchcodec(corpus, tmp_path):
    files = {split: str(corpus / split / "metadata.jsonl") for split in SMALL["num_songs"]}
    splits = load_dataset("json", data_files=files, cache_dir=str(tmp_path))
    for split, rows in splits.items():
        assert len(rows) == SMALL["num_songs"][split]
        assert all((corpus / split / name).is_file() for name in rows["file_name"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_number_of_workers_changes_nothing(corpus, tmp_path):
    assert contents(build_corpus(tmp_path / "alone", num_workers=1, **SMALL)) == contents(corpus)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone"]


def test_a_second_build_returns_at_once_and_other_settings_are_refused(corpus, monkeypatch):
    monkeypatch.setattr(synthetic_songs, "_write_song", lambda *_: pytest.fail("a song was rendered again"))
    assert build_corpus(corpus, num_workers=1, **SMALL) == corpus
    with pytest.raises(ValueError, match="seed is 0, asked for 5"):
        build_corpus(corpus, seed=5, **SMALL)
    with pytest.raises(ValueError, match=r"num_songs is .* asked for"):
        build_corpus(corpus, **{**SMALL, "num_songs": {"train": 4}})
    monkeypatch.setattr(synthetic_songs, "GENERATOR_VERSION", 99)
    with pytest.raises(ValueError, match=r"generator_version is .*, asked for 99"):
        build_corpus(corpus, **SMALL)


def test_a_killed_build_leaves_no_corpus(tmp_path, monkeypatch, capsys):
    write_song = synthetic_songs._write_song

    def die_at_the_test_split(folder, settings, song_id):
        if song_id == "test-0001":
            os._exit(9)
        return write_song(folder, settings, song_id)

    monkeypatch.setattr(synthetic_songs, "_write_song", die_at_the_test_split)
    builder = multiprocessing.get_context("fork").Process(
        target=build_corpus, args=(tmp_path / "songs",), kwargs={**SMALL, "num_workers": 1}
    )
    builder.start()
    builder.join()
    assert builder.exitcode == 9
    assert list(tmp_path.glob("songs.partial-*/train/*.flac")) and not (tmp_path / "songs").exists()
    monkeypatch.undo()
    (leftover,) = tmp_path.glob("songs.partial-*")
    left = contents(leftover)
    capsys.readouterr()
    assert len(list(build_corpus(tmp_path / "songs", num_workers=1, **SMALL).rglob("*.flac"))) == 6
    said = [line for line in capsys.readouterr().err.splitlines() if "unfinished build" in line]
    assert len(said) == 1 and said[0].startswith(f"{leftover} is an unfinished build of {tmp_path / 'songs'}; delete")
    assert contents(leftover) == left


def test_an_error_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(synthetic_songs.soundfile, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build_corpus(tmp_path / "songs", num_workers=1, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds no corpus\.json"):
        build_corpus(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_songs": {"dev": 3}}, r"splits \['dev'\]; expected one or more of train, validation, test"),
        ({"num_songs": {"train": 0}}, r"num_songs\['train'\] is 0, expected 1 or more"),
        ({"captions_per_song": 0}, "captions_per_song is 0"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"sampling_rate": 4000}, "sampling_rate is 4000"),
        ({"max_seconds": 30.0}, "min_seconds is 60.0 and max_seconds is 30.0"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        build_corpus(tmp_path / "songs", **settings)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "songs"
    settings = "--train 2 --validation 1 --test 0 --min_seconds 12 --max_seconds 14 --num_workers 1"
    command = [str(folder), *settings.split()]
    assert run_command("corpus render", command) == 0
    rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["train-0001.flac", "train-0002.flac"]
    assert sorted(path.name for path in folder.iterdir()) == ["corpus.json", "train", "validation"]
    assert run_command("corpus render", [*command, "--seed", "4"]) == 2
    assert "seed is 0, asked for 4" in capsys.readouterr().err
