"""Publishing with the real client to a Hub on loopback: what arrives, what stays, what a failure leaves.

One process imports everything once and publishes for most tests (`Publisher`); the command itself, and loading without
this package, run in processes of their own.
"""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
import torch
from elsewhere import REFUSE_INSTALLED
from healthy import healthy_folder
from hub_server import READ_TOKEN, HubServer
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from test_cards import make_results, make_summary
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoModel, TorchAoConfig

import train
from collap.cli import parse, run_command
from collap.corpora.synthetic.songs import build_corpus
from collap.hub import publish as publishing
from collap.hub.remote import UPLOADED_CODE, PublishSettings
from collap.hub.staging import own_files
from collap.models import load_model, save_model_folder

ROOT = Path(__file__).parents[2]
FILES = {
    "README.md",
    "config.json",
    "golden.safetensors",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modeling_collap.py",
    "evaluation/my_songs-test-captions.json",
    "training/metrics.jsonl",
    "training/summary.json",
    "runs/events.out.tfevents.1795179248.0",
}
PUBLISHER = """
import contextlib, io, json, sys

from collap.cli import run_command

answers = sys.stdout
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        given = json.loads(line)
        code = run_command("publish", given) if isinstance(given, list) else exec(given, {})
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""
LOADER = """
import torch
from pathlib import Path
from transformers import AutoModel, AutoProcessor

block = Path("block.py").read_text()
results = []
for _ in range(2):  # by Hub id, then by the folder of that name
    torch.manual_seed(0)
    space = {}
    exec(block, space)
    results.append(space["output"].logits_per_audio)
    assert type(space["model"]).__module__.startswith("transformers_modules."), type(space["model"])
    if len(results) == 1:
        from huggingface_hub import snapshot_download
        snapshot_download(space["name"], local_dir=space["name"])
