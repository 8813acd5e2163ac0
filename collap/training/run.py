"""A training run: what the loop of train.py works with, put in its place, saved, and resumed where it was."""

import copy
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, set_seed
from tqdm.auto import tqdm
from transformers import AutoTokenizer, get_scheduler

from collap.data.batches import AudioTextBatch, BadFiles, check_processes
from collap.files import write_folder
from collap.models import check_vocabulary, load_model
from collap.training.checkpoints import Checkpoints, whole_checkpoints
from collap.training.distributed import prepare, whole_model
from collap.training.loaders import StreamData, TableData, build_eval_data, build_train_data
from collap.training.settings import ModelSettings, OptimisationSettings, TrainSettings
from collap.training.step import StepInputs
from collap.training.summary import RunSummary, read_plan
from collap.training.tracking import StepMeter, start_trackers, step_metrics
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
from modeling_collap import CoLLAPModel, CoLLAPOutput
from processing import CoLLAPProcessor

STATEFUL = ("evaluations", "bad_files", "summary", "skipped")  # parts of a run with a state of their own


@dataclass
class SkippedSteps:
    """Steps without an update, because their loss or gradient was unusable."""

    limit: int
    total: int = 0
    in_a_row: int = 0

    def count(self, accelerator: Accelerator, loss: float, norm: float | None, names: list[str]):
        """Count a step if its loss or gradient could not be used; called by all processes after the optimizer.

        float16 starts with loss scales that overflow: its scaler then leaves the weights as they are, and lowers the
        scale. That is no skipped step until the scale is below 1.

        Args:
            norm: of the gradient; None if the loss was not usable.
            names: of this process's songs.

        Raises:
            ValueError: `limit` steps in a row were skipped; names the songs of the last one.
        """
        is_scaled = accelerator.scaler is not None and accelerator.scaler.get_scale() >= 1
        if norm is not None and (math.isfinite(norm) or is_scaled):
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        songs = gather_object(names)
        if self.in_a_row >= self.limit:
            reason = f"loss {loss:.3g}, see max_loss" if norm is None else f"gradient norm {norm:.3g}"
            raise ValueError(
                f"{self.in_a_row} steps in a row had no usable gradient ({reason}); the last batch was "
                f"{', '.join(songs)}; lower the learning rate, or look at those files"
            )

    def state_dict(self) -> dict:
        """Return what a resumed run needs; JSON-able."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict):
        """Go on where `state` was taken."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]


