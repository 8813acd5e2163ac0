"""CoLLAPModel as its users meet it: parts in, songs and texts scored, found again in time, saved and loaded."""

import math
import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    REFERENCE,
    VOCABULARY,
    tiny_beats_config,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_text_config,
    tiny_whisper_config,
)
from torch.nn import functional as F
from transformers import (
    AutoModel,
    BatchFeature,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2LMHeadModel,
    GPT2Model,
    RobertaForMaskedLM,
    T5Config,
    WhisperForConditionalGeneration,
)

from collap.cli import main as collap
from modeling_collap import BeatsModel, CoLLAPConfig, CoLLAPModel, attention_pooled_scores
from modeling_collap.towers_collap import music_on_grid, pool_text, speech_on_grid

TEXT_TOWERS = ("gpt2", "roberta")
SONG_SECONDS = (2.0, 7.3, 0.4, 4.1)  # 1, 4, 1 and 3 segments of 2 s
TEXTS = ["drums", "a choir sings over strings, then a loud guitar", "a slow song"]
TOKENS_PER_SEGMENT = 12


def songs(*seconds: float) -> list[torch.Tensor]:
    """Noise whose loudness changes all the time, another for every place in the list."""
    generator = torch.Generator().manual_seed(0)
    waveforms = []
    for duration in seconds:
        noise = torch.randn(round(16000 * duration), generator=generator)
        waveforms.append(noise * torch.linspace(0.01, 0.3, len(noise)))
    return waveforms


def audio_inputs(waveforms: list[torch.Tensor], text: str = "gpt2") -> BatchFeature:
    return tiny_processor(text)(audio=waveforms, sampling_rate=16000)


def lively_model(text: str = "gpt2", **overrides) -> CoLLAPModel:
    """Weights large enough for attention to matter, so that what should have no effect has a chance to have one."""
    model = tiny_model(text, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "score" not in name and "embed_positions" not in name:
                parameter.mul_(4.0)
    return model


class TestText:
    @pytest.mark.parametrize(
        ("pooling", "expected"), [("first", [0.0, 2.0, 3.0]), ("last", [1.0, 3.0, 3.0]), ("mean", [0.5, 2.5, 3.0])]
    )
    def test_pooling_sees_real_tokens_only(self, pooling, expected):
        hidden_states = torch.arange(4.0).expand(3, 4)[..., None]
        attention_mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]])  # padded right, left, left
        assert pool_text(hidden_states, attention_mask, pooling).flatten().tolist() == expected

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize(("text", "pooling"), [("gpt2", "last"), ("roberta", "first"), ("roberta", "mean")])
    def test_padding_does_not_change_the_features(self, text, pooling, side):
        model, processor = lively_model(text, text_pooling=pooling), tiny_processor(text)
        inputs = processor.tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
        assert inputs.attention_mask[0, 0 if side == "left" else -1] == 0
        with torch.no_grad():
            together = model.get_text_features(**inputs)
            alone = [model.get_text_features(processor(text=one).input_ids) for one in TEXTS]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
        torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
        assert (together[0] - together[1]).norm() > 0.1  # the features do depend on the text

    @pytest.mark.parametrize(("text", "position"), [("gpt2", -1), ("roberta", 0)])
    def test_the_hidden_state_of_the_paper_is_projected(self, text, position):
        model = lively_model(text)
        input_ids = torch.tensor([[5, 9, 17, 23]])
        with torch.no_grad():
            hidden_states = model.text_tower.encoder(input_ids=input_ids).last_hidden_state
            expected = F.normalize(model.text_tower.projection(hidden_states[:, position]), dim=-1)
            torch.testing.assert_close(model.get_text_features(input_ids), expected)


