"""Settings of train.py: from YAML files and the command line, checked before anything is loaded."""

import contextlib
import dataclasses
import difflib
from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from collap.training.tracking import check_trackers
from modeling_collap.configuration_collap import check_settings

# Settings that may change between the parts of a resumed run: they move no sample and no gradient beyond rounding.
FREE_ON_RESUME = (
    "checkpoint_every",
    "compile",
    "hub_model_id",
    "hub_private",
    "keep_checkpoints",
    "license",
    "log_every",
    "max_bad_share",
    "max_skipped_steps",
    "num_workers",
    "output_dir",
    "plan",
    "plan_tflops",
    "push_to_hub",
    "resume",
    "trackers",
)
# Those of transformers.get_scheduler that need no settings of their own.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "constant",
    "constant_with_warmup",
)


def _help(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    # Data
    dataset: str = _help("", "local folder, table file or Hub id")
    dataset_config: str | None = _help(None, "configuration of a Hub data set")
    train_split: str = "train"
    eval_split: str | None = _help("validation", "split for recall, or none for no evaluation")
    audio_column: str = "audio"
    text_column: str = _help("text", "one text or a list of texts for each audio")
    song_column: str | None = _help(None, "evaluation rows with the same value are one song")
    duration_column: str | None = _help(None, "seconds of every row; default: read from the files' headers")
    crop_seconds: float | None = _help(None, "train on random crops; default: whole songs")
    streaming: bool = _help(False, "read shards in order instead of opening the whole data set; needs steps_per_epoch")
    steps_per_epoch: int | None = _help(None, "with streaming: steps that count as an epoch")
    cache_features: bool = _help(False, "compute whole songs' features once, keep on disk")
    precomputed: str | None = _help(None, "folder of precompute_features.py: train without running the audio encoders")
    max_bad_share: float = _help(0.01, "share of unreadable files above which the run stops")
    num_workers: int = _help(2, "processes that decode audio")
    # Model
    model: str | None = _help(None, "CoLLAP folder or Hub id to continue from")
    text: str = _help("gpt2", "text encoder: folder or Hub id")
    music: str = _help("", "converted BEATs: folder or Hub id")
    speech: str = _help("openai/whisper-small", "Whisper: folder or Hub id")
    model_config: dict = field(default_factory=dict, metadata={"help": "settings of CoLLAPConfig for a new model"})
    freeze: list[str] = field(default_factory=list, metadata={"help": "towers that do not train: text, music, speech"})
    lora: list[str] = field(
        default_factory=list, metadata={"help": "towers that train low-rank adapters only: text, music, speech"}
    )
    lora_rank: int = 8
    gradient_checkpointing: list[str] = field(
        default_factory=list, metadata={"help": "towers to recompute in the backward pass: all, or some by name"}
    )
    compile: str | None = _help(None, "torch.compile backend for the encoders, e.g. inductor")
    # Optimisation: the paper's settings
    epochs: int = 20
    batch_size: int = _help(50, "songs contrasted with one another, over all processes")
    micro_batch_size: int | None = _help(None, "songs encoded at a time on a process; bounds memory, not the batch")
    segment_batch_size: int = _help(8, "segments that pass the audio encoders at a time; bounds memory, not the batch")
    learning_rate: float = 1e-4
    text_learning_rate: float | None = _help(None, "of the text tower; default: learning_rate")
    audio_learning_rate: float | None = _help(None, "of both audio encoders; default: learning_rate")
    weight_decay: float = 1e-5
    lr_schedule: str = _help("linear", f"of transformers: {', '.join(SCHEDULES)}")
    warmup_ratio: float = _help(0.0, "share of the steps with a rising learning rate")
    max_grad_norm: float = 1.0
    max_loss: float = _help(100.0, "a step with a higher loss, or one that is not finite, is skipped")
    max_skipped_steps: int = _help(10, "skipped steps in a row after which the run stops")
    mixed_precision: str | None = _help(None, "no, bf16 or fp16; default: what `accelerate launch` was given")
    seed: int = 0
    # Output
    output_dir: str = "runs/collap"
    resume: str | None = _help(None, "latest (a run without checkpoints starts anew), or a checkpoint folder")
    checkpoint_every: int | None = _help(None, "steps between checkpoints; default: at every evaluation only")
    keep_checkpoints: int = _help(2, "checkpoints that are kept, the newest")
    eval_every: int = _help(1, "epochs between evaluations")
    log_every: int = _help(10, "optimizer steps between log lines")
    trackers: list[str] = field(
        default_factory=lambda: ["tensorboard"], metadata={"help": "any of tensorboard, trackio, wandb"}
    )
    push_to_hub: bool = _help(False, "publish best/ at the end, with its card, metrics and logs")
    hub_model_id: str | None = _help(None, "owner/name on the Hub; default: the name of output_dir, under your own")
    hub_private: bool = _help(False, "make the repository private, if it is new")
    license: str | None = _help(None, "of the published weights, e.g. apache-2.0")
    plan: bool = _help(False, "print parameters, memory and time of the run, and do not train")
    plan_tflops: float | None = _help(None, "sustained TFLOP/s of a device, for the plan's times")

    def identity(self) -> dict:
        """What a resumed run must have in common with the one it continues."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in FREE_ON_RESUME}


def typed(path: str, name: str, value, kind):
    """The value of a YAML file as the type of its field; YAML reads `1e-4` as text, and one tower needs no list.

    Raises:
        ValueError: if it is of another type.
    """
    options = [option for option in get_args(kind) if option is not type(None)] if get_origin(kind) is UnionType else []
    if value is None and options:
        return None
    kind = options[0] if options else kind
    plain = get_origin(kind) or kind  # list[str] -> list
    if plain is list and isinstance(value, str):
        return [value]
    if plain is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(value)
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise ValueError(f"{path}: {name} is {value!r}; expected {plain.__name__}")
    return value


def model_settings(text: str) -> dict:
    """`--model_config` as YAML; argparse names it in front of the message."""
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ArgumentTypeError(f"{text!r} is not YAML") from error
    if not isinstance(loaded, dict):
        raise ArgumentTypeError(f"{text!r} is no YAML mapping; expected such as '{{projection_dim: 512}}'")
    return loaded


def _hint(name: str) -> str:
    """What a setting of this unknown name may have meant."""
    known = get_type_hints(TrainConfig)
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"the known ones are {', '.join(known)}"


def read_settings(path: str) -> dict:
    """The settings of a YAML file; an unknown one is refused with the nearest known name."""
    try:
        loaded = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected `name: value` lines")
    known = get_type_hints(TrainConfig)
    for name in loaded.keys() - known.keys():
        raise ValueError(f"{path}: unknown setting {name!r}; {_hint(str(name))}")
    return {name: typed(path, name, value, known[name]) for name, value in loaded.items()}


def parse_config(arguments: list[str], description: str = "") -> TrainConfig:
    """YAML files first; later ones, and then the command line, override, `model_config` entry by entry."""
    settings, model_config, rest = {}, {}, list(arguments)
    while rest and rest[0].endswith((".yaml", ".yml")):
        loaded = read_settings(rest.pop(0))
        model_config |= loaded.get("model_config", {})
        settings |= loaded
    parser = HfArgumentParser(TrainConfig, description=description, allow_abbrev=False)
    for action in parser._actions:
        if action.dest == "model_config":
            action.type = model_settings
    parser.set_defaults(**settings)
    config, unknown = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    if unknown:
        hint = _hint(unknown[0].lstrip("-").split("=")[0])
        raise ValueError(f"unknown argument {unknown[0]!r} (YAML files come first, then --name value); {hint}")
    config.model_config = {**model_config, **config.model_config}
    config.eval_split = None if config.eval_split in (None, "none", "None", "") else config.eval_split
    check_config(config)
    return config


def check_config(config: TrainConfig):
    """Raises a ValueError for settings that cannot work, before anything is loaded."""
    if not config.dataset and not config.plan:
        raise ValueError("dataset is missing: name a folder, a table file or a Hub id with --dataset")
    if config.model is None and not config.music and not config.plan:
        raise ValueError("music is missing: name a converted BEATs with --music, or a CoLLAP model with --model")
    if config.model is not None and config.model_config:
        raise ValueError("model_config is for a new model; the one that --model names has its own configuration")
    check_settings(config.model_config)
    config.trackers = check_trackers(config.trackers)
    if config.lr_schedule not in SCHEDULES:
        raise ValueError(f"unknown lr_schedule {config.lr_schedule!r}; expected one of {', '.join(SCHEDULES)}")
    _check_numbers(config)
    _check_data_settings(config)


def _check_numbers(config: TrainConfig):
    counts = (
        "epochs",
        "batch_size",
        "segment_batch_size",
        "lora_rank",
        "keep_checkpoints",
        "eval_every",
        "log_every",
        "max_skipped_steps",
    )
    optional = ("micro_batch_size", "checkpoint_every", "steps_per_epoch", "plan_tflops")
    rates = ("text_learning_rate", "audio_learning_rate")
    given = [name for name in (*optional, *rates) if getattr(config, name) is not None]
    for name in (*counts, "learning_rate", "max_grad_norm", "max_loss", *given):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, found {getattr(config, name)}")
    for name, limit in (("warmup_ratio", 1), ("max_bad_share", 1.001)):
        if not 0 <= getattr(config, name) < limit:
            raise ValueError(f"{name} must be a share from 0 to 1, found {getattr(config, name)}")
    if config.num_workers < 0:
        raise ValueError(f"num_workers must not be negative, found {config.num_workers}")


def _check_data_settings(config: TrainConfig):
    """Settings of the data path that exclude or need one another."""
    if config.streaming != (config.steps_per_epoch is not None):
        raise ValueError(
            "streaming and steps_per_epoch go together: a stream has no length, and without streaming the data set "
            f"gives it (found streaming={config.streaming}, steps_per_epoch={config.steps_per_epoch})"
        )
    whole_songs = [name for name in ("cache_features", "precomputed") if getattr(config, name)]
    if config.crop_seconds is not None and whole_songs:
        raise ValueError(f"crop_seconds needs the audio, but {whole_songs[0]} stores whole songs; choose one")
    if config.streaming and whole_songs:
        raise ValueError(f"streaming reads shards, but {whole_songs[0]} needs the whole data set; choose one")
    if len(whole_songs) > 1:
        raise ValueError("precomputed already spares the features that cache_features keeps; choose one")
    if config.precomputed and not {"music", "speech"} <= set(config.freeze):
        raise ValueError(
            "precomputed holds what the frozen audio encoders made of every song: it needs --freeze music speech, "
            f"found freeze={config.freeze}"
        )
