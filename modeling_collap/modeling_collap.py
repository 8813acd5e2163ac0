"""CoLLAP: Contrastive Long-form Language-Audio Pretraining (arXiv 2410.02271).

A song is cut into consecutive segments. BEATs (music) and the Whisper encoder (speech) read every real segment, their
outputs meet on one time grid of 0.16 s, a linear adapter maps them to the shared width, and each token becomes a unit
vector. A text becomes one unit vector. The score of a song and a text looks at every moment of the song
(`scoring_collap.py`), and training contrasts the scores within a batch (`loss_collap.py`).

Dimensions: `A` audios, `B` texts, `S` segments of an audio, `N` real segments of a batch, `L` text tokens, `K` tokens
of a segment, `T = S K` fused tokens of an audio, `Q` sentences of a text, `W` frames of the score, `M` music + speech
hidden, `D` shared width.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .alignment_collap import pool_sentences
from .configuration_collap import CoLLAPConfig, check_settings
from .loading_collap import StrictLoading, load_whole, without_pooler
from .localization_collap import CoLLAPLocalization, localize_sentences, localize_texts, pair_location_losses
from .loss_collap import contrastive_loss, gather_orders, gather_rows, gather_texts, other_orders, split_orders
from .structure_collap import StructureLayers, ZeroLinear, token_start_seconds
from .towers_collap import AudioBackbones, AudioTower, TextTower, build_audio_encoders
from .weighting_collap import ScoreParameters, score_embeddings

RECORDED = ("output_hidden_states", "output_attentions")
UNUSED = ("num_items_in_batch", "token_type_ids", "use_cache")  # of Trainer, BERT's tokenizer, and text generation
# What docs/structure.md found best. A saved configuration that names no alignment is of before, and the paper's.
NEW_MODELS = {"alignment": "monotone", "path_blank": True}


@dataclass
class CoLLAPOutput(ModelOutput):
    """Scores and embeddings of a batch.

    Attributes:
        loss: scalar, with `return_loss=True`.
        logits_per_audio: (A, B) scores.
        logits_per_text: (B, A), its transpose.
        text_embeds: (B, D) float32, unit norm: one vector for each text.
        audio_embeds: (A, T, D) float32, unit norm; zero where `audio_token_mask` is False.
        audio_token_mask: (A, T) bool, True = the token starts before the audio ends.
        text_model_output: of the text encoder, with `output_hidden_states` or `output_attentions`.
        sentence_embeds: (B, Q, D) float32, a unit vector for each sentence and zeros where a text has fewer; None where
            texts were not given by sentences.
    """

    loss: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    audio_token_mask: torch.Tensor | None = None
    text_model_output: ModelOutput | None = None
    sentence_embeds: torch.Tensor | None = None

    @property
    def scored_texts(self) -> torch.Tensor:
        """Return what the score reads of the texts: (B, Q, D) of their sentences, or (B, D)."""
        return self.text_embeds if self.sentence_embeds is None else self.sentence_embeds


def unit_tokens(tokens: torch.Tensor, audio_token_mask: torch.Tensor) -> torch.Tensor:
    """Scale (A, T, D) tokens to unit norm in float32; zero where the mask, (A, T) bool, is False."""
    padding = ~audio_token_mask.to(tokens.device).unsqueeze(-1)  # (A, T, 1)
    return F.normalize(tokens.float(), dim=-1).masked_fill(padding, 0.0)


class CoLLAPPreTrainedModel(StrictLoading, PreTrainedModel):
    """Tell transformers what loading, saving and initialising need to know of a CoLLAP."""

    config_class = CoLLAPConfig
    base_model_prefix = "collap"
    main_input_name = "input_ids"
    input_modalities = ("text", "audio")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # Trainer then divides the loss of a micro batch by their number
    _supports_sdpa = True
    _no_split_modules = ["StructureLayer"]
    _keep_in_fp32_modules_strict = ["score_parameters"]

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, (ScoreParameters, ZeroLinear)):
            module.initialise()

    def _gather_properties(self, parts: tuple[PreTrainedModel, ...]):
        """Take over what transformers asks of a model's direct children; here the encoders are one level down."""
        for name in ("_no_split_modules", "_keep_in_fp32_modules", "_skip_keys_device_placement"):
            gathered = set(getattr(self, name) or ())
            setattr(self, name, gathered.union(*(getattr(part, name) or () for part in parts)))


