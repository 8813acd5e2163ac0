"""Tell how a run is doing while it trains: curves in tensorboard, trackio or wandb, and throughput.

What describes all processes together is reduced in one collective, once for each log line.
"""

import importlib.util
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch.utils.tensorboard.summary import hparams

from collap.data.batches import idle_share
from collap.data.lengths import num_segments
from collap.files import nearest
from collap.models import peak_memory_bytes
from collap.training.step import micro_batches
from modeling_collap import CoLLAPConfig, CoLLAPModel, CoLLAPOutput
from modeling_collap.loss_collap import gather_rows, gather_texts
from modeling_collap.scoring_collap import distance_from_flat_attention

PROJECT = "collap"  # under which wandb and trackio list the runs
TRACKERS = ("tensorboard", "trackio", "wandb")
GB = 1e9


def check_trackers(names: Iterable[str]) -> list[str]:
    """Return the trackers without repetition.

    Raises:
        ValueError: one is not known (gives the nearest) or its package is not installed (gives the command).
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"unknown tracker {name!r}; {nearest(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"the tracker {name!r} needs its package: pip install {name}")
    return names


def flat_settings(settings: dict, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flatten settings as every tracker takes them: `{"a": {"b": None}}` becomes `{"a/b": "None"}`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


class OneFolderTensorBoard(TensorBoardTracker):
    """Keep all in one folder: Accelerate's tracker makes one more for the settings of every start, a run of its own."""

    def store_init_configuration(self, values: dict):
        for summary in hparams(values, {}):
            self.writer.file_writer.add_summary(summary)
        self.writer.flush()


def start_trackers(
    accelerator: Accelerator, names: Iterable[str], settings: dict, output_dir: str | Path, step: int = 0
):
    """Start the trackers of a run, which is called like its folder; `accelerator.log` feeds them from then on.

    A resumed run continues its curves. Tensorboard hides what was logged beyond `step`; wandb ignores the repeated
    steps; trackio shows them twice, with the same values. Without network (`HF_HUB_OFFLINE=1`) wandb writes to
    `output_dir/wandb` for a later `wandb sync`; trackio always writes to its own local folder (`TRACKIO_DIR`).

    Args:
        names: from [`check_trackers`].
        settings: of the run, may be nested.
        step: of the checkpoint that is continued; 0 for a new run.

    Raises:
        ValueError: wandb is not logged in.
    """
    if not accelerator.is_main_process:
        return
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.log_with = [_tracker(name, output_dir, step) for name in names]
    try:
        accelerator.init_trackers(PROJECT, config=flat_settings(settings))
    except Exception as error:
        if not type(error).__module__.startswith("wandb."):
            raise
        raise ValueError(f"wandb did not start ({error}): run `wandb login`, or set WANDB_MODE=offline") from error


def _tracker(name: str, output_dir: Path, step: int) -> GeneralTracker:
    run = {"name": output_dir.resolve().name, "resume": "allow" if step else "never"}
    if name == "tensorboard":
        # Hidden is what has this step or a later one: all of a run that was in this folder before a new one.
        return OneFolderTensorBoard("tensorboard", output_dir, purge_step=step + 1 if step else 0)
    if name == "trackio":
        return TrackioTracker(PROJECT, **run)
    mode = "offline" if HF_HUB_OFFLINE and "WANDB_MODE" not in os.environ else None
    return WandBTracker(PROJECT, id=_wandb_id(output_dir / "wandb_id", step), dir=str(output_dir), mode=mode, **run)


def _wandb_id(path: Path, step: int) -> str:
    """Return the id by which a resumed run finds itself again."""
    if not step or not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def in_batch_accuracy(scores: torch.Tensor) -> tuple[float, float]:
    """Measure how often the own text (audio) has the highest score of the batch; k that tie for it count 1/k each, so
    that scores that are all equal are at chance.

    Args:
        scores: (A, B) with A = B; text i describes audio i.

    Returns:
        Share of audios whose best text is theirs, share of texts whose best audio is theirs; in [0, 1].
    """
    shares = []
    for rows in (scores, scores.T):
        best = rows == rows.amax(1, keepdim=True)  # (A, B)
        shares.append((best.diagonal() / best.sum(1)).mean().item())
    return shares[0], shares[1]


def learning_rates(groups: list[dict]) -> dict[str, float]:
    """Return one rate, or that of every part if they differ; a part's groups are called `part` and `part, no decay`."""
    if len({group.get("initial_lr", group["lr"]) for group in groups}) == 1:
        return {"train/learning_rate": groups[0]["lr"]}
    return {f"train/learning_rate/{group['name'].split(',')[0]}": group["lr"] for group in groups}


