"""Choose which parts of a CoLLAP model train, and how: frozen towers, LoRA, learning rates, checkpointing, compilation.

A *tower* is one of the encoders of `CoLLAPModel.encoders`: `text`, `music` and `speech`, or one of these two. The rest
of the model (projections, structure layers, the score's scalars) are the *heads*; they always train. Every function
takes the plain model, before `accelerator.prepare` or from `accelerator.unwrap_model`; the order is `freeze`,
`add_lora`, `compile_encoders` and `enable_gradient_checkpointing`, `parameter_groups`.
"""

import copy
import json
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, ProcessorMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from collap.files import nearest
from collap.models import save_model_folder

ADAPTER_FOLDER = "adapter"


def _check_names(names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no part of the model; {nearest(name, known)}")


def _state(tower: nn.Module) -> str:
    """How a part trains: "full", "LoRA" or "frozen"."""
    if any(isinstance(module, LoraLayer) for module in tower.modules()):
        return "LoRA"
    return "full" if any(parameter.requires_grad for parameter in tower.parameters()) else "frozen"


def _stay_in_eval(tower: nn.Module, mode: bool = True) -> nn.Module:
    return tower


def freeze(model: PreTrainedModel, towers: list[str]) -> None:
    """Towers that do not train: their weights need no gradient, and `model.train()` leaves them in evaluation mode, so
    that no dropout or layer drop disturbs them. Nothing of a frozen tower is kept for the backward pass.

    Raises:
        ValueError: for an unknown tower, naming the nearest, or one that has LoRA.
    """
    _check_names(towers, model.encoders)
    for name in towers:
        tower = model.encoders[name]
        if _state(tower) == "LoRA":
            raise ValueError(f"the {name} tower has LoRA and cannot be frozen; name it once")
        tower.requires_grad_(False).eval()
        # Whoever calls `model.train()`: a module's `train` calls that of its children, and finds this one.
        tower.train = partial(_stay_in_eval, tower)


def _path(model: PreTrainedModel, name: str) -> str:
    """Return the name of a tower among the model's modules."""
    return next(path for path, module in model.named_modules() if module is model.encoders[name])


def _projections(model: PreTrainedModel, name: str) -> Iterator[str]:
    """Yield the names of a tower's linear maps from or to its hidden states, all attention and feed-forward
    projections; BEATs' gate of the position bias, a map of one head to 8 numbers, is none."""
    tower = model.encoders[name]
    for block_name, block in tower.named_modules(prefix=_path(model, name)):
        if isinstance(block, GradientCheckpointingLayer):
            for path, module in block.named_modules(prefix=block_name):
                if isinstance(module, (nn.Linear, Conv1D)) and tower.config.hidden_size in module.weight.shape:
                    yield path


def _any_layer(path: str) -> str:
    """A regular expression for a module's name in any layer: h.0.attn -> h\\.\\d+\\.attn."""
    return r"\.".join(r"\d+" if part.isdigit() else part for part in path.split("."))


def add_lora(model: PreTrainedModel, towers: list[str], rank: int, base_model: str) -> None:
    """Low-rank updates (arXiv 2106.09685) of all attention and feed-forward projections of these towers, by peft, in
    place. The towers' own weights are frozen; what other parts train does not change.

    Args:
        rank: r, of the update `alpha / r * B A` of a projection, with alpha = 2 r.
        base_model: folder or Hub id of the model as it is now, to which the saved adapter belongs.

    Raises:
        ValueError: for an unknown tower, naming the nearest, a frozen one, or a rank below 1.
    """
    _check_names(towers, model.encoders)
    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, found {rank}")
    for name in towers:
        if _state(model.encoders[name]) == "frozen":
            raise ValueError(f"the {name} tower is frozen and cannot have LoRA; name it once")
    paths = [path for name in towers for path in _projections(model, name)]
    if not paths:
        raise ValueError(f"found no attention or feed-forward projections in {', '.join(towers) or 'no tower'}")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="|".join(sorted(set(map(_any_layer, paths)))),
        base_model_name_or_path=str(base_model),
    )
    own = tuple(f"{_path(model, name)}." for name in towers)
    trained = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(own)]
    with warnings.catch_warnings():
        # Towers differ in it (GPT-2's Conv1D, Linear elsewhere), and peft sets it right for every layer.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        inject_adapter_in_model(config, model)
    for parameter in trained:
        parameter.requires_grad_(True)  # peft freezes all but its own


