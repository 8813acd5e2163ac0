"""A file that kills the process that decodes it is a bad file: named, counted, and the run goes on."""

import json
import logging
import os
import signal
import time

import numpy as np
import psutil
import pytest
import soundfile
from deadly import rename_song
from runs import run_collap, settings, start_processes, train
from tiny import REFERENCE

from collap.data import guarded_reading
from collap.data.reader_process import MAX_PROCESSOR_SECONDS
from processing import decode_audio
from processing.decode_audio import AudioFileError

CASES = REFERENCE / "cases"


@pytest.fixture
def song(tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, np.random.default_rng(0).normal(size=16000 * 70) * 0.1, 16000)
    return path


@pytest.mark.parametrize("name", ["oggenc_music.ogg", "lame_vbr_music.mp3", "music.wma", "adpcm_ms.wav"])
def test_samples_lengths_and_warnings_are_those_of_this_process(name, caplog):
    for source in (str(CASES / name), (CASES / name).read_bytes()):
        found = guarded_reading.load_audio(source)
        np.testing.assert_array_equal(found, decode_audio.load_audio(source))
        assert found.dtype == np.float32 and found.flags.writeable
        blocks = list(guarded_reading.stream_audio(source, 22050, block_seconds=0.7))
        for block, expected in zip(blocks, decode_audio.stream_audio(source, 22050, block_seconds=0.7), strict=True):
            np.testing.assert_array_equal(block, expected)
        crop = guarded_reading.load_crop(source, 1.5, 0.4)
        np.testing.assert_array_equal(crop, decode_audio.load_crop(source, 1.5, 0.4))
        assert guarded_reading.header_seconds(source) == decode_audio.header_seconds(source)
    cut = (CASES / "oggenc_music.ogg").read_bytes()[:-3000]
    said = []
    for reading in (decode_audio, guarded_reading):
        with caplog.at_level(logging.WARNING, "processing.decode_audio"):
            caplog.clear()
            reading.load_audio(cut)
        said.append([record.getMessage() for record in caplog.records if record.name == "processing.decode_audio"])
    assert said[0] == said[1] and "is cut" in said[0][0]


@pytest.mark.parametrize("source", [b"not music", "missing.wav", str(CASES), b""])
def test_errors_are_those_of_this_process(source, tmp_path, monkeypatch, no_readers):
    guarded_reading.load_audio((CASES / "wav_64_bit.wav").read_bytes())  # a reader with another working directory
    monkeypatch.chdir(tmp_path)
    for function in ("load_audio", "header_seconds"):
        with pytest.raises(AudioFileError) as expected:
            getattr(decode_audio, function)(source)
        with pytest.raises(AudioFileError) as found:
            getattr(guarded_reading, function)(source)
        assert str(found.value) == str(expected.value)
    (tmp_path / "here.wav").write_bytes((CASES / "wav_64_bit.wav").read_bytes())
    assert len(guarded_reading.load_audio("here.wav")) == 4000
    assert len(guarded_reading._idle) == 1  # the same one all the time


def test_a_deadly_file_is_named_with_its_cause_and_the_next_one_is_read(deadly, song, capfd):
    for name, cause in (
        ("kills.wav", "was killed by SIGSEGV"),
        ("exits.wav", "ended with exit code 3"),
        ("spins.wav", "was killed by SIGXCPU, because it took more processor time"),
    ):
        path = song.with_name(name)
        path.write_bytes(song.read_bytes())
        for read in (guarded_reading.load_audio, guarded_reading.header_seconds):
            with pytest.raises(AudioFileError) as caught:
                read(str(path))
            assert str(caught.value).startswith(f"{path}: the process that decoded it {cause}")
            assert "\n" not in str(caught.value)
        assert len(guarded_reading.load_audio(str(song))) == 70 * 16000
    assert "a library prints this" in capfd.readouterr().err


def test_a_reader_that_died_between_files_is_replaced(no_readers, song):
    guarded_reading.header_seconds(str(song))
    (reader,) = guarded_reading._idle
    os.kill(reader.process.pid, signal.SIGKILL)
    reader.process.wait()
    assert guarded_reading.header_seconds(str(song)) == 70.0


def test_signals_for_a_whole_job_leave_a_reader_to_its_file(no_readers, song):
    guarded_reading.header_seconds(str(song))
    (reader,) = guarded_reading._idle
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(reader.process.pid, number)
    assert guarded_reading.header_seconds(str(song)) == 70.0
    assert guarded_reading._idle == [reader]