class TestTokenTimeline:
    def test_fused_token_is_the_mean_of_what_each_encoder_heard_in_its_160_ms(self):
        patches = 10.0 * torch.arange(3).repeat_interleave(8) + torch.arange(8).repeat(3)  # time-major
        speech = torch.arange(27.0)  # 24 tokens span 3 patches; 3 are left over
        assert music_on_grid(patches[None, :, None], 8).tolist() == [[[3.5], [13.5], [23.5]]]
        assert speech_on_grid(speech[None, :, None], 3, 8).tolist() == [[[3.5], [11.5], [19.5]]]

    def test_a_moment_of_the_audio_reaches_the_tokens_of_its_segment_only(self):
        (song,) = songs(7.3)
        changed = song.clone()
        changed[40_000:50_000] += 0.2 * torch.sin(torch.arange(10_000.0))  # 2.5 s to 3.1 s
        model = lively_model()
        with torch.no_grad():
            embeds, _ = model.get_audio_features(**audio_inputs([song, changed]))
        differs = (embeds[0] - embeds[1]).norm(dim=-1) > 1e-5
        assert differs[12:24].any()
        assert not differs[:12].any()
        assert not differs[24:].any()

    def test_start_of_every_token_with_the_gap_at_the_end_of_a_segment(self):
        speech_config = tiny_whisper_config(max_source_positions=1500)
        model = tiny_model(segment_seconds=30, speech_config=speech_config)
        assert (model.config.tokens_per_segment, model.config.token_seconds) == (187, 0.16)
        starts = model.token_start_seconds(3 * 187)
        for token, seconds in ((0, 0.0), (1, 0.16), (186, 29.76), (187, 30.0), (188, 30.16), (374, 60.0), (560, 89.76)):
            assert starts[token].item() == pytest.approx(seconds, abs=1e-4)
        assert starts[187] - (starts[186] + 0.16) == pytest.approx(0.08, abs=1e-4)

    def test_frame_and_stride_are_floors_of_the_tokens_of_one_segment(self):
        speech_config = tiny_whisper_config(max_source_positions=1500)
        config = tiny_config(segment_seconds=30, speech_config=speech_config, kernel_seconds=10, stride_seconds=5)
        assert (config.kernel_size, config.stride) == (62, 31)  # 187 * 10 / 30 = 62.3; 187 * 5 / 30 = 31.2
        short = tiny_config(kernel_seconds=0.01, stride_seconds=0.01)
        assert (short.kernel_size, short.stride) == (1, 1)


class TestBatches:
    @pytest.mark.parametrize("structure_layers", [0, 1])
    def test_a_song_does_not_depend_on_the_others(self, structure_layers):
        model, waveforms = lively_model(structure_layers=structure_layers), songs(*SONG_SECONDS)
        order = [2, 0, 3, 1]
        with torch.no_grad():
            text_embeds = model.get_text_features(**tiny_processor()(text=TEXTS))
            embeds, mask = model.get_audio_features(**audio_inputs(waveforms))
            scores = model.score(text_embeds, embeds, mask)
            shuffled, shuffled_mask = model.get_audio_features(**audio_inputs([waveforms[i] for i in order]))
            assert mask.sum(-1).tolist() == [12, 45, 3, 25]
            assert torch.equal(shuffled_mask, mask[order])
            torch.testing.assert_close(shuffled, embeds[order], atol=1e-5, rtol=0)
            for i, waveform in enumerate(waveforms):
                alone, alone_mask = model.get_audio_features(**audio_inputs([waveform]))
                torch.testing.assert_close(alone[0][alone_mask[0]], embeds[i][mask[i]], atol=1e-5, rtol=0)
                alone_scores = model.score(text_embeds, alone, alone_mask)
                torch.testing.assert_close(alone_scores[0], scores[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(embeds.norm(dim=-1), mask.float())  # unit vectors, zero outside of the mask
        assert (scores[0] - scores[1]).abs().max() > 1e-2

    @pytest.mark.parametrize("segment_batch_size", [1, 2, 4, 100])
    def test_real_segments_alone_are_encoded_a_few_at_a_time(self, segment_batch_size):
        model = lively_model(segment_batch_size=segment_batch_size)
        seen = {"music": [], "speech": []}
        model.audio_tower.music.register_forward_pre_hook(lambda _, inputs: seen["music"].append(len(inputs[0])))
        model.audio_tower.speech.register_forward_pre_hook(lambda _, inputs: seen["speech"].append(len(inputs[0])))
        inputs = audio_inputs(songs(*SONG_SECONDS))
        with torch.no_grad():
            embeds, _ = model.get_audio_features(**inputs)
            expected, _ = lively_model().get_audio_features(**inputs)
        assert inputs.music_features.shape[:2].numel() == 16  # 4 songs, padded to 4 segments each
        for sizes in seen.values():
            assert sum(sizes) == 1 + 4 + 1 + 3
            assert max(sizes) == min(segment_batch_size, 9)
        torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)

    def test_masks_that_are_left_out_are_all_true(self):
        model, inputs = lively_model(), audio_inputs(songs(4.0, 4.0))
        features = inputs.music_features, inputs.speech_features
        with torch.no_grad():
            expected, expected_mask = model.get_audio_features(**inputs)
            embeds, mask = model.get_audio_features(*features)
            first_only, first_mask = model.get_audio_features(*features, segment_mask=torch.tensor([[1, 1], [1, 0]]))
        assert expected_mask.all()
        assert torch.equal(mask, expected_mask)
        torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)
        assert first_mask.sum(-1).tolist() == [24, 12]
        torch.testing.assert_close(first_only[first_mask], embeds[first_mask], atol=1e-5, rtol=0)

    def test_what_is_silent_padding_of_the_last_segment_has_no_effect(self):
        model, inputs = lively_model(), audio_inputs(songs(0.5))
        changed = BatchFeature(dict(inputs))
        changed["music_features"] = inputs.music_features.clone()
        changed["music_features"][:, :, 64:] = 9.0  # 0.5 s are 50 frames: the fourth time patch is the last
        with torch.no_grad():
            embeds, changed_embeds = (model.get_audio_features(**i)[0] for i in (inputs, changed))
        torch.testing.assert_close(embeds, changed_embeds, atol=1e-6, rtol=0)


