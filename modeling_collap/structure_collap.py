"""Know the time in a song: when each token starts, and the optional transformer layers over the whole song.

Dimensions: `A` audios, `S` segments of an audio, `K` tokens of a segment, `T = S K` fused tokens of an audio, `H`
tokens of a frame, `W` frames, `D` shared width, `E` width of an attention head.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .alignment_collap import pool_frames
from .configuration_collap import CoLLAPConfig

ROTARY_BASE = 10_000.0  # the slowest pair of a head of width 64 turns once in some 47,000 frames


def token_start_seconds(config: CoLLAPConfig, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
    """Return when the fused tokens of an audio start, in seconds.

    Token k of segment s starts at `s segment_seconds + 0.16 k`; the last 0.08 s of a segment of 30 s have no token.

    Returns:
        (T,) float32.
    """
    index = torch.arange(num_tokens, device=device)
    segment = torch.div(index, config.tokens_per_segment, rounding_mode="floor")
    return segment * float(config.segment_seconds) + (index % config.tokens_per_segment) * config.token_seconds


def rotary_angles(num_frames: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Return by how much each pair of a head's numbers is turned at every frame (arXiv 2104.09864).

    Args:
        num_frames: W.
        width: E, even.

    Returns:
        (W, E / 2) float32, radians.
    """
    frequencies = ROTARY_BASE ** (torch.arange(0, width, 2, device=device) / -width)  # (E / 2,)
    return torch.arange(num_frames, device=device).unsqueeze(-1) * frequencies


def rotate(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn queries or keys by their place, so that their products depend on the distance of two frames alone.

    Args:
        heads: (..., W, E).
        angles: (W, E / 2) from [`rotary_angles`].

    Returns:
        (..., W, E), of the same dtype.
    """
    cosine, sine = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads.chunk(2, dim=-1)  # (..., W, E / 2) each; number i is a pair with number i + E / 2
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class ZeroLinear(nn.Linear):
    """A linear layer whose weights start at zero."""

    def initialise(self) -> None:
        """Set all weights to zero; what a checkpoint holds stays."""
        init.zeros_(self.weight)
        init.zeros_(self.bias)


class StructureLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer over the frames of a whole song.

    A new one leaves them as they are: what writes to them starts at zero, and the rest learns once that has taken a
    step.
    """

    def __init__(self, config: CoLLAPConfig):
        super().__init__()
        width = config.projection_dim
        self.num_heads = config.structure_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = ZeroLinear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), ZeroLinear(4 * width, width))

    def forward(self, frames: torch.Tensor, frame_mask: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """Let every frame attend to the frames of its song: (A, W, D), (A, W) bool and (W, E / 2) -> (A, W, D)."""
        projected = self.query_key_value(self.attention_norm(frames))  # (A, W, 3 D)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (A, heads, W, E)
        query, key = rotate(query, angles), rotate(key, angles)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=frame_mask[:, None, None])
        frames = frames + self.attention_out(context.transpose(1, 2).flatten(2))  # (A, W, D)
        return frames + self.feed_forward(self.feed_forward_norm(frames))


class StructureLayers(nn.Module):
    """`structure_layers` transformer layers over the frames of the whole song, with positions relative to one another.

    They read the means of the tokens of every frame, and what they add to a frame is added to each of its tokens. So
    new layers change nothing, and an hour costs the memory of its 2,805 frames. Without layers, the paper's model,
    tokens pass unchanged.
    """

    def __init__(self, config: CoLLAPConfig):
        super().__init__()
        self.config = config
        self.frame_layers = nn.ModuleList(StructureLayer(config) for _ in range(config.structure_layers))

    def forward(self, tokens: torch.Tensor, audio_token_mask: torch.Tensor) -> torch.Tensor:
        """Add what a token's place in the song tells: (A, T, D) and (A, T) bool, real tokens first -> (A, T, D)."""
        if not len(self.frame_layers):
            return tokens
        size, width = self.config.alignment_frame_size, tokens.shape[-1] // self.config.structure_heads  # H, E
        means, frame_mask = pool_frames(tokens, audio_token_mask, size)  # (A, W, D), (A, W)
        angles, frames = rotary_angles(means.shape[1], width, tokens.device), means  # (W, E / 2)
        for layer in self.frame_layers:
            frames = layer(frames, frame_mask, angles)  # (A, W, D)
        frame_of_token = torch.arange(tokens.shape[1], device=tokens.device) // size  # (T,)
        return tokens + (frames - means)[:, frame_of_token]  # (A, T, D)
