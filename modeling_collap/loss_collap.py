"""Contrast a matrix of scores (paper, Eq. 8), with negatives gathered across processes with gradient; and say how far
sentences are from where they are known to be heard.

Dimensions: `A` audios, `B` texts, of all processes; each process holds an equal share of both. `Q` sentences of a text,
`W` frames of an audio.
"""

import torch
import torch.distributed as dist
from torch.nn import functional as F


def contrastive_loss(
    scores: torch.Tensor,
    direction: str = "symmetric",
    false_negatives: torch.Tensor | None = None,
    further: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the cross-entropy within a batch: audio i belongs to text i, all other texts (and audios) are negatives.

    Args:
        scores: (A, B) with A = B.
        direction: `"audio_to_text"` (Eq. 8: softmax over the texts of each audio), or `"symmetric"`, the mean of that
            and of the softmax over the audios of each text.
        false_negatives: (A, B) bool, True = text j describes audio i too (the same song, or the same words), so that
            the pair counts as no negative; the diagonal does not matter. None for none.
        further: (A, B) scores of each audio with text j made untrue, as by [`other_orders`]: more negatives of the
            softmax over texts, text i's for audio i too; -inf for what is none.

    Returns:
        Scalar.

    Raises:
        ValueError: if the numbers of audios and texts differ, or for another direction.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(
            f"the contrastive loss needs as many texts as audios, text i describing audio i; found "
            f"{scores.shape[0]} audios and {scores.shape[-1]} texts"
        )
    labels = torch.arange(scores.shape[0], device=scores.device)
    if false_negatives is not None:
        own = torch.eye(scores.shape[0], dtype=torch.bool, device=scores.device)
        left_out = false_negatives.to(scores.device) & ~own  # (A, B)
        scores = scores.masked_fill(left_out, -torch.inf)
        further = None if further is None else further.masked_fill(left_out, -torch.inf)
    texts = scores if further is None else torch.cat([scores, further], dim=1)  # (A, B or 2 B)
    if direction == "audio_to_text":
        return F.cross_entropy(texts, labels)
    if direction == "symmetric":
        return (F.cross_entropy(texts, labels) + F.cross_entropy(scores.T, labels)) / 2
    raise ValueError(f"direction must be 'symmetric' or 'audio_to_text', found {direction!r}")


def other_orders(sentence_embeds: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Put the sentences of texts in other orders: further texts, of the same vectors.

    Args:
        sentence_embeds: (B, Q, D).
        orders: (B, Q) int, which sentence stands at every place; below 0 for its own one.

    Returns:
        (B, Q, D).

    Raises:
        ValueError: if the orders are not those of these sentences.
    """
    if sentence_embeds.shape[:-1] != orders.shape or sentence_embeds.ndim != 3:
        raise ValueError(
            f"expected sentence_orders (B, Q) of sentences (B, Q, D), found {tuple(orders.shape)} for "
            f"{tuple(sentence_embeds.shape)}"
        )
    orders = orders.to(sentence_embeds.device)
    own = torch.arange(orders.shape[1], device=orders.device)
    places = torch.where(orders < 0, own, orders)  # (B, Q)
    return sentence_embeds.gather(1, places.unsqueeze(-1).expand(sentence_embeds.shape))


def split_orders(scores: torch.Tensor, orders: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split scores of texts and, after them, of their [`other_orders`].

    Args:
        scores: (A, 2 B).
        orders: (B, Q); all below 0 where a text has no other order.

    Returns:
        (A, B) of the texts; (A, B) of the other orders, -inf where there is none.
    """
    own, further = scores.chunk(2, dim=1)
    return own, further.masked_fill((orders < 0).all(-1).to(scores.device), -torch.inf)


def location_losses(
    cosines: torch.Tensor,
    spans: torch.Tensor,
    frame_seconds: torch.Tensor,
    frame_mask: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Compute how far the sentences of each text are from where they are heard in its own audio.

    Half of it asks every placed sentence for its frames, half asks every frame of a placed sentence for the sentence:

        1/2 mean over q  -log sum over w in span(q) softmax over w (c[q, .] / tau)[w]
        + 1/2 mean over w  -log sum over q with w in span(q) softmax over the placed q (c[., w] / tau)[q]

    A frame is in a span if its middle is. A sentence is placed if its span has a frame; others do not count at all.

    Args:
        cosines: (B, Q, W) of each text's sentences with the frames of its audio.
        spans: (B, Q, 2) start and end of every sentence in seconds; NaN where that is not known.
        frame_seconds: (B, W) middle of every frame.
        frame_mask: (B, W) bool.
        temperature: tau.

    Returns:
        (B,), 0 where no sentence is placed; the mean over all pairs is the loss of a batch.

    Raises:
        ValueError: if the spans are not those of these sentences.
    """
    if spans.shape != (*cosines.shape[:2], 2):
        raise ValueError(
            f"expected sentence_spans (B, Q, 2) of the {tuple(cosines.shape[:2])} sentences of the texts, found "
            f"{tuple(spans.shape)}"
        )
    starts, ends = spans.unsqueeze(-2).unbind(-1)  # (B, Q, 1); nothing is in a span of NaN
    middles = frame_seconds.unsqueeze(1)  # (B, 1, W)
    inside = (middles >= starts) & (middles < ends) & frame_mask.unsqueeze(1)  # (B, Q, W)
    is_placed = inside.any(-1, keepdim=True)  # (B, Q, 1)
    logits = cosines / temperature
    of_sentences = _missed(logits, inside, frame_mask.unsqueeze(1), dim=2)  # (B, Q)
    of_frames = _missed(logits, inside, is_placed, dim=1)  # (B, W)
    return (_mean_of(of_sentences, is_placed.squeeze(-1)) + _mean_of(of_frames, inside.any(1))) / 2  # (B,)


def _missed(logits: torch.Tensor, wanted: torch.Tensor, offered: torch.Tensor, dim: int) -> torch.Tensor:
    """Return minus the logarithm of how much of the softmax over what is offered is on what is wanted, both bool; any
    finite number where nothing is wanted."""
    lowest = torch.finfo(logits.dtype).min
    total, hit = (logits.masked_fill(~mask, lowest).logsumexp(dim) for mask in (offered, wanted))
    return total - hit


def _mean_of(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of those of (B, n) that are unmasked: (B,), 0 where there are none."""
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


class _GatherRows(torch.autograd.Function):
    """An all-gather along dimension 0. The gradient of a row is the sum of what every process sends back for it."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.contiguous()
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # not ours to change: others may share it
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows of all processes in the order of their ranks, with gradient; return the same tensor on a single
    process.

    Every process must hold the same number of rows. When each process computes the same loss from what was gathered,
    the gradients that reach its parameters are `world size` times its own part of the gradient; the mean over the
    processes that DistributedDataParallel takes is then exactly the gradient of the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)


def gather_texts(embeds: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """Gather the embeddings of texts of all processes as [`gather_rows`] does.

    Args:
        embeds: (n, D), or (n, Q, D) of which Q may differ between processes: rows of `padding` follow.

    Returns:
        (B, D) or (B, Q, D).
    """
    if embeds.ndim == 3 and dist.is_available() and dist.is_initialized():
        most = torch.tensor(embeds.shape[1], device=embeds.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        embeds = F.pad(embeds, (0, 0, 0, int(most) - embeds.shape[1]), value=padding)  # (n, Q, D)
    return gather_rows(embeds)


def gather_orders(orders: torch.Tensor) -> torch.Tensor:
    """Gather the `sentence_orders` (n, Q) of all processes as [`gather_texts`] does their sentences: (B, Q)."""
    return gather_texts(orders.unsqueeze(-1), padding=-1).squeeze(-1)
