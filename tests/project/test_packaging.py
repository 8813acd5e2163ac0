"""What is installed: both packages and nothing else, usable from any folder."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"modeling_collap", "collap/hub", "processing", "collap/corpora/synthetic"}
DATA = {"collap/hub/*.md", "collap/hub/probe_clips/*"}
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist", "data", "runs", "results")


def packaged(root: Path) -> set[str]:
    """Paths of the modules of the packages, and of their data."""
    patterns = {f"{package}/*.py" for package in PACKAGES} | DATA
    return {str(path.relative_to(root)) for pattern in patterns for path in root.glob(pattern)}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed, in an environment without this repository."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def imported_from(python: str | Path, names: str, cwd: Path, **environment: str) -> list[Path]:
    """Files of the modules `names`, imported in a new process in the folder `cwd`."""
    program = f"import {names}\nfor module in ({names},): print(module.__file__)"
    return [Path(line) for line in run(python, "-c", program, cwd=cwd, **environment).splitlines()]


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of what is built from, so that no build folder of another time is picked up or left behind."""
    folder = tmp_path / "source"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (folder / "data").mkdir()
    (folder / "data" / "__init__.py").touch()  # a folder that must not be taken for a package
    return folder


def test_the_build_holds_exactly_the_packages_and_works_from_another_folder(source, tmp_path):
    built, elsewhere = tmp_path / "built", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "base", "--build-lib", built, cwd=source)
    assert {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()} == packaged(ROOT)
    names = "modeling_collap, collap.models, processing, collap.corpora.synthetic.songs"
    files = imported_from(sys.executable, names, elsewhere, PYTHONPATH=str(built))
    assert files == [
        built / "modeling_collap" / "__init__.py",
        built / "modeling_collap" / "hub" / "folders.py",
        built / "processing" / "__init__.py",
        built / "processing" / "corpora" / "synthetic_songs.py",
    ]


@pytest.mark.slow
def test_the_wheel_installs_in_a_fresh_environment_and_works_from_another_folder(source, tmp_path):
    elsewhere, environment = tmp_path / "elsewhere", tmp_path / "venv"
    elsewhere.mkdir()
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-w", tmp_path, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert files == packaged(ROOT)
    assert len(licenses) == 1
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--constraint", ROOT / "constraints.txt", wheel, cwd=elsewhere)
    for file in imported_from(python, "modeling_collap, processing", elsewhere):
        assert file.is_relative_to(environment / "lib")


def test_one_version_of_python_is_asked_for_everywhere():
    found = {
        "setup.py": re.search(r'python_requires=">=3\.(\d+)"', (ROOT / "setup.py").read_text()),
        "pyproject.toml": re.search(r'target-version = "py3(\d+)"', (ROOT / "pyproject.toml").read_text()),
        "README.md": re.search(r"Python 3\.(\d+) or newer", (ROOT / "README.md").read_text()),
        "constraints.txt": re.search(r"\(Python 3\.(\d+)\)", (ROOT / "constraints.txt").read_text()),
    }
    assert {name: match and match.group(1) for name, match in found.items()} == dict.fromkeys(found, "11")


def test_clean_removes_every_folder_that_the_demo_writes():
    written = set(re.findall(r"\b(?:data|runs|results)/\w+", (ROOT / "demo" / "run.sh").read_text()))
    assert len(written) >= 5
    (command,) = re.findall(r"^clean:\n\trm -rf (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert written <= set(command.split())
