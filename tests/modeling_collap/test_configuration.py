"""Settings are checked wherever they come from: the constructor, a file, an argument of `from_pretrained`."""

import json
import math
import re
import shutil

import pytest
from tiny import tiny_beats_config, tiny_config
from transformers import AutoConfig, AutoModel, BertConfig, CLIPTextConfig, RobertaConfig

from modeling_collap import BeatsConfig, CoLLAPConfig, CoLLAPModel

NUMBERS = ("projection_dim", "segment_seconds", "kernel_seconds", "stride_seconds", "attention_temperature")
NUMBERS += ("gamma_init_sum", "gamma_max", "structure_heads", "initializer_range")
NO_NUMBERS = ("x", "3", "", True, False, [], [3], {}, {"a": 1}, math.nan, -1, 0)
WRONG = [(name, value) for name in NUMBERS for value in NO_NUMBERS]
WRONG += [("structure_layers", value) for value in ("1", True, 1.5, -1, 10**9, math.nan, None)]
WRONG += [(name, 10**9) for name in ("projection_dim", "kernel_seconds", "stride_seconds", "structure_heads")]
WRONG += [("attention_temperature", math.inf), ("kernel_seconds", math.inf), ("projection_dim", 32.0)]
WRONG += [("learn_attention_temperature", value) for value in (1, 0, "true", None)]
CHOICES = ("text_pooling", "score_reduction", "loss_direction")
WRONG += [(name, value) for name in CHOICES for value in ("max", 1, True, ["mean"], "")]
WRONG += [(name, value) for name in CoLLAPConfig.sub_configs for value in (3, "gpt2", [1], True)]
WRONG += [("dtype", "float99"), ("dtype", 3), ("dtype", "int8"), ("return_dict", 3), ("output_hidden_states", "yes")]
WRONG += [("chunk_size_feed_forward", "x")]

# Settings of the three encoders' own configurations, by a part of what is said of them.
NESTED = [
    ({"text_config": {"n_layer": 0}}, "text_config.num_hidden_layers must be at least 1, found 0"),
    ({"text_config": {"n_layer": 10**9}}, "text_config.num_hidden_layers must be at most 256, found 1000000000"),
    ({"text_config": {"n_layer": "2"}}, "text_config: Field 'n_layer' expected int, got str (value: '2')"),
    ({"text_config": {"layer_norm_epsilon": math.nan}}, "text_config.layer_norm_epsilon must not be negative, found"),
    ({"text_config": {"layer_norm_epsilon": -1.0}}, "text_config.layer_norm_epsilon must not be negative, found -1"),
    ({"text_config": {"resid_pdrop": 1.5}}, "text_config.resid_pdrop must be at most 1, found 1.5"),
    ({"text_config": {"n_head": 3}}, "text_config: hidden_size (32) must be a multiple of 3 attention heads"),
    ({"text_config": {"n_inner": -1}}, "text_config.n_inner must be at least 1, found -1"),
    ({"text_config": {"activation_function": "x"}}, "text_config.activation_function must be an activation such as"),
    ({"text_config": {"add_cross_attention": True}}, "text_config.add_cross_attention must be false"),
    ({"text_config": {"model_type": "no_such_model"}}, "text_config: Unrecognized model identifier: no_such_model"),
    ({"text_config": {"return_dict": "no"}}, "text_config.return_dict must be true or false, found 'no'"),
    ({"speech_config": {"encoder_layers": 0}}, "speech_config.num_hidden_layers must be at least 1, found 0"),
    ({"speech_config": {"d_model": 31}}, "speech_config: hidden_size (31) must be a multiple of 2 attention heads"),
    ({"speech_config": {"d_model": 2}}, "speech_config.d_model must be even and at least 4, found 2"),
    ({"speech_config": {"init_std": -0.5}}, "speech_config.init_std must not be negative, found -0.5"),
    ({"speech_config": {"model_type": "gpt2"}}, "speech_config must be a whisper configuration, found 'gpt2'"),
    ({"music_config": {"model_type": "whisper"}}, "music_config must be a beats configuration, found 'whisper'"),
    ({"music_config": {"num_hidden_layers": 0}}, "music_config: num_hidden_layers must be positive, found 0"),
    ({"music_config": {"layer_norm_eps": -1}}, "music_config: layer_norm_eps must be positive, found -1"),
]


def one_line(error: pytest.ExceptionInfo) -> str:
    (line,) = str(error.value).splitlines()
    return line


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def edit_config(folder, changes: dict):
    """Writes other values into config.json, in nested configurations too."""
    settings = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(settings.get(name), dict)
        settings[name] = {**settings[name], **value} if nested else value
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(("name", "value"), WRONG, ids=repr)
def test_wrong_values_are_refused_by_name_in_the_constructor(name, value):
    with pytest.raises(ValueError, match=name) as error:
        tiny_config(**{name: value})
    one_line(error)


