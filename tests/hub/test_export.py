"""Exported graphs: the same numbers as the model, in onnxruntime and from an archive, at other sizes than the traced
ones, where this package is not installed too."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from elsewhere import REFUSE_INSTALLED
from hub_server import HubServer
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from tiny import (
    TEXTS,
    tiny_beats_config,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_text_config,
    tiny_whisper_config,
)

from collap.cli import run_command
from collap.hub import export
from collap.hub.export import (
    TOLERANCE,
    Graph,
    build_graphs,
    export_model,
    free_dimensions,
    largest_difference,
    load_graph,
    write_graph,
)
from collap.models import save_model_folder

ROOT = Path(__file__).parents[2]
DOCUMENTATION = ROOT / "docs" / "export.md"
GRAPHS = {
    "text": ("input_ids", "attention_mask"),
    "audio": ("music_features", "speech_features", "music_attention_mask", "segment_mask", "audio_token_mask"),
    "score": ("text_embeds", "audio_embeds", "audio_token_mask"),
}
# Each variant with the options whose graphs differ; frames of 3 s reach beyond one segment of 2 s.
SETTINGS = {
    "gpt2": {"structure_layers": 1},
    "roberta": {"kernel_seconds": 3.0, "score_reduction": "printed"},
}
# What is exported, and of which variant. That the other one's graphs are traced shows its archive, and that its layers
# can be ONNX, the sentences of its texts.
EXPORTS = {"gpt2": ("gpt2", ".onnx"), "archive": ("roberta", ".pt2"), "roberta": ("roberta", ".onnx")}
CASES = ["gpt2", "archive", pytest.param("roberta", marks=pytest.mark.slow)]


def small(variant: str) -> dict:
    """Towers of one layer: a second one takes time to export and shows nothing new."""
    text, music, speech = tiny_text_config(variant), tiny_beats_config(num_hidden_layers=1), tiny_whisper_config()
    text.num_hidden_layers = speech.encoder_layers = 1
    parts = {"text_config": text, "music_config": music, "speech_config": speech}
    return {**parts, **SETTINGS[variant]}


def build(name: str):
    """The model of a variant, or of an export, and its processor."""
    variant, _ = EXPORTS[name]
    model = tiny_model(variant, **small(variant))
    for parameter in model.score_parameters.parameters():
        parameter.data += 0.3  # not what a new model has
    return model, tiny_processor(variant, **small(variant))


loaded = functools.cache(load_graph)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Model folders by variant, their exports beside them: `exported/gpt2` by the command, and `exported/archive`, a
    `torch.export` of the RoBERTa variant's first commit on the Hub, by the command in a process of its own."""
    folder = tmp_path_factory.mktemp("export")
    for variant in SETTINGS:
        save_model_folder(*build(variant), folder / variant)
    assert run_command("export", [str(folder / "gpt2"), str(folder / "exported" / "gpt2")]) == 0
    with HubServer() as hub:
        files = {path.name: path.read_bytes() for path in (folder / "roberta").iterdir()}
        commit = hub.commit("you/collap", files)
        hub.commit("you/collap", {"model.safetensors": b"a later commit, broken"})
        command = [sys.executable, "-m", "collap", "export", "you/collap", folder / "exported" / "archive"]
        command += ["--format", "torch_export", "--revision", commit]
        done = subprocess.run(
            command, cwd=ROOT, env=hub.environment(folder), capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 0, done.stderr
    assert re.search(r"audio\.pt2: \d+\.\d MB, within \S+ of the model", done.stdout)
    (folder / "commit").write_text(commit)
    return folder


@pytest.fixture(scope="module", params=CASES)
def case(request, folder) -> dict:
    """A model, its processor and its graphs as functions."""
    model, processor = build(request.param)
    _, suffix = EXPORTS[request.param]
    if request.param == "roberta":
        assert run_command("export", [str(folder / "roberta"), str(folder / "exported" / "roberta")]) == 0
    graphs = {name: loaded(folder / "exported" / request.param / f"{name}{suffix}") for name in GRAPHS}
    tolerance = TOLERANCE if suffix == ".onnx" else 1e-5
    return {"model": model, "processor": processor, "graphs": graphs, "tolerance": tolerance, "name": request.param}


def noise(*seconds: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(round(16_000 * length), generator=generator) for length in seconds]


@torch.no_grad()
def check(case: dict, name: str, values: dict, expected: torch.Tensor):
    found = case["graphs"][name](**{key: values[key] for key in GRAPHS[name]})
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() <= case["tolerance"]


@pytest.mark.parametrize("texts", [TEXTS[:1], ["piano"], [*TEXTS, "a choir", " ".join(30 * ["song"])]])
def test_text_tower(case, texts):
    values = case["processor"](text=texts)
    check(case, "text", values, case["model"].get_text_features(**values))


def test_text_tower_on_one_token_and_on_padding_on_either_side(case):
    values = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.tensor([[1]])}
    check(case, "text", values, case["model"].get_text_features(**values))
    ids, mask = case["processor"](text=TEXTS).values()
    left = {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}
    assert (mask[:, -1] == 0).any() and (left["attention_mask"][:, 0] == 0).any()
    check(case, "text", left, case["model"].get_text_features(**left))