class TestScore:
    @pytest.mark.parametrize("text", TEXT_TOWERS)
    @pytest.mark.parametrize("reduction", ["mean", "printed"])
    def test_forward_is_the_getters_and_the_score(self, text, reduction):
        model = lively_model(text, score_reduction=reduction, attention_temperature=0.3, structure_layers=1)
        inputs = tiny_processor(text)(text=TEXTS, audio=songs(*SONG_SECONDS), sampling_rate=16000)
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        audio = {name: tensor for name, tensor in inputs.items() if name not in texts}
        with torch.no_grad():
            output, values = model(**inputs), model(**inputs, return_dict=False)
            text_embeds, (audio_embeds, mask) = model.get_text_features(**texts), model.get_audio_features(**audio)
            scores = model.score(text_embeds, audio_embeds, mask)
            sevenths = torch.full((1,), 0.5 / 0.07)
            expected = attention_pooled_scores(
                text_embeds, audio_embeds, mask, 6, 3, sevenths, sevenths, torch.full((1,), 0.3), reduction
            )
            chunked = model.score(text_embeds, audio_embeds, mask, chunk_size=2)
        assert output.loss is None
        assert output.logits_per_audio.shape == (4, 3)
        torch.testing.assert_close(output.logits_per_audio, scores)
        torch.testing.assert_close(scores, expected)
        torch.testing.assert_close(chunked, scores)
        assert torch.equal(output.logits_per_text, output.logits_per_audio.T)
        assert torch.equal(output.text_embeds, text_embeds)
        assert torch.equal(output.audio_embeds, audio_embeds)
        assert torch.equal(output.audio_token_mask, mask)
        assert torch.equal(values[0], output.logits_per_audio)

    def test_loss_is_of_the_configured_direction(self):
        inputs = tiny_processor()(text=TEXTS, audio=songs(1.0, 2.0, 3.0), sampling_rate=16000)
        losses = {}
        for direction in ("symmetric", "audio_to_text"):
            with torch.no_grad():
                output = lively_model(loss_direction=direction)(**inputs, return_loss=True)
            losses[direction], scores = output.loss.item(), output.logits_per_audio
        labels = torch.arange(3)
        audio_to_text, text_to_audio = F.cross_entropy(scores, labels).item(), F.cross_entropy(scores.T, labels).item()
        assert abs(audio_to_text - text_to_audio) > 1e-3
        assert losses == pytest.approx(
            {"symmetric": (audio_to_text + text_to_audio) / 2, "audio_to_text": audio_to_text}
        )

    def test_what_the_loss_cannot_be_computed_from_is_refused(self):
        model, processor = tiny_model(), tiny_processor()
        inputs = processor(text=TEXTS, audio=songs(1.0, 1.0), sampling_rate=16000)
        with pytest.raises(ValueError, match="found 2 audios and 3 texts"):
            model(**inputs, return_loss=True)
        messages = {"input_ids": "found audio; expected input_ids.*needs both sides"}
        messages |= {name: f"without {name}" for name in ("music_features", "speech_features")}
        for missing, message in messages.items():
            with pytest.raises(ValueError, match=message):
                model(**{name: tensor for name, tensor in inputs.items() if name != missing}, return_loss=True)
        with pytest.raises(ValueError, match="neither text nor audio"):
            model()

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_one_side_alone_known_texts_and_stored_tokens_give_the_same_numbers(self, text):
        model = lively_model(text, structure_layers=1)
        inputs = tiny_processor(text)(text=TEXTS, audio=songs(*SONG_SECONDS), sampling_rate=16000)
        texts = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
        real = inputs["segment_mask"]
        with torch.no_grad():
            whole, text_only, audio_only = model(**texts, **inputs), model(**texts), model(**inputs)
            fused = model.audio_tower.fuse(
                *(inputs[name][real] for name in ("music_features", "speech_features", "music_attention_mask"))
            )  # (N, K, M)
            stored = fused.new_zeros(*real.shape, *fused.shape[1:])  # (A, S, K, M)
            stored[real] = fused
            mask = inputs["audio_token_mask"]
            known = model(text_embeds=text_only.text_embeds, fused_tokens=stored.flatten(1, 2), audio_token_mask=mask)
        assert text_only.audio_embeds is None and text_only.logits_per_audio is None
        assert audio_only.text_embeds is None and audio_only.logits_per_text is None
        assert torch.equal(text_only.text_embeds, whole.text_embeds)
        assert torch.equal(audio_only.audio_embeds, whole.audio_embeds)
        torch.testing.assert_close(known.logits_per_audio, whole.logits_per_audio)
        torch.testing.assert_close(known.audio_embeds, whole.audio_embeds)

    @pytest.mark.parametrize("structure_layers", [0, 1])
    def test_only_structure_layers_see_the_order_of_sections(self, structure_layers):
        # Frames of one segment without overlap: to permute the segments is to permute the frames.
        model = lively_model(structure_layers=structure_layers, kernel_seconds=2.0, stride_seconds=2.0)
        assert model.config.kernel_size == model.config.stride == TOKENS_PER_SEGMENT
        inputs = tiny_processor()(text=TEXTS, audio=songs(8.0), sampling_rate=16000)
        permuted = BatchFeature(dict(inputs))
        for name in ("music_features", "speech_features"):
            permuted[name] = inputs[name][:, [2, 0, 3, 1]]
        with torch.no_grad():
            difference = (model(**inputs).logits_per_audio - model(**permuted).logits_per_audio).abs().max()
        if structure_layers:
            assert difference > 1e-2
        else:
            assert difference < 1e-5

    def test_gammas_are_positive_bounded_and_start_at_the_inverse_of_007(self):
        parameters = tiny_model().score_parameters
        assert sum(parameters.gammas().values()).item() == pytest.approx(1 / 0.07, rel=1e-6)
        assert parameters.gammas()["kernel"] == parameters.gammas()["temporal"]
        assert sum(tiny_model(gamma_init_sum=3.0).score_parameters.gammas().values()).item() == pytest.approx(3.0)
        with torch.no_grad():
            parameters.log_gamma_kernel.fill_(50.0)
            parameters.log_gamma_temporal.fill_(-20.0)
        gamma_kernel, gamma_temporal = parameters.gammas().values()
        assert gamma_kernel.item() == pytest.approx(100.0)
        assert gamma_temporal.item() == pytest.approx(math.exp(-20))

    def test_each_gamma_weighs_its_own_term(self):
        model = lively_model()
        inputs = tiny_processor()(text=TEXTS, audio=songs(5.0), sampling_rate=16000)
        with torch.no_grad():
            model.score_parameters.log_gamma_kernel.fill_(math.log(3.0))
            model.score_parameters.log_gamma_temporal.fill_(-50.0)
            output = model(**inputs)
            expected = attention_pooled_scores(
                output.text_embeds, output.audio_embeds, output.audio_token_mask, 6, 3, 3.0, 0.0
            )
        torch.testing.assert_close(output.logits_per_audio, expected)

    @pytest.mark.parametrize("learned", [False, True])
    def test_attention_temperature_is_learned_on_request(self, learned):
        model = lively_model(learn_attention_temperature=learned, attention_temperature=0.5)
        inputs = tiny_processor()(text=TEXTS[:2], audio=songs(5.0, 3.0), sampling_rate=16000)
        model(**inputs, return_loss=True).loss.backward()
        parameter = model.score_parameters.log_attention_temperature
        assert model.score_parameters.temperature().item() == pytest.approx(0.5)
        assert parameter.requires_grad == learned
        assert (parameter.grad is not None and parameter.grad.item() != 0) == learned
        with torch.no_grad():
            parameter.fill_(-50.0)
        assert model.score_parameters.temperature().item() == pytest.approx(0.01)

    def test_flat_attention_counts_every_moment_alike(self):
        model = lively_model(kernel_seconds=2.0, stride_seconds=2.0)  # 6 s are three whole frames
        inputs = tiny_processor()(text=TEXTS, audio=songs(6.0), sampling_rate=16000)
        with torch.no_grad():
            output = model(**inputs)
            embeds = output.text_embeds, output.audio_embeds, output.audio_token_mask
            flat = model.score(*embeds, flat_attention=True)
        expected = (output.text_embeds @ output.audio_embeds[0].T).mean(-1) / 0.07
        torch.testing.assert_close(flat[0], expected, atol=1e-5, rtol=1e-5)
        assert (flat - output.logits_per_audio).abs().max() > 1e-3


