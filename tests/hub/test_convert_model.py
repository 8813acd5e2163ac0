"""Folders of an earlier release are refused by name, and converted to ones that give the same numbers."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import REFERENCE, TEXTS, tiny_model
from transformers import AutoModel, AutoProcessor

from collap.cli import main as collap
from collap.models import weights_digest
from modeling_collap import CoLLAPModel

FORMER = REFERENCE / "former_model"


@pytest.fixture
def former(tmp_path):
    return shutil.copytree(FORMER, tmp_path / "former")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    target = tmp_path_factory.mktemp("converted") / "model"
    assert collap(["convert-model", str(FORMER), str(target)]) == 0
    return target


def assert_same_outputs(folder):
    noise = 0.1 * np.random.default_rng(0).standard_normal((3, 70000)).astype(np.float32)
    clips = [noise[i, : 70000 - 25000 * i] for i in range(3)]
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        output = model(**processor(text=TEXTS, audio=clips, sampling_rate=16000))
    expected = load_file(REFERENCE / "former_model_outputs.safetensors")
    assert expected["logits_per_audio"].std() > 0.1
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value, atol=1e-5, rtol=0, msg=name)


def shard(folder, of_weight=lambda name: 1 + ("speech" in name)):
    """Spreads the weights of a folder over two files."""
    weights = load_file(folder / "model.safetensors")
    weight_map = {name: f"model-0000{of_weight(name)}-of-00002.safetensors" for name in weights}
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_converted_folder_gives_the_numbers_of_the_code_that_wrote_it(converted):
    assert_same_outputs(converted)
    names = load_file(converted / "model.safetensors").keys()
    assert len(names) == len(load_file(FORMER / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"text_tower", "audio_tower", "score_parameters"}
    settings = json.loads((converted / "config.json").read_text())
    assert "config_version" not in settings and "segment_batch_size" not in settings
    assert settings["attention_temperature"] == 0.2


def test_what_else_was_in_the_folder_is_there_still(converted):
    for name in ("README.md", "training/summary.json", "golden.safetensors"):
        assert (converted / name).read_bytes() == (FORMER / name).read_bytes()
    before, after = (json.loads((folder / "evaluation" / "test.json").read_text()) for folder in (FORMER, converted))
    assert before["weights"] == weights_digest(FORMER) != weights_digest(converted)
    assert after == before | {"weights": weights_digest(converted)}
    assert (converted / "towers_collap.py").is_file() and (converted / "modules.json").is_file()


def test_shards_are_converted_too(former, tmp_path):
    shard(former)
    assert collap(["convert-model", str(former), str(tmp_path / "new")]) == 0
    assert_same_outputs(tmp_path / "new")


def test_code_and_adapters_of_before_are_not_copied_and_are_spoken_of(former, tmp_path, capsys):
    (former / "adapter").mkdir()
    (former / "adapter" / "adapter_config.json").write_text("{}")
    (former / "gone_collap.py").write_text("old = True\n")
    (former / "mine.py").write_text("my = True\n")
    assert collap(["convert-model", str(former), str(tmp_path / "new")]) == 0
    assert "adapter: left out" in capsys.readouterr().out
    assert not (tmp_path / "new" / "adapter").exists() and not (tmp_path / "new" / "gone_collap.py").exists()
    assert (tmp_path / "new" / "mine.py").read_text() == "my = True\n"


def test_golden_vectors_of_other_weights_are_left_out(former, tmp_path, capsys):
    weights = load_file(former / "model.safetensors")
    weights["audio_adapter.weight"] = weights["audio_adapter.weight"].flip(0)
    save_file(weights, former / "model.safetensors", metadata={"format": "pt"})
    assert collap(["convert-model", str(former), str(tmp_path / "new")]) == 0
    assert "golden.safetensors is left out" in capsys.readouterr().out
    assert not (tmp_path / "new" / "golden.safetensors").exists()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("settings", [{}, {"ignore_mismatched_sizes": True}])
def test_a_folder_of_before_is_refused_with_the_command_that_converts_it(former, sharded, settings):
    if sharded:
        shard(former)
    for load in (AutoModel.from_pretrained, CoLLAPModel.from_pretrained):
        with pytest.raises(ValueError, match="names of an earlier release .*: collap convert-model") as error:
            load(former, **settings)
        assert "\n" not in str(error.value)


def break_config(folder):
    (folder / "config.json").write_text("{")


def other_model(folder):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


def quantise(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "torchao"}}))


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def lose_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("text_projection.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def add_structure_layer(folder):
    """As releases had it whose layers read tokens and seconds."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"structure_layers": 1, "structure_heads": 2}))
    layer = tiny_model(structure_layers=1, projection_dim=settings["projection_dim"], structure_heads=2).structure
    weights = {
        f"structure_layers.{name.removeprefix('frame_layers.')}": one for name, one in layer.state_dict().items()
    }
    weights |= load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "No such file"),
        (break_config, "config.json: cannot be read as JSON"),
        (other_model, "model_type 'gpt2'; expected 'collap'"),
        (quantise, "is quantised"),
        (truncate, "model.safetensors: cannot be read"),
        (lose_a_weight, "lacks 1 weights of this configuration (text_tower.projection.weight)"),
        (add_structure_layer, "and has 12 that it does not know (structure_layers.0.attention_norm.bias"),
        (lambda folder: (folder / "model.safetensors").unlink(), "only safetensors are converted"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(former, tmp_path, capsys, damage, message):
    damage(former)
    assert collap(["convert-model", str(former), str(tmp_path / "new")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "new").exists()


def test_a_folder_of_now_and_a_full_target_are_refused(former, model_folder, tmp_path, capsys):
    assert collap(["convert-model", str(model_folder), str(tmp_path / "new")]) == 1
    assert "needs no conversion" in capsys.readouterr().err
    assert collap(["convert-model", str(former), str(model_folder)]) == 1
    assert "expected a new one" in capsys.readouterr().err


def test_a_model_in_bfloat16_stays_one(former, tmp_path):
    weights = load_file(former / "model.safetensors")
    half = {name: value if "score_parameters" in name else value.bfloat16() for name, value in weights.items()}
    save_file(half, former / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((former / "config.json").read_text())
    (former / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    assert collap(["convert-model", str(former), str(tmp_path / "new")]) == 0
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert found["audio_tower.adapter.weight"].equal(half["audio_adapter.weight"])
    assert found["score_parameters.log_gamma_kernel"].dtype == torch.float32


def test_renaming_covers_every_weight_of_a_model(tmp_path):
    """What the fixture lacks (RoBERTa) is renamed by the same prefixes."""
    from collap.hub.convert_model import new_name
    from modeling_collap.loading_collap import FORMER_PREFIXES

    present = tiny_model("roberta").state_dict().keys()
    former = []
    for name in present:
        (prefix,) = [prefix for prefix in (*FORMER_PREFIXES.values(), "score_parameters.") if name.startswith(prefix)]
        old = {new: old for old, new in FORMER_PREFIXES.items()}.get(prefix, prefix)
        former.append(old + name.removeprefix(prefix))
    assert list(map(new_name, former)) == list(present)