assert torch.equal(*results)
torch.save(results[0], "scores.pt")
"""


class Publisher:
    """`collap publish` without its start: called with arguments, gives code, stdout and stderr; and
    `run` executes a script beside it."""

    def __init__(self, environment: dict):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *arguments) -> tuple[int, str, str]:
        return self.ask([str(argument) for argument in arguments])

    def ask(self, given: list | str) -> tuple[int | None, str, str]:
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))

    def run(self, script: str) -> str:
        return self.ask(script)[1]

    def succeed(self, *arguments) -> str:
        code, out, err = self(*arguments)
        assert code == 0, err
        return out.strip()


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def publish(hub, tmp_path_factory):
    publisher = Publisher(hub.environment(tmp_path_factory.mktemp("publisher")))
    yield publisher
    publisher.process.stdin.close()
    publisher.process.wait(30)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What train.py leaves: best/, summary.json, metrics.jsonl and tensorboard's files; no golden vectors yet."""
    run = tmp_path_factory.mktemp("machine") / "run"
    healthy_folder(run / "best")
    (run / "best" / "golden.safetensors").unlink()
    config = json.loads((run / "best" / "config.json").read_text())
    config["text_config"]["_name_or_path"] = "/home/alice/gpt2"
    (run / "best" / "config.json").write_text(json.dumps(config))
    (run / "summary.json").write_text(json.dumps(make_summary()))
    (run / "metrics.jsonl").write_text('{"step": 450, "eval/mAP": 42.9, "file": "/home/alice/x"}\n')
    with SummaryWriter(str(run / "tensorboard")) as writer:
        writer.add_text("settings", "/home/alice/runs")
        for step in range(3):
            writer.add_scalar("train/loss", 3.0 - step, step)
    (events,) = (run / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1795179248.alices-laptop.14.0"))
    return run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "results.json"
    path.write_text(json.dumps(make_results()))
    return path


@pytest.fixture(scope="module")
def published(hub, publish, run_folder, results):
    """you/tiny, published once with everything."""
    before = contents(run_folder)
    out = publish.succeed(
        run_folder / "best", "you/tiny", "--results", results, "--license", "mit", "--energy_kwh", "1.5"
    )
    assert out == f"{hub.endpoint}/you/tiny/commit/{hub.repository('you/tiny').at('main').id}"
    assert contents(run_folder) == before
    return hub.files("you/tiny")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_model(run_folder: Path, folder: Path) -> Path:
    shutil.copytree(run_folder / "best", folder / "model")
    return folder / "model"


def card_of(hub, name: str, revision: str = "main") -> ModelCard:
    return ModelCard(hub.files(name, revision)["README.md"].decode())


def one_line(error: str) -> str:
    """The last line of stderr, which is the error and all there is to read."""
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in error and HubServer.token not in error
    return last


# --------------------------------------------------------------------------------------------------------------------
# What is published


def test_everything_a_user_needs_arrives_in_one_commit(hub, published):
    assert set(published) >= FILES
    assert [commit.title for commit in hub.repository("you/tiny").at("main").history()] == [
        "Publish tiny",
        "initial commit",
    ]
    data = ModelCard(published["README.md"].decode()).data
    assert data.license == "mit" and "collap" in data.tags
    assert {one.metric_type for one in data.eval_results} >= {"recall_at_1", "map", "median_rank"}
    assert "1.5 kWh" in published["README.md"].decode()


def test_nothing_of_the_machine_is_published(published, run_folder):
    for name, content in published.items():
        for secret in (b"alice", HubServer.token.encode(), str(run_folder.parent).encode()):
            assert secret not in content, name
    assert json.loads(published["training/metrics.jsonl"]) == {"step": 450, "eval/mAP": 42.9, "file": ".../x"}


def test_the_curves_arrive_whole(published, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "events.out.tfevents.1").write_bytes(published["runs/events.out.tfevents.1795179248.0"])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["train/loss"] and events.Tags()["tensors"] == []
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_the_usage_block_of_the_card_runs_as_printed(hub, publish, published, tmp_path, monkeypatch):
    """Without this package by Hub id and by folder, in a fresh process; with it by both, too."""
    usage = re.search(r"<!-- collap:usage -->(.*?)<!-- /collap:usage -->", published["README.md"].decode(), re.S)[1]
    without_package, with_package = re.findall(r"```python\n(.*?)```", usage, re.S)
    (tmp_path / "block.py").write_text(without_package)
    done = subprocess.run(
        [sys.executable, "-c", REFUSE_INSTALLED + LOADER],
        cwd=tmp_path,
        env=hub.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    scores = torch.load(tmp_path / "scores.pt")
    assert scores.shape == (2, 2)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space = {}
    exec(without_package, space)
    torch.testing.assert_close(space["output"].logits_per_audio, scores)
    exec(with_package, space)
    assert type(space["model"]).__module__ == "modeling_collap.modeling_collap"
    assert publish.run(with_package + "print(type(model).__module__)").strip() == "modeling_collap.modeling_collap"


def test_pickles_hidden_files_and_links_out_of_the_folder_are_not_sent(hub, publish, run_folder, tmp_path):
    model = copy_model(run_folder, tmp_path)
    for name in (
        "optimizer.bin",
        "deep/random_states_0.pkl",
        "weights.pt",
        "x.pt2",
        ".env",
        "__pycache__/x.pyc",
        "other.py",
    ):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"secret")
    (tmp_path / "secret.txt").write_text("secret")
    (model / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (model / "LICENSE").write_text("do what you like")
    publish.succeed(model, "you/clean")
    files = hub.files("you/clean")
    assert files["LICENSE"] == b"do what you like"
    assert [name for name, content in files.items() if content == b"secret"] == []
    assert {Path(name).suffix for name in files} <= {".md", ".json", ".py", ".safetensors", ""}


def test_the_hubs_own_cache_of_links_is_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("card")
    (snapshot / "README.md").symlink_to("../../blobs/1")
    assert set(own_files(snapshot)) == {"README.md"}


def test_weights_above_the_size_are_sharded_and_old_shards_go(hub, publish, published, run_folder, tmp_path):
    model = run_folder / "best"
    publish.succeed(model, "you/sharded", "--max_shard_size", "100KB")
    shards = {name for name in hub.files("you/sharded") if name.startswith("model-")}
    assert len(shards) > 2 and "model.safetensors.index.json" in hub.files("you/sharded")
    index = json.loads(hub.files("you/sharded")["model.safetensors.index.json"])
    assert set(index["weight_map"].values()) == shards
    of_users = {"photo.png": b"x", "handler.py": b"x = 1", "probe.safetensors": b"x"}
    of_users |= dict.fromkeys(("__init__.py", "export.py", "publish.py", "doctor.py", "app.py"), b"x = 1")
    former = {"tokenizer_old.model": b"x", "audio_files.py": b"x = 1", "pytorch_model.bin": b"x"}
    hub.commit("you/sharded", of_users | former)
    _, _, err = publish(model, "you/sharded")
    files = set(hub.files("you/sharded"))
    assert "model.safetensors" in files and files >= of_users.keys()
    gone = {*former, *shards, "model.safetensors.index.json"}
    assert not files & gone
    assert {line.split(" is of the former model and goes from ")[0] for line in err.splitlines()} == gone


def test_all_code_that_is_published_can_be_replaced_later(published):
    assert {name for name in published if name.endswith(".py")} <= set(UPLOADED_CODE)


def test_private_repositories_branches_and_pull_requests(hub, publish, run_folder):
    model = run_folder / "best"
    publish.succeed(model, "you/hidden", "--private", "--revision", "v2")
    assert hub.repository("you/hidden").private
    assert "model.safetensors" in hub.files("you/hidden", "v2") and not hub.files("you/hidden", "main")
    out = publish.succeed(model, "you/hidden", "--create_pr", "--private")
    assert out.endswith("/you/hidden/discussions/1")
    assert "model.safetensors" in hub.files("you/hidden", "refs/pr/1") and not hub.files("you/hidden", "main")


# --------------------------------------------------------------------------------------------------------------------
# Publishing again


def test_publishing_again_changes_nothing_sends_nothing_and_needs_no_results(hub, publish, published, run_folder):
    commit, sent = hub.repository("you/tiny").at("main").id, len(hub.requests("PUT"))
    publish.succeed(run_folder / "best", "you/tiny")
    assert hub.files("you/tiny") == published
    assert hub.repository("you/tiny").at("main").id == commit and len(hub.requests("PUT")) == sent


def test_handwritten_text_is_kept_from_the_hub_and_from_the_folder(hub, publish, published, run_folder, tmp_path):
    card = published["README.md"].decode().replace("## Results", "## Thanks\n\nTo the singers.\n\n## Results")
    card = card.replace("<!-- collap:limits -->", "Only for jazz.").replace("license: mit", "license: mit\nmood: blue")
    hub.commit("you/again", {**published, "README.md": card.encode(), "onnx/text.onnx": b"x"})
    model = copy_model(run_folder, tmp_path)
    newer = make_results(70.0)
    (tmp_path / "new.json").write_text(json.dumps(newer))
    publish.succeed(model, "you/again", "--results", tmp_path / "new.json")
    text = hub.files("you/again")["README.md"].decode()
    assert "To the singers." in text and "Only for jazz." in text and "mood: blue" in text
    assert "70.0 [66.5, 74.0]" in text and "20.0 [16.5, 24.0]" not in text
    assert "NVIDIA A100" in text and "onnx/text.onnx" in hub.files("you/again")  # they are of the same weights
    (model / "evaluation").mkdir()
    (model / "evaluation" / "validation.json").write_text(json.dumps(newer))
    (tmp_path / "new.json").write_text(json.dumps(make_results(90.0)))
    publish.succeed(model, "you/again", "--results", tmp_path / "new.json")  # what is given now wins
    assert "90.0 [86.5, 94.0]" in hub.files("you/again")["README.md"].decode()
    local = text.replace("## Thanks", "## Local\n\nFrom my disk.\n\n## Thanks").replace("To the singers.", "To nobody.")
    (model / "README.md").write_text(local)
    _, _, err = publish(model, "you/again")
    text = hub.files("you/again")["README.md"].decode()
    assert "From my disk." in text and "To the singers." in text and "To nobody." not in text
    assert err.strip() == f"{model}/README.md: ## Thanks is not as on the Hub, where it stays as it is; edit it there"
    assert card_of(hub, "you/again").data["mood"] == "blue"


def test_figures_of_other_weights_are_not_kept(hub, publish, published, run_folder, tmp_path):
    former = {"onnx/text.onnx": b"x", "adapter/adapter_config.json": b"{}", "photo.png": b"of a user"}
    hub.commit("you/newer", {**published, **former})
    model = copy_model(run_folder, tmp_path)
    (model / "adapter").mkdir()
    (model / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "runs/demo/base"}')
    publish.succeed(model, "you/newer")
    assert former.items() <= hub.files("you/newer").items()
    change_weights(model)
    _, _, err = publish(model, "you/newer")
    assert "evaluation/my_songs-test-captions.json is of the former model and goes from you/newer" in err
    assert not [name for name in hub.files("you/newer") if "/" in name]
    assert "photo.png" in hub.files("you/newer")
    assert card_of(hub, "you/newer").data.eval_results is None
    assert "No evaluation has been published" in card_of(hub, "you/newer").text


def test_what_the_former_weights_were_made_from_leaves_the_card(hub, publish, run_folder, tmp_path):
    for name in ("you/old-text", "you/new-text"):
        hub.create("model", name)
    for name in ("you/old-songs", "you/new-songs"):
        hub.create("dataset", name)
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (run / "summary.json").write_text(json.dumps(make_summary(text="you/old-text", dataset="you/old-songs")))
    publish.succeed(run / "best", "you/remade", "--license", "mit")
    change_weights(run / "best")
    (run / "summary.json").unlink()
    publish.succeed(run / "best", "you/remade")  # it does not say, so that what was said stays
    assert card_of(hub, "you/remade").data.datasets == ["you/old-songs"]
    change_weights(run / "best")
    (run / "summary.json").write_text(json.dumps(make_summary(text="you/new-text", dataset="you/new-songs")))
    publish.succeed(run / "best", "you/remade")
    data = card_of(hub, "you/remade").data
    assert (data.base_model, data.datasets, data.license) == (["you/new-text"], ["you/new-songs"], "mit")


def change_weights(model: Path) -> None:
    weights = {name: weight.clone() for name, weight in load_file(model / "model.safetensors").items()}
    weights["text_tower.projection.bias"] += 1e-6
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_evaluations_of_others_on_the_hub_stay(hub, publish, published, run_folder):
    hub.commit("you/shared", {**published, "evaluation/mine.json": b'{"a": 1}', "evaluation/bytes.json": b"\xff"})
    publish.succeed(run_folder / "best", "you/shared")
    assert {"evaluation/mine.json", "evaluation/bytes.json"} <= set(hub.files("you/shared"))
    assert "20.0 [16.5, 24.0]" in hub.files("you/shared")["README.md"].decode()


def test_what_others_write_while_it_is_put_together_is_not_replaced(hub, publish, published, run_folder):
    hub.commit("you/raced", published)
    card = published["README.md"] + b"\n## Meanwhile\n\nWritten on the Hub.\n"
    command = [str(run_folder / "best"), "you/raced", "--license", "cc0-1.0"]
    script = f"""
from huggingface_hub import HfApi
from collap.cli import run_command
from collap.hub import publish
original = publish.check_health
def meanwhile(*arguments):
    publish.check_health = original
    HfApi().upload_file(path_or_fileobj={card!r}, path_in_repo="README.md", repo_id="you/raced")
publish.check_health = meanwhile
print(run_command("publish", {command!r}))
"""
    _, out, err = publish.ask(script)
    assert out.strip() == "1" and hub.files("you/raced")["README.md"] == card
    assert "the Hub answered 412: the repository has changed meanwhile" in one_line(err)
    publish.succeed(*shlex.split(err.split("repeat with: collap publish ")[1]))
    text = hub.files("you/raced")["README.md"].decode()
    assert "Written on the Hub." in text and "license: cc0-1.0" in text


# --------------------------------------------------------------------------------------------------------------------
# Failures


def test_an_upload_that_was_killed_goes_on_where_it_was(hub, publish, published, run_folder, tmp_path):
    """The command as a user starts it, killed while the golden vectors are on their way."""
    model = copy_model(run_folder, tmp_path)
    golden = published["golden.safetensors"]
    oid = hashlib.sha256(golden).hexdigest()
    del hub.objects[oid]
    before, sent = set(hub.objects), len(hub.requests("PUT"))
    hub.fail("PUT", oid, cut_after=1000, times=None)
    arguments = [model, "you/killed", "--max_shard_size", "60KB"]
    command = [sys.executable, "-m", "collap", "publish", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=hub.environment(tmp_path), stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: set(hub.objects) - before and oid in uploads(hub, sent), process)
        process.send_signal(signal.SIGKILL)
    hub.faults.clear()
    delivered, sent = set(hub.objects) - before, len(hub.requests("PUT"))
    assert not hub.files("you/killed") and oid not in hub.objects
    publish.succeed(*arguments)
    assert oid in uploads(hub, sent) and uploads(hub, sent).isdisjoint(delivered)
    assert hub.files("you/killed")["golden.safetensors"] == golden
    assert "model.safetensors.index.json" in hub.files("you/killed")


def uploads(hub, start: int) -> set[str]:
    """Hashes of the objects that were sent after the first `start`."""
    return {request.path.strip("/") for request in hub.requests("PUT")[start:]}


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_push_keeps_the_folder_and_says_how_to_repeat_it(hub, publish, run_folder, tmp_path):
    model = copy_model(run_folder, tmp_path / "with blank")
    before = contents(model)
    arguments = [model, "you/failing", "--private", "--license", "mit", "--max_shard_size", "50KB"]
    hub.fail("PUT", "/", status=507)
    code, _, err = publish(*arguments)
    line = one_line(err)
    assert code == 1 and "the Hub answered 507" in line and f"{model} is untouched" in line
    assert contents(model) == before and not hub.files("you/failing")
    command = line.split("repeat with: ")[1]
    repeated = shlex.split(command)
    assert repeated[:2] == ["collap", "publish"]
    there, sent = set(hub.objects), len(hub.requests("PUT"))
    publish.succeed(*repeated[2:])
    assert uploads(hub, sent) and uploads(hub, sent).isdisjoint(there)
    assert "model.safetensors.index.json" in hub.files("you/failing") and hub.repository("you/failing").private


@pytest.mark.parametrize(
    ("method", "part", "fault", "message"),
    [
        ("POST", "/commit/", {"status": 500}, "the Hub answered 500"),
        ("POST", "/commit/", {"status": 403}, "the Hub answered 403: the token may not write there"),
        ("POST", "/commit/", {"cut_after": 100}, "the connection broke off"),
        ("HEAD", "README.md", {"status": 403}, "the Hub answered 403"),  # of the card that is there
    ],
)
def test_failures_on_the_way_are_one_line(hub, publish, published, run_folder, method, part, fault, message):
    card = b"---\nlicense: mit\n---\n# Mine\n"
    hub.commit("you/failing-commit", {"README.md": card})
    hub.fail(method, part, **fault, times=None)
    code, _, err = publish(run_folder / "best", "you/failing-commit")
    hub.faults.clear()
    assert code == 1 and message in one_line(err) and "repeat with: collap publish" in err
    assert hub.files("you/failing-commit") == {"README.md": card}


def test_a_bug_is_no_failure_of_the_network():
    with pytest.raises(KeyError), publishing.explained(PublishSettings("you/x")):
        {}["a bug"]


def test_permission_to_write_is_asked_for_before_anything_else(hub, publish):
    """Where the repository exists, making it again does not tell."""
    hub.create("model", "somebody/theirs")
    hub.create("model", "you/mine")
    script = f"""
from collap.hub.publish import PublishError, check_can_publish
for name, settings in [("somebody/theirs", {{}}), ("you/mine", {{"token": {READ_TOKEN!r}}})]:
    print(check_can_publish(name, **settings, create_pr=True))
    try:
        print(check_can_publish(name, **settings))
    except PublishError as error:
        print(error)
print(check_can_publish("mine"))
"""
    theirs, refused, mine, read_only, allowed = publish.run(script).splitlines()
    assert (theirs, mine, allowed) == ("somebody/theirs", "you/mine", "you/mine")
    for name, line in (("somebody/theirs", refused), ("you/mine", read_only)):
        assert line.startswith(f"{name} was not published: the Hub answered 403: the token may not write there")


def test_every_process_of_a_training_run_ends_if_it_cannot_be_published(corpus, backbones, tmp_path, monkeypatch):
    def refuse(**settings):
        print("asked by", os.environ["RANK"], flush=True)
        raise publishing.PublishError("no token")

    monkeypatch.setattr(train, "check_can_publish", refuse)
    run = runs.train(tmp_path, runs.settings(corpus, backbones), num_processes=2, push_to_hub=True)
    assert run.returncode == 1 and run.stdout.count("asked by") == 1 and "asked by 0" in run.stdout
    assert run.stdout.count("error: no token") == 2 and "Traceback" not in run.stdout


def test_an_unhealthy_model_is_refused_unless_anyway(hub, publish, run_folder, tmp_path):
    model = copy_model(run_folder, tmp_path)
    weights = load_file(model / "model.safetensors")
    weights["text_tower.projection.weight"].zero_()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    code, _, err = publish(model, "you/sick")
    assert code == 1 and "unhealthy" in one_line(err) and "text" in err
    assert not hub.files("you/sick")
    _, repeated = err.split("publish it with: collap publish ")
    assert shlex.split(repeated) == [str(model), "you/sick", "--anyway"]
    code, _, err = publish(*shlex.split(repeated))
    assert code == 0 and "unhealthy" in err and "model.safetensors" in hub.files("you/sick")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "you/x"], "nowhere: no such folder"),
        (["{run}", "you/x"], "{run}/best is one"),
        (["{run}/best", "you/x", "--create_pr", "--revision", "v2"], "leave out --revision"),
        (["{run}/best", "you/tiny", "--private"], "you/tiny exists and is public"),
        (["{run}/best", "somebody/x"], "the Hub answered 403"),
        (["{run}/best", "you/x", "--results", "{run}/summary.json"], "not a results.json"),
        (["{run}/best", "you/x", "--repo_type", "space"], "no sdk and no tags"),
        (["{run}/best", "you/x", "--repo_type", "dataset"], "corpus.json: not found"),
        (
            ["audio_text_retrieval", "you/audio-text-retrieval", "--repo_type", "space"],
            "no audio-text-retrieval.py, which",
        ),
    ],
)
def test_wrong_arguments_are_one_line(publish, published, run_folder, arguments, message):
    code, _, err = publish(*(argument.format(run=run_folder) for argument in arguments))
    assert code == 1 and message.format(run=run_folder) in one_line(err)


