"""One contrastive step: forward and backward over a batch of any size, with negatives from all processes.

Without micro-batches all songs of a process are encoded at once. With them the step takes two passes (gradient
caching, arXiv 2101.06983): the first embeds the texts and scores the songs, a micro-batch at a time, without a graph;
the loss is taken on the scores of the whole batch; the second repeats each micro-batch with a graph and sends the
gradient of its scores back. The loss and the gradients are those of the whole batch.

What is kept for the whole batch are text embeddings and scores, never tokens, and nothing else travels between
processes. A CoLLAP score needs the tokens of one song only, so the scores are cached and not, as usual, the embeddings.

Dimensions: with R processes of n songs each, `A = B = R n`; `D` shared width.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modeling_collap.loss_collap import contrastive_loss, gather_rows

TEXTS_AT_A_TIME = 512  # scored with a song; more only take memory: (texts, frames, kernel) float32 for each song


@dataclass
class ContrastiveStep:
    """
    Attributes:
        loss: scalar, of the batch of all processes; the same on each.
        scores: (A, B) of the batch of all processes.
        sample: text embeddings (B, D), audio embeddings (a, T, D) and token mask (a, T) of the last songs encoded.
        has_gradients: False if the loss was not finite or above the limit: there was no backward pass.
    """

    loss: torch.Tensor
    scores: torch.Tensor
    sample: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    has_gradients: bool = True


@dataclass
class Inputs:
    """Inputs of the model for some songs of a batch, on the device; features are computed there, when needed."""

    batch: object
    device: torch.device
    feature_extractor: object

    def texts(self, part: slice) -> dict[str, torch.Tensor]:
        return self.batch.text_inputs(part, self.device)

    def audios(self, part: slice) -> dict[str, torch.Tensor]:
        return self.batch.audio_inputs(part, self.device, self.feature_extractor)


@contextmanager
def replayed_random_state(state: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Dropout as it was when `random_state` was taken; what follows the block is not affected."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state[0])
        if devices:
            torch.cuda.set_rng_state(state[1], device)
        yield


def random_state(device: torch.device) -> list[torch.Tensor]:
    """States of the generators that dropout draws from."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


