"""Convert a BEATs checkpoint of the original release to a folder that `BeatsModel.from_pretrained` loads.

    collap convert-beats BEATs_iter3_plus_AS2M.pt beats-iter3

The file is read with `weights_only=True`: no code in it runs. Pre-trained and fine-tuned releases are accepted; the
classifier head of a fine-tuned one is left out. The weight normalisation of the positional convolution is folded into
its weight. Format: `{"cfg": dict, "model": state dict}` (microsoft/unilm, beats/, MIT licence).
"""

import math
from pathlib import Path

import torch

from modeling_collap.configuration_beats import BeatsConfig
from modeling_collap.modeling_beats import BeatsModel

# Name in the original configuration -> (name in BeatsConfig, default of the original code).
CONFIG_NAMES = {
    "input_patch_size": ("patch_size", 16),
    "embed_dim": ("embed_dim", 512),
    "conv_bias": ("conv_bias", False),
    "encoder_embed_dim": ("hidden_size", 768),
    "encoder_layers": ("num_hidden_layers", 12),
    "encoder_attention_heads": ("num_attention_heads", 12),
    "encoder_ffn_embed_dim": ("intermediate_size", 3072),
    "activation_fn": ("hidden_act", "gelu"),
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "dropout_input": ("feature_dropout", 0.0),
    "layer_norm_first": ("layer_norm_first", False),
    "deep_norm": ("deep_norm", False),
    "conv_pos": ("conv_pos_kernel", 128),
    "conv_pos_groups": ("conv_pos_groups", 16),
    "relative_position_embedding": ("relative_position_embedding", False),
    "num_buckets": ("num_buckets", 320),
    "max_distance": ("max_distance", 1280),
    "gru_rel_pos": ("gated_relative_position", False),
}

# Beginning or part of an original parameter name -> ours, applied in order.
PARAMETER_NAMES = [
    ("post_extract_proj.", "feature_projection."),
    ("encoder.pos_conv.0.", "positional_conv.conv."),
    ("encoder.layers.0.self_attn.relative_attention_bias.", "relative_position_bias.embedding."),
    ("encoder.layers.", "layers."),
    (".self_attn.grep_linear.", ".self_attn.gate_proj."),
    (".self_attn.grep_a", ".self_attn.gate_scale"),
    (".fc1.", ".feed_forward.fc1."),
    (".fc2.", ".feed_forward.fc2."),
]
CLASSIFIER_HEAD = "predictor."


class NotABeatsCheckpoint(ValueError):
    """Say why the file cannot be converted: what was found, and what was expected."""


