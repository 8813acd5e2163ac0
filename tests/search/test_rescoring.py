"""The exact score from 8-bit tokens: the model's own number, whatever the alignment and the lengths."""

import pytest
import torch
from tiny import tiny_model, tiny_processor
from torch.nn import functional as F

from collap.evaluation.load_embedders import load_embedder
from collap.search.quantize import dequantize_rows, quantize_rows
from collap.search.rescoring import like_lengths, score_tracks
from collap.search.score_function import ScoreFunction

FORMS = {
    "paper": {},
    "sharp": {"attention_temperature": 0.05},
    "printed": {"score_reduction": "printed"},
    "free": {"alignment": "free"},
    "monotone": {"alignment": "monotone"},
    "blank": {"alignment": "monotone", "path_blank": True},
}
LENGTHS = [1, 3, 6, 7, 40, 41, 200]  # tokens; a frame of the paper's score has 6


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def function_of(model) -> ScoreFunction:
    return ScoreFunction.of(model.config, model.score_parameters())


def some_texts(model) -> torch.Tensor:
    """Four texts of 1 to 9 sentences; of one vector each where the model has no alignment."""
    texts = unit(4, 9, model.config.projection_dim, seed=1)
    for text, count in enumerate((1, 9, 2, 4)):
        texts[text, count:] = 0.0
    return texts


@pytest.mark.parametrize("form", FORMS)
def test_the_score_is_the_models_own(form):
    model = tiny_model(**FORMS[form])
    function, texts = function_of(model), some_texts(model)
    tracks = [quantize_rows(unit(length, 32, seed=length)) for length in LENGTHS]
    scores = score_tracks(function, texts, tracks)
    for one, (codes, scales) in zip(scores, tracks, strict=True):
        tokens = dequantize_rows(codes, scales).unsqueeze(0)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        torch.testing.assert_close(one, model.score(texts, tokens, mask)[0].detach(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_eight_bits_change_a_score_by_less_than_a_thousandth_of_its_range(form):
    model = tiny_model(**FORMS[form])
    function, texts = function_of(model), some_texts(model)
    for length in LENGTHS:
        tokens = unit(length, 32, seed=length)
        exact = model.score(texts, tokens.unsqueeze(0), torch.ones(1, length, dtype=torch.bool))[0].detach()
        rounded = score_tracks(function, texts, [quantize_rows(tokens)])[0]
        reach = sum(value for value in (function.gamma_kernel, function.gamma_temporal) if value)
        reach += (function.gamma_sentences or 0.0) + (function.gamma_path or 0.0)
        if form == "printed":
            reach *= max(length / function.kernel_size, function.kernel_size)
        assert (rounded - exact).abs().max() < 2e-3 * reach


@pytest.mark.parametrize("form", ["paper", "blank"])
def test_a_score_does_not_depend_on_the_tracks_and_texts_beside_it(form, monkeypatch):
    model = tiny_model(**FORMS[form])
    function, texts = function_of(model), some_texts(model)
    tracks = [quantize_rows(unit(length, 32, seed=length)) for length in LENGTHS]
    together = score_tracks(function, texts, tracks)
    monkeypatch.setattr("collap.search.rescoring.CELLS_AT_A_TIME", 300)
    torch.testing.assert_close(score_tracks(function, texts, tracks), together, rtol=1e-5, atol=2e-5)
    alone = score_tracks(function, texts[2:3, :2], tracks[4:5])
    torch.testing.assert_close(alone, together[4:5, 2:3], rtol=1e-5, atol=2e-5)


def test_groups_hold_every_track_once_and_no_more_cells_than_asked_for():
    lengths = [5, 900, 7, 7, 1, 40, 39, 2000]
    groups = list(like_lengths(lengths, 1000))
    assert sorted(place for group in groups for place in group) == list(range(8))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[place] for place in group) <= 1000
    assert len(groups) == 3


@pytest.mark.parametrize("form", ["sharp", "blank"])
def test_the_numbers_of_a_score_are_read_from_files_alone(form, tmp_path):
    model = tiny_model(**FORMS[form])
    model.save_pretrained(tmp_path)
    tiny_processor("gpt2").save_pretrained(tmp_path)
    function = ScoreFunction.read(str(tmp_path))
    assert function == function_of(model)
    assert ScoreFunction.from_dict(function.to_dict()) == function
    embedder, strided = load_embedder(str(tmp_path)), ScoreFunction.read(str(tmp_path), stride=3)
    assert torch.equal(function.token_starts(100), embedder.token_starts(100))
    torch.testing.assert_close(strided.token_starts(100), embedder.token_starts(100, 3))


def test_numbers_of_another_version_are_refused():
    with pytest.raises(ValueError, match="not that of this version"):
        ScoreFunction.from_dict({"kernel_size": 3})
