"""Train CoLLAP on a data set of audio and text.

    python train.py configs/demo.yaml --text data/demo_backbones/gpt2 --output_dir runs/demo/collap-gpt2
    accelerate launch train.py configs/collap_gpt2.yaml --dataset data/my_songs --music beats-iter3 --resume latest
    accelerate launch --config_file configs/accelerate/multi_gpu_ddp.yaml train.py configs/collap_roberta.yaml ...
    python train.py configs/collap_gpt2.yaml --plan    # parameters, memory and time, without training

Settings come from YAML files, in order, and then from the command line (`python train.py --help`). `batch_size` songs
are contrasted with one another over all processes; `micro_batch_size` bounds memory without changing the gradients.
Writes to `output_dir`: `best/` and `last/`, model folders that `AutoModel` and `AutoProcessor` load; `checkpoints/`,
from which `--resume latest` continues a killed run exactly; metrics.jsonl, summary.json, and the trackers' logs.
`--push_to_hub` publishes `best/` at the end, with a card that says what was measured.

The loop is below; what it uses is in training/: settings, data, parts (what trains), gradient_cache (one step),
evaluation, checkpoints, tracking and plan.
"""

import copy
import dataclasses
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, gather_object, set_seed
from tqdm.auto import tqdm
from transformers import AutoTokenizer, get_scheduler

from collap.data.batches import BadFiles, check_processes
from collap.data.samples import worker_message
from collap.files import write_folder
from collap.hub.golden import write_golden
from collap.hub.publish import check_can_publish, publish
from collap.models import load_folder
from collap.training.checkpoints import Checkpoints, whole_checkpoints
from collap.training.distributed import prepare, whole_model
from collap.training.loaders import StreamData, TableData, build_eval_data, build_train_data
from collap.training.planned_run import plan_run, read_plan
from collap.training.settings import TrainConfig, parse_config
from collap.training.step import ContrastiveStep, contrastive_step
from collap.training.tracking import RunSummary, StepMeter, start_trackers, step_metrics
from collap.training.trainable import (
    add_lora,
    compile_encoders,
    enable_gradient_checkpointing,
    freeze,
    parameter_groups,
    save_model,
    trainable_summary,
)
from collap.training.validation import Evaluations
from modeling_collap import CoLLAPModel
from processing import CoLLAPProcessor

STATEFUL = ("evaluations", "bad_files", "summary")  # parts of a run with a state of their own


