"""`from_pretrained` loads all of a checkpoint or says what is wrong with it; int8 works."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import TEXTS, tiny_model, tiny_processor
from transformers import AutoConfig, AutoModel, TorchAoConfig

from modeling_collap import CoLLAPModel


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def transformers_log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog


def test_missing_weights_are_an_error_that_names_them(folder):
    change_weights(folder, lambda weights: weights.pop("text_tower.projection.weight"))
    with pytest.raises(ValueError, match="lacks 1 weights of this configuration .text_tower.projection.weight."):
        AutoModel.from_pretrained(folder)


def test_missing_weights_are_initialised_when_asked_for(folder):
    model, info = AutoModel.from_pretrained(
        folder, structure_layers=1, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["missing_keys"] and all(key.startswith("structure.frame_layers.") for key in info["missing_keys"])
    assert torch.equal(model.audio_tower.adapter.weight, tiny_model("gpt2").audio_tower.adapter.weight)
    with pytest.raises(ValueError, match="structure.frame_layers"):
        AutoModel.from_pretrained(folder, structure_layers=1)


def test_structure_layers_of_before_are_refused_and_can_be_left_out(tmp_path):
    """They read tokens and seconds; their weights have the shapes of today's."""
    model = tiny_model(structure_layers=1)
    model.save_pretrained(tmp_path)
    change_weights(
        tmp_path,
        lambda weights: [
            weights.update({name.replace("frame_layers", "layers"): weights.pop(name)}) for name in [*weights]
        ],
    )
    message = r"lacks 12 weights .*structure\.frame_layers\.0.* has 12 that it does not know .structure\.layers\.0"
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(tmp_path)
    started = AutoModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True).structure.frame_layers[0]
    assert not started.attention_out.weight.any() and started.query_key_value.weight.any()


def test_weights_of_another_shape_are_an_error_unless_asked_for(folder, caplog, monkeypatch):
    def widen(weights):
        weights["text_tower.projection.weight"] = torch.zeros(32, 48)

    change_weights(folder, widen)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(folder)
    with transformers_log(caplog, monkeypatch).at_level(logging.WARNING):
        model = AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert model.text_tower.projection.weight.shape == (32, 32) and model.text_tower.projection.weight.abs().sum() > 0
    assert "text_tower.projection.weight" in caplog.text and "MISMATCH" in caplog.text


def test_weights_beyond_the_configuration_are_refused_unless_asked_for(folder, caplog, monkeypatch):
    change_weights(folder, lambda weights: weights.update({"another_head.weight": torch.zeros(2)}))
    with pytest.raises(
        ValueError, match=r"has 1 that it does not know \(another_head.weight\); they would be left out"
    ):
        AutoModel.from_pretrained(folder)
    with transformers_log(caplog, monkeypatch).at_level(logging.WARNING):
        AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert "another_head.weight" in caplog.text and "UNEXPECTED" in caplog.text


LAYERS = {"text_config": "n_layer", "music_config": "num_hidden_layers", "speech_config": "encoder_layers"}


@pytest.mark.parametrize("part", LAYERS)
def test_a_configuration_with_fewer_layers_than_the_weights_is_refused(folder, part):
    settings = json.loads((folder / "config.json").read_text())
    settings[part][LAYERS[part]] = 1
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"has \d+ that it does not know .*Is config.json that of these weights"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("gpt2", "n_layer"),
        ("roberta", "num_hidden_layers"),
        ("beats", "num_hidden_layers"),
        ("whisper", "encoder_layers"),
    ],
)
def test_a_backbone_with_fewer_layers_than_its_weights_is_refused(backbones, tmp_path, part, setting):
    shallow = shutil.copytree(backbones[part], tmp_path / part)
    settings = json.loads((shallow / "config.json").read_text())
    (shallow / "config.json").write_text(json.dumps(settings | {setting: 1}))
    names = {"text": "roberta" if part == "roberta" else "gpt2", "music": "beats", "speech": "whisper"}
    parts = {role: shallow if name == part else backbones[name] for role, name in names.items()}
    with pytest.raises(ValueError, match=rf"{part}: the checkpoint has \d+ that it does not know"):
        CoLLAPModel.from_backbones(**parts)


def test_heads_and_buffers_of_older_checkpoints_do_not_stop_a_backbone(backbones, tmp_path):
    older = shutil.copytree(backbones["gpt2"], tmp_path / "gpt2")
    extra = {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.zeros(1)}
    change_weights(older, lambda weights: weights.update(extra | {"lm_head.weight": weights["wte.weight"].clone()}))
    model = CoLLAPModel.from_backbones(older, backbones["beats"], backbones["whisper"])
    embeddings = load_file(older / "model.safetensors")["wte.weight"]
    assert model.get_input_embeddings().weight.equal(embeddings)


def test_a_backbone_of_another_shape_is_refused_in_one_line(backbones, tmp_path):
    wide = shutil.copytree(backbones["beats"], tmp_path / "beats")
    settings = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(settings | {"intermediate_size": 64}))
    with pytest.raises(ValueError, match="beats: its weights cannot be loaded") as error:
        CoLLAPModel.from_backbones(backbones["gpt2"], wide, backbones["whisper"])
    assert "\n" not in str(error.value)


