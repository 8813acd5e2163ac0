"""The towers of CoLLAP: a text becomes one unit vector, every 0.16 s of a song one vector of the same width.

Dimensions: `B` texts, `L` text tokens, `N` real segments, `K` tokens of a segment, `M` music + speech hidden, `D`
shared width.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

from .configuration_collap import speech_tokens_per_patch, text_positions
from .modeling_beats import BeatsModel

SEGMENT_BATCH_SIZE = 8


def pool_text(hidden_states: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Make one vector of every text.

    Args:
        hidden_states: (B, L, hidden).
        attention_mask: (B, L), 1 = real token; padding may be on either side.
        pooling: `"first"` or `"last"` real token, or the `"mean"` of the real tokens.

    Returns:
        (B, hidden).
    """
    mask = attention_mask.to(hidden_states.dtype)
    if pooling == "mean":
        return (hidden_states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)  # (B, hidden)
    positions = torch.arange(mask.shape[1], device=mask.device)
    order = positions if pooling == "last" else -positions
    chosen = order.expand(mask.shape).masked_fill(attention_mask == 0, -mask.shape[1]).argmax(-1)  # (B,)
    return hidden_states[torch.arange(chosen.shape[0], device=mask.device), chosen]  # (B, hidden)


def fuse_segments(
    music: torch.Tensor, speech: torch.Tensor, frequency_patches: int, speech_tokens_per_patch: int
) -> torch.Tensor:
    """Bring the outputs of both encoders onto the time grid of BEATs.

    Fused token k is the mean over the frequency patches of time patch k, next to the mean of the Whisper tokens that
    span it; Whisper tokens beyond the last time patch are dropped.

    Args:
        music: (N, K * frequency_patches, music hidden), time-major.
        speech: (N, at least K * speech_tokens_per_patch, speech hidden).

    Returns:
        (N, K, M).
    """
    music = music.unflatten(1, (-1, frequency_patches)).mean(2)  # (N, K, music hidden)
    speech = speech[:, : music.shape[1] * speech_tokens_per_patch]
    speech = speech.unflatten(1, (-1, speech_tokens_per_patch)).mean(2)  # (N, K, speech hidden)
    return torch.cat([music, speech], dim=-1)  # (N, K, M)


class TextTower(nn.Module):
    """A pretrained text encoder whose pooled hidden state is projected to the shared space.

    Args:
        encoder: any `AutoModel` that reads texts and gives a `last_hidden_state`.
        projection: from the encoder's hidden size to D.
        pooling: as in [`pool_text`].
    """

    def __init__(self, encoder: PreTrainedModel, projection: nn.Linear, pooling: str):
        super().__init__()
        self.encoder = encoder
        self.projection = projection
        self.pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed texts: (B, L) -> (B, D) float32, unit norm; arguments and errors as in [`encode`]."""
        encoded, attention_mask = self.encode(input_ids, attention_mask)
        return self.pool(encoded.last_hidden_state, attention_mask)

    def encode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **asked
    ) -> tuple[BaseModelOutput, torch.Tensor]:
        """Run the encoder.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 = real token; None if all are.
            **asked: `output_hidden_states` and `output_attentions` of the encoder.

        Returns:
            The encoder's output, the real tokens of each text first: `last_hidden_state` (B, L, hidden); their mask
            (B, L).

        Raises:
            ValueError: for more tokens than the encoder has positions for.
        """
        limit, length = text_positions(self.encoder.config), input_ids.shape[1]
        if limit is not None and length > limit:
            raise ValueError(
                f"found a text of {length} tokens; the text tower reads {limit}: shorten it, or let CoLLAPProcessor "
                "cut it"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # Real tokens first, whatever the side of the padding: positions count from the left.
        places = torch.arange(length, device=attention_mask.device)
        places = places + length * (attention_mask == 0)  # (B, L), without ties, because ONNX has no stable sort
        order = places.argsort(dim=1)  # (B, L)
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **asked)
        return encoded, attention_mask

    def pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Make one unit vector of the last hidden states (B, L, hidden) of each text: (B, D) float32."""
        pooled = pool_text(hidden_states, attention_mask, self.pooling)  # (B, hidden)
        return F.normalize(self.projection(pooled).float(), dim=-1)  # (B, D)


class SpeechEncoder(WhisperEncoder):
    """The encoder of Whisper, whose positions are sinusoids wherever a checkpoint does not hold them.

    transformers sees to that only in models of its own: in others it initialises no module without own weights.
    """

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self.embed_positions:
            init.copy_(module.weight, sinusoids(*module.weight.shape))
            module.weight.requires_grad_(False)  # transformers makes anew what a checkpoint lacks


class AudioTower(nn.Module):
    """BEATs and the Whisper encoder on one time grid, and the paper's audio feature adapter.

    Args:
        music: BEATs.
        speech: the encoder of Whisper.
        adapter: h_A of the paper, from M to D; `nn.Identity()` where only [`fuse`] is called.

    Attributes:
        segment_batch_size: segments that pass the encoders at a time; bounds the memory of long recordings and changes
            no value. It is not saved with the model.
    """

    def __init__(self, music: BeatsModel, speech: WhisperEncoder, adapter: nn.Module):
        super().__init__()
        self.music = music
        self.speech = speech
        self.adapter = adapter
        self.segment_batch_size = SEGMENT_BATCH_SIZE

    @property
    def width(self) -> int:
        """M, of a fused token."""
        return self.music.config.hidden_size + self.speech.config.d_model

    def fuse(
        self,
        music_features: torch.Tensor,
        speech_features: torch.Tensor,
        music_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode segments, `segment_batch_size` at a time; what frozen encoders give can be stored and passed to
        [`CoLLAPModel.get_audio_features`] as `fused_tokens`.

        Args:
            music_features: (N, fbank frames, mel bins) Kaldi filter bank.
            speech_features: (N, mel bins, log-mel frames) Whisper log-mel, 100 frames a second.
            music_attention_mask: (N, fbank frames), True = audio; None if all are.

        Returns:
            (N, K, M), before the adapter.
        """
        size = self.segment_batch_size
        masks = [None] * len(music_features.split(size))
        if music_attention_mask is not None:  # where all is audio: the same numbers without a mask to add
            masks = [None if mask.all() else mask for mask in music_attention_mask.split(size)]
        batches = zip(music_features.split(size), speech_features.split(size), masks, strict=True)
        return torch.cat([self.fuse_at_once(*batch) for batch in batches])  # (N, K, M)

    def fuse_at_once(
        self, music_features: torch.Tensor, speech_features: torch.Tensor, music_attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Encode segments as [`fuse`] does, all of them in one call of each encoder."""
        music = self.music(music_features, attention_mask=music_attention_mask, return_dict=True).last_hidden_state
        speech = self.speech(speech_features.to(self.speech.conv1.weight.dtype), return_dict=True).last_hidden_state
        # The encoders may be on two devices.
        grid = self.music.config.frequency_patches, speech_tokens_per_patch(self.music.config)
        return fuse_segments(music, speech.to(music.device), *grid)  # (N, K, M)

    def forward(
        self,
        music_features: torch.Tensor,
        speech_features: torch.Tensor,
        music_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the adapter's tokens (N, K, D), not normalised, of what [`fuse`] returns for the same arguments."""
        return self.adapter(self.fuse(music_features, speech_features, music_attention_mask))
