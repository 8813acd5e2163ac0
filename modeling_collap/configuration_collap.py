"""Configuration of CoLLAP: two audio encoders, a text encoder, and how their embeddings are scored.

Letters as in `modeling_collap.py`: `K` tokens of a segment, `T` tokens of an audio, `H` kernel size.
"""

import copy
import difflib
import math
from collections.abc import Iterable
from typing import Literal

from transformers import AutoConfig, PreTrainedConfig, WhisperConfig

from .configuration_beats import BeatsConfig
from .validation_collap import (
    MAX_LAYERS,
    MAX_WIDTH,
    CheckedConfig,
    check_common,
    check_range,
    checked,
    naming,
    positive,
    ranged,
)

# Which hidden state stands for the text (paper, section II): RoBERTa's first token, GPT-2's last real one.
TEXT_POOLING = {"gpt2": "last", "roberta": "first"}
AUDIO_ENCODERS = ("music", "speech")
MUSIC_FRAMES_PER_SECOND = 100
SPEECH_TOKENS_PER_SECOND = 50
FORMER_SETTINGS = ("config_version", "segment_batch_size")  # of saved configurations; they have no meaning any more
DAY = 86_400  # seconds
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")  # number positions from `pad_token_id + 1`
# Of the text and the speech encoder, whose own configurations check types only; each where the encoder has it.
SIZES = {
    "num_hidden_layers": MAX_LAYERS,
    "hidden_size": MAX_WIDTH,
    "num_attention_heads": 1024,
    "intermediate_size": 4 * MAX_WIDTH,
    "n_inner": 4 * MAX_WIDTH,
    "encoder_ffn_dim": 4 * MAX_WIDTH,
    "vocab_size": 2**24,
    "type_vocab_size": MAX_WIDTH,
    "max_position_embeddings": 2**24,
    "max_source_positions": 2**20,
    "num_mel_bins": 4096,
}


