"""What is installed: three packages and nothing else, and commands that need no clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("modeling_collap", "processing", "collap")
DATA = (
    "collap/corpora/*.md",
    "collap/corpora/prompts/*",
    "collap/hub/*.md",
    "collap/evaluation/probe_clips/*",
    "collap/evaluation/suites/*",
    "collap/hub/spaces/*/*",
    "collap/search/serve/page/*",
)
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist", "data", "runs", "results")
# What an installed package does, run in one process: prints the exit code of every command.
COMMANDS = """
import importlib, json, sys
from pathlib import Path

from collap.cli import main

installed, model, corpus, beats, whisper = map(str, sys.argv[1:])
data = ["--dataset", corpus, "--text_column", "captions", "--song_column", "song_id"]
encoders = ["--music", beats, "--speech", whisper, "--segment_seconds", "2"]
commands = {
    "data check": ["data", "check", corpus, "--text_column", "captions"],
    "evaluate": ["evaluate", "--model", model, *data, "--output_dir", "results"],
    "precompute": ["precompute", "--dataset", corpus, "--splits", "test", *encoders, "--output_dir", "tokens"],
    "publish": ["publish", model, "you/tiny", "--results", "results/results.json", "--license", "mit"],
    "publish metric": ["publish", "audio_text_retrieval", "you/audio_text_retrieval", "--repo_type", "space"],
    "publish corpus": ["publish", corpus, "you/songs", "--repo_type", "dataset"],
    "doctor": ["doctor", "you/tiny"],
}
codes = {name: main(arguments) for name, arguments in commands.items()}
for name in ("modeling_collap", "processing", "collap", "collap.models", "collap.corpora.synthetic.songs"):
    file = Path(importlib.import_module(name).__file__)
    assert file.is_relative_to(installed), file
print("codes:", json.dumps(codes))
"""


def packaged(root: Path) -> set[str]:
    """Paths of the modules of the packages, and of their data."""
    modules = {path for package in PACKAGES for path in (root / package).rglob("*.py") if "spaces" not in path.parts}
    data = {path for pattern in DATA for path in root.glob(pattern) if path.is_file()}
    return {str(path.relative_to(root)) for path in modules | data}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed, in an environment without this repository."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of what is built from, so that no build folder of another time is picked up or left behind."""
    folder = tmp_path / "source"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT, "tests"))
    shutil.copytree(ROOT / "collap" / "data", folder / "collap" / "data", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").mkdir()
    (folder / "data" / "__init__.py").touch()  # a folder that must not be taken for a package
    return folder


def everything_works(python: str | Path, installed: Path, inputs: list[Path], folder: Path, **environment: str) -> None:
    """Runs the commands from an empty folder, where nothing but the installed package is to be found."""
    folder.mkdir()
    with HubServer() as hub:
        settings = {**hub.environment(folder / "home"), "OMP_NUM_THREADS": "1", **environment}
        printed = run(python, "-c", COMMANDS, installed, *inputs, cwd=folder, **settings)
        codes = json.loads(printed.splitlines()[-1].removeprefix("codes: "))
        assert codes == dict.fromkeys(codes, 0), printed
        assert {"model.safetensors", "README.md", "golden.safetensors"} <= set(hub.files("you/tiny"))
        assert "audio_text_retrieval.py" in hub.files("you/audio_text_retrieval", kind="space")
        assert "corpus.json" in hub.files("you/songs", kind="dataset")
    assert (folder / "results" / "results.json").is_file() and (folder / "tokens" / "test" / "index.json").is_file()
    assert "you/tiny is healthy" in printed and "12 usable pairs" in printed


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, corpus, backbones) -> list[Path]:
    """A healthy model, a corpus, and both audio backbones."""
    from healthy import healthy_folder

    return [healthy_folder(tmp_path_factory.mktemp("model")), corpus, backbones["beats"], backbones["whisper"]]


def test_the_build_holds_exactly_the_packages_and_works_from_another_folder(source, inputs, tmp_path):
    built = tmp_path / "built"
    run(sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path / "base", "--build-lib", built, cwd=source)
    assert {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()} == packaged(ROOT)
    everything_works(sys.executable, built, inputs, tmp_path / "elsewhere", PYTHONPATH=str(built))


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment_without_a_clone(source, inputs, tmp_path):
    environment = tmp_path / "venv"
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-w", tmp_path, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert files == packaged(ROOT)
    assert len(licenses) == 1
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--constraint", ROOT / "constraints.txt", f"{wheel}[train]", cwd=tmp_path)
    for name in (
        "evaluate",
        "precompute",
        "publish",
        "doctor",
        "data check",
        "export",
        "corpus render",
        "corpus build",
    ):
        assert "usage:" in run(environment / "bin" / "collap", *name.split(), "--help", cwd=tmp_path)
    everything_works(python, environment / "lib", inputs, tmp_path / "elsewhere")


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
