"""The converter of original BEATs checkpoints, as the command that a user types."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import REFERENCE
from torch import nn
from transformers import AutoModel

from collap.cli import run_command
from collap.hub.convert_beats import CONFIG_NAMES, convert_config, fold_weight_norm
from modeling_collap import BeatsModel
from modeling_collap.modeling_beats import patch_mask_from_frame_mask

ORIGINAL = REFERENCE / "beats_tiny.pt"


class Payload:
    """Pickled, it is code that writes a file when it is read without care."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def original_checkpoint() -> dict:
    return torch.load(ORIGINAL, weights_only=True)


def convert(checkpoint: object, folder: Path, capsys) -> tuple[int, str, str]:
    """Saves `checkpoint` and converts it in this process; exit code, output and error output."""
    torch.save(checkpoint, folder / "BEATs.pt")
    code = run_command("convert-beats", [str(folder / "BEATs.pt"), str(folder / "out")])
    return code, *capsys.readouterr()


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "collap", "convert-beats", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REFERENCE.parents[1])


def assert_equals_reference(model: BeatsModel):
    reference = load_file(REFERENCE / "beats_tiny.safetensors")
    frame_mask = patch_mask_from_frame_mask(~reference["padding_mask"], reference["fbank"].shape[1])
    with torch.no_grad():
        alone = model(reference["fbank"][:1]).last_hidden_state
        padded = model(reference["fbank"], frame_mask).last_hidden_state
    torch.testing.assert_close(alone, reference["output_unpadded_first"], atol=1e-4, rtol=0)
    torch.testing.assert_close(padded, reference["output_padded"], atol=1e-4, rtol=0)


def test_command_converts_a_pretrained_release(tmp_path):
    done = run(ORIGINAL, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path / 'out'}: BEATs with 0.0 M parameters, 2 layers" in done.stdout
    assert "head" not in done.stdout
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert type(model) is BeatsModel
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_equals_reference(model)


def test_command_refuses_a_pickle_with_code_and_does_not_run_it(tmp_path, capsys):
    marker, file = tmp_path / "code_ran", tmp_path / "BEATs.pt"
    torch.save({"cfg": {}, "model": Payload(marker)}, file)
    with pytest.raises(TypeError):  # the payload is live: reading without care runs it, and touch() returns None
        torch.load(file, weights_only=False)["model"]["patch_embedding.weight"]
    marker.unlink()
    assert run_command("convert-beats", [str(file), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file}: not a torch file that holds tensors only (UnpicklingError)")
    assert len(said.splitlines()) == 1
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_fine_tuned_release_is_converted_without_its_head(tmp_path, capsys):
    checkpoint = original_checkpoint()
    checkpoint["cfg"]["finetuned_model"] = True
    checkpoint["model"] |= {"predictor.weight": torch.randn(527, 32), "predictor.bias": torch.randn(527)}
    code, out, err = convert(checkpoint, tmp_path, capsys)
    assert (code, err) == (0, "")
    assert "left out the classifier head of a fine-tuned release: predictor.weight, predictor.bias" in out
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert_equals_reference(model)


def test_release_in_half_precision_without_projection_and_relative_position(tmp_path, capsys):
    checkpoint = original_checkpoint()
    checkpoint["cfg"] |= {
        "embed_dim": 32,
        "relative_position_embedding": False,
        "gru_rel_pos": False,
        "conv_bias": True,
    }
    state = {
        name: tensor.half()
        for name, tensor in checkpoint["model"].items()
        if not any(part in name for part in ("post_extract_proj", "relative_attention_bias", "grep"))
    }
    state["patch_embedding.weight"] = torch.randn(32, 1, 16, 16)
    state |= {"patch_embedding.bias": torch.randn(32), "layer_norm.weight": torch.ones(32)}
    state["layer_norm.bias"] = torch.randn(32)
    code, _, err = convert({"cfg": checkpoint["cfg"], "model": state}, tmp_path, capsys)
    assert (code, err) == (0, "")
    model = BeatsModel.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.patch_norm.bias, state["layer_norm.bias"])
    assert torch.equal(model.layer_norm.bias, state["encoder.layer_norm.bias"].float())
    assert torch.equal(model.layers[1].feed_forward.fc2.weight, state["encoder.layers.1.fc2.weight"].float())