def test_results_of_other_weights_are_refused(hub, publish, run_folder, corpus, tmp_path):
    """Told by the weights that were evaluated; in results that do not say, by the folder that they name."""
    model, results = copy_model(run_folder, tmp_path), tmp_path / "results.json"
    command = ["--model", str(model), "--dataset", str(corpus), "--text_column", "captions"]
    assert run_command("evaluate", [*command, "--output_dir", str(tmp_path)]) == 0
    publish.succeed(model, "you/measured", "--results", results, "--max_shard_size", "50KB")
    digest = "from collap.models import load_model, weights_digest\nload_model('you/measured')\n"
    printed = publish.run(digest + "print(weights_digest('you/measured'))")
    assert printed.strip() == json.loads(results.read_text())["weights"]
    change_weights(model)
    refused = f"is about {model}, which had other weights than"
    code, _, err = publish(model, "you/measured", "--results", results)
    assert code == 1 and refused in one_line(err)
    results.write_text(json.dumps(make_results(model=str(model))))
    code, _, err = publish(run_folder / "best", "you/x", "--results", results)
    assert code == 1 and refused in one_line(err)
    (model / "model.safetensors").write_bytes(b"damaged")
    code, _, err = publish(run_folder / "best", "you/x", "--results", results)
    assert code == 1 and f"{model}/model.safetensors: cannot be read" in one_line(err)


