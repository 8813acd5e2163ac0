"""train.py as a user runs it: real processes, real files, one and two processes."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import PeftModel
from runs import REPOSITORY, evaluations, run_collap, scalars, settings, train
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from collap.data.sources import open_dataset
from collap.training.settings import OptimisationSettings, parse_settings
from processing import CoLLAPProcessor  # noqa: F401  registers CoLLAP with the Auto classes
from train import main


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
    moved = [name for name in start if not torch.equal(start[name], first[f"audio_tower.music.{name}"])]
    assert len(moved) == len(start)


def whole_batches(corpus, backbones, **overrides) -> dict:
    """Settings whose steps are of all songs at once."""
    return settings(corpus, backbones, **{"learning_rate": 1e-4, "batch_size": 8, "epochs": 3, **overrides})


@pytest.fixture(scope="module")
def plain(corpus, backbones, tmp_path_factory):
    """A run of whole batches on one process."""
    folder = tmp_path_factory.mktemp("plain")
    done = train(folder, whole_batches(corpus, backbones))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_two_processes_train_as_one(plain, corpus, backbones, tmp_path):
    """Gathered negatives and averaged gradients: the same batches give the same losses and weights."""
    done = train(tmp_path, whole_batches(corpus, backbones), num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = (plain, tmp_path / "run")
    assert [evaluations(run)[0]["processes"] for run in runs] == [1, 2]
    one, two = map(scalars, runs)
    assert one["train/loss"] == pytest.approx(two["train/loss"], abs=1e-4)
    assert one["train/learning_rate"] == pytest.approx(two["train/learning_rate"], abs=1e-12)
    assert one["train/gradient_norm"] == pytest.approx(two["train/gradient_norm"], rel=1e-3)
    assert one["eval/text_to_audio/mAP"] == pytest.approx(two["eval/text_to_audio/mAP"])
    first, second = (load_file(run / "last" / "model.safetensors") for run in runs)
    for name in first:
        # AdamW makes a whole step out of a gradient that is rounding noise: single elements may differ by one.
        difference = (first[name] - second[name]).abs()
        assert difference.max() <= 1e-4 and difference.mean() <= 1e-6, name


def test_more_processes_than_songs_to_evaluate(corpus, backbones, tmp_path):
    config = settings(corpus, backbones, epochs=1, eval_split="validation[:1]")
    done = train(tmp_path, config, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert evaluations(tmp_path / "run")[0]["eval/text_to_audio/R@1"] == 100.0


def test_continuing_with_crops_micro_batches_and_bfloat16(finished, corpus, backbones, tmp_path):
    run, _ = finished
    config = settings(corpus, backbones, epochs=1, model=str(run / "last"), crop_seconds=4.0, eval_split="none")
    del config["model_config"]
    config |= {"micro_batch_size": 3, "mixed_precision": "bf16", "gradient_checkpointing": ["all"]}
    done = train(tmp_path, {**config, "num_workers": 1})
    assert done.returncode == 0, done.stderr[-3000:]
    curves = scalars(tmp_path / "run")
    assert len(curves["train/loss"]) == 2 and curves["train/learning_rate"] == pytest.approx([5e-4, 0.0], abs=1e-9)
    assert curves["train/gradient_norm"][0] > 0
    before, after = (load_file(folder / "last" / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert after["audio_tower.adapter.weight"].dtype == torch.float32
    assert not torch.equal(before["audio_tower.adapter.weight"], after["audio_tower.adapter.weight"])


@pytest.mark.parametrize("num_processes", [1, 2])
def test_micro_batches_follow_the_plain_run(plain, corpus, backbones, tmp_path, num_processes):
    """Songs of unequal length, cut unevenly: the loss curves of the whole batch on one process."""
    config = whole_batches(corpus, backbones, micro_batch_size=3, eval_split="none")
    done = train(tmp_path, config, num_processes)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = scalars(tmp_path / "run"), scalars(plain)
    for name in ("train/loss", "train/audio_to_text_accuracy"):
        assert found[name] == pytest.approx(expected[name], abs=1e-4)
    assert found["train/gradient_norm"] == pytest.approx(expected["train/gradient_norm"], rel=1e-3)


def write_shards(corpus: Path, folder: Path):
    """Each split as parquet files that hold the audio."""
    folder.mkdir()
    for split, shards in (("train", 4), ("validation", 1)):
        rows = open_dataset(str(corpus), split, text_column="captions").map(
            lambda row: {"audio": {"bytes": Path(row["audio"]["path"]).read_bytes(), "path": row["audio"]["path"]}}
        )
        for shard in range(shards):
            rows.shard(shards, shard).to_parquet(folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet")


def test_a_stream_of_shards_trains_and_counts_its_steps_as_epochs(corpus, backbones, tmp_path):
    write_shards(corpus, tmp_path / "shards")
    stream = {"streaming": True, "steps_per_epoch": 3, "num_workers": 2, "crop_seconds": 6.0}
    done = train(tmp_path, settings(tmp_path / "shards", backbones, **stream), num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(scalars(tmp_path / "run")["train/loss"]) == 6
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [3, 6]


def test_a_plan_is_printed_without_training_and_the_run_is_compared_with_it(corpus, backbones, tmp_path):
    config = settings(corpus, backbones, epochs=1, eval_split="none")
    planned = train(tmp_path, config, plan=True)
    assert planned.returncode == 0, planned.stderr[-3000:]
    assert "8 songs" in planned.stdout and "1 epochs of 2 steps" in planned.stdout
    assert "FLOP per step and device" in planned.stdout and "Memory per device" in planned.stdout
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["plan.json"]
    done = train(tmp_path, config)
    assert done.returncode == 0, done.stderr[-3000:]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    seconds = found["training_seconds"] / 2
    assert found["plan"]["achieved_tflops"] == pytest.approx(plan["flops_per_step"] / seconds / 1e12)
    (tmp_path / "other" / "run").mkdir(parents=True)
    (tmp_path / "other" / "run" / "plan.json").write_text('{"flops_per_step": 1')
    refused = train(tmp_path / "other", config)
    assert refused.returncode == 1 and "plan.json is no plan" in refused.stderr and "Traceback" not in refused.stderr


def test_frozen_encoders_train_from_their_stored_tokens_as_from_audio(corpus, backbones, tmp_path):
    """The same losses, to the precision of float16, through `collap precompute` and train.py."""
    model = ["--music", backbones["beats"], "--speech", backbones["whisper"], "--segment_seconds", "2"]
    output = ["--splits", "train", "validation", "--output_dir", tmp_path / "tokens"]
    stored = run_collap(tmp_path, "precompute", "--dataset", corpus, *model, *output)
    assert stored.returncode == 0, stored.stdout[-3000:]
    config = settings(corpus, backbones, freeze=["music", "speech"])
    curves = []
    for name, overrides in (("audio", {}), ("stored", {"precomputed": str(tmp_path / "tokens")})):
        done = train(tmp_path / name, config, **overrides)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "music  frozen" in done.stdout
        curves.append(scalars(tmp_path / name / "run"))
        weights = load_file(tmp_path / name / "run" / "last" / "model.safetensors")
        start = load_file(backbones["beats"] / "model.safetensors")
        assert all(torch.equal(weights[f"audio_tower.music.{key}"], value) for key, value in start.items())
    assert curves[0]["train/loss"] == pytest.approx(curves[1]["train/loss"], abs=2e-3)
    assert curves[0]["eval/text_to_audio/mAP"] == pytest.approx(curves[1]["eval/text_to_audio/mAP"], abs=5)


def test_lora_trains_little_and_leaves_a_whole_model_and_an_adapter(corpus, backbones, tmp_path):
    config = settings(corpus, backbones, "roberta", lora=["text", "music"], freeze=["speech"], lora_rank=2, epochs=1)
    done = train(tmp_path, config, text_learning_rate=1e-2)
    assert done.returncode == 0, done.stderr[-3000:]
    curves = scalars(tmp_path / "run")
    assert {name for name in curves if "learning_rate" in name} > {"train/learning_rate/text"}
    _, info = AutoModel.from_pretrained(tmp_path / "run" / "last", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base = AutoModel.from_pretrained(tmp_path / "run" / "base")
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "last" / "adapter")
    merged = AutoModel.from_pretrained(tmp_path / "run" / "last")
    inputs = AutoProcessor.from_pretrained(tmp_path / "run" / "last")(text=["drums"])
    torch.testing.assert_close(adapted.get_text_features(**inputs), merged.get_text_features(**inputs))


BAD_SETTINGS = [
    ({"text_column": "caption"}, "did you mean 'captions'"),
    ({"dataset": "data/nowhere/at/all"}, "no such file or folder"),
    ({"batch_size": 9}, "8 rows, fewer than batch_size 9"),
    ({"freeze": ["musik"]}, "did you mean 'music'"),
    ({"gradient_checkpointing": ["speach"]}, "did you mean 'speech'"),
    ({"lora": ["text"], "freeze": ["text"]}, "name it once"),
    ({"compile": "inductr"}, "inductr"),
    ({"lr_schedule": "reduce_lr_on_plateau"}, "unknown lr_schedule .*expected one of linear, cosine"),
    ({"trackers": ["tensorbord"]}, "did you mean 'tensorboard'"),
    ({"streaming": True}, "streaming and steps_per_epoch go together"),
    ({"precomputed": "nowhere", "freeze": ["music"]}, "needs --freeze music speech"),
    ({"music": "none", "speech": "none"}, "music and speech are both none"),
    ({"model_config": {"audio_encoders": "music"}}, "name none for the encoder to do without"),
    ({"precomputed": "nowhere", "freeze": ["music", "speech"]}, "nowhere.*collap precompute"),
    ({"resume": "nowhere"}, "nowhere is no whole checkpoint"),
    ({"micro_batch_size": 0}, "micro_batch_size must be positive"),
    ({"speech": "nowhere/at/all"}, "nowhere/at/all"),
    ({"learning_rat": 1.0}, "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
    ({"model_config": {"kernel_secnds": 3}}, "kernel_seconds"),
    ({"model": "runs/collap"}, "model_config is for a new model"),
    ({"log_every": 0}, "log_every must be positive, found 0"),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
    ({"song_column": "song"}, "no column 'song'"),
    ({"cache_features": True, "crop_seconds": 2.0}, "choose one"),
    ({"batch_size": 1}, "batch_size is 1: .* give at least 2"),
    ({"model_config": {"segment_batch_size": 4}}, "segment_batch_size is no setting of a model any more"),
]


def test_an_output_dir_that_cannot_be_used_is_refused_before_anything_is_loaded(corpus, backbones, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(corpus, backbones, dataset="nowhere/at/all")))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file cannot be made .*name another"):
        main([str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "file")])


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
    assert "train-0003.flac" in last and "1 of 8 files" in last and "Traceback" not in done.stderr


def test_a_bad_song_below_the_share_is_skipped_and_counted(corpus, backbones, tmp_path):
    shutil.copytree(corpus, tmp_path / "songs")
    (tmp_path / "songs" / "train" / "train-0003.flac").write_text("not music")
    config = settings(tmp_path / "songs", backbones, batch_size=8, max_bad_share=0.2, eval_split="none")
    done = train(tmp_path, {**config, "batch_size": 4}, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("skipped row 2 (train-0003.flac)") == 2  # in both epochs, by one of the processes
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bad_files"] == 1 and summary["songs"] == 16 and summary["finished"]


@pytest.mark.parametrize("cache_features", [False, True])
def test_a_bad_song_to_evaluate_is_left_out_or_stops_the_run_by_its_name(corpus, backbones, tmp_path, cache_features):
    shutil.copytree(corpus, tmp_path / "songs")
    (tmp_path / "songs" / "validation" / "validation-0002.flac").write_text("not music")
    config = settings(tmp_path / "songs", backbones, epochs=1, max_bad_share=0.3, cache_features=cache_features)
    done = train(tmp_path, config, num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("not evaluated: row 1 (validation-0002.flac)") == 1
    assert (
        evaluations(tmp_path / "run")[0]["eval/text_to_audio/mAP"] > 33.3
    )  # the last of the three songs that are left
    stopped = train(tmp_path / "strict", {**config, "max_bad_share": 0.01})
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    assert "1 of 4 songs to evaluate cannot be read: row 1 (validation-0002.flac)" in stopped.stderr


def test_missing_captions_are_named_before_training(corpus, backbones, tmp_path):
    shutil.copytree(corpus, tmp_path / "songs")
    table = tmp_path / "songs" / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows[5]["captions"] = []
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(tmp_path / "songs", backbones)))
    with pytest.raises(ValueError, match="row 5 has no text"):
        main([str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "run")])


def test_a_batch_smaller_than_the_processes_is_refused(corpus, backbones, tmp_path):
    done = train(tmp_path, settings(corpus, backbones, batch_size=3), num_processes=2)
    assert done.returncode != 0
    assert "batch_size 3 cannot be split evenly over 2 processes" in done.stderr


def test_yaml_files_and_the_command_line_override_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("dataset: songs\nmusic: beats\nepochs: 3\nlearning_rate: 1.0e-3\n")
    (tmp_path / "b.yaml").write_text("epochs: 4\nmodel_config: {projection_dim: 64}\n")
    config = parse_settings([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--learning_rate", "0.5"])
    assert (config.optimisation.epochs, config.optimisation.learning_rate, config.model.music) == (4, 0.5, "beats")
    assert config.model.model_config == {"projection_dim": 64}
    merged = parse_settings(
        [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--model_config", "{structure_layers: 1}"]
    )
    assert merged.model.model_config == {"projection_dim": 64, "structure_layers": 1}
    assert parse_settings(["--dataset", "songs", "--music", "b"]).optimisation == OptimisationSettings()
    with pytest.raises(ValueError, match="unknown argument '--learning_rat'.*did you mean 'learning_rate'"):
        parse_settings(["--dataset", "songs", "--music", "b", "--learning_rat", "3"])
    with pytest.raises(ValueError, match="music is missing"):
        parse_settings(["--dataset", "songs"])
    with pytest.raises(ValueError, match="unknown argument '--batch_sise'.*did you mean 'batch_size'"):
        parse_settings(["--dataset", "songs", "--music", "b", "--batch_sise", "3"])
    for text in ("{a: ", "3"):
        with pytest.raises(SystemExit):
            parse_settings(["--dataset", "songs", "--music", "b", "--model_config", text])


def test_values_of_a_yaml_file_have_the_types_of_their_settings(tmp_path):
    required = "dataset: songs\nmusic: beats\n"
    (tmp_path / "good.yaml").write_text(required + "learning_rate: 1e-4\nfreeze: text\nmax_loss: 7\nresume: null\n")
    config = SimpleNamespace(**parse_settings([str(tmp_path / "good.yaml")]).flat())
    assert (config.learning_rate, config.freeze, config.max_loss, config.resume) == (1e-4, ["text"], 7.0, None)
    for bad in (
        "epochs: three",
        "freeze: true",
        "batch_size: 2.5",
        "streaming: 1",
        "learning_rate: fast",
        "seed: true",
    ):
        (tmp_path / "bad.yaml").write_text(required + bad)
        with pytest.raises(ValueError, match=rf"bad.yaml: {bad.split(':')[0]} is .*; expected"):
            parse_settings([str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize("name", ["collap_gpt2", "collap_roberta", "demo"])
def test_the_configurations_parse(name):
    config = parse_settings([str(REPOSITORY / "configs" / f"{name}.yaml"), "--dataset", "songs", "--music", "beats"])
    if name != "demo":
        config = config.optimisation
        paper = (config.learning_rate, config.weight_decay, config.batch_size, config.epochs, config.lr_schedule)
        assert paper == (1e-4, 1e-5, 50, 20, "linear")


def test_the_script_stays_short():
    assert len((REPOSITORY / "train.py").read_text().splitlines()) < 400
