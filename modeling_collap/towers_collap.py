"""The towers of CoLLAP: a text becomes one unit vector, every 0.16 s of a song one vector of the same width.

Dimensions: `B` texts, `Q` sentences of a text, `L` text tokens (of a sentence, where texts are given by sentences), `R`
sequences that the text encoder reads, `P` tokens of the longest of these, `N` real segments, `K` tokens of a segment,
`M` music + speech hidden, `D` shared width.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, WhisperModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, sinusoids

from .configuration_beats import BeatsConfig
from .configuration_collap import (
    AUDIO_ENCODERS,
    CoLLAPConfig,
    audio_settings,
    speech_tokens_per_patch,
    text_positions,
)
from .loading_collap import load_whole
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


def music_on_grid(hidden_states: torch.Tensor, frequency_patches: int) -> torch.Tensor:
    """Average BEATs over the frequency patches of each time patch: (N, K * frequency_patches, hidden), time-major, to
    (N, K, hidden)."""
    return hidden_states.unflatten(1, (-1, frequency_patches)).mean(2)  # (N, K, hidden)


def speech_on_grid(hidden_states: torch.Tensor, num_tokens: int, tokens_per_patch: int) -> torch.Tensor:
    """Average Whisper over the time patches of BEATs, and drop what lies beyond the last of them.

    Args:
        hidden_states: (N, at least K * tokens_per_patch, hidden).
        num_tokens: K.
        tokens_per_patch: Whisper tokens that span a time patch.

    Returns:
        (N, K, hidden).
    """
    hidden_states = hidden_states[:, : num_tokens * tokens_per_patch]
    return hidden_states.unflatten(1, (-1, tokens_per_patch)).mean(2)  # (N, K, hidden)


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


def build_audio_encoders(config: CoLLAPConfig) -> tuple[BeatsModel | None, SpeechEncoder | None]:
    """Make the music and the speech encoder of a configuration, with random weights; None for what it does without."""
    music = BeatsModel(config.music_config) if "music" in config.built_encoders else None
    return music, SpeechEncoder(config.speech_config) if "speech" in config.built_encoders else None


class AudioTower(nn.Module):
    """BEATs and the Whisper encoder on one time grid, or one of them, and the paper's audio feature adapter.

    Args:
        music: BEATs, or None for a tower without.
        speech: the encoder of Whisper, or None for a tower without.
        adapter: h_A of the paper, from M to D; `nn.Identity()` where only [`fuse`] is called.
        grid: configuration of BEATs, whose time patches are the time grid, whether there is a music encoder or not.

    Attributes:
        segment_batch_size: segments that pass the encoders at a time; bounds the memory of long recordings and changes
            no value. It is not saved with the model.
    """

    def __init__(self, music: BeatsModel | None, speech: SpeechEncoder | None, adapter: nn.Module, grid: BeatsConfig):
        super().__init__()
        self.music = music
        self.speech = speech
        self.adapter = adapter
        self.grid = grid
        self.segment_batch_size = SEGMENT_BATCH_SIZE

    @property
    def width(self) -> int:
        """M, of a fused token."""
        return sum(encoder.config.hidden_size for encoder in self.encoders.values())

    @property
    def encoders(self) -> dict[str, PreTrainedModel]:
        """The encoders that there are, by name, in the order of their places in a fused token."""
        return {name: getattr(self, name) for name in AUDIO_ENCODERS if getattr(self, name) is not None}

    def fuse(
        self,
        music_features: torch.Tensor | None,
        speech_features: torch.Tensor | None,
        music_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode segments, `segment_batch_size` at a time; what frozen encoders give can be stored and passed to
        [`CoLLAPModel.get_audio_features`] as `fused_tokens`.

        Args:
            music_features: (N, fbank frames, mel bins) Kaldi filter bank; not read without a music encoder.
            speech_features: (N, mel bins, log-mel frames) Whisper log-mel, 100 frames a second; not read without a
                speech encoder.
            music_attention_mask: (N, fbank frames), True = audio; None if all are.

        Returns:
            (N, K, M), before the adapter.
        """
        size, features = self.segment_batch_size, {"music": music_features, "speech": speech_features}
        parts = {name: features[name].split(size) for name in self.encoders}
        count = len(next(iter(parts.values())))
        masks = [None] * count
        if music_attention_mask is not None:  # where all is audio: the same numbers without a mask to add
            masks = [None if mask.all() else mask for mask in music_attention_mask.split(size)]
        batches = zip(*(parts.get(name, [None] * count) for name in AUDIO_ENCODERS), masks, strict=True)
        return torch.cat([self.fuse_at_once(*batch) for batch in batches])  # (N, K, M)

    def fuse_at_once(
        self,
        music_features: torch.Tensor | None,
        speech_features: torch.Tensor | None,
        music_attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Encode segments as [`fuse`] does, all of them in one call of each encoder."""
        fused = []
        if self.music is not None:
            music = self.music(music_features, attention_mask=music_attention_mask, return_dict=True).last_hidden_state
            fused.append(music_on_grid(music, self.grid.frequency_patches))  # (N, K, music hidden)
        if self.speech is not None:
            # Segments of n fbank frames have n + 2 of log-mel.
            num_tokens = (speech_features.shape[-1] - 2) // self.grid.patch_size  # K
            features = speech_features.to(self.speech.conv1.weight.dtype)
            speech = self.speech(features, return_dict=True).last_hidden_state
            speech = speech_on_grid(speech, num_tokens, speech_tokens_per_patch(self.grid))  # (N, K, speech hidden)
            fused.append(speech.to(fused[0].device) if fused else speech)  # the encoders may be on two devices
        return torch.cat(fused, dim=-1)  # (N, K, M)

    def forward(
        self,
        music_features: torch.Tensor | None,
        speech_features: torch.Tensor | None,
        music_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the adapter's tokens (N, K, D), not normalised, of what [`fuse`] returns for the same arguments."""
        return self.adapter(self.fuse(music_features, speech_features, music_attention_mask))


@dataclass
class AudioBackbones:
    """Hold the pretrained parts of an audio tower; None for an encoder that the model does without."""

    music: BeatsModel | None
    speech: WhisperModel | None

    @classmethod
    def load(cls, music: str | None, speech: str | None) -> "AudioBackbones":
        """Load BEATs and Whisper by folder or Hub id.

        Raises:
            ValueError: one lacks weights.
            OSError: from transformers, there is no such model.
        """
        return cls(
            None if music is None else load_whole(BeatsModel, music),
            None if speech is None else load_whole(WhisperModel, speech, unused=("decoder.",)),
        )

    @property
    def settings(self) -> dict:
        """Return what a [`CoLLAPConfig`] has to know of them, as [`audio_settings`] does."""
        return audio_settings(*(None if part is None else part.config for part in (self.music, self.speech)))

    def copy_to(self, tower: AudioTower) -> None:
        """Copy the weights into a tower, whose speech encoder may have positions for shorter segments."""
        if self.music is not None:
            tower.music.load_state_dict(self.music.state_dict())
        if self.speech is not None:
            state = self.speech.encoder.state_dict()
            positions = tower.speech.config.max_source_positions
            state["embed_positions.weight"] = state["embed_positions.weight"][:positions]
            tower.speech.load_state_dict(state)
