"""Saved folders load where CoLLAP is not installed: with `trust_remote_code=True`, in fresh processes, offline.

The second part lints the files that travel, because transformers copies them by reading their import lines as text.
"""

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import publish, run_elsewhere
from safetensors.torch import load_file, save_file
from tiny import TEXTS, tiny_model, tiny_processor
from transformers import AutoModel, AutoProcessor

from modeling_collap import CoLLAPModel
from processing import CoLLAPProcessor

ROOT = Path(__file__).parents[2]
ENTRIES = ("configuration_collap", "modeling_collap", "feature_extraction_collap", "processing_collap")
# What pipeline() and sentence-transformers read of a published folder.
INTEGRATIONS = ("pipeline_collap", "sentence_collap")
TRAVELLING = {
    *ENTRIES,
    "configuration_beats",
    "modeling_beats",
    "towers_collap",
    "structure_collap",
    "loading_collap",
    "validation_collap",
    "scoring_collap",
    "alignment_collap",
    "weighting_collap",
    "localization_collap",
    "loss_collap",
    "audio_collap",
    "songs_collap",
    "sentences_collap",
}
PUBLISHED = TRAVELLING | {*INTEGRATIONS, "audio_tracks", "decode_audio", "embed_audio", "resample_audio"}
THIRD_PARTY = {"torch", "torchaudio", "numpy", "transformers", "safetensors", "huggingface_hub"}
ALSO = {  # the decoders are asked for when a file is read
    "audio_tracks": {"av", "soundfile"},
    "resample_audio": {"av"},
    "sentence_collap": {"sentence_transformers"},
}
# Folder and repository names become Python modules: '.' and '-' must not matter.
FOLDERS = {"gpt2": "collap-gpt2.v1.0", "roberta": "collap.roberta-base"}
LONG = " ".join(300 * ["piano"])

# Arguments: the file of inputs, then triples of where to load from, where to save again, where to write the results.
FRESH_PROCESS = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer

texts = %r
source, *triples = sys.argv[1:]
waveforms = list(load_file(source).values())
for name, again, results in zip(*[iter(triples)] * 3):
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    for part in (config, model, processor, extractor):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    assert config.model_type == "collap" and config.structure_layers == len(model.structure.frame_layers) == 1
    assert extractor.to_dict() == processor.feature_extractor.to_dict()
    assert tokenizer(texts[0])["input_ids"] == processor.tokenizer(texts[0])["input_ids"]
    inputs = processor(text=texts, audio=waveforms, sampling_rate=22050)
    with torch.no_grad():
        output = model(**inputs, return_loss=True)
    scores = {"loss": output.loss, "logits_per_audio": output.logits_per_audio}
    save_file({**inputs, **{key: value.contiguous() for key, value in scores.items()}}, results)
    model.save_pretrained(again)
    processor.save_pretrained(again)
