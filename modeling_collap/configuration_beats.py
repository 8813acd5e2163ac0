"""Configuration of the BEATs audio encoder (Chen et al. 2022, arXiv 2212.09058)."""

from .validation_collap import MAX_LAYERS, MAX_WIDTH, CheckedConfig, checked, positive, ranged


@checked
class BeatsConfig(CheckedConfig):
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
        ValueError: for a value of another type or out of range, or if the sizes do not fit together.
    """

    model_type = "beats"
    base_config_key = "music_config"

    num_mel_bins: int = positive(128, maximum=4096)
    patch_size: int = positive(16, maximum=4096)
    embed_dim: int = positive(512, MAX_WIDTH)
    conv_bias: bool = False
    hidden_size: int = positive(768, MAX_WIDTH)
    num_hidden_layers: int = positive(12, MAX_LAYERS)
    num_attention_heads: int = positive(12, maximum=1024)
    intermediate_size: int = positive(3072, 4 * MAX_WIDTH)
    hidden_act: str = "gelu"
    hidden_dropout: float | int = ranged(0.1, 0, 1)
    attention_dropout: float | int = ranged(0.1, 0, 1)
    activation_dropout: float | int = ranged(0.0, 0, 1)
    feature_dropout: float | int = ranged(0.0, 0, 1)
    layer_norm_first: bool = False
    deep_norm: bool = True
    conv_pos_kernel: int = positive(128, MAX_WIDTH)
    conv_pos_groups: int = positive(16, MAX_WIDTH)
    relative_position_embedding: bool = True
    num_buckets: int = positive(320, MAX_WIDTH)
    max_distance: int = positive(800, maximum=2**31)
    gated_relative_position: bool = True
    layer_norm_eps: float | int = positive(1e-5, maximum=1)
    initializer_range: float | int = positive(0.02, maximum=10)

    @property
    def frequency_patches(self) -> int:
        """Patches along the frequency axis of one time patch: 8 for 128 mel bins."""
        return self.num_mel_bins // self.patch_size

    def validate_sizes(self):
        """Refuse sizes of which one must divide another and does not."""
        if self.num_mel_bins % self.patch_size:
            raise ValueError(f"num_mel_bins ({self.num_mel_bins}) must be a multiple of patch_size ({self.patch_size})")
        for name in ("num_attention_heads", "conv_pos_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) must be a multiple of {name} ({getattr(self, name)})"
                )

    def validate_layers(self):
        """Refuse kinds of layers that exclude each other."""
        if self.layer_norm_first and self.deep_norm:
            raise ValueError("layer_norm_first and deep_norm exclude each other: DeepNet scales post-norm residuals")

    def validate_position_bias(self):
        """Refuse a gate without a bias, and buckets that no distance reaches."""
        if self.gated_relative_position and not self.relative_position_embedding:
            raise ValueError("gated_relative_position needs relative_position_embedding=True: there is no bias to gate")
        fits = self.num_buckets >= 4 and self.max_distance > self.num_buckets // 4
        if self.relative_position_embedding and not fits:
            raise ValueError(
                f"num_buckets ({self.num_buckets}) must be at least 4, and max_distance ({self.max_distance}) beyond "
                f"the {self.num_buckets // 4} distances that have a bucket of their own"
            )
