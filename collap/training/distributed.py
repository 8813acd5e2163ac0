"""Do what Accelerate leaves to the program: a model and its optimizer under DDP, FSDP2 or DeepSpeed."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import register_fsdp_forward_method

from modeling_collap import CoLLAPConfig, CoLLAPModel

# Called on the model itself, and not through its `forward`, by the evaluation and the metrics.
METHODS = (
    "get_text_features",
    "get_sentence_features",
    "get_audio_features",
    "encode_segments",
    "normalize_tokens",
    "score",
)
ALL_SEGMENTS = 10_000


def prepare(accelerator: Accelerator, model: CoLLAPModel, optimizer, batch_size: int, max_grad_norm: float):
    """Model and optimizer, ready for steps of `batch_size` songs over all processes.

    Raises:
        ValueError: for LoRA with FSDP2.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": batch_size // accelerator.num_processes,
            "gradient_clipping": max_grad_norm,
        }
    if not accelerator.is_fsdp2:
        return accelerator.prepare(model, optimizer)
    if getattr(model, "peft_config", None):
        raise ValueError("lora does not go with FSDP2, and trains too little to need it: launch with DDP")
    # All processes must run each layer equally often, because each holds a part of its weights: one call for all
    # segments, however many a process has. And scores stay float32: Accelerate's policy would return bfloat16.
    model.audio_tower.segment_batch_size = ALL_SEGMENTS
    accelerator.state.fsdp_plugin.mixed_precision_policy = None
    if accelerator.mixed_precision == "bf16":
        model.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(model.forward)
    model, optimizer = accelerator.prepare(model, optimizer)
    for name in METHODS:
        register_fsdp_forward_method(model, name)
    return model, optimizer


def whole_model(accelerator: Accelerator, prepared, config: CoLLAPConfig) -> tuple[CoLLAPModel, dict]:
    """A model that can be saved, with its whole state dict; called by all processes.

    Args:
        prepared: by [`prepare`].
        config: as it was before.
    """
    state = accelerator.get_state_dict(prepared)
    if not accelerator.is_fsdp2:
        return accelerator.unwrap_model(prepared), state
    with torch.device("meta"):  # FSDP2 has given the live model another class, which would be saved by that name
        return CoLLAPModel(config), state