def test_a_stream_that_is_left_in_the_middle_disturbs_no_other(no_readers, song):
    first = guarded_reading.stream_audio(str(song), block_seconds=1.0)
    block = next(first)
    np.testing.assert_array_equal(block, guarded_reading.load_audio(str(song))[:16000])  # beside the first
    np.testing.assert_array_equal(next(first), guarded_reading.load_audio(str(song))[16000:32000])
    first.close()
    assert len(guarded_reading._idle) == 1
    assert len(guarded_reading.load_audio(str(song))) == 70 * 16000


def test_a_reader_that_cannot_start_is_no_bad_file(monkeypatch, no_readers, song):
    monkeypatch.setattr(guarded_reading, "START", "raise SystemExit(5)")
    with pytest.raises(OSError, match="the process that reads audio ended with exit code 5 before it could begin"):
        guarded_reading.load_audio(str(song))


def test_readers_end_with_a_process_that_is_killed(deadly, song):
    """One that waits for a request, and one in the midst of a file."""
    path = song.with_name("sleeps.wav")
    path.write_bytes(song.read_bytes())

    def ask(arguments):
        readers = [guarded_reading._Reader(), guarded_reading._Reader()]
        guarded_reading._idle.extend(readers)
        print(*(reader.process.pid for reader in readers), flush=True)
        guarded_reading.header_seconds(str(path))

    (asking,) = start_processes([], log := song.with_name("log"), 1, ask)
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.02)
    readers = [psutil.Process(int(pid)) for pid in log.read_text().split()]
    time.sleep(0.3)
    asking.kill()
    asking.join()
    for reader in readers:
        reader.wait(timeout=5)
        assert not reader.is_running()


def test_the_limit_of_processor_time_counts_for_each_file():
    assert MAX_PROCESSOR_SECONDS == 600
    guarded_reading.header_seconds((CASES / "wav_64_bit.wav").read_bytes())
    soft, _ = psutil.Process(guarded_reading._idle[0].process.pid).rlimit(psutil.RLIMIT_CPU)
    assert MAX_PROCESSOR_SECONDS <= soft <= MAX_PROCESSOR_SECONDS + 60


@pytest.mark.parametrize(("num_workers", "streaming"), [(2, False), (0, False), (1, True)])
def test_a_run_names_a_file_that_kills_its_reader_and_goes_on(
    deadly, corpus, backbones, tmp_path, num_workers, streaming
):
    songs = rename_song(corpus, tmp_path / "songs", "train", 3, "kills.flac")
    more = {"streaming": True, "steps_per_epoch": 2, "eval_split": "none"} if streaming else {"eval_split": "none"}
    config = settings(songs, backbones, epochs=1, max_bad_share=0.3, num_workers=num_workers, **more)
    done = train(tmp_path, config)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("skipped row ")]
    assert len(lines) == 1 and "(kills.flac)" in lines[0] and "killed by SIGSEGV" in lines[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bad_files"] == 1 and summary["songs"] == 8 and summary["finished"]
    assert "Traceback" not in done.stderr


def test_features_are_cached_beside_a_file_that_kills_its_reader(deadly, corpus, backbones, tmp_path):
    songs = rename_song(corpus, tmp_path / "songs", "train", 3, "kills.flac")
    config = settings(songs, backbones, epochs=1, max_bad_share=0.3, eval_split="none", cache_features=True)
    done = train(tmp_path, config, num_workers=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kills.flac" in done.stdout and json.loads((tmp_path / "run" / "summary.json").read_text())["bad_files"] == 1


def test_a_run_leaves_a_deadly_file_out_of_its_evaluation(deadly, corpus, backbones, tmp_path):
    songs = rename_song(corpus, tmp_path / "songs", "validation", 1, "kills.flac")
    done = train(tmp_path, settings(songs, backbones, epochs=1, max_bad_share=0.3))
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("not evaluated: row 1 (kills.flac)")]
    assert "killed by SIGSEGV" in line


@pytest.mark.parametrize("command", ["evaluate", "precompute", "data check"])
def test_the_commands_name_it_in_one_line(deadly, corpus, model_folder, tmp_path, command):
    songs = rename_song(corpus, tmp_path / "songs", "test", 1, "kills.flac")
    arguments = {
        "evaluate": ["--model", model_folder, "--text_column", "captions", "--output_dir", tmp_path / "results"],
        "precompute": ["--model", model_folder, "--splits", "test", "--output_dir", tmp_path / "tokens"],
        "data check": ["--text_column", "captions"],
    }[command]
    dataset = [songs] if command == "data check" else ["--dataset", songs]
    done = run_collap(tmp_path, *command.split(), *dataset, *arguments)
    output = done.stdout
    assert "Traceback" not in output and done.returncode == (0 if command == "data check" else 1), output[-3000:]
    (line, *_) = [line for line in output.splitlines() if "row 1 (kills.flac)" in line]
    assert "killed by SIGSEGV" in line
