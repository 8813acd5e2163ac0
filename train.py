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

The loop is below; what it works with is in collap/training: settings, loaders, trainable, step (the cached one),
validation, checkpoints, tracking, cost, and run, which puts them together.
"""

import math
import sys
from pathlib import Path

from accelerate import PartialState

from collap.data.rows import worker_message
from collap.hub.golden import write_golden
from collap.hub.publish import check_can_publish, publish
from collap.models import load_model
from collap.training.cost import plan_run
from collap.training.run import Run, build_run, on_main_process, prepare_output_dir, start_processes
from collap.training.settings import TrainSettings, parse_settings
from collap.training.step import cached_step, is_usable


def train(run: Run) -> bool:
    """Take steps until the end, True, or until SIGTERM asks to stop, False.

    Dimensions: n songs and texts of this process, `A = B` of the batch of all processes.
    """
    accelerator, model, optimizer, scheduler = run.accelerator, run.model, run.optimizer, run.scheduler
    settings = run.settings.optimisation
    model.train()
    with run.batches() as batches:  # from the step that is resumed on, epoch after epoch
        if run.evaluation_is_due():  # the run was killed after this step's checkpoint
            run.evaluate()
        while run.step < run.steps:
            batch = next(batches)
            with run.meter.step(batch.seconds):
                inputs = run.inputs(batch)
                if settings.micro_batch_size is None or settings.micro_batch_size >= len(batch):
                    output = model(
                        **inputs.texts(),
                        **inputs.audios(),
                        return_loss=True,  # the contrastive loss over all (A, B) scores
                        gather_negatives=True,
                        false_negatives=inputs.false_negatives(),
                    )  # logits_per_audio (n, B)
                    if is_usable(output.loss, settings.max_loss):
                        accelerator.backward(output.loss)
                else:  # the same loss and gradients, a micro-batch at a time
                    output = cached_step(accelerator, model, inputs, settings.micro_batch_size, settings.max_loss)
                norm = None
                if is_usable(output.loss, settings.max_loss):
                    norm = float(accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm))
                    if math.isfinite(norm) or accelerator.scaler is not None:  # which lowers its scale of the loss
                        optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            run.finish_step(output, norm, batch)
            del output  # with the graph of a step that had no backward pass
            stop = run.agree_to_stop(batch)
            if stop or run.checkpoint_is_due():
                run.save_checkpoint()
            if stop and run.step < run.steps:
                run.progress.close()
                accelerator.print(f"stopped by SIGTERM after step {run.step}; go on with --resume latest")
                return False
            if run.evaluation_is_due():
                run.evaluate()
    return True


def hub_settings(settings: TrainSettings) -> dict:
    """Return the arguments of [`publish`] and [`check_can_publish`]."""
    output = settings.output
    name = output.hub_model_id or Path(output.output_dir).resolve().name
    return {"repo_id": name, "private": output.hub_private, "license": output.license}


def finish(run: Run):
    """Write golden vectors of the best model, as it is on disk, and publish it if that was asked for."""
    best = Path(run.settings.output.output_dir) / "best"
    write_golden(*load_model(best), best)
    if run.settings.output.push_to_hub:
        run.accelerator.print(f"published: {publish(best, **hub_settings(run.settings)).commit_url}")


def main(arguments: list[str]) -> None:
    """Plan or train, as the arguments say."""
    settings = parse_settings(arguments, __doc__.split("\n")[0])
    if settings.output.plan:
        PartialState().print(plan_run(settings))
        return
    prepare_output_dir(settings)
    accelerator = start_processes(settings)
    if settings.output.push_to_hub:
        on_main_process(accelerator, lambda: check_can_publish(**hub_settings(settings)))
    run = build_run(settings, accelerator)
    run.start()
    is_finished = train(run)
    if is_finished:
        run.evaluations.save("last")
    run.write_summary()
    accelerator.end_training()
    if is_finished and accelerator.is_main_process:
        finish(run)


def run_script(arguments: list[str]) -> None:
    """Call [`main`], with what a user can do something about as one line instead of a traceback."""
    problem = None
    try:
        main(arguments)
    except (ValueError, OSError) as error:
        problem = f"error: {worker_message(error)}"
    except KeyboardInterrupt:
        problem = "stopped by Ctrl-C; go on after the last checkpoint with --resume latest"
    if problem is not None:  # the exception is gone by now, and with it the loader and its workers
        sys.exit(problem)


if __name__ == "__main__":
    run_script(sys.argv[1:])
