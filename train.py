"""Train CoLLAP on a data set of audio and text.

    python train.py configs/demo.yaml --text data/demo_backbones/gpt2 --output_dir runs/demo/collap-gpt2
    accelerate launch train.py configs/collap_gpt2.yaml --dataset data/my_songs --text_column captions
    accelerate launch --num_processes 2 train.py configs/collap_roberta.yaml --dataset owner/songs --music beats-iter3

Settings come from YAML files, in order, and then from the command line (`python train.py --help`). Negatives are
gathered across processes with gradient, so the batch that is contrasted has `batch_size` songs over all processes;
gradient accumulation makes steps larger, not the set of negatives. Writes to `output_dir`: `best/` and `last/`, model
folders that `AutoModel` and `AutoProcessor` load, tensorboard logs, and metrics.jsonl with every evaluation.
"""

import json
import math
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, gather_object, set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor, AutoTokenizer, HfArgumentParser, get_scheduler

from evaluate_retrieval import collect_songs, embed_row, embed_texts, retrieval_figures, score_songs
from modeling_collap import CoLLAPModel
from modeling_collap.scoring_collap import distance_from_flat_attention
from processing import CoLLAPProcessor
from processing.audio_text_data import AudioTextCollator, AudioTextDataset, cache_features, open_dataset


