"""train.py as a user runs it: real processes, real files, one and two processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from processing import CoLLAPProcessor  # noqa: F401  registers CoLLAP with the Auto classes
from train import TrainConfig, main, parse_config

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


def train(folder: Path, config: dict, num_processes: int = 1, **overrides) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **overrides}))
    script = [str(REPOSITORY / "train.py"), str(folder / "config.yaml"), "--output_dir", str(folder / "run")]
    command, environment = [sys.executable, *script], {**os.environ, "ACCELERATE_USE_CPU": "true"}
    if num_processes > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
        command = [sys.executable, "-m", *launcher, *script]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)


def evaluations(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path) -> dict[str, list[float]]:
    """What tensorboard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in run.rglob("events.out.tfevents*")}
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def finished(corpus, backbones, tmp_path_factory):
    """A finished run of the RoBERTa variant."""
    folder = tmp_path_factory.mktemp("finished")
    done = train(folder, settings(corpus, backbones, "roberta", cache_features=True))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", done


def test_best_and_last_load_with_the_auto_classes(finished):
    run, _ = finished
    for name in ("best", "last"):
        model, info = AutoModel.from_pretrained(run / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        processor = AutoProcessor.from_pretrained(run / name)
        inputs = processor(text="a song", audio=torch.ones(40000), sampling_rate=16000)
        assert torch.isfinite(model(**inputs).logits_per_audio).all()


def test_evaluations_and_curves_are_written(finished):
    run, done = finished
    lines = evaluations(run)
    assert [line["epoch"] for line in lines] == [1, 2] and [line["step"] for line in lines] == [2, 4]
    assert 0 <= lines[0]["eval/text_to_audio/R@1"] <= 100
    curves = scalars(run)
    assert len(curves["train/loss"]) == 4
    assert curves["train/learning_rate"] == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3, 0.0], abs=1e-9)
    assert len(curves["eval/audio_to_text/mAP"]) == 2
    assert all(value >= 0 for value in curves["train/distance_from_flat_attention"])
    assert "epoch 2: text-to-audio R@1" in done.stderr + done.stdout


