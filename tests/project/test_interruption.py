"""Ctrl-C, and a limit of the system, end a program in one line and at once, with all the processes that it started."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from deadly import rename_song
from runs import REPOSITORY, command, environment, settings, start_processes, train

from collap.cli import main as collap
from train import run_script


def start(line: list[str]) -> subprocess.Popen:
    """Start a program as a terminal does, in a process group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, cwd=REPOSITORY, env=environment(), start_new_session=True, **pipes)


class Forked:
    """The same, forked from this process, which has imported all that the program needs."""

    def __init__(self, folder: Path, script, arguments: list[str], file_bytes: int = resource.RLIM_INFINITY):
        def run(given: list[str]):
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
            return script(given)

        self.log = folder / "log"
        (self.process,) = start_processes(arguments, self.log, 1, run)
        self.pid = self.process.pid

    def communicate(self, timeout: float) -> tuple[str, None]:
        self.process.join(timeout)
        return self.log.read_text(), None

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


def wait_for_readers(process: subprocess.Popen | Forked, count: int) -> list[psutil.Process]:
    """Wait until some processes decode for a program; return all that it has started."""
    for _ in range(1200):
        family = psutil.Process(process.pid).children(recursive=True)
        if sum("reader_process" in " ".join(one.cmdline()) for one in family) >= count:
            time.sleep(1)  # for them to begin with a file
            return family
        time.sleep(0.1)
    raise AssertionError("nothing is read")


def interrupted(process: subprocess.Popen | Forked, count: int) -> list[str]:
    """Press Ctrl-C while files are read; return the lines that are printed."""
    family = wait_for_readers(process, count)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert "Traceback" not in output and "KeyboardInterrupt" not in output, output[-3000:]
    return output.strip().splitlines()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ctrl_c_ends_training_in_one_line(deadly, corpus, backbones, tmp_path, num_workers):
    songs = corpus
    for row in range(8):
        songs = rename_song(songs, tmp_path / f"songs-{row}", "train", row, f"sleeps-{row}.flac")
    config = settings(songs, backbones, num_workers=num_workers, crop_seconds=5.0, eval_split="none")
    line = command(tmp_path, config)
    process = start(line) if num_workers else Forked(tmp_path, run_script, line[2:])
    lines = interrupted(process, max(num_workers, 1))
    assert process.returncode == 1
    assert lines[-1] == "stopped by Ctrl-C; go on after the last checkpoint with --resume latest"


@pytest.mark.parametrize("name", ["evaluate", "precompute"])
def test_ctrl_c_ends_a_command_in_one_line(deadly, corpus, model_folder, tmp_path, name):
    songs = rename_song(corpus, tmp_path / "songs", "test", 0, "sleeps.flac")
    more = {"evaluate": ["--text_column", "captions"], "precompute": ["--splits", "test"]}[name]
    options = ["--model", str(model_folder), "--dataset", str(songs), "--output_dir", str(tmp_path / "out"), *more]
    fresh = name == "evaluate"
    process = (
        start([sys.executable, "-m", "collap", name, *options]) if fresh else Forked(tmp_path, collap, [name, *options])
    )
    lines = interrupted(process, 1)
    assert process.returncode == 130 and lines[-1] == "error: interrupted"


def test_workers_that_cannot_hand_over_a_batch_say_so(corpus, backbones, tmp_path):
    """Shared memory is a file: a limit on those (64 kB: less than a batch, more than what else a run writes first) is
    met in the thread of a worker that nobody listens to."""
    config = settings(corpus, backbones, num_workers=2, eval_split="none")
    assert train(tmp_path / "before", config, epochs=1).returncode == 0  # so that the durations are known
    process = Forked(tmp_path, run_script, command(tmp_path, config)[2:], file_bytes=64 * 1024)
    output, _ = process.communicate(timeout=60)
    last = output.strip().splitlines()[-1]
    assert process.returncode == 1 and "Traceback" not in output, output[-3000:]
    assert last.startswith("error: OSError: a worker cannot hand over its batch") and "File too large" in last