class TestLocalize:
    def test_planted_match_is_found_at_its_seconds(self):
        model = tiny_model()  # frames of 6 tokens every 3; segments of 12 tokens, 1.92 of 2 s
        generator = torch.Generator().manual_seed(0)
        texts = F.normalize(torch.randn(2, 32, generator=generator), dim=-1)
        audio = F.normalize(torch.randn(2, 60, 32, generator=generator), dim=-1)
        mask = torch.arange(60) < torch.tensor([[60], [34]])
        audio[0, 30:36] = texts[1]  # the second half of the third segment
        audio[1, 9:15] = texts[0]  # over the border of the first and second segment
        audio[~mask] = texts[0]  # junk beyond the end of the second song
        found = model.localize(texts, audio, mask)

        assert found.scores.shape == (2, 2, 19)
        assert found.scores[0, 1].argmax() == 10
        assert found.scores[0, 1, 10].item() == pytest.approx(1.0)
        assert found.frame_seconds[10].tolist() == pytest.approx([4.96, 5.92])
        assert found.scores[1, 0].argmax() == 3
        assert found.frame_seconds[3].tolist() == pytest.approx([1.44, 2.48])  # 6 * 0.16 s and the gap of 0.08 s
        assert found.frame_seconds[0].tolist() == pytest.approx([0.0, 0.96])
        assert found.frame_seconds[18].tolist() == pytest.approx([8.96, 9.92])
        assert found.frame_mask.sum(-1).tolist() == [19, 10]  # (34 - 6) // 3 + 1
        assert not found.scores[1][:, 10:].any()

    def test_scores_are_the_terms_of_the_kernel_wise_score(self):
        model, waveforms = lively_model(attention_temperature=0.1), songs(*SONG_SECONDS)
        with torch.no_grad():
            texts = model.get_text_features(**tiny_processor()(text=TEXTS))
            embeds, mask = model.get_audio_features(**audio_inputs(waveforms))
            found = model.localize(texts, embeds, mask)
        mean = found.scores.sum(-1) / found.frame_mask.sum(-1, keepdim=True)
        expected = attention_pooled_scores(texts, embeds, mask, 6, 3, 1.0, 0.0, attention_temperature=0.1)
        torch.testing.assert_close(mean, expected)

    def test_song_shorter_than_a_frame(self):
        model = lively_model(kernel_seconds=10.0)
        with torch.no_grad():
            texts = model.get_text_features(**tiny_processor()(text=TEXTS))
            found = model.localize(texts, *model.get_audio_features(**audio_inputs(songs(0.4))))
        assert model.config.kernel_size == 60
        assert found.scores.shape == (1, 3, 1)
        assert found.frame_mask.tolist() == [[True]]
        assert found.frame_seconds[0, 0] == 0.0