def test_the_same_seed_gives_the_same_weights_and_training_changes_them(finished, corpus, backbones, tmp_path):
    run, _ = finished
    again = train(tmp_path, settings(corpus, backbones, "roberta", cache_features=True))
    assert again.returncode == 0, again.stderr[-3000:]
    first, second = (load_file(folder / "last" / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = load_file(backbones["beats"] / "model.safetensors")
    moved = [name for name in start if not torch.equal(start[name], first[f"music_model.{name}"])]
    assert len(moved) == len(start)


def test_two_processes_train_as_one(corpus, backbones, tmp_path):
    """Gathered negatives and averaged gradients: the same batches give the same losses and weights."""
    config = settings(corpus, backbones, learning_rate=1e-4)
    for number in (1, 2):
        done = train(tmp_path / str(number), config, num_processes=number)
        assert done.returncode == 0, done.stderr[-3000:]
        assert evaluations(tmp_path / str(number) / "run")[0]["processes"] == number
    one, two = (scalars(tmp_path / name / "run") for name in "12")
    assert one["train/loss"] == pytest.approx(two["train/loss"], abs=1e-4)
    assert one["train/learning_rate"] == pytest.approx(two["train/learning_rate"], abs=1e-12)
    assert one["train/gradient_norm"] == pytest.approx(two["train/gradient_norm"], rel=1e-3)
    assert one["eval/text_to_audio/mAP"] == pytest.approx(two["eval/text_to_audio/mAP"])
    first, second = (load_file(tmp_path / name / "run" / "last" / "model.safetensors") for name in "12")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=2e-5)


def test_more_processes_than_songs_to_evaluate(corpus, backbones, tmp_path):
    config = settings(corpus, backbones, epochs=1, eval_split="validation[:1]")
    done = train(tmp_path, config, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert evaluations(tmp_path / "run")[0]["eval/text_to_audio/R@1"] == 100.0


def test_continuing_crops_accumulation_and_bfloat16(finished, corpus, backbones, tmp_path):
    run, _ = finished
    config = settings(corpus, backbones, epochs=1, model=str(run / "last"), crop_seconds=4.0, eval_split="none")
    del config["model_config"]
    config |= {"gradient_accumulation_steps": 2, "mixed_precision": "bf16", "gradient_checkpointing": True}
    done = train(tmp_path, {**config, "num_workers": 1})
    assert done.returncode == 0, done.stderr[-3000:]
    curves = scalars(tmp_path / "run")
    # One step of the optimizer after two batches.
    assert len(curves["train/loss"]) == 1 and curves["train/learning_rate"] == [0.0]
    assert curves["train/gradient_norm"][0] > 0
    before, after = (load_file(folder / "last" / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert after["audio_adapter.weight"].dtype == torch.float32
    assert not torch.equal(before["audio_adapter.weight"], after["audio_adapter.weight"])


BAD_SETTINGS = [
    ({"text_column": "caption"}, "did you mean 'captions'"),
    ({"dataset": "data/nowhere/at/all"}, "no such file or folder"),
    ({"batch_size": 9}, "8 rows, fewer than batch_size 9"),
    ({"speech": "nowhere/at/all"}, "nowhere/at/all"),
    ({"learning_rat": 1.0}, "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
    ({"model_config": {"kernel_secnds": 3}}, "kernel_seconds"),
    ({"model": "runs/collap"}, "model_config is for a new model"),
    ({"log_every": 0}, "log_every must be positive, found 0"),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
    ({"song_column": "song"}, "no column 'song'"),
    ({"cache_features": True, "crop_seconds": 2.0}, "choose one"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD_SETTINGS)
def test_bad_settings_are_named(corpus, backbones, tmp_path, overrides, message):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(corpus, backbones, **overrides)))
    with pytest.raises((ValueError, OSError), match=message):
        main([str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "run")])


def test_bad_settings_end_with_one_line(corpus, backbones, tmp_path):
    done = train(tmp_path, settings(corpus, backbones, text_column="caption"))
    assert done.returncode == 1
    assert "error: " in done.stderr and "did you mean 'captions'" in done.stderr and "Traceback" not in done.stderr


def test_a_bad_song_is_named_in_one_line(corpus, backbones, tmp_path):
    shutil.copytree(corpus, tmp_path / "songs")
    (tmp_path / "songs" / "train" / "train-0003.flac").write_text("not music")
    config = settings(tmp_path / "songs", backbones, num_workers=1)
    done = train(tmp_path, config)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "train-0003.flac" in last and "Traceback" not in done.stderr


def test_yaml_files_and_the_command_line_override_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("dataset: songs\nmusic: beats\nepochs: 3\nlearning_rate: 1.0e-3\n")
    (tmp_path / "b.yaml").write_text("epochs: 4\nmodel_config: {projection_dim: 64}\n")
    config = parse_config([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--learning_rate", "0.5"])
    assert (config.epochs, config.learning_rate, config.music) == (4, 0.5, "beats")
    assert config.model_config == {"projection_dim": 64}
    merged = parse_config(
        [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--model_config", "{structure_layers: 1}"]
    )
    assert merged.model_config == {"projection_dim": 64, "structure_layers": 1}
    assert parse_config(["--dataset", "songs", "--music", "b"]).batch_size == TrainConfig().batch_size
    with pytest.raises(ValueError, match="music is missing"):
        parse_config(["--dataset", "songs"])


@pytest.mark.parametrize("name", ["collap_gpt2", "collap_roberta", "demo"])
def test_the_configurations_parse(name):
    config = parse_config([str(REPOSITORY / "configs" / f"{name}.yaml"), "--dataset", "songs", "--music", "beats"])
    if name != "demo":
        paper = (config.learning_rate, config.weight_decay, config.batch_size, config.epochs, config.lr_schedule)
        assert paper == (1e-4, 1e-5, 50, 20, "linear")


def test_the_script_stays_short():
    assert len((REPOSITORY / "train.py").read_text().splitlines()) < 400