def test_a_quantised_model_is_refused_before_anything_is_made(hub, publish, run_folder, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig

    settings = TorchAoConfig(Int8WeightOnlyConfig())
    _, processor = load_model(run_folder / "best")
    quantised = AutoModel.from_pretrained(run_folder / "best", quantization_config=settings)
    save_model_folder(quantised, processor, tmp_path / "int8")
    code, _, err = publish(tmp_path / "int8", "you/int8")
    assert code == 1 and "its weights are quantised" in one_line(err)
    assert ("model", "you/int8") not in hub.repositories


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", "{", "summary.json: damaged"),
        ("summary.json", '{"steps": 3}', "no finished, epochs, songs"),
        ("metrics.jsonl", '{"step": 1}\n{"st', "metrics.jsonl, line 2: damaged"),
        ("best/README.md", "---\nlicense: [\n---\n", "best/README.md: the metadata"),
    ],
)
def test_damaged_files_of_a_run_are_named(publish, run_folder, tmp_path, name, content, message):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    code, _, err = publish(tmp_path / "run" / "best", "you/x")
    assert code == 1 and message in one_line(err)


def test_a_missing_token_is_noticed_before_anything(monkeypatch):
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    with pytest.raises(publishing.PublishError, match="hf auth login"):
        publishing.check_can_publish("you/x")