@dataclass
class TrainConfig:
    # Data
    dataset: str = field(default="", metadata={"help": "local folder, table file or Hub id"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a Hub data set"})
    train_split: str = "train"
    eval_split: str | None = field(default="validation", metadata={"help": "split for recall during training, or none"})
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
    model_config: dict = field(default_factory=dict, metadata={"help": "settings of CoLLAPConfig (YAML or JSON)"})
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
    log_every: int = field(default=10, metadata={"help": "steps between log lines"})


def parse_config(arguments: list[str]) -> TrainConfig:
    """YAML files first, later ones and then the command line override. Unknown keys end with a message."""
    settings, rest = {}, list(arguments)
    known = [entry.name for entry in fields(TrainConfig)]
    while rest and rest[0].endswith((".yaml", ".yml")):
        path = rest.pop(0)
        loaded = yaml.safe_load(Path(path).read_text()) or {}
        unknown = sorted(loaded.keys() - set(known))
        if unknown:
            raise ValueError(f"{path}: unknown settings {unknown}; the known ones are {known}")
        settings.update(loaded)
    parser = HfArgumentParser(TrainConfig, description=__doc__.split("\n")[0])
    for action in parser._actions:
        if action.dest == "model_config":
            action.type = yaml.safe_load
    parser.set_defaults(**settings)
    (config,) = parser.parse_args_into_dataclasses(rest)
    if not config.dataset:
        raise ValueError("dataset is missing: name a folder, a table file or a Hub id with --dataset")
    if config.model is None and not config.music:
        raise ValueError("music is missing: name a converted BEATs with --music, or a CoLLAP model with --model")
    return config


def build_model_and_processor(config: TrainConfig):
    """The model to continue from, or a new one from pretrained backbones, with its processor."""
    if config.model is not None:
        return AutoModel.from_pretrained(config.model, dtype=torch.float32), AutoProcessor.from_pretrained(config.model)
    model = CoLLAPModel.from_backbones(config.text, config.music, config.speech, **config.model_config)
    return model, CoLLAPProcessor.from_model_config(model.config, AutoTokenizer.from_pretrained(config.text))


def build_data(config: TrainConfig, processor, accelerator: Accelerator):
    """The loader of training batches for all processes, and the evaluation split or None."""
    columns = (config.audio_column, config.text_column, config.dataset_config)
    train_set = open_dataset(config.dataset, config.train_split, *columns)
    eval_set = open_dataset(config.dataset, config.eval_split, *columns) if config.eval_split else None
    if len(train_set) < config.batch_size:
        raise ValueError(f"{config.train_split} has {len(train_set)} rows, fewer than batch_size {config.batch_size}")
    if config.cache_features:
        with accelerator.main_process_first():
            arguments = (processor.feature_extractor, config.audio_column, config.num_workers)
            train_set = cache_features(train_set, *arguments)
            eval_set = cache_features(eval_set, *arguments) if eval_set is not None else None
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
    return {"output": output, "gradient_norm": norm}


@torch.no_grad()
def step_metrics(model, step: dict, learning_rate: float) -> dict[str, float]:
    """What tensorboard shows of a step, computed on the main process's share of the batch."""
    output = step["output"]
    gamma_kernel, gamma_temporal = model.score_parameters.gammas()
    embeds = (output.text_embeds, output.audio_embeds, output.audio_token_mask)
    return {
        "train/loss": output.loss.item(),
        "train/learning_rate": learning_rate,
        "train/gradient_norm": float(step["gradient_norm"] or math.nan),
        "train/gamma_kernel": gamma_kernel.item(),
        "train/gamma_temporal": gamma_temporal.item(),
        "train/attention_temperature": model.score_parameters.temperature().item(),
        # 0: the attention is flat, and the score no more than a mean over the song.
        "train/distance_from_flat_attention": distance_from_flat_attention(
            model.score(*embeds), model.score(*embeds, flat_attention=True)
        ).item(),
    }


def evaluate(accelerator: Accelerator, model, processor, eval_set, config: TrainConfig) -> dict | None:
    """Recall on the evaluation split; every process embeds its share of the songs. Figures on the main process."""
    model.eval()
    songs = collect_songs(eval_set, config.text_column, config.song_column)
    text_embeds = embed_texts(model, processor, songs.texts)
    own = range(accelerator.process_index, len(songs.rows), accelerator.num_processes)
    audios = (embed_row(model, processor, eval_set, songs.rows[song], config.audio_column) for song in own)
    scores = score_songs(model, text_embeds, audios, chunk_size=1024)
    rows = gather_object([(song, row) for song, row in zip(own, scores["collap"], strict=True)])
    model.train()
    if not accelerator.is_main_process:
        return None
    matrix = torch.stack([torch.from_numpy(row) for _, row in sorted(rows, key=lambda item: item[0])]).numpy()
    return retrieval_figures(matrix, songs.song_of_text, songs.names, config.seed)


def save_model(accelerator: Accelerator, model, processor, folder: Path):
    """A folder that `AutoModel` and `AutoProcessor` load; written by the main process."""
    accelerator.unwrap_model(model).save_pretrained(
        folder, is_main_process=accelerator.is_main_process, save_function=accelerator.save
    )
    if accelerator.is_main_process:
        processor.save_pretrained(folder)


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
    steps = config.epochs * math.ceil(len(loader) / config.gradient_accumulation_steps)
    optimizer, scheduler = build_optimizer(config, model, steps * accelerator.num_processes)
    dataset = loader.dataset
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    plain_model = accelerator.unwrap_model(model)
    accelerator.init_trackers("tensorboard")

    best, step, started = -math.inf, 0, time.time()
    progress = tqdm(total=config.epochs * len(loader), disable=not accelerator.is_main_process, desc="training")
    model.train()
    for epoch in range(config.epochs):
        dataset.set_epoch(epoch)
        loader.set_epoch(epoch)
        for batch in loader:
            result = training_step(accelerator, model, optimizer, scheduler, batch, config)
            step += 1
            progress.update()
            if step % config.log_every == 0:
                metrics = step_metrics(plain_model, result, scheduler.get_last_lr()[0])
                accelerator.log(metrics, step=step)
                progress.set_postfix(loss=f"{metrics['train/loss']:.3f}", lr=f"{metrics['train/learning_rate']:.1e}")
        last_epoch = epoch + 1 == config.epochs
        if eval_set is not None and ((epoch + 1) % config.eval_every == 0 or last_epoch):
            figures = evaluate(accelerator, plain_model, processor, eval_set, config)
            better = False
            if accelerator.is_main_process:
                values = summary(figures)
                accelerator.log(values, step=step)
                score = sum(values[f"eval/{direction}/mAP"] for direction in figures) / 2
                better, best = score > best, max(score, best)
                line = {"epoch": epoch + 1, "step": step, "seconds": round(time.time() - started, 1), **values}
                with (output_dir / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                progress.write(f"epoch {epoch + 1}: {one_line(figures)}")
            if gather_object([better])[0]:
                save_model(accelerator, model, processor, output_dir / "best")
    save_model(accelerator, model, processor, output_dir / "last")
    if eval_set is None:
        save_model(accelerator, model, processor, output_dir / "best")
    progress.close()
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
