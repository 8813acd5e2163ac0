"""The walk of docs/hub.md, as written, against a local Hub: train, publish, load elsewhere, check, publish again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import ModelCard
from warm import warm_collap

ROOT = Path(__file__).parents[2]
TIMEOUT = 300


def blocks(language: str, page: str = "docs/hub.md") -> list[str]:
    """Text of every code block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), flags=re.M | re.S)


def run(command: list[str], hub: HubServer, folder: Path) -> subprocess.CompletedProcess:
    environment = hub.environment(folder / "home")
    environment["PATH"] = f"{folder / 'bin'}:{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """All blocks, in a folder that looks like the clone after `make demo`, and the Hub they left behind: those of the
    shell in order, then those of Python in one process, one after another."""
    from healthy import healthy_folder

    folder = tmp_path_factory.mktemp("walk")
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs", "results"):
            (folder / path.name).symlink_to(path)
    healthy_folder(folder / "runs" / "demo" / "collap-gpt2" / "best")
    outputs = []
    with HubServer() as hub, warm_collap(folder, hub.environment(folder / "home")):
        commands = [["bash", "-euo", "pipefail", "-c", text] for text in blocks("bash")]
        for command in [*commands, [sys.executable, "-c", "\n".join(blocks("python"))]]:
            done = run(command, hub, folder)
            assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            outputs.append(done.stdout)
        yield hub, folder, outputs


def test_every_block_was_run(walked):
    _, _, outputs = walked
    train, measure, check, again, data, printed = outputs
    assert re.search(r"published: \S+/you/collap-gpt2/commit/[0-9a-f]{40}", train)
    assert "R@5" in measure and re.search(r"\d\.\d \[\d", measure) and "/commit/" in measure
    assert "is healthy" in check and "ok       golden vectors" in check
    uploaded, published = re.findall(r"/commit/([0-9a-f]{40})", again)[-2:]
    assert uploaded != published
    assert "R@5" in data
    assert re.search(r"tensor\(\[\[.*\]\]\)\n.*'value': 50.0", printed)


def test_the_published_card_has_the_figures_and_the_author_s_notes(walked):
    hub, folder, _ = walked
    card = ModelCard(hub.files("you/collap-gpt2")["README.md"].decode())
    assert "The flute is found best." in card.content and "0.1 kWh" in card.content
    splits = {result.dataset_split for result in card.data.eval_results}
    assert splits == {"validation", "test"}  # of train.py, and of evaluate_retrieval.py
    assert card.data.license == "apache-2.0"
    assert str(folder) not in card.content


def test_the_repositories_hold_what_was_published(walked):
    hub, folder, _ = walked
    model = hub.files("you/collap-gpt2")
    local = (folder / "runs" / "collap-gpt2" / "best" / "model.safetensors").read_bytes()
    assert model["model.safetensors"] == local
    assert {"golden.safetensors", "config.json", "processor_config.json", "modeling_collap.py"} <= set(model)
    assert {"training/metrics.jsonl", "training/summary.json"} <= set(model)
    assert not {"publish.py", "doctor.py", "folders.py"} & set(model)
    assert any(path.endswith(".parquet") for path in hub.files("you/few-songs", kind="dataset"))
    assert "audio_text_retrieval.py" in hub.files("you/audio_text_retrieval", kind="space")


def test_the_python_blocks_of_the_readme_run(walked, corpus):
    """In one process, as if they were typed one after another; beside the model of the walk, and songs."""
    hub, folder, _ = walked
    (folder / "data" / "demo_songs").symlink_to(corpus)
    done = run([sys.executable, "-c", "\n".join(blocks("python", "README.md"))], hub, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(r"tensor\(\[\[.*?\]\]\)\ntensor\(", done.stdout, re.S) and "'start': " in done.stdout


def test_a_damaged_download_is_noticed(walked):
    """huggingface_hub compares sizes only."""
    hub, folder, _ = walked
    snapshots = (folder / "home").rglob("models--you--collap-gpt2/snapshots/*/scoring_collap.py")
    (code,) = {path.resolve() for path in snapshots}
    content = code.read_bytes()
    code.write_bytes(content.replace(b"softmax", b"sigmoid", 1))
    done = run(["collap", "doctor", "you/collap-gpt2"], hub, folder)
    assert done.returncode == 1 and re.search(r"^failed +copies: .*scoring_collap.py", done.stdout, re.M), done.stdout
