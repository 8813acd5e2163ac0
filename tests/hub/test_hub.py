"""CoLLAP on the Hub: pushed, listed, loaded, cut off, corrupted and attacked.

huggingface_hub and transformers run unchanged in fresh processes against the server of `hub_server.py`. Every check of
loading runs twice: where CoLLAP is installed, and where it is not (`trust_remote_code=True`).
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from elsewhere import REFUSE_INSTALLED
from hub_server import HubServer
from safetensors.torch import load_file, save, save_file
from tiny import TEXTS, tiny_model, tiny_processor, tiny_text_config

from collap.models import save_model_folder
from modeling_collap import CoLLAPModel, mean_pooled_scores
from modeling_collap.modeling_collap import CoLLAPOutput

MODES = ("installed", "remote")
PARTS = ("AutoModel", "AutoConfig", "AutoProcessor", "AutoFeatureExtractor", "AutoTokenizer")
# The seed of the weights that each call of `loading` must give.
SEEDS = {
    "main": 1,
    "local_files_only": 1,
    "branch": 2,
    "pull request": 2,
    "subfolder": 2,
    "tag": 0,
    "commit": 0,
    "cache_dir": 0,
    "sharded": 0,
    "device_map": 0,
    "token": 0,
}
NOT_FOUND = (
    "not a local folder and is not a valid model identifier.*If this is a private repository, make sure to pass a token"
)
# What the user reads for each call of `refused`.
REFUSALS = {
    "never loaded": "OSError: We couldn't connect .* and couldn't find them in the cached files",
    "private": f"OSError: you/private is {NOT_FOUND}",
    "private, somebody": f"OSError: you/private is {NOT_FOUND}",
    "private, wrong token": "OSError: .*401 Unauthorized.*Invalid credentials in Authorization header",
    "missing": f"OSError: you/nothing is {NOT_FOUND}",
    "wrong revision": "OSError: v9 is not a valid git identifier .branch name, tag name or commit id.",
    "pickle": "OSError: you/pickle does not appear to have a file named model.safetensors",
    "pickle, asked for": "ValueError: CoLLAP reads safetensors only",
    "index": "ValueError: .*names the shard 'weights.bin'; expected the name of a safetensors file in the same folder",
    "index, asked for": "ValueError: .*names the shard 'weights.bin'",
    "parent": "ValueError: .*'../secret.safetensors'",
    "absolute": "ValueError: .*/secret.safetensors'",
    "parent, folder": "ValueError: .*names the shard '../secret.safetensors'",
    "absolute, folder": "ValueError: .*names the shard '/.*/secret.safetensors'",
}
CHUNK = 10 * 2**20  # bytes; huggingface_hub writes a download, and so resumes it, in chunks of this size
CUT = 12 * 2**20  # bytes of `you/big` that arrive before the connection breaks

# Arguments: folder of the models, from `saved`.
PUSH = """
import sys
from huggingface_hub import HfApi
from transformers import AutoModel, AutoProcessor

api, folder = HfApi(), sys.argv[1]
load = lambda name: (AutoModel.from_pretrained(f"{folder}/{name}"), AutoProcessor.from_pretrained(f"{folder}/{name}"))
model, processor = load("seed0")
model.push_to_hub("you/collap", commit_message="The first")
processor.push_to_hub("you/collap")
api.create_tag("you/collap", tag="v1")
api.upload_folder(repo_id="you/collap", folder_path=f"{folder}/seed1", commit_message="The second")
load("seed2")[0].push_to_hub("you/collap", revision="dev")
load("seed2")[0].push_to_hub("you/collap", create_pr=True)
api.upload_folder(
    repo_id="you/collap", folder_path=f"{folder}/seed2", path_in_repo="other", ignore_patterns="*.py",
    commit_message="A folder without code",
)
model.push_to_hub("you/sharded", max_shard_size="150KB")
model.push_to_hub("you/private", private=True)
processor.push_to_hub("you/private")
assert [commit.title for commit in api.list_repo_commits("you/collap")] == [
    "A folder without code", "The second", "Upload processor", "The first", "initial commit"
]
assert [ref.name for ref in api.list_repo_refs("you/collap").branches] == ["main", "dev"]
assert "model-00002-of-00003.safetensors" in api.list_repo_files("you/sharded")
assert api.model_info("you/private").private and not api.model_info("you/sharded").private
"""

# Where CoLLAP is installed, and where it is not; in neither is garbage looked for in what is imported.
BEFORE = {"installed": "import gc; gc.disable()\nimport modeling_collap, processing\n", "remote": REFUSE_INSTALLED}
# Arguments: a JSON file of the texts and of {label: [kind, name, arguments]}; an Auto class is a kind, too.
LOAD = """
import json, sys
from pathlib import Path
import torch
import transformers
from safetensors.torch import load_file

