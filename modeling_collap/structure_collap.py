"""Know the time in a song: when each token starts, and the optional transformer layers over the whole song.

Dimensions: `A` audios, `S` segments of an audio, `K` tokens of a segment, `T = S K` fused tokens of an audio, `D`
shared width.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_collap import CoLLAPConfig


def token_start_seconds(config: CoLLAPConfig, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
    """Return when the fused tokens of an audio start, in seconds.

    Token k of segment s starts at `s segment_seconds + 0.16 k`; the last 0.08 s of a segment of 30 s have no token.

    Returns:
        (T,) float32.
    """
    index = torch.arange(num_tokens, device=device)
    segment = torch.div(index, config.tokens_per_segment, rounding_mode="floor")
    return segment * float(config.segment_seconds) + (index % config.tokens_per_segment) * config.token_seconds


def sinusoidal_positions(seconds: torch.Tensor, width: int) -> torch.Tensor:
    """Return sines and cosines of times in seconds, with periods from 1 s to one hour: (T,) -> (T, width)."""
    periods = torch.logspace(0, torch.log10(torch.tensor(3600.0)), width // 2, device=seconds.device)
    phase = 2 * torch.pi * seconds[:, None] / periods  # (T, width / 2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)  # (T, width)


class StructureLayer(GradientCheckpointingLayer):
    """A pre-norm transformer layer over the tokens of a whole song."""

    def __init__(self, config: CoLLAPConfig):
        super().__init__()
        width = config.projection_dim
        self.num_heads = config.structure_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: torch.Tensor, audio_token_mask: torch.Tensor) -> torch.Tensor:
        """Let every token attend to the real tokens of its song: (A, T, D) and (A, T) -> (A, T, D)."""
        projected = self.query_key_value(self.attention_norm(tokens))  # (A, T, 3 D)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (A, heads, T, .)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=audio_token_mask[:, None, None])
        tokens = tokens + self.attention_out(context.transpose(1, 2).flatten(2))  # (A, T, D)
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class StructureLayers(nn.Module):
    """`structure_layers` transformer layers over the whole song's tokens, with positions in seconds.

    Without layers, the paper's model, tokens pass unchanged.
    """

    def __init__(self, config: CoLLAPConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(StructureLayer(config) for _ in range(config.structure_layers))

    def forward(self, tokens: torch.Tensor, audio_token_mask: torch.Tensor) -> torch.Tensor:
        """Add what a token's place in the song tells: (A, T, D) and (A, T) bool -> (A, T, D)."""
        if not len(self.layers):
            return tokens
        seconds = token_start_seconds(self.config, tokens.shape[1], tokens.device)  # (T,)
        positions = sinusoidal_positions(seconds, tokens.shape[-1])  # (T, D)
        tokens = F.layer_norm(tokens, tokens.shape[-1:]) + positions.to(tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, audio_token_mask)
        return tokens