@dataclass
class Run:
    """Hold what a training run is made of, and how far it is."""

    settings: TrainSettings
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
    progress: tqdm = field(default_factory=lambda: tqdm(disable=True))
    stop_signals: list[int] = field(default_factory=list)

    @contextmanager
    def batches(self) -> Iterator[Iterator[AudioTextBatch]]:
        """Give the batches of this process from the present step on, without end; leaving ends the loader's workers.
        Within, SIGTERM asks for a stop after the step."""
        signal.signal(signal.SIGTERM, lambda number, frame: self.stop_signals.append(number))
        hidden = not self.accelerator.is_main_process
        with (
            closing(self.meter.batches(self.data.batches(self.step, self.data_state))) as batches,
            tqdm(total=self.steps, initial=self.step, disable=hidden, desc="training") as self.progress,
        ):
            yield batches

    def inputs(self, batch: AudioTextBatch) -> StepInputs:
        """Return a batch as the model takes it."""
        return StepInputs(self.accelerator, batch, self.processor.feature_extractor)

    def finish_step(self, output: CoLLAPOutput, norm: float | None, batch: AudioTextBatch):
        """Count a step, and log it if it is its turn; called by all processes."""
        self.step += 1
        self.data_state = self.data.state_after(self.data_state, batch)
        self.progress.update()
        self.skipped.count(self.accelerator, output.loss.item(), norm, batch.names)
        if self.step % self.settings.output.log_every == 0:
            groups = self.optimizer.param_groups
            unwrapped = self.accelerator.unwrap_model(self.model)
            metrics = step_metrics(unwrapped, output, groups, math.nan if norm is None else norm, self.skipped.total)
            self.accelerator.log(metrics | self.meter.figures(self.accelerator), step=self.step)
            self.progress.set_postfix(loss=f"{output.loss.item():.3f}", lr=f"{groups[-1]['lr']:.1e}")

    def agree_to_stop(self, batch: AudioTextBatch) -> bool:
        """Tell whether any process was asked to stop; bad files of any process are said, and counted by all."""
        flags = [bool(self.stop_signals), bool(batch.skipped)]
        flags = torch.tensor(flags, dtype=torch.int32, device=self.accelerator.device)
        stops, bad = self.accelerator.reduce(flags).tolist()
        found = gather_object(batch.skipped) if bad else []
        for name, reason in found if self.accelerator.is_main_process else ():
            self.progress.write(f"skipped {name}: {reason}")
        self.bad_files.add(found, num_read=self.settings.optimisation.batch_size)
        return stops > 0

    def evaluation_is_due(self) -> bool:
        """Tell whether a step ends every `eval_every`-th epoch, or the last one."""
        epoch, into_epoch = divmod(self.step, self.data.steps_per_epoch)
        is_last = epoch == self.settings.optimisation.epochs
        return self.step > 0 and into_epoch == 0 and (epoch % self.settings.output.eval_every == 0 or is_last)

    def checkpoint_is_due(self) -> bool:
        """Tell whether a step is followed by a checkpoint: every `checkpoint_every`-th, and before an evaluation, so
        that nothing is lost if the program is killed or fails meanwhile; a resumed run repeats the evaluation."""
        every = self.settings.output.checkpoint_every
        return self.evaluation_is_due() or (every is not None and self.step % every == 0)

    def evaluate(self):
        """Measure retrieval on the evaluation split; keep the model if it is the best."""
        self.evaluations.run(self.step // self.data.steps_per_epoch, self.step, self.progress.write)
        self.write_summary()

    def write_summary(self):
        """Write summary.json; with a plan in `output_dir`, also how the run compares with it."""
        epoch, best = self.step / self.data.steps_per_epoch, self.evaluations.best_figure()
        counts = {"skipped_steps": self.skipped.total, "bad_files": len(self.bad_files.reasons)}
        self.summary.write(self.step, epoch, best, **counts, finished=self.step == self.steps)

    def save_checkpoint(self):
        """Write all that a resumed run needs; called by all processes."""
        progress = {
            "step": self.step,
            "scheduler": self.scheduler.state_dict(),
            "data": gather_object([self.data_state]),
            "settings": self.settings.flat(),
        }
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        self.checkpoints.save(self.step, progress | parts)

    def resume(self, path: Path):
        """Go on after the last step of a checkpoint, and say what is set otherwise since."""
        progress = self.checkpoints.load(path)
        self.step = progress["step"]
        self.scheduler.load_state_dict(progress["scheduler"])
        self.data_state = progress["data"][self.accelerator.process_index]
        for name in STATEFUL:
            getattr(self, name).load_state_dict(progress[name])
        self.accelerator.print(f"resumed from {path} ({self.step} of {self.steps} steps)")
        before, now = progress["settings"], self.settings.flat()
        changed = [name for name in now if name != "resume" and before.get(name) != now[name]]
        if changed:
            listed = ", ".join(f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in changed)
            self.accelerator.print(f"set otherwise since: {listed}")

    def start(self):
        """Begin, or resume what `--resume` names; last of all set-up, because it sets the random state."""
        output = self.settings.output
        checkpoint = self.checkpoints.find(output.resume) if output.resume else None
        if checkpoint is not None:
            self.resume(checkpoint)
        elif output.resume:
            self.accelerator.print(f"{output.output_dir} has no checkpoint: starting anew")
        self.evaluations.forget_from(self.step)
        start_trackers(self.accelerator, output.trackers, self.settings.flat(), output.output_dir, self.step)


def prepare_output_dir(settings: TrainSettings):
    """Make the folder of a run; ValueError or OSError, before anything is loaded, if this run cannot have it."""
    output_dir = Path(settings.output.output_dir)
    if settings.output.resume is None and whole_checkpoints(output_dir / "checkpoints"):
        raise ValueError(
            f"{output_dir} holds a run with checkpoints: continue it with --resume latest, name another --output_dir, "
            "or delete it"
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"output_dir {output_dir} cannot be made ({error.strerror}); name another") from error
    if not os.access(output_dir, os.W_OK):
        raise OSError(f"output_dir {output_dir} is read-only; name another")


def start_processes(settings: TrainSettings) -> Accelerator:
    """Join the processes that a launcher has started; a ValueError if they do not know of one another."""
    # The others wait while the main process measures all songs, computes features, or evaluates.
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    accelerator = Accelerator(
        mixed_precision=settings.optimisation.mixed_precision,
        project_dir=settings.output.output_dir,
        kwargs_handlers=[waiting],
    )
    check_processes(accelerator)
    return accelerator


def on_main_process(accelerator: Accelerator, action: Callable[[], object]):
    """Call `action` on the main process alone; all processes raise the ValueError if it cannot."""
    problem = None
    if accelerator.is_main_process:
        try:
            action()
        except (OSError, ValueError) as error:
            problem = str(error)
    (problem, *_) = gather_object([problem])  # that of the main process
    if problem is not None:
        raise ValueError(problem)


def build_model_and_processor(settings: ModelSettings, segment_batch_size: int) -> tuple[CoLLAPModel, CoLLAPProcessor]:
    """Load the model to continue from, or make a new one from pretrained backbones, with its processor."""
    if settings.model is not None:
        model, processor = load_model(settings.model)
    else:
        parts = (settings.text, settings.music, settings.speech)
        model = CoLLAPModel.from_backbones(*parts, **settings.model_config)
        tokenizer = AutoTokenizer.from_pretrained(settings.text, trust_remote_code=False)
        check_vocabulary(tokenizer, model.config.text_config, settings.text)
        processor = CoLLAPProcessor.from_model_config(model.config, tokenizer)
    model.audio_tower.segment_batch_size = segment_batch_size
    return model, processor


def check_frozen(frozen: list[str], encoders: list[str]) -> None:
    """Refuse stored tokens for audio encoders that would train: a ValueError that says what to freeze."""
    if not set(encoders) <= set(frozen):
        raise ValueError(
            f"precomputed holds what the frozen audio encoders made of every song: it needs --freeze "
            f"{' '.join(encoders)}, found freeze={frozen}"
        )


def choose_what_trains(settings: ModelSettings, output_dir: Path, model, processor, accelerator: Accelerator):
    """Freeze towers, add LoRA, checkpoint gradients and compile, in place."""
    freeze(model, settings.freeze)
    if settings.lora:
        base = settings.model or str(output_dir / "base")  # what a saved adapter belongs to
        is_new = not whole_checkpoints(output_dir / "checkpoints")
        if settings.model is None and is_new and accelerator.is_main_process:
            write_folder(Path(base), lambda folder: save_model(model, processor, folder))
        add_lora(model, settings.lora, settings.lora_rank, base)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model, settings.gradient_checkpointing)
    if settings.compile:
        compile_encoders(model, settings.compile)
    accelerator.print(trainable_summary(model))