@checked
class CoLLAPConfig(CheckedConfig):
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
        gamma_init_sum: gamma_kernel + gamma_temporal at the start; each begins at half of it. 1 / 0.07 by default, or 1
            beside the scores of sentences, which find more: with equal weights the paper's would outvote those.
        gamma_max: neither grows beyond this (CLIP's bound of the logit scale).
        loss_direction: `"symmetric"` (mean of both directions) or `"audio_to_text"` (Eq. 8).
        text_pooling: `"first"`, `"last"` or `"mean"`; by default the paper's choice for GPT-2 and RoBERTa and
            `"mean"` for any other encoder.
        alignment: how sentences meet time: `"paper"` (one vector for the text, whose score does not see the order of a
            song's sections), `"free"` (a vector for each sentence, which attends where it likes) or `"monotone"` (and
            a sum over the ways to lay the sentences along the song in their order).
        sentence_encoding: with an alignment, how the text encoder reads sentences: `"separate"` (each alone) or
            `"joint"` (those of a text one after the other in one pass, so that each has a vector in its context).
        alignment_frame_seconds: length of the frames to which sentences are laid; they do not overlap.
        sentence_temperature, path_temperature: tau_S and tau_M of those scores.
        path_blank: whether a path may leave frames to no sentence, for captions that do not speak of the whole song.
        gamma_alignment_init: the sum of the weights of those scores at the start.
        location_weight: of [`location_losses`], which training adds to its loss where it is told when sentences are
            heard; 0 for none.
        structure_layers: transformer layers over the frames of the whole song (of `alignment_frame_seconds`), with
            positions relative to one another; 0 is the paper, whose score does not see the order of a song's sections.
        structure_heads: attention heads of those layers.
        initializer_range: standard deviation of the newly initialised projections.

    Raises:
        ValueError: for a value of another type or out of range, or encoders whose time grids do not fit together.
    """

    model_type = "collap"
    # Of every song all moments; and Trainer pads with -100, which is True in a mask.
    keys_to_ignore_at_inference = ["audio_embeds", "audio_token_mask", "text_model_output", "sentence_embeds"]
    sub_configs = {"text_config": AutoConfig, "music_config": BeatsConfig, "speech_config": WhisperConfig}

    text_config: dict | PreTrainedConfig | None = None
    music_config: dict | PreTrainedConfig | None = None
    speech_config: dict | PreTrainedConfig | None = None
    audio_encoders: Literal["both", "music", "speech"] = "both"
    projection_dim: int = positive(512, MAX_WIDTH)
    segment_seconds: float | int = 30
    kernel_seconds: float | int = positive(10.0, DAY)
    stride_seconds: float | int = positive(5.0, DAY)
    score_reduction: Literal["mean", "printed"] = "mean"
    attention_temperature: float | int = positive(1.0, maximum=10**6)
    learn_attention_temperature: bool = False
    gamma_init_sum: float | int | None = positive(None, maximum=10**6)
    gamma_max: float | int = positive(100.0, maximum=10**6)
    loss_direction: Literal["symmetric", "audio_to_text"] = "symmetric"
    text_pooling: Literal["first", "last", "mean"] | None = None
    alignment: Literal["paper", "free", "monotone"] = "paper"
    sentence_encoding: Literal["separate", "joint"] = "separate"
    alignment_frame_seconds: float | int = positive(1.28, DAY)
    sentence_temperature: float | int = positive(0.1, maximum=10**6)
    path_temperature: float | int = positive(0.3, maximum=10**6)
    path_blank: bool = False
    gamma_alignment_init: float | int = positive(2 / 0.07, maximum=10**6)
    location_weight: float | int = ranged(0.0, 0, 10**6)
    structure_layers: int = ranged(0, 0, MAX_LAYERS)
    structure_heads: int = positive(8, maximum=1024)
    initializer_range: float | int = positive(0.02, maximum=10)

    def __post_init__(self, **kwargs):
        self.text_config = _sub_config("text_config", self.text_config, "gpt2")
        self.music_config = _sub_config("music_config", self.music_config, "beats")
        self.speech_config = _sub_config("speech_config", self.speech_config, "whisper")
        self.text_config.use_cache = False  # a text is read once; a decoder's key-value cache would be waste
        if self.text_pooling is None:
            self.text_pooling = TEXT_POOLING.get(self.text_config.model_type, "mean")
        if self.gamma_init_sum is None:
            self.gamma_init_sum = 1 / 0.07 if self.alignment == "paper" else 1.0
        check_encoder("text_config", self.text_config)
        check_text_encoder(self.text_config)
        check_encoder("speech_config", self.speech_config)
        # The encoder gets positions for one segment, so that shorter segments need no padding to 30 s.
        self.speech_config.max_source_positions = segment_positions(self.segment_seconds, self.speech_config)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Read a dictionary as [`CheckedConfig.from_dict`] does, without settings of before."""
        kept = {name: value for name, value in config_dict.items() if name not in FORMER_SETTINGS}
        return super().from_dict(kept, **kwargs)

    @property
    def built_encoders(self) -> tuple[str, ...]:
        """The audio encoders that the model has, in the order of their places in a fused token."""
        return AUDIO_ENCODERS if self.audio_encoders == "both" else (self.audio_encoders,)

    @property
    def fused_width(self) -> int:
        """M, width of a fused token: the hidden sizes of the audio encoders one after the other."""
        widths = {"music": self.music_config.hidden_size, "speech": self.speech_config.d_model}
        return sum(widths[name] for name in self.built_encoders)

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
        """H, tokens of a frame: `floor(K eta_K / segment_seconds)`, at least 1."""
        return max(1, int(self.tokens_per_segment * self.kernel_seconds / self.segment_seconds))

    @property
    def stride(self) -> int:
        """Tokens from one frame to the next: `floor(K eta_S / segment_seconds)`, at least 1."""
        return max(1, int(self.tokens_per_segment * self.stride_seconds / self.segment_seconds))

    @property
    def alignment_frame_size(self) -> int:
        """Tokens of a frame to which sentences are laid, at least 1: 8."""
        return max(1, round(self.alignment_frame_seconds / self.token_seconds))

    @property
    def gamma_inits(self) -> dict[str, float]:
        """The weights of the scores at the start, by name: kernel and temporal, and those of the alignment."""
        paper = dict.fromkeys(("kernel", "temporal"), self.gamma_init_sum / 2)
        added = {"paper": (), "free": ("sentences",), "monotone": ("sentences", "path")}[self.alignment]
        return paper | dict.fromkeys(added, self.gamma_alignment_init / max(len(added), 1))

    def validate_gammas(self):
        """Refuse a bound that the gammas exceed at the start."""
        largest = max(self.gamma_inits.values())
        if self.gamma_max < largest:
            raise ValueError(f"gamma_max ({self.gamma_max}) is below the initial value {largest:.2f}")

    def validate_alignment(self):
        """Refuse blanks where there are no paths, and what is of sentences where texts have none."""
        if self.path_blank and self.alignment != "monotone":
            raise ValueError(f"path_blank is of the alignment 'monotone', found alignment {self.alignment!r}")
        if self.location_weight and self.alignment == "paper":
            raise ValueError("location_weight is of the alignments 'free' and 'monotone', found alignment 'paper'")
        if self.sentence_encoding == "joint" and self.alignment == "paper":
            raise ValueError("sentence_encoding 'joint' needs an alignment, found alignment 'paper'")

    def validate_structure(self):
        """Refuse structure layers whose heads do not share the width evenly."""
        if self.structure_layers and self.projection_dim % (2 * self.structure_heads):
            raise ValueError(
                f"structure_layers ({self.structure_layers}) need a projection_dim ({self.projection_dim}) that "
                f"must be a multiple of twice structure_heads ({self.structure_heads})"
            )

    def validate_speech(self):
        """Refuse a width of the speech encoder that has no sinusoids."""
        if self.speech_config.d_model % 2 or self.speech_config.d_model < 4:
            raise ValueError(f"speech_config.d_model must be even and at least 4, found {self.speech_config.d_model}")

    def validate_time_grid(self):
        """Refuse segments without a whole token, and time patches that no whole number of Whisper tokens spans."""
        if self.tokens_per_segment < 1 or self.music_config.patch_size % 2:
            raise ValueError(
                f"a segment of {self.segment_seconds} s holds no whole time patch of {self.music_config.patch_size} "
                "frames (patch_size must be even, too)"
            )


def check_settings(names: Iterable[str]) -> None:
    """Refuse names that are no setting of a [`CoLLAPConfig`] whose encoders are given. The class itself has to keep
    unknown names, which a saved configuration may hold, so a misspelt setting would silently have no effect.

    Raises:
        ValueError: naming the first unknown name and the nearest setting.
    """
    known = [name for name in CoLLAPConfig.own_settings() if name not in (*CoLLAPConfig.sub_configs, "audio_encoders")]
    for name in names:
        if name == "audio_encoders":
            raise ValueError("audio_encoders follows from the parts: name none for the encoder to do without")
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(known)}"
            raise ValueError(f"{name!r} is no setting of CoLLAPConfig; {hint}")