@pytest.mark.parametrize(("name", "value"), [case for case in WRONG if case[0] != "dtype"], ids=repr)
def test_wrong_values_are_refused_by_name_and_file_from_a_folder(folder, name, value):
    with pytest.raises(ValueError, match=name) as error:
        CoLLAPConfig.from_pretrained(folder, **{name: value})
    assert one_line(error).startswith(f"{folder}: ")
    edit_config(folder, {name: value})
    for load in (AutoConfig.from_pretrained, CoLLAPConfig.from_pretrained):
        with pytest.raises(ValueError, match=name) as error:
            load(folder)
        assert one_line(error).startswith(f"{folder}: config.json: ")


@pytest.mark.parametrize(("settings", "message"), NESTED, ids=lambda case: case if isinstance(case, str) else None)
def test_wrong_values_of_the_encoders_are_refused_too(folder, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        AutoModel.from_pretrained(folder, **settings)
    assert one_line(error).startswith(f"{folder}: ")
    edit_config(folder, settings)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        AutoModel.from_pretrained(folder)
    assert one_line(error).startswith(f"{folder}: config.json: ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_pooling": "max"}, "text_pooling must be one of first, last, mean, found 'max'"),
        ({"kernel_seconds": -1}, "kernel_seconds must be positive, found -1"),
        ({"segment_seconds": 1.01}, "segment_seconds must be a multiple of 0.02 up to the 2 s"),
        ({"segment_seconds": 4}, "segment_seconds must be a multiple of 0.02 up to the 2 s"),
        ({"structure_layers": 1, "structure_heads": 5}, "must be a multiple of twice structure_heads (5)"),
        ({"gamma_max": 5.0}, "gamma_max (5.0) is below the initial value 7.14"),
        ({"kernel_size": 3}, "kernel_size"),  # follows from others
    ],
)
def test_settings_given_to_a_model_are_checked_with_all_others(folder, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        CoLLAPModel.from_pretrained(folder, **settings)
    one_line(error)


def test_settings_given_to_a_model_take_effect(folder):
    model = AutoModel.from_pretrained(folder, text_pooling="first", kernel_seconds=2, text_config={"resid_pdrop": 0.3})
    assert (model.text_tower.pooling, model.config.kernel_size) == ("first", 12)
    assert model.text_tower.encoder.config.resid_pdrop == 0.3
    config, unused = CoLLAPConfig.from_pretrained(folder, stride_seconds=1, other=2, return_unused_kwargs=True)
    assert config.stride == 6 and unused == {"other": 2}


def test_a_setting_changed_later_is_checked_too(tmp_path):
    config = tiny_config()
    with pytest.raises(ValueError, match="projection_dim must be an integer, found 'wide'"):
        config.projection_dim = "wide"
    config.structure_layers, config.structure_heads = 1, 5  # each is possible, both are not
    with pytest.raises(ValueError, match="multiple of twice structure_heads"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 30}, "hidden_size (30) must be a multiple of conv_pos_groups (4)"),
        ({"num_attention_heads": 3}, "hidden_size (32) must be a multiple of num_attention_heads (3)"),
        ({"num_mel_bins": 100}, "num_mel_bins (100) must be a multiple of patch_size (16)"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 256, found 1000000000"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer, found True"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps must be positive, found nan"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps must be a number, found '1e-5'"),
        ({"hidden_dropout": -0.1}, "hidden_dropout must not be negative, found -0.1"),
        ({"hidden_act": "no_such_activation"}, "hidden_act must be an activation such as gelu, found"),
        ({"hidden_act": 3}, "hidden_act must be a text, found 3"),
        ({"deep_norm": "yes"}, "deep_norm must be true or false, found 'yes'"),
    ],
)
def test_wrong_values_of_beats_are_refused(tmp_path, settings, message):
    tiny_beats_config().save_pretrained(tmp_path)
    calls = (lambda: tiny_beats_config(**settings), lambda: BeatsConfig.from_pretrained(tmp_path, **settings))
    for call in calls:
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            call()
        one_line(error)


def test_a_text_encoder_that_cannot_read_a_text_is_refused():
    cases = {
        "encoder-decoder": RobertaConfig(is_encoder_decoder=True),
        "pad_token_id must be below vocab_size": BertConfig(vocab_size=4, pad_token_id=7),
        "by at least 2: a roberta numbers": RobertaConfig(max_position_embeddings=2),
    }
    for message, text_config in cases.items():
        with pytest.raises(ValueError, match=message):
            tiny_config(text_config=text_config)
    assert tiny_config(text_config=CLIPTextConfig()).text_positions == 77