@dataclass
class SkippedSteps:
    """Steps without an update, because their loss or gradient was unusable."""

    limit: int
    total: int = 0
    in_a_row: int = 0

    def add(self, reason: str, names: list[str]):
        """ValueError that names the batch after `limit` steps in a row."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise ValueError(
                f"{self.in_a_row} steps in a row had no usable gradient ({reason}); the last batch was "
                f"{', '.join(names)}; lower the learning rate, or look at those files"
            )


@dataclass
class Run:
    """What a training run is made of, and how far it is."""

    config: TrainConfig
    accelerator: Accelerator
    model: torch.nn.Module  # prepared: training calls nothing but its forward
    processor: CoLLAPProcessor
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    data: TableData | StreamData
    evaluations: Evaluations
    checkpoints: Checkpoints
    meter: StepMeter
    summary: RunSummary
    bad_files: BadFiles
    skipped: SkippedSteps
    steps: int
    step: int = 0
    data_state: dict | None = None

    def save_checkpoint(self):
        """All that a resumed run needs; called by all processes."""
        progress = {
            "step": self.step,
            "scheduler": self.scheduler.state_dict(),
            "data": gather_object([self.data_state]),
            "skipped": [self.skipped.total, self.skipped.in_a_row],
        }
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        self.checkpoints.save(self.step, progress | parts)

    def resume(self, path: Path):
        """Continues after the last step of a checkpoint; last of all set-up, because it sets the random state."""
        progress = self.checkpoints.load(path)
        self.step = progress["step"]
        self.scheduler.load_state_dict(progress["scheduler"])
        self.data_state = progress["data"][self.accelerator.process_index]
        self.skipped.total, self.skipped.in_a_row = progress["skipped"]
        for name in STATEFUL:
            getattr(self, name).load_state_dict(progress[name])

    def write_summary(self):
        """summary.json; with a plan in `output_dir`, also how the run compares with it."""
        epoch, best = self.step / self.data.steps_per_epoch, self.evaluations.best_figure()
        counts = {"skipped_steps": self.skipped.total, "bad_files": len(self.bad_files.reasons)}
        self.summary.write(self.step, epoch, best, **counts, finished=self.step == self.steps)


def build_model_and_processor(config: TrainConfig):
    """The model to continue from, or a new one from pretrained backbones, with its processor."""
    if config.model is not None:
        model, processor = load_folder(config.model)
    else:
        model = CoLLAPModel.from_backbones(config.text, config.music, config.speech, **config.model_config)
        tokenizer = AutoTokenizer.from_pretrained(config.text, trust_remote_code=False)
        processor = CoLLAPProcessor.from_model_config(model.config, tokenizer)
    model.audio_tower.segment_batch_size = config.segment_batch_size
    return model, processor


def choose_what_trains(config: TrainConfig, model, processor, accelerator: Accelerator):
    """Frozen towers, LoRA, gradient checkpointing and compilation, in place."""
    freeze(model, config.freeze)
    if config.lora:
        base = config.model or str(Path(config.output_dir) / "base")  # what a saved adapter belongs to
        is_new = not whole_checkpoints(Path(config.output_dir) / "checkpoints")
        if config.model is None and is_new and accelerator.is_main_process:
            write_folder(Path(base), lambda folder: save_model(model, processor, folder))
        add_lora(model, config.lora, config.lora_rank, base)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(model, config.gradient_checkpointing)
    if config.compile:
        compile_encoders(model, config.compile)
    accelerator.print(trainable_summary(model))


def check_output_dir(config: TrainConfig):
    """Makes the folder; ValueError or OSError, before anything is loaded, if this run cannot have it."""
    if config.resume is None and whole_checkpoints(Path(config.output_dir) / "checkpoints"):
        raise ValueError(
            f"{config.output_dir} holds a run with checkpoints: continue it with --resume latest, name another "
            "--output_dir, or delete it"
        )
    try:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"output_dir {config.output_dir} cannot be made ({error.strerror}); name another") from error
    if not os.access(config.output_dir, os.W_OK):
        raise OSError(f"output_dir {config.output_dir} is read-only; name another")


def hub_settings(config: TrainConfig) -> dict:
    """Of [`publish`] and [`check_can_publish`]."""
    name = config.hub_model_id or Path(config.output_dir).resolve().name
    return {"repo_id": name, "private": config.hub_private, "license": config.license}


def check_hub(config: TrainConfig, accelerator: Accelerator):
    """Makes the repository; all processes raise the ValueError if the main one cannot."""
    problem = None
    if accelerator.is_main_process:
        try:
            check_can_publish(**hub_settings(config))
        except (OSError, ValueError) as error:
            problem = str(error)
    (problem, *_) = gather_object([problem])  # that of the main process
    if problem is not None:
        raise ValueError(problem)


def finish(run: Run):
    """Golden vectors for the best model, as it is on disk, and the Hub if it is to go there."""
    best = Path(run.config.output_dir) / "best"
    write_golden(*load_folder(best), best)
    if run.config.push_to_hub:
        run.accelerator.print(f"published: {publish(best, **hub_settings(run.config)).commit_url}")


def build_optimizer(config: TrainConfig, model, steps: int):
    """AdamW over what trains, and the schedule of its learning rates."""
    groups = parameter_groups(
        model, config.learning_rate, config.weight_decay, config.text_learning_rate, config.audio_learning_rate
    )
    optimizer = torch.optim.AdamW(groups)
    warmup = round(config.warmup_ratio * steps)
    return optimizer, get_scheduler(config.lr_schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def build_run(config: TrainConfig) -> Run:
    """Everything in its place, before the first step.

    Raises:
        ValueError, OSError: for settings, folders and files that cannot work; says which.
    """
    check_output_dir(config)
    output_dir = Path(config.output_dir)
    # The others wait while the main process measures all songs, computes features, or evaluates.
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    accelerator = Accelerator(mixed_precision=config.mixed_precision, project_dir=output_dir, kwargs_handlers=[waiting])
    check_processes(accelerator)
    if config.push_to_hub:
        check_hub(config, accelerator)
    set_seed(config.seed)
    model, processor = build_model_and_processor(config)
    data = build_train_data(config, model, processor, accelerator)
    eval_set, eval_tokens = build_eval_data(config, model, processor, accelerator)
    choose_what_trains(config, model, processor, accelerator)
    steps = config.epochs * data.steps_per_epoch
    optimizer, scheduler = build_optimizer(config, model, steps)
    model_config = copy.deepcopy(model.config)
    prepared, optimizer = prepare(accelerator, model, optimizer, config.batch_size, config.max_grad_norm)
    set_seed(config.seed, device_specific=True)  # every process its own dropout
    unwrapped = accelerator.unwrap_model(prepared)

    def save(name: str, results: dict | None = None):
        whole, state = whole_model(accelerator, prepared, model_config)
        if accelerator.is_main_process:
            write_folder(output_dir / name, lambda folder: save_model(whole, processor, folder, state, results))
        accelerator.wait_for_everyone()

    identity = config.identity() | {"num_processes": accelerator.num_processes}
    identity |= {"mixed_precision": accelerator.mixed_precision, "rows": data.num_rows}
    meter = StepMeter(model_config, config.micro_batch_size)
    return Run(
        config=config,
        accelerator=accelerator,
        model=prepared,
        processor=processor,
        optimizer=optimizer,
        scheduler=scheduler,
        data=data,
        evaluations=Evaluations(accelerator, unwrapped, processor, eval_set, eval_tokens, config, save),
        checkpoints=Checkpoints(accelerator, output_dir / "checkpoints", identity, config.keep_checkpoints),
        meter=meter,
        summary=RunSummary(accelerator, output_dir, dataclasses.asdict(config), meter, read_plan(output_dir)),
        bad_files=BadFiles(config.max_bad_share, data.num_rows),
        skipped=SkippedSteps(config.max_skipped_steps),
        steps=steps,
    )


def start_or_resume(run: Run):
    """A new run, or the rest of the one that `--resume` names."""
    config, accelerator = run.config, run.accelerator
    checkpoint = run.checkpoints.find(config.resume) if config.resume else None
    if checkpoint is not None:
        run.resume(checkpoint)
        accelerator.print(f"resumed from {checkpoint} ({run.step} of {run.steps} steps)")
    elif config.resume:
        accelerator.print(f"{config.output_dir} has no checkpoint: starting anew")
    run.evaluations.forget_from(run.step)
    start_trackers(accelerator, config.trackers, dataclasses.asdict(config), config.output_dir, run.step)


def update_weights(run: Run, result: ContrastiveStep, names: list[str]) -> float:
    """The optimizer's step, unless the gradient is unusable; the schedule goes on in any case."""
    norm, reason = math.nan, f"loss {result.loss.item():.3g}, allowed is {run.config.max_loss:g}"
    if result.has_gradients:
        norm = float(run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.max_grad_norm))
        reason = f"gradient norm {norm:.3g}"
    scaler = run.accelerator.scaler if result.has_gradients else None
    if math.isfinite(norm) or scaler is not None:
        run.optimizer.step()
    # float16 starts with scales that overflow: its scaler then leaves the weights as they are, and lowers its scale.
    if math.isfinite(norm) or (scaler is not None and scaler.get_scale() >= 1):
        run.skipped.in_a_row = 0
    else:
        run.skipped.add(reason, gather_object(names))
    run.optimizer.zero_grad()
    run.scheduler.step()
    return norm