def text_positions(text_config) -> int | None:
    """Return how many tokens a text encoder can read; None if its configuration states no limit.

    RoBERTa and its kin never use two of their 514, because they number positions from `pad_token_id + 1`.
    """
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and text_config.model_type in COUNT_FROM_PADDING:
        positions -= text_config.pad_token_id + 1
    return positions


def segment_tokens(segment_seconds: float, patch_size: int) -> int:
    """Return K, the whole time patches of a segment, whose Kaldi filter bank has `100 segment_seconds - 2` frames."""
    return (round(MUSIC_FRAMES_PER_SECOND * segment_seconds) - 2) // patch_size


def speech_tokens_per_patch(music_config: BeatsConfig) -> int:
    """Return how many Whisper tokens span one time patch of BEATs: 8."""
    return music_config.patch_size * SPEECH_TOKENS_PER_SECOND // MUSIC_FRAMES_PER_SECOND


def max_segment_seconds(speech_config: WhisperConfig) -> float:
    """Return the longest segment that a speech encoder has positions for; 30 s for pretrained Whisper."""
    return speech_config.max_source_positions / SPEECH_TOKENS_PER_SECOND


def audio_settings(music_config: BeatsConfig | None, speech_config: WhisperConfig | None) -> dict:
    """Return the settings of a [`CoLLAPConfig`] with these audio encoders, None for one that it does without; segments
    are as long as Whisper reads.

    Raises:
        ValueError: both are None.
    """
    if music_config is None and speech_config is None:
        raise ValueError("found neither a music nor a speech encoder; a CoLLAP model needs one of them")
    settings = {"music_config": music_config, "audio_encoders": "music" if speech_config is None else "both"}
    if speech_config is not None:
        settings |= {"speech_config": speech_config, "segment_seconds": max_segment_seconds(speech_config)}
        settings["audio_encoders"] = "speech" if music_config is None else "both"
    return settings