calls = Path(sys.argv[1])

texts, calls_by_label = json.loads(calls.read_text())
inputs = load_file(calls.parent / "inputs.safetensors")
songs = [{"array": song.numpy(), "sampling_rate": 16000} for song in inputs.pop("waveforms")]

def loaded(kind, name, arguments):
    if kind == "pipeline":
        return transformers.pipeline(model=name, **arguments)
    if kind == "SentenceTransformer":
        from sentence_transformers import SentenceTransformer
        return SentenceTransformer(name, **arguments)
    return getattr(transformers, kind).from_pretrained(name, **arguments)

def described(part):
    about = {"class": type(part).__name__, "module": type(part).__module__}
    if isinstance(part, transformers.Pipeline):
        hits = [{hit["index"]: hit["score"] for hit in ranking} for ranking in part(texts, songs)]
        about["scores"] = [[of_text[index] for of_text in hits] for index in range(len(songs))]
    elif type(part).__name__ == "SentenceTransformer":
        about["module"] = type(part[0]).__module__
        about["scores"] = part.similarity(part.encode(songs), part.encode(texts)).tolist()
    elif isinstance(part, transformers.PreTrainedModel):
        with torch.no_grad():
            about["scores"] = part.eval()(**inputs).logits_per_audio.float().tolist()
        of_score = {name: "score_parameters" in name for name, _ in part.named_parameters()}
        types = [[str(value.dtype) for name, value in part.named_parameters() if of_score[name] is own]
                 for own in (False, True)]
        about["dtypes"] = [sorted(set(found)) for found in types]
        configs = (part.config, *(encoder.config for encoder in part.encoders.values()))
        about["attention"] = [config._attn_implementation for config in configs]
        about["device_map"] = {key: str(value) for key, value in getattr(part, "hf_device_map", {}).items()}
    elif isinstance(part, transformers.PreTrainedTokenizerBase):
        about["input_ids"] = part(texts)["input_ids"]
    elif hasattr(part, "tokenizer"):
        about["input_ids"] = part(text=texts)["input_ids"].tolist()
    else:
        about["settings"] = part.to_dict()
    return about

results = {}
for label, call in calls_by_label.items():
    try:
        results[label] = described(loaded(*call))
    except Exception as error:
        results[label] = {"error": f"{type(error).__name__}: {error}"}
