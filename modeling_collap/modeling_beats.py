"""BEATs, the music encoder, on Kaldi filter-bank input.

A spectrogram is cut into square patches, every patch becomes a token (time-major: all frequency patches of the first
time patch, then those of the second), and a transformer with a convolutional position embedding and a gated
relative-position bias reads them.

The algorithm follows the original release (microsoft/unilm, beats/, commit 9102ed9, MIT licence). Left out: the
classifier head, layer drop, the gradient decay between layers and the GLU feed-forward, none of which an encoder of
the released checkpoints needs.

Dimensions: `N` segments, `P` patches of a segment; `fbank frames` (10 ms), `heads` and `head_dim` in words.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import capture_outputs

from .configuration_beats import BeatsConfig
from .loading_collap import StrictLoading

# Elements of the attention mask that a CPU works on at a time: 16 MB in float32, half of a common last-level cache.
CACHED_MASK_ELEMENTS = 2**22


def patch_mask_from_frame_mask(frame_mask: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Find the patches that hold audio, by the rule of the original release.

    The fbank frames that do not fill a share for every patch are dropped, the rest is dealt out evenly and in order,
    and a patch is padding only if all frames of its share are. With 8 frequency patches a patch is dealt 2 of the 16
    frames of its time patch, so a partly filled time patch has some of its 8 patches masked.

    Args:
        frame_mask: (N, fbank frames) bool, True = audio.
        num_patches: P.

    Returns:
        (N, P) bool, True = audio.
    """
    frames_per_patch = frame_mask.shape[1] // num_patches
    dealt = frame_mask[:, : frames_per_patch * num_patches]
    return dealt.reshape(-1, num_patches, frames_per_patch).any(-1)  # (N, P)


