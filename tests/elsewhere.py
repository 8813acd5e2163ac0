"""Fresh processes that know a model by its folder or Hub id only: CoLLAP cannot be imported there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

# Nor is any garbage looked for in what such a process imports: a fifth of its time.
REFUSE_INSTALLED = """
import gc, sys

gc.disable()

class Refuse:
    "An installed CoLLAP is as good as none."
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_collap", "processing"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""


def publish(folder: Path, hf_home: Path, repository: str) -> None:
    """Lay a folder into the cache as if it had been downloaded from the Hub."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = hf_home / "hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)


def run_elsewhere(folder: Path, script: str, *arguments) -> str:
    """Output of a script that must succeed, run in an empty folder, with caches of its own and without a network."""
    work = folder / "elsewhere"
    work.mkdir(exist_ok=True)
    environment = {
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PATH": os.environ.get("PATH", ""),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-c", REFUSE_INSTALLED + script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