def test_every_setting_arrives_under_its_own_name():
    boolean = {"layer_norm_first": True, "deep_norm": False, "conv_bias": True}
    boolean |= {"relative_position_embedding": True, "gru_rel_pos": True}
    original = {name: 2 * i + 2 for i, name in enumerate(CONFIG_NAMES)} | boolean
    original |= {"activation_fn": "relu", "encoder_embed_dim": 240, "encoder_attention_heads": 6, "conv_pos_groups": 12}
    original |= {"input_patch_size": 16, "dropout": 0.11, "attention_dropout": 0.12, "activation_dropout": 0.13}
    original |= {"dropout_input": 0.14}
    config = convert_config(original)
    expected = {
        "patch_size": "input_patch_size",
        "embed_dim": "embed_dim",
        "conv_bias": "conv_bias",
        "hidden_size": "encoder_embed_dim",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_embed_dim",
        "hidden_act": "activation_fn",
        "hidden_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "activation_dropout": "activation_dropout",
        "feature_dropout": "dropout_input",
        "layer_norm_first": "layer_norm_first",
        "deep_norm": "deep_norm",
        "conv_pos_kernel": "conv_pos",
        "conv_pos_groups": "conv_pos_groups",
        "relative_position_embedding": "relative_position_embedding",
        "num_buckets": "num_buckets",
        "max_distance": "max_distance",
        "gated_relative_position": "gru_rel_pos",
    }
    assert {ours: getattr(config, ours) for ours in expected} == {o: original[t] for o, t in expected.items()}


def test_settings_that_a_release_leaves_out_have_the_defaults_of_the_original():
    config = convert_config({})
    assert (config.hidden_size, config.num_hidden_layers, config.embed_dim) == (768, 12, 512)
    assert (config.num_buckets, config.max_distance, config.conv_pos_kernel) == (320, 1280, 128)
    assert not (config.deep_norm or config.layer_norm_first or config.conv_bias)
    assert not (config.relative_position_embedding or config.gated_relative_position)


def test_weight_norm_is_folded_as_torch_applies_it():
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(12, 12, 5, groups=3), dim=2)
    magnitude, direction = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    with torch.no_grad():
        magnitude.normal_()
    folded = fold_weight_norm(magnitude, direction)
    torch.testing.assert_close(folded, conv.weight, atol=1e-6, rtol=1e-6)


def without(checkpoint: dict, name: str) -> dict:
    del checkpoint["model"][name]
    return checkpoint


def with_setting(checkpoint: dict, **settings) -> dict:
    return checkpoint | {"cfg": checkpoint["cfg"] | settings}


def with_weight(checkpoint: dict, name: object, weight: object) -> dict:
    return checkpoint | {"model": checkpoint["model"] | {name: weight}}


def with_number(checkpoint: dict, name: str, number: float) -> dict:
    checkpoint["model"][name].view(-1)[0] = number
    return checkpoint


