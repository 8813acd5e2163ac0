"""Weigh the scores of a model: the learnable scalars, and the sum of what they weigh.

    score = gamma_K r^K + gamma_T r^T                    the paper's, of one vector of the text (`scoring_collap.py`)
            + gamma_S r^S + gamma_M r^M                  of its sentences, if the model has them (`alignment_collap.py`)

Dimensions: `A` audios, `B` texts, `Q` sentences of a text, `T` fused tokens of an audio, `D` shared width.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init

from .alignment_collap import alignment_scores, pool_sentences
from .configuration_collap import CoLLAPConfig
from .scoring_collap import attention_pooled_scores

BLANK_AT_START = 0.4  # cosine; what a sentence describes is far above it
MIN_TEMPERATURE = 0.01  # below it the attention is an argmax, and float32 logits lose their digits


def bounded(value: torch.Tensor, minimum: float = -math.inf, maximum: float = math.inf) -> torch.Tensor:
    """Clamp `value`, but pass its gradient on: a plain clamp would hold a parameter beyond the bound for ever, because
    its gradient is zero there."""
    return value.clamp(minimum, maximum).detach() + (value - value.detach())


class ScoreWeights(NamedTuple):
    """Hold the scalars of the score, each (1,); None for what a model does not have."""

    gamma_kernel: torch.Tensor
    gamma_temporal: torch.Tensor
    attention_temperature: torch.Tensor
    gamma_sentences: torch.Tensor | None = None
    gamma_path: torch.Tensor | None = None
    blank: torch.Tensor | None = None

    def to(self, device: torch.device) -> "ScoreWeights":
        """Move all to a device; the parts of a model may be on several."""
        return ScoreWeights(*(None if value is None else value.to(device) for value in self))


class ScoreParameters(nn.Module):
    """The learnable scalars of the score, those that are positive and bounded in log space.

    `from_pretrained` keeps them float32 whatever its `dtype`; `model.half()` or `model.to(dtype)` converts them too.
    """

    def __init__(self, config: CoLLAPConfig):
        super().__init__()
        self.config = config
        for name in config.gamma_inits:
            setattr(self, f"log_gamma_{name}", nn.Parameter(torch.empty(1)))
        self.log_attention_temperature = nn.Parameter(torch.empty(1), requires_grad=config.learn_attention_temperature)
        if config.path_blank:
            self.blank = nn.Parameter(torch.empty(1))

    def initialise(self) -> None:
        """Set all to where training starts, by the configuration."""
        for name, value in self.config.gamma_inits.items():
            init.constant_(getattr(self, f"log_gamma_{name}"), math.log(value))
        init.constant_(self.log_attention_temperature, math.log(self.config.attention_temperature))
        self.log_attention_temperature.requires_grad_(self.config.learn_attention_temperature)
        if self.config.path_blank:
            init.constant_(self.blank, BLANK_AT_START)

    def forward(self) -> ScoreWeights:
        """Return all; a call, so that Accelerate fetches them if they are offloaded."""
        gammas = {f"gamma_{name}": value for name, value in self.gammas().items()}
        return ScoreWeights(attention_temperature=self.temperature(), blank=getattr(self, "blank", None), **gammas)

    def gammas(self) -> dict[str, torch.Tensor]:
        """Return the weights of the scores by name (`kernel`, `temporal`, ...), each (1,), at most `gamma_max`."""
        ceiling = math.log(self.config.gamma_max)
        names = self.config.gamma_inits
        return {name: bounded(getattr(self, f"log_gamma_{name}"), maximum=ceiling).exp() for name in names}

    def temperature(self) -> torch.Tensor:
        """Return tau of the two softmaxes, (1,), at least 0.01."""
        return bounded(self.log_attention_temperature, minimum=math.log(MIN_TEMPERATURE)).exp()


def paper_scores(
    score_parameters: ScoreParameters,
    text_embeds: torch.Tensor,
    audio_embeds: torch.Tensor,
    audio_token_mask: torch.Tensor,
    chunk_size: int | None = None,
    flat_attention: bool = False,
) -> torch.Tensor:
    """Score every audio with the one vector of every text, in float32: the paper's terms of [`score_embeddings`],
    which says what the arguments are."""
    config, device = score_parameters.config, audio_embeds.device
    weights, text_embeds = score_parameters().to(device), text_embeds.to(device).float()
    with torch.autocast(device.type, enabled=False):
        return attention_pooled_scores(
            pool_sentences(text_embeds) if text_embeds.ndim == 3 else text_embeds,
            audio_embeds.float(),
            audio_token_mask.to(device).bool(),
            kernel_size=config.kernel_size,
            stride=config.stride,
            gamma_kernel=weights.gamma_kernel,
            gamma_temporal=weights.gamma_temporal,
            attention_temperature=torch.inf if flat_attention else weights.attention_temperature,
            reduction=config.score_reduction,
            chunk_size=chunk_size,
        )


def score_embeddings(
    score_parameters: ScoreParameters,
    text_embeds: torch.Tensor,
    audio_embeds: torch.Tensor,
    audio_token_mask: torch.Tensor,
    chunk_size: int | None = None,
    flat_attention: bool = False,
) -> torch.Tensor:
    """Score every audio with every text, in float32.

    Args:
        score_parameters: of a model, with its configuration.
        text_embeds: (B, D) as returned by `get_text_features`, or (B, Q, D) by `get_sentence_features`. A text without
            sentences is one sentence; without an alignment the sentences of a text are one vector.
        audio_embeds, audio_token_mask: as returned by `get_audio_features`.
        chunk_size: texts scored at a time; None for as many as [`in_tiles`] takes.
        flat_attention: an infinite temperature, to compare with: every moment counts alike.

    Returns:
        (A, B) float32, see [`attention_pooled_scores`] and [`alignment_scores`].
    """
    config, device = score_parameters.config, audio_embeds.device
    embeds = text_embeds, audio_embeds, audio_token_mask
    score = paper_scores(score_parameters, *embeds, chunk_size, flat_attention)  # (A, B)
    if config.alignment == "paper":
        return score
    weights, text_embeds = score_parameters().to(device), text_embeds.to(device).float()
    with torch.autocast(device.type, enabled=False):
        return score + alignment_scores(
            text_embeds if text_embeds.ndim == 3 else text_embeds.unsqueeze(1),
            audio_embeds.float(),
            audio_token_mask.to(device).bool(),
            frame_size=config.alignment_frame_size,
            gamma_sentences=weights.gamma_sentences,
            gamma_path=weights.gamma_path,
            sentence_temperature=torch.inf if flat_attention else config.sentence_temperature,
            path_temperature=torch.inf if flat_attention else config.path_temperature,
            blank=weights.blank,
            chunk_size=chunk_size,
        )