@pytest.mark.parametrize("seconds", [(2.0,), (0.1,), (1.3, 2.7), (9.9, 5.0), (7.9, 0.5, 4.0, 2.1)])
def test_audio_tower_and_score(case, seconds):
    model = case["model"]
    values = dict(case["processor"](text=[*TEXTS, "piano"], audio=noise(*seconds), sampling_rate=16_000))
    with torch.no_grad():
        output = model(**values)
    check(case, "audio", values, output.audio_embeds)
    check(case, "score", {**values, **output}, output.logits_per_audio)
    one = {**output, "text_embeds": output.text_embeds[:1]}
    check(case, "score", one, output.logits_per_audio[:, :1])


def test_score_of_audios_shorter_than_a_frame(case):
    model = case["model"]
    with torch.no_grad():
        values = dict(model(**case["processor"](text=TEXTS, audio=noise(0.2, 0.5), sampling_rate=16_000)))
    for tokens in (1, 2, 3):
        cut = {key: value[:, :tokens] if key.startswith("audio") else value for key, value in values.items()}
        check(case, "score", cut, model.score(*(cut[key] for key in GRAPHS["score"])))


def test_what_padded_segments_hold_does_not_matter(case):
    values = dict(case["processor"](audio=noise(5.0, 1.0), sampling_rate=16_000))
    with torch.no_grad():
        expected, _ = case["model"].get_audio_features(**values)
    padding = ~values["segment_mask"]
    assert padding.any()
    for name in ("music_features", "speech_features"):
        values[name][padding] = torch.nan
    check(case, "audio", values, expected)


def test_slices_of_the_segments_join_without_structure_layers(case):
    model, processor, run = case["model"], case["processor"], case["graphs"]["audio"]
    values = dict(processor(audio=noise(5.0), sampling_rate=16_000))
    width = {key: model.config.tokens_per_segment if key == "audio_token_mask" else 1 for key in values}
    parts = [
        run(**{key: value[:, start * width[key] : end * width[key]] for key, value in values.items()})
        for start, end in ((0, 2), (2, 3))
    ]
    joins = torch.allclose(torch.cat(parts, dim=1), run(**values), atol=TOLERANCE)
    assert joins == (model.config.structure_layers == 0)


@pytest.mark.parametrize(
    ("variant", "pooling", "file", "tolerance"),
    [("gpt2", "last", "text.pt2", 1e-5), ("roberta", "mean", "text.onnx", TOLERANCE)],
)
def test_a_graph_reads_the_sentences_of_a_text_in_one_pass(tmp_path, variant, pooling, file, tolerance):
    settings = {**small(variant), "alignment": "free", "sentence_encoding": "joint", "text_pooling": pooling}
    model, processor = tiny_model(variant, **settings), tiny_processor(variant, **settings)
    graphs = build_graphs(model)
    assert set(graphs) == {"text", "audio"} and graphs["text"].output == "sentence_embeds"
    write_graph(graphs["text"], model.config, tmp_path / file)
    run = load_graph(tmp_path / file)
    for texts in (["piano"], [TEXTS, ["a choir"]], [["piano", "drums", "a loud guitar"]]):
        inputs = processor(text=texts)
        with torch.no_grad():
            expected = model.get_sentence_features(**inputs)
        torch.testing.assert_close(run(**inputs), expected, atol=tolerance, rtol=0)