calls.with_suffix(".results").write_text(json.dumps(results, default=str))
"""

UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("you/model", exist_ok=True)
HfApi().upload_folder(repo_id="you/model", folder_path=sys.argv[1])
"""

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1])
"""

VERIFY = """
import sys
from huggingface_hub import HfApi, snapshot_download
snapshot_download(sys.argv[1])
print([one["path"] for one in HfApi().verify_repo_checksums(sys.argv[1]).mismatches])
"""


def start(script: str, *arguments, environment: dict, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams)


def run(script: str, *arguments, environment: dict, folder: Path) -> tuple[int, str, str]:
    """Exit code and both streams of a fresh process in an empty working folder."""
    process = start(script, *arguments, environment=environment, folder=folder)
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def model_of(seed: int) -> CoLLAPModel:
    return tiny_model(seed=seed, structure_layers=1)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Payload:
    """Unpickled, it makes a folder where the process runs."""

    def __init__(self, made: str):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (self.made,)


def with_shard(files: dict[str, bytes], shard: str, content: bytes | None = None) -> dict[str, bytes]:
    """A model whose index says that all the weights are in `shard`."""
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"] = dict.fromkeys(index["weight_map"], shard)
    kept = {name: data for name, data in files.items() if not name.endswith(".safetensors")}
    added = {} if content is None else {shard: content}
    return {**kept, **added, "model.safetensors.index.json": json.dumps(index).encode()}


def with_code(files: dict[str, bytes], made: str) -> dict[str, bytes]:
    """A model each of whose Python files makes a folder first."""
    first = f"import os\nos.makedirs({made!r}, exist_ok=True)\n".encode()
    return {name: first + data if name.endswith(".py") else data for name, data in files.items()}


def commit_attacks(hub: HubServer, folder: Path):
    """Malicious repositories, each of which would leave a folder `made-by-...`, or read the file `secret`."""
    files, shards = read(folder / "seed0"), read(folder / "shards")
    no_weights = {name: data for name, data in files.items() if name != "model.safetensors"}
    hub.commit("you/pickle", {**no_weights, "pytorch_model.bin": pickle.dumps(Payload("made-by-pickle"), 2)})
    hub.commit("you/index", with_shard(shards, "weights.bin", pickle.dumps(Payload("made-by-index"), 2)))
    hub.commit("you/code", with_code(files, "made-by-code"))
    hub.commit("you/trusted-code", with_code(files, "made-by-trusted-code"))
    secret = folder / "secret.safetensors"
    secret.write_bytes(files["model.safetensors"])
    for name, shard in {"parent": "../secret.safetensors", "absolute": str(secret)}.items():
        attack = with_shard(shards, shard)
        hub.commit(f"you/{name}", attack)
        (folder / name).mkdir()
        for path, data in attack.items():
            (folder / name / path).write_bytes(data)


def commit_whole(hub: HubServer, folder: Path):
    """Folders with all that is published: one whose main branch has other code and weights than its tag v1, and a
    private one."""
    files = read(folder / "whole")
    hub.commit("you/whole", files)
    repository = hub.repository("you/whole")
    repository.refs["refs/tags/v1"] = repository.at("main")
    weights = read(folder / "seed1")["model.safetensors"]
    hub.commit("you/whole", {**with_code(files, "made-by-main"), "model.safetensors": weights})
    hub.create("model", "you/private-whole", private=True)
    hub.commit("you/private-whole", files)


def random_weights(seed: int, numbers: int = 100_000) -> bytes:
    """A safetensors file that is in no other repository."""
    return save({"weight": torch.from_numpy(np.random.default_rng(seed).standard_normal(numbers))})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The same model with three sets of weights, one of them in shards, too; inputs."""
    folder = tmp_path_factory.mktemp("hub")
    waveforms = 0.1 * np.random.default_rng(0).standard_normal((2, 50000)).astype(np.float32)
    inputs = tiny_processor()(text=TEXTS, audio=list(waveforms), sampling_rate=16000)
    save_file({**inputs, "waveforms": torch.from_numpy(waveforms)}, folder / "inputs.safetensors")
    for name, model, size in (
        *((f"seed{seed}", model_of(seed), "5GB") for seed in range(3)),
        ("shards", model_of(0), "150KB"),
    ):
        model.save_pretrained(folder / name, max_shard_size=size)
        tiny_processor().save_pretrained(folder / name)
    save_model_folder(model_of(0), tiny_processor(), folder / "whole")
    return folder


@pytest.fixture(scope="module")
def outputs(saved) -> dict[int, CoLLAPOutput]:
    """What the model makes of the inputs, by seed of the weights, computed here."""
    inputs = load_file(saved / "inputs.safetensors")
    del inputs["waveforms"]
    with torch.no_grad():
        return {seed: model_of(seed)(**inputs) for seed in range(3)}


@pytest.fixture(scope="module")
def scores(outputs) -> dict[int, torch.Tensor]:
    """(A, B) by seed of the weights."""
    return {seed: output.logits_per_audio for seed, output in outputs.items()}


@pytest.fixture(scope="module")
def hub(saved):
    """A Hub with the models that a fresh process pushed, and with attacks."""
    with HubServer() as server:
        code, _, errors = run(BEFORE["installed"] + PUSH, saved, environment=server.environment(saved), folder=saved)
        assert code == 0, errors
        commit_attacks(server, saved)
        commit_whole(server, saved)
        text = tiny_text_config()
        text.vocab_size = 150_000
        tiny_model(seed=3, structure_layers=1, text_config=text).save_pretrained(saved / "big")
        server.commit("you/big", read(saved / "big"))
        server.commit("you/never-loaded", read(saved / "seed0"))
        server.commit("you/code-in-subfolder", {f"in/{name}": data for name, data in read(saved / "seed0").items()})
        yield server


