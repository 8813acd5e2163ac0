"""Train CoLLAP on a data set of audio and text.

    python train.py configs/demo.yaml --text data/demo_backbones/gpt2 --output_dir runs/demo/collap-gpt2
    accelerate launch train.py configs/collap_gpt2.yaml --dataset data/my_songs --text_column captions
    accelerate launch --num_processes 2 train.py configs/collap_roberta.yaml --dataset owner/songs --music beats-iter3
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 train.py configs/demo.yaml    # two processes without a GPU

Settings come from YAML files, in order, and then from the command line (`python train.py --help`). Negatives are
gathered across processes with gradient, so the batch that is contrasted has `batch_size` songs over all processes;
gradient accumulation makes steps larger, not the set of negatives. Writes to `output_dir`: `best/` and `last/`, model
folders that `AutoModel` and `AutoProcessor` load, tensorboard logs, and metrics.jsonl with every evaluation.
"""

import difflib
import json
import math
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, gather_object, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, HfArgumentParser, get_scheduler

from evaluate_retrieval import collect_songs, embed_row, embed_texts, retrieval_figures, score_songs
from modeling_collap import CoLLAPModel
from modeling_collap.configuration_collap import check_settings
from modeling_collap.scoring_collap import distance_from_flat_attention
from processing import CoLLAPProcessor
from processing.audio_text_data import (
    AudioTextCollator,
    AudioTextDataset,
    cache_features,
    check_column,
    open_dataset,
    row_texts,
    worker_message,
)