@contextmanager
def gradients_stay_local(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Backward passes within add to the gradients of this process alone; one after it synchronises their sum.

    FSDP2 reduces every micro-batch into the sharded gradients instead: kept local they would not be sharded.
    """
    accelerator.gradient_state._set_sync_gradients(False)  # DeepSpeed would take a step after each backward pass
    try:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            yield
    finally:
        accelerator.gradient_state._set_sync_gradients(True)


def zero_of_all_parameters(model: nn.Module) -> torch.Tensor:
    """0, with a gradient of zero for every trained parameter: DistributedDataParallel waits for all of them, and the
    last backward pass goes through the text tower alone."""
    return sum((parameter.flatten()[:1].sum() * 0 for parameter in model.parameters() if parameter.requires_grad), 0.0)


def micro_batches(size: int, micro_batch_size: int | None) -> list[slice]:
    """Consecutive parts of a process's songs; the last may be smaller."""
    step = micro_batch_size or size
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def contrastive_step(
    accelerator: Accelerator,
    model: nn.Module,
    batch,
    feature_extractor,
    micro_batch_size: int | None = None,
    loss_limit: float = torch.inf,
) -> ContrastiveStep:
    """Loss of the batch of all processes, and its gradients in `.grad`, ready for the optimizer.

    Args:
        model: prepared by `accelerator`; only its `forward` is called, so that DDP, FSDP2 and DeepSpeed see every use.
        batch: an `AudioTextBatch` of this process; all processes hold the same number of songs.
        feature_extractor: for batches that hold waveforms.
        micro_batch_size: songs encoded at a time; None for all.
        loss_limit: a loss above it, or one that is not finite, ends the step before the backward pass.
    """
    inputs = Inputs(batch, accelerator.device, feature_extractor)
    parts = micro_batches(len(batch), micro_batch_size)
    step = _whole_step if len(parts) == 1 else _cached_step
    return step(accelerator, model, inputs, parts, loss_limit)


def _is_usable(loss: torch.Tensor, limit: float) -> bool:
    return bool(torch.isfinite(loss) & (loss <= limit))


def _texts_at_a_time(accelerator: Accelerator, songs: int) -> int | None:
    return TEXTS_AT_A_TIME if songs * accelerator.num_processes > TEXTS_AT_A_TIME else None


def _whole_step(accelerator, model, inputs: Inputs, parts: list[slice], loss_limit: float) -> ContrastiveStep:
    chunk = _texts_at_a_time(accelerator, parts[0].stop)
    settings = {"return_loss": True, "gather_negatives": True, "text_chunk_size": chunk}
    output = model(**inputs.texts(parts[0]), **inputs.audios(parts[0]), **settings)  # logits_per_audio (n, B)
    has_gradients = _is_usable(output.loss, loss_limit)
    if has_gradients:
        accelerator.backward(output.loss)
    scores = gather_rows(output.logits_per_audio.detach())  # (A, B)
    texts = gather_rows(output.text_embeds.detach())  # (B, D)
    sample = (texts, output.audio_embeds.detach(), output.audio_token_mask)
    return ContrastiveStep(output.loss.detach(), scores, sample, has_gradients)


def _cached_step(accelerator, model, inputs: Inputs, parts: list[slice], loss_limit: float) -> ContrastiveStep:
    chunk = _texts_at_a_time(accelerator, parts[-1].stop)
    with torch.no_grad():
        states, outputs = [], []
        for part in parts:
            states.append(random_state(inputs.device))
            outputs.append(model(**inputs.texts(part)).text_embeds)  # (b, D)
        texts = gather_rows(torch.cat(outputs))  # (B, D)
        rows = []
        for part in parts:
            states.append(random_state(inputs.device))
            output = model(**inputs.audios(part), text_embeds=texts, text_chunk_size=chunk)
            rows.append(output.logits_per_audio)  # (a, B)
        scores = gather_rows(torch.cat(rows))  # (A, B)
    scores.requires_grad_()
    loss = contrastive_loss(scores, accelerator.unwrap_model(model).config.loss_direction)
    sample = (texts, output.audio_embeds, output.audio_token_mask)
    has_gradients = _is_usable(loss, loss_limit)
    if has_gradients:
        (gradient,) = torch.autograd.grad(loss, scores)  # (A, B)
        text_gradient = _replay_audios(accelerator, model, inputs, parts, states[len(parts) :], texts, gradient)
        _replay_texts(accelerator, model, inputs, parts, states[: len(parts)], text_gradient)
    return ContrastiveStep(loss.detach(), scores.detach(), sample, has_gradients)


def _replay_audios(accelerator, model, inputs: Inputs, parts, states, texts, gradient) -> torch.Tensor:
    """The gradient of the scores through the songs of this process.

    Each process has its own songs' part of the gradient, and the mean over R processes follows: hence the factor R.

    Args:
        texts: (B, D).
        gradient: (A, B) of the loss with respect to the scores.

    Returns:
        (n, D) gradient with respect to this process's text embeddings, R times that of the whole batch.
    """
    processes, size = accelerator.num_processes, parts[-1].stop
    own = gradient.unflatten(0, (processes, size))[accelerator.process_index] * processes  # (n, B)
    texts = texts.clone().requires_grad_()
    chunk = _texts_at_a_time(accelerator, size)
    for part, state in zip(parts, states, strict=True):
        with gradients_stay_local(accelerator, model), replayed_random_state(state, inputs.device):
            scores = model(**inputs.audios(part), text_embeds=texts, text_chunk_size=chunk).logits_per_audio  # (a, B)
            accelerator.backward((scores * own[part]).sum())
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0  # applied again with the texts
    text_gradient = accelerator.reduce(texts.grad / scale, reduction="sum")  # (B, D)
    return text_gradient.unflatten(0, (processes, size))[accelerator.process_index]  # (n, D)


def _replay_texts(accelerator, model, inputs: Inputs, parts, states, gradient: torch.Tensor):
    """The gradient (n, D) of this process's text embeddings through the text tower; the last part synchronises all."""
    for part, state in zip(parts, states, strict=True):
        is_last = part is parts[-1]
        local = nullcontext() if is_last else gradients_stay_local(accelerator, model)
        with local, replayed_random_state(state, inputs.device):
            embeds = model(**inputs.texts(part)).text_embeds  # (b, D)
            loss = (embeds * gradient[part]).sum()
            if is_last and isinstance(model, DistributedDataParallel):
                loss = loss + zero_of_all_parameters(model)
            accelerator.backward(loss)