def merge_lora(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of the plain model with the updates added, `W + alpha / r * B A`; `state_dict` is left as it is.

    Args:
        model: whose LoRA layers tell alpha, r and whether W is transposed (Conv1D).
        state_dict: of this model.
    """
    merged = {}
    for name, tensor in state_dict.items():
        layer_name, _, own_name = name.rpartition(".base_layer.")
        if ".lora_" in name:
            continue
        if layer_name and own_name == "weight":
            layer = model.get_submodule(layer_name)
            a, b = (state_dict[f"{layer_name}.lora_{which}.default.weight"] for which in "AB")  # (r, in), (out, r)
            update = layer.scaling["default"] * (b @ a)  # (out, in)
            tensor = tensor + (update.T if layer.fan_in_fan_out else update)
        merged[f"{layer_name}.{own_name}" if layer_name else name] = tensor
    return merged


def _modules_to_save(model: PreTrainedModel) -> list[str]:
    """Return the names of the parts that train in full: heads, and towers with neither LoRA nor frozen."""
    layers = {f"structure.frame_layers.{number}": layer for number, layer in enumerate(model.structure.frame_layers)}
    parts = layers | {"score_parameters": model.score_parameters}
    for name in ("text_tower", "audio_tower"):
        parts |= {f"{name}.{child}": part for child, part in getattr(model, name).named_children()}
    return [name for name, part in parts.items() if _state(part) == "full"]


def _save_adapter(model: PreTrainedModel, folder: Path, state_dict: dict[str, torch.Tensor]) -> None:
    config = copy.deepcopy(model.peft_config["default"])
    config.modules_to_save = _modules_to_save(model)
    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = get_peft_model_state_dict(model, state_dict=state_dict, save_embedding_layers=False)
    whole = tuple(f"{name}." for name in config.modules_to_save)
    tensors |= {name: tensor for name, tensor in state_dict.items() if name.startswith(whole)}
    tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def save_model(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
    results: dict | None = None,
) -> None:
    """Writes a folder that `AutoModel` and `AutoProcessor` load, without peft: LoRA's updates are added to the saved
    weights (the model's own are only read). With LoRA, `folder/adapter` also gets a peft adapter, which holds the
    updates and every part that trained in full: `PeftModel.from_pretrained(base_model, folder/adapter)`.

    Args:
        state_dict: of the model, if its parameters are sharded: `accelerator.get_state_dict(model)`.
        results: of the model's evaluation, for its card.
    """
    state_dict = model.state_dict() if state_dict is None else state_dict
    save_model_folder(model, processor, folder, state_dict=merge_lora(model, state_dict))
    if _state(model) == "LoRA":
        _save_adapter(model, Path(folder) / ADAPTER_FOLDER, state_dict)
    if results is not None:
        evaluation = Path(folder) / "evaluation" / f"{results['split']}.json"
        evaluation.parent.mkdir()
        evaluation.write_text(json.dumps(results, indent=2) + "\n")


def parameter_groups(
    model: PreTrainedModel,
    learning_rate: float,
    weight_decay: float,
    text_learning_rate: float | None = None,
    audio_learning_rate: float | None = None,
) -> list[dict]:
    """Groups for AdamW of the parameters that train: `text`, `audio` (both audio encoders) and `heads`, each with and
    without weight decay. Vectors and scalars do not decay (biases, norms, the score's scalars, BEATs' gates, whatever
    their number of dimensions).

    Args:
        text_learning_rate, audio_learning_rate: `learning_rate` by default.
    """
    rates = {"text": text_learning_rate, "audio": audio_learning_rate}
    part_of = {
        id(parameter): "text" if name == "text" else "audio"
        for name, encoder in model.encoders.items()
        for parameter in encoder.parameters()
    }
    groups = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        part = part_of.get(id(parameter), "heads")
        decays = sum(size > 1 for size in parameter.shape) > 1
        rate = rates.get(part)
        group = {
            "name": part if decays else f"{part}, no decay",
            "params": [],
            "lr": learning_rate if rate is None else rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        groups.setdefault(group["name"], group)["params"].append(parameter)
    return list(groups.values())


def trainable_summary(model: PreTrainedModel) -> str:
    """The share of the parameters that train, in all and for each part, in millions."""

    def trains(parameters: Iterable[nn.Parameter]) -> tuple[float, float]:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
        return sum(size for size, trained in sizes if trained) / 1e6, sum(size for size, _ in sizes) / 1e6

    trained, total = trains(model.parameters())
    lines = [f"trains {trained:.2f} of {total:.2f} million parameters ({100 * trained / total:.1f} %):"]
    heads = trained, total
    for name, encoder in model.encoders.items():
        counts = trains(encoder.parameters())
        heads = heads[0] - counts[0], heads[1] - counts[1]
        lines.append(f"  {name:6} {_state(encoder):6} {counts[0]:.2f} of {counts[1]:.2f}")
    return "\n".join([*lines, f"  heads  full   {heads[0]:.2f} of {heads[1]:.2f}"])


def enable_gradient_checkpointing(model: PreTrainedModel, towers: list[str]) -> None:
    """The transformer layers of these parts keep only their inputs and are computed again in the backward pass.

    Args:
        towers: of `text`, `music`, `speech` and `structure` (the structure layers), or `["all"]`: all that train.

    Raises:
        ValueError: for an unknown name, a frozen tower, or a part without transformer layers.
    """
    parts = model.encoders | {"structure": model.structure}
    _check_names(towers, (*parts, "all"))
    if "all" in towers:
        towers = [name for name, part in parts.items() if _state(part) != "frozen"]
    for name in towers:
        layers = [layer for layer in parts[name].modules() if isinstance(layer, GradientCheckpointingLayer)]
        if not layers:
            raise ValueError(f"{name} has no transformer layers that can be checkpointed")
        if _state(parts[name]) == "frozen":
            raise ValueError(f"the {name} tower is frozen: it keeps no activations that checkpointing could save")
        for layer in layers:
            # Not by `activation_checkpointing_enable`, which makes the outputs of embeddings need a gradient and so
            # keeps a graph of what is frozen; this way of checkpointing does without.
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def compile_encoders(model: PreTrainedModel, backend: str) -> None:
    """Compiles the towers' transformer layers in place with `torch.compile`; names in the state dict do not change.

    Layers and not whole towers: all layers of a tower share one compiled graph, and checkpointing works inside of it
    (of a whole tower with dynamic shapes, torch 2.11 cannot trace it). Shapes are dynamic: neither the number of
    segments nor the length of the texts compiles anew.

    Args:
        backend: "inductor", or another one of `torch._dynamo.list_backends()`.

    Raises:
        ValueError: for an unknown backend.
    """
    if backend not in torch._dynamo.list_backends(exclude_tags=()):
        raise ValueError(
            f"unknown backend {backend!r} of torch.compile; expected one of {torch._dynamo.list_backends()}"
        )
    # For torch all layers are one function, compiled for every tower with and without gradient, in training and
    # evaluation, with and without padding, for one and for several segments; beyond the limit (8) it gives up.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # DDP's gradient exchange overlaps with the backward pass between layers anyway: no need to split a layer's graph.
    torch._dynamo.config.optimize_ddp = False
    for encoder in model.encoders.values():
        for layer in encoder.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.compile(backend=backend, dynamic=True)
