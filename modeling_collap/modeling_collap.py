"""CoLLAP: Contrastive Long-form Language-Audio Pretraining (arXiv 2410.02271).

A song is cut into consecutive segments. BEATs (music) and the Whisper encoder (speech) read every real segment, their
outputs meet on one time grid of 0.16 s, a linear adapter maps them to the shared width, and each token becomes a unit
vector. A text becomes one unit vector. The score of a song and a text looks at every moment of the song
(`scoring_collap.py`), and training contrasts the scores within a batch (`loss_collap.py`).

Dimensions: `B` texts, `A` audios, `S` segments of an audio, `N` real segments of a batch, `F` frames of 10 ms, `L` text
tokens, `K` fused tokens of a segment, `T = S K` fused tokens of an audio, `H` kernel size, `W` frames of the score,
`D` shared width.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel, WhisperModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, ModelOutput, cached_file

from .configuration_collap import CoLLAPConfig, check_settings, max_segment_seconds
from .loss_collap import contrastive_loss, gather_rows
from .modeling_beats import BeatsModel
from .scoring_collap import (
    attended_scores,
    attention_pooled_scores,
    frame_token_mask,
    token_scores,
    unfold_frames,
)

LOCATION = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
MIN_TEMPERATURE = 0.01  # below it the attention is an argmax, and float32 logits lose their digits


@dataclass
class CoLLAPOutput(ModelOutput):
    """
    Attributes:
        loss: scalar, with `return_loss=True`.
        logits_per_audio: (A, B) scores.
        logits_per_text: (B, A), its transpose.
        text_embeds: (B, D) float32, unit norm.
        audio_embeds: (A, T, D) float32, unit norm; zero where `audio_token_mask` is False.
        audio_token_mask: (A, T) bool, True = the token starts before the audio ends.
    """

    loss: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    audio_token_mask: torch.Tensor | None = None


@dataclass
class CoLLAPLocalization(ModelOutput):
    """Where in each audio each text is heard.

    Attributes:
        scores: (A, B, W) kernel-attended cosine of every frame, in [-1, 1]; 0 where `frame_mask` is False.
        frame_mask: (A, W) bool, True = a frame of this audio.
        frame_seconds: (W, 2) start and end of every frame in seconds.
    """

    scores: torch.Tensor | None = None
    frame_mask: torch.Tensor | None = None
    frame_seconds: torch.Tensor | None = None


def pool_text(hidden_states: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector per text.

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
    """Both encoders on the time grid of BEATs (DESIGN: token timeline).

    Fused token k is the mean over the frequency patches of time patch k, next to the mean of the Whisper tokens that
    span it; Whisper tokens beyond the last time patch are dropped.

    Args:
        music: (N, K * frequency_patches, music hidden), time-major.
        speech: (N, at least K * speech_tokens_per_patch, speech hidden).

    Returns:
        (N, K, music hidden + speech hidden).
    """
    music = music.unflatten(1, (-1, frequency_patches)).mean(2)  # (N, K, music hidden)
    speech = speech[:, : music.shape[1] * speech_tokens_per_patch]
    speech = speech.unflatten(1, (-1, speech_tokens_per_patch)).mean(2)  # (N, K, speech hidden)
    return torch.cat([music, speech], dim=-1)  # (N, K, music + speech hidden)


def sinusoidal_positions(seconds: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of the time in seconds, with periods from 1 s to one hour; (T,) -> (T, width)."""
    periods = torch.logspace(0, torch.log10(torch.tensor(3600.0)), width // 2, device=seconds.device)
    phase = 2 * torch.pi * seconds[:, None] / periods  # (T, width / 2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)  # (T, width)


def bounded(value: torch.Tensor, minimum: float = -math.inf, maximum: float = math.inf) -> torch.Tensor:
    """`value` clamped, with the gradient of `value` itself: a plain clamp would hold a parameter beyond the bound
    for ever, because its gradient is zero there."""
    return value.clamp(minimum, maximum).detach() + (value - value.detach())


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
        """(A, T, D) and (A, T) -> (A, T, D)."""
        projected = self.query_key_value(self.attention_norm(tokens))  # (A, T, 3 D)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (A, heads, T, .)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=audio_token_mask[:, None, None])
        tokens = tokens + self.attention_out(context.transpose(1, 2).flatten(2))  # (A, T, D)
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class ScoreParameters(nn.Module):
    """The learnable scalars of the score, kept positive and bounded in log space.

    `from_pretrained` keeps them float32 whatever its `dtype`; `model.half()` or `model.to(dtype)` converts them too.
    """

    def __init__(self, config: CoLLAPConfig):
        super().__init__()
        self.config = config
        self.log_gamma_kernel = nn.Parameter(torch.empty(1))
        self.log_gamma_temporal = nn.Parameter(torch.empty(1))
        self.log_attention_temperature = nn.Parameter(torch.empty(1), requires_grad=config.learn_attention_temperature)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """gamma_K, gamma_T and tau; a call, so that Accelerate fetches them if they are offloaded."""
        return (*self.gammas(), self.temperature())

    def gammas(self) -> tuple[torch.Tensor, torch.Tensor]:
        """gamma_K and gamma_T of Eq. 7, each (1,), at most `gamma_max`."""
        ceiling = math.log(self.config.gamma_max)
        return (
            bounded(self.log_gamma_kernel, maximum=ceiling).exp(),
            bounded(self.log_gamma_temporal, maximum=ceiling).exp(),
        )

    def temperature(self) -> torch.Tensor:
        """tau of the two softmaxes, (1,), at least 0.01."""
        return bounded(self.log_attention_temperature, minimum=math.log(MIN_TEMPERATURE)).exp()


class CoLLAPPreTrainedModel(PreTrainedModel):
    config_class = CoLLAPConfig
    base_model_prefix = "collap"
    main_input_name = "input_ids"
    input_modalities = ("text", "audio")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["StructureLayer"]
    _keep_in_fp32_modules_strict = ["score_parameters"]

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ScoreParameters):
            half = math.log(self.config.gamma_init_sum / 2)
            init.constant_(module.log_gamma_kernel, half)
            init.constant_(module.log_gamma_temporal, half)
            temperature = math.log(self.config.attention_temperature)
            init.constant_(module.log_attention_temperature, temperature)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        ignore_mismatched_sizes=False,
        output_loading_info=False,
        use_safetensors=True,
        **kwargs,
    ):
        """As [`~transformers.PreTrainedModel.from_pretrained`], but a weight that the checkpoint lacks is an error:
        it would be drawn at random. Only safetensors are read.

        Args:
            ignore_mismatched_sizes: initialise weights that are missing or of another shape, after all, for example
                structure layers that are to be trained. What was loaded and what was not is logged.

        Raises:
            ValueError: for missing weights, pickled weights, or a shard outside of the folder.
            RuntimeError: from transformers, for weights of another shape.
            OSError: from transformers, for a folder, repository, revision or file that cannot be found.
        """
        name = pretrained_model_name_or_path
        _check_weight_files(name, kwargs, use_safetensors)
        model, info = super().from_pretrained(
            name,
            *model_args,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            output_loading_info=True,
            use_safetensors=True,
            **kwargs,
        )
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ValueError(
                f"{name}: holds a peft adapter (adapter_config.json), beside which missing weights go unseen; load it "
                "with PeftModel.from_pretrained(model, folder)"
            )
        if info["missing_keys"] and not ignore_mismatched_sizes:
            missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
            raise ValueError(
                f"{name}: the checkpoint lacks {len(missing)} weights of this configuration ({some_names(missing)})"
                + (f" and has {len(unexpected)} that it does not know ({some_names(unexpected)})" if unexpected else "")
                + "; they would be drawn at random. Is config.json that of these weights? "
                "ignore_mismatched_sizes=True loads the rest, to train them"
            )
        return (model, info) if output_loading_info else model


