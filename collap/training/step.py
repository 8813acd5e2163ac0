"""Hold what a contrastive step needs beside the model's forward pass, and take the cached one, which needs less memory.

The plain step encodes all songs of a process at once; it stands in the loop of train.py. The cached one takes two
passes over micro-batches (gradient caching, arXiv 2101.06983): the first embeds the texts and scores the songs without
a graph; the loss is taken on the scores of the whole batch; the second repeats each micro-batch with a graph and sends
the gradient of its scores back. The loss and the gradients are those of the whole batch, with negatives from all ranks.

What is kept for the whole batch are text embeddings and scores, never tokens, and nothing else travels between
processes. A CoLLAP score needs the tokens of one song only, so the scores are cached and not, as usual, the embeddings.
The loss of places needs a song and its own text only: its gradient is that of each micro-batch.

Dimensions: with R ranks of n songs each, `A = B = R n`; a micro-batch has `a` songs and `b` texts; `T` tokens of a
song, `Q` sentences of a text, `D` shared width.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modeling_collap import CoLLAPOutput
from modeling_collap.alignment_collap import pool_sentences
from modeling_collap.localization_collap import pair_location_losses
from modeling_collap.loss_collap import (
    contrastive_loss,
    gather_orders,
    gather_rows,
    gather_texts,
    other_orders,
    split_orders,
)

ALL = slice(None)


@dataclass
class StepInputs:
    """Inputs of the model for a batch of this process, on its device; features are computed there, when needed.

    Attributes:
        batch: an `AudioTextBatch`; all processes hold the same number of songs.
        feature_extractor: for batches that hold waveforms.
    """

    accelerator: Accelerator
    batch: object
    feature_extractor: object

    def texts(self, part: slice = ALL) -> dict[str, torch.Tensor]:
        """Return the arguments of `forward` for the texts of some songs."""
        return self.batch.text_inputs(part, self.accelerator.device)

    def audios(self, part: slice = ALL) -> dict[str, torch.Tensor]:
        """Return the arguments of `forward` for the audio of some songs."""
        return self.batch.audio_inputs(part, self.accelerator.device, self.feature_extractor)

    def false_negatives(self) -> torch.Tensor | None:
        """Return the pairs of the whole batch that are no negatives, (A, B) bool: text j was written for the song of
        audio i, or is the text of audio i; None where the batch tells neither songs nor texts."""
        told = [ids for ids in (self.batch.song_ids, self.batch.text_ids) if ids is not None]
        if not told:
            return None
        ids = self.accelerator.gather(torch.stack(told, dim=1).to(self.accelerator.device))  # (A, 1 or 2)
        return (ids[:, None] == ids[None]).any(-1)  # (A, B)


def is_usable(loss: torch.Tensor, limit: float) -> bool:
    """Tell whether a loss may have a backward pass: it is finite, and not above the limit."""
    return bool(torch.isfinite(loss) & (loss <= limit))


@contextmanager
def replayed_random_state(state: list[torch.Tensor], device: torch.device) -> Iterator[None]:
    """Draw dropout as it was when `random_state` was taken; what follows the block is not affected."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state[0])
        if devices:
            torch.cuda.set_rng_state(state[1], device)
        yield


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the states of the generators that dropout draws from."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


