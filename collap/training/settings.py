"""Settings of train.py in four groups: from YAML files and the command line, checked before anything is loaded.

A YAML file is flat, `name: value`, whatever the group; names are unique over all groups.
"""

import contextlib
import dataclasses
from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import ClassVar, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from collap.files import nearest, none_by_name
from collap.training.tracking import check_trackers
from modeling_collap.configuration_collap import check_settings

# Settings that may change when a run is resumed: they move no gradient (beyond rounding) and no sample.
FREE_ON_RESUME = (
    "max_bad_share",
    "num_workers",
    "gradient_checkpointing",
    "compile",
    "micro_batch_size",
    "segment_batch_size",
    "max_skipped_steps",
)
# Where a table lies, and what its columns are called: what counts is its content, see collap/data/identity.py.
PLACE_OF_DATA = ("dataset", "dataset_config", "revision", "train_split", "audio_column", "text_column")
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
class DataSettings:
    """Set which songs are read, and how."""

    _argument_group_name: ClassVar[str] = "data"

    dataset: str = _help("", "local folder, table file or Hub id")
    dataset_config: str | None = _help(None, "configuration of a Hub data set")
    revision: str | None = _help(None, "revision of a Hub data set: a branch, tag or commit")
    train_split: str = "train"
    eval_split: str | None = _help("validation", "split for recall, or none for no evaluation")
    audio_column: str = "audio"
    text_column: str = _help("text", "one text or a list of texts for each audio")
    song_column: str | None = _help(None, "rows with the same value are one song")
    duration_column: str | None = _help(None, "seconds of every row; default: read from the files' headers")
    crop_seconds: float | None = _help(None, "train on random crops; default: whole songs")
    sections_column: str | None = _help(None, "lists of a song's sections, with start and end in seconds (and a text)")
    crop_sections: int | None = _help(
        None, "train on crops of 1 to so many neighbouring sections, with their sentences"
    )
    crop_epochs: int | None = _help(None, "epochs at the start that train on crops of sections; default: all")
    drop_times: float = _help(0.0, "share of captions whose clock times are left out")
    drop_sentences: float = _help(0.0, "share of the sentences of a caption that are left out")
    exchange_sections: float = _help(0.0, "share of the whole songs that are heard, and told, with sections exchanged")
    order_negatives: bool = _help(False, "contrast songs with their sentences in another order; monotone alignment")
    streaming: bool = _help(False, "read shards in order instead of opening the whole data set; needs steps_per_epoch")
    steps_per_epoch: int | None = _help(None, "with streaming: steps that count as an epoch")
    cache_features: bool = _help(False, "compute whole songs' features once, keep on disk")
    precomputed: str | None = _help(None, "folder of `collap precompute`: train without running the audio encoders")
    max_bad_share: float = _help(0.01, "share of unreadable files above which the run stops")
    num_workers: int = _help(2, "processes that decode audio")


@dataclass
class ModelSettings:
    """Set which model trains, and what of it."""

    _argument_group_name: ClassVar[str] = "model"

    model: str | None = _help(None, "CoLLAP folder or Hub id to continue from")
    text: str = _help("gpt2", "text encoder: folder or Hub id")
    music: str | None = _help("", "converted BEATs: folder or Hub id, or none for a model without")
    speech: str | None = _help("openai/whisper-small", "Whisper: folder or Hub id, or none for a model without")
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


@dataclass
class OptimisationSettings:
    """How it is trained: the paper's settings."""

    _argument_group_name: ClassVar[str] = "optimisation"

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


@dataclass
class OutputSettings:
    """Set what is written where, and how often; or only planned."""

    _argument_group_name: ClassVar[str] = "output"

    output_dir: str = _help("runs/collap", "folder of the run")
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


@dataclass
class TrainSettings:
    """All settings of a run."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimisation: OptimisationSettings = field(default_factory=OptimisationSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def flat(self) -> dict:
        """Return name -> value over all groups."""
        return {name: value for group in dataclasses.asdict(self).values() for name, value in group.items()}

    def identity(self) -> dict:
        """Return what a resumed run must have in common with the one it continues: all that moves a gradient or a
        sample. A stream has no digest of its content, and its position is that of so many workers."""
        free = {*FREE_ON_RESUME, *(one.name for one in dataclasses.fields(OutputSettings))}
        free = free - {"num_workers"} if self.data.streaming else free | {*PLACE_OF_DATA}
        return {name: value for name, value in self.flat().items() if name not in free}


GROUPS = tuple(get_type_hints(TrainSettings).values())


def known_settings() -> dict[str, type]:
    """Return name -> type over all groups."""
    kinds = [get_type_hints(group) for group in GROUPS]
    return {name: kind for group in kinds for name, kind in group.items() if not name.startswith("_")}


def typed(path: str, name: str, value, kind):
    """Return the value of a YAML file as the type of its field; YAML reads `1e-4` as text, and one tower needs no list.

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
    """Read `--model_config` as YAML; argparse names it in front of the message."""
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ArgumentTypeError(f"{text!r} is not YAML") from error
    if not isinstance(loaded, dict):
        raise ArgumentTypeError(f"{text!r} is no YAML mapping; expected such as '{{projection_dim: 512}}'")
    return loaded


def read_settings(path: str) -> dict:
    """Read the settings of a YAML file; an unknown one is refused with the nearest known name."""
    try:
        loaded = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected `name: value` lines")
    known = known_settings()
    for name in loaded.keys() - known.keys():
        raise ValueError(f"{path}: unknown setting {name!r}; {nearest(name, known)}")
    return {name: typed(path, name, value, known[name]) for name, value in loaded.items()}