def build_optimizer(settings: OptimisationSettings, model, steps: int):
    """Make AdamW over what trains, and the schedule of its learning rates."""
    rates = (settings.text_learning_rate, settings.audio_learning_rate)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.learning_rate, settings.weight_decay, *rates))
    warmup = round(settings.warmup_ratio * steps)
    return optimizer, get_scheduler(settings.lr_schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def build_run(settings: TrainSettings, accelerator: Accelerator) -> Run:
    """Put everything in its place, before the first step.

    Raises:
        ValueError, OSError: for settings, folders and files that cannot work; says which.
    """
    optimisation, output = settings.optimisation, settings.output
    output_dir = Path(output.output_dir)
    set_seed(optimisation.seed)
    model, processor = build_model_and_processor(settings.model, optimisation.segment_batch_size)
    if settings.data.precomputed:
        check_frozen(settings.model.freeze, list(model.audio_tower.encoders))
    batch = (optimisation.batch_size, optimisation.seed)
    data = build_train_data(settings.data, *batch, model, processor, accelerator)
    eval_set, eval_tokens = build_eval_data(settings.data, model, processor, accelerator)
    choose_what_trains(settings.model, output_dir, model, processor, accelerator)
    steps = optimisation.epochs * data.steps_per_epoch
    optimizer, scheduler = build_optimizer(optimisation, model, steps)
    model_config = copy.deepcopy(model.config)
    limits = (optimisation.batch_size, optimisation.max_grad_norm)
    prepared, optimizer = prepare(accelerator, model, optimizer, *limits)
    set_seed(optimisation.seed, device_specific=True)  # every process its own dropout
    unwrapped = accelerator.unwrap_model(prepared)

    def save(name: str, results: dict | None = None):
        whole, state = whole_model(accelerator, prepared, model_config)
        if accelerator.is_main_process:
            write_folder(output_dir / name, lambda folder: save_model(whole, processor, folder, state, results))
        accelerator.wait_for_everyone()

    identity = settings.identity() | {"num_processes": accelerator.num_processes, "training data": data.identity}
    identity |= {"mixed_precision": accelerator.mixed_precision}
    meter = StepMeter(model_config, optimisation.micro_batch_size)
    evaluated = (unwrapped, processor, eval_set, eval_tokens, settings.data, output.output_dir, optimisation.seed)
    return Run(
        settings=settings,
        accelerator=accelerator,
        model=prepared,
        processor=processor,
        optimizer=optimizer,
        scheduler=scheduler,
        data=data,
        evaluations=Evaluations(accelerator, *evaluated, save),
        checkpoints=Checkpoints(accelerator, output_dir / "checkpoints", identity, output.keep_checkpoints),
        meter=meter,
        summary=RunSummary(accelerator, output_dir, settings.flat(), meter, read_plan(output_dir)),
        bad_files=BadFiles(settings.data.max_bad_share, data.num_rows),
        skipped=SkippedSteps(optimisation.max_skipped_steps),
        steps=steps,
    )