@contextmanager
def gradients_stay_local(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Let backward passes within add to the gradients of this process alone; one after it synchronises their sum.

    FSDP2 reduces every micro-batch into the sharded gradients instead: kept local they would not be sharded.
    """
    accelerator.gradient_state._set_sync_gradients(False)  # DeepSpeed would take a step after each backward pass
    try:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            yield
    finally:
        accelerator.gradient_state._set_sync_gradients(True)


def zero_of_all_parameters(model: nn.Module) -> torch.Tensor:
    """Return 0, with a gradient of zero for every trained parameter: DistributedDataParallel waits for all of
    them, and the last backward pass goes through the text tower alone."""
    return sum((parameter.flatten()[:1].sum() * 0 for parameter in model.parameters() if parameter.requires_grad), 0.0)


def micro_batches(size: int, micro_batch_size: int | None) -> list[slice]:
    """Cut a process's songs into consecutive parts; the last may be smaller."""
    step = micro_batch_size or size
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


class StepLoss:
    """Take the loss of a cached step in two parts: of the scores of the whole batch, and of single pairs.

    The second is of a song and its own text only, so that its gradient needs no more than their micro-batch.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, inputs: StepInputs):
        self.config, self.inputs = accelerator.unwrap_model(model).config, inputs
        self.first = accelerator.process_index * len(inputs.batch)
        labels = inputs.texts()
        self.spans = labels.get("sentence_spans") if self.config.location_weight else None  # (n, Q, 2)
        orders = labels.get("sentence_orders")
        self.orders = None if orders is None else gather_orders(orders)  # (B, Q)

    def scored_texts(self, texts: torch.Tensor) -> torch.Tensor:
        """Return the texts (B, Q, D) of all processes, and after them, if there are any, their other orders."""
        return texts if self.orders is None else torch.cat([texts, other_orders(texts, self.orders)])

    def of_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the contrastive loss, scalar, of the scores of all processes with [`scored_texts`]."""
        further = None
        if self.orders is not None:
            scores, further = split_orders(scores, self.orders)  # (A, B)
        return contrastive_loss(scores, self.config.loss_direction, self.inputs.false_negatives(), further)

    def of_pairs(self, part: slice, texts: torch.Tensor, output: CoLLAPOutput) -> torch.Tensor:
        """Return the weighted location losses (a,) of the songs of a part.

        Args:
            texts: (B, Q, D) of all processes.
            output: with the tokens of these songs.
        """
        if self.spans is None:
            return output.logits_per_audio.new_zeros(len(output.logits_per_audio))
        spans = self.spans[part]  # (a, Q, 2)
        own = texts[self.first + part.start : self.first + part.stop, : spans.shape[1]]  # (a, Q, D)
        audios = output.audio_embeds, output.audio_token_mask
        return self.config.location_weight * pair_location_losses(self.config, own, *audios, spans)

    def whole(self, contrast: torch.Tensor, pairs: list[torch.Tensor]) -> torch.Tensor:
        """Add the mean over the pairs of all processes to the contrastive loss."""
        return contrast if self.spans is None else contrast + gather_rows(torch.cat(pairs)).mean()


def cached_step(
    accelerator: Accelerator,
    model: nn.Module,
    inputs: StepInputs,
    micro_batch_size: int,
    loss_limit: float = torch.inf,
) -> CoLLAPOutput:
    """Take the loss of the batch of all processes, and leave its gradients in `.grad`, ready for the optimizer.

    Args:
        model: prepared by `accelerator`; only its `forward` is called, so that DDP, FSDP2 and DeepSpeed see every use.
        micro_batch_size: songs encoded at a time.
        loss_limit: a loss that is not [`is_usable`] ends the step before the backward pass.

    Returns:
        Without a graph: `loss`, scalar, the same on every process; `logits_per_audio` (n, B); `text_embeds` (n, D);
        `audio_embeds` (a, T, D) and `audio_token_mask` (a, T) of the last songs encoded.
    """
    parts = micro_batches(len(inputs.batch), micro_batch_size)
    step_loss = StepLoss(accelerator, model, inputs)
    with torch.no_grad():
        states, embeds, rows, pairs = [], [], [], []
        for part in parts:
            states.append(random_state(accelerator.device))
            embeds.append(model(**inputs.texts(part)).scored_texts)  # (b, D) or (b, Q, D)
        own_texts = torch.cat(embeds)  # (n, D) or (n, Q, D)
        texts = gather_texts(own_texts)  # (B, D) or (B, Q, D)
        for part in parts:
            states.append(random_state(accelerator.device))
            output = model(**inputs.audios(part), text_embeds=step_loss.scored_texts(texts))
            rows.append(output.logits_per_audio)  # (a, B or 2 B)
            pairs.append(step_loss.of_pairs(part, texts, output))  # (a,)
        own_scores = torch.cat(rows)  # (n, B or 2 B)
        scores = gather_rows(own_scores)  # (A, B or 2 B)
    scores.requires_grad_()
    contrast = step_loss.of_scores(scores)
    loss = step_loss.whole(contrast, pairs)
    if is_usable(loss, loss_limit):
        (gradient,) = torch.autograd.grad(contrast, scores)  # as the scores
        replayed = states[len(parts) :], texts, gradient, step_loss
        text_gradient = _replay_audios(accelerator, model, inputs, parts, *replayed)
        if own_texts.ndim == 3:  # other processes may have texts of more sentences
            text_gradient = text_gradient[:, : own_texts.shape[1]]  # (n, Q, D)
        _replay_texts(accelerator, model, inputs, parts, states[: len(parts)], text_gradient)
    output.loss, output.logits_per_audio = loss.detach(), own_scores[:, : len(texts)].detach()
    output.text_embeds, output.sentence_embeds = own_texts, None
    if own_texts.ndim == 3:
        output.text_embeds, output.sentence_embeds = pool_sentences(own_texts), own_texts
    return output


def _replay_audios(accelerator, model, inputs: StepInputs, parts, states, texts, gradient, step_loss) -> torch.Tensor:
    """Send the gradient of the loss back through the songs of this process.

    Each process has its own songs' part of the gradient, and the mean over R processes follows: hence the factor R.

    Args:
        texts: (B, D), or (B, Q, D) of sentences.
        gradient: (A, B), or (A, 2 B) with other orders, of the loss with respect to the scores.
        step_loss: [`StepLoss`]; the mean over this process's pairs is R times their part of the mean over all.

    Returns:
        (n, D) or (n, Q, D) gradient with respect to this process's text embeddings, R times that of the whole batch.
    """
    processes, size = accelerator.num_processes, parts[-1].stop
    own = gradient.unflatten(0, (processes, size))[accelerator.process_index] * processes  # (n, B or 2 B)
    texts = texts.clone().requires_grad_()
    for part, state in zip(parts, states, strict=True):
        with gradients_stay_local(accelerator, model), replayed_random_state(state, accelerator.device):
            output = model(**inputs.audios(part), text_embeds=step_loss.scored_texts(texts))
            pairs = step_loss.of_pairs(part, texts, output).sum() / size
            accelerator.backward((output.logits_per_audio * own[part]).sum() + pairs)
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0  # applied again with the texts
    text_gradient = accelerator.reduce(texts.grad / scale, reduction="sum")  # (B, D) or (B, Q, D)
    return text_gradient.unflatten(0, (processes, size))[accelerator.process_index]  # (n, D) or (n, Q, D)


def _replay_texts(accelerator, model, inputs: StepInputs, parts, states, gradient: torch.Tensor):
    """Send the gradient (n, D) of this process's text embeddings back through the text tower; the last part
    synchronises all."""
    for part, state in zip(parts, states, strict=True):
        is_last = part is parts[-1]
        local = nullcontext() if is_last else gradients_stay_local(accelerator, model)
        with local, replayed_random_state(state, accelerator.device):
            embeds = model(**inputs.texts(part)).scored_texts  # (b, D) or (b, Q, D)
            loss = (embeds * gradient[part]).sum()
            if is_last and isinstance(model, DistributedDataParallel):
                loss = loss + zero_of_all_parameters(model)
            accelerator.backward(loss)