assert not {"modeling_collap", "processing"} & set(sys.modules)
""" % ([*TEXTS, LONG],)  # noqa: UP031 (braces belong to the script)


def python_files(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.py")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict:
    """Both variants saved, loaded in a fresh process and saved again there, then loaded and saved in a second one."""
    folder = tmp_path_factory.mktemp("remote")
    waveforms = 0.1 * np.random.default_rng(0).standard_normal((3, 70000)).astype(np.float32)
    audio = {f"audio_{i}": torch.from_numpy(waveforms[i, : 70000 - 25000 * i].copy()) for i in range(3)}
    save_file(audio, folder / "audio.safetensors")
    expected, first, second = {}, [], []
    for variant, name in FOLDERS.items():
        model, processor = tiny_model(variant, structure_layers=1), tiny_processor(variant)
        parts = [model, processor] if variant == "gpt2" else [processor, model]  # the order must not matter
        for part in parts:
            part.save_pretrained(folder / name)
        inputs = processor(text=[*TEXTS, LONG], audio=list(audio.values()), sampling_rate=22050)
        with torch.no_grad():
            output = model(**inputs, return_loss=True)
        expected[variant] = {**inputs, "loss": output.loss, "logits_per_audio": output.logits_per_audio}
        first += [folder / name, folder / "again" / name, folder / f"{variant}.1.safetensors"]
        second += [folder / "again" / name, folder / "third" / name, folder / f"{variant}.2.safetensors"]
    publish(folder / FOLDERS["gpt2"], folder / "hf_home", "some.one/collap-gpt2.v1.0")
    hub = ["some.one/collap-gpt2.v1.0", folder / "from_hub", folder / "gpt2.hub.safetensors"]
    run_elsewhere(folder, FRESH_PROCESS, folder / "audio.safetensors", *first)
    run_elsewhere(folder, FRESH_PROCESS, folder / "audio.safetensors", *second, *hub)
    return {"folder": folder, "expected": expected}


@pytest.mark.parametrize("variant", FOLDERS)
@pytest.mark.parametrize("run", ["1", "2"])
def test_inputs_and_scores_are_bit_equal_in_a_fresh_process(saved, variant, run):
    assert_bit_equal(saved["folder"] / f"{variant}.{run}.safetensors", saved["expected"][variant])


def test_inputs_and_scores_are_bit_equal_from_the_hub(saved):
    assert_bit_equal(saved["folder"] / "gpt2.hub.safetensors", saved["expected"]["gpt2"])


def assert_bit_equal(results: Path, expected: dict):
    found = load_file(results)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert found["logits_per_audio"].shape == (3, 3) and found["loss"] > 0


@pytest.mark.parametrize("variant", FOLDERS)
def test_exactly_the_needed_files_travel(saved, variant):
    for place in (".", "again", "third"):
        assert python_files(saved["folder"] / place / FOLDERS[variant]) == TRAVELLING


@pytest.mark.parametrize("variant", FOLDERS)
@pytest.mark.parametrize("place", [".", "again"])
def test_installed_code_wins_without_and_with_trust(saved, variant, place):
    folder = saved["folder"] / place / FOLDERS[variant]
    for trust in ({}, {"trust_remote_code": True}):
        assert type(AutoModel.from_pretrained(folder, **trust)) is CoLLAPModel
        assert type(AutoProcessor.from_pretrained(folder, **trust)) is CoLLAPProcessor


def packages() -> dict[str, Path]:
    """Every file that could travel, by module name."""
    files = [path for package in ("modeling_collap", "processing") for path in (ROOT / package).glob("*.py")]
    return {path.stem: path for path in files if path.stem != "__init__"}


def relative_imports(name: str) -> list[ast.ImportFrom]:
    tree = ast.parse(packages()[name].read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def test_file_names_are_unique_over_both_packages():
    names = [path.stem for package in ("modeling_collap", "processing") for path in (ROOT / package).glob("*.py")]
    names = [name for name in names if name != "__init__"]
    assert len(names) == len(set(names)) > len(TRAVELLING)


def test_files_reached_from_the_entries():
    assert reached_from(ENTRIES) == TRAVELLING and reached_from(ENTRIES + INTEGRATIONS) == PUBLISHED


def reached_from(entries: tuple[str, ...]) -> set[str]:
    reached, waiting = set(), list(entries)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [node.module for node in relative_imports(name)]
    return reached


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_relative_imports_have_the_one_form_that_travels(name):
    path = packages()[name]
    for node in relative_imports(name):
        where = f"{path.name}:{node.lineno}"
        assert node.col_offset == 0, f"{where}: not at the start of the line"
        assert node.level == 1 and node.module and "." not in node.module, f"{where}: only `from .module import name`"
        assert (path.parent / f"{node.module}.py").exists(), f"{where}: no such file beside it"
    # transformers finds them with regular expressions, in docstrings and strings, too.
    lines = enumerate(path.read_text().splitlines(), start=1)
    found = {number for number, line in lines if re.match(r"\s*(from|import)\s+\.", line)}
    assert found == {node.lineno for node in relative_imports(name)}, f"{path.name}: an import line in a string"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_absolute_imports_ask_for_nothing_new(name):
    imported = set()
    for node in ast.walk(ast.parse(packages()[name].read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module.split(".")[0])
    assert imported <= THIRD_PARTY | ALSO.get(name, set()) | sys.stdlib_module_names