class CoLLAPModel(CoLLAPPreTrainedModel):
    """CoLLAP: a text tower, an audio tower, the structure of the song, and the score."""

    def __init__(self, config: CoLLAPConfig):
        super().__init__(config)
        text = without_pooler(AutoModel.from_config(config.text_config))
        music, speech = build_audio_encoders(config)
        width = config.projection_dim
        self.text_tower = TextTower(text, nn.Linear(config.text_config.hidden_size, width), config.text_pooling)
        self.audio_tower = AudioTower(music, speech, nn.Linear(config.fused_width, width), config.music_config)
        self.structure = StructureLayers(config)
        self.score_parameters = ScoreParameters(config)
        self._gather_properties(tuple(self.encoders.values()))
        self.post_init()

    @classmethod
    def from_backbones(cls, text: str, music: str | None, speech: str | None, **config) -> "CoLLAPModel":
        """Build a model from pretrained parts; the projections, and structure layers if any, are newly initialised.

        Args:
            text: folder or Hub id of a text encoder, for example `"gpt2"` or `"roberta-base"`.
            music: folder or Hub id of a converted BEATs (`collap convert-beats`); None for a model without.
            speech: folder or Hub id of a Whisper model; only its encoder is kept, its positions sliced to
                `segment_seconds`. None for a model without.
            **config: settings of [`CoLLAPConfig`] other than those of the parts. Where they do not say which, the
                alignment is the one that finds most, [`NEW_MODELS`]; `alignment="paper"` is the paper's model.

        Raises:
            ValueError: for a name that is no setting, without any audio encoder, or if a part lacks weights that CoLLAP
                needs; nothing pretrained is re-initialised silently.
            OSError: from transformers, if a folder or Hub id cannot be found.
        """
        check_settings(config)
        if "alignment" not in config:
            config = NEW_MODELS | config
        text_encoder, audio = load_whole(AutoModel, text, unused=("pooler.",)), AudioBackbones.load(music, speech)
        model = cls(CoLLAPConfig(text_config=text_encoder.config, **{**audio.settings, **config}))
        model.text_tower.encoder.load_state_dict(without_pooler(text_encoder).state_dict())
        audio.copy_to(model.audio_tower)
        return model

    @property
    def encoders(self) -> dict[str, PreTrainedModel]:
        """The pretrained encoders, by name: text, and music and speech or one of them."""
        return {"text": self.text_tower.encoder, **self.audio_tower.encoders}

    def get_input_embeddings(self) -> nn.Module:
        """Return those of the text tower, which `resize_token_embeddings` replaces."""
        return self.text_tower.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace those of the text tower."""
        self.text_tower.encoder.set_input_embeddings(value)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed texts, (B, L) or (B, Q, L) -> (B, D) float32 of unit norm; arguments and errors as in
        [`TextTower.forward`]. The vector of several sentences is the direction of their mean."""
        if input_ids.ndim == 2:
            return self.text_tower(input_ids, attention_mask)
        return pool_sentences(self.get_sentence_features(input_ids, attention_mask))

    def get_sentence_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed every sentence of every text, each alone or all of a text in one pass (`sentence_encoding`).

        Args:
            input_ids, attention_mask: (B, Q, L); the mask is 0 for what is no sentence. (B, L): one sentence each.

        Returns:
            (B, Q, D) float32, unit norm; zeros where there is no sentence.
        """
        if input_ids.ndim == 2:
            return self.text_tower(input_ids, attention_mask).unsqueeze(1)  # (B, 1, D)
        is_sentence = attention_mask.any(-1)  # (B, Q)
        if self.config.sentence_encoding == "joint":
            sentences = self.text_tower.embed_jointly(input_ids, attention_mask)  # (all sentences, D)
        else:
            sentences = self.text_tower(input_ids[is_sentence], attention_mask[is_sentence])  # (all sentences, D)
        embeds = sentences.new_zeros(*is_sentence.shape, sentences.shape[-1])  # (B, Q, D)
        embeds[is_sentence.to(embeds.device)] = sentences
        return embeds

    def encode_segments(
        self,
        music_features: torch.Tensor,
        speech_features: torch.Tensor,
        music_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run the audio tower on the segments of one audio or of several, as [`AudioTower.forward`] says: (N, K, D).

        Whoever calls the tower itself misses the weights that FSDP2 has spread over processes.
        """
        return self.audio_tower(music_features, speech_features, music_attention_mask)

    def normalize_tokens(self, tokens: torch.Tensor, audio_token_mask: torch.Tensor) -> torch.Tensor:
        """Pass tokens through the structure layers, if any, and scale them to unit norm.

        Args:
            tokens: (A, T, D) from [`encode_segments`], the segments of each audio in order.
            audio_token_mask: (A, T) bool.

        Returns:
            (A, T, D) float32, unit norm; zero where the mask is False.
        """
        return unit_tokens(self.structure(tokens, audio_token_mask), audio_token_mask)

    def get_audio_features(
        self,
        music_features: torch.Tensor | None = None,
        speech_features: torch.Tensor | None = None,
        music_attention_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
        audio_token_mask: torch.Tensor | None = None,
        fused_tokens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed every 0.16 s of audios.

        Args:
            music_features: (A, S, fbank frames, mel bins) Kaldi filter bank of every segment.
            speech_features: (A, S, mel bins, log-mel frames) Whisper log-mel of every segment. Of an encoder that the
                model does without, features are not read.
            music_attention_mask: (A, S, fbank frames), True = the frame holds audio; None if all do.
            segment_mask: (A, S), True = the segment holds audio; None if all do. Other segments are not encoded.
            audio_token_mask: (A, T), True = the token starts before the audio ends; None for all of the real segments.
            fused_tokens: (A, T, M) from [`AudioTower.fuse`], instead of all the features.

        Returns:
            Embeddings (A, T, D) float32, unit norm, zero outside of the mask; token mask (A, T) bool.
        """
        if fused_tokens is not None:
            if audio_token_mask is None:
                audio_token_mask = fused_tokens.new_ones(fused_tokens.shape[:2])  # (A, T)
            audio_token_mask, adapter = audio_token_mask.bool(), self.audio_tower.adapter
            tokens = adapter(fused_tokens.to(adapter.weight.dtype))  # (A, T, D)
            return unit_tokens(self.structure(tokens, audio_token_mask), audio_token_mask), audio_token_mask
        features = {"music": music_features, "speech": speech_features}
        features = {name: features[name] for name in self.config.built_encoders}
        if segment_mask is None:
            first = features[self.config.built_encoders[0]]
            segment_mask = torch.ones(first.shape[:2], device=first.device)
        segment_mask = segment_mask.bool()  # (A, S)
        if audio_token_mask is None:
            audio_token_mask = segment_mask.repeat_interleave(self.config.tokens_per_segment, dim=1)  # (A, T)
        if music_attention_mask is not None:
            music_attention_mask = music_attention_mask[segment_mask]  # (N, fbank frames)
        real = {name: one[segment_mask] for name, one in features.items()}
        encoded = self.audio_tower(real.get("music"), real.get("speech"), music_attention_mask)  # (N, K, D)
        tokens = encoded.new_zeros(*segment_mask.shape, *encoded.shape[1:])  # (A, S, K, D)
        tokens[segment_mask.to(encoded.device)] = encoded
        audio_token_mask = audio_token_mask.bool()
        tokens = self.structure(tokens.flatten(1, 2), audio_token_mask)  # (A, T, D)
        # Not `normalize_tokens`: FSDP2 would spread the adapter's weights again before its backward pass.
        return unit_tokens(tokens, audio_token_mask), audio_token_mask

    def score(
        self,
        text_embeds: torch.Tensor,
        audio_embeds: torch.Tensor,
        audio_token_mask: torch.Tensor,
        chunk_size: int | None = None,
        flat_attention: bool = False,
    ) -> torch.Tensor:
        """Score every audio with every text, as [`score_embeddings`] says: (A, B) float32."""
        embeddings = text_embeds, audio_embeds, audio_token_mask
        return score_embeddings(self.score_parameters, *embeddings, chunk_size, flat_attention)

    def localize(
        self, text_embeds: torch.Tensor, audio_embeds: torch.Tensor, audio_token_mask: torch.Tensor
    ) -> CoLLAPLocalization:
        """Say where in every audio every text, or each of its sentences, is heard.

        Args:
            text_embeds: (B, D) as returned by `get_text_features`, or (B, Q, D) by `get_sentence_features`.
            audio_embeds, audio_token_mask: as returned by `get_audio_features`.

        Returns:
            [`CoLLAPLocalization`]: over time, for texts the terms that the kernel-wise attention sums, for sentences
            their cosines, and their spans in seconds.
        """
        device, kernel_size = audio_embeds.device, self.config.kernel_size
        embeds = text_embeds.to(device).float(), audio_embeds.float(), audio_token_mask.to(device).bool()
        weights = self.score_parameters().to(device)
        tokens = audio_embeds.shape[1]
        with torch.autocast(device.type, enabled=False):
            if text_embeds.ndim == 3:
                blank = None if weights.blank is None else weights.blank.item()
                return localize_sentences(*embeds, self.config, blank, self.token_start_seconds(tokens, device))
            starts = self.token_start_seconds(max(tokens, kernel_size), device)  # (T,)
            return localize_texts(*embeds, self.config, weights.attention_temperature, starts)

    def token_start_seconds(self, num_tokens: int, device: torch.device | None = None) -> torch.Tensor:
        """Return when the fused tokens of an audio start, in seconds, (T,)."""
        return token_start_seconds(self.config, num_tokens, device)

    @can_return_tuple
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
        false_negatives: torch.Tensor | None = None,
        sentence_spans: torch.Tensor | None = None,
        sentence_orders: torch.Tensor | None = None,
        text_chunk_size: int | None = None,
        **kwargs,
    ) -> CoLLAPOutput | tuple:
        """Score all audios with all texts, or embed one side if only that is given; the arguments are what
        `CoLLAPProcessor` returns.

        Args:
            input_ids, attention_mask: as in [`get_text_features`].
            music_features, speech_features, music_attention_mask, segment_mask, audio_token_mask, fused_tokens: as in
                [`get_audio_features`].
            text_embeds: (B, D) from [`get_text_features`], or (B, Q, D) from [`get_sentence_features`], instead of
                `input_ids`.
            return_loss: whether to add the contrastive loss; text i must describe audio i. It contrasts what is in this
                call: accumulated gradients of several calls, as of transformers' Trainer, have fewer negatives than one
                call with all pairs. Trainer reports no `eval_loss` for batches without `return_loss=True`.
            gather_negatives: whether audios and texts of all processes are contrasted. Each process scores its own
                audios with all texts, and the loss is that of the whole batch; only text embeddings and scores travel.
            false_negatives: (A, B) bool over the audios and texts of the loss, see [`contrastive_loss`].
            sentence_spans: (B, Q, 2) start and end in seconds of every sentence in its audio, NaN where that is not
                known: with a `location_weight` the loss has a term for them, see [`location_losses`].
            sentence_orders: (B, Q) int, for every text which of its sentences stands at every place in an order that is
                not the song's, -1 at all places where there is none: further negatives of the loss, see
                [`contrastive_loss`]. For the alignment "monotone", which alone sees an order.
            text_chunk_size: texts scored at a time; None for as many as [`in_tiles`] takes.
            **kwargs: of transformers' clients. `return_dict=False` for a tuple; `output_hidden_states` and
                `output_attentions` for those of the text encoder (those of the audio encoders, for hundreds of
                segments, are returned by `audio_tower.music` and `audio_tower.speech`). What is None or False, and
                [`UNUSED`], has no effect.

        Raises:
            TypeError: for an argument that is none of these.
            ValueError: if text or audio is missing with `return_loss`, both are, or features come without their
                counterpart; with `return_loss` and different numbers of texts and audios, spans or orders of other
                sentences, or orders for another alignment.
        """
        has_text = input_ids is not None or text_embeds is not None
        features = {"music": music_features, "speech": speech_features}
        missing = [f"{name}_features" for name in self.config.built_encoders if features[name] is None]
        has_audio = fused_tokens is not None or not missing
        found = any(one is not None for one in features.values())
        _check_sides(has_text, has_audio, missing if found else [], return_loss)
        asked = self._asked_of_text_encoder(kwargs)
        loss = logits = audio_embeds = encoded = None
        if input_ids is not None and text_embeds is None:
            text_embeds, encoded = self._embed_texts(input_ids, attention_mask, asked)
        if has_audio:
            audio_embeds, audio_token_mask = self.get_audio_features(
                music_features, speech_features, music_attention_mask, segment_mask, audio_token_mask, fused_tokens
            )  # (A, T, D), (A, T)
        if has_text and has_audio:
            all_texts = gather_texts(text_embeds) if gather_negatives else text_embeds  # (B, D) or (B, Q, D)
            orders = self._loss_orders(sentence_orders, gather_negatives) if return_loss else None  # (B, Q)
            if orders is not None:
                all_texts = torch.cat([all_texts, other_orders(all_texts, orders)])  # (2 B, Q, D)
            logits = self.score(all_texts, audio_embeds, audio_token_mask, text_chunk_size)  # (A, B or 2 B)
        if return_loss:
            all_logits, further = gather_rows(logits) if gather_negatives else logits, None
            if orders is not None:
                all_logits, further = split_orders(all_logits, orders)
                logits = split_orders(logits, orders)[0]  # (A, B)
            loss = contrastive_loss(all_logits, self.config.loss_direction, false_negatives, further)
            if sentence_spans is not None and self.config.location_weight:
                pairs = text_embeds, audio_embeds, audio_token_mask, sentence_spans
                located = pair_location_losses(self.config, *pairs)  # (n,) of the pairs of this process
                located = gather_rows(located) if gather_negatives else located  # (A,)
                loss = loss + self.config.location_weight * located.mean()
        logits_per_text = None if logits is None else logits.T
        sentence_embeds = text_embeds if has_text and text_embeds.ndim == 3 else None
        if sentence_embeds is not None:
            text_embeds = pool_sentences(sentence_embeds)  # (B, D)
        embeds = text_embeds, audio_embeds, audio_token_mask
        return CoLLAPOutput(loss, logits, logits_per_text, *embeds, encoded, sentence_embeds)

    def _loss_orders(self, sentence_orders: torch.Tensor | None, gather_negatives: bool) -> torch.Tensor | None:
        """Return the orders (B, Q) of all texts; refuse them where the score does not see an order."""
        if sentence_orders is None:
            return None
        if self.config.alignment != "monotone":
            raise ValueError(f"sentence_orders need the alignment 'monotone', found {self.config.alignment!r}")
        return gather_orders(sentence_orders) if gather_negatives else sentence_orders

    def _embed_texts(self, input_ids, attention_mask, asked: dict) -> tuple[torch.Tensor, ModelOutput | None]:
        """Return (B, D) of texts or (B, Q, D) of their sentences, and what the text encoder was asked for."""
        if input_ids.ndim == 3:
            if asked:
                raise ValueError(f"found {' and '.join(asked)} for texts given by sentences; ask `text_tower.encode`")
            return self.get_sentence_features(input_ids, attention_mask), None
        if not asked:
            return self.get_text_features(input_ids, attention_mask), None
        encoded, mask = self.text_tower.encode(input_ids, attention_mask, **asked)
        return self.text_tower.pool(encoded.last_hidden_state, mask), encoded

    def _asked_of_text_encoder(self, kwargs: dict) -> dict[str, bool | int | list[int]]:
        """Return those of [`RECORDED`] that a call or the configuration asks for; refuse what would have no effect."""
        for name, value in kwargs.items():
            if value is not None and value is not False and name not in (*RECORDED, *UNUSED):
                raise TypeError(f"CoLLAPModel.forward() got an unexpected argument {name!r}")
        asked = {name: kwargs.get(name) for name in RECORDED}
        asked = {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}
        return {name: value for name, value in asked.items() if value}


def _check_sides(has_text: bool, has_audio: bool, missing: list[str], return_loss: bool):
    """ValueError unless there is something to embed, and both sides for the loss; `missing` features have others."""
    if missing and not has_audio:
        raise ValueError(f"found features of audio without {' and '.join(missing)}, which this model reads")
    if not (has_text and has_audio if return_loss else has_text or has_audio):
        raise ValueError(
            f"found {'text' if has_text else 'audio' if has_audio else 'neither text nor audio'}; expected input_ids "
            "(or text_embeds) and music_features with speech_features (or fused_tokens)"
            + (": the loss needs both sides" if return_loss else ", or one side to embed it alone")
        )
