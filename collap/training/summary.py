"""The summary of a run in JSON, next to what its plan predicted."""

import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from collap.files import write_json
from collap.training.tracking import GB, StepMeter, rates

PLAN_FILE = "plan.json"  # in output_dir, from `train.py --plan`
PLANNED = ("flops_per_step", "model_flops_per_step", "step_seconds", "peak_memory")


def read_plan(output_dir: Path) -> dict | None:
    """Read the plan that `--plan` has left in `output_dir`, if any; a ValueError if it is damaged."""
    path = output_dir / PLAN_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return {name: found[name] for name in PLANNED}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no plan ({error!r}); delete it, or write it anew with --plan") from error


def compare(plan: dict, measured: dict[str, float]) -> dict[str, float]:
    """Put measured steps next to their prediction.

    Args:
        plan: from [`read_plan`].
        measured: `"step_seconds"`, and `"peak_memory"` in bytes of the worst device, if known.

    Returns:
        `achieved_tflops` and `achieved_model_tflops` of a device in TFLOP/s (the second, over the peak of the device,
        is the model FLOP utilisation), `seconds_over_plan` if the plan had a throughput, and `memory_over_plan`.

    Raises:
        ValueError: if `step_seconds` is missing or not positive.
    """
    seconds = measured.get("step_seconds")
    if seconds is None or not seconds > 0:
        raise ValueError(f"measured['step_seconds'] must be positive, found {seconds}")
    result = {
        "achieved_tflops": plan["flops_per_step"] / seconds / 1e12,
        "achieved_model_tflops": plan["model_flops_per_step"] / seconds / 1e12,
    }
    if plan["step_seconds"] is not None:
        result["seconds_over_plan"] = seconds / plan["step_seconds"]
    if measured.get("peak_memory"):
        result["memory_over_plan"] = measured["peak_memory"] / plan["peak_memory"]
    return result


class RunSummary:
    """Write `summary.json` of a run: what was trained, on what, for how long, and how well.

    Every process makes one and calls its methods; the main process writes the file.

    Args:
        settings: of the run, as JSON takes them.
        plan: from [`read_plan`]; what was measured is put next to it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str | Path,
        settings: dict,
        meter: StepMeter,
        plan: dict | None = None,
    ):
        self.accelerator, self.meter = accelerator, meter
        self.path = Path(output_dir) / "summary.json"
        self.settings, self.plan = settings, plan
        self.started, self.starts = datetime.now(UTC).isoformat(timespec="seconds"), 1
        self._seconds_before, self._clock = 0.0, time.perf_counter()
        self.hardware = {**hardware(), "devices": gather_object([device_name(accelerator.device)])}

    def _settle(self):
        if not self.meter.is_empty:
            self.meter.figures(self.accelerator)

    def _wall_seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._clock

    def _measured(self, steps: int) -> dict[str, float]:
        totals = self.meter.totals
        return {"step_seconds": totals["seconds"] / steps, "peak_memory": totals["peak_memory_gb"] * GB}

    def state_dict(self) -> dict:
        """Return what a checkpoint keeps; JSON-able. The meter starts a new interval."""
        self._settle()
        state = {"started": self.started, "starts": self.starts, "wall_seconds": self._wall_seconds()}
        return {**state, "totals": dict(self.meter.totals)}

    def load_state_dict(self, state: dict):
        """Go on where `state` was taken."""
        self.started, self.starts = state["started"], state["starts"] + 1
        self._seconds_before, self._clock = state["wall_seconds"], time.perf_counter()
        self.meter.totals = dict(state["totals"])

    def write(
        self,
        step: int,
        epoch: float,
        best: dict | None = None,
        skipped_steps: int = 0,
        bad_files: int = 0,
        finished: bool = False,
    ):
        """Replace the file by the present state; the meter starts a new interval.

        Args:
            best: metric, value and step of the best evaluation.
            finished: whether the run came to its end.
        """
        self._settle()
        if not self.accelerator.is_main_process:
            return
        totals = self.meter.totals
        content = {
            "started": self.started,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": finished,
            "starts": self.starts,
            "steps": step,
            "epochs": epoch,
            "songs": int(totals["songs"]),
            "hours_of_audio": totals["audio_seconds"] / 3600,
            "wall_seconds": self._wall_seconds(),
            "training_seconds": totals["seconds"],
            "mean": rates(totals) if totals["seconds"] else None,
            "peak_memory_gb": totals["peak_memory_gb"],
            "best": best,
            "skipped_steps": skipped_steps,
            "bad_files": bad_files,
            "hardware": self.hardware,
            "plan": self.plan and compare(self.plan, self._measured(step)),
            "settings": self.settings,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, content)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def hardware() -> dict:
    """Return what is known of the machine of this process, and the versions of the libraries."""
    libraries = {"torch": torch.__version__, **{name: version(name) for name in ("transformers", "accelerate")}}
    return {"cpus": os.cpu_count(), "python": platform.python_version(), **libraries}