def read_original(path: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read the original file without running code from it.

    Returns:
        The original configuration and state dict.

    Raises:
        FileNotFoundError: if there is no such file.
        NotABeatsCheckpoint: if it is not a torch file of tensors, not one of the BEATs layout, or if a weight is no
            dense tensor of finite floating-point numbers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a BEATs checkpoint (.pt) of the original release")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint are a random program to the reader: it fails anyhow
        raise NotABeatsCheckpoint(
            f"{path}: not a torch file that holds tensors only ({type(error).__name__}); it was not run or converted"
        ) from error
    if not isinstance(checkpoint, dict) or not {"cfg", "model"} <= checkpoint.keys():
        found = sorted(map(str, checkpoint))[:8] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise NotABeatsCheckpoint(f"{path}: expected a dict with the keys 'cfg' and 'model', found {found}")
    config, state = checkpoint["cfg"], checkpoint["model"]
    if not isinstance(config, dict) or not isinstance(state, dict) or "patch_embedding.weight" not in state:
        raise NotABeatsCheckpoint(
            f"{path}: 'cfg' must be a dict and 'model' must hold patch_embedding.weight; this is another model "
            "(a BEATs tokenizer, perhaps)"
        )
    for name, weight in state.items():
        if problem := _weight_problem(name, weight):
            raise NotABeatsCheckpoint(f"{path}: model[{name!r}] {problem}")
    return config, state


def _weight_problem(name: object, weight: object) -> str | None:
    if not isinstance(name, str):
        return f"has a {type(name).__name__} for a name; expected the name of a parameter"
    if not isinstance(weight, torch.Tensor):
        return f"is a {type(weight).__name__}; expected a tensor"
    dense = weight.layout == torch.strided and weight.device.type == "cpu" and not weight.is_nested
    if not dense or not weight.is_floating_point():
        return f"is of {weight.dtype}, {weight.layout} on {weight.device}; expected dense floating-point numbers"
    bad = int((~weight.float().isfinite()).sum())
    return f"holds {bad} numbers that are NaN or infinite; the file is damaged" if bad else None


def convert_config(original: dict) -> BeatsConfig:
    """Return the `BeatsConfig` of an original configuration.

    Raises:
        NotABeatsCheckpoint: for a value of another type or range than the original code takes, an activation that
            [`BeatsModel`] does not have, or sizes that do not fit together.
    """
    settings = {}
    for theirs, (ours, default) in CONFIG_NAMES.items():
        settings[ours] = _checked_setting(theirs, original.get(theirs, default), default)
    settings["gated_relative_position"] &= settings["relative_position_embedding"]
    if settings["hidden_act"] not in ("gelu", "relu"):
        raise NotABeatsCheckpoint(f"activation_fn is {settings['hidden_act']!r}; only 'gelu' and 'relu' are supported")
    try:
        return BeatsConfig(**settings)
    except ValueError as error:
        raise NotABeatsCheckpoint(str(error)) from error


def _checked_setting(name: str, value: object, default: bool | int | float | str) -> bool | int | float | str:
    """Return `value` if it is of the kind of `default`: a switch, a size, a probability or a name."""
    if isinstance(default, bool):
        if isinstance(value, int) and value in (0, 1):  # bool is an int
            return bool(value)
        expected = "True or False"
    elif isinstance(default, int):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        expected = "a positive whole number"
    elif isinstance(default, float):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        expected = "a probability"
    else:
        if isinstance(value, str):
            return value
        expected = "a name"
    raise NotABeatsCheckpoint(f"cfg[{name!r}] is {value!r}; expected {expected}")


def fold_weight_norm(magnitude: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Return the weight of a convolution normalised over all but its kernel axis.

    Args:
        magnitude: (1, 1, kernel) `weight_g`.
        direction: (out, in, kernel) `weight_v`.

    Returns:
        (out, in, kernel).
    """
    return magnitude * direction / direction.norm(dim=(0, 1), keepdim=True)


def convert_state_dict(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return our names for the original parameters, the classifier head left out.

    Raises:
        NotABeatsCheckpoint: if the weight-normalised positional convolution is not one.
    """
    converted = {}
    for name, tensor in original.items():
        if name.startswith(CLASSIFIER_HEAD):
            continue
        if name.startswith("layer_norm."):
            name = "patch_" + name.removeprefix("layer_")
        elif name.startswith("encoder.layer_norm."):
            name = name.removeprefix("encoder.")
        for theirs, ours in PARAMETER_NAMES:
            name = name.replace(theirs, ours)
        if ".relative_attention_bias." in name:
            continue  # the copies that the other layers share with the first
        converted[name] = tensor
    prefix = "positional_conv.conv."
    magnitude, direction = converted.pop(prefix + "weight_g", None), converted.pop(prefix + "weight_v", None)
    if magnitude is not None and direction is not None:
        if direction.ndim != 3 or magnitude.shape != (1, 1, direction.shape[-1]):
            raise NotABeatsCheckpoint(
                f"model['encoder.pos_conv.0.weight_g'] and ..._v are of shapes {tuple(magnitude.shape)} and "
                f"{tuple(direction.shape)}; expected (1, 1, kernel) and (out, in, kernel)"
            )
        folded = fold_weight_norm(magnitude.float(), direction.float())
        if not folded.isfinite().all():
            raise NotABeatsCheckpoint("model['encoder.pos_conv.0.weight_v'] has a norm of 0 or beyond float32")
        converted[prefix + "weight"] = folded
    return converted


def load_original(path: str | Path) -> tuple[BeatsModel, list[str]]:
    """Read an original checkpoint.

    Returns:
        A [`BeatsModel`] with its weights, float32, and the names of the parameters that were left out: the classifier
        head of a fine-tuned release.

    Raises:
        FileNotFoundError, NotABeatsCheckpoint: as [`read_original`]; also if parameters are missing or left over.
    """
    original_config, original_state = read_original(path)
    try:
        # The release reads 128 mel bins whatever the checkpoint; the number is not in its configuration.
        config = convert_config(original_config)
        state = convert_state_dict(original_state)
    except NotABeatsCheckpoint as error:
        raise NotABeatsCheckpoint(f"{path}: {error}") from error
    _check_fit(path, config, state)
    model = BeatsModel(config).float()
    model.load_state_dict(state)
    return model, [name for name in original_state if name.startswith(CLASSIFIER_HEAD)]


def _check_fit(path: str | Path, config: BeatsConfig, state: dict[str, torch.Tensor]):
    """Check names and shapes of the weights before the model takes any memory: its sizes come from the file."""
    try:
        with torch.device("meta"):
            expected = BeatsModel(config).state_dict()
    except (RuntimeError, ValueError) as error:
        raise NotABeatsCheckpoint(f"{path}: no model can be built from 'cfg': {error}") from error
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unexpected or shapes:
        raise NotABeatsCheckpoint(
            f"{path}: the weights do not fit the configuration in the file; missing {missing[:5]}, "
            f"left over {unexpected[:5]}, of another shape {sorted(shapes)[:5]}"
        )


def run(options) -> int:
    """Do `collap convert-beats`; return its exit code."""
    model, left_out = load_original(options.checkpoint)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)  # save_pretrained returns quietly if this is a file
        model.save_pretrained(options.folder)
    except OSError as error:
        raise OSError(f"{options.folder}: cannot write the model there ({error})") from error
    if left_out:
        print(f"left out the classifier head of a fine-tuned release: {', '.join(left_out)}")
    parameters = math.fsum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{options.folder}: BEATs with {parameters:.1f} M parameters, {model.config.num_hidden_layers} layers")
    return 0