def test_the_description_tells_what_the_graphs_want(case, folder):
    written = folder / "exported" / case["name"]
    description = json.loads((written / "export.json").read_text())
    archive = case["name"] == "archive"
    assert description["format"] == ("torch_export" if archive else "onnx")
    assert description["source"] == ("you/collap" if archive else case["name"])
    assert description["revision"] == ((folder / "commit").read_text() if archive else None)
    assert (description["sampling_rate"], description["segment_seconds"]) == (16_000, 2)
    assert (description["tokens_per_segment"], description["max_text_tokens"]) == (12, 128)
    assert {name: tuple(graph["inputs"]) for name, graph in description["graphs"].items()} == GRAPHS
    assert max(description["largest_difference"].values()) <= case["tolerance"]
    values = case["processor"](text=TEXTS, audio=noise(3.0), sampling_rate=16_000)
    sizes = {"texts": 2, "text_tokens": values["input_ids"].shape[1], "audios": 1, "segments": 2, "12*segments": 24}
    for name in ("text", "audio"):
        for key, entry in description["graphs"][name]["inputs"].items():
            assert [sizes.get(size, size) for size in entry["shape"]] == list(values[key].shape)
            assert str(values[key].dtype) == f"torch.{entry['dtype']}"
    if not archive:
        for name, graph in description["graphs"].items():
            session = onnxruntime.InferenceSession(written / graph["file"], providers=["CPUExecutionProvider"])
            assert session.get_providers() == ["CPUExecutionProvider"]
            nodes = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
            for side, found in nodes.items():
                assert {node.name: node.shape for node in found} == {
                    key: entry["shape"] for key, entry in graph[side].items()
                }, name


def test_a_graph_holds_the_weights_of_its_part_only(folder):
    """An archive of the text tower with the audio towers in it would be three times as large."""
    model, _ = build("archive")
    counts = {"text": (model.text_tower.encoder, model.text_tower.projection), "score": (model.score_parameters,)}
    for name, parts in counts.items():
        expected = 4 * sum(parameter.numel() for part in parts for parameter in part.parameters())
        program = loaded(folder / "exported" / "archive" / f"{name}.pt2")
        assert sum(tensor.nbytes for tensor in program.state_dict().values()) == expected


def test_texts_that_the_tower_cannot_read_are_an_error(case):
    run = case["graphs"]["text"]
    longest = {"input_ids": torch.full((1, 128), 7), "attention_mask": torch.ones(1, 128, dtype=torch.long)}
    assert run(**longest).isfinite().all()
    error, message = (AssertionError, "128") if case["name"] == "archive" else (InvalidArgument, "out of data bounds")
    with pytest.raises(error, match=message):
        run(**{key: torch.cat([value, value[:, :1]], dim=1) for key, value in longest.items()})