REFUSED = {
    "another model": (lambda c: c["model"], "expected a dict with the keys 'cfg' and 'model', found ['encoder."),
    "a tensor": (lambda c: torch.zeros(3), "expected a dict with the keys 'cfg' and 'model', found Tensor"),
    "a tokenizer": (lambda c: without(c, "patch_embedding.weight"), "'model' must hold patch_embedding.weight"),
    "no configuration": (lambda c: c | {"cfg": None}, "'cfg' must be a dict"),
    "no state dict": (lambda c: c | {"model": torch.zeros(3)}, "'model' must hold patch_embedding.weight"),
    "GLU": (lambda c: with_setting(c, activation_fn="glu"), "activation_fn is 'glu'; only 'gelu' and 'relu'"),
    "sizes": (lambda c: with_setting(c, encoder_attention_heads=5), "hidden_size (32) must be a multiple of"),
    "a layer too few": (
        lambda c: with_setting(c, encoder_layers=3),
        "the weights do not fit the configuration in the file; missing ['layers.2.feed_forward.fc1.bias'",
    ),
    "a layer too many": (lambda c: with_setting(c, encoder_layers=1), "left over ['layers.1.feed_forward.fc1.bias'"),
    "another width": (
        lambda c: with_setting(c, encoder_ffn_embed_dim=64),
        "of another shape ['layers.0.feed_forward.fc1.bias'",
    ),
    "layers in words": (
        lambda c: with_setting(c, encoder_layers="2"),
        "cfg['encoder_layers'] is '2'; expected a positive whole number",
    ),
    "no heads": (
        lambda c: with_setting(c, encoder_attention_heads=0),
        "cfg['encoder_attention_heads'] is 0; expected a positive whole number",
    ),
    "a size that is a switch": (
        lambda c: with_setting(c, conv_pos_groups=True),
        "cfg['conv_pos_groups'] is True; expected a positive whole number",
    ),
    "a switch that is None": (
        lambda c: with_setting(c, deep_norm=None),
        "cfg['deep_norm'] is None; expected True or False",
    ),
    "dropout": (lambda c: with_setting(c, dropout=float("nan")), "cfg['dropout'] is nan; expected a probability"),
    "an activation that is a list": (
        lambda c: with_setting(c, activation_fn=["gelu"]),
        "cfg['activation_fn'] is ['gelu']; expected a name",
    ),
    "a model beyond memory": (
        lambda c: with_setting(c, encoder_ffn_embed_dim=10**12),
        "intermediate_size must be at most 262144, found 1000000000000",
    ),
    "a model beyond arithmetic": (
        lambda c: with_setting(c, encoder_ffn_embed_dim=10**18),
        "intermediate_size must be at most 262144, found 1000000000000000000",
    ),
    "a weight that is a list": (
        lambda c: with_weight(c, "encoder.layer_norm.bias", [0.0] * 32),
        "model['encoder.layer_norm.bias'] is a list; expected a tensor",
    ),
    "a weight of integers": (
        lambda c: with_weight(c, "encoder.layer_norm.bias", torch.zeros(32, dtype=torch.int8)),
        "model['encoder.layer_norm.bias'] is of torch.int8, torch.strided on cpu; expected dense floating-point",
    ),
    "a sparse weight": (
        lambda c: with_weight(c, "encoder.layer_norm.bias", torch.zeros(32).to_sparse()),
        "model['encoder.layer_norm.bias'] is of torch.float32, torch.sparse_coo on cpu; expected dense",
    ),
    "a weight without numbers": (
        lambda c: with_weight(c, "encoder.layer_norm.bias", torch.zeros(32, device="meta")),
        "model['encoder.layer_norm.bias'] is of torch.float32, torch.strided on meta; expected dense",
    ),
    "a name that is a number": (lambda c: with_weight(c, 7, torch.zeros(3)), "model[7] has a int for a name"),
    "NaN": (
        lambda c: with_number(c, "encoder.layers.1.fc2.weight", float("nan")),
        "model['encoder.layers.1.fc2.weight'] holds 1 numbers that are NaN or infinite",
    ),
    "infinity": (
        lambda c: with_number(c, "encoder.layers.0.self_attn.grep_a", float("-inf")),
        "model['encoder.layers.0.self_attn.grep_a'] holds 1 numbers that are NaN or infinite",
    ),
    "the weight norm of another kernel": (
        lambda c: with_weight(c, "encoder.pos_conv.0.weight_g", torch.ones(1, 1, 3)),
        "model['encoder.pos_conv.0.weight_g'] and ..._v are of shapes (1, 1, 3) and",
    ),
    "a convolution of zeros": (
        lambda c: with_weight(
            c, "encoder.pos_conv.0.weight_v", torch.zeros_like(c["model"]["encoder.pos_conv.0.weight_v"])
        ),
        "model['encoder.pos_conv.0.weight_v'] has a norm of 0",
    ),
    "half of the weight norm": (lambda c: without(c, "encoder.pos_conv.0.weight_g"), "'positional_conv.conv.weight'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_with_the_reason(case, tmp_path, capsys):
    change, reason = REFUSED[case]
    code, out, err = convert(change(original_checkpoint()), tmp_path, capsys)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path / 'BEATs.pt'}: ")
    assert reason in err
    assert not (tmp_path / "out").exists()


FILES = {
    "text": (b"this is not a checkpoint\n", "not a torch file that holds tensors only"),
    "page": (b"<!DOCTYPE html><html>not found</html>", "not a torch file that holds tensors only"),
    "empty": (b"", "not a torch file that holds tensors only"),
    "cut off": (ORIGINAL.read_bytes()[:50_000], "not a torch file that holds tensors only"),
}


@pytest.mark.parametrize("case", FILES)
def test_file_that_is_not_a_checkpoint_is_refused(case, tmp_path, capsys):
    content, reason = FILES[case]
    (tmp_path / "BEATs.pt").write_bytes(content)
    assert run_command("convert-beats", [str(tmp_path / "BEATs.pt"), str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'BEATs.pt'}: ")
    assert reason in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_missing_file_is_refused(name, tmp_path, capsys):
    assert run_command("convert-beats", [str(tmp_path / name), str(tmp_path / "out")]) == 1
    expected = f"error: {tmp_path / name}: no such file; expected a BEATs checkpoint (.pt) of the original release\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_a_file_where_the_folder_should_be_is_refused(place, tmp_path, capsys):
    (tmp_path / "file").write_text("years of work")
    assert run_command("convert-beats", [str(ORIGINAL), str(tmp_path / place)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {tmp_path / place}: cannot write the model there (")
    assert (tmp_path / "file").read_text() == "years of work"


def test_the_checkpoint_is_read_once(tmp_path, monkeypatch):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **settings: read.append(path) or load(path, **settings))
    assert run_command("convert-beats", [str(ORIGINAL), str(tmp_path / "new" / "out")]) == 0
    assert read == [str(ORIGINAL)]