def loading(commit: str, whole: str, token: str, elsewhere: Path) -> dict[str, list]:
    """What loads, by label."""
    parts = ("AutoConfig", "AutoProcessor", "AutoFeatureExtractor", "AutoTokenizer")
    offload = {"device_map": "auto", "max_memory": {"cpu": "200KB"}, "offload_folder": str(elsewhere / "offload")}
    models = {
        "main": ["you/collap", {}],
        "tag": ["you/collap", {"revision": "v1"}],
        "commit": ["you/collap", {"revision": commit}],
        "branch": ["you/collap", {"revision": "dev"}],
        "pull request": ["you/collap", {"revision": "refs/pr/1"}],
        "subfolder": ["you/collap", {"subfolder": "other"}],
        "cache_dir": ["you/collap", {"cache_dir": str(elsewhere), "revision": "v1"}],
        "local_files_only": ["you/collap", {"local_files_only": True}],
        "sharded": ["you/sharded", {}],
        "bfloat16": ["you/collap", {"dtype": "bfloat16", "revision": "v1"}],
        "device_map": ["you/collap", {"device_map": "auto", "revision": "v1"}],
        "offload": ["you/collap", {**offload, "revision": "v1"}],
        "eager": ["you/collap", {"attn_implementation": "eager", "revision": "v1"}],
        "sdpa": ["you/collap", {"attn_implementation": "sdpa", "revision": "v1"}],
        "token": ["you/private", {"token": token}],
        "cut off": ["you/big", {}],
    }
    calls = {label: ["AutoModel", *call] for label, call in models.items()}
    for kind in ("pipeline", "SentenceTransformer"):
        calls[f"{kind}, commit"] = [kind, "you/whole", {"revision": whole, "trust_remote_code": True}]
        calls[f"{kind}, token"] = [kind, "you/private-whole", {"token": token, "trust_remote_code": True}]
    of_subfolder = {"subfolder, processor": ["AutoProcessor", "you/collap", {"subfolder": "other"}]}
    return {**calls, **{part: [part, "you/collap", {}] for part in parts}, **of_subfolder}


def refused(saved: Path) -> dict[str, list]:
    """What does not load, by label: wrong names and rights, and attacks."""
    calls = {
        "never loaded": ["you/never-loaded", {"local_files_only": True}],
        "code in subfolder": ["you/code-in-subfolder", {"subfolder": "in"}],
        "private": ["you/private", {}],
        "private, somebody": ["you/private", {"token": "token-of-somebody"}],
        "private, wrong token": ["you/private", {"token": "no-such-token"}],
        "missing": ["you/nothing", {}],
        "wrong revision": ["you/collap", {"revision": "v9"}],
        "pickle": ["you/pickle", {}],
        "pickle, asked for": ["you/pickle", {"use_safetensors": False}],
        "index": ["you/index", {}],
        "index, asked for": ["you/index", {"weights_only": False}],
        "parent": ["you/parent", {}],
        "absolute": ["you/absolute", {}],
        "parent, folder": [str(saved / "parent"), {}],
        "absolute, folder": [str(saved / "absolute"), {}],
    }
    return {label: ["AutoModel", *call] for label, call in calls.items()}


def load(mode: str, calls: dict, environment: dict, folder: Path, saved: Path) -> dict[str, dict]:
    """Results of the calls by label, in one fresh process; `remote` trusts the code unless a call says otherwise."""
    folder.mkdir(exist_ok=True)
    shutil.copy(saved / "inputs.safetensors", folder)
    trust = {"trust_remote_code": True} if mode == "remote" else {}
    calls = {label: [auto, name, {**trust, **arguments}] for label, (auto, name, arguments) in calls.items()}
    (folder / "calls.json").write_text(json.dumps([TEXTS, calls]))
    code, _, errors = run(BEFORE[mode] + LOAD, folder / "calls.json", environment=environment, folder=folder)
    assert code == 0, errors
    return json.loads((folder / "calls.results").read_text())