def segment_positions(seconds: float, speech_config: WhisperConfig) -> int:
    """Return how many positions the speech encoder needs for one segment.

    Raises:
        ValueError: it has fewer, or the segment is no whole number of its tokens of 0.02 s.
    """
    limit = max_segment_seconds(speech_config)
    tokens = seconds * SPEECH_TOKENS_PER_SECOND  # in floating point: 2.2 s are 110.00000000000001
    if not 0 < seconds <= limit or not math.isclose(tokens, round(tokens), abs_tol=1e-6):
        raise ValueError(
            f"segment_seconds must be a multiple of 0.02 up to the {limit:g} s that the speech encoder has positions "
            f"for, found {seconds}"
        )
    return round(tokens)


def _sub_config(name: str, config: dict | PreTrainedConfig | None, default: str) -> PreTrainedConfig:
    """Make a configuration of our own: the caller's is never changed.

    Raises:
        ValueError: for a kind or a value that it does not take.
    """
    settings = {} if config is None else config
    model_type = settings.model_type if isinstance(settings, PreTrainedConfig) else settings.get("model_type", default)
    if default in ("beats", "whisper") and model_type != default:
        raise ValueError(f"{name} must be a {default} configuration, found {model_type!r}")
    if isinstance(config, PreTrainedConfig):
        return copy.deepcopy(config)
    settings = {setting: value for setting, value in settings.items() if setting != "model_type"}
    with naming(f"{name}: "):
        return BeatsConfig(**settings) if default == "beats" else AutoConfig.for_model(model_type, **settings)


def check_encoder(name: str, config: PreTrainedConfig) -> None:
    """Refuse what no text or speech encoder can have; their own configurations check types only.

    Args:
        name: of the configuration, for the message.

    Raises:
        ValueError: names the setting.
    """
    check_common(config, f"{name}.")
    ranges = {setting: (1, maximum) for setting, maximum in SIZES.items()}
    for setting in config.to_dict():
        if "drop" in setting or setting.endswith(("_eps", "_epsilon")):
            ranges[setting] = (0, 1)
        elif setting in ("initializer_range", "init_std"):
            ranges[setting] = (0, 10)
    for setting, limits in ranges.items():
        value = getattr(config, setting, None)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with naming(f"{name}.{setting} "):
                check_range(value, *limits)
    heads = getattr(config, "num_attention_heads", None)
    if heads and config.hidden_size % heads:
        raise ValueError(f"{name}: hidden_size ({config.hidden_size}) must be a multiple of {heads} attention heads")


def check_text_encoder(config: PreTrainedConfig) -> None:
    """Refuse a text encoder that cannot read a text alone.

    Raises:
        ValueError: names the setting.
    """
    if config.is_encoder_decoder:
        raise ValueError(
            f"text_config is an encoder-decoder ({config.model_type}); expected an encoder or a decoder such as "
            "roberta, bert or gpt2"
        )
    if getattr(config, "add_cross_attention", False):
        raise ValueError("text_config.add_cross_attention must be false: a text tower has nothing else to attend to")
    padding, vocabulary = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if padding is not None and vocabulary is not None and padding >= vocabulary:
        raise ValueError(f"text_config.pad_token_id must be below vocab_size ({vocabulary}), found {padding}")
    if config.model_type in COUNT_FROM_PADDING and (padding is None or text_positions(config) < 1):
        raise ValueError(
            f"text_config.max_position_embeddings ({config.max_position_embeddings}) must exceed pad_token_id "
            f"({padding}) by at least 2: a {config.model_type} numbers positions from there"
        )
