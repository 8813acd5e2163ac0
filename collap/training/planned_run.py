"""The plan of the run that the settings of train.py describe: what `--plan` prints."""

import dataclasses
import json
import math
from pathlib import Path

from accelerate import PartialState
from transformers import AutoConfig, AutoTokenizer

from collap.data.samples import open_dataset, row_texts, song_seconds
from collap.files import write_json
from collap.models import load_config
from collap.training.cost import COMPARED, PAPER, Workload, paper_config, plan
from collap.training.settings import TrainConfig
from modeling_collap import CoLLAPConfig
from modeling_collap.configuration_collap import max_segment_seconds

FILE = "plan.json"
PLANNED_TEXTS = 256  # rows whose texts are counted


def planned_model(config: TrainConfig) -> CoLLAPConfig:
    """Configuration of the model that would be trained; without a named one, of the paper's parts."""
    if config.model is not None:
        return load_config(config.model)
    if config.music:
        names = (config.text, config.music, config.speech)
        parts = [AutoConfig.from_pretrained(name, trust_remote_code=False) for name in names]
    else:
        paper = paper_config("roberta" if "roberta" in config.text else "gpt2")
        parts = [paper.text_config, paper.music_config, paper.speech_config]
    return CoLLAPConfig(*parts, **{"segment_seconds": max_segment_seconds(parts[2]), **config.model_config})


def planned_workload(config: TrainConfig, model_config: CoLLAPConfig) -> Workload:
    """The run that the settings describe, of a [`planned_model`]; without a data set, over the paper's songs."""
    processes = PartialState().num_processes
    settings = {
        name: getattr(config, name)
        for name in ("batch_size", "micro_batch_size", "segment_batch_size", "epochs", "lora_rank")
    }
    settings |= {name: tuple(getattr(config, name)) for name in ("lora", "gradient_checkpointing")}
    settings |= {"frozen": tuple(config.freeze), "precomputed_tokens": bool(config.precomputed)}
    if not config.dataset:
        precision = config.mixed_precision or PAPER.mixed_precision
        processes = processes if processes > 1 else PAPER.num_processes
        return dataclasses.replace(PAPER, **settings, num_processes=processes, mixed_precision=precision)
    if config.streaming:
        raise ValueError("a stream does not tell how many songs it has: plan without --streaming, or without --dataset")
    columns = (config.audio_column, config.text_column, config.dataset_config)
    rows = open_dataset(config.dataset, config.train_split, *columns)
    seconds = song_seconds(rows, config.audio_column, config.duration_column, config.num_workers)
    seconds = [min(one, config.crop_seconds or math.inf) for one in seconds if one > 0]
    if not seconds:
        raise ValueError(f"{config.dataset}: none of the {len(rows)} files of {config.train_split} can be read")
    tokenizer = AutoTokenizer.from_pretrained(config.model or config.text, trust_remote_code=False)
    positions = model_config.text_positions or math.inf
    sample = rows.select(range(min(PLANNED_TEXTS, len(rows))))[config.text_column]
    texts = [text for row, entry in enumerate(sample) for text in row_texts(entry, row)]
    return Workload(
        songs=len(rows),
        mean_seconds=sum(seconds) / len(seconds),
        max_seconds=max(seconds),
        num_processes=processes,
        text_tokens=min(positions, max(len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"])),
        mixed_precision=config.mixed_precision or "no",
        **settings,
    )


def plan_run(config: TrainConfig) -> str:
    """What `--plan` prints; kept in `output_dir`, where a run's summary compares itself with it."""
    model_config = planned_model(config)
    planned = plan(model_config, planned_workload(config, model_config), config.plan_tflops)
    if PartialState().is_main_process:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        write_json(Path(config.output_dir) / FILE, planned.to_dict())
    return planned.to_text()


def read_plan(output_dir: Path) -> dict | None:
    """The plan that `--plan` has left in `output_dir`, if any; a ValueError if it is damaged."""
    path = output_dir / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return {name: found[name] for name in COMPARED}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no plan ({error!r}); delete it, or write it anew with --plan") from error