@torch.no_grad()
def step_metrics(
    model: CoLLAPModel, output: CoLLAPOutput, groups: list[dict], gradient_norm: float, skipped_steps: int = 0
) -> dict[str, float]:
    """Return what the trackers show of a step; called by all processes.

    Args:
        model: unwrapped.
        output: of the step: `loss`, this process's rows of the scores (n, B) and texts (n, D), and some of its audios.
        groups: the optimizer's, see [`learning_rates`].
        gradient_norm: before clipping; NaN without a backward pass.
        skipped_steps: of the run so far.
    """
    scalars = {name: value for name, value in model.score_parameters()._asdict().items() if value is not None}
    scalars = {
        f"train/{name}": (one.full_tensor() if hasattr(one, "full_tensor") else one).item()
        for name, one in scalars.items()
    }
    audio_to_text, text_to_audio = in_batch_accuracy(gather_rows(output.logits_per_audio))  # of (A, B)
    sample = (gather_texts(output.scored_texts), output.audio_embeds, output.audio_token_mask)
    sample_scores, flat_scores = (model.score(*sample, flat_attention=flat) for flat in (False, True))
    return {
        "train/loss": output.loss.item(),
        "train/audio_to_text_accuracy": audio_to_text,
        "train/text_to_audio_accuracy": text_to_audio,
        **learning_rates(groups),
        "train/gradient_norm": float(gradient_norm),
        "train/skipped_steps": skipped_steps,
        **scalars,
        # 0: the attention is flat, and the score no more than a mean over the song.
        "train/distance_from_flat_attention": distance_from_flat_attention(sample_scores, flat_scores).item(),
    }


def song_tokens(seconds: float, config: CoLLAPConfig) -> int:
    """Count the fused tokens that start before the end of an audio."""
    whole, rest = divmod(seconds, config.segment_seconds)
    last = min(int(np.ceil(rest / config.token_seconds)), config.tokens_per_segment)
    return int(whole) * config.tokens_per_segment + last


def batch_work(seconds: list[float], config: CoLLAPConfig, micro_batch_size: int | None = None) -> dict[str, float]:
    """Work out what a batch asks of a process.

    Args:
        seconds: of audio of each song.
        micro_batch_size: songs that are padded to the longest of them; None for all.
    """
    segments = [num_segments(one, config.segment_seconds) for one in seconds]
    parts = [segments[part] for part in micro_batches(len(segments), micro_batch_size)]
    return {
        "songs": len(seconds),
        "audio_seconds": sum(seconds),
        "real_segments": sum(segments),
        "padded_segments": sum(len(part) * max(part) for part in parts),
        "real_tokens": sum(song_tokens(one, config) for one in seconds),
        "encoded_tokens": sum(segments) * config.tokens_per_segment,
    }


class StepMeter:
    """Measure throughput between two log lines, over all processes.

        for batch in meter.batches(loader):
            with meter.step(batch.seconds):
                ...

    Time outside of both, such as that of an evaluation, does not count. A GPU may still be busy while its process waits
    for data, so the share of waiting is at most what is reported.

    Attributes:
        totals: sums over the run, over all processes.
    """

    SUMS = ("songs", "audio_seconds", "real_segments", "padded_segments", "real_tokens", "encoded_tokens")

    def __init__(self, config: CoLLAPConfig, micro_batch_size: int | None = None):
        self.config, self.micro_batch_size = config, micro_batch_size
        self.totals = dict.fromkeys((*self.SUMS, "seconds", "waited_seconds", "peak_memory_gb"), 0.0)
        self._reset()

    def _reset(self):
        self._sums = dict.fromkeys(self.SUMS, 0.0)
        self._seconds = self._waited = 0.0
        self._segments: list[int] = []  # of every step

    @property
    def is_empty(self) -> bool:
        """Tell whether no step was taken since the last figures."""
        return not self._segments

    def batches(self, loader: Iterable) -> Iterator:
        """Yield the batches of the loader, and measure the time that it takes to get them."""
        iterator = iter(loader)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    @contextmanager
    def step(self, seconds: list[float]) -> Iterator[None]:
        """Measure a step over songs of so many seconds each."""
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start
        work = batch_work(seconds, self.config, self.micro_batch_size)
        self._segments.append(work["real_segments"])
        for name, value in work.items():
            self._sums[name] += value

    def figures(self, accelerator: Accelerator) -> dict[str, float]:
        """Return what was measured since the last call, at least one step; called by all processes."""
        own = [*self._sums.values(), self._waited, self._waited + self._seconds, peak_memory_bytes(accelerator.device)]
        rows = torch.tensor([[*own, *self._segments]], dtype=torch.float32, device=accelerator.device)
        rows = accelerator.gather(rows).cpu().numpy().astype(float)  # (P, 9 + steps)
        sums = dict(zip(self.SUMS, rows[:, :6].sum(0).tolist(), strict=True))
        waited, seconds, memory = rows[:, 6:9].T  # each (P,)
        self._reset()
        worst = int((waited / seconds).argmax())
        spent = {"seconds": seconds.max(), "waited_seconds": waited[worst] / seconds[worst] * seconds.max()}
        for name, value in (sums | spent).items():
            self.totals[name] += float(value)
        self.totals["peak_memory_gb"] = max(self.totals["peak_memory_gb"], float(memory.max()) / GB)
        return {
            **{f"train/{name}": value for name, value in rates(sums | spent).items()},
            "train/idle_share": idle_share(rows[:, 9:].T[:, :, None]),  # (steps, P, 1)
            "train/peak_memory_gb": float(memory.max()) / GB,
        }


def rates(work: dict[str, float]) -> dict[str, float]:
    """Return throughput and waste by the sums of [`StepMeter`]; the seconds are those of the slowest process."""
    return {
        "songs_per_second": float(work["songs"] / work["seconds"]),
        "hours_of_audio_per_second": float(work["audio_seconds"] / 3600 / work["seconds"]),
        "padding_share": 1 - work["real_segments"] / work["padded_segments"],
        "encoded_to_real_tokens": work["encoded_tokens"] / work["real_tokens"],
        "data_wait_share": float(work["waited_seconds"] / work["seconds"]),
    }
