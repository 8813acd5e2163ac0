"""Hold unit vectors as bytes: every row of 8-bit integers has a scale of its own. Pure functions.

    codes, scales = quantize_rows(tokens)
    codes.float() * scales[:, None]     # the tokens again, each number off by half a step at most

A unit vector of 512 numbers takes 514 bytes, and its cosine with a text is off by some 3e-4; a score, which averages
over the tokens of a song, by far less.

Dimensions: `N` rows, `B` texts, `D` shared width.
"""

import threading
from collections.abc import Callable
from functools import partial

import torch

LARGEST = 127  # of a code; -128 is not used, so that both signs are alike
PARTS = 3  # bytes that a number of a text is written with: 24 bits, those of float32
CELLS_AT_A_TIME = 2**20  # numbers of codes as float32, or of products, that are held at a time: 4 MB
_memory = threading.local()


def _multiplies_bytes() -> bool:
    """Tell whether this processor multiplies bytes fast, and torch does it exactly: held to older instructions (by
    `ONEDNN_MAX_CPU_ISA`), it cuts sums of two products to 16 bits."""
    if not torch.cpu._is_vnni_supported():
        return False
    largest = torch.full((64, 512), LARGEST, dtype=torch.int8)
    signs = torch.tensor([[1], [-1]], dtype=torch.int8)
    return bool((torch._int_mm(signs * largest[:1], largest.T) == signs.int() * 512 * LARGEST**2).all())


MULTIPLIES_BYTES = _multiplies_bytes()


def quantize_rows(rows: torch.Tensor, scale_dtype: torch.dtype = torch.float16) -> tuple[torch.Tensor, torch.Tensor]:
    """Round rows to 8-bit integers times a scale of each row, by which its largest magnitude becomes 127.

    The scale is rounded first and the row divided by what was kept of it, so that a scale of 16 bits costs nothing.

    Args:
        rows: (N, D) float32, of magnitude 1 or less.
        scale_dtype: of the scales.

    Returns:
        Codes (N, D) int8 and scales (N,); both 0 for a row of zeros.

    Raises:
        ValueError: NaN or infinity among them.
    """
    scales = (rows.abs().amax(-1) / LARGEST).to(scale_dtype)  # (N,)
    if not torch.isfinite(scales).all():
        raise ValueError("its vectors hold NaN or infinity; expected numbers")
    steps = scales.float().unsqueeze(-1)  # (N, 1)
    codes = torch.where(steps > 0, rows / steps.clamp(min=torch.finfo(torch.float32).tiny), 0.0)  # (N, D)
    return codes.round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def dequantize_rows(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Undo [`quantize_rows`] up to its rounding: (N, D) float32."""
    return codes.float() * scales.float().unsqueeze(-1)  # (N, D)


def quantized_cosines(text_embeds: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiply texts with quantised rows: what `text_embeds @ dequantize_rows(codes, scales).T` is, in bounded memory.

    Args:
        text_embeds: (B, D) float32.
        codes, scales: (N, D) and (N,) from [`quantize_rows`].

    Returns:
        (B, N) float32.
    """
    return cosines_with(text_embeds)(codes, scales)


def cosines_with(text_embeds: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return [`quantized_cosines`] of texts (B, D), to be called with the codes and scales of many tracks.

    Processors that multiply bytes (VNNI) read codes as they are, and texts as sums of bytes; others turn codes into
    float32, some at a time, which takes up to six times as long.
    """
    multiply = (
        partial(integer_product, *split_rows(text_embeds)) if MULTIPLIES_BYTES else partial(float_product, text_embeds)
    )
    return lambda codes, scales: multiply(codes) * scales.float()  # (B, N)


def split_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Write rows as a sum of bytes times steps: off by 6e-8 of the largest number of a row at most.

    Each part is what the one before leaves of the rows, with steps 254 times smaller.

    Args:
        rows: (B, D) float32.

    Returns:
        (PARTS, B, D) int8 and (PARTS, B, 1) float32.
    """
    step, rest, parts, steps = rows.abs().amax(-1, keepdim=True) / LARGEST, rows, [], []  # (B, 1), (B, D)
    for _ in range(PARTS):
        parts.append(torch.where(step > 0, rest / step.clamp(min=torch.finfo(torch.float32).tiny), 0.0).round())
        steps.append(step)
        rest, step = rest - parts[-1] * step, step / (2 * LARGEST)
    return torch.stack(parts).clamp(-LARGEST, LARGEST).to(torch.int8), torch.stack(steps)


def integer_product(parts: torch.Tensor, steps: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Multiply rows of [`split_rows`] with codes (N, D): (B, N) float32."""
    rows, products = parts.flatten(0, 1), torch.empty(parts.shape[1], len(codes))  # (PARTS B, D), (B, N)
    at_a_time = max(1, CELLS_AT_A_TIME // len(rows))
    for start in range(0, len(codes), at_a_time):
        block = torch._int_mm(rows, codes[start : start + at_a_time].T)  # (PARTS B, block) int32
        products[:, start : start + at_a_time] = (block.unflatten(0, parts.shape[:2]) * steps).sum(0)
    return products


def float_product(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Multiply rows (B, D) with codes (N, D): (B, N) float32."""
    at_a_time, columns = max(1, CELLS_AT_A_TIME // codes.shape[1]), rows.T.contiguous()  # (D, B)
    products, block = torch.empty(len(codes), len(rows)), _block(min(at_a_time, len(codes)), codes.shape[1])
    for start in range(0, len(codes), at_a_time):
        part = codes[start : start + at_a_time]
        torch.mm(block[: len(part)].copy_(part), columns, out=products[start : start + at_a_time])  # (block, B)
    return products.T


def rough_cosines(text_embeds: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Do what [`quantized_cosines`] does, in bfloat16: off by up to 1 % of the largest, in about half of the time.

    The codes are read as they are, and not copied as float32.
    """
    products = torch._weight_int8pack_mm(text_embeds.bfloat16(), codes, torch.ones(len(codes), dtype=torch.bfloat16))
    return products.float() * scales.float()  # (B, N)


def _block(rows: int, width: int) -> torch.Tensor:
    """Return memory for (rows, width) float32 that a thread uses again and again: to ask for it takes ten times as long
    as the product."""
    if not hasattr(_memory, "block") or len(_memory.block) < rows * width:
        _memory.block = torch.empty(max(rows * width, CELLS_AT_A_TIME))
    return _memory.block[: rows * width].view(rows, width)
