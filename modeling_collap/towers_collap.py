"""The towers of CoLLAP: a text becomes one unit vector, every 0.16 s of a song one vector of the same width.

Dimensions: `B` texts, `Q` sentences of a text, `L` text tokens (of a sentence, where texts are given by sentences), `R`
sequences that the text encoder reads, `P` tokens of the longest of these, `N` real segments, `K` tokens of a segment,
`M` music + speech hidden, `D` shared width.
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


def pack_sentences(lengths: torch.Tensor, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay the sentences of every text one after the other; where one would pass the limit, a new sequence begins.

    Args:
        lengths: (B, Q) tokens of every sentence; 0 where a text has fewer.
        limit: tokens of a sequence; None for no limit. A longer sentence has a sequence of its own.

    Returns:
        (B, Q) the sequence of every sentence, numbered from 0 over all texts, none of which has tokens of two texts;
        (B, Q) the token in it at which the sentence starts.
    """
    sequences, starts = torch.zeros_like(lengths), torch.zeros_like(lengths)
    number, used = torch.zeros_like(lengths[:, 0]), torch.zeros_like(lengths[:, 0])  # (B,)
    for q, length in enumerate(lengths.unbind(1)):
        if limit is not None:
            is_full = (used > 0) & (used + length > limit)  # (B,)
            number, used = number + is_full, used.masked_fill(is_full, 0)
        sequences[:, q], starts[:, q] = number, used
        used = used + length
    counts = (number + 1) * lengths.any(1)  # (B,)
    return sequences + (counts.cumsum(0) - counts).unsqueeze(1), starts


def token_spans(
    hidden_states: torch.Tensor, sequences: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut the tokens of every sentence out of its sequence.

    Args:
        hidden_states: (R, P, hidden).
        sequences, starts, lengths: (...,) of every sentence, as in [`pack_sentences`].
        longest: L, the most tokens of a sentence.

    Returns:
        (..., L, hidden), what follows a shorter sentence may be anything; (..., L) bool, True = of the sentence.
    """
    place = torch.arange(longest, device=hidden_states.device)  # (L,)
    columns = (starts.unsqueeze(-1) + place).clamp(max=hidden_states.shape[1] - 1)  # (..., L)
    return hidden_states[sequences.unsqueeze(-1), columns], place < lengths.unsqueeze(-1)


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
        if limit is not None and not torch.compiler.is_exporting() and length > limit:
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

    def embed_jointly(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed the sentences of texts in one pass over each text, or over parts of it if it is longer than the
        encoder's positions; sentences are never cut.

        Args:
            input_ids, attention_mask: (B, Q, L), 1 = real token; all are 0 for what is no sentence.

        Returns:
            (all sentences, D) float32, unit norm, in the order of the texts.

        Raises:
            ValueError: for a sentence of more tokens than the encoder has positions for.
        """
        mask, device = attention_mask.bool(), input_ids.device
        lengths = mask.sum(-1).cpu()  # (B, Q)
        sequences, starts = pack_sentences(lengths, text_positions(self.encoder.config))  # (B, Q) each
        is_sentence = lengths > 0  # (B, Q)
        shape = int(sequences[is_sentence].max()) + 1, int((starts + lengths).max())  # R, P
        rows, columns = sequences.to(device).unsqueeze(-1), starts.to(device).unsqueeze(-1) + mask.cumsum(-1) - 1
        own = rows.expand_as(mask)[mask], columns[mask]  # (all tokens,) each
        packed = input_ids.new_full(shape, getattr(self.encoder.config, "pad_token_id", None) or 0)  # (R, P)
        packed_mask = torch.zeros_like(packed)
        packed[own], packed_mask[own] = input_ids[mask], 1
        encoded, _ = self.encode(packed, packed_mask)
        spans = (one[is_sentence].to(device) for one in (sequences, starts, lengths))  # (all sentences,) each
        return self.pool(*token_spans(encoded.last_hidden_state, *spans, int(lengths.max())))

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