# --------------------------------------------------------------------------------------------------------------------
# Corpora and metrics


def test_a_corpus_is_published_so_that_load_dataset_reads_it(hub, publish, tmp_path):
    songs = build_corpus(tmp_path / "songs", {"train": 2, "test": 1}, 5, 12.0, 14.0, num_workers=1)
    publish.succeed(songs, "you/songs", "--repo_type", "dataset", "--license", "cc0-1.0")
    files = hub.files("you/songs", kind="dataset")
    assert set(files) == {
        "README.md", "corpus.json", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
    }  # fmt: skip
    publish.succeed(songs, "you/songs", "--repo_type", "dataset")
    assert hub.files("you/songs", kind="dataset") == files
    script = re.search(r"```python\n(.*?)```", files["README.md"].decode(), re.S)[1]
    script += f"""
import json
from pathlib import Path
from collap.data.sources import open_dataset
test = open_dataset("you/songs", "test", text_column="captions")
plain = load_dataset("you/songs", split="test")
rows = [songs[0]["captions"], len(songs), test[0]["captions"], plain.features["audio"].decode]
Path({str(tmp_path)!r}, "rows.json").write_text(json.dumps(rows))
Path({str(tmp_path)!r}, "song.flac").write_bytes(songs[0]["audio"]["bytes"])
"""
    printed = publish.run(script)
    train, test = (
        [json.loads(line) for line in (songs / split / "metadata.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    )
    assert printed.strip() == train[0]["captions"][0]
    assert json.loads((tmp_path / "rows.json").read_text()) == [train[0]["captions"], 2, test[0]["captions"], True]
    assert (tmp_path / "song.flac").read_bytes() == (songs / "train" / train[0]["file_name"]).read_bytes()


def test_a_data_set_that_was_built_is_published(hub, publish, tmp_path):
    songs = build_corpus(tmp_path / "songs", {"train": 2}, 5, 12.0, 14.0, num_workers=1) / "train"
    out, options = tmp_path / "mine", ["--min_seconds", "5", "--num_workers", "1"]
    assert run_command("corpus build", [str(songs), str(out), "--audio", "reference", *options]) == 0
    code, _, err = publish(out, "you/mine", "--repo_type", "dataset")
    assert code == 1 and "build it with --audio embed" in one_line(err)
    assert run_command("corpus build", [str(songs), str(tmp_path / "set"), *options]) == 0
    publish.succeed(tmp_path / "set", "you/mine", "--repo_type", "dataset", "--license", "cc0-1.0")
    files = hub.files("you/mine", kind="dataset")
    shards = {f"data/{path.name}" for path in (tmp_path / "set" / "data").iterdir()}
    assert set(files) == {"README.md", "report.json", "figures/histograms.png", "figures/song.png", *shards}
    card, report = files["README.md"].decode(), files["report.json"].decode()
    assert "license: cc0-1.0" in card and "template | Apache-2.0 | no model | 2" in card
    assert str(tmp_path) not in card + report
    publish.succeed(tmp_path / "set", "you/mine", "--repo_type", "dataset")
    assert hub.files("you/mine", kind="dataset") == files


def test_a_metric_is_published_as_it_is(hub, publish, tmp_path):
    metric = tmp_path / "metric"
    (metric / "__pycache__").mkdir(parents=True)
    (metric / "__pycache__" / "metric.cpython-311.pyc").write_bytes(b"x")
    (metric / "metric.py").write_text("x = 1\n")
    (metric / "README.md").write_text("---\nsdk: gradio\ntags:\n- evaluate\n- metric\n---\n# A metric\n")
    publish.succeed(metric, "you/metric", "--repo_type", "space")
    expected = {name: (metric / name).read_bytes() for name in ("README.md", "metric.py")}
    assert hub.files("you/metric", kind="space") == expected and hub.repository("you/metric", "space").sdk == "gradio"


def test_a_command_repeats_all_settings_but_the_token():
    settings = PublishSettings("you/x", private=True, base_model=["a/b", "c"], energy_kwh=2.0, token="secret")
    command = settings.command("my runs/best")
    expected = "collap publish 'my runs/best' you/x --private --base_model a/b c --energy_kwh 2.0"
    assert command == expected and "secret" not in repr(settings)
    assert vars(parse("publish", ["f", "you/x"])).keys() | {"token"} == {
        "folder", *(field.name for field in dataclasses.fields(settings))
    }  # fmt: skip


def test_a_missing_package_is_said(hub, publish, run_folder):
    script = f"""
import sys
from collap.cli import run_command
name = "tensorboard.backend.event_processing.event_file_loader"
loader = sys.modules.pop(name, None)
sys.modules[name] = None  # as where it is not installed
print(run_command("publish", [{str(run_folder / "best")!r}, "you/no-tensorboard"]))
del sys.modules[name]
sys.modules |= {{name: loader}} if loader else {{}}
"""
    _, out, err = publish.ask(script)
    assert out.strip() == "1" and one_line(err).endswith(
        "is not published without tensorboard: pip install tensorboard"
    )
