"""The doctor on folders that are healthy and on folders that are broken in the ways in which published models were."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from healthy import healthy_folder
from hub_server import HubServer
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModel, AutoProcessor, TorchAoConfig

from collap.cli import run_command
from collap.evaluation import render_probes, spread
from collap.evaluation.probes import PROBES_FOLDER, load_probes
from collap.hub import checks, doctor, golden
from collap.hub.golden import GOLDEN_FILE, probe_vectors, write_golden
from collap.models import load_model, save_model_folder
from processing import load_audio

VARIANTS = ("gpt2", "roberta")
ROOT = Path(__file__).parents[2]


def other(text: str) -> str:
    return VARIANTS[1 - VARIANTS.index(text)]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Copies: those of `load_file` are lost when the file is written again."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def edit_weights(folder: Path, change) -> None:
    weights = read_tensors(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def zero(prefix: str, *parts: str):
    def damage(folder: Path, text: str, healthy: dict) -> None:
        edit_weights(folder, lambda weights: [weights[f"{prefix}.{part}"].zero_() for part in parts])

    return damage


def reinitialise_text_tower(folder: Path, text: str, healthy: dict) -> None:
    fresh = tiny_model(text, seed=7).state_dict()
    edit_weights(folder, lambda w: w.update({k: fresh[k].clone() for k in w if k.startswith("text_tower.encoder.")}))


def swap_layer_norms(tower: str):
    """Weights and biases of all layer norms of a tower change places."""

    def change(weights: dict) -> None:
        norms = [k.removesuffix(".weight") for k in weights if k.startswith(tower) and f"{k[:-7]}.bias" in weights]
        for norm in norms:
            if any(part in norm.lower() for part in ("norm", "ln_")):
                pair = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
                weights[f"{norm}.bias"], weights[f"{norm}.weight"] = pair

    return lambda folder, text, healthy: edit_weights(folder, change)


def swap_fbank(folder: Path, text: str, healthy: dict) -> None:
    def change(settings: dict) -> None:
        fbank = settings["feature_extractor"]
        fbank["fbank_mean"], fbank["fbank_std"] = fbank["fbank_std"], fbank["fbank_mean"]

    edit_json(folder / "processor_config.json", change)


def other_tokenizer(folder: Path, text: str, healthy: dict) -> None:
    tiny_tokenizer(other(text)).save_pretrained(folder)


def permute_vocabulary(folder: Path, text: str, healthy: dict) -> None:
    """All tokens but the special ones get the number of another token."""

    def change(tokenizer: dict) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        names = [name for name in vocabulary if name not in {t["content"] for t in tokenizer["added_tokens"]}]
        numbers = np.random.default_rng(0).permutation([vocabulary[name] for name in names]).tolist()
        vocabulary.update(zip(names, numbers, strict=True))

    edit_json(folder / "tokenizer.json", change)


def other_weights(folder: Path, text: str, healthy: dict) -> None:
    shutil.copy(healthy[other(text)] / "model.safetensors", folder)


def other_temperature(folder: Path, text: str, healthy: dict) -> None:
    edit_weights(folder, lambda w: w["score_parameters.log_attention_temperature"].fill_(0.0))


# What is done to a folder; the part that the golden vectors blame; the checks that fail even where no golden vectors
# are stored (empty: nothing else can know, because a model of other weights might be meant so).
DAMAGES = {
    "text projection zeroed": (zero("text_tower.projection", "weight"), "text tower", {"weights", "text tower spread"}),
    "text projection and bias zeroed": (
        zero("text_tower.projection", "weight", "bias"),
        "text tower",
        {"text tower spread"},
    ),
    "audio adapter zeroed": (zero("audio_tower.adapter", "weight"), "audio tower", {"weights", "audio tower spread"}),
    "text tower re-initialised": (reinitialise_text_tower, "text tower", {"built-in set"}),
    "filter bank swapped": (swap_fbank, "audio front end", {"processor"}),
    "norms of the text tower swapped": (swap_layer_norms("text_tower.encoder"), "text tower", {"text tower spread"}),
    "norms of BEATs swapped": (swap_layer_norms("audio_tower.music"), "audio tower", {"audio tower spread"}),
    "tokenizer of the other variant": (other_tokenizer, "tokenizer", {"processor"}),
    "vocabulary permuted": (permute_vocabulary, "tokenizer", set()),
    "weights of the other variant": (other_weights, None, {"weights", "loading"}),
    "temperature changed": (other_temperature, "score", set()),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("healthy")
    return {text: healthy_folder(folder / text, text) for text in VARIANTS}


@pytest.fixture
def patient(healthy, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(healthy["gpt2"], tmp_path / "patient"))


def examine(folder: Path, capsys, *options: str) -> tuple[int, dict[str, dict]]:
    """Exit code of the command, and its checks by name."""
    code = run_command("doctor", [str(folder), "--json", *options])
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] == (code == 0)
    return code, {check["name"]: check for check in found["checks"]}


def failed(checks: dict[str, dict]) -> set[str]:
    return {name for name, check in checks.items() if check["status"] == "failed"}


# --------------------------------------------------------------------------------------------------------------------
# Models


@pytest.mark.parametrize("text", VARIANTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_model_is_caught_with_and_without_golden_vectors(healthy, tmp_path, capsys, text, damage):
    broken, part, others = DAMAGES[damage]
    folder = Path(shutil.copytree(healthy[text], tmp_path / text))
    broken(folder, text, healthy)
    code, checks = examine(folder, capsys)
    assert code == 1 and others <= failed(checks)  # no other check reads the golden vectors
    if part:
        assert "golden vectors" in failed(checks)
        assert checks["golden vectors"]["detail"].startswith(f"{part} drifted by ")
    else:
        assert "drawn at random" in checks["weights"]["detail"] and "golden vectors" not in checks


def test_the_command_on_a_model_of_the_hub_in_a_fresh_process(healthy, tmp_path):
    folder, marker = Path(shutil.copytree(healthy["roberta"], tmp_path / "roberta")), tmp_path / "ran"
    write_card(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = f"open({str(marker)!r}, 'w')\nraise SystemExit\n".encode()
    files.update({name: code for name in files if name.endswith(".py")})
    with HubServer() as hub:
        hub.commit("you/collap", {**files, "old/training_args.bin": b"pickle"})
        command = [sys.executable, "-m", "collap", "doctor", "you/collap", "--json", "--revision", "main"]
        environment = {**hub.environment(tmp_path), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)  # and nothing else
    assert found["model"] == "you/collap" and not found["healthy"]
    checks = {check["name"]: check for check in found["checks"]}
    assert failed(checks) == {"files"} and checks["files"]["detail"].startswith("holds pickles")
    assert {check["status"] for check in checks.values()} == {"failed", "ok"}  # no warnings, and golden vectors agree
    assert not marker.exists()  # no code of the repository has run
    cached = {path.name for path in (tmp_path / "hf_home").rglob("*")}
    assert "model.safetensors" in cached and "training_args.bin" not in cached


@pytest.mark.parametrize("text", VARIANTS)
def test_a_healthy_model(healthy, capsys, text):
    code, checks = examine(healthy[text], capsys)
    assert code == 0 and failed(checks) == set()
    assert {name for name, check in checks.items() if check["status"] == "warning"} == {"card"}
    assert "largest drift 0.0e+00 of 0.005" in checks["golden vectors"]["detail"]


def test_healthy_in_other_precision_and_attention(healthy, capsys):
    code, checks = examine(healthy["gpt2"], capsys, "--dtype", "bfloat16", "--attn_implementation", "eager")
    assert code == 0 and " of 0.1 (" in checks["golden vectors"]["detail"]  # compared more loosely than float32
    assert checks["execution"]["detail"] == (
        "attention: text eager, music eager, speech eager; weights: bfloat16 on cpu"
    )


def test_lines_for_people(healthy, patient, capsys):
    assert run_command("doctor", [str(healthy["gpt2"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{healthy['gpt2']} is healthy (1 warning)"
    assert all(line.startswith(("ok ", "warning ")) for line in lines[:-1]) and len(lines) == 11
    zero("audio_tower.adapter", "weight")(patient, "gpt2", healthy)
    assert run_command("doctor", [str(patient)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{patient} is NOT HEALTHY (4 failed, 1 warning)"


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_a_folder_without_a_vocabulary(healthy, tmp_path, capsys, kind):
    """transformers loads it with a tokenizer of special tokens alone, to which all texts are the same."""
    shutil.copytree(healthy[kind], tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    _, checks = examine(tmp_path / "model", capsys)
    assert checks["files"]["status"] == checks["processor"]["status"] == "failed"
    assert "lacks tokenizer.json (the vocabulary" in checks["files"]["detail"]
    assert "no vocabulary but" in checks["processor"]["detail"]
    with pytest.raises(
        ValueError, match=r"model: the tokenizer has no vocabulary but \d special tokens.*300 embeddings"
    ):
        load_model(tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^the tokenizer has no vocabulary but \d special tokens; put tokenizer.json"):
        processor(text=["a slow piano", "drums"])  # as pipelines and sentence-transformers call it
    assert processor(audio=[np.zeros(16000, np.float32)], sampling_rate=16000)["segment_mask"].all()


def test_weights_that_are_unknown_or_no_numbers(patient, capsys):
    def change(weights: dict) -> None:
        weights["audio_tower.adapter.bias"][3] = torch.nan
        weights["structure.frame_layers.0.attention_out.weight"] = torch.ones(2, 2)

    edit_weights(patient, change)
    detail = examine(patient, capsys)[1]["weights"]["detail"]
    assert "1 unknown to this configuration (structure.frame_layers.0.attention_out.weight)" in detail
    assert "1 not finite (audio_tower.adapter.bias)" in detail


@pytest.mark.parametrize(
    ("value", "status", "found"),
    [(6.0, "warning", "gamma_K 403.4, gamma_T 7.247"), (torch.inf, "failed", "gamma_K inf")],
)
def test_score_parameters_out_of_range(patient, capsys, value, status, found):
    edit_weights(patient, lambda weights: weights["score_parameters.log_gamma_kernel"].fill_(value))
    check = examine(patient, capsys)[1]["score parameters"]
    assert check["status"] == status and found in check["detail"]


@pytest.mark.parametrize(
    ("setting", "value", "status"),
    [("segment_seconds", 4, "failed"), ("speech_mel_bins", 80, "failed"), ("fbank_mean", 15.0, "warning")],
)
def test_a_processor_of_another_model(patient, capsys, setting, value, status):
    edit_json(patient / "processor_config.json", lambda p: p["feature_extractor"].update({setting: value}))
    code, checks = examine(patient, capsys)
    assert code == 1 and checks["processor"]["status"] == status
    assert f"{value}" in checks["processor"]["detail"] and setting in checks["processor"]["detail"]
    if setting == "speech_mel_bins":
        assert checks["built-in set"]["detail"].startswith("cannot be embedded: RuntimeError")


def test_texts_longer_than_the_text_tower_reads(patient, capsys):
    edit_json(patient / "processor_config.json", lambda processor: processor.update(max_text_tokens=512))
    check = examine(patient, capsys)[1]["processor"]
    assert check["status"] == "failed" and "512" in check["detail"] and "128" in check["detail"]


# --------------------------------------------------------------------------------------------------------------------
# Golden vectors


def test_golden_vectors_are_the_same_bytes_again(healthy, tmp_path):
    for text, folder in healthy.items():
        model, processor = load_model(folder)
        model.train()  # dropout must not be in them
        assert write_golden(model, processor, tmp_path).read_bytes() == (folder / GOLDEN_FILE).read_bytes(), text
        assert model.training
    vectors = read_tensors(tmp_path / GOLDEN_FILE)
    assert {name: tuple(vector.shape)[:1] for name, vector in vectors.items() if name != "scores"} == {
        **dict.fromkeys(("input_ids", "attention_mask", "text_embeds"), (24,)),
        **dict.fromkeys(("music_features", "speech_features", "audio_embeds"), (9,)),
    }
    assert vectors["scores"].shape == (9, 24)


def test_golden_scores_are_those_of_single_clips(healthy):
    model, processor = load_model(healthy["gpt2"])
    vectors, probe = probe_vectors(model, processor), load_probes()[3]
    inputs = processor(text=list(probe.texts), audio=probe.waveform, sampling_rate=16000)
    with torch.no_grad():
        output = model(**inputs)
    torch.testing.assert_close(vectors["scores"][3, 9:12], output.logits_per_audio[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vectors["audio_embeds"][3], output.audio_embeds[0][output.audio_token_mask[0]].mean(0))
    features = inputs["music_features"][0][inputs["music_attention_mask"][0]]
    torch.testing.assert_close(vectors["music_features"][3], features.mean(0))


def test_missing_damaged_and_foreign_golden_vectors(patient, capsys):
    path = patient / GOLDEN_FILE
    content, vectors = path.read_bytes(), read_tensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["golden"])
    path.write_bytes(content[:1000])
    check = examine(patient, capsys)[1]["golden vectors"]
    assert check["status"] == "failed" and "cannot be read" in check["detail"]
    save_file(vectors, path, metadata={"golden": json.dumps({**metadata, "probes": "0" * 64})})
    check = examine(patient, capsys)[1]["golden vectors"]
    assert check["status"] == "failed" and "probes 00000000" in check["detail"]
    del metadata["dtype"]
    save_file(vectors, path, metadata={"golden": json.dumps(metadata)})
    assert "cannot be read as golden vectors ('dtype')" in examine(patient, capsys)[1]["golden vectors"]["detail"]
    path.unlink()
    code, checks = examine(patient, capsys)
    assert code == 0 and checks["golden vectors"]["status"] == "warning"
    assert "golden.safetensors" in checks["golden vectors"]["detail"]


# --------------------------------------------------------------------------------------------------------------------
# Folders, cards and the Hub


def test_files_that_lack_or_do_not_belong(patient, capsys):
    for name in ("scoring_collap.py", "tokenizer_config.json"):  # the first is named only by another file's import
        (patient / name).unlink()
    (patient / "training_args.bin").write_bytes(b"pickle")
    code, checks = examine(patient, capsys)
    assert code == 1 and checks["files"]["status"] == "failed"
    for found in ("lacks scoring_collap.py, tokenizer_config.json", "pickles", "training_args.bin"):
        assert found in checks["files"]["detail"]


def test_a_shard_that_is_missing_or_outside(patient, capsys):
    weights = read_tensors(patient / "model.safetensors")
    shutil.move(patient / "model.safetensors", patient.parent)
    for shard, expected in (("model-00001-of-00001.safetensors", "model-00001"), ("../model.safetensors", "../model")):
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
        (patient / "model.safetensors.index.json").write_text(json.dumps(index))
        code, checks = examine(patient, capsys)
        assert code == 1 and failed(checks) == {"files", "loading"}
        assert expected in checks["files"]["detail"] and expected in checks["loading"]["detail"]


def test_what_cannot_be_loaded_is_a_finding(patient, capsys):
    path = patient / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    code, checks = examine(patient, capsys)
    assert code == 1 and failed(checks) == {"loading"} and "nothing further" in checks["loading"]["detail"]
    edit_json(patient / "config.json", lambda config: config.update(model_type="bert"))
    assert "expected a CoLLAP model" in examine(patient, capsys)[1]["loading"]["detail"]
    (patient / "config.json").write_text("{")
    assert failed(examine(patient, capsys)[1]) == {"loading"}


def edit_config(**changes):
    return lambda folder: edit_json(folder / "config.json", lambda config: config.update(changes))


def edit_processor(**changes):
    return lambda folder: edit_json(folder / "processor_config.json", lambda processor: processor.update(changes))


def edit_extractor(**changes):
    return lambda folder: edit_json(
        folder / "processor_config.json", lambda processor: processor["feature_extractor"].update(changes)
    )


def edit_index(content):
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (edit_config(auto_map=None), {"files"}),
        (edit_config(auto_map={"AutoModel": ["a.B", None]}), {"files"}),
        (edit_processor(feature_extractor=None), {"files"}),
        (edit_processor(processor_class="WhisperProcessor"), {"processor"}),
        (edit_processor(max_text_tokens="many"), {"processor"}),
        (edit_extractor(fbank_std="wide"), {"loading"}),
        (edit_index({"weight_map": None}), {"files", "loading"}),
        (edit_index({"weight_map": ["model.safetensors"]}), {"files", "loading"}),
        (edit_index({"weight_map": {"a": 3}}), {"files", "loading"}),
        (lambda folder: (folder / "scoring_collap.py").write_bytes(b"\xff\xfe"), {"files"}),
    ],
)
def test_settings_of_another_kind_are_findings(patient, capsys, damage, named):
    damage(patient)
    code, checks = examine(patient, capsys)
    assert code == 1 and named <= failed(checks)


def test_a_model_quantised_by_torchao_is_healthy(healthy, tmp_path, capsys):
    """Its golden vectors may be those of the model that it was made from."""
    from torchao.quantization import Int8WeightOnlyConfig

    settings = TorchAoConfig(Int8WeightOnlyConfig())
    _, processor = load_model(healthy["gpt2"])
    save_model_folder(AutoModel.from_pretrained(healthy["gpt2"], quantization_config=settings), processor, tmp_path)
    shutil.copy(healthy["gpt2"] / GOLDEN_FILE, tmp_path)
    code, found = examine(tmp_path, capsys)
    assert code == 0 and " of 0.1 (" in found["golden vectors"]["detail"]
    weights = AutoModel.from_pretrained(tmp_path)
    weights.audio_tower.adapter.weight.scale.fill_(torch.nan)
    nothing = dict.fromkeys(("missing_keys", "mismatched_keys", "unexpected_keys"), ())
    assert "1 not finite (audio_tower.adapter.weight)" in checks.check_weights(weights, nothing).detail


def write_card(folder: Path, **changes) -> None:
    figures = [
        EvalResult(
            task_type="text-to-audio-retrieval",
            dataset_type="you/songs",
            dataset_name="songs",
            metric_type="recall_at_1",
            metric_value=25.0,
            metric_args={"pool_size": 100, "interval": [18.3, 32.3]},
        )
    ]
    settings = {"license": "mit", "base_model": ["gpt2"], "datasets": ["you/songs"], "eval_results": figures, **changes}
    ModelCard(f"---\n{ModelCardData(model_name='collap', **settings)}\n---\n# collap\n").save(folder / "README.md")


def test_cards(patient):
    write_card(patient)
    assert checks.check_card(patient, on_hub=True).status == "ok"
    write_card(patient, eval_results=None, datasets=None)
    check = checks.check_card(patient, on_hub=True)
    assert check.status == "warning" and check.detail.endswith("datasets, measured figures (model-index)")
    bare = EvalResult(task_type="t", dataset_type="d", dataset_name="d", metric_type="mAP", metric_value=1.0)
    write_card(patient, eval_results=[bare])
    assert "pool size and interval of 1 figures" in checks.check_card(patient, on_hub=True).detail
    write_card(patient, license=None)
    assert [checks.check_card(patient, on_hub).status for on_hub in (False, True)] == ["warning", "failed"]
    (patient / "README.md").write_text("---\nlicense: [\n---\n")
    assert [checks.check_card(patient, on_hub).status for on_hub in (False, True)] == ["warning", "failed"]


def test_a_model_of_the_hub_from_the_cache(healthy, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--you--collap"
    shutil.copytree(healthy["gpt2"], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "v1.0").write_text(commit)
    diagnosis = doctor.diagnose("you/collap", revision="v1.0", cache_dir=tmp_path, local_files_only=True)
    assert [check.name for check in diagnosis.checks if check.status == "failed"] == ["card"]  # published without one
    write_card(cache / "snapshots" / commit)
    diagnosis = doctor.diagnose("you/collap", revision="v1.0", cache_dir=tmp_path, local_files_only=True)
    unsure = [check.name for check in diagnosis.checks if check.status != "ok"]
    assert diagnosis.healthy and unsure == ["copies"]  # copied here, not stored under their hashes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/collap"], "/nowhere/collap"),
        (["nobody/nothing"], "nobody/nothing"),
        ([__file__], "is a file"),
        ([str(ROOT), "--device", "abacus"], "--device abacus"),
        ([str(ROOT), "--revision", "v1"], "--revision v1"),
    ],
)
def test_what_is_no_model_at_all(capsys, arguments, message):
    assert run_command("doctor", [*arguments, "--json"]) == 2
    printed = capsys.readouterr()
    assert message in json.loads(printed.out)["error"] and printed.err.startswith("error: ")


def test_an_attention_that_no_part_has_is_a_wrong_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command("doctor", [str(ROOT), "--attn_implementation", "nonsense"])
    assert "choose from" in capsys.readouterr().err


def test_golden_vectors_that_cannot_be_written_leave_the_old_ones(patient, monkeypatch):
    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    model, processor = load_model(patient)
    before = (patient / GOLDEN_FILE).read_bytes()
    monkeypatch.setattr(golden, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        write_golden(model, processor, patient)
    assert (patient / GOLDEN_FILE).read_bytes() == before


# --------------------------------------------------------------------------------------------------------------------
# The built-in set and the statistics


def test_the_clips_can_be_rendered_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["render_probes", str(tmp_path)])
    render_probes.main()
    assert sum(path.stat().st_size for path in PROBES_FOLDER.iterdir()) < 700_000
    names = [probe.name for probe in load_probes()]
    assert len(set(names)) == 8 and len({text for probe in load_probes() for text in probe.texts}) == 24
    for probe in load_probes():
        assert 4.8 <= len(probe.waveform) / 16000 <= 6.0
        again = load_audio(tmp_path / f"{probe.name}.flac")
        np.testing.assert_allclose(again, probe.waveform, atol=2 / 32768)  # a last bit may fall otherwise elsewhere


def test_p_values_of_known_matrices():
    right = np.eye(5).repeat(3, axis=1)  # three texts each
    assert checks.matching_p_value(right) == 1 / 120
    loud = right + 100 * np.arange(5)[:, None] - 7 * np.arange(15)  # clips and texts that always score high
    assert checks.matching_p_value(loud) == 1 / 120
    assert checks.matching_p_value(np.full((5, 15), 3.0)) == 1.0
    assert checks.matching_p_value(-right) > 0.6
    # Text 0 and 1 exchanged: the right pairs still fit better than most, and worse than the exchanged ones.
    assert 1 / 120 < checks.matching_p_value(right[[1, 0, 2, 3, 4]]) < 0.2


def test_p_values_of_noise_are_evenly_spread():
    rng = np.random.default_rng(0)
    values = [checks.matching_p_value(rng.standard_normal((5, 15))) for _ in range(400)]
    assert abs(np.mean(values) - 0.5) < 0.05 and abs(np.mean(np.array(values) <= 0.1) - 0.1) < 0.05


def test_spread_of_known_vectors():
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    assert spread.mean_cosine(vector.expand(4, 16)) == pytest.approx(1) and spread.mean_cosine(torch.zeros(4, 16)) == 1
    assert spread.mean_cosine(torch.eye(4)) == pytest.approx(0) and spread.effective_rank(
        torch.eye(4)
    ) == pytest.approx(3)
    opposite = torch.stack([vector, -vector, vector, -vector])
    assert spread.effective_rank(opposite) == pytest.approx(1) and spread.effective_rank(torch.ones(4, 16)) == 0
    assert checks.check_spread("text", opposite).status == "failed"  # its mean cosine alone is below zero
    cone = torch.eye(8) + 1.5
    assert checks.check_spread("audio", cone).status == "warning"
    assert checks.check_spread("audio", torch.eye(8)).status == "ok"