class TestPrecision:
    def test_scores_of_a_bfloat16_model_are_float32(self, tmp_path):
        # oneDNN's bfloat16 convolution is wrong for groups of 8 channels on some processors; those of BEATs have 48.
        music = tiny_beats_config(conv_pos_groups=2)
        tiny_model(structure_layers=1, music_config=music).save_pretrained(tmp_path)
        expected_model = CoLLAPModel.from_pretrained(tmp_path)
        model = CoLLAPModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.score_parameters.parameters()} == {torch.float32}
        for tower in (model.text_tower.encoder, model.audio_tower.music, model.audio_tower.speech, model.structure):
            assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
        inputs = tiny_processor()(text=TEXTS, audio=songs(5.0, 3.0), sampling_rate=16000)
        with torch.no_grad():
            output, expected = model(**inputs), expected_model(**inputs)
            found = model.localize(output.text_embeds, output.audio_embeds, output.audio_token_mask)
        for tensor in (output.logits_per_audio, output.text_embeds, output.audio_embeds, found.scores):
            assert tensor.dtype == torch.float32
        for name in ("text_embeds", "audio_embeds"):
            assert (output[name] - expected[name]).norm() / expected[name].norm() < 3e-2
        torch.testing.assert_close(output.audio_embeds.norm(dim=-1), output.audio_token_mask.float())

    def test_autocast_leaves_the_score_in_float32(self):
        model = lively_model()
        inputs = tiny_processor()(text=TEXTS, audio=songs(5.0, 3.0), sampling_rate=16000)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            output = model(**inputs)
            embeds = output.text_embeds, output.audio_embeds, output.audio_token_mask
            inside = model.score(*embeds), model.localize(*embeds).scores
        with torch.no_grad():
            outside = model.score(*embeds), model.localize(*embeds).scores
        assert torch.equal(output.logits_per_audio, inside[0])
        for found, expected in zip(inside, outside, strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected)


