"""Models under one protocol: each embeds as its own forward pass does, and one file always as the same vector."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from other_models import tiny_clap_folder, tiny_pe_audio_folder
from tiny import TEXTS
from transformers import RobertaConfig, RobertaModel, WhisperFeatureExtractor

from collap.clap import BATCH, batches_of, real_windows
from collap.evaluation.embedders import blocks_of
from collap.evaluation.embedding import embed_texts
from collap.evaluation.load_embedders import load_embedder
from collap.models import load_model
from modeling_collap import attention_pooled_scores, mean_pooled_scores
from processing import load_audio
from processing.embed_audio import embed_audio

SONG = (np.random.default_rng(0).normal(size=48_000 * 14) * np.linspace(0.01, 0.3, 48_000 * 14)).astype(np.float32)


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    return {fused: tiny_clap_folder(folder / str(fused), fused) for fused in (False, True)}


def test_windows_follow_each_other_and_a_short_rest_is_left_out():
    def windows(total):
        return list(real_windows(blocks_of(np.arange(total))(None, 1, 10), 3))

    lengths = [[len(window) for window in windows(total)] for total in (2, 10, 12, 13, 30)]
    assert lengths == [[2], [10], [10], [10, 3], [10, 10, 10]]
    assert np.concatenate(windows(13)).tolist() == list(range(13))
    batches = list(batches_of(windows(10 * BATCH + 10 + 4)))
    assert [[len(window) for window in batch] for batch in batches] == [[10] * BATCH, [10], [4]]
    assert np.concatenate([window for batch in batches for window in batch]).tolist() == list(range(10 * BATCH + 14))


@pytest.mark.parametrize("fused", [False, True])
def test_clap_embeds_as_its_own_towers_do_and_always_the_same(clap, fused):
    one, mean = (load_embedder(f"{clap[fused]}@{reading}") for reading in ("first", "mean"))
    model, processor = one.model, one.processor
    with torch.no_grad():
        inputs = processor(text=TEXTS, return_tensors="pt", padding=True)
        texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        windows = []
        for samples in (SONG[:480_000], SONG[480_000:]):
            features = processor.feature_extractor(samples, sampling_rate=48_000, return_tensors="pt")
            short = torch.zeros(1, 1, dtype=torch.bool)
            windows.append(model.get_audio_features(features["input_features"], is_longer=short).pooler_output[0])
    np.random.seed(1)
    state = np.random.get_state()[1].tolist()
    first, both = one.embed_audio(SONG), mean.embed_audio(SONG)
    assert np.random.get_state()[1].tolist() == state
    np.testing.assert_allclose(one.embed_texts(TEXTS), texts, atol=1e-5)
    np.testing.assert_allclose(first[0], windows[0], atol=1e-5)
    np.testing.assert_allclose(both[0], (10 * windows[0] + 4 * windows[1]) / 14, atol=1e-5)
    np.random.seed(2)
    assert torch.equal(mean.embed_audio(SONG), both)
    expected = torch.nn.functional.cosine_similarity(texts, both)
    np.testing.assert_allclose(mean.score(one.embed_texts(TEXTS), both), expected, atol=1e-5)
    assert not torch.allclose(windows[0], windows[1], atol=1e-3)


def test_windows_are_scored_as_tokens(clap):
    embedder = load_embedder(f"{clap[False]}@tokens")
    texts, tokens = embedder.embed_texts(TEXTS), embedder.embed_audio(SONG)
    assert tokens.shape == (2, 16)
    mask = torch.ones(1, 2, dtype=torch.bool)
    expected = attention_pooled_scores(texts, tokens[None], mask, 1, 1, gamma_kernel=1.0, gamma_temporal=1.0)
    np.testing.assert_allclose(embedder.score(texts, tokens), expected[0], atol=1e-6)
    assert embedder.score_settings["attention temperature"] == 1.0


def test_a_collapsed_text_tower_is_found(clap, tmp_path):
    assert load_embedder(str(clap[False])).text_spread().status != "failed"
    found = load_embedder(str(tiny_clap_folder(tmp_path / "collapsed", False, collapsed=True))).text_spread()
    assert found.status == "failed" and "collapsed" in found.detail


def test_pe_audio_embeds_as_its_own_forward_pass(tmp_path):
    embedder = load_embedder(str(tiny_pe_audio_folder(tmp_path / "pe")))
    with torch.no_grad():
        embedder.model.text_audio_logit_scale.fill_(1.0)
        inputs = embedder.processor(text=TEXTS, audio=[SONG], sampling_rate=48_000, return_tensors="pt", padding=True)
        output = embedder.model(**inputs)
    texts, audio = embedder.embed_texts(TEXTS), embedder.embed_audio(SONG)
    np.testing.assert_allclose(texts, output.text_audio_embeds, atol=1e-5)
    np.testing.assert_allclose(audio, output.audio_embeds, atol=1e-5)
    np.testing.assert_allclose(embedder.score(texts, audio), output.logits_audio_text[0], atol=1e-4)


def test_collap_is_what_collap_evaluate_measures(model_folder, corpus):
    file = sorted((corpus / "test").glob("*.flac"))[0]
    model, processor = load_model(model_folder)
    tokens, mask = embed_audio(model, processor.feature_extractor, str(file))
    texts = embed_texts(model, processor, TEXTS)
    samples = load_audio(file, 16_000)
    whole, mean, music = (load_embedder(f"{model_folder}@{name}") for name in ("attention", "mean", "music"))
    found = whole.embed_audio(samples)
    assert torch.equal(found, tokens[mask])
    assert torch.equal(whole.embed_texts(TEXTS), texts)
    with torch.no_grad():
        np.testing.assert_allclose(whole.score(texts, found), model.score(texts, tokens, mask)[0], atol=1e-6)
        pooled = mean_pooled_scores(texts[:, 0], tokens, mask)[0]
    np.testing.assert_allclose(mean.score(texts, found), pooled, atol=1e-6)
    assert mean.settings == whole.settings != music.settings and mean.score_settings != whole.score_settings
    assert not torch.allclose(music.embed_audio(samples), found, atol=1e-3)
    assert whole.name == str(model_folder) and mean.name == f"{model_folder}@mean"


@pytest.mark.parametrize("name", ["collap", "tokens", "mean", "first", "random"])
def test_a_file_is_embedded_as_its_samples_are(name, model_folder, clap, corpus):
    file = sorted((corpus / "test").glob("*.flac"))[0]
    embedder = load_embedder({"collap": str(model_folder), "random": "random"}.get(name, f"{clap[False]}@{name}"))
    expected = embedder.embed_audio(load_audio(file, embedder.sampling_rate))
    np.testing.assert_allclose(embedder.embed_file(str(file)), expected, atol=1e-6)


def test_every_second_segment_can_be_passed_over(model_folder, clap, corpus):
    file = str(sorted((corpus / "test").glob("*.flac"))[0])  # 12 to 20 s
    for spec, seconds in ((str(model_folder), 2.0), (f"{clap[False]}@tokens", 10.0)):
        embedder = load_embedder(spec)
        whole, halved = embedder.embed_file(file), embedder.embed_file(file, stride=2)
        starts, kept = embedder.token_starts(len(whole)), embedder.token_starts(len(halved), stride=2)
        assert starts.dtype == kept.dtype == torch.float32 and (starts.diff() >= embedder.token_seconds - 1e-6).all()
        is_even = starts // seconds % 2 == 0
        np.testing.assert_allclose(starts[is_even], kept, atol=1e-5)
        np.testing.assert_allclose(halved, whole[is_even], atol=1e-5)
    with pytest.raises(ValueError, match="stride is 2"):
        load_embedder("random").embed_file(file, stride=2)


def test_random_vectors_are_those_of_their_content():
    one, other = load_embedder("random"), load_embedder("random", seed=1)
    assert torch.equal(one.embed_texts(TEXTS), one.embed_texts(TEXTS[::-1]).flip(0))
    assert not torch.equal(one.embed_audio(SONG), other.embed_audio(SONG))
    assert abs(one.score(one.embed_texts(TEXTS), one.embed_audio(SONG))).max() < 0.2
    assert one.text_spread().status == "ok"


def test_the_adapter_of_the_guide_runs(backbones, tmp_path, monkeypatch):
    guide = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "def load()" in one]
    body = code.partition("class Towers")[2].partition("def load")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "text").symlink_to(backbones["roberta"])
    (tmp_path / "towers" / "audio").symlink_to(backbones["whisper"])
    extractor = WhisperFeatureExtractor(feature_size=40, chunk_length=2)
    extractor.save_pretrained(tmp_path / "towers" / "audio")
    (tmp_path / "my_towers.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    embedder = load_embedder("my_towers.py")
    texts, audio = embedder.embed_texts(TEXTS), embedder.embed_audio(SONG[:32_000])
    assert texts.shape == (2, 32) and audio.shape == (100, 32)
    expected = torch.nn.functional.cosine_similarity(texts, audio.mean(0)[None])
    np.testing.assert_allclose(embedder.score(texts, audio), expected, atol=1e-6)


def test_what_cannot_be_measured_is_said_in_one_line(model_folder, tmp_path):
    config = RobertaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    (tmp_path / "bad.py").write_text("x = 1\n")
    for spec, message in {
        f"{tmp_path}/roberta": "a 'roberta' model; expected one of collap, clap, pe_audio, or a .py",
        f"{model_folder}@firts": "@firts: expected one of attention, mean",
        f"{tmp_path}/nothing": "no such folder, and no model that can be read",
        f"{tmp_path}/none.py": "no such file; expected one with a load()",
        f"{tmp_path}/bad.py": "expected a function load()",
    }.items():
        with pytest.raises((OSError, ValueError), match=message.replace("load()", r"load\(\)")) as error:
            load_embedder(spec)
        assert "\n" not in str(error.value)