def parse_settings(arguments: list[str], description: str = "") -> TrainSettings:
    """Read YAML files first; later ones, and then the command line, override, `model_config` entry by entry.

    Raises:
        ValueError: for unknown names, values of another type, and settings that cannot work.
    """
    settings, model_config, rest = {}, {}, list(arguments)
    while rest and rest[0].endswith((".yaml", ".yml")):
        loaded = read_settings(rest.pop(0))
        model_config |= loaded.get("model_config", {})
        settings |= loaded
    parser = HfArgumentParser(GROUPS, description=description, allow_abbrev=False)
    for action in parser._actions:
        if action.dest == "model_config":
            action.type = model_settings
    parser.set_defaults(**settings)
    *groups, unknown = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0]
        raise ValueError(
            f"unknown argument {unknown[0]!r} (YAML files come first, then --name value); "
            f"{nearest(name, known_settings())}"
        )
    found = TrainSettings(*groups)
    found.model.model_config = {**model_config, **found.model.model_config}
    found.data.eval_split = none_by_name(found.data.eval_split) or None
    found.model.music, found.model.speech = none_by_name(found.model.music), none_by_name(found.model.speech)
    check_train_settings(found)
    return found


def check_train_settings(settings: TrainSettings):
    """Raise a ValueError for settings that cannot work, before anything is loaded."""
    data, model, optimisation, output = settings.data, settings.model, settings.optimisation, settings.output
    if not data.dataset and not output.plan:
        raise ValueError("dataset is missing: name a folder, a table file or a Hub id with --dataset")
    if model.model is None and model.music == "" and not output.plan:
        raise ValueError(
            "music is missing: name a converted BEATs with --music (none for a model of speech alone), or a CoLLAP "
            "model with --model"
        )
    if model.model is None and model.music is None and model.speech is None:
        raise ValueError("music and speech are both none: a CoLLAP model needs one of them")
    if model.model is not None and model.model_config:
        raise ValueError("model_config is for a new model; the one that --model names has its own configuration")
    if "segment_batch_size" in model.model_config:
        raise ValueError("segment_batch_size is no setting of a model any more: give it beside model_config")
    check_settings(model.model_config)
    output.trackers = check_trackers(output.trackers)
    if optimisation.lr_schedule not in SCHEDULES:
        raise ValueError(f"unknown lr_schedule {optimisation.lr_schedule!r}; expected one of {', '.join(SCHEDULES)}")
    _check_numbers(settings.flat())
    if optimisation.batch_size < 2:
        raise ValueError("batch_size is 1: a song is contrasted with the others of its batch, so give at least 2")
    _check_data_settings(data)
    _check_sections(data, model)


def _check_numbers(values: dict):
    counts = ("epochs", "batch_size", "lora_rank", "keep_checkpoints", "eval_every", "log_every", "max_skipped_steps")
    optional = (
        "micro_batch_size",
        "checkpoint_every",
        "steps_per_epoch",
        "plan_tflops",
        "crop_sections",
        "crop_epochs",
    )
    rates = ("text_learning_rate", "audio_learning_rate")
    given = [name for name in (*optional, *rates) if values[name] is not None]
    for name in (*counts, "segment_batch_size", "learning_rate", "max_grad_norm", "max_loss", *given):
        if not values[name] > 0:
            raise ValueError(f"{name} must be positive, found {values[name]}")
    whole = dict.fromkeys(("max_bad_share", "drop_times", "exchange_sections"), 1.001)
    shares = {"warmup_ratio": 1, "drop_sentences": 1, **whole}
    for name, limit in shares.items():
        if not 0 <= values[name] < limit:
            raise ValueError(f"{name} must be a share from 0 to 1, found {values[name]}")
    if values["num_workers"] < 0:
        raise ValueError(f"num_workers must not be negative, found {values['num_workers']}")


def _check_data_settings(data: DataSettings):
    """Raise a ValueError for settings of the data path that exclude or need one another."""
    if data.streaming != (data.steps_per_epoch is not None):
        raise ValueError(
            "streaming and steps_per_epoch go together: a stream has no length, and without streaming the data set "
            f"gives it (found streaming={data.streaming}, steps_per_epoch={data.steps_per_epoch})"
        )
    whole_songs = [name for name in ("cache_features", "precomputed") if getattr(data, name)]
    if data.crop_seconds is not None and whole_songs:
        raise ValueError(f"crop_seconds needs the audio, but {whole_songs[0]} stores whole songs; choose one")
    if data.streaming and whole_songs:
        raise ValueError(f"streaming reads shards, but {whole_songs[0]} needs the whole data set; choose one")
    if len(whole_songs) > 1:
        raise ValueError("precomputed already spares the features that cache_features keeps; choose one")


def _check_sections(data: DataSettings, model: ModelSettings):
    """Raise a ValueError for settings that need the sections of songs and do not have them, or the other way round."""
    readers = [name for name in ("crop_sections", "exchange_sections", "order_negatives") if getattr(data, name)]
    readers += ["location_weight"] if model.model_config.get("location_weight") else []
    if readers and data.sections_column is None:
        raise ValueError(f"{readers[0]} needs the sections of every song: name their column with sections_column")
    if data.crop_epochs and not data.crop_sections:
        raise ValueError(
            f"crop_epochs are those of crop_sections, which is not set, found crop_epochs={data.crop_epochs}"
        )
    if data.sections_column is None:
        return
    if not readers and model.model is None:  # that one may have a location_weight
        raise ValueError(
            "sections_column is given and nothing reads it: set crop_sections, exchange_sections, order_negatives, or "
            "location_weight in model_config"
        )
    if data.streaming or data.crop_seconds is not None:
        other = "streaming" if data.streaming else "crop_seconds"
        raise ValueError(f"sections_column is of songs of a data set that is opened whole, and excludes {other}")