class CoLLAPModel(CoLLAPPreTrainedModel):
    """CoLLAP with a text tower, BEATs, the Whisper encoder, the audio feature adapter and the score."""

    def __init__(self, config: CoLLAPConfig):
        super().__init__(config)
        self.text_model = _without_pooler(AutoModel.from_config(config.text_config))
        self.music_model = BeatsModel(config.music_config)
        self.speech_model = WhisperEncoder(config.speech_config)
        audio_width = config.music_config.hidden_size + config.speech_config.d_model
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.audio_adapter = nn.Linear(audio_width, config.projection_dim)  # h_A of the paper
        self.structure_layers = nn.ModuleList(StructureLayer(config) for _ in range(config.structure_layers))
        self.score_parameters = ScoreParameters(config)
        self.post_init()

    @classmethod
    def from_backbones(cls, text: str, music: str, speech: str, **config) -> "CoLLAPModel":
        """A model from pretrained parts; the projections, and structure layers if any, are newly initialised.

        Args:
            text: folder or Hub id of a text encoder, for example `"gpt2"` or `"roberta-base"`.
            music: folder or Hub id of a converted BEATs (`collap convert-beats`).
            speech: folder or Hub id of a Whisper model; only its encoder is kept, its positions sliced to
                `segment_seconds`.
            **config: settings of [`CoLLAPConfig`] other than those of the parts.

        Raises:
            ValueError: for a name that is no setting, or if a part lacks weights that CoLLAP needs; nothing pretrained
                is re-initialised silently.
            OSError: from transformers, if a folder or Hub id cannot be found.
        """
        check_settings(config)
        text_model, _ = load_whole(AutoModel, text, allow_missing="pooler.")
        music_model, _ = load_whole(BeatsModel, music)
        whisper, _ = load_whole(WhisperModel, speech, allow_missing="decoder.")
        config.setdefault("segment_seconds", max_segment_seconds(whisper.config))
        settings = CoLLAPConfig(
            text_config=text_model.config, music_config=music_model.config, speech_config=whisper.config, **config
        )
        model = cls(settings)
        model.text_model.load_state_dict(_without_pooler(text_model).state_dict())
        model.music_model.load_state_dict(music_model.state_dict())
        load_speech_encoder(model.speech_model, whisper)
        return model

    def get_input_embeddings(self) -> nn.Module:
        """Those of the text tower; Accelerate asks for them under FSDP2."""
        return self.text_model.get_input_embeddings()

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 = real token; None if all are.

        Returns:
            (B, D) float32, unit norm.

        Raises:
            ValueError: for more tokens than the text tower has positions for.
        """
        limit = self.config.text_positions
        if limit is not None and input_ids.shape[1] > limit:
            raise ValueError(
                f"found a text of {input_ids.shape[1]} tokens; the text tower reads {limit}: shorten it, or let "
                "CoLLAPProcessor cut it"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # Real tokens first, whatever the side of the padding: positions count from the left.
        length = attention_mask.shape[1]
        places = torch.arange(length, device=attention_mask.device)
        places = places + length * (attention_mask == 0)  # (B, L), without ties, because ONNX has no stable sort
        order = places.argsort(dim=1)  # (B, L)
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        hidden_states = self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        pooled = pool_text(hidden_states, attention_mask, self.config.text_pooling)  # (B, hidden)
        return F.normalize(self.text_projection(pooled).float(), dim=-1)  # (B, D)

    def fused_segments(
        self, music_features: torch.Tensor, speech_features: torch.Tensor, music_attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Both audio encoders on one time grid, `segment_batch_size` segments at a time; what frozen encoders give can
        be stored and passed to [`get_audio_features`] as `fused_tokens`.

        Args:
            music_features: (N, F, mel bins) Kaldi filter bank.
            speech_features: (N, mel bins, 100 L) Whisper log-mel.
            music_attention_mask: (N, F), True = audio; None if all are.

        Returns:
            (N, K, music hidden + speech hidden), before the adapter.
        """
        size = self.config.segment_batch_size
        masks = [None] * len(music_features.split(size))
        if music_attention_mask is not None:  # where all is audio: the same numbers without a mask to add
            masks = [None if mask.all() else mask for mask in music_attention_mask.split(size)]
        fused = [
            self._fused_segment_batch(music, speech, mask)
            for music, speech, mask in zip(music_features.split(size), speech_features.split(size), masks, strict=True)
        ]
        return torch.cat(fused)  # (N, K, music + speech hidden)

    def _fused_segment_batch(self, music_features, speech_features, music_attention_mask) -> torch.Tensor:
        music = self.music_model(music_features, attention_mask=music_attention_mask).last_hidden_state
        speech = self.speech_model(speech_features.to(self.speech_model.conv1.weight.dtype)).last_hidden_state
        patches = self.config.music_config.frequency_patches
        # The encoders may be on two devices.
        return fuse_segments(music, speech.to(music.device), patches, self.config.speech_tokens_per_patch)

    def encode_segments(
        self, music_features: torch.Tensor, speech_features: torch.Tensor, music_attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[`fused_segments`] and the adapter: (N, K, D), not normalised."""
        return self.audio_adapter(self.fused_segments(music_features, speech_features, music_attention_mask))

    def normalize_tokens(self, tokens: torch.Tensor, audio_token_mask: torch.Tensor) -> torch.Tensor:
        """Structure layers over the whole song, if any, and unit norm.

        Args:
            tokens: (A, T, D) from [`encode_segments`], the segments of each audio in order.
            audio_token_mask: (A, T) bool.

        Returns:
            (A, T, D) float32, unit norm; zero where the mask is False.
        """
        if self.structure_layers:
            positions = sinusoidal_positions(self.token_start_seconds(tokens.shape[1], tokens.device), tokens.shape[-1])
            tokens = F.layer_norm(tokens, tokens.shape[-1:]) + positions.to(tokens.dtype)
            for layer in self.structure_layers:
                tokens = layer(tokens, audio_token_mask)
        padding = ~audio_token_mask.to(tokens.device).unsqueeze(-1)  # (A, T, 1)
        return F.normalize(tokens.float(), dim=-1).masked_fill(padding, 0.0)

    def get_audio_features(
        self,
        music_features: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        music_attention_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
        audio_token_mask: torch.Tensor | None = None,
        fused_tokens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            music_features: (A, S, F, mel bins) Kaldi filter bank of every segment.
            speech_features: (A, S, mel bins, 100 L) Whisper log-mel of every segment.
            music_attention_mask: (A, S, F), True = the frame holds audio; None if all do.
            segment_mask: (A, S), True = the segment holds audio; None if all do. Other segments are not encoded.
            audio_token_mask: (A, T), True = the token starts before the audio ends; None for all of the real segments.
            fused_tokens: (A, T, music hidden + speech hidden) from [`fused_segments`], instead of all the features.

        Returns:
            Embeddings (A, T, D) float32, unit norm, zero outside of the mask; token mask (A, T) bool.
        """
        if fused_tokens is not None:
            if audio_token_mask is None:
                audio_token_mask = fused_tokens.new_ones(fused_tokens.shape[:2])  # (A, T)
            audio_token_mask = audio_token_mask.bool()
            tokens = self.audio_adapter(fused_tokens.to(self.audio_adapter.weight.dtype))  # (A, T, D)
            return self.normalize_tokens(tokens, audio_token_mask), audio_token_mask
        num_audios, num_segments = music_features.shape[:2]
        tokens_per_segment = self.config.tokens_per_segment
        if segment_mask is None:
            segment_mask = torch.ones(num_audios, num_segments, device=music_features.device)
        segment_mask = segment_mask.bool()
        if audio_token_mask is None:
            audio_token_mask = segment_mask.repeat_interleave(tokens_per_segment, dim=1)  # (A, T)
        if music_attention_mask is not None:
            music_attention_mask = music_attention_mask[segment_mask]  # (N, F)
        encoded = self.encode_segments(
            music_features[segment_mask], speech_features[segment_mask], music_attention_mask
        )  # (N, K, D)
        tokens = encoded.new_zeros(num_audios, num_segments, *encoded.shape[1:])  # (A, S, K, D)
        tokens[segment_mask.to(encoded.device)] = encoded
        audio_token_mask = audio_token_mask.bool()
        return self.normalize_tokens(tokens.flatten(1, 2), audio_token_mask), audio_token_mask  # (A, T, D)

    def score(
        self,
        text_embeds: torch.Tensor,
        audio_embeds: torch.Tensor,
        audio_token_mask: torch.Tensor,
        chunk_size: int | None = None,
        flat_attention: bool = False,
    ) -> torch.Tensor:
        """
        Args:
            text_embeds, audio_embeds, audio_token_mask: as returned by the two `get_*_features`.
            chunk_size: texts scored at a time, to bound memory.
            flat_attention: an infinite temperature, to compare with: every moment counts alike.

        Returns:
            (A, B) float32, see [`attention_pooled_scores`].
        """
        device = audio_embeds.device  # the parts of a model may be on several
        gamma_kernel, gamma_temporal, temperature = (value.to(device) for value in self.score_parameters())
        temperature = torch.inf if flat_attention else temperature
        with torch.autocast(device.type, enabled=False):
            return attention_pooled_scores(
                text_embeds.to(device).float(),
                audio_embeds.float(),
                audio_token_mask.to(device),
                kernel_size=self.config.kernel_size,
                stride=self.config.stride,
                gamma_kernel=gamma_kernel,
                gamma_temporal=gamma_temporal,
                attention_temperature=temperature,
                reduction=self.config.score_reduction,
                chunk_size=chunk_size,
            )

    def localize(
        self, text_embeds: torch.Tensor, audio_embeds: torch.Tensor, audio_token_mask: torch.Tensor
    ) -> CoLLAPLocalization:
        """The score of every text over the time of every audio.

        Args:
            text_embeds, audio_embeds, audio_token_mask: as returned by the two `get_*_features`.

        Returns:
            [`CoLLAPLocalization`]: per frame the terms that the kernel-wise attention sums.
        """
        kernel_size, stride, device = self.config.kernel_size, self.config.stride, audio_embeds.device
        mask = frame_token_mask(audio_token_mask.to(device).bool(), kernel_size, stride)  # (A, W, H)
        with torch.autocast(device.type, enabled=False):
            cosines = token_scores(text_embeds.to(device).float(), audio_embeds.float())  # (A, B, T)
        frames = unfold_frames(cosines, kernel_size, stride)  # (A, B, W, H)
        _, _, temperature = self.score_parameters()
        scores = attended_scores(frames, mask.unsqueeze(1), temperature.to(device), dim=-1)  # (A, B, W)
        first = torch.arange(mask.shape[1], device=mask.device) * stride  # (W,)
        starts = self.token_start_seconds(max(audio_embeds.shape[1], kernel_size), mask.device)  # (T,)
        ends = starts[first + kernel_size - 1] + self.config.token_seconds
        return CoLLAPLocalization(
            scores=scores, frame_mask=mask.any(-1), frame_seconds=torch.stack([starts[first], ends], dim=-1)
        )

    def token_start_seconds(self, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
        """Start of the fused tokens of an audio in seconds, (T,): token k of segment s starts at `L s + 0.16 k`."""
        index = torch.arange(num_tokens, device=device)
        per_segment = self.config.tokens_per_segment
        segment = torch.div(index, per_segment, rounding_mode="floor")
        return segment * float(self.config.segment_seconds) + (index % per_segment) * self.config.token_seconds

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        music_features: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        music_attention_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
        audio_token_mask: torch.Tensor | None = None,
        fused_tokens: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        return_loss: bool = False,
        gather_negatives: bool = False,
        text_chunk_size: int | None = None,
        return_dict: bool | None = None,
    ) -> CoLLAPOutput | tuple:
        """Scores of all audios with all texts, or the embeddings of one side if only that is given; the arguments are
        what `CoLLAPProcessor` returns.

        Args:
            input_ids, attention_mask: as in [`get_text_features`].
            music_features, speech_features, music_attention_mask, segment_mask, audio_token_mask, fused_tokens: as in
                [`get_audio_features`].
            text_embeds: (B, D) from [`get_text_features`], instead of `input_ids`.
            return_loss: whether to add the contrastive loss; text i must describe audio i.
            gather_negatives: whether the loss contrasts the audios and texts of all processes; only text embeddings
                and scores travel. The returned loss is that of the whole batch.
            text_chunk_size: texts scored at a time, to bound memory; None for all.
            return_dict: False for a tuple.

        Raises:
            ValueError: if text or audio is missing with `return_loss`, both are, or features come without their
                counterpart; with `return_loss` and different numbers of texts and audios.
        """
        has_text = input_ids is not None or text_embeds is not None
        has_audio = fused_tokens is not None or (music_features is not None and speech_features is not None)
        _check_sides(has_text, has_audio, music_features is not None or speech_features is not None, return_loss)
        loss = logits = audio_embeds = None
        if input_ids is not None and text_embeds is None:
            text_embeds = self.get_text_features(input_ids, attention_mask)  # (B, D)
        if has_audio:
            audio_embeds, audio_token_mask = self.get_audio_features(
                music_features, speech_features, music_attention_mask, segment_mask, audio_token_mask, fused_tokens
            )  # (A, T, D), (A, T)
        if has_text and has_audio:
            all_texts = gather_rows(text_embeds) if gather_negatives else text_embeds  # (B, D)
            logits = self.score(all_texts, audio_embeds, audio_token_mask, text_chunk_size)  # (A, B)
        if return_loss:
            all_logits = gather_rows(logits) if gather_negatives else logits
            loss = contrastive_loss(all_logits, self.config.loss_direction)
        logits_per_text = None if logits is None else logits.T
        output = CoLLAPOutput(loss, logits, logits_per_text, text_embeds, audio_embeds, audio_token_mask)
        return output if return_dict is not False else output.to_tuple()


def _check_sides(has_text: bool, has_audio: bool, has_features: bool, return_loss: bool):
    """ValueError unless there is something to embed, and both sides for the loss."""
    if has_features and not has_audio:
        raise ValueError("CoLLAPModel reads music_features together with speech_features; found only one of them")
    if not (has_text and has_audio if return_loss else has_text or has_audio):
        raise ValueError(
            f"found {'text' if has_text else 'audio' if has_audio else 'neither text nor audio'}; expected input_ids "
            "(or text_embeds) and music_features with speech_features (or fused_tokens)"
            + (": the loss needs both sides" if return_loss else ", or one side to embed it alone")
        )


def some_names(names: list[str]) -> str:
    """The first three, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_weight_files(name: str | Path | None, arguments: dict, use_safetensors: bool | None):
    """ValueError for pickled weights, and for an index that names pickled files or files elsewhere."""
    if use_safetensors is False:
        raise ValueError(
            "CoLLAP reads safetensors only, because a pickled file can run code; found use_safetensors=False"
        )
    where = {key: arguments[key] for key in LOCATION if arguments.get(key) is not None}
    quiet = {f"_raise_exceptions_for_{case}": False for case in ("gated_repo", "missing_entries", "connection_errors")}
    variant = arguments.get("variant")
    file = SAFE_WEIGHTS_INDEX_NAME.replace(".json", f".{variant}.json") if variant else SAFE_WEIGHTS_INDEX_NAME
    index = cached_file(str(name), file, **where, **quiet) if name is not None else None
    try:
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values() if index else ()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name}: {file} is damaged ({type(error).__name__}: {error}); fetch or save it again"
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(
                f"{name}: {file} names the shard {shard!r}; expected the name of a safetensors file in the same folder"
            )


def _without_pooler(text_model: PreTrainedModel) -> PreTrainedModel:
    """CoLLAP pools by itself; a pooler would be saved, never trained, and make DistributedDataParallel fail."""
    if getattr(text_model, "pooler", None) is not None:
        text_model.pooler = None
    return text_model


def load_speech_encoder(speech_model: WhisperEncoder, whisper: WhisperModel):
    """The weights of Whisper's encoder into one that may have positions for shorter segments."""
    state = whisper.encoder.state_dict()
    positions = speech_model.config.max_source_positions
    state["embed_positions.weight"] = state["embed_positions.weight"][:positions]
    speech_model.load_state_dict(state)


def load_whole(auto_class, name: str, allow_missing: str = ""):
    """`from_pretrained` in float32 that refuses a checkpoint without all the weights, but for those of one part."""
    model, info = auto_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if not (allow_missing and key.startswith(allow_missing))]
    if missing or info["mismatched_keys"]:
        raise ValueError(
            f"{name}: the checkpoint lacks weights of {type(model).__name__} (missing {sorted(missing)[:5]}, of other "
            f"shapes {sorted(info['mismatched_keys'])[:5]}); they would have been re-initialised at random"
        )
    return model, info
