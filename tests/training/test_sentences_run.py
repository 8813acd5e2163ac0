"""A model that lays sentences along the song, from train.py to every client that reads its folder."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from runs import evaluations, scalars, settings, train
from sentence_transformers import SentenceTransformer
from tiny import tiny_model, tiny_processor
from transformers import AutoModel, AutoProcessor, pipeline

from collap.cli import run_command
from collap.hub.export import build_graphs, inputs_and_outputs, largest_difference, load_graph, write_graph
from collap.models import load_model
from collap.training.loaders import build_train_data
from collap.training.settings import DataSettings, parse_settings

AUGMENTED = {
    "sections_column": "sections",
    "crop_sections": 2,
    "crop_epochs": 1,
    "drop_times": 0.5,
    "drop_sentences": 0.2,
    "exchange_sections": 0.6,
    "order_negatives": True,
}
TEXT = "A soft piano opens the song. Then loud drums come in. A flute ends it."


def augmented_settings(corpus, backbones) -> dict:
    """All that training does with known sections."""
    config = settings(corpus, backbones, **AUGMENTED)
    config["model_config"] |= {"alignment": "monotone", "path_blank": True, "alignment_frame_seconds": 0.5}
    config["model_config"]["location_weight"] = 0.5
    return config


@pytest.fixture(scope="module")
def finished(corpus, backbones, tmp_path_factory):
    """A finished run of two epochs: of crops, and of whole songs."""
    folder = tmp_path_factory.mktemp("sentences")
    done = train(folder, augmented_settings(corpus, backbones), micro_batch_size=2)
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


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--crop_sections 2", "crop_sections needs the sections of every song: name .* sections_column"),
        ("--exchange_sections 0.5", "exchange_sections needs the sections of every song"),
        ("--order_negatives", "order_negatives needs the sections of every song"),
        ("--model_config {location_weight:\xa01}", "location_weight needs the sections of every song"),
        ("--crop_epochs 2", "crop_epochs are those of crop_sections, which is not set, found crop_epochs=2"),
        ("--sections_column sections", "sections_column is given and nothing reads it: set crop_sections, "),
        ("--sections_column sections --exchange_sections 1.5", "exchange_sections must be a share .* found 1.5"),
        (
            "--sections_column sections --crop_sections 2 --crop_seconds 10",
            "sections_column .* opened whole, and excludes crop_seconds",
        ),
        (
            "--sections_column sections --order_negatives --streaming --steps_per_epoch 9",
            "sections_column .* opened whole, and excludes streaming",
        ),
    ],
)
def test_settings_of_sections_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse_settings(
            ["--dataset", "songs", "--music", "beats", *(one.replace("\xa0", " ") for one in arguments.split(" "))]
        )


def test_a_model_whose_own_settings_are_not_known_yet_may_read_sections():
    """Of `--model`, which may have a location_weight."""
    assert parse_settings(["--dataset", "songs", "--model", "collap", "--sections_column", "sections"])


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


def test_two_processes_train_as_one_does_in_micro_batches(finished, corpus, backbones, tmp_path):
    """Of crops, then of whole songs and exchanged ones, with the loss of places and other orders: step by step."""
    done = train(tmp_path, augmented_settings(corpus, backbones), num_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = scalars(tmp_path / "run")["train/loss"]
    assert len(losses) == 4 and scalars(finished)["train/loss"] == pytest.approx(losses, rel=2e-3)
    assert AutoModel.from_pretrained(tmp_path / "run" / "best").config.location_weight == 0.5


def test_batches_tell_places_and_orders_to_the_models_that_read_them(corpus, tmp_path):
    places, orders = {"alignment": "free", "location_weight": 1.0}, {"alignment": "monotone"}
    for config, order_negatives, expected in (
        (places, False, {"sentence_spans"}),
        (orders, True, {"sentence_orders"}),
        (orders, False, set()),
        (places | orders, True, {"sentence_spans", "sentence_orders"}),
    ):
        data = DataSettings(str(corpus), text_column="captions", sections_column="sections", num_workers=0)
        data.order_negatives = order_negatives
        parts = tiny_model(**config), tiny_processor(**config), Accelerator(cpu=True)
        batch = next(build_train_data(data, 4, 0, *parts).batches(0, None))
        assert batch.text.keys() == {"input_ids", "attention_mask"} | expected


def test_negatives_in_another_order_need_a_score_that_sees_it(corpus, backbones, tmp_path):
    config = settings(corpus, backbones, sections_column="sections", order_negatives=True)
    config["model_config"] = {**config["model_config"], "alignment": "paper"}
    done = train(tmp_path, config)
    message = "error: order_negatives need the alignment 'monotone', found 'paper': leave them out"
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr
