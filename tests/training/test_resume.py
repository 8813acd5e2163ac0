"""A killed run, resumed, ends with the weights of one that was never killed: bit for bit, on one and two processes."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from runs import REPOSITORY, command, environment, evaluations, settings, start_processes, train
from safetensors.torch import load_file
from tiny import tiny_config
from transformers import AutoConfig

from collap.data.batches import AudioTextBatch, BadFiles
from collap.training.run import Run, SkippedSteps
from collap.training.settings import TrainSettings
from collap.training.tracking import StepMeter
from modeling_collap import CoLLAPOutput
from train import main
from train import train as train_loop

STEPS = 16


@pytest.fixture(scope="module")
def with_dropout(backbones, tmp_path_factory) -> dict[str, Path]:
    """Backbones whose training draws random numbers: a resumed run must draw the same."""
    folder = tmp_path_factory.mktemp("dropout")
    for name, overrides in (("gpt2", {"resid_pdrop": 0.2, "embd_pdrop": 0.2}), ("beats", {"hidden_dropout": 0.2})):
        copied = folder / f"{name}-dropout"
        copied.mkdir()
        for file in backbones[name].iterdir():
            if file.name != "config.json":
                (copied / file.name).symlink_to(file)
        config = AutoConfig.from_pretrained(backbones[name])
        config.update(overrides)
        config.save_pretrained(copied)
    return {**backbones, "gpt2": folder / "gpt2-dropout", "beats": folder / "beats-dropout"}


@pytest.fixture(scope="module")
def whole(corpus, with_dropout, tmp_path_factory):
    """Numbers of processes, and of workers of each -> the folder of a run that was never killed."""

    @functools.cache
    def run(num_processes: int, num_workers: int) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        done = train(folder, killable(corpus, with_dropout, num_workers=num_workers), num_processes)
        assert done.returncode == 0, done.stderr[-3000:]
        return folder / "run"

    return run


def killable(corpus, backbones, **overrides) -> dict:
    """Crops, dropout, micro-batches and a worker: all that has a state; a checkpoint every three steps."""
    state = {"crop_seconds": 5.0, "micro_batch_size": 3, "num_workers": 1, "seed": 4}
    often = {"epochs": STEPS // 2, "eval_every": 3, "checkpoint_every": 3, "max_skipped_steps": 3, "resume": "latest"}
    return settings(corpus, backbones, **state | often | overrides)


def launched(folder: Path, config: dict, num_processes: int, log: Path) -> list[psutil.Process]:
    """The run, as users start it: the launcher, whose processes import torch anew."""
    line = command(folder, config, num_processes)
    if num_processes == 1:
        line = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", *line[1:]]
    with log.open("w") as output:
        return [psutil.Popen(line, stdout=output, stderr=output, cwd=REPOSITORY, env=environment())]


def forked(folder: Path, config: dict, num_processes: int, log: Path) -> list[psutil.Process]:
    """The same processes without a launcher, in a fraction of the time."""
    log.write_text("")
    processes = start_processes(command(folder, config)[2:], log, num_processes)
    return [psutil.Process(process.pid) for process in processes]


def train_and_kill(folder: Path, config: dict, num_processes: int, kills: int, seed: int, start) -> int:
    """Starts the run, by `launched` or `forked`, and kills it after a random time, again and again; then it may finish.

    Returns:
        How often it was killed while it was training.
    """
    generator, killed = random.Random(seed), 0
    folder.mkdir(exist_ok=True)
    for attempt in range(10 * kills + 10):
        log = folder / f"{attempt}.log"
        processes = start(folder, config, num_processes, log)
        if killed == kills:
            assert [process.wait(timeout=300) for process in processes] == [0] * len(processes), log.read_text()[-3000:]
            return killed
        wait_for_steps(processes, log)
        time.sleep(generator.uniform(0, 1.5))
        was_killed = any(is_alive(process) for process in processes)
        if was_killed:
            kill_all(processes)
        codes = [process.wait() for process in processes]
        assert was_killed or codes == [0] * len(processes), log.read_text()[-3000:]
        killed += was_killed
    raise AssertionError(f"killed {killed} times, expected {kills}")


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for_steps(processes: list[psutil.Process], log: Path):
    """Until the loop has begun, or a process has ended."""
    while all(is_alive(process) for process in processes) and "training:" not in log.read_text():
        time.sleep(0.02)


def kill_all(processes: list[psutil.Process]):
    """SIGKILL for what was started, its processes (sessions of their own) and their workers."""
    children = [child for process in processes for child in process.children(recursive=True)]
    for member in [*processes, *children]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(children)


def assert_same_run(found: Path, expected: Path):
    """Weights, best model and evaluations."""
    for name in ("last", "best"):
        weights, reference = (load_file(run / name / "model.safetensors") for run in (found, expected))
        assert weights.keys() == reference.keys()
        different = [key for key, value in reference.items() if not weights[key].equal(value)]
        assert not different
    lines, reference = ([{**line, "seconds": 0} for line in evaluations(run)] for run in (found, expected))
    assert lines == reference
    summaries = [json.loads((run / "summary.json").read_text()) for run in (found, expected)]
    assert summaries[0]["finished"] and summaries[0]["songs"] == summaries[1]["songs"]
    assert summaries[0]["best"] == summaries[1]["best"]
    assert not [path.name for path in found.rglob(".*") if path.name.endswith((".tmp", ".old"))]
    assert not list(found.rglob("*.partial"))


@pytest.mark.parametrize(
    ("num_processes", "num_workers", "kills", "start"),
    [
        (1, 1, 2, forked),
        (2, 0, 1, forked),
        pytest.param(1, 1, 12, launched, marks=pytest.mark.slow),
        pytest.param(2, 1, 8, launched, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_points_and_resumed(
    corpus, with_dropout, whole, tmp_path, num_processes, num_workers, kills, start
):
    config = killable(corpus, with_dropout, num_workers=num_workers)
    assert train_and_kill(tmp_path / "killed", config, num_processes, kills, kills, start) == kills
    assert_same_run(tmp_path / "killed" / "run", whole(num_processes, num_workers))


def test_sigterm_to_one_of_two_processes_saves_and_exits_with_0(corpus, with_dropout, whole, tmp_path):
    """Preemption: all stop after the same step, and the rest of the run is that of an uninterrupted one, which had
    evaluations and checkpoints, too."""
    others = {"checkpoint_every": None, "eval_split": "none", "eval_every": 100}
    config = killable(corpus, with_dropout, num_workers=0, **others)
    log = tmp_path / "stopped.log"
    log.write_text("")
    processes = start_processes(command(tmp_path / "stopped", config)[2:], log, 2)
    wait_for_steps([psutil.Process(process.pid) for process in processes], log)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0], log.read_text()[-3000:]
    assert "stopped by SIGTERM after step" in log.read_text()
    (checkpoint,) = (tmp_path / "stopped" / "run" / "checkpoints").glob("step-*")
    assert 0 < int(checkpoint.name.removeprefix("step-")) < STEPS
    again = train(tmp_path / "stopped", config, 2)
    assert again.returncode == 0 and "resumed from" in again.stdout, again.stderr[-3000:]
    runs = (tmp_path / "stopped" / "run", whole(2, 0))
    weights = [load_file(run / "last" / "model.safetensors") for run in runs]
    assert all(weights[0][name].equal(value) for name, value in weights[1].items())


def test_a_finished_run_is_resumed_to_its_end_and_not_overwritten(corpus, backbones, tmp_path):
    config = settings(corpus, backbones, epochs=1)
    assert train(tmp_path, config).returncode == 0
    before = (tmp_path / "run" / "last" / "model.safetensors").read_bytes()
    refused = train(tmp_path, config)
    assert refused.returncode == 1 and "holds a run with checkpoints" in refused.stderr
    resumed = train(tmp_path, config, resume="latest")
    assert resumed.returncode == 0 and "2 of 2 steps" in resumed.stdout, resumed.stderr[-3000:]
    assert (tmp_path / "run" / "last" / "model.safetensors").read_bytes() == before
    other = train(tmp_path, config, resume="latest", learning_rate=5e-4)
    assert other.returncode == 1
    assert "checkpoint of another run: learning_rate was 0.001 and is 0.0005" in other.stderr
    more = train(tmp_path, config, num_processes=2, resume="latest")
    assert more.returncode != 0 and "num_processes was 1 and is 2" in more.stderr


def test_what_moves_no_gradient_and_no_sample_may_change_on_resume_and_nothing_else(corpus, backbones, tmp_path):
    """A moved data set and other micro-batches may, and are said; exchanged captions may not."""
    config = settings(corpus, backbones, epochs=1, checkpoint_every=1, eval_split="none")
    assert train(tmp_path, config).returncode == 0
    for later in (tmp_path / "run" / "checkpoints").glob("step-*2"):
        shutil.rmtree(later)  # as if the run had been killed after its first step
    moved = Path(shutil.copytree(corpus, tmp_path / "moved"))
    table = moved / "train" / "metadata.jsonl"
    content = table.read_text()
    rows = [json.loads(line) for line in content.splitlines()]
    rows[0]["captions"], rows[1]["captions"] = rows[1]["captions"], rows[0]["captions"]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = train(tmp_path, config, resume="latest", dataset=str(moved))
    assert refused.returncode == 1 and "training data was" in refused.stderr and "Traceback" not in refused.stderr
    table.write_text(content)
    resumed = train(tmp_path, config, resume="latest", dataset=str(moved), micro_batch_size=2, log_every=5)
    assert resumed.returncode == 0 and "(1 of 2 steps)" in resumed.stdout, resumed.stderr[-3000:]
    assert "micro_batch_size was None and is 2" in resumed.stdout and "dataset was" in resumed.stdout


def test_a_failing_evaluation_loses_no_step(corpus, with_dropout, whole, tmp_path):
    """A checkpoint is written before the evaluation of its step, which a resumed run repeats."""
    shutil.copytree(corpus, tmp_path / "songs")
    config = killable(tmp_path / "songs", with_dropout, checkpoint_every=None)
    song = tmp_path / "songs" / "validation" / "validation-0002.flac"
    content = song.read_bytes()
    song.write_text("not music")
    failed = train(tmp_path / "failed", config)
    assert failed.returncode == 1 and "validation-0002.flac" in failed.stderr and "Traceback" not in failed.stderr
    assert [path.name for path in (tmp_path / "failed" / "run" / "checkpoints").glob("step-*")] == ["step-00000006"]
    song.write_bytes(content)
    with (tmp_path / "failed" / "run" / "metrics.jsonl").open("a") as lines:
        lines.write('{"epoch": 2, "st')  # as a full disk leaves it
    resumed = train(tmp_path / "failed", config)
    assert resumed.returncode == 0 and "(6 of 16 steps)" in resumed.stdout, resumed.stderr[-3000:]
    assert_same_run(tmp_path / "failed" / "run", whole(1, 1))


def test_a_float16_run_without_a_scale_that_helps_stops(monkeypatch):
    """Overflows lower the loss scale and are no skipped steps; below 1 it is the gradient that is unusable."""

    class Overflowing(torch.nn.Linear):
        """A finite loss with an infinite gradient."""

        def forward(self, **inputs):
            loss = 1 + (self.weight - self.weight.detach()).sum().sqrt()
            return CoLLAPOutput(loss=loss)

    accelerator, model = Accelerator(cpu=True), Overflowing(2, 2)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    accelerator.scaler.scale(torch.ones(()))  # with the first loss it takes its initial scale
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    texts, tokens = {"input_ids": torch.ones(1, 1)}, {"fused_tokens": torch.ones(1, 1, 1)}
    batch = AudioTextBatch(texts, [tokens], ["song"], [1.0], [])
    run = Run(
        settings=TrainSettings(),
        accelerator=accelerator,
        model=model,
        processor=SimpleNamespace(feature_extractor=None),
        optimizer=AcceleratedOptimizer(sgd, scaler=accelerator.scaler),
        scheduler=SimpleNamespace(step=lambda: None),
        data=SimpleNamespace(
            batches=lambda *place: iter([batch] * 4), state_after=lambda *place: None, steps_per_epoch=99
        ),
        evaluations=None,
        checkpoints=None,
        meter=StepMeter(tiny_config()),
        summary=None,
        bad_files=BadFiles(0.0, 1),
        skipped=SkippedSteps(2),
        steps=4,
    )
    before, scales, totals = model.weight.clone(), [], []
    count = run.skipped.count

    def counting(*arguments):
        count(*arguments)
        scales.append(accelerator.scaler.get_scale())
        totals.append(run.skipped.total)

    monkeypatch.setattr(run.skipped, "count", counting)
    with pytest.raises(ValueError, match="2 steps in a row.*norm inf.*song"):
        train_loop(run)
    assert scales == [2, 1, 0.5] and totals == [0, 0, 1] and run.skipped.total == 2
    assert model.weight.equal(before)


def test_unusable_losses_are_skipped_and_counted_and_stop_the_run_with_the_batch(corpus, backbones, tmp_path):
    """A limit below every loss makes each step unusable."""
    config = settings(corpus, backbones, epochs=4, max_loss=1e-6, max_skipped_steps=5, eval_split="none")
    stopped = train(tmp_path, config)
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    last = stopped.stderr.strip().splitlines()[-1]
    assert "5 steps in a row had no usable gradient (loss" in last and "train-000" in last
    config = settings(corpus, backbones, epochs=2, max_loss=1e-6, eval_split="none", resume="latest")
    skipped = train(tmp_path / "other", config)
    assert skipped.returncode == 0, skipped.stderr[-3000:]
    assert json.loads((tmp_path / "other" / "run" / "summary.json").read_text())["skipped_steps"] == 4
    weights, start = (
        load_file(path / "model.safetensors") for path in (tmp_path / "other" / "run" / "last", backbones["beats"])
    )
    assert all(weights[f"audio_tower.music.{name}"].equal(value) for name, value in start.items())


def test_a_stream_resumes_where_it_was(corpus, with_dropout, tmp_path):
    from test_train import write_shards

    write_shards(corpus, tmp_path / "shards")
    stream = {"streaming": True, "steps_per_epoch": 4, "epochs": 4, "song_column": None, "eval_split": "none"}
    config = killable(tmp_path / "shards", with_dropout, **stream, num_workers=2)
    done = train(tmp_path / "whole", config)
    assert done.returncode == 0, done.stderr[-3000:]
    assert train_and_kill(tmp_path / "killed", config, 1, kills=1, seed=0, start=forked) == 1
    weights = [load_file(tmp_path / name / "run" / "last" / "model.safetensors") for name in ("killed", "whole")]
    assert all(weights[0][name].equal(value) for name, value in weights[1].items())


@pytest.mark.parametrize("folder", ["nowhere", "checkpoints"])
def test_a_folder_that_is_no_checkpoint_is_refused(corpus, backbones, tmp_path, folder):
    (tmp_path / "checkpoints").mkdir()
    command(tmp_path, settings(corpus, backbones, resume=str(tmp_path / folder)))
    with pytest.raises(ValueError, match=rf"{folder} is no whole checkpoint"):
        main([str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "run")])
