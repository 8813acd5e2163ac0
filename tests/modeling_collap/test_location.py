"""The loss on known section times, against plain sums, and what it does for a model and its users."""

import pytest
import torch
from tiny import tiny_config, tiny_model, tiny_processor

from modeling_collap.localization_collap import pair_location_losses
from modeling_collap.loss_collap import location_losses

NAN = float("nan")
SETTINGS = {"alignment": "free", "alignment_frame_seconds": 0.5, "location_weight": 2.0}
SPANS = torch.tensor(
    [
        [[NAN, NAN], [0.0, 2.4], [2.4, 4.0]],  # an overview, and two neighbours
        [[1.0, 3.0], [2.0, 9.0], [0.0, 0.01]],  # two that overlap, and one too short for a frame
        [[NAN, NAN], [NAN, NAN], [50.0, 60.0]],  # nothing known, and a span beyond the song
    ],
    dtype=torch.float64,
)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosines (B, Q, W), middles of frames and their mask (B, W)."""
    cosines = torch.rand(3, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    seconds = (torch.arange(6, dtype=torch.float64) + 0.5).expand(3, 6)
    return cosines.requires_grad_(), seconds, torch.arange(6) < torch.tensor([[4], [6], [5]])


def naive_loss(cosines, spans, seconds, frame_mask, temperature) -> torch.Tensor:
    """Of one pair: cosines (Q, W), spans (Q, 2), seconds and mask (W,)."""
    frames = [w for w in range(len(seconds)) if frame_mask[w]]
    places = {q: [w for w in frames if start <= seconds[w] < end] for q, (start, end) in enumerate(spans.tolist())}
    places = {q: found for q, found in places.items() if found}
    if not places:
        return cosines.sum() * 0
    weight = (cosines / temperature).exp()
    of_sentences = [-(weight[q, found].sum() / weight[q, frames].sum()).log() for q, found in places.items()]
    of_frames = []
    for w in sorted({w for found in places.values() for w in found}):
        own = sum(weight[q, w] for q, found in places.items() if w in found)
        of_frames.append(-(own / sum(weight[q, w] for q in places)).log())
    return (sum(of_sentences) / len(of_sentences) + sum(of_frames) / len(of_frames)) / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_value_and_gradient_are_those_of_plain_sums(temperature):
    cosines, seconds, frame_mask = batch()
    found = location_losses(cosines, SPANS, seconds, frame_mask, temperature)
    naive = torch.stack(
        [naive_loss(*pair, temperature) for pair in zip(cosines, SPANS, seconds, frame_mask, strict=True)]
    )
    torch.testing.assert_close(found, naive, rtol=1e-12, atol=1e-12)
    assert found[2] == 0 and (found[:2] > 0.1).all()
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * weights).sum(), cosines)
    (expected,) = torch.autograd.grad((naive * weights).sum(), cosines)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert not gradient[0, 0].any() and not gradient[1, 2].any() and gradient[0, 1].any()  # unplaced ones do not count


def test_a_sentence_at_its_place_costs_nothing():
    vectors, mask = torch.eye(32)[:3], torch.ones(1, 36, dtype=torch.bool)
    tokens = vectors.repeat_interleave(12, dim=0)[None]  # 12 tokens in a segment of 2 s, one segment for each
    spans = torch.tensor([[[0.0, 2.0], [2.0, 4.0], [4.0, 6.0]]])
    config = tiny_config(**{**SETTINGS, "alignment_frame_seconds": 0.32})
    there = pair_location_losses(config, vectors[None], tokens, mask, spans)
    elsewhere = pair_location_losses(config, vectors[None], tokens, mask, spans.flip(1))
    assert there.item() < 0.01 and elsewhere.item() > 5


def loss_of(model, texts: list, spans: torch.Tensor, songs: slice = slice(None)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    audio = [torch.randn(16000 * seconds, generator=generator) * 0.1 for seconds in (4, 9, 3)][songs]
    inputs = tiny_processor(**SETTINGS)(text=texts[songs], audio=audio, sampling_rate=16000)
    return model(**inputs, return_loss=True, sentence_spans=spans[songs].float()).loss


@torch.no_grad()
def test_the_model_adds_the_mean_over_all_pairs_whatever_they_are_padded_to():
    texts = [["slow", "piano", "drums"], ["a", "b", "c"], ["x", "y", "z"]]
    model, unknown = tiny_model(**SETTINGS), torch.full_like(SPANS, NAN)
    parts = []
    for song in range(3):  # the contrastive loss of one pair alone is 0
        parts.append(loss_of(model, texts, SPANS, slice(song, song + 1)))
    added = loss_of(model, texts, SPANS) - loss_of(model, texts, unknown)
    torch.testing.assert_close(added, torch.stack(parts).mean(), atol=1e-4, rtol=0)
    assert added > 0.1 and parts[2] == 0
    model.config.location_weight = 0.0
    assert loss_of(model, texts, SPANS) == loss_of(model, texts, unknown)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="location_weight is of the alignments 'free' and 'monotone', found"):
        tiny_config(location_weight=1.0)
    with pytest.raises(ValueError, match="location_weight must not be negative, found -1.0"):
        tiny_config(alignment="free", location_weight=-1.0)
    with pytest.raises(ValueError, match=r"expected sentence_spans \(B, Q, 2\) of the \(3, 3\) sentences.*\(3, 2, 2\)"):
        loss_of(tiny_model(**SETTINGS), [["a", "b", "c"]] * 3, SPANS[:, :2])
