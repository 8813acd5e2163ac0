"""The retrieval metric as a Space: published by the command of its card, loaded by id and folder, shown by its app."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub_server import HubServer
from huggingface_hub import SpaceCard

from collap.hub.spaces.audio_text_retrieval.audio_text_retrieval import ranks_of_correct, retrieval_metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "collap" / "hub" / "spaces" / "audio_text_retrieval"
SPACE = "you/audio_text_retrieval"
FILES = {"README.md", "app.py", "audio_text_retrieval.py", "requirements.txt"}
# Arguments: ids or folders to load the metric from; prints the figures of each.
LOAD = """
import json, sys
import evaluate
import numpy as np

scores = np.random.default_rng(0).normal(size=(20, 12))
for name in sys.argv[1:]:
    metric = evaluate.load(name)
    ranks = metric.ranks_of_correct(scores, [[i % 12, (i + 5) % 12] for i in range(20)])
    metric.add_batch(predictions=ranks, references=[12] * 20)
    print(json.dumps(metric.compute(groups=[i // 2 for i in range(20)], k=[1, 5], num_bootstrap=50, seed=3)))
"""


def run(*command, environment: dict, cwd: Path) -> str:
    # evaluate counts downloads at another address than the Hub's; `python` is this one.
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment = {**environment, "HF_UPDATE_DOWNLOAD_COUNTS": "0", "PATH": path}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    """What each way of loading gives: from the Space, from the folder, and from the cache when the Hub has gone."""
    folder = tmp_path_factory.mktemp("space")
    with HubServer() as hub:
        environment = hub.environment(folder)
        publish = re.search(r"## Publish.*?```bash\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)[1]
        run("bash", "-ec", publish, environment=environment, cwd=ROOT)
        repository, files = hub.repository(SPACE, "space"), hub.files(SPACE, kind="space")
        loaded = run("python", "-c", LOAD, SPACE, FOLDER, environment=environment, cwd=folder)
    offline = run("python", "-c", LOAD, SPACE, environment={**environment, "HF_EVALUATE_OFFLINE": "1"}, cwd=folder)
    results = [json.loads(line) for line in (loaded + offline).splitlines()]
    return {**dict(zip(("id", "folder", "cache"), results, strict=True)), "files": files, "sdk": repository.sdk}


@pytest.mark.parametrize("way", ["id", "folder", "cache"])
def test_the_metric_loads_in_a_fresh_process(figures, way):
    scores = np.random.default_rng(0).normal(size=(20, 12))
    ranks = ranks_of_correct(scores, [[i % 12, (i + 5) % 12] for i in range(20)])
    assert figures[way] == retrieval_metrics(ranks, 12, [i // 2 for i in range(20)], (1, 5), 50, 3)


def test_the_space_holds_the_folder_and_nothing_else(figures):
    assert set(figures["files"]) == FILES and figures["sdk"] == "gradio"
    for name, content in figures["files"].items():
        assert content == (FOLDER / name).read_bytes()


def test_the_card_has_the_fields_of_a_metric_space():
    card = SpaceCard.load(FOLDER / "README.md")
    assert {"evaluate", "metric"} <= set(card.data.tags)  # by which evaluate lists metrics
    assert card.data.sdk == "gradio" and re.fullmatch(r"\d+\.\d+\.\d+", card.data.sdk_version)
    assert (FOLDER / card.data.app_file).is_file() and card.data.pinned is False
    assert card.data.title == "Audio-text retrieval" and "median rank" in card.data.description


def test_the_app_shows_the_card_without_its_front_matter(monkeypatch):
    """gradio is installed on the Space, not here."""
    shown = []

    class Blocks:
        def __init__(self, title):
            shown.append(title)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def launch(self):
            shown.append("launched")

    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(Blocks=Blocks, Markdown=shown.append))
    runpy.run_path(str(FOLDER / "app.py"))
    title, card, launched = shown
    assert (title, launched) == ("Audio-text retrieval", "launched")
    assert card.lstrip().startswith("# Metric card: audio-text retrieval") and "sdk_version" not in card