@pytest.fixture(scope="module", params=MODES)
def loaded(request, hub, saved, tmp_path_factory) -> SimpleNamespace:
    """What somebody without a token got, and the requests that took."""
    mode, folder = request.param, tmp_path_factory.mktemp(request.param)
    # Refused first: what a token has loaded is in the cache for everybody on this machine.
    commits = [hub.repository(name).at("v1").id for name in ("you/collap", "you/whole")]
    calls = {**refused(saved), **loading(*commits, hub.token, folder / "elsewhere")}
    untrusted = {"trust_remote_code": None}
    calls |= {f"untrusted {auto}": [auto, "you/code", untrusted] for auto in PARTS}
    calls["trusted"] = ["AutoModel", "you/trusted-code", {"trust_remote_code": True}]
    hub.fail("GET", sha256(hub.files("you/big")["model.safetensors"]), cut_after=CUT)
    before = len(hub.log)
    found = load(mode, calls, hub.environment(folder, token=None), folder, saved)
    return SimpleNamespace(mode=mode, folder=folder, found=found, log=hub.log[before:])


def assert_scores(result: dict, expected: torch.Tensor, **tolerance):
    assert "scores" in result, result
    torch.testing.assert_close(torch.tensor(result["scores"]), expected, **{"rtol": 0, "atol": 0, **tolerance})


def test_what_was_pushed_is_what_was_saved(hub, saved):
    pushed = hub.files("you/collap")
    expected = {
        **read(saved / "seed1"),
        **{f"other/{n}": d for n, d in read(saved / "seed2").items() if n[-3:] != ".py"},
    }
    assert {name: pushed[name] for name in expected} == expected and set(pushed) - set(expected) == {"README.md"}
    assert hub.files("you/collap", "v1")["model.safetensors"] == (saved / "seed0" / "model.safetensors").read_bytes()
    assert sum(name.endswith(".safetensors") for name in hub.files("you/sharded")) == 3
    assert "model.safetensors.index.json" in hub.files("you/sharded")


@pytest.mark.parametrize("label, seed", SEEDS.items())
def test_the_weights_asked_for_are_loaded(loaded, scores, label, seed):
    assert_scores(loaded.found[label], scores[seed])


def test_code_comes_from_the_repository_or_from_the_package(loaded, hub):
    result, commit = loaded.found["tag"], hub.repository("you/collap").at("v1").id
    remote = f"transformers_modules.you.collap.{commit}.modeling_collap"
    assert result["module"] == {"remote": remote, "installed": "modeling_collap.modeling_collap"}[loaded.mode]


@pytest.mark.parametrize(
    "way, name, module", [("commit", "you/whole", "whole"), ("token", "you/private-whole", "private_hyphen_whole")]
)
def test_pipeline_and_sentence_transformer_load_the_commit_asked_for(loaded, hub, outputs, way, name, module):
    """Their code always comes from the repository; that of main would have left a folder `made-by-main`."""
    expected, commit = outputs[0], hub.repository(name).at("v1" if way == "commit" else "main").id
    cosines = mean_pooled_scores(expected.text_embeds, expected.audio_embeds, expected.audio_token_mask)
    of_kind = {
        "pipeline": ("pipeline_collap", expected.logits_per_audio, 1e-4),
        "SentenceTransformer": ("sentence_collap", cosines, 1e-5),
    }
    for kind, (file, scores, atol) in of_kind.items():
        found = loaded.found[f"{kind}, {way}"]
        assert_scores(found, scores, atol=atol)
        assert found["module"] == f"transformers_modules.you.{module}.{commit}.{file}"
    assert not (loaded.folder / "made-by-main").exists()


def test_config_processor_extractor_and_tokenizer_load(loaded):
    found, processor = loaded.found, tiny_processor()
    expected = processor(text=TEXTS)["input_ids"].tolist()
    for label in ("AutoProcessor", "subfolder, processor"):
        assert found[label]["input_ids"] == expected, found[label]
    assert found["AutoTokenizer"]["input_ids"] == processor.tokenizer(TEXTS)["input_ids"]
    assert found["AutoConfig"]["settings"]["structure_layers"] == 1
    extractor = json.loads(json.dumps(processor.feature_extractor.to_dict()))
    assert found["AutoFeatureExtractor"]["settings"].items() >= extractor.items()


