"""Where in a track a query is heard: spans, curves, and sentences in their order."""

import itertools

import pytest
import torch
from tiny import tiny_model

from collap.search.moments import best_spans, curves_over_time, mean_span, ordered_spans, sentence_spans
from collap.search.quantize import dequantize_rows, quantize_rows, quantized_cosines
from collap.search.score_function import ScoreFunction
from modeling_collap.localization_collap import curve_spans


def frames(count: int, seconds: float = 1.0, every: float = 1.0) -> torch.Tensor:
    starts = torch.arange(count) * every
    return torch.stack([starts, starts + seconds], dim=1)


def test_frames_that_score_high_are_joined():
    curve = torch.tensor([0.0, 0.9, 1.0, 0.1, 0.2, 0.85, 0.0, 0.95, 0.9])
    spans = best_spans(curve, frames(9))
    assert [(span.start, span.end) for span in spans] == [(1, 3), (7, 9), (5, 6)]  # the highest first
    assert [span.score for span in spans] == pytest.approx([0.95, 0.925, 0.85])
    assert best_spans(curve, frames(9), most=1) == spans[:1]


def test_runs_of_frames_that_overlap_are_one_span():
    curve = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 0.0, 0.9])
    spans = best_spans(curve, frames(7, seconds=12.0, every=5.0))
    assert [(span.start, span.end) for span in spans] == [(5, 27), (30, 42)]
    assert [(span.start, span.end) for span in best_spans(curve, frames(7, 5.0, 5.0))][:2] == [(5, 10), (15, 20)]


def test_the_first_span_is_that_of_the_models_localisation():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, 60):
        curves = torch.rand(20, count, generator=generator).cumsum(1) % 1
        for curve, (start, end) in zip(curves, curve_spans(curves, frames(count)).tolist(), strict=True):
            spans = best_spans(curve, frames(count), most=100)
            assert (spans[0].start, spans[0].end) == (start, end)
            ordered = sorted(spans, key=lambda span: span.start)
            assert all(one.end <= after.start for one, after in itertools.pairwise(ordered))


def test_a_track_that_is_the_same_everywhere_is_one_span():
    (span,) = best_spans(torch.full((5,), 0.3), frames(5))
    assert (span.start, span.end, span.score) == (0, 5, pytest.approx(0.3))


@pytest.fixture(scope="module", params=["paper", "monotone"])
def heard(request):
    """A model's score, and a track of three parts of 8 s, each of them what one of three sentences says."""
    overrides = {"alignment": request.param, "path_blank": request.param != "paper", "stride_seconds": 0.5}
    model = tiny_model(**overrides)
    function = ScoreFunction.of(model.config, model.score_parameters())
    sentences = torch.eye(32)[:3]
    noise = 0.2 * torch.randn(144, 32, generator=torch.Generator().manual_seed(0))  # 12 tokens in 2 s
    tokens = torch.nn.functional.normalize(sentences.repeat_interleave(48, dim=0) + noise, dim=-1)
    return model, function, sentences, quantize_rows(tokens)


def test_each_sentence_is_heard_in_its_own_part(heard):
    _, function, sentences, (codes, scales) = heard
    cosines = quantized_cosines(sentences, codes, scales).T  # (T, 3)
    curves, times = curves_over_time(function, cosines, 23.9)
    assert times[0, 0] == 0 and times[-1, 1] == 23.9 and curves.shape == (3, len(times))
    for number, curve in enumerate(curves):
        span = best_spans(curve, times, most=1)[0]
        assert abs(span.start - 8 * number) < 2 and abs(span.end - min(8 * number + 8, 23.9)) < 2
        assert span.score > 0.5


def test_a_sentence_that_fits_nowhere_is_said_not_to_be_heard(heard):
    _, function, sentences, (codes, scales) = heard
    rows = torch.cat([sentences[:2], torch.eye(32)[9:10], sentences[2:]])  # (4, 32): the third is in no part
    cosines = quantized_cosines(rows, codes, scales).T  # (T, 4)
    curves, times = curves_over_time(function, cosines, 24.0)
    found = sentence_spans(function, "abcd", cosines, curves, times)
    assert "".join(one.text for one in found) == "abcd"
    assert [one.heard for one in found] == [True, True, function.blank is None, True]  # no blank: nothing to fall below
    for number, one in zip((0, 1, 2), (found[0], found[1], found[3]), strict=True):
        assert abs(one.start - 8 * number) < 2 and abs(one.end - 8 * number - 8) < 2


def test_curves_are_those_of_the_model(heard):
    model, function, sentences, (codes, scales) = heard
    tokens = dequantize_rows(codes, scales).unsqueeze(0)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    curves, times = curves_over_time(function, quantized_cosines(sentences, codes, scales).T, 24.0)
    if function.has_sentences:
        found = model.localize(sentences.unsqueeze(0), tokens, mask)
        expected = found.curves[0, 0]
        path = ordered_spans(function, quantized_cosines(sentences, codes, scales).T)
        torch.testing.assert_close(torch.tensor(path), found.path[0, 0])
        assert [start for start, _ in path] == sorted(start for start, _ in path)
        first = mean_span(curves[0], path[0], times)
        assert first.score > 0.5 and [first.start, first.end] == path[0]
    else:
        expected = model.localize(sentences, tokens, mask).scores[0]
    torch.testing.assert_close(curves, expected.detach(), rtol=1e-4, atol=1e-4)
