"""A model that lays sentences along the song, from train.py to every client that reads its folder."""

import json

import numpy as np
import pytest
import torch
from runs import evaluations, scalars, settings, train
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, pipeline

from collap.cli import run_command
from collap.hub.export import build_graphs, inputs_and_outputs, largest_difference, load_graph, write_graph
from collap.models import load_model
from collap.training.settings import parse_settings

CROPS = {"sections_column": "sections", "crop_sections": 2, "crop_epochs": 1, "drop_times": 0.5, "drop_sentences": 0.2}
TEXT = "A soft piano opens the song. Then loud drums come in. A flute ends it."


@pytest.fixture(scope="module")
def finished(corpus, backbones, tmp_path_factory):
    """A finished run of two epochs: of crops, and of whole songs."""
    folder, config = tmp_path_factory.mktemp("sentences"), settings(corpus, backbones, **CROPS)
    config["model_config"] |= {"alignment": "monotone", "path_blank": True, "alignment_frame_seconds": 0.5}
    done = train(folder, config, micro_batch_size=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def songs(corpus) -> list[str]:
    return sorted(map(str, (corpus / "test").glob("*.flac")))


def test_a_run_evaluates_and_shows_the_weights_of_all_scores(finished):
    assert [line["epoch"] for line in evaluations(finished)] == [1, 2]
    curves = scalars(finished)
    for name in ("gamma_kernel", "gamma_sentences", "gamma_path", "blank"):
        assert len(set(curves[f"train/{name}"])) > 1, name
    model = AutoModel.from_pretrained(finished / "best")
    assert model.config.alignment == "monotone" and model.score_parameters.blank.item() != 0


def test_crops_from_the_command_line_are_refused_without_sections():
    for arguments in (["--crop_sections", "2"], ["--sections_column", "sections"], ["--crop_epochs", "2"]):
        with pytest.raises(ValueError, match="sections_column, crop_sections and"):
            parse_settings(["--dataset", "songs", "--music", "beats", *arguments])
    others = ["--sections_column", "sections", "--crop_sections", "2", "--crop_seconds", "10"]
    with pytest.raises(ValueError, match="crop_sections cuts songs .* excludes crop_seconds"):
        parse_settings(["--dataset", "songs", "--music", "beats", *others])


def test_the_pipeline_says_when_each_sentence_is_heard(finished, songs):
    find = pipeline("music-text-retrieval", model=str(finished / "best"), trust_remote_code=True)
    hits = find(TEXT, songs, return_moments=True)
    model, processor = load_model(str(finished / "best"))
    for hit in hits:
        edges = np.array(hit["sentences"])
        assert edges.shape == (3, 2) and (edges[:, 1] > edges[:, 0]).all() and (np.diff(edges[:, 0]) > 0).all()
    library = find(audio=songs, return_tokens=True)
    again = find([TEXT, "one sentence alone"], library)
    assert [hit["index"] for hit in again[0]] == [hit["index"] for hit in hits]
    with torch.no_grad():
        texts = model.get_sentence_features(**processor(text=[TEXT]))
        scores = model.score(texts, library["audio_embeds"], library["audio_token_mask"])[:, 0]
    expected = {hit["index"]: hit["score"] for hit in hits}
    assert scores.tolist() == pytest.approx([expected[index] for index in range(len(songs))], abs=1e-4)


def test_sentence_transformers_encodes_the_direction_of_the_mean(finished):
    encoder = SentenceTransformer(str(finished / "best"), trust_remote_code=True, device="cpu")
    model, processor = AutoModel.from_pretrained(finished / "best"), AutoProcessor.from_pretrained(finished / "best")
    texts = [TEXT, "a single sentence"]
    with torch.no_grad():
        expected = model.eval().get_text_features(**processor(text=texts))
    torch.testing.assert_close(torch.from_numpy(encoder.encode(texts)), expected, atol=1e-6, rtol=0)
    sentences = encoder.encode(texts, output_value="token_embeddings")
    assert [len(one) for one in sentences] == [3, 1]


def test_the_doctor_finds_it_as_healthy_as_an_untrained_model_can_be(finished, capsys):
    run_command("doctor", [str(finished / "best"), "--json"])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "gamma_S" in checks["score parameters"]["detail"] and checks["score parameters"]["status"] == "ok"
    assert all(check["status"] != "failed" for name, check in checks.items() if "golden" in name)


def test_the_graph_of_a_text_embeds_sentences_and_there_is_none_of_the_score(finished, tmp_path):
    model, processor = load_model(str(finished / "best"))
    graphs = build_graphs(model)
    assert list(graphs) == ["text", "audio"]
    write_graph(graphs["text"], model.config, tmp_path / "text.pt2")
    values = inputs_and_outputs(model, processor, [TEXT, "one", "slow piano. loud drums"], [1.0, 2.5])
    found = load_graph(tmp_path / "text.pt2")(**{key: values[key] for key in graphs["text"].inputs})
    assert len(found) == 6 and largest_difference(found.detach(), values["text_embeds"]) < 1e-4
