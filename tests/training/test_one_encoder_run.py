"""A model without the Whisper tower: stored tokens, training and reading, as the paper's transfer tables ask for it."""

import pytest
from runs import scalars, settings, train
from safetensors.torch import load_file
from transformers import AutoModel

from collap.cli import main
from collap.evaluation.load_embedders import load_embedder


@pytest.fixture(scope="module")
def trained(corpus, backbones, tmp_path_factory):
    """The run from audio."""
    folder = tmp_path_factory.mktemp("music alone")
    done = train(folder, settings(corpus, backbones, speech="none", freeze=["music"]))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_its_model_has_one_audio_encoder(trained):
    assert not any("audio_tower.speech" in name for name in load_file(trained / "last" / "model.safetensors"))
    model = AutoModel.from_pretrained(trained / "last")
    assert model.config.audio_encoders == "music" and list(model.encoders) == ["text", "music"]


def test_it_trains_from_stored_tokens_as_from_audio(trained, corpus, backbones, tmp_path):
    tokens, music = tmp_path / "tokens", str(backbones["beats"])
    parts = ["--music", music, "--speech", "none", "--segment_seconds", "2", "--output_dir", str(tokens)]
    assert main(["precompute", "--dataset", str(corpus), *parts]) in (None, 0)
    config = settings(corpus, backbones, speech="none", freeze=["music"], precomputed=str(tokens))
    done = train(tmp_path, config)
    assert done.returncode == 0, done.stderr[-3000:]
    curves = [scalars(run)["train/loss"] for run in (trained, tmp_path / "run")]
    assert curves[0] == pytest.approx(curves[1], abs=2e-3)


def test_a_suite_reads_it_as_trained(trained):
    found = load_embedder(str(trained / "last"))
    assert found.settings["encoders"] == "music" and not found.forms("encoders")
    for reading in ("music", "speech"):
        with pytest.raises(ValueError, match="one audio encoder, music; name it without @"):
            load_embedder(f"{trained / 'last'}@{reading}")
