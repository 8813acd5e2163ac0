"""One step as train.py takes it, up to the optimizer: the plain one of its loop, or the cached one."""

from types import SimpleNamespace

import torch
from accelerate import Accelerator

from collap.training.step import StepInputs, cached_step, is_usable
from modeling_collap.loss_collap import gather_rows


def take_step(
    accelerator: Accelerator, model, batch, feature_extractor, micro_batch_size: int | None, limit: float = torch.inf
) -> SimpleNamespace:
    """Leave the gradients in `.grad`; return `loss`, `scores` (A, B) of all processes, and `has_gradients`."""
    inputs = StepInputs(accelerator, batch, feature_extractor)
    if micro_batch_size is not None and micro_batch_size < len(batch):
        output = cached_step(accelerator, model, inputs, micro_batch_size, limit)
    else:
        settings = {"return_loss": True, "gather_negatives": True, "false_negatives": inputs.false_negatives()}
        output = model(**inputs.texts(), **inputs.audios(), **settings)
        if is_usable(output.loss, limit):
            accelerator.backward(output.loss)
    scores = gather_rows(output.logits_per_audio.detach())
    return SimpleNamespace(loss=output.loss.detach(), scores=scores, has_gradients=is_usable(output.loss, limit))
