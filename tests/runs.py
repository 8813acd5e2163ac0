"""Runs of train.py as a user starts them: real processes, real files."""

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState

from collap.cli import main as collap
from train import run_script

REPOSITORY = Path(__file__).parent.parent


def settings(corpus, backbones, text="gpt2", **overrides) -> dict:
    return {
        "dataset": str(corpus),
        "text_column": "captions",
        "song_column": "song_id",
        "text": str(backbones[text]),
        "music": str(backbones["beats"]),
        "speech": str(backbones["whisper"]),
        "model_config": {"projection_dim": 16, "segment_seconds": 2, "kernel_seconds": 1, "stride_seconds": 0.5},
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "log_every": 1,
        "num_workers": 0,
        **overrides,
    }


def command(folder: Path, config: dict, num_processes: int = 1) -> list[str]:
    """The command line of a run in `folder/run`, its settings in a file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    script = [str(REPOSITORY / "train.py"), str(folder / "config.yaml"), "--output_dir", str(folder / "run")]
    if num_processes == 1:
        return [sys.executable, *script]
    launcher = [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(num_processes),
        "--main_process_port",
        "0",
    ]
    return [sys.executable, "-m", *launcher, *script]


def environment() -> dict[str, str]:
    """Of a process on the CPU that shares the machine."""
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def train(folder: Path, config: dict, num_processes: int = 1, **overrides) -> subprocess.CompletedProcess:
    """train.py in one process or several, to its end; the output of all together is `stderr` and `stdout`."""
    arguments = command(folder, {**config, **overrides})[2:]
    log = folder / "train.log"
    log.write_text("")
    processes = start_processes(arguments, log, num_processes)
    while alive := [process for process in processes if process.is_alive()]:
        multiprocessing.connection.wait([process.sentinel for process in alive], timeout=1)
        if any(process.exitcode for process in processes):
            for process in alive:  # as a launcher does: the others would wait for the one that failed
                process.join(timeout=5)
                process.kill()
    codes = [process.exitcode for process in processes]
    output = log.read_text()
    return subprocess.CompletedProcess(arguments, next((code for code in codes if code), 0), output, output)


def run_collap(folder: Path, *arguments) -> subprocess.CompletedProcess:
    """Run a command of `collap` in a process of its own, forked like one of train.py; `stdout` is all it says."""
    log = folder / "collap.log"
    (process,) = start_processes(list(map(str, arguments)), log, 1, script=collap)
    process.join()
    return subprocess.CompletedProcess(arguments, process.exitcode, log.read_text(), "")


def start_processes(
    arguments: list[str], log: Path, num_processes: int, script: Callable[[list[str]], int | None] = run_script
) -> list[multiprocessing.Process]:
    """Processes of train.py, or of another script, forked from this one: importing torch and transformers takes longer
    than these runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(num_processes)}
    processes = []
    for rank in range(num_processes):
        place = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(num_processes)}
        process = multiprocessing.get_context("fork").Process(
            target=_run, args=(script, arguments, log, place if num_processes > 1 else {})
        )
        process.start()
        processes.append(process)
    return processes


def _run(script: Callable[[list[str]], int | None], arguments: list[str], log: Path, place: dict[str, str]):
    with log.open("a") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    for handler in logging.getLogger("transformers").handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)  # it was made for that of the tests
    os.environ.update(environment() | place)
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    sys.exit(script(arguments))


def evaluations(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path) -> dict[str, list[float]]:
    """What tensorboard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in run.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
