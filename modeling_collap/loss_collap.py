"""Contrast a matrix of scores (paper, Eq. 8), with negatives gathered across processes with gradient.

Dimensions: `A` audios, `B` texts, of all processes; each process holds an equal share of both.
"""

import torch
import torch.distributed as dist
from torch.nn import functional as F


def contrastive_loss(
    scores: torch.Tensor, direction: str = "symmetric", false_negatives: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the cross-entropy within a batch: audio i belongs to text i, all other texts (and audios) are negatives.

    Args:
        scores: (A, B) with A = B.
        direction: `"audio_to_text"` (Eq. 8: softmax over the texts of each audio), or `"symmetric"`, the mean of that
            and of the softmax over the audios of each text.
        false_negatives: (A, B) bool, True = text j describes audio i too (the same song, or the same words), so that
            the pair counts as no negative; the diagonal does not matter. None for none.

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
        scores = scores.masked_fill(false_negatives.to(scores.device) & ~own, -torch.inf)  # (A, B)
    if direction == "audio_to_text":
        return F.cross_entropy(scores, labels)
    if direction == "symmetric":
        return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
    raise ValueError(f"direction must be 'symmetric' or 'audio_to_text', found {direction!r}")


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


def gather_texts(embeds: torch.Tensor) -> torch.Tensor:
    """Gather the embeddings of texts of all processes as [`gather_rows`] does.

    Args:
        embeds: (n, D), or (n, Q, D) of which Q may differ between processes: rows of zeros follow.

    Returns:
        (B, D) or (B, Q, D).
    """
    if embeds.ndim == 3 and dist.is_available() and dist.is_initialized():
        most = torch.tensor(embeds.shape[1], device=embeds.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        embeds = F.pad(embeds, (0, 0, 0, int(most) - embeds.shape[1]))  # (n, Q, D)
    return gather_rows(embeds)
