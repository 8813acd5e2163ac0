"""Checkpoints that a run is resumed from, exactly, whenever it was killed.

A checkpoint is what `Accelerator.save_state` writes (weights, optimizer, scaler and the random states of every
process) and `progress.json`. It is written to a hidden folder, flushed to disk and then renamed: a folder called
`step-00000120` is whole. Folders are only ever replaced by a rename, so that a kill leaves the old one or the new one.
"""

import errno
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator
from accelerate.utils import gather_object, load

from collap.files import WRITE_ERRORS, flush, one_line, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = re.compile(r"step-\d{8}")
PROGRESS = "progress.json"
READ_ERRORS = (*WRITE_ERRORS, KeyError, EOFError, pickle.UnpicklingError)


def whole_checkpoints(folder: Path) -> list[Path]:
    """List the whole checkpoints of a run, oldest first.

    Args:
        folder: `output_dir/checkpoints`; need not exist.
    """
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(path for path in found if (path / PROGRESS).is_file())


def lock_folder(folder: Path) -> TextIO:
    """Keep other runs out of a folder for as long as this process lives; a disk or a system that knows no such locks
    keeps none out.

    Returns:
        The file that holds the lock, not to be closed.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    if fcntl is None:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: its workers do not inherit it
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(
                f"another run is writing to {folder}: wait for it, or name another --output_dir"
            ) from error
    return file


class Checkpoints:
    """The checkpoints of one run, which no other process may write to meanwhile.

    Args:
        accelerator: that has prepared model and optimizer.
        folder: `output_dir/checkpoints`.
        identity: what must be equal for a run to be resumed exactly: settings, number of processes, ...
        keep: how many of the newest are kept.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, identity: dict, keep: int):
        self.accelerator, self.folder, self.keep = accelerator, folder, keep
        self.lock = lock_folder(folder) if accelerator.is_main_process else None
        self.identity = json.loads(json.dumps(identity, default=str))  # as it will be read back

    def all(self) -> list[Path]:
        """List whole checkpoints, oldest first."""
        return whole_checkpoints(self.folder)

    def save(self, step: int, progress: dict):
        """Write a checkpoint; called by all processes with the same arguments.

        Raises:
            OSError: on every process, if one of them could not write; the checkpoints that were there are whole.
        """
        final = self.folder / f"step-{step:08d}"
        if final in self.all():
            return  # resumed from it; the same state would be written again
        temporary = final.with_name(f".{final.name}.tmp")
        # One after the other, each only if all processes have come so far.
        for part in (self._prepare, self._write_state, self._complete):
            problem = _first(gather_object([part(temporary, step, progress)]))
            if problem is not None:
                self._fail(temporary, step, problem)
        if self.accelerator.is_main_process:
            temporary.rename(final)
            for outdated in self.all()[: -self.keep]:
                outdated.rename(outdated.with_name(f".{outdated.name}.old"))
            self._remove_leftovers()
        self.accelerator.wait_for_everyone()

    def load(self, path: Path) -> dict:
        """Restore the accelerator's state and return the progress; called by all processes.

        Raises:
            ValueError: it is no checkpoint, that of a run with other settings, or damaged.
        """
        content = self._read(path)
        _check_identity(path, content["identity"], self.identity)
        if path.resolve().parent != self.folder.resolve():
            raise ValueError(
                f"{path} is a checkpoint of another output_dir, which has its own best model: resume there, or start "
                "a new run from its weights with --model"
            )
        own = path / f"random_states_{self.accelerator.process_index}.pkl"
        if not own.is_file():
            raise ValueError(
                f"{own} is missing: output_dir must be on a disk that all machines share; or resume from another one"
            )
        try:
            load(own)  # Accelerate would go on without the random state if it could not read it
            self.accelerator.load_state(str(path))
        except READ_ERRORS as error:
            raise ValueError(f"{path} is damaged ({one_line(error)}); resume from another checkpoint") from error
        self._set_aside_after(path)
        return content["progress"]

    def _set_aside_after(self, path: Path):
        """Rename later checkpoints: of a future that this run will not have, they neither count nor are deleted."""
        if self.accelerator.is_main_process:
            for later in [found for found in self.all() if found.name > path.name]:
                later.rename(later.with_name(f"abandoned-{later.name}"))
        self.accelerator.wait_for_everyone()

    def find(self, resume: str) -> Path | None:
        """Return the checkpoint that `--resume` names: a folder, or `"latest"`, which is None for a run without any."""
        if resume != "latest":
            return Path(resume)
        if self.accelerator.is_main_process:
            self._remove_leftovers()
        checkpoints = self.all()
        return checkpoints[-1] if checkpoints else None

    def _prepare(self, temporary: Path, step: int, progress: dict) -> str | None:
        if not self.accelerator.is_main_process:
            return None
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        except OSError as error:
            return one_line(error)

    def _write_state(self, temporary: Path, step: int, progress: dict) -> str | None:
        try:
            self.accelerator.save_state(str(temporary))
        except WRITE_ERRORS as error:
            return one_line(error)

    def _complete(self, temporary: Path, step: int, progress: dict) -> str | None:
        if not self.accelerator.is_main_process:
            return None
        try:
            write_json(temporary / PROGRESS, {"step": step, "identity": self.identity, "progress": progress})
            flush(temporary)
        except WRITE_ERRORS as error:
            return one_line(error)

    def _fail(self, temporary: Path, step: int, problem: str):
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        whole = self.all()
        hint = f"{whole[-1]} is whole: free space, then --resume latest" if whole else "there is none before it"
        raise OSError(f"the checkpoint of step {step} could not be written to {self.folder} ({problem}); {hint}")

    def _remove_leftovers(self):
        """Delete folders that a kill left half-written or half-deleted."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _read(self, path: Path) -> dict:
        try:
            content = json.loads((path / PROGRESS).read_text())
            return {name: content[name] for name in ("identity", "progress")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            whole = [found.name for found in self.all()]
            raise ValueError(
                f"{path} is no whole checkpoint ({one_line(error)}); those of this run are {whole or 'none'}"
            ) from error


def _first(problems: list[str | None]) -> str | None:
    return next((problem for problem in problems if problem is not None), None)


def _check_identity(path: Path, found: dict, expected: dict):
    """Raise a ValueError that names every setting that differs."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if not names:
        return
    differences = ", ".join(f"{name} was {found.get(name)!r} and is {expected.get(name)!r}" for name in names)
    reasons = {
        "num_processes": "random states, songs and streams are dealt to a fixed number of processes; ",
        "training data": "texts, songs or audio files of the rows are others; ",
    }
    reason = "".join(text for name, text in reasons.items() if name in names)
    raise ValueError(
        f"{path} is a checkpoint of another run: {differences}. {reason}resume with the settings of that run, or start "
        "a new one from its weights with --model and another --output_dir"
    )
