"""On a CUDA device: the same features, encodings, scores and gradients as on the CPU; and training.

Run with `pytest -m gpu`.
"""

import json
import subprocess

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from healthy import healthy_folder
from runs import REPOSITORY, command, settings
from steps import take_step
from test_modeling_beats import inputs, variant
from test_modeling_collap import lively_model, songs
from tiny import TEXTS, tiny_processor
from transformers import AutoModel

from collap.data.batches import AudioTextCollator
from collap.data.samples import AudioTextSample
from collap.hub.doctor import diagnose
from modeling_collap.modeling_beats import eager_attention, patch_mask_from_frame_mask, sdpa_attention
from processing import CoLLAPFeatureExtractor

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """Convolutions on a GPU have 10 bits of mantissa by default; here the arithmetic is to be the CPU's."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("segment_seconds", [2, 30])
def test_features_equal_those_of_the_cpu(segment_seconds):
    extractor = CoLLAPFeatureExtractor(segment_seconds=segment_seconds)
    waveforms = songs(2.7 * segment_seconds, 0.5, segment_seconds)
    expected = extractor(waveforms, sampling_rate=16000)
    found = extractor(waveforms, sampling_rate=16000, device=DEVICE)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.device.type == DEVICE
        if tensor.dtype == torch.bool:
            assert torch.equal(tensor.cpu(), expected[name]), name
            continue
        difference = (tensor.cpu() - expected[name]).abs()
        assert difference.max() < 1e-3 and difference.mean() < 1e-5, name


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float32, 1e-3) for name in ("gated", "not_gated", "no_relative_position", "pre_norm")),
        ("gated", torch.bfloat16, 3e-2),
    ],
)
def test_fused_attention_equals_the_readable_one_on_the_cpu(name, dtype, tolerance):
    features, frame_mask = inputs()
    eager = variant(name, "eager")
    fused = variant(name, "sdpa").to(DEVICE, dtype)
    with torch.no_grad():
        expected = eager(features, frame_mask).last_hidden_state
        found = fused(features.to(DEVICE), frame_mask.to(DEVICE)).last_hidden_state
    assert found.dtype == dtype
    real = patch_mask_from_frame_mask(frame_mask, expected.shape[1])
    error = found.float().cpu()[real] - expected[real]
    if dtype == torch.float32:
        assert error.abs().max() < tolerance
    else:  # 8 bits of mantissa: only the whole is close
        assert error.norm() < tolerance * expected[real].norm()


@pytest.mark.parametrize("text", ["gpt2", "roberta"])
def test_scores_and_moments_equal_those_of_the_cpu(text):
    batch = tiny_processor(text)(text=TEXTS, audio=songs(7.3, 1.2, 4.0), sampling_rate=16000)
    model = lively_model(text, structure_layers=1)
    with torch.no_grad():
        expected = model(**batch)
        moments = model.localize(expected.text_embeds, expected.audio_embeds, expected.audio_token_mask)
        found = model.to(DEVICE)(**batch.to(DEVICE))
        found_moments = model.localize(found.text_embeds, found.audio_embeds, found.audio_token_mask)
    assert found.logits_per_audio.device.type == DEVICE
    assert expected.logits_per_audio.std() > 0.1  # far beyond the tolerance
    torch.testing.assert_close(found.logits_per_audio.cpu(), expected.logits_per_audio, atol=1e-3, rtol=0)
    torch.testing.assert_close(found_moments.scores.cpu(), moments.scores, atol=1e-3, rtol=0)


def attention_arguments(num_patches: int = 100) -> list[torch.Tensor]:
    """Query, key, value, gate and position bias of two segments and four heads; P is no multiple of 8."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 4, num_patches, 16, generator=generator) for _ in range(3)]
    gate = 1 + torch.rand(2, 4, num_patches, 1, generator=generator)
    return [*heads, gate, torch.randn(4, 2 * num_patches - 1, generator=generator)]


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_flow_through_fused_attention_and_the_gated_bias(padded):
    padding_bias = torch.zeros(2, 1, 1, 100)
    padding_bias[1, ..., 70:] = -torch.inf

    def gradients(attend, device: str) -> list[torch.Tensor]:
        leaves = [tensor.to(device).requires_grad_() for tensor in attention_arguments()]
        output, _ = attend(*leaves, padding_bias.to(device) if padded else None, 0.0)
        weights = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
        return [gradient.cpu() for gradient in torch.autograd.grad((output * weights).sum(), leaves)]

    for found, expected in zip(gradients(sdpa_attention, DEVICE), gradients(eager_attention, "cpu"), strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_training_step_reaches_every_parameter():
    batch = tiny_processor("gpt2")(text=TEXTS, audio=songs(3.0, 1.0), sampling_rate=16000)
    gradients = []
    for device in ("cpu", DEVICE):
        model = lively_model(learn_attention_temperature=True).to(device)
        model(**batch.to(device), return_loss=True).loss.backward()
        gradients.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.requires_grad})
    expected, found = gradients
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-2 * max(gradient.norm().item(), 1e-3), name


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_micro_batches_have_the_gradients_of_the_whole_batch(precision):
    """With features from waveforms on the device, and the loss scale of float16."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    accelerator, processor = Accelerator(mixed_precision=precision), tiny_processor()
    samples = [
        AudioTextSample(text, {"waveform": torch.as_tensor(song)}, "song", 1.0, [])
        for text, song in zip(["slow", "piano", "drums"], songs(6.1, 1.3, 3.0), strict=True)
    ]
    batch, found = AudioTextCollator(processor)(samples), []
    for micro_batch_size in (None, 2):
        model = accelerator.prepare(lively_model(structure_layers=1))
        step = take_step(accelerator, model, batch, processor.feature_extractor, micro_batch_size)
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((step.loss.item(), gradients / (accelerator.scaler.get_scale() if accelerator.scaler else 1)))
    tolerance = 1e-4 if precision == "no" else 3e-2
    assert found[0][0] == pytest.approx(found[1][0], rel=tolerance)
    assert (found[0][1] - found[1][1]).norm() < tolerance * found[0][1].norm()


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_trains_and_resumes(corpus, backbones, tmp_path, precision):
    config = settings(corpus, backbones, micro_batch_size=2, mixed_precision=precision, resume="latest", epochs=1)
    line = command(tmp_path, config)
    for _ in range(2):
        done = subprocess.run(line, capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "2 of 2 steps" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["peak_memory_gb"] > 0 and summary["skipped_steps"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_doctor_finds_a_healthy_model_healthy(tmp_path, monkeypatch, dtype):
    """Golden vectors of the CPU, with convolutions in a GPU's usual arithmetic."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    diagnosis = diagnose(healthy_folder(tmp_path / "model"), device=DEVICE, dtype=dtype)
    assert diagnosis.healthy, str(diagnosis)
    (execution,) = [check for check in diagnosis.checks if check.name == "execution"]
    assert execution.status == "ok" and DEVICE in execution.detail and dtype in execution.detail


def test_parts_on_several_devices_give_the_same_scores(model_folder):
    inputs = tiny_processor()(text=TEXTS, audio=songs(5.0, 0.5), sampling_rate=16000)
    parts = {"text_tower.encoder": "cpu", "audio_tower.music": DEVICE, "audio_tower.speech": "cpu", "structure": DEVICE}
    parts |= {"text_tower.projection": "cpu", "audio_tower.adapter": DEVICE, "score_parameters": DEVICE}
    model = AutoModel.from_pretrained(model_folder, device_map=parts).eval()
    with torch.no_grad():
        expected = AutoModel.from_pretrained(model_folder).eval()(**inputs).logits_per_audio
        found = model(**inputs).logits_per_audio
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