class TestTraining:
    @pytest.mark.parametrize("structure_layers", [0, 2])
    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_every_parameter_gets_a_gradient(self, text, structure_layers):
        model = tiny_model(text, structure_layers=structure_layers, learn_attention_temperature=True).train()
        inputs = tiny_processor(text)(text=TEXTS, audio=songs(1.0, 5.0, 3.0), sampling_rate=16000)
        model(**inputs, return_loss=True).loss.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
        # Whisper's sinusoids are constants.
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert frozen == ["audio_tower.speech.embed_positions.weight"]
        for tower in (
            model.text_tower.encoder,
            model.audio_tower.music,
            model.audio_tower.speech,
            model.score_parameters,
        ):
            assert all(torch.isfinite(p.grad).all() for p in tower.parameters() if p.requires_grad)
            assert sum(p.grad.abs().sum() for p in tower.parameters() if p.requires_grad) > 0

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_gradient_checkpointing_recomputes_all_towers_and_changes_no_gradient(self, text):
        inputs = tiny_processor(text)(text=TEXTS, audio=songs(1.0, 5.0, 3.0), sampling_rate=16000)
        gradients, calls = {}, {}
        for checkpointing in (False, True):
            model = tiny_model(text, structure_layers=1, segment_batch_size=100).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            blocks = {
                "text": model.text_tower.encoder.h[1].mlp
                if text == "gpt2"
                else model.text_tower.encoder.encoder.layer[1].output,
                "music": model.audio_tower.music.layers[1].feed_forward,
                "speech": model.audio_tower.speech.layers[1].fc1,
                "structure": model.structure.frame_layers[0].feed_forward,
            }
            counts = dict.fromkeys(blocks, 0)

            def count(*_, name, counts=counts):
                counts[name] += 1

            for name, block in blocks.items():
                block.register_forward_pre_hook(partial(count, name=name))
            torch.manual_seed(0)  # dropout
            model(**inputs, return_loss=True).loss.backward()
            gradients[checkpointing] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            calls[checkpointing] = counts
        assert set(calls[False].values()) == {1}
        assert set(calls[True].values()) == {2}
        for name, gradient in gradients[False].items():
            torch.testing.assert_close(gradients[True][name], gradient, atol=1e-6, rtol=1e-5, msg=name)

    def test_new_towers_are_initialised_by_their_own_rules(self):
        torch.manual_seed(0)
        wide = tiny_config(projection_dim=256)
        model = CoLLAPModel(wide)
        assert model.audio_tower.adapter.weight.std().item() == pytest.approx(0.02, rel=0.05)
        query = model.audio_tower.music.layers[0].self_attn.q_proj.weight
        assert query.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)  # DeepNet's, not 0.02
        sinusoids = model.audio_tower.speech.embed_positions.weight
        assert sinusoids[0].tolist() == [0.0] * 16 + [1.0] * 16


@pytest.mark.parametrize("text", TEXT_TOWERS)
def test_attention_implementation_reaches_all_towers(text, tmp_path, monkeypatch):
    lively_model(text).save_pretrained(tmp_path)
    inputs = tiny_processor(text)(text=TEXTS, audio=songs(5.0, 3.0), sampling_rate=16000)
    calls = []
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or attention(*a, **k))
    results = {}
    models = {
        implementation: CoLLAPModel.from_pretrained(tmp_path, attn_implementation=implementation)
        for implementation in ("sdpa", "eager")
    }
    models["switched"] = CoLLAPModel.from_pretrained(tmp_path)
    models["switched"].set_attn_implementation("eager")
    for name, model in models.items():
        calls.clear()
        with torch.no_grad():
            results[name] = model(**inputs).logits_per_audio
        assert len(calls) == (6 if name == "sdpa" else 0)  # two layers in each of three towers
    torch.testing.assert_close(results["eager"], results["sdpa"], atol=1e-4, rtol=1e-4)
    assert torch.equal(results["switched"], results["eager"])


class TestSaving:
    @pytest.mark.parametrize("structure_layers", [0, 1])
    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_loaded_model_is_bit_equal(self, text, structure_layers, tmp_path):
        model = tiny_model(text, structure_layers=structure_layers, learn_attention_temperature=True)
        with torch.no_grad():
            model.score_parameters.log_gamma_kernel.fill_(1.25)
        model.save_pretrained(tmp_path)
        loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is CoLLAPModel
        assert not any(info.values())
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        inputs = tiny_processor(text)(text=TEXTS, audio=songs(5.0, 3.0), sampling_rate=16000)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).logits_per_audio, model(**inputs).logits_per_audio)

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_nothing_is_saved_that_the_model_does_not_use(self, text, tmp_path):
        tiny_model(text).save_pretrained(tmp_path)
        names = load_file(tmp_path / "model.safetensors").keys()
        parts = {".".join(name.split(".")[:2]) for name in names if not name.startswith("score_parameters.")}
        audio = {"audio_tower.music", "audio_tower.speech", "audio_tower.adapter"}
        assert parts == {"text_tower.encoder", "text_tower.projection"} | audio
        assert not [name for name in names if "decoder" in name or "pooler" in name or "lm_head" in name]
        assert load_file(tmp_path / "model.safetensors")["audio_tower.speech.embed_positions.weight"].shape == (100, 32)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, Path]:
    """Folders of pretrained parts in the layout in which they are published, with random weights."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    small = {"vocab_size": VOCABULARY, "max_position_embeddings": 128}
    bert = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, pad_token_id=1, **small
    )
    distilbert = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, pad_token_id=1, **small)
    models = {
        "gpt2": GPT2Model(tiny_text_config("gpt2")),
        "gpt2-lm": GPT2LMHeadModel(tiny_text_config("gpt2")),
        "roberta": RobertaForMaskedLM(tiny_text_config("roberta")),
        "bert": BertModel(bert),
        "distilbert": DistilBertModel(distilbert),
        "whisper": WhisperForConditionalGeneration(tiny_whisper_config()),
    }
    for name, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)  # none is left at its initial value, not even Whisper's sinusoids
        model.save_pretrained(folder / name)
    assert collap(["convert-beats", str(REFERENCE / "beats_tiny.pt"), str(folder / "beats")]) == 0
    return {name: folder / name for name in [*models, "beats"]}


def from_backbones(backbones: dict[str, Path], text: str, **config) -> CoLLAPModel:
    return CoLLAPModel.from_backbones(backbones[text], backbones["beats"], backbones["whisper"], **config).eval()


def tensors(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Of the file in `folder`, those whose name begins with `prefix`, without it."""
    state = load_file(folder / "model.safetensors")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


