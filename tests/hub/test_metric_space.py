"""The retrieval metric as a Space: written from the functions of `collap evaluate`, published by the command of its
card, loaded by id and folder, shown by its app."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hub_server import HubServer
from huggingface_hub import SpaceCard

from collap.evaluation.metrics import ranks_of_correct, retrieval_metrics
from collap.hub.metric_space import write_metric_space

ROOT = Path(__file__).parents[2]
SPACE = "you/audio_text_retrieval"
FILES = {"README.md", "app.py", "audio_text_retrieval.py", "requirements.txt"}
WAYS = ("id", "folder", "cache", "folder, offline")
# Arguments: ids or folders to load the metric from; prints the figures of each. Importing this package fails.
LOAD = """
import gc, json, sys
gc.disable()
sys.modules.update(dict.fromkeys(("collap", "processing", "modeling_collap")))
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
def written(tmp_path_factory) -> Path:
    """The folder of the Space."""
    return write_metric_space(tmp_path_factory.mktemp("metric"))


@pytest.fixture(scope="module")
def figures(tmp_path_factory, written) -> dict:
    """What each way of loading gives, where this package is not: from the Space and from the folder, with empty caches
    and another working folder, and from the cache when the Hub has gone."""
    folder = tmp_path_factory.mktemp("space")
    with HubServer() as hub:
        environment = hub.environment(folder / "publisher")
        publish = re.search(r"## Publish.*?```bash\n(.*?)```", (written / "README.md").read_text(), re.DOTALL)[1]
        run("bash", "-ec", publish, environment=environment, cwd=folder)
        repository, files = hub.repository(SPACE, "space"), hub.files(SPACE, kind="space")
        environment = hub.environment(folder / "user")
        loaded = run("python", "-c", LOAD, SPACE, str(written), environment=environment, cwd=folder)
    offline = {**environment, "HF_EVALUATE_OFFLINE": "1"}
    loaded += run("python", "-c", LOAD, SPACE, str(written), environment=offline, cwd=folder)
    results = [json.loads(line) for line in loaded.splitlines()]
    return {**dict(zip(WAYS, results, strict=True)), "files": files, "sdk": repository.sdk}


@pytest.mark.parametrize("way", WAYS)
def test_the_metric_loads_in_a_fresh_process_without_this_package(figures, way):
    scores = np.random.default_rng(0).normal(size=(20, 12))
    ranks = ranks_of_correct(scores, [[i % 12, (i + 5) % 12] for i in range(20)])
    assert figures[way] == retrieval_metrics(ranks, 12, [i // 2 for i in range(20)], (1, 5), 50, 3)


def test_the_space_holds_the_folder_and_nothing_else(figures, written):
    assert set(figures["files"]) == FILES and figures["sdk"] == "gradio"
    for name, content in figures["files"].items():
        assert content == (written / name).read_bytes()


def test_the_card_has_the_fields_of_a_metric_space(written):
    card = SpaceCard.load(written / "README.md")
    assert {"evaluate", "metric"} <= set(card.data.tags)  # by which evaluate lists metrics
    assert card.data.sdk == "gradio" and re.fullmatch(r"\d+\.\d+\.\d+", card.data.sdk_version)
    assert (written / card.data.app_file).is_file() and card.data.pinned is False
    assert card.data.title == "Audio-text retrieval" and "median rank" in card.data.description


def test_the_app_shows_the_card_without_its_front_matter(monkeypatch, written):
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
    runpy.run_path(str(written / "app.py"))
    title, card, launched = shown
    assert (title, launched) == ("Audio-text retrieval", "launched")
    assert card.lstrip().startswith("# Metric card: audio-text retrieval") and "sdk_version" not in card


@pytest.fixture(scope="module")
def module(written):
    specification = importlib.util.spec_from_file_location("audio_text_retrieval", written / "audio_text_retrieval.py")
    loaded = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = loaded
    specification.loader.exec_module(loaded)
    return loaded


def test_the_metric_says_what_it_measures_and_whom_to_cite(module):
    metric = module.AudioTextRetrieval(keep_in_memory=True)
    assert '"median_rank" (rank): median over queries of the rank' in metric.inputs_description
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    named = [f"{one['family-names']}, {one['given-names']}" for one in cited["authors"]]
    for text in (cited["title"], " and ".join(named), cited["journal"], str(cited["year"])):
        assert text in metric.citation, text


def test_metric_class_refuses_scores_missing_groups_and_mixed_galleries(module, tmp_path):
    metric = module.AudioTextRetrieval(cache_dir=str(tmp_path), keep_in_memory=True)
    with pytest.raises(ValueError, match="query 0: .* Predictions are ranks, not scores"):
        # Truncated to whole numbers these scores would be the valid ranks 1 and 2.
        metric.compute(predictions=[[1.3, 2.9]], references=[2], groups=["a"])
    with pytest.raises(ValueError, match="groups is missing"):
        metric.compute(predictions=[[1]], references=[2])
    with pytest.raises(ValueError, match=r"share one gallery, found the sizes \[2, 3\]"):
        metric.compute(predictions=[[1], [1]], references=[2, 3], groups=["a", "b"])
    # A refused call leaves nothing behind in the next one.
    assert metric.compute(predictions=[[1], [2]], references=[2, 2], groups=["a", "b"])["num_queries"] == 2
