"""Checkpoints on disk: whole or not there, only of the same run; failures that leave the old ones as they were."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from runs import start_processes

from collap.files import restore_folder, write_folder, write_json
from collap.training.checkpoints import Checkpoints

IDENTITY = {"dataset": "songs", "seed": 0, "num_processes": 1}


class Run:
    """A model and optimizer with state, on a fresh accelerator."""

    def __init__(self, folder: Path, identity: dict = IDENTITY, keep: int = 2):
        self.accelerator = Accelerator(cpu=True)
        torch.manual_seed(3)
        model = torch.nn.Linear(4, 4)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        self.checkpoints = Checkpoints(self.accelerator, folder, identity, keep)

    def step(self):
        """A step that depends on weights, optimizer and random state."""
        self.model(torch.nn.functional.dropout(torch.ones(2, 4))).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_a_loaded_run_goes_on_bit_for_bit(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.checkpoints.save(1, {"best": 0.1 + 0.2})
    run.step()
    other = Run(tmp_path)
    torch.manual_seed(99)
    assert other.checkpoints.load(other.checkpoints.find("latest")) == {"best": 0.1 + 0.2}
    other.step()
    assert torch.equal(run.model.weight, other.model.weight)


def test_the_loss_scale_of_float16_is_restored(tmp_path):
    run, other = Run(tmp_path), Run(tmp_path)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    run.checkpoints.save(1, {})
    other.accelerator.scaler = torch.amp.GradScaler("cpu")
    other.checkpoints.load(tmp_path / "step-00000001")
    assert other.accelerator.scaler.get_scale() == 512.0


def test_the_newest_are_kept_and_only_whole_ones_are_seen(tmp_path):
    run = Run(tmp_path)
    assert run.checkpoints.find("latest") is None
    for step in (9, 10, 11):
        run.checkpoints.save(step, {})
    assert [path.name for path in run.checkpoints.all()] == ["step-00000010", "step-00000011"]
    (tmp_path / "step-00000012").mkdir()  # of another program: no progress.json
    (tmp_path / ".step-00000013.tmp").mkdir()  # killed while it was written
    (tmp_path / ".step-00000009.old").mkdir()  # killed while it was deleted
    assert run.checkpoints.find("latest").name == "step-00000011"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "step-00000010",
        "step-00000011",
        "step-00000012",
    ]


def test_a_checkpoint_of_other_settings_or_processes_is_refused_by_name(tmp_path):
    Run(tmp_path).checkpoints.save(1, {})
    other = Run(tmp_path, {**IDENTITY, "seed": 1, "num_processes": 2})
    with pytest.raises(ValueError, match="another run: num_processes was 1 and is 2, seed was 0 and is 1.*processes; "):
        other.checkpoints.load(tmp_path / "step-00000001")


def test_a_folder_that_is_no_checkpoint_is_refused_with_those_there_are(tmp_path):
    run = Run(tmp_path)
    run.checkpoints.save(7, {})
    with pytest.raises(ValueError, match=r"no whole checkpoint.*those of this run are \['step-00000007'\]"):
        run.checkpoints.load(tmp_path / "step-00000008")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl"])
def test_a_damaged_file_is_named_with_its_checkpoint(tmp_path, name):
    run = Run(tmp_path)
    run.checkpoints.save(1, {})
    file = tmp_path / "step-00000001" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="step-00000001 is damaged"):
        run.checkpoints.load(tmp_path / "step-00000001")


def test_a_process_without_its_random_state_is_refused(tmp_path):
    run = Run(tmp_path)
    run.checkpoints.save(1, {})
    (tmp_path / "step-00000001" / "random_states_0.pkl").unlink()
    with pytest.raises(ValueError, match="random_states_0.pkl is missing.*all machines share"):
        run.checkpoints.load(tmp_path / "step-00000001")


def test_an_older_checkpoint_sets_the_later_ones_aside(tmp_path):
    run = Run(tmp_path, keep=3)
    for step in (1, 2, 3):
        run.checkpoints.save(step, {})
    run.checkpoints.load(tmp_path / "step-00000001")
    assert [path.name for path in run.checkpoints.all()] == ["step-00000001"]
    assert (tmp_path / "abandoned-step-00000003" / "progress.json").is_file()
    run.checkpoints.save(2, {"again": True})
    assert run.checkpoints.load(tmp_path / "step-00000002") == {"again": True}


def test_a_checkpoint_of_another_folder_is_refused(tmp_path):
    Run(tmp_path / "one").checkpoints.save(1, {})
    with pytest.raises(ValueError, match="of another output_dir"):
        Run(tmp_path / "two").checkpoints.load(tmp_path / "one" / "step-00000001")


def in_another_process(script: Callable[[list[str]], None], log: Path) -> str:
    """What a script prints, which must end well."""
    (process,) = start_processes([], log, 1, script)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    def start_another(arguments: list[str]):
        try:
            Run(tmp_path / "run")
        except ValueError as error:
            print("refused:", error)

    run = Run(tmp_path / "run")
    assert "refused: another run is writing to" in in_another_process(start_another, tmp_path / "first.log")
    run.checkpoints.lock.close()
    assert in_another_process(start_another, tmp_path / "second.log") == ""


def test_a_full_disk_is_said_and_leaves_the_previous_checkpoint(tmp_path):
    """No file may grow beyond 200 bytes: what a full disk does, without one."""
    folder = tmp_path / "run"

    def fill_the_disk(arguments: list[str]):
        run = Run(folder)
        run.checkpoints.save(1, {})
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            run.checkpoints.save(2, {})
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # for the log
            print("refused:", error)

    printed = in_another_process(fill_the_disk, tmp_path / "log")
    assert "refused: the checkpoint of step 2 could not be written" in printed
    assert "step-00000001 is whole: free space, then --resume latest" in printed
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "step-00000001"]
    run = Run(folder)
    run.checkpoints.load(run.checkpoints.find("latest"))


def test_folders_and_files_are_replaced_whole(tmp_path):
    folder = tmp_path / "best"
    write_folder(folder, lambda path: (path / "weights").write_text("old"))

    def fail(path: Path):
        (path / "weights").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"best could not be written .*No space left.*untouched"):
        write_folder(folder, fail)
    assert (folder / "weights").read_text() == "old"
    write_folder(folder, lambda path: (path / "weights").write_text("new"))
    assert (folder / "weights").read_text() == "new" and len(list(tmp_path.iterdir())) == 1

    folder.rename(tmp_path / ".best.old")  # killed between the two renames
    restore_folder(folder)
    assert (folder / "weights").read_text() == "new"
    write_json(tmp_path / "summary.json", {"step": 1})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"step": 1}