class TestFromBackbones:
    @pytest.mark.parametrize(
        ("text", "prefix"),
        [("gpt2", ""), ("gpt2-lm", "transformer."), ("roberta", "roberta."), ("bert", ""), ("distilbert", "")],
    )
    def test_every_pretrained_tensor_arrives_bit_equal(self, backbones, text, prefix):
        model = from_backbones(backbones, text, projection_dim=16, structure_layers=1, structure_heads=2)
        expected = {
            "text_tower.encoder": tensors(backbones[text], prefix),
            "audio_tower.music": tensors(backbones["beats"]),
            "audio_tower.speech": tensors(backbones["whisper"], "model.encoder."),
        }
        for tower, state in expected.items():
            found = model.get_submodule(tower).state_dict()
            state = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
            assert found.keys() == state.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
            assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert model.config.segment_seconds == 4.0  # what the speech encoder has positions for
        assert model.config.projection_dim == model.text_tower.projection.out_features == 16
        assert model.audio_tower.adapter.weight.std().item() == pytest.approx(0.02, rel=0.1)
        pooling = {"gpt2": "last", "gpt2-lm": "last", "roberta": "first"}
        assert model.config.text_pooling == pooling.get(text, "mean")

    def test_speech_positions_are_sliced_to_a_shorter_segment(self, backbones, tmp_path):
        model = from_backbones(backbones, "gpt2-lm", segment_seconds=1.5, projection_dim=32)
        positions = tensors(backbones["whisper"], "model.encoder.")["embed_positions.weight"]
        assert torch.equal(model.audio_tower.speech.embed_positions.weight, positions[:75])
        assert model.config.tokens_per_segment == 9
        model.save_pretrained(tmp_path)
        loaded = CoLLAPModel.from_pretrained(tmp_path)
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("text", ["bert", "distilbert"])
    def test_other_text_encoders_score_and_train(self, backbones, text):
        model = from_backbones(backbones, text, segment_seconds=2, kernel_seconds=1, stride_seconds=0.5)
        input_ids = torch.tensor([[5, 9, 17, 23], [8, 4, 1, 1]])
        attention_mask = (input_ids != 1).long()
        with torch.no_grad():
            together = model.get_text_features(input_ids, attention_mask)
            alone = model.get_text_features(input_ids[1:, :2])
        torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
        output = model(input_ids, attention_mask, **audio_inputs(songs(3.0, 1.0)), return_loss=True)
        output.loss.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    @pytest.mark.parametrize(
        ("part", "name"),
        [
            ("gpt2", "h.1.mlp.c_fc.weight"),
            ("roberta", "roberta.encoder.layer.0.output.dense.bias"),
            ("beats", "layers.1.self_attn.gate_scale"),
            ("whisper", "model.encoder.conv2.bias"),
        ],
    )
    def test_checkpoint_without_all_weights_is_refused(self, backbones, tmp_path, part, name):
        broken = tmp_path / part
        broken.mkdir()
        (broken / "config.json").write_bytes((backbones[part] / "config.json").read_bytes())
        state = load_file(backbones[part] / "model.safetensors")
        del state[name]
        save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
        short_name = name.removeprefix("roberta.").removeprefix("model.")
        with pytest.raises(ValueError, match=rf"{part}: the checkpoint lacks 1 weights of .*{short_name}"):
            from_backbones({**backbones, part: broken}, "roberta" if part == "roberta" else "gpt2")

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("kernel_secnds", "'kernel_secnds' is no setting of CoLLAPConfig; did you mean kernel_seconds?"),
            ("hidden", "'hidden' is no setting of CoLLAPConfig; expected one of projection_dim, segment_seconds, "),
            ("text_config", "'text_config' is no setting of CoLLAPConfig"),
        ],
    )
    def test_misspelt_setting_is_refused_with_the_nearest(self, backbones, name, reason):
        with pytest.raises(ValueError, match=re.escape(reason)):
            from_backbones(backbones, "gpt2", projection_dim=16, **{name: 3})

    def test_missing_folder_is_an_error_that_names_it(self, backbones, tmp_path):
        with pytest.raises(OSError, match="no_such_folder"):
            from_backbones({**backbones, "gpt2": tmp_path / "no_such_folder"}, "gpt2")

    def test_decoder_may_be_missing_and_attention_bias_is_the_one_of_the_reference(self, backbones, tmp_path):
        encoder_only = tmp_path / "whisper"
        encoder_only.mkdir()
        (encoder_only / "config.json").write_bytes((backbones["whisper"] / "config.json").read_bytes())
        state = tensors(backbones["whisper"], "model.")
        state = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
        save_file(state, encoder_only / "model.safetensors", metadata={"format": "pt"})
        model = from_backbones({**backbones, "whisper": encoder_only}, "gpt2")
        assert torch.equal(model.audio_tower.speech.conv2.bias, state["encoder.conv2.bias"])
        assert type(model.audio_tower.music) is BeatsModel
        reference = load_file(REFERENCE / "beats_tiny.safetensors")
        with torch.no_grad():
            output = model.audio_tower.music(reference["fbank"][:1]).last_hidden_state
        torch.testing.assert_close(output, reference["output_unpadded_first"], atol=1e-4, rtol=0)


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"score_reduction": "max"}, "score_reduction must be one of mean, printed, found 'max'"),
            ({"loss_direction": "text_to_audio"}, "loss_direction must be one of symmetric, audio_to_text, found"),
            ({"text_pooling": "max"}, "text_pooling must be one of first, last, mean, found 'max'"),
            ({"projection_dim": 0}, "projection_dim must be positive, found 0"),
            ({"kernel_seconds": 0}, "kernel_seconds must be positive, found 0"),
            ({"stride_seconds": -1.0}, "stride_seconds must be positive, found -1.0"),
            ({"attention_temperature": math.nan}, "attention_temperature must be positive, found nan"),
            ({"gamma_init_sum": 0.0}, "gamma_init_sum must be positive, found 0.0"),
            ({"structure_heads": 0}, "structure_heads must be positive, found 0"),
            ({"gamma_max": 7.0}, r"gamma_max \(7.0\) is below the initial value 7.14"),
            ({"structure_layers": -1}, "structure_layers must not be negative, found -1"),
            (
                {"structure_layers": 1, "structure_heads": 5},
                r"must be a multiple of twice structure_heads \(5\)",
            ),
            ({"text_config": T5Config()}, r"encoder-decoder \(t5\); expected an encoder or a decoder"),
            ({"segment_seconds": 0}, "multiple of 0.02 up to the 4 s .* found 0"),
            ({"segment_seconds": 4.02}, "multiple of 0.02 up to the 4 s .* found 4.02"),
            ({"segment_seconds": 1.01}, "multiple of 0.02 up to the 4 s .* found 1.01"),
            ({"segment_seconds": 0.16}, "a segment of 0.16 s holds no whole time patch of 16 frames"),
            (
                {"music_config": {"patch_size": 15, "num_mel_bins": 120}},
                "no whole time patch of 15 frames .*patch_size must be even",
            ),
        ],
    )
    def test_values_out_of_range_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            tiny_config(**settings)

    def test_every_multiple_of_20_ms_is_a_segment_length(self):
        for tokens in range(9, 201):
            config = tiny_config(segment_seconds=tokens / 50)
            assert config.tokens_per_segment == (2 * tokens - 2) // 16

    @pytest.mark.parametrize("text", TEXT_TOWERS)
    def test_round_trip_keeps_every_setting(self, text, tmp_path):
        other = {
            "projection_dim": 48,
            "segment_seconds": 1.5,
            "kernel_seconds": 0.7,
            "stride_seconds": 0.3,
            "score_reduction": "printed",
            "attention_temperature": 0.25,
            "learn_attention_temperature": True,
            "gamma_init_sum": 9.0,
            "gamma_max": 50.0,
            "loss_direction": "audio_to_text",
            "text_pooling": "mean",
            "structure_layers": 2,
            "structure_heads": 4,
            "initializer_range": 0.05,
        }
        config = tiny_config(text, **other)
        config.save_pretrained(tmp_path)
        for loaded in (CoLLAPConfig.from_dict(config.to_dict()), CoLLAPConfig.from_pretrained(tmp_path)):
            assert {name: getattr(loaded, name) for name in other} == other
            assert loaded.to_dict() == config.to_dict()
            assert loaded.text_config.model_type == text
            assert (loaded.music_config.model_type, loaded.speech_config.model_type) == ("beats", "whisper")
            assert loaded.music_config.num_buckets == 32
        default = tiny_config(text)
        assert not [name for name, value in other.items() if getattr(default, name) == value]

    def test_defaults_are_those_of_the_paper(self):
        config = CoLLAPConfig()
        assert (config.text_config.model_type, config.text_pooling) == ("gpt2", "last")
        assert (config.projection_dim, config.tokens_per_segment, config.structure_layers) == (512, 187, 0)
        assert config.music_config.frequency_patches == config.speech_tokens_per_patch == 8


def test_same_seed_same_model_and_no_global_randomness():
    first, second = tiny_model(seed=3).state_dict(), tiny_model(seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    model, inputs = tiny_model(), audio_inputs(songs(3.0))
    state = torch.random.get_rng_state(), random.getstate()
    with torch.no_grad():
        model.get_audio_features(**inputs)
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert random.getstate() == state[1]
