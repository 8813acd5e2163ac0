"""Configuration of the BEATs audio encoder (Chen et al. 2022, arXiv 2212.09058)."""

from transformers import PreTrainedConfig


class BeatsConfig(PreTrainedConfig):
    r"""Settings of a [`BeatsModel`]; the defaults are those of the released BEATs-base checkpoints.

    Args:
        num_mel_bins: mel bins of the Kaldi filter bank; a multiple of `patch_size`.
        patch_size: side of the square patch of the spectrogram, in bins and in 10 ms frames.
        embed_dim: width of the patch embedding; projected to `hidden_size` when the two differ.
        conv_bias: whether the patch embedding has a bias.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act: the transformer.
        hidden_dropout, attention_dropout, activation_dropout, feature_dropout: training-time dropout of the residual
            branches, the attention weights, the inner feed-forward activation and the patch embedding.
        layer_norm_first: pre-norm layers; excludes `deep_norm`.
        deep_norm: post-norm layers whose residual is scaled by `(2 * num_hidden_layers) ** 0.25` (DeepNet).
        conv_pos_kernel, conv_pos_groups: the convolutional position embedding.
        relative_position_embedding: whether attention has a bucketed relative-position bias, shared by the layers.
        num_buckets, max_distance: buckets of that bias, and the distance in tokens from which all share the last one.
        gated_relative_position: whether each query gates the bias (WavLM's gated relative position).
        layer_norm_eps, initializer_range: as everywhere in transformers.

    Raises:
        ValueError: if the sizes do not fit together.
    """

    model_type = "beats"
    base_config_key = "music_config"

    def __init__(
        self,
        num_mel_bins: int = 128,
        patch_size: int = 16,
        embed_dim: int = 512,
        conv_bias: bool = False,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        feature_dropout: float = 0.0,
        layer_norm_first: bool = False,
        deep_norm: bool = True,
        conv_pos_kernel: int = 128,
        conv_pos_groups: int = 16,
        relative_position_embedding: bool = True,
        num_buckets: int = 320,
        max_distance: int = 800,
        gated_relative_position: bool = True,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        if num_mel_bins % patch_size:
            raise ValueError(f"num_mel_bins ({num_mel_bins}) must be a multiple of patch_size ({patch_size})")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_attention_heads})"
            )
        if hidden_size % conv_pos_groups:
            raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of conv_pos_groups ({conv_pos_groups})")
        if layer_norm_first and deep_norm:
            raise ValueError("layer_norm_first and deep_norm exclude each other: DeepNet scales post-norm residuals")
        if gated_relative_position and not relative_position_embedding:
            raise ValueError("gated_relative_position needs relative_position_embedding=True: there is no bias to gate")
        if relative_position_embedding and not (num_buckets >= 4 and max_distance > num_buckets // 4):
            raise ValueError(
                f"num_buckets ({num_buckets}) must be at least 4, and max_distance ({max_distance}) beyond the "
                f"{num_buckets // 4} distances that have a bucket of their own"
            )
        self.num_mel_bins = num_mel_bins
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.conv_bias = conv_bias
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout = hidden_dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.feature_dropout = feature_dropout
        self.layer_norm_first = layer_norm_first
        self.deep_norm = deep_norm
        self.conv_pos_kernel = conv_pos_kernel
        self.conv_pos_groups = conv_pos_groups
        self.relative_position_embedding = relative_position_embedding
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.gated_relative_position = gated_relative_position
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def frequency_patches(self) -> int:
        """Patches along the frequency axis of one time patch: 8 for 128 mel bins."""
        return self.num_mel_bins // self.patch_size