def log_step(run: Run, result: ContrastiveStep, norm: float, progress: tqdm):
    unwrapped = run.accelerator.unwrap_model(run.model)
    metrics = step_metrics(unwrapped, result, run.optimizer.param_groups, norm, run.skipped.total)
    run.accelerator.log(metrics | run.meter.figures(run.accelerator), step=run.step)
    progress.set_postfix(loss=f"{result.loss.item():.3f}", lr=f"{run.optimizer.param_groups[-1]['lr']:.1e}")


def agree(run: Run, stop: bool, skipped: list[tuple[str, str]], say: Callable[[str], None]) -> bool:
    """Whether any process was asked to stop; bad files of any process are counted by all."""
    flags = torch.tensor([stop, bool(skipped)], dtype=torch.int32, device=run.accelerator.device)
    stops, bad = run.accelerator.reduce(flags).tolist()
    found = gather_object(skipped) if bad else []
    for name, reason in found if run.accelerator.is_main_process else ():
        say(f"skipped {name}: {reason}")
    run.bad_files.add(found, num_read=run.config.batch_size)
    return stops > 0


def train(run: Run) -> bool:
    """Steps until the end, True, or until SIGTERM asks for it, False. An evaluation comes after its step's checkpoint,
    so that nothing is lost if the program is killed or fails meanwhile; a resumed run repeats it."""
    asked_to_stop = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked_to_stop.append(number))
    run.model.train()
    hidden = not run.accelerator.is_main_process
    with (
        closing(run.meter.batches(run.data.batches(run.step, run.data_state))) as batches,  # closing ends the workers
        tqdm(total=run.steps, initial=run.step, disable=hidden, desc="training") as progress,
    ):
        if evaluation_is_due(run):  # the run was killed after this step's checkpoint
            evaluate(run, progress)
        while run.step < run.steps:
            stop = take_step(run, next(batches), progress, asked_to_stop)
            every = run.config.checkpoint_every
            if stop or evaluation_is_due(run) or (every and run.step % every == 0):
                run.save_checkpoint()
            if stop and run.step < run.steps:
                progress.close()
                run.accelerator.print(f"stopped by SIGTERM after step {run.step}; go on with --resume latest")
                return False
            if evaluation_is_due(run):
                evaluate(run, progress)
    return True