def test_cache_dir_and_local_files_only(loaded):
    assert (loaded.folder / "elsewhere" / "models--you--collap").is_dir()
    asked = [one.method for one in loaded.log if "you/never-loaded" in one.path]
    assert "GET" not in asked  # transformers asks whether there is an adapter_config.json, all the same


def test_bfloat16_but_for_the_score_parameters(loaded, scores):
    result = loaded.found["bfloat16"]
    assert result["dtypes"] == [["torch.bfloat16"], ["torch.float32"]]
    assert_scores(result, scores[0], atol=0.05)


def test_attention_of_all_towers(loaded, scores):
    for name in ("eager", "sdpa"):
        assert loaded.found[name]["attention"] == 4 * [name]
        assert_scores(loaded.found[name], scores[0], atol=1e-5)


def test_device_map_splits_the_model(loaded, scores):
    """With room for less than half of the weights; without an accelerator the rest comes from disk."""
    devices = loaded.found["offload"].get("device_map", loaded.found["offload"])
    assert set(devices.values()) == {"cpu", "disk"}, devices
    assert_scores(loaded.found["offload"], scores[0])


@pytest.mark.parametrize("label, message", REFUSALS.items())
def test_refusals_tell_what_to_do(loaded, label, message):
    assert re.search(message, loaded.found[label].get("error", "loaded"), re.DOTALL)


def test_a_private_repository_answers_401_without_a_token(loaded):
    private = [one for one in loaded.log if "you/private" in one.path]
    assert {one.status for one in private if one.token is None} == {401}
    assert {one.status for one in private if one.token == "token-of-somebody"} == {404}


def test_code_in_a_subfolder_only_needs_the_package(loaded, scores):
    """transformers looks for code at the root of a repository, whatever the subfolder."""
    result = loaded.found["code in subfolder"]
    if loaded.mode == "installed":
        assert_scores(result, scores[0])
    else:
        assert "does not appear to have a file named configuration_collap.py" in result["error"]


def test_no_code_of_a_repository_runs_untrusted(loaded):
    for auto in PARTS:
        result = loaded.found[f"untrusted {auto}"]
        if loaded.mode == "installed":
            assert not result["module"].startswith("transformers_modules"), result
        elif auto != "AutoTokenizer":  # that of the text tower, a class of transformers
            assert "pass the argument `trust_remote_code=True`" in result["error"]
    made = {path.name for path in loaded.folder.glob("made-by-*")}
    assert made == ({"made-by-trusted-code"} if loaded.mode == "remote" else set())


