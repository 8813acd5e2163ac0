"""`collap index --dtype int8`: vectors of 8-bit layers, near those of float32 and found by the same texts."""

import shutil

import pytest
import torch
from libraries import index
from other_models import tiny_clap_folder
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from collap.evaluation.load_embedders import load_embedder
from collap.search.index import TrackIndex
from collap.search.int8 import Int8Linear
from collap.search.quantize import dequantize_rows
from collap.search.space import load_searched
from collap.search.store import IndexStore
from processing import load_audio


def test_an_index_in_int8_is_near_one_in_float32_and_searched_by_the_same_texts(
    tmp_path, library, model_folder, capsys
):
    (tmp_path / "music").mkdir()
    songs = [shutil.copy(path, tmp_path / "music") for path in sorted(library.rglob("*.flac"))[:2]]
    engine = torch.backends.quantized.engine
    arguments = tmp_path / "music", "--index", tmp_path / "index"
    assert index(*arguments, "--model", model_folder, "--dtype", "int8") == 0
    assert torch.backends.quantized.engine == engine
    opened, plain = TrackIndex.open(tmp_path / "index"), load_embedder(str(model_folder))
    assert opened.embedder.settings["precision"] == "int8"
    for track, song in enumerate(songs):
        vectors = opened.store.vectors(track)
        found = dequantize_rows(vectors["tokens"], vectors["token_scales"])
        expected = opened.embedder.embed_file(song)
        assert (found - expected).abs().max() < 0.005
        cosines = F.cosine_similarity(expected, plain.embed_file(song), dim=-1)
        assert cosines.min() > 0.98 and cosines.mean() < 1 - 1e-6
    assert torch.equal(opened.embedder.embed_texts(["a calm piano"]), plain.embed_texts(["a calm piano"]))
    assert len(opened.search("a calm piano")) == len(IndexStore.open(tmp_path / "index").tracks) == 2
    assert index(*arguments) == 0  # the settings are those of the index
    capsys.readouterr()
    assert index(*arguments, "--dtype", "float32") == 1
    assert "its vectors are of another space: dtype is 'float32', there it is 'int8'" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(7, 48), (2, 5, 48)])
def test_a_layer_is_off_by_no_more_than_rounding(shape):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(48, 20), 3 * torch.randn(*shape) + 1
    layer.weight.data *= torch.logspace(-3, 3, 20).unsqueeze(1)  # a scale for each output
    step, weight = (inputs.max() - inputs.min().clamp(max=0)) / 127, layer.weight.detach()
    bounds = step / 2 * weight.abs().sum(1) + (inputs.abs() + step).sum(-1, keepdim=True) * weight.abs().amax(1) / 254
    with torch.no_grad():
        errors = (Int8Linear(layer)(inputs) - layer(inputs)).abs()
    assert (errors <= 1.05 * bounds).all() and (errors > 1e-3 * bounds).any()


@torch.no_grad()
def test_the_vectors_of_a_segment_do_not_depend_on_those_beside_it(library, model_folder):
    embedder = load_searched(str(model_folder), "cpu", "int8")
    samples = [load_audio(path) for path in sorted(library.rglob("*.flac"))[:2]]
    features = embedder.processor(audio=[samples[0], 0.05 * samples[1]], sampling_rate=16000)  # loud and soft segments
    tower, names = embedder.model.audio_tower, ("music_features", "speech_features", "music_attention_mask")
    found = []
    for size in (1, 5):
        tower.segment_batch_size = size
        found.append(tower.fuse(*(features[name].flatten(0, 1) for name in names)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_what_cannot_run_in_int8_is_refused(tmp_path, model_folder):
    clap = tiny_clap_folder(tmp_path / "clap", False)
    weights = load_file(model_folder / "model.safetensors")
    name = next(name for name in weights if "fc1.weight" in name)
    damaged = shutil.copytree(model_folder, tmp_path / "damaged")
    save_file({**weights, name: weights[name] * torch.nan}, damaged / "model.safetensors", metadata={"format": "pt"})
    for spec, device, said in (
        (clap, "cpu", "is no CoLLAP model, and only these run in int8"),
        (model_folder, "cuda", "int8 runs on processors, found --device cuda"),
        (damaged, "cpu", "weights hold NaN"),
    ):
        with pytest.raises(ValueError, match=said):
            load_searched(str(spec), device, "int8")