def relative_position_buckets(num_patches: int, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Return the bucket of every relative position `key - query` from `-(P - 1)` to `P - 1`: exact for short distances,
    logarithmic up to `max_distance`, one half of the buckets for each side (T5's bidirectional rule).

    Returns:
        (2 P - 1,) int64.
    """
    relative = torch.arange(-(num_patches - 1), num_patches)
    half = num_buckets // 2
    exact = half // 2
    distance = relative.abs()
    far = exact + (torch.log(distance.float() / exact) / math.log(max_distance / exact) * (half - exact)).nan_to_num(
        neginf=0.0
    ).to(torch.long)
    bucket = torch.where(distance < exact, distance, far.clamp(max=half - 1))
    return bucket + half * (relative > 0)


def eager_attention(query, key, value, gate, position_bias, padding_bias, dropout):
    """Attend as [`sdpa_attention`] does, readably: `softmax(Q K^T / sqrt(head_dim) + gate * bias) V`.

    Returns:
        Context (N, heads, P, head_dim), and the weights before dropout (N, heads, P, P).
    """
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (N, heads, P, P)
    if position_bias is not None:
        num_patches = query.shape[2]
        keys_minus_queries = torch.arange(num_patches)[None] - torch.arange(num_patches)[:, None] + num_patches - 1
        logits = logits + gate * position_bias[:, keys_minus_queries]
    if padding_bias is not None:
        logits = logits + padding_bias
    weights = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value, weights  # (N, heads, P, head_dim)


def sdpa_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gate: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    padding_bias: torch.Tensor | None,
    dropout: float,
) -> tuple[torch.Tensor, None]:
    """Attend through torch's fused kernels, with the gated bias as additive mask.

    The gated mask, (N, heads, P, P), is by far the largest tensor of the encoder (107 MB for one segment of 30 s in
    float32). The ungated bias is never written out: with the queries in reversed order its rows are the windows of
    `position_bias`, a view. A processor without an accelerator works through the mask in blocks that stay in cache.

    Args:
        query, key, value: (N, heads, P, head_dim).
        gate: (N, heads, P, 1) factor of the bias for every query.
        position_bias: (heads, 2P - 1) bias of every `key - query + P - 1`, or None.
        padding_bias: (N, 1, 1, P), 0 for a key that holds audio and -inf for padding, or None.
        dropout: probability of dropping an attention weight.

    Returns:
        Context (N, heads, P, head_dim), and None: the kernels keep no weights.
    """
    if position_bias is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=padding_bias, dropout_p=dropout), None

    num_segments, num_heads, num_patches, _ = query.shape
    query, gate = query.flip(2), gate.flip(2)
    windows = position_bias.to(query.dtype).unfold(-1, num_patches, 1)  # (heads, P, P), row s: query P - 1 - s

    def attend(n: slice, h: slice) -> torch.Tensor:
        mask = gate[n, h] * windows[h]  # (n, h, P, P)
        if padding_bias is not None:
            mask = mask + padding_bias[n]
        return F.scaled_dot_product_attention(query[n, h], key[n, h], value[n, h], attn_mask=mask, dropout_p=dropout)

    in_cache = CACHED_MASK_ELEMENTS // num_patches**2
    at_once = query.device.type != "cpu" or torch.compiler.is_exporting()  # an exported graph has one path
    if at_once or num_segments * num_heads <= in_cache:
        return attend(slice(None), slice(None)).flip(2), None
    h = min(num_heads, max(1, in_cache))
    n = max(1, in_cache // h)
    rows = (
        torch.cat([attend(slice(i, i + n), slice(j, j + h)) for j in range(0, num_heads, h)], dim=1)
        for i in range(0, num_segments, n)
    )
    return torch.cat(list(rows)).flip(2), None  # (N, heads, P, head_dim)


class BeatsPositionalConv(nn.Module):
    """Convolutional position embedding; the weight normalisation of the original is folded into the weight."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel_size=config.conv_pos_kernel,
            padding=config.conv_pos_kernel // 2,
            groups=config.conv_pos_groups,
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        num_patches, channels = hidden_states.shape[1], hidden_states.transpose(1, 2)  # (N, hidden, P)
        on_cpu = hidden_states.device.type == "cpu"
        if on_cpu and (hidden_states.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")):
            # oneDNN's is wrong (by its own size) on CPUs with AMX, where a group has few channels.
            weights = self.conv.weight.float(), self.conv.bias.float()
            with torch.autocast("cpu", enabled=False):
                found = F.conv1d(channels.float(), *weights, padding=self.conv.padding, groups=self.conv.groups)
            positions = found.to(hidden_states.dtype)
        else:
            positions = self.conv(channels)  # (N, hidden, P or P + 1)
        return F.gelu(positions[..., :num_patches]).transpose(1, 2)  # (N, P, hidden)


class BeatsRelativePositionBias(nn.Module):
    """The bias table, one value per bucket and head, shared by all layers."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.num_buckets = config.num_buckets
        self.max_distance = config.max_distance
        self.embedding = nn.Embedding(config.num_buckets, config.num_attention_heads)

    def forward(self, num_patches: int, device: torch.device) -> torch.Tensor:
        """Return the bias of every relative position `key - query + P - 1`, (heads, 2P - 1)."""
        buckets = relative_position_buckets(num_patches, self.num_buckets, self.max_distance)
        # Contiguous: the windows that attention takes of a row are then read without a stride.
        return self.embedding(buckets.to(device)).T.contiguous()  # (heads, 2P - 1)


class BeatsAttention(nn.Module):
    """Self-attention whose additive mask is the relative-position bias, gated by the query (WavLM, Eq. 3-5)."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        if config.gated_relative_position:
            self.gate_proj = nn.Linear(self.head_dim, 8)
            self.gate_scale = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))

    def gate(self, query: torch.Tensor) -> torch.Tensor:
        """Return the factor of the bias for every query: (N, heads, P, head_dim), not scaled -> (N, heads, P, 1)."""
        halves = self.gate_proj(query.flatten(0, 1))  # (N heads, P, 8): 8-bit linear layers read no fourth dimension
        halves = halves.unflatten(0, query.shape[:2]).unflatten(-1, (2, 4)).sum(-1)  # (N, heads, P, 2)
        reset, update = halves.sigmoid().chunk(2, dim=-1)  # (N, heads, P, 1) each
        return reset * (update * self.gate_scale - 1.0) + 2.0

    def forward(
        self, hidden_states: torch.Tensor, position_bias: torch.Tensor | None, padding_bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Let every patch attend to all others: (N, P, hidden) -> (N, P, hidden); biases as in [`sdpa_attention`].
        The second value are the weights (N, heads, P, P), where the implementation is `eager`."""
        per_head = (self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).unflatten(-1, per_head).transpose(1, 2)  # (N, heads, P, head_dim)
        key = self.k_proj(hidden_states).unflatten(-1, per_head).transpose(1, 2)  # (N, heads, P, head_dim)
        value = self.v_proj(hidden_states).unflatten(-1, per_head).transpose(1, 2)  # (N, heads, P, head_dim)
        gate = None
        if position_bias is not None:
            gated = self.config.gated_relative_position
            gate = self.gate(query) if gated else torch.ones_like(query[..., :1])  # (N, heads, P, 1)
        attend = eager_attention if self.config._attn_implementation == "eager" else sdpa_attention
        dropout = self.config.attention_dropout if self.training else 0.0
        biases = (gate, position_bias, padding_bias)
        context, weights = attend(query, key, value, *biases, dropout)  # (N, heads, P, head_dim)
        return self.out_proj(context.transpose(1, 2).flatten(2)), weights  # (N, P, hidden)


class BeatsFeedForward(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_dropout(self.activation(self.fc1(hidden_states))))


class BeatsLayer(GradientCheckpointingLayer):
    """One transformer layer: post-norm with the residual scaled as in DeepNet, or pre-norm."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.layer_norm_first = config.layer_norm_first
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1.0
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = BeatsFeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        if config.deep_norm:
            # DeepNet (arXiv 2203.00555): the branches but for queries and keys start small by beta.
            beta = (8 * config.num_hidden_layers) ** -0.25
            attention, feed_forward = self.self_attn, self.feed_forward
            attention.q_proj.xavier_gain = attention.k_proj.xavier_gain = 1.0
            for projection in (attention.v_proj, attention.out_proj, feed_forward.fc1, feed_forward.fc2):
                projection.xavier_gain = beta

    def forward(
        self, hidden_states: torch.Tensor, position_bias: torch.Tensor | None, padding_bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Transform (N, P, hidden) to (N, P, hidden); the biases as in [`sdpa_attention`]."""
        if self.layer_norm_first:
            attended, _ = self.self_attn(self.self_attn_layer_norm(hidden_states), position_bias, padding_bias)
            hidden_states = hidden_states + self.dropout(attended)
            return hidden_states + self.dropout(self.feed_forward(self.final_layer_norm(hidden_states)))
        attended, _ = self.self_attn(hidden_states, position_bias, padding_bias)
        hidden_states = self.self_attn_layer_norm(hidden_states * self.residual_scale + self.dropout(attended))
        transformed = self.dropout(self.feed_forward(hidden_states))
        return self.final_layer_norm(hidden_states * self.residual_scale + transformed)


class BeatsPreTrainedModel(StrictLoading, PreTrainedModel):
    """Tell transformers what loading, saving and initialising need to know of BEATs."""

    config_class = BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["BeatsLayer"]
    _can_record_outputs = {"hidden_states": BeatsLayer, "attentions": BeatsAttention}

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # the layers look it up at every call

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        # transformers calls this only for modules that have parameters of their own, so not for a whole layer.
        if isinstance(module, nn.Conv1d):
            std = math.sqrt(4.0 / (self.config.conv_pos_kernel * self.config.hidden_size))
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, BeatsAttention) and self.config.gated_relative_position:
            init.ones_(module.gate_scale)
        elif hasattr(module, "xavier_gain"):
            init.xavier_normal_(module.weight, gain=module.xavier_gain)


class BeatsModel(BeatsPreTrainedModel):
    """The BEATs encoder: filter bank in, one vector per patch out."""

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, kernel_size=patch, stride=patch, bias=config.conv_bias)
        self.patch_norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.feature_projection = (
            nn.Identity() if config.embed_dim == config.hidden_size else nn.Linear(config.embed_dim, config.hidden_size)
        )
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.positional_conv = BeatsPositionalConv(config)
        self.relative_position_bias = BeatsRelativePositionBias(config) if config.relative_position_embedding else None
        self.layers = nn.ModuleList(BeatsLayer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding, as vision models do."""
        return self.patch_embedding

    def set_input_embeddings(self, value: nn.Module):
        """Replace the patch embedding."""
        self.patch_embedding = value

    def embed_patches(self, input_features: torch.Tensor) -> torch.Tensor:
        """Turn (N, fbank frames, mel bins) into (N, P, hidden), time-major; frames that fill no patch are dropped."""
        patches = self.patch_embedding(input_features.unsqueeze(1))  # (N, embed_dim, time, frequency)
        patches = patches.flatten(2).transpose(1, 2)  # (N, P, embed_dim)
        return self.feature_dropout(self.feature_projection(self.patch_norm(patches)))  # (N, P, hidden)

    @capture_outputs
    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutput | tuple[torch.Tensor]:
        """Encode segments.

        Args:
            input_features: (N, fbank frames, mel bins) normalised Kaldi filter bank, see `CoLLAPFeatureExtractor`.
            attention_mask: (N, fbank frames), True or 1 where the frame holds audio; None if all do.
            **kwargs: `return_dict=False` for a tuple; `output_hidden_states`; `output_attentions`, for which
                `attn_implementation` must be `"eager"`. All else that transformers' clients pass has no effect.

        Returns:
            `last_hidden_state` (N, P, hidden) with `P = fbank frames // patch_size * frequency_patches`, time-major;
            `hidden_states`, if asked for, of the patches and of every layer; `attentions` (N, heads, P, P).

        Raises:
            ValueError: if the input has another number of mel bins, or not one whole patch of frames.
        """
        self._check_input(input_features)
        hidden_states = self.embed_patches(input_features.to(self.patch_embedding.weight.dtype))  # (N, P, hidden)
        num_patches = hidden_states.shape[1]
        padding_bias = None
        if attention_mask is not None:
            patch_mask = patch_mask_from_frame_mask(attention_mask.bool(), num_patches)  # (N, P)
            hidden_states = hidden_states.masked_fill(~patch_mask.unsqueeze(-1), 0.0)
            padding_bias = torch.zeros_like(patch_mask, dtype=hidden_states.dtype)
            padding_bias = padding_bias.masked_fill(~patch_mask, -torch.inf)[:, None, None]  # (N, 1, 1, P)
        hidden_states = hidden_states + self.positional_conv(hidden_states)
        if not self.config.layer_norm_first:
            hidden_states = self.layer_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)
        position_bias = None
        if self.relative_position_bias is not None:
            position_bias = self.relative_position_bias(num_patches, hidden_states.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_bias, padding_bias)
        if self.config.layer_norm_first:
            hidden_states = self.layer_norm(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _check_input(self, input_features: torch.Tensor):
        bins, patch = self.config.num_mel_bins, self.config.patch_size
        if input_features.ndim != 3 or input_features.shape[-1] != bins or input_features.shape[1] < patch:
            raise ValueError(
                f"BeatsModel expects input_features of shape (segments, at least {patch} frames, {bins} mel bins), "
                f"found {tuple(input_features.shape)}"
            )