def test_the_pickles_would_have_run(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(hub.files("you/pickle")["pytorch_model.bin"])
    pickle.loads(hub.files("you/index")["weights.bin"])
    assert {path.name for path in tmp_path.iterdir()} == {"made-by-pickle", "made-by-index"}


def test_a_download_goes_on_where_it_was_cut(loaded, hub, saved):
    assert "scores" in loaded.found["cut off"], loaded.found["cut off"]
    weights = (saved / "big" / "model.safetensors").read_bytes()
    of_weights = ("GET", f"/{sha256(weights)}")
    first, second = [one for one in loaded.log if (one.method, one.path) == of_weights]
    assert (first.sent, first.span) == (CUT, None)
    assert (second.sent, second.span, second.status) == (len(weights) - CHUNK, f"bytes={CHUNK}-", 206)


def test_tokens_do_not_reach_the_storage(loaded):
    stored = [one for one in loaded.log if re.fullmatch("/[0-9a-f]{64}", one.path)]
    assert stored and not any(one.token for one in stored)


def test_offline_from_the_cache(loaded, scores, saved):
    """The Hub is gone. Without HF_HUB_OFFLINE the same loads, after 23 s of tries for each optional file."""
    with HubServer() as gone:
        environment = {**gone.environment(loaded.folder, token=None), "HF_HUB_OFFLINE": "1"}
    calls = loading("", "", "", Path())
    kept = ("main", "tag", "branch", "subfolder", "sharded", "token", "AutoProcessor", "AutoTokenizer", "AutoConfig")
    found = load(loaded.mode, {label: calls[label] for label in kept}, environment, loaded.folder, saved)
    for label in kept[:6]:
        assert_scores(found[label], scores[SEEDS[label]])
    assert [found[label] for label in kept[6:]] == [loaded.found[label] for label in kept[6:]]


@pytest.fixture
def upload(tmp_path) -> SimpleNamespace:
    """A Hub of its own, and a folder of two shards to upload."""
    shards = {f"model-{i}.safetensors": random_weights(seed=i) for i in (1, 2)}
    (tmp_path / "model").mkdir()
    for name, content in {**shards, "config.json": b"{}"}.items():
        (tmp_path / "model" / name).write_bytes(content)
    with HubServer() as hub:
        start_one = partial(start, UPLOAD, tmp_path / "model", environment=hub.environment(tmp_path), folder=tmp_path)
        yield SimpleNamespace(hub=hub, start=start_one, first=shards["model-1.safetensors"], folder=tmp_path / "model")


def test_an_upload_that_was_cut_is_sent_again(upload):
    upload.hub.fail("PUT", sha256(upload.first), cut_after=100_000)
    process = upload.start()
    assert process.communicate(timeout=60) and process.returncode == 0
    sent = [one.received for one in upload.hub.requests("PUT", sha256(upload.first))]
    assert sent == [100_000, len(upload.first)]
    assert upload.hub.files("you/model") == read(upload.folder)


def test_an_upload_that_was_killed_goes_on_with_the_files_that_lack(upload):
    upload.hub.fail("PUT", sha256(upload.first), cut_after=100_000, times=None)
    process = upload.start()
    deadline = time.monotonic() + 60
    while len(upload.hub.requests("POST", "/verify")) < 1 or not upload.hub.requests("PUT", sha256(upload.first)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert upload.hub.files("you/model") == {}
    upload.hub.faults.clear()
    before = len(upload.hub.requests("PUT"))
    again = upload.start()
    assert again.communicate(timeout=60) and again.returncode == 0
    assert [one.path for one in upload.hub.requests("PUT")[before:]] == [f"/{sha256(upload.first)}"]
    assert upload.hub.files("you/model") == read(upload.folder)


def test_a_commit_that_was_cut_sends_no_file_again(upload):
    upload.hub.fail("POST", "/commit/", cut_after=100)
    process = upload.start()
    assert process.communicate(timeout=60) and process.returncode == 1
    assert upload.hub.files("you/model") == {} and len(upload.hub.requests("PUT")) == 2
    again = upload.start()
    assert again.communicate(timeout=60) and again.returncode == 0
    assert len(upload.hub.requests("PUT")) == 2
    assert upload.hub.files("you/model") == read(upload.folder)


def test_faults_of_downloads(tmp_path):
    """What fails is asked for again alone; a file of another size is refused; one of the same size but another hash
    is not noticed by a download, and is by `verify_repo_checksums`."""
    shards = {f"model-{i}.safetensors": random_weights(seed=10 + i) for i in (1, 2)}
    with HubServer() as hub:
        environment = hub.environment(tmp_path)
        hub.commit("you/model", shards)
        hub.fail("GET", sha256(shards["model-2.safetensors"]), status=507)
        code, _, errors = run(DOWNLOAD, "you/model", environment=environment, folder=tmp_path)
        assert code == 1 and "507" in errors
        assert run(DOWNLOAD, "you/model", environment=environment, folder=tmp_path)[0] == 0
        asked = [len(hub.requests("GET", sha256(content))) for content in shards.values()]
        assert asked == [1, 2]
        short, wrong = random_weights(seed=20), random_weights(seed=21)
        hub.commit("you/short", {"model.safetensors": short})
        hub.fail("GET", sha256(short), content=short[:-1])
        code, _, errors = run(DOWNLOAD, "you/short", environment=environment, folder=tmp_path)
        assert code == 1 and f"should be of size {len(short)} but has size {len(short) - 1}" in errors
        hub.commit("you/wrong", {"model.safetensors": wrong, "config.json": b"{}"})
        hub.fail("GET", sha256(wrong), content=random_weights(seed=22))
        code, output, errors = run(VERIFY, "you/wrong", environment=environment, folder=tmp_path)
        assert code == 0 and output.strip() == "['model.safetensors']", errors