def test_weights_beside_the_index_of_others_are_refused(folder):
    """transformers would read model.safetensors, which may be older than the shards."""
    model = tiny_model("gpt2", seed=1)
    weights = dict(load_file(folder / "model.safetensors"))
    model.save_pretrained(folder, max_shard_size="50KB")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match="holds model.safetensors, which transformers reads, and model.safetensors.index"
    ):
        AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    assert torch.equal(AutoModel.from_pretrained(folder).audio_tower.adapter.weight, model.audio_tower.adapter.weight)


def test_a_temperature_that_is_not_learned_stays_so_when_it_is_missing(folder):
    change_weights(folder, lambda weights: weights.pop("score_parameters.log_attention_temperature"))
    scalars = AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True).score_parameters
    assert scalars.temperature().item() == 1.0 and not scalars.log_attention_temperature.requires_grad
    assert scalars.log_gamma_kernel.requires_grad


def test_a_configuration_cannot_name_another_file_of_weights(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"transformers_weights": "other.safetensors"}))
    with pytest.raises(ValueError, match="transformers_weights is not read"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("settings", [{}, {"segment_seconds": 1}])
def test_positions_of_whisper_that_do_not_fit_are_sinusoids_again(folder, settings):
    """They are constants, and other numbers would be noise in every token."""
    expected = tiny_model("gpt2").audio_tower.speech.embed_positions.weight
    if not settings:
        change_weights(folder, lambda weights: weights.pop("audio_tower.speech.embed_positions.weight"))
    model = AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True, **settings)
    found = model.audio_tower.speech.embed_positions.weight
    assert found.shape[0] == (50 if settings else 100) and not found.requires_grad
    torch.testing.assert_close(found, expected[: found.shape[0]])


def test_weights_of_the_other_variant_are_refused(folder):
    save_file(tiny_model("roberta").state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*text_tower.encoder.* it does not know"):
        AutoModel.from_pretrained(folder)


def test_pickled_weights_are_never_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("gpt2").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="safetensors only"):
        AutoModel.from_pretrained(folder, use_safetensors=False)


@pytest.mark.parametrize("where", ["../secret.safetensors", "absolute", "sub/../../secret.safetensors", "secret.bin"])
def test_shards_outside_of_the_folder_are_refused(folder, where):
    secret = folder.parent / "secret.safetensors"
    (folder / "model.safetensors").rename(secret)
    shard = str(secret) if where == "absolute" else where
    weight_map = dict.fromkeys(load_file(secret), shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected the name of a safetensors file in the same folder"):
        AutoModel.from_pretrained(folder)


def test_shards_of_a_variant_are_looked_at_too(folder):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {"text_tower.projection.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.fp16.json names the shard '../secret.safetensors'"):
        AutoModel.from_pretrained(folder, variant="fp16")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": null}', '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_said(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="model.safetensors.index.json is damaged"):
        AutoModel.from_pretrained(folder)


def test_an_adapter_does_not_hide_missing_weights(folder):
    peft_model = get_peft_model(tiny_model("gpt2"), LoraConfig(target_modules=["text_tower.projection"], r=2))
    peft_model.save_pretrained(folder)
    change_weights(
        folder, lambda weights: [weights.pop(key) for key in list(weights) if key.startswith("text_tower.encoder.")]
    )
    with pytest.raises(ValueError, match="holds a peft adapter"):
        CoLLAPModel.from_pretrained(folder)


def test_shards_in_the_folder_load(tmp_path):
    model = tiny_model("roberta")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_settings_of_before_are_dropped(folder):
    expected = AutoConfig.from_pretrained(folder).to_dict()
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"config_version": 1, "segment_batch_size": 4}))
    assert AutoConfig.from_pretrained(folder).to_dict() == expected
    assert not {"config_version", "segment_batch_size"} & set(AutoModel.from_pretrained(folder).config.to_dict())


def test_int8_weights_of_torchao_load_score_and_are_saved(model_folder, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    audio = [0.1 * np.random.default_rng(0).standard_normal(80000).astype(np.float32)]
    inputs = tiny_processor("gpt2")(text=TEXTS, audio=audio, sampling_rate=16000)
    settings = TorchAoConfig(Int8WeightOnlyConfig())
    quantised = CoLLAPModel.from_pretrained(model_folder, quantization_config=settings).eval()
    assert type(quantised.audio_tower.adapter.weight).__name__ == "Int8Tensor"
    assert quantised.score_parameters.log_gamma_kernel.dtype == torch.float32
    with torch.no_grad():
        expected = CoLLAPModel.from_pretrained(model_folder).eval()(**inputs).logits_per_audio
        scores = quantised(**inputs).logits_per_audio
        quantised.save_pretrained(tmp_path)
        again = AutoModel.from_pretrained(tmp_path).eval()(**inputs).logits_per_audio
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.1)
    assert not torch.equal(scores, expected)
    assert torch.equal(scores, again)
