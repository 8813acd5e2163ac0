"""collap/training/tracking.py: real tensorboard, wandb (offline) and trackio files, and figures of two processes."""

import json
import multiprocessing
import os
import struct
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_config, tiny_model

from collap.training.summary import RunSummary
from collap.training.tracking import (
    StepMeter,
    batch_work,
    check_trackers,
    flat_settings,
    in_batch_accuracy,
    learning_rates,
    song_tokens,
    start_trackers,
    step_metrics,
)
from modeling_collap import CoLLAPOutput

SETTINGS = {"epochs": 2, "eval_split": None, "model_config": {"projection_dim": 16}}


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state for the process; each test starts without."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture(scope="module", autouse=True)
def private_trackio(tmp_path_factory):
    """Read once, when trackio is imported."""
    os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))


def track(folder: Path, name: str, steps: list[int], resumed_step: int = 0, scale: float = 1.0):
    """A run of one process that logs `scale * step` for every step."""
    accelerator = Accelerator(cpu=True)
    start_trackers(accelerator, check_trackers([name]), SETTINGS, folder, resumed_step)
    for step in steps:
        accelerator.log({"train/loss": scale * step}, step=step)
    accelerator.end_training()
    AcceleratorState._reset_state(True)


def tensorboard_curve(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def wandb_records(path: Path) -> list:
    """The records of a run's file: a LevelDB log, with 7 bytes before its first block."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, records, part = path.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(part))
            part = b""
    return records


def wandb_run(folder: Path) -> dict:
    """Id, settings and history of one offline run; wandb's own process may still be writing its end."""
    (file,) = folder.glob("*.wandb")
    found, deadline = {"config": {}, "history": []}, time.monotonic() + 20
    while not any(record.HasField("exit") for record in wandb_records(file)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for record in wandb_records(file):
        if record.HasField("run"):
            found |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
        for update in [*record.run.config.update, *record.config.update]:
            found["config"][update.key] = json.loads(update.value_json)
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found["history"].append((items["_step"], items["train/loss"]))
    return found


def test_tensorboard_hides_what_a_killed_run_logged_beyond_its_checkpoint(tmp_path):
    run = tmp_path / "collap-gpt2"
    track(run, "tensorboard", [1, 2, 3, 4])
    track(run, "tensorboard", [3, 4, 5], resumed_step=2, scale=10.0)
    assert tensorboard_curve(run / "tensorboard") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert [path for path in (run / "tensorboard").iterdir() if path.is_dir()] == []
    metadata = EventAccumulator(str(run / "tensorboard")).Reload().summary_metadata
    stored = b"".join(one.plugin_data.content for one in metadata.values())
    assert b"model_config/projection_dim" in stored


def test_a_new_run_in_an_old_folder_hides_the_old_curves(tmp_path):
    track(tmp_path, "tensorboard", [1, 2, 3])
    track(tmp_path, "tensorboard", [2], scale=10.0)
    assert tensorboard_curve(tmp_path / "tensorboard") == [(2, 20.0)]


def test_wandb_without_network_continues_the_same_run(tmp_path):
    run, found = tmp_path / "collap-gpt2", []
    for steps, resumed_step in ([1, 2], 0), ([3], 2), ([1], 0):
        before = set(run.glob("wandb/offline-run-*"))
        track(run, "wandb", steps, resumed_step)
        (folder,) = set(run.glob("wandb/offline-run-*")) - before
        found.append(wandb_run(folder))
    first, resumed, new = found
    assert (first["name"], first["project"]) == ("collap-gpt2", "collap")
    assert first["id"] == resumed["id"] != new["id"]
    assert first["history"] == [(1, 1.0), (2, 2.0)] and resumed["history"] == [(3, 3.0)]
    assert first["config"]["model_config/projection_dim"] == 16


def test_trackio_continues_the_same_run(tmp_path):
    run = tmp_path / "collap-trackio"
    track(run, "trackio", [1, 2])
    track(run, "trackio", [3], resumed_step=2)
    from trackio.sqlite_storage import SQLiteStorage

    (record,) = (one for one in SQLiteStorage.get_run_records("collap") if one["name"] == "collap-trackio")
    logs = SQLiteStorage.get_logs("collap", run_id=record["id"])
    assert [(log["step"], log["train/loss"]) for log in logs] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert SQLiteStorage.get_run_config("collap", run_id=record["id"])["model_config/projection_dim"] == 16
    assert Path(os.environ["TRACKIO_DIR"], "collap.db").exists()


def test_unknown_and_missing_trackers_are_named(monkeypatch):
    assert check_trackers(["wandb", "tensorboard", "wandb"]) == ["wandb", "tensorboard"]
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    with pytest.raises(ValueError, match="expected one of tensorboard, trackio, wandb"):
        check_trackers(["mlops"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install trackio"):
        check_trackers(["trackio"])


def test_wandb_without_login_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))  # no stored key
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match="wandb login"):
        start_trackers(Accelerator(cpu=True), ["wandb"], {}, tmp_path / "run")


def test_settings_are_flattened():
    flat = {"epochs": 2, "eval_split": "None", "model_config/projection_dim": 16}
    assert flat_settings(SETTINGS) == flat
    assert flat_settings({"trackers": ["wandb"], "folder": Path("a")}) == {"trackers": "['wandb']", "folder": "a"}


def test_in_batch_accuracy_of_both_directions():
    scores = torch.tensor([[3.0, 1.0, 2.0], [4.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    audio_to_text, text_to_audio = in_batch_accuracy(scores)
    assert audio_to_text == pytest.approx(2 / 3)  # the second audio prefers the first text
    assert text_to_audio == pytest.approx(2 / 3)  # the first text prefers the second audio
    scores[1, 0] = 2.0  # ties with the own text
    assert in_batch_accuracy(scores) == pytest.approx((2.5 / 3, 1.0))
    assert in_batch_accuracy(torch.ones(4, 4)) == (0.25, 0.25)


def test_learning_rates_of_parts():
    same = [{"name": "text", "lr": 0.1, "initial_lr": 1.0}, {"name": "heads", "lr": 0.1, "initial_lr": 1.0}]
    assert learning_rates(same) == {"train/learning_rate": 0.1}
    same[0] |= {"lr": 0.0, "initial_lr": 0.5}
    same[1] |= {"name": "heads, no decay", "lr": 0.0}
    assert learning_rates(same) == {"train/learning_rate/text": 0.0, "train/learning_rate/heads": 0.0}


def test_step_metrics_are_those_of_the_step():
    model, generator = tiny_model(), torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    output = CoLLAPOutput(
        loss=torch.tensor(0.5),
        logits_per_audio=torch.eye(3),
        text_embeds=unit(torch.randn(3, 32, generator=generator), dim=-1),
        audio_embeds=unit(torch.randn(2, 24, 32, generator=generator), dim=-1),
        audio_token_mask=torch.ones(2, 24, dtype=torch.bool),
    )
    metrics = step_metrics(model, output, [{"lr": 0.1}], torch.tensor(2.0), skipped_steps=1)
    half = model.config.gamma_init_sum / 2
    expected = {
        "train/loss": 0.5,
        "train/audio_to_text_accuracy": 1.0,
        "train/text_to_audio_accuracy": 1.0,
        "train/learning_rate": 0.1,
        "train/gradient_norm": 2.0,
        "train/skipped_steps": 1,
        "train/gamma_kernel": pytest.approx(half),
        "train/gamma_temporal": pytest.approx(half),
        "train/attention_temperature": pytest.approx(model.config.attention_temperature),
    }
    distance = metrics.pop("train/distance_from_flat_attention")
    assert metrics == expected and 0 < distance < 1


def test_work_of_a_batch():
    """Segments of 2 s with 12 tokens of 0.16 s, which cover 1.92 s."""
    config = tiny_config()
    assert [song_tokens(seconds, config) for seconds in (0.1, 0.17, 2.0, 2.1, 3.99, 4.0)] == [1, 2, 12, 13, 24, 24]
    work = batch_work([2.0, 5.0, 1.0, 8.0], config)
    assert work == {
        "songs": 4,
        "audio_seconds": 16.0,
        "real_segments": 1 + 3 + 1 + 4,
        "padded_segments": 4 * 4,
        "real_tokens": 12 + (24 + 7) + 7 + 48,
        "encoded_tokens": 9 * 12,
    }
    assert batch_work([2.0, 5.0, 1.0, 8.0], config, micro_batch_size=2)["padded_segments"] == 2 * 3 + 2 * 4


def slow(batches: list, seconds: float):
    for batch in batches:
        time.sleep(seconds)
        yield batch


def measure(rank: int, port: int, folder: Path):
    """One of two processes: rank 1 has songs of 6 s instead of 2 s, and waits for its data."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = Accelerator()
    meter = StepMeter(tiny_config())
    summary = RunSummary(accelerator, folder, SETTINGS, meter)
    for seconds in meter.batches(slow([[2.0, 6.0 if rank else 2.0]] * 2, 0.3 if rank else 0.0)):
        with meter.step(seconds):
            time.sleep(0.1 if rank else 0.4)
    figures = meter.figures(accelerator)
    assert meter.is_empty
    summary.write(step=2, epoch=1)
    (folder / f"figures{rank}.json").write_text(json.dumps(figures))
    accelerator.end_training()


def test_figures_of_two_processes(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    PartialState._reset_state()
    context = multiprocessing.get_context("fork")  # with what this process has imported
    processes = [context.Process(target=measure, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, second = (json.loads((tmp_path / f"figures{rank}.json").read_text()) for rank in range(2))
    assert first == second
    songs, seconds = 8, 0.8
    assert songs / seconds / 2 < first["train/songs_per_second"] <= songs / seconds  # the machine may be busy
    per_song = first["train/hours_of_audio_per_second"] / first["train/songs_per_second"]
    assert per_song == pytest.approx(24 / 3600 / songs, rel=1e-4)
    assert first["train/padding_share"] == pytest.approx(1 - 12 / 16)
    assert first["train/idle_share"] == pytest.approx(1 - 6 / 8)  # 2 and 4 segments at each step
    assert first["train/encoded_to_real_tokens"] == pytest.approx(1.0)
    assert 0.6 < first["train/data_wait_share"] < 0.9  # 0.75, of the second process
    assert 0.05 < first["train/peak_memory_gb"] < 20
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["songs"] == 8 and len(written["hardware"]["devices"]) == 2


def test_a_new_interval_starts_with_every_log_line():
    accelerator, meter = Accelerator(cpu=True), StepMeter(tiny_config())
    for seconds, share in ([2.0, 6.0], 1 - 4 / 6), ([2.0, 2.0], 0.0):
        with meter.step(seconds):
            time.sleep(0.01)
        assert meter.figures(accelerator)["train/padding_share"] == pytest.approx(share)
    assert meter.totals["songs"] == 4 and meter.totals["audio_seconds"] == 12.0


PLAN = {"flops_per_step": 1e12, "model_flops_per_step": 1e12, "step_seconds": 1.0, "peak_memory": 1e9}


def test_the_summary_adds_up_over_a_resume(tmp_path):
    accelerator, meter = Accelerator(cpu=True), StepMeter(tiny_config())
    summary = RunSummary(accelerator, tmp_path, SETTINGS, meter, plan=PLAN)
    with meter.step([1800.0, 1800.0]):
        time.sleep(0.05)
    state = json.loads(json.dumps(summary.state_dict()))  # with a step that no log line has shown
    meter = StepMeter(tiny_config())
    summary = RunSummary(accelerator, tmp_path, SETTINGS, meter, plan=PLAN)
    summary.load_state_dict(state)
    with meter.step([1800.0, 1800.0]):
        time.sleep(0.05)
    best = {"metric": "eval/mAP", "value": 50.0, "step": 1}
    summary.write(step=2, epoch=1, best=best, skipped_steps=3, bad_files=4, finished=True)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["steps"], found["epochs"], found["songs"], found["hours_of_audio"]) == (2, 1, 4, 2.0)
    assert (found["skipped_steps"], found["bad_files"], found["finished"], found["starts"]) == (3, 4, True, 2)
    assert (
        found["best"] == best
        and found["plan"].keys()
        == {"achieved_tflops", "achieved_model_tflops", "seconds_over_plan", "memory_over_plan"}
        and found["settings"] == SETTINGS
    )
    assert 0.1 <= found["training_seconds"] <= found["wall_seconds"] < 60
    assert found["mean"]["songs_per_second"] == pytest.approx(4 / found["training_seconds"])
    assert found["hardware"]["torch"] == torch.__version__ and found["hardware"]["cpus"] == os.cpu_count()
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_summary_without_a_step_is_valid(tmp_path):
    accelerator = Accelerator(cpu=True)
    RunSummary(accelerator, tmp_path, {}, StepMeter(tiny_config())).write(step=0, epoch=0)
    assert json.loads((tmp_path / "summary.json").read_text())["mean"] is None