@dataclass
class TrainConfig:
    # Data
    dataset: str = field(default="", metadata={"help": "local folder, table file or Hub id"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    train_split: str = "train"
    eval_split: str | None = field(
        default="validation", metadata={"help": "split for recall, or none for no evaluation"}
    )
    audio_column: str = "audio"
    text_column: str = field(default="text", metadata={"help": "one text or a list of texts for each audio"})
    song_column: str | None = field(default=None, metadata={"help": "evaluation rows with the same value are one song"})
    crop_seconds: float | None = field(default=None, metadata={"help": "train on random crops; default: whole songs"})
    cache_features: bool = field(default=False, metadata={"help": "compute whole songs' features once, keep on disk"})
    num_workers: int = field(default=2, metadata={"help": "processes that decode audio and compute features"})
    # Model
    model: str | None = field(default=None, metadata={"help": "CoLLAP folder or Hub id to continue from"})
    text: str = field(default="gpt2", metadata={"help": "text encoder: folder or Hub id"})
    music: str = field(default="", metadata={"help": "converted BEATs: folder or Hub id"})
    speech: str = field(default="openai/whisper-small", metadata={"help": "Whisper: folder or Hub id"})
    model_config: dict = field(default_factory=dict, metadata={"help": "settings of CoLLAPConfig for a new model"})
    gradient_checkpointing: bool = False
    # Optimisation: the paper's settings
    epochs: int = 20
    batch_size: int = field(default=50, metadata={"help": "songs contrasted with one another, over all processes"})
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    lr_schedule: str = field(default="linear", metadata={"help": "any schedule of transformers.get_scheduler"})
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the steps with a rising learning rate"})
    max_grad_norm: float = 1.0
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    seed: int = 0
    # Output
    output_dir: str = "runs/collap"
    eval_every: int = field(default=1, metadata={"help": "epochs between evaluations"})
    log_every: int = field(default=10, metadata={"help": "optimizer steps between log lines"})


def read_settings(path: str) -> dict:
    """The settings of a YAML file; an unknown one is refused with the nearest known name."""
    try:
        loaded = yaml.safe_load(Path(path).read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected `name: value` lines")
    known = [entry.name for entry in fields(TrainConfig)]
    for name in loaded.keys() - set(known):
        nearest = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"the known ones are {known}"
        raise ValueError(f"{path}: unknown setting {name!r}; {hint}")
    return loaded


def parse_config(arguments: list[str]) -> TrainConfig:
    """YAML files first; later ones, and then the command line, override, `model_config` entry by entry."""
    settings, model_config, rest = {}, {}, list(arguments)
    while rest and rest[0].endswith((".yaml", ".yml")):
        loaded = read_settings(rest.pop(0))
        model_config |= loaded.get("model_config", {})
        settings |= loaded
    parser = HfArgumentParser(TrainConfig, description=__doc__.split("\n")[0])
    for action in parser._actions:
        if action.dest == "model_config":
            action.type = yaml.safe_load
    parser.set_defaults(**settings)
    (config,) = parser.parse_args_into_dataclasses(rest)
    config.model_config = {**model_config, **config.model_config}
    config.eval_split = None if config.eval_split in (None, "none", "None", "") else config.eval_split
    check_config(config)
    return config


def check_config(config: TrainConfig):
    """Raises a ValueError for settings that cannot work, before anything is loaded."""
    if not config.dataset:
        raise ValueError("dataset is missing: name a folder, a table file or a Hub id with --dataset")
    if config.model is None and not config.music:
        raise ValueError("music is missing: name a converted BEATs with --music, or a CoLLAP model with --model")
    if config.model is not None and config.model_config:
        raise ValueError("model_config is for a new model; the one that --model names has its own configuration")
    check_settings(config.model_config)
    counts = ("epochs", "batch_size", "gradient_accumulation_steps", "eval_every", "log_every")
    for name in (*counts, "learning_rate", "max_grad_norm"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, found {getattr(config, name)}")
    if config.num_workers < 0 or not 0 <= config.warmup_ratio < 1:
        raise ValueError(f"num_workers ({config.num_workers}) or warmup_ratio ({config.warmup_ratio}) is out of range")


def build_model_and_processor(config: TrainConfig):
    """The model to continue from, or a new one from pretrained backbones, with its processor."""
    local_code = {"trust_remote_code": False}  # CoLLAP is imported here; a folder's own code never runs
    if config.model is not None:
        model_type = AutoConfig.from_pretrained(config.model, **local_code).model_type
        if model_type != "collap":
            raise ValueError(f"{config.model} is a {model_type} model; --model expects a CoLLAP model")
        model = AutoModel.from_pretrained(config.model, dtype=torch.float32, **local_code)
        return model, AutoProcessor.from_pretrained(config.model, **local_code)
    model = CoLLAPModel.from_backbones(config.text, config.music, config.speech, **config.model_config)
    return model, CoLLAPProcessor.from_model_config(
        model.config, AutoTokenizer.from_pretrained(config.text, **local_code)
    )


def build_data(config: TrainConfig, processor, accelerator: Accelerator):
    """The loader of training batches for all processes, and the evaluation split or None."""
    columns = (config.audio_column, config.text_column, config.dataset_config)
    train_set = open_dataset(config.dataset, config.train_split, *columns)
    eval_set = open_dataset(config.dataset, config.eval_split, *columns) if config.eval_split else None
    if eval_set is not None and config.song_column:
        check_column(eval_set, config.song_column, config.dataset)
    if len(train_set) < config.batch_size:
        raise ValueError(f"{config.train_split} has {len(train_set)} rows, fewer than batch_size {config.batch_size}")
    if config.cache_features:
        with accelerator.main_process_first():
            arguments = (processor.feature_extractor, config.audio_column, config.num_workers)
            train_set = cache_features(train_set, *arguments)
            eval_set = cache_features(eval_set, *arguments) if eval_set is not None else None
    texts = [text for row, entry in enumerate(train_set[config.text_column]) for text in row_texts(entry, row)]
    processor(text=max(texts, key=len))  # says here, once, if texts will be cut, and not again in every worker
    dataset = AudioTextDataset(
        train_set,
        processor.feature_extractor,
        config.audio_column,
        config.text_column,
        config.crop_seconds,
        config.seed,
    )
    loader = DataLoader(
        dataset,
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=AudioTextCollator(processor),
        num_workers=config.num_workers,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return loader, eval_set


def build_optimizer(config: TrainConfig, model, steps: int):
    """AdamW, no decay on biases, norms and the score's scalars; and the schedule over all steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    warmup = round(config.warmup_ratio * steps)
    return optimizer, get_scheduler(config.lr_schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def training_step(accelerator: Accelerator, model, optimizer, scheduler, batch, config: TrainConfig) -> dict:
    """One backward pass, and an optimizer step if the accumulation is complete; returns detached tensors to log."""
    with accelerator.accumulate(model):
        output = model(**batch, return_loss=True, gather_negatives=True)
        accelerator.backward(output.loss)
        norm = None
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    embeds = (output.text_embeds.detach(), output.audio_embeds.detach(), output.audio_token_mask)
    return {"loss": output.loss.detach(), "embeds": embeds, "gradient_norm": norm}


@torch.no_grad()
def step_metrics(model, result: dict, learning_rate: float) -> dict[str, float]:
    """What tensorboard shows of a step; the distance is that of the main process's share of the batch."""
    gamma_kernel, gamma_temporal = model.score_parameters.gammas()
    scores, flat_scores = (model.score(*result["embeds"], flat_attention=flat) for flat in (False, True))
    return {
        "train/loss": result["loss"].item(),
        "train/learning_rate": learning_rate,
        "train/gradient_norm": float(result["gradient_norm"]),
        "train/gamma_kernel": gamma_kernel.item(),
        "train/gamma_temporal": gamma_temporal.item(),
        "train/attention_temperature": model.score_parameters.temperature().item(),
        # 0: the attention is flat, and the score no more than a mean over the song.
        "train/distance_from_flat_attention": distance_from_flat_attention(scores, flat_scores).item(),
    }


class Evaluations:
    """Recall on the evaluation split after an epoch; keeps the best model, by the mean mAP of both directions."""

    def __init__(self, accelerator: Accelerator, model, processor, eval_set, config: TrainConfig):
        self.accelerator, self.model, self.processor = accelerator, model, processor
        self.eval_set, self.config = eval_set, config
        self.output_dir = Path(config.output_dir)
        self.best, self.started = -math.inf, time.time()
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / "metrics.jsonl").write_text("")

    def figures(self) -> dict | None:
        """The retrieval figures on the main process; every process embeds its share of the songs."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        audio_column = self.config.audio_column
        songs = collect_songs(self.eval_set, self.config.text_column, self.config.song_column)
        self.model.eval()
        text_embeds = embed_texts(self.model, self.processor, songs.texts)
        own = range(process, len(songs.rows), processes)
        audios = (embed_row(self.model, self.processor, self.eval_set, songs.rows[song], audio_column) for song in own)
        scores = score_songs(self.model, text_embeds, audios, chunk_size=1024)["collap"]
        self.model.train()
        rows = gather_object(list(zip(own, scores, strict=True)))
        if not self.accelerator.is_main_process:
            return None
        matrix = np.stack([row for _, row in sorted(rows, key=lambda item: item[0])])
        return retrieval_figures(matrix, songs.song_of_text, songs.names, self.config.seed)

    def run(self, epoch: int, step: int, progress: tqdm):
        """Measures, logs, and saves `best/` if this is it; without an evaluation split the last model is the best."""
        better = self.eval_set is None
        if self.eval_set is not None:
            figures = self.figures()
            if self.accelerator.is_main_process:
                better = self._log(figures, epoch, step)
                progress.write(f"epoch {epoch}: {one_line(figures)}")
        if gather_object([better])[0]:
            self.save("best")

    def _log(self, figures: dict, epoch: int, step: int) -> bool:
        values = summary(figures)
        self.accelerator.log(values, step=step)
        seconds = round(time.time() - self.started, 1)
        line = {"epoch": epoch, "step": step, "processes": self.accelerator.num_processes, "seconds": seconds, **values}
        with (self.output_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        score = sum(values[f"eval/{direction}/mAP"] for direction in figures) / len(figures)
        better, self.best = score > self.best, max(score, self.best)
        return better

    def save(self, name: str):
        """A folder that `AutoModel` and `AutoProcessor` load; written by the main process."""
        if self.accelerator.is_main_process:
            self.model.save_pretrained(self.output_dir / name)
            self.processor.save_pretrained(self.output_dir / name)
        self.accelerator.wait_for_everyone()


def summary(figures: dict) -> dict[str, float]:
    """Flat names for the tracker: eval/text_to_audio/R@5, ..."""
    return {
        f"eval/{direction}/{name}": figure["value"]
        for direction, values in figures.items()
        for name, figure in values.items()
        if isinstance(figure, dict)
    }


def one_line(figures: dict) -> str:
    """What the terminal shows of an evaluation."""
    parts = []
    for direction, values in figures.items():
        shown = [f"{name} {values[name]['value']:.1f}" for name in ("R@1", "R@5", "mAP") if name in values]
        parts.append(f"{direction.replace('_', '-')} {' '.join(shown)} ({values['num_queries']} queries)")
    return f"{', '.join(parts)}, in %"


def main(arguments: list[str]) -> None:
    config = parse_config(arguments)
    output_dir = Path(config.output_dir)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with="tensorboard",
        project_dir=output_dir,
        # split_batches: batch_size counts the songs of all processes, which share the negatives.
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
    )
    set_seed(config.seed)
    model, processor = build_model_and_processor(config)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    loader, eval_set = build_data(config, processor, accelerator)
    dataset = loader.dataset
    steps = config.epochs * math.ceil(len(loader) / config.gradient_accumulation_steps)
    optimizer, scheduler = build_optimizer(config, model, steps)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    accelerator.init_trackers("tensorboard")
    evaluations = Evaluations(accelerator, accelerator.unwrap_model(model), processor, eval_set, config)

    step = 0
    with tqdm(total=steps, disable=not accelerator.is_main_process, desc="training") as progress:
        model.train()
        for epoch in range(config.epochs):
            dataset.set_epoch(epoch)
            loader.set_epoch(epoch)
            for batch in loader:
                result = training_step(accelerator, model, optimizer, scheduler, batch, config)
                if not accelerator.sync_gradients:
                    continue
                step += 1
                progress.update()
                if step % config.log_every == 0:
                    metrics = step_metrics(evaluations.model, result, scheduler.get_last_lr()[0])
                    accelerator.log(metrics, step=step)
                    progress.set_postfix(
                        loss=f"{metrics['train/loss']:.3f}", lr=f"{metrics['train/learning_rate']:.1e}"
                    )
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                evaluations.run(epoch + 1, step, progress)
    evaluations.save("last")
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {worker_message(error)}")