def test_the_documented_code_runs_where_collap_is_not_installed(folder):
    """docs/export.md as it is printed, in a fresh process, on a stereo file at 22.05 kHz."""
    text, code = re.search(
        r"## Use without.*?\n\n(.*?)```python\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL
    ).groups()
    imported = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    assert imported and all(name in text for name in imported)
    work = folder / "elsewhere"
    work.mkdir()
    (work / "exported").symlink_to(folder / "exported" / "gpt2")
    waveform = 0.1 * np.random.default_rng(0).standard_normal((3 * 22_050, 2)).astype(np.float32)
    soundfile.write(work / "song.flac", waveform, 22_050)
    done = subprocess.run(
        [sys.executable, "-c", f"{REFUSE_INSTALLED}\n{code}"],
        cwd=work,
        env={"HF_HOME": str(work), "HOME": str(work), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    model, processor = build("gpt2")
    stored, rate = soundfile.read(work / "song.flac", dtype="float32")
    inputs = processor(text=["a slow song with piano", "a loud guitar"], audio=[stored.T], sampling_rate=rate)
    with torch.no_grad():
        expected = model(**inputs).logits_per_audio
    provider, scores = done.stdout.strip().split("] ", 1)
    assert provider == "['CPUExecutionProvider'"
    found = torch.tensor([[float(number) for number in scores.strip("[]").split()]])
    assert torch.allclose(found, expected, atol=TOLERANCE)


@pytest.fixture
def no_graphs(monkeypatch):
    """Nothing is traced: a graph is what the test says."""
    monkeypatch.setattr(export, "write_graph", lambda graph, config, path: path.write_text("half of it"))
    return lambda run: monkeypatch.setattr(export, "load_graph", run)


@pytest.mark.parametrize("place", ["new", "in/new", "link", "."])
def test_a_graph_that_differs_is_refused_and_leaves_nothing(tmp_path, monkeypatch, no_graphs, place):
    model, processor = build("gpt2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / ("empty" if place == "." else ""))
    no_graphs(lambda path: lambda **inputs: model.get_text_features(**inputs) + 1e-3)
    with pytest.raises(ValueError, match=r"text.pt2 differs from the model by .*e-0[34], expected at most 1e-04"):
        export_model(model, processor, place, "torch_export")
    assert not Path("new").exists() and not Path("in/new").exists()
    assert (tmp_path / "link").is_symlink() and not any((tmp_path / "empty").iterdir())


def test_an_empty_folder_behind_a_link_is_filled(tmp_path, no_graphs):
    model, processor = build("gpt2")
    outputs = {"text": model.get_text_features, "audio": lambda **inputs: model.get_audio_features(**inputs)[0]}
    no_graphs(lambda path: outputs.get(path.stem, model.score))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    export_model(model, processor, tmp_path / "link", "torch_export")
    found = {path.name for path in (tmp_path / "empty").iterdir()}
    assert {"text.pt2", "audio.pt2", "score.pt2", "export.json", "processor_config.json"} <= found
    assert not [name for name in found if name.startswith("unfinished")]


@pytest.mark.parametrize("settings", [{}, {"alignment": "monotone", "sentence_encoding": "joint"}])
def test_every_free_size_is_checked_below_and_above_the_traced_one(tmp_path, no_graphs, settings):
    settings = {**small("gpt2"), **settings}
    model, processor = tiny_model(**settings), tiny_processor(**settings)
    embed_text = model.get_sentence_features if "alignment" in settings else model.get_text_features
    outputs = {"text": embed_text, "audio": lambda **inputs: model.get_audio_features(**inputs)[0]}
    traced = {name: size for name, (_, size) in free_dimensions(model.config).items()}
    graphs, directions = build_graphs(model), {}

    def load(path):
        def run(**inputs):
            for name, value in inputs.items():
                for free, size in zip(graphs[path.stem].inputs[name][1], value.shape, strict=True):
                    if free in traced:
                        seen = directions.setdefault((path.stem, name, free), set())
                        seen.add((size > traced[free]) - (size < traced[free]))
            return outputs.get(path.stem, model.score)(**inputs)

        return run

    no_graphs(load)
    export_model(model, processor, tmp_path / "new", "torch_export")
    unused = {"tokens"} if "alignment" in settings else {"sentences"}
    assert {free for *_, free in directions} == set(traced) - unused
    assert set(map(frozenset, directions.values())) == {frozenset({-1, 1})}, directions


class DependsOnData(torch.nn.Module):
    def forward(self, text_embeds):
        return text_embeds if text_embeds.sum() > 0 else -text_embeds


def test_a_model_that_torch_cannot_trace_is_an_error_that_says_so(tmp_path):
    graph = Graph(DependsOnData(), {"text_embeds": ("float32", ["texts", 4])}, "text_embeds", ["texts", 4])
    with pytest.raises(ValueError, match=r"text.pt2: torch cannot trace this model: .*data-dependent"):
        write_graph(graph, tiny_config(), tmp_path / "text.pt2")


def test_differences_that_no_number_states_are_infinite():
    one = torch.ones(2, 2)
    assert largest_difference(one, one) == 0
    assert largest_difference(torch.full((2, 2), 101.0), torch.full((2, 2), 100.0)) == pytest.approx(1 / 101)
    for found in (torch.full((2, 2), torch.nan), torch.full((2, 2), torch.inf), torch.ones(2), torch.ones(1, 2)):
        assert largest_difference(found, one) == float("inf") == largest_difference(one, found)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named_before_anything_is_loaded(folder, tmp_path, capsys, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert run_command("export", [str(tmp_path / "no such model"), str(tmp_path / "new")]) == 1
    assert f"error: exporting to ONNX needs {missing}: pip install {missing}\n" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_be_used_are_named(folder, tmp_path, capsys):
    exported = folder / "exported" / "gpt2"
    before = sorted(path.name for path in exported.iterdir())
    file = tmp_path / "file"
    file.write_text("")
    for used in (exported, file):
        assert run_command("export", [str(folder / "gpt2"), str(used)]) == 1
        assert f"error: {used} exists and is not an empty folder" in capsys.readouterr().err
    assert sorted(path.name for path in exported.iterdir()) == before
    assert run_command("export", [str(folder / "gpt2"), str(tmp_path / "new"), "--revision", "v1.0"]) == 1
    assert f"error: --revision v1.0: {folder / 'gpt2'} is a folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "empty", "nobody/nothing"):
        assert run_command("export", [str(model), str(tmp_path / "new")]) == 1
        assert str(model) in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
