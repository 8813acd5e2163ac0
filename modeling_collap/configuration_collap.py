"""Configuration of CoLLAP: two audio encoders, a text encoder, and how their embeddings are scored."""

import copy
import difflib
import inspect
import math
from collections.abc import Iterable

from transformers import AutoConfig, PreTrainedConfig, WhisperConfig

from .configuration_beats import BeatsConfig

# Which hidden state stands for the text (paper, section II): RoBERTa's first token, GPT-2's last real one.
TEXT_POOLING = {"gpt2": "last", "roberta": "first"}
MUSIC_FRAMES_PER_SECOND = 100
SPEECH_TOKENS_PER_SECOND = 50
FORMER_SETTINGS = ("config_version", "segment_batch_size")  # of saved configurations; they have no meaning any more


class CoLLAPConfig(PreTrainedConfig):
    r"""Settings of a [`CoLLAPModel`].

    Args:
        text_config: configuration (or its dict) of any `AutoModel` text encoder; GPT-2 by default.
        music_config: a [`BeatsConfig`] or its dict.
        speech_config: a `WhisperConfig` or its dict; only the encoder is built.
        projection_dim: D, width of the shared space.
        segment_seconds: length of the consecutive segments that the audio encoders read; 30 for pretrained Whisper,
            never longer than its positions.
        kernel_seconds, stride_seconds: length and stride of the frames in which moments are scored (eta_K and eta_S of
            the paper, which does not print their values).
        score_reduction: `"mean"` (a score that does not grow with the song) or `"printed"` (Eqs. 5-6 to the letter).
        attention_temperature: divides the cosines inside both softmaxes (1.0 = Eqs. 3-4).
        learn_attention_temperature: whether training may change it.
        gamma_init_sum: gamma_kernel + gamma_temporal at the start; each begins at half of it.
        gamma_max: neither grows beyond this (CLIP's bound of the logit scale).
        loss_direction: `"symmetric"` (mean of both directions) or `"audio_to_text"` (Eq. 8).
        text_pooling: `"first"`, `"last"` or `"mean"`; by default the paper's choice for GPT-2 and RoBERTa and
            `"mean"` for any other encoder.
        structure_layers: transformer layers over the whole song's tokens, with positions in seconds; 0 is the paper,
            whose score does not see the order of a song's sections.
        structure_heads: attention heads of those layers.
        initializer_range: standard deviation of the newly initialised projections.

    Raises:
        ValueError: for a value outside of these ranges, or encoders whose time grids do not fit together.
    """

    model_type = "collap"
    # Of every song all moments; and Trainer pads with -100, which is True in a mask.
    keys_to_ignore_at_inference = ["audio_embeds", "audio_token_mask"]
    sub_configs = {"text_config": AutoConfig, "music_config": BeatsConfig, "speech_config": WhisperConfig}

    def __init__(
        self,
        text_config: dict | PreTrainedConfig | None = None,
        music_config: dict | BeatsConfig | None = None,
        speech_config: dict | WhisperConfig | None = None,
        projection_dim: int = 512,
        segment_seconds: float = 30,
        kernel_seconds: float = 10.0,
        stride_seconds: float = 5.0,
        score_reduction: str = "mean",
        attention_temperature: float = 1.0,
        learn_attention_temperature: bool = False,
        gamma_init_sum: float = 1 / 0.07,
        gamma_max: float = 100.0,
        loss_direction: str = "symmetric",
        text_pooling: str | None = None,
        structure_layers: int = 0,
        structure_heads: int = 8,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        self.text_config = _sub_config(text_config, "gpt2")
        self.music_config = _sub_config(music_config, "beats")
        self.speech_config = _sub_config(speech_config, "whisper")
        self.text_config.use_cache = False  # a text is read once; a decoder's key-value cache would be waste
        self.projection_dim = projection_dim
        self.segment_seconds = segment_seconds
        self.kernel_seconds = kernel_seconds
        self.stride_seconds = stride_seconds
        self.score_reduction = score_reduction
        self.attention_temperature = attention_temperature
        self.learn_attention_temperature = learn_attention_temperature
        self.gamma_init_sum = gamma_init_sum
        self.gamma_max = gamma_max
        self.loss_direction = loss_direction
        self.text_pooling = text_pooling or TEXT_POOLING.get(self.text_config.model_type, "mean")
        self.structure_layers = structure_layers
        self.structure_heads = structure_heads
        self.initializer_range = initializer_range
        self._check()
        # The encoder gets positions for one segment, so that shorter segments need no padding to 30 s.
        self.speech_config.max_source_positions = round(segment_seconds * SPEECH_TOKENS_PER_SECOND)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Read a dictionary as [`~transformers.PreTrainedConfig.from_dict`] does, without settings of before."""
        kept = {name: value for name, value in config_dict.items() if name not in FORMER_SETTINGS}
        return super().from_dict(kept, **kwargs)

    @property
    def tokens_per_segment(self) -> int:
        """K, fused tokens of one segment: 187 for 30 s."""
        return segment_tokens(self.segment_seconds, self.music_config.patch_size)

    @property
    def text_positions(self) -> int | None:
        """Tokens that the text encoder can read; None if its configuration states no limit."""
        return text_positions(self.text_config)

    @property
    def token_seconds(self) -> float:
        """Seconds that one fused token covers: 0.16."""
        return self.music_config.patch_size / MUSIC_FRAMES_PER_SECOND

    @property
    def speech_tokens_per_patch(self) -> int:
        """Whisper tokens that span one time patch: 8."""
        return speech_tokens_per_patch(self.music_config)

    @property
    def kernel_size(self) -> int:
        """H, tokens of a frame: `floor(T eta_K / L)` with the T of one segment, at least 1."""
        return max(1, int(self.tokens_per_segment * self.kernel_seconds / self.segment_seconds))

    @property
    def stride(self) -> int:
        """S, tokens from one frame to the next: `floor(T eta_S / L)` with the T of one segment, at least 1."""
        return max(1, int(self.tokens_per_segment * self.stride_seconds / self.segment_seconds))

    def _check(self):
        _one_of("score_reduction", self.score_reduction, ("mean", "printed"))
        _one_of("loss_direction", self.loss_direction, ("symmetric", "audio_to_text"))
        _one_of("text_pooling", self.text_pooling, ("first", "last", "mean"))
        positive = ("projection_dim", "kernel_seconds", "stride_seconds", "attention_temperature", "gamma_init_sum")
        for name in (*positive, "structure_heads"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if self.gamma_max < self.gamma_init_sum / 2:
            raise ValueError(f"gamma_max ({self.gamma_max}) is below the initial value {self.gamma_init_sum / 2:.2f}")
        if self.structure_layers < 0 or (self.structure_layers and self.projection_dim % (2 * self.structure_heads)):
            raise ValueError(
                f"structure_layers ({self.structure_layers}) must not be negative, and projection_dim "
                f"({self.projection_dim}) must be a multiple of twice structure_heads ({self.structure_heads})"
            )
        if self.text_config.is_encoder_decoder:
            raise ValueError(
                f"text_config is an encoder-decoder ({self.text_config.model_type}); expected an encoder or a decoder "
                "such as roberta, bert or gpt2"
            )
        self._check_time_grid()

    def _check_time_grid(self):
        seconds, limit = self.segment_seconds, max_segment_seconds(self.speech_config)
        speech_tokens = seconds * SPEECH_TOKENS_PER_SECOND  # in floating point: 2.2 s are 110.00000000000001
        if not 0 < seconds <= limit or not math.isclose(speech_tokens, round(speech_tokens), abs_tol=1e-6):
            raise ValueError(
                f"segment_seconds must be a multiple of 0.02 up to the {limit:g} s that the speech encoder has "
                f"positions for, found {seconds}"
            )
        if self.tokens_per_segment < 1 or self.music_config.patch_size % 2:
            raise ValueError(
                f"a segment of {seconds} s holds no whole time patch of {self.music_config.patch_size} frames "
                "(patch_size must be even, too)"
            )


def check_settings(names: Iterable[str]) -> None:
    """Refuses names that are no setting of a [`CoLLAPConfig`] whose encoders are given. The class itself has to keep
    unknown names, which a saved configuration may hold, so a misspelt setting would silently have no effect.

    Raises:
        ValueError: naming the first unknown name and the nearest setting.
    """
    parameters = inspect.signature(CoLLAPConfig.__init__).parameters
    known = [name for name in parameters if name not in ("self", "kwargs", *CoLLAPConfig.sub_configs)]
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(known)}"
            raise ValueError(f"{name!r} is no setting of CoLLAPConfig; {hint}")


def text_positions(text_config) -> int | None:
    """Tokens that a text encoder can read; None if its configuration states no limit.

    RoBERTa and its kin number positions from `pad_token_id + 1`, so two of RoBERTa's 514 are never used.
    """
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and text_config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= text_config.pad_token_id + 1
    return positions


def segment_tokens(segment_seconds: float, patch_size: int) -> int:
    """Return K, the whole time patches of a segment, whose Kaldi filter bank has `100 segment_seconds - 2` frames."""
    return (round(MUSIC_FRAMES_PER_SECOND * segment_seconds) - 2) // patch_size


def speech_tokens_per_patch(music_config: BeatsConfig) -> int:
    """Return how many Whisper tokens span one time patch of BEATs: 8."""
    return music_config.patch_size * SPEECH_TOKENS_PER_SECOND // MUSIC_FRAMES_PER_SECOND


def max_segment_seconds(speech_config: WhisperConfig) -> float:
    """The longest segment that a speech encoder has positions for; 30 for pretrained Whisper."""
    return speech_config.max_source_positions / SPEECH_TOKENS_PER_SECOND


def _sub_config(config: dict | PreTrainedConfig | None, default: str) -> PreTrainedConfig:
    """A configuration of our own: the caller's is never changed."""
    if isinstance(config, PreTrainedConfig):
        return copy.deepcopy(config)
    settings = dict(config or {})
    model_type = settings.pop("model_type", default)
    if default == "beats":
        return BeatsConfig(**settings)
    return AutoConfig.for_model(model_type, **settings)


def _one_of(name: str, value: str, allowed: tuple[str, ...]):
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")
