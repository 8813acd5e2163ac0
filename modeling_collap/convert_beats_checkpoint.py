"""Convert a BEATs checkpoint of the original release to a folder that `BeatsModel.from_pretrained` loads.

    python -m modeling_collap.convert_beats_checkpoint BEATs_iter3_plus_AS2M.pt beats-iter3

The file is read with `weights_only=True`: no code in it runs. Pre-trained and fine-tuned releases are accepted; the
classifier head of a fine-tuned one is left out. The weight normalisation of the positional convolution is folded into
its weight. Format: `{"cfg": dict, "model": state dict}` (microsoft/unilm, beats/, MIT licence).
"""

import argparse
import math
import sys
from pathlib import Path

import torch

from .configuration_beats import BeatsConfig
from .modeling_beats import BeatsModel

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
    """The file cannot be converted; the message says what was found and what was expected."""


def read_original(path: str | Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Reads the original file without running code from it.

    Returns:
        The original configuration and state dict.

    Raises:
        FileNotFoundError: if there is no such file.
        NotABeatsCheckpoint: if it is not a torch file of tensors, or not one of the BEATs layout.
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
    return config, state


def convert_config(original: dict) -> BeatsConfig:
    """The `BeatsConfig` of an original configuration.

    Raises:
        NotABeatsCheckpoint: for an activation that [`BeatsModel`] does not have.
    """
    settings = {ours: original.get(theirs, default) for theirs, (ours, default) in CONFIG_NAMES.items()}
    settings["gated_relative_position"] = bool(settings["gated_relative_position"])
    settings["gated_relative_position"] &= bool(settings["relative_position_embedding"])
    if settings["hidden_act"] not in ("gelu", "relu"):
        raise NotABeatsCheckpoint(f"activation_fn is {settings['hidden_act']!r}; only 'gelu' and 'relu' are supported")
    return BeatsConfig(**settings)


def fold_weight_norm(magnitude: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The weight of a convolution normalised over all but its kernel axis.

    Args:
        magnitude: (1, 1, kernel) `weight_g`.
        direction: (out, in, kernel) `weight_v`.

    Returns:
        (out, in, kernel).
    """
    return magnitude * direction / direction.norm(dim=(0, 1), keepdim=True)


def convert_state_dict(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names for the original parameters, the classifier head left out."""
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
        converted[prefix + "weight"] = fold_weight_norm(magnitude, direction)
    return converted


def load_original(path: str | Path) -> BeatsModel:
    """A [`BeatsModel`] with the weights of an original checkpoint, float32.

    Raises:
        FileNotFoundError, NotABeatsCheckpoint: as [`read_original`]; also if parameters are missing or left over.
    """
    original_config, original_state = read_original(path)
    try:
        config = convert_config(original_config)
    except ValueError as error:
        raise NotABeatsCheckpoint(f"{path}: {error}") from error
    state = convert_state_dict(original_state)
    # The release reads 128 mel bins whatever the checkpoint; the number is not in its configuration.
    model = BeatsModel(config).float()
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unexpected or shapes:
        raise NotABeatsCheckpoint(
            f"{path}: the weights do not fit the configuration in the file; missing {missing[:5]}, "
            f"left over {unexpected[:5]}, of another shape {sorted(shapes)[:5]}"
        )
    model.load_state_dict(state)
    return model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="convert_beats_checkpoint", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="BEATs checkpoint of the original release (.pt)")
    parser.add_argument("out_dir", help="folder to write config.json and model.safetensors to")
    options = parser.parse_args(arguments)
    try:
        model = load_original(options.checkpoint)
    except (NotABeatsCheckpoint, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    head = [name for name in read_original(options.checkpoint)[1] if name.startswith(CLASSIFIER_HEAD)]
    if head:
        print(f"left out the classifier head of a fine-tuned release: {', '.join(head)}")
    model.save_pretrained(options.out_dir)
    parameters = math.fsum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{options.out_dir}: BEATs with {parameters:.1f} M parameters, {model.config.num_hidden_layers} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