def take_step(run: Run, batch, progress: tqdm, asked_to_stop: list) -> bool:
    """One step, logged if it is its turn; returns whether to stop after it."""
    config = run.config
    with run.meter.step(batch.seconds):
        extractor = run.processor.feature_extractor
        result = contrastive_step(
            run.accelerator, run.model, batch, extractor, config.micro_batch_size, config.max_loss
        )
        norm = update_weights(run, result, batch.names)
    run.step += 1
    run.data_state = run.data.state_after(run.data_state, batch)
    progress.update()
    if run.step % config.log_every == 0:
        log_step(run, result, norm, progress)
    return agree(run, bool(asked_to_stop), batch.skipped, progress.write)


def evaluation_is_due(run: Run) -> bool:
    """After every `eval_every`-th epoch and the last one."""
    epoch, into_epoch = divmod(run.step, run.data.steps_per_epoch)
    return run.step > 0 and into_epoch == 0 and (epoch % run.config.eval_every == 0 or epoch == run.config.epochs)


def evaluate(run: Run, progress: tqdm):
    run.evaluations.run(run.step // run.data.steps_per_epoch, run.step, progress.write)
    run.write_summary()


def main(arguments: list[str]) -> None:
    config = parse_config(arguments, __doc__.split("\n")[0])
    if config.plan:
        PartialState().print(plan_run(config))
        return
    run = build_run(config)
    start_or_resume(run)
    is_finished = train(run)
    if is_finished:
        run.evaluations.save("last")
    run.write_summary()
    run.accelerator.end_training()
    if is_finished and run.accelerator.is_main_process:
        finish(run)


def run_script(arguments: list[str]) -> None:
    """`main`, with what a user can do something about as one line instead of a traceback."""
    problem = None
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        problem = f"error: {worker_message(error)}"
    if problem is not None:  # the exception is gone by now, and with it the loader and its workers
        sys.exit(problem)


if __name__ == "__main__":
    run_script(sys.argv[1:])
