"""Models with one audio encoder: the other is not built, and what it would have heard is not read."""

import pytest
import torch
from tiny import TEXTS, tiny_config, tiny_model, tiny_processor
from transformers import AutoModel

from modeling_collap import CoLLAPModel

BOTH = {"music", "speech"}
SECONDS = (2.0, 5.3)
ONE = pytest.mark.parametrize("encoder", sorted(BOTH))


def inputs(**settings):
    """Texts, and songs of 1 and 3 segments."""
    generator = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(round(16000 * seconds), generator=generator) * 0.1 for seconds in SECONDS]
    return tiny_processor("gpt2", **settings)(text=TEXTS, audio=waveforms, sampling_rate=16000)


def both_with(alone: CoLLAPModel, encoder: str) -> CoLLAPModel:
    """A model of both encoders with the weights of `alone`, whose adapter does not hear the other."""
    model = tiny_model(seed=1)
    hidden = alone.audio_tower.encoders[encoder].config.hidden_size
    start = 0 if encoder == "music" else model.audio_tower.music.config.hidden_size
    weight = torch.zeros_like(model.audio_tower.adapter.weight)
    weight[:, start : start + hidden] = alone.audio_tower.adapter.weight.detach()
    state = alone.state_dict() | {"audio_tower.adapter.weight": weight}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    return model


@ONE
@torch.no_grad()
def test_it_is_the_model_of_both_whose_adapter_does_not_hear_the_other(encoder):
    alone = tiny_model(audio_encoders=encoder)
    (other,) = BOTH - {encoder}
    assert not any(name.startswith(f"audio_tower.{other}") for name in alone.state_dict())
    assert alone.audio_tower.adapter.in_features == alone.config.fused_width == 32
    batch = inputs()
    found, expected = alone(**batch), both_with(alone, encoder)(**batch)
    torch.testing.assert_close(found.audio_embeds, expected.audio_embeds)
    torch.testing.assert_close(found.logits_per_audio, expected.logits_per_audio)


@ONE
@torch.no_grad()
def test_features_of_the_other_encoder_are_not_needed(encoder):
    model, batch = tiny_model(audio_encoders=encoder), inputs()
    (other,) = BOTH - {encoder}
    expected = model(**batch).logits_per_audio
    del batch[f"{other}_features"]
    assert torch.equal(model(**batch).logits_per_audio, expected)
    batch[f"{other}_features"] = batch.pop(f"{encoder}_features")
    with pytest.raises(ValueError, match=f"without {encoder}_features, which this model reads"):
        model(**batch)


@ONE
def test_segments_whose_last_patch_whisper_fills_but_beats_does_not(encoder):
    """At 1.6 s Whisper has tokens for ten patches, the filter bank frames for nine."""
    model = tiny_model(audio_encoders=encoder, segment_seconds=1.6)
    assert model.config.tokens_per_segment == 9
    with torch.no_grad():
        output = model(**inputs(segment_seconds=1.6))
    assert output.audio_embeds.shape[1] == 4 * 9


@ONE
@torch.no_grad()
def test_it_is_saved_and_loaded_whole(encoder, tmp_path):
    model = tiny_model(audio_encoders=encoder)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.audio_encoders == encoder
    assert torch.equal(loaded(**inputs()).logits_per_audio, model(**inputs()).logits_per_audio)


def test_weights_of_an_encoder_that_the_configuration_does_without_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_config(audio_encoders="music").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="(?i)mismatch"):
        CoLLAPModel.from_pretrained(tmp_path)


@ONE
@torch.no_grad()
def test_it_is_built_from_the_backbones_there_are(encoder, backbones):
    folders = {"music": str(backbones["beats"]), "speech": str(backbones["whisper"])}
    given = {name: folder if name == encoder else None for name, folder in folders.items()}
    both = CoLLAPModel.from_backbones(str(backbones["gpt2"]), **folders)
    alone = CoLLAPModel.from_backbones(str(backbones["gpt2"]), **given, segment_seconds=2)
    assert alone.config.audio_encoders == encoder and both.config.audio_encoders == "both"
    expected = both.audio_tower.encoders[encoder].state_dict()
    found = alone.audio_tower.encoders[encoder].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_cannot_be_built_is_said(backbones):
    text, beats = str(backbones["gpt2"]), str(backbones["beats"])
    with pytest.raises(ValueError, match="neither a music nor a speech encoder"):
        CoLLAPModel.from_backbones(text, None, None)
    with pytest.raises(ValueError, match="audio_encoders follows from the parts"):
        CoLLAPModel.from_backbones(text, beats, None, audio_encoders="both")
    with pytest.raises(ValueError, match="audio_encoders"):
        tiny_config(audio_encoders="beats")
