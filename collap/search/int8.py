"""Run a model's audio encoders with 8-bit linear layers: weights and inputs are rounded, sums are of whole numbers.

A processor with instructions for 8-bit products (VNNI) is faster so; docs/search.md has the figures. The layers are
made of float32 weights when a model is loaded, and are never saved.
"""

import torch
from torch import nn

from collap.evaluation.embedders import CoLLAPEmbedder, Embedder
from collap.evaluation.load_embedders import load_embedder
from modeling_collap import CoLLAPModel

INT8 = "int8"
LARGEST = 127
ENGINE = "onednn"  # of those of torch the fastest; x86 and fbgemm took 4 to 7 % longer


class Int8Linear(nn.Module):
    """Compute what a linear layer does from weights (out, in) that are rounded to 8 bits with a scale for each output,
    and inputs that are rounded to 7 bits with a scale for each segment, whatever segments are computed beside it.

    Of 8 bits, two products would not fit where a processor without VNNI adds them.

    Raises:
        ValueError: a weight is NaN or infinite, which rounding would hide.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        if not weight.isfinite().all():
            raise ValueError("weights hold NaN or infinity; expected numbers")
        scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny).double() / LARGEST  # (out,)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        rounded = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Transform (..., in) to (..., out), float32; of more than two dimensions the first is that of segments."""
        if inputs.ndim > 2:
            return torch.stack([self(segment) for segment in inputs])
        return torch.ops.quantized.linear_dynamic(inputs, self.packed, reduce_range=True)


def round_linear_layers(module: nn.Module) -> None:
    """Replace every linear layer in a module by an [`Int8Linear`]."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            round_linear_layers(child)


def run_in_int8(model: CoLLAPModel) -> None:
    """Round the linear layers of a model's audio encoders; its adapter and its texts stay in float32.

    Raises:
        ValueError: this torch cannot compute with them, or a weight is no number.
    """
    quantized = torch.backends.quantized
    if ENGINE not in quantized.supported_engines:
        raise ValueError(f"this torch has no {ENGINE}, which {INT8} needs; expected float32 or bfloat16")
    engine, quantized.engine = quantized.engine, ENGINE  # it decides how weights are laid out
    try:
        for encoder in model.audio_tower.encoders.values():
            round_linear_layers(encoder)
    finally:
        quantized.engine = engine


def load_in_int8(spec: str, device: str) -> Embedder:
    """Load a CoLLAP model whose audio encoders have 8-bit linear layers; texts are embedded in float32.

    Args:
        spec: as `load_embedder` has it.
        device: where the model runs; the layers are for processors alone.

    Raises:
        OSError, ValueError: there is no such model, it is of another kind, or another device is asked for.
    """
    if torch.device(device).type != "cpu":
        raise ValueError(f"{spec}: {INT8} runs on processors, found --device {device}; name cpu, or --dtype bfloat16")
    embedder = load_embedder(spec, device)
    if not isinstance(embedder, CoLLAPEmbedder):
        raise ValueError(f"{spec}: is no CoLLAP model, and only these run in {INT8}; expected float32 or bfloat16")
    run_in_int8(embedder.model)
    embedder.dtype = embedder.settings["precision"] = INT8
    return embedder
