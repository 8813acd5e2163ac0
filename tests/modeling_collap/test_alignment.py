"""The scores of sentences in time, against sums over enumerated paths."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from modeling_collap import alignment_collap
from modeling_collap.alignment_collap import (
    alignment_scores,
    best_path,
    frame_cosines,
    free_scores,
    log_path_count,
    monotone_scores,
    pool_frames,
    pool_sentences,
    sentence_mask,
)

BLANKS = pytest.mark.parametrize("blank", [None, 0.2], ids=["plain", "blanks"])


def enumerated_paths(sentences: int, frames: int, has_blanks: bool):
    """Yield every path as one sentence for each frame, None for a blank: all choices, less those against the rules."""
    states = [*range(sentences), *([None] if has_blanks else [])]
    for path in itertools.product(states, repeat=frames):
        named = [q for q in path if q is not None]
        if sorted(named) != named or set(named) != set(range(sentences)):
            continue
        returns = any(path[first : last + 1].count(None) for q in range(sentences) for first, last in [ends(path, q)])
        if not returns:
            yield path


def ends(path, q: int) -> tuple[int, int]:
    places = [w for w, state in enumerate(path) if state == q]
    return places[0], places[-1]


def naive_monotone_score(cosines: torch.Tensor, temperature: float, blank: torch.Tensor | None) -> torch.Tensor:
    """cosines (Q, W) of one audio and one text."""
    sentences, frames = cosines.shape
    if frames < sentences:
        cosines = cosines.repeat_interleave(math.ceil(sentences / frames), dim=1)
        frames = cosines.shape[1]
    sums = [
        sum(blank if q is None else cosines[q, w] for w, q in enumerate(path)) / temperature
        for path in enumerated_paths(sentences, frames, blank is not None)
    ]
    return temperature / frames * (torch.stack(sums).logsumexp(0) - math.log(len(sums)))


def random_batch(generator, sentences=(3, 1, 2), frames=(6, 2, 5), dtype=torch.float64):
    """Cosines (A, B, Q, W), is_sentence (B, Q), frame_mask (A, W) of audios and texts of unequal length."""
    shape = len(frames), len(sentences), max(sentences), max(frames)
    cosines = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    is_sentence = torch.arange(max(sentences)) < torch.tensor(sentences)[:, None]
    frame_mask = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
    return cosines, is_sentence, frame_mask


@BLANKS
@pytest.mark.parametrize("temperature", [0.05, 0.3, 3.0])
def test_monotone_score_sums_over_all_paths_and_padding_does_not_matter(blank, temperature):
    cosines, is_sentence, frame_mask = random_batch(torch.Generator().manual_seed(0))
    cosines.requires_grad_()
    level = None if blank is None else torch.tensor(blank, dtype=torch.float64, requires_grad=True)
    scores = monotone_scores(cosines, is_sentence, frame_mask, temperature, level)
    rows = []
    for a in range(3):
        for b in range(3):
            own = cosines[a, b, : int(is_sentence[b].sum()), : int(frame_mask[a].sum())]
            rows.append(naive_monotone_score(own, temperature, level))
    naive = torch.stack(rows).view(3, 3)
    torch.testing.assert_close(scores, naive, atol=1e-6, rtol=0)
    inputs = [cosines] if level is None else [cosines, level]
    weights = torch.linspace(-1, 2, 9, dtype=torch.float64).view(3, 3)
    found = torch.autograd.grad((scores * weights).sum(), inputs)
    expected = torch.autograd.grad((naive * weights).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)
    assert (found[0] != 0).any()


@BLANKS
def test_gradient_agrees_with_finite_differences(blank):
    cosines, is_sentence, frame_mask = random_batch(torch.Generator().manual_seed(1), (2, 3), (5, 4))
    level = None if blank is None else torch.tensor(blank, dtype=torch.float64, requires_grad=True)

    def score(values, level=None):
        return monotone_scores(values, is_sentence, frame_mask, 0.3, level)

    inputs = [cosines.requires_grad_()] + ([] if level is None else [level])
    assert torch.autograd.gradcheck(score, inputs)


@BLANKS
@pytest.mark.parametrize("sentences, frames", [(1, 1), (1, 5), (2, 2), (3, 6), (4, 4)])
def test_path_count_is_that_of_enumeration(sentences, frames, blank):
    states = 2 * sentences + 1 if blank else sentences
    count = log_path_count(torch.tensor([[frames]]), torch.tensor([states]), blank is not None)
    paths = list(enumerated_paths(sentences, frames, blank is not None))
    assert count.exp().item() == pytest.approx(len(paths), rel=1e-5)


def test_with_one_sentence_the_monotone_score_is_mean_pooling():
    generator = torch.Generator().manual_seed(2)
    text = F.normalize(torch.randn(4, 1, 8, generator=generator), dim=-1)
    audio = F.normalize(torch.randn(3, 12, 8, generator=generator), dim=-1)
    mask = torch.arange(12) < torch.tensor([12, 8, 4])[:, None]
    cosines, frame_mask = frame_cosines(text, audio, mask, frame_size=4)
    scores = monotone_scores(cosines, sentence_mask(text), frame_mask, 0.3)
    means = torch.stack([(audio[a][mask[a]] @ text[:, 0].T).mean(0) for a in range(3)])
    torch.testing.assert_close(scores, means, atol=1e-6, rtol=0)


def test_free_score_attends_sentence_by_sentence():
    generator = torch.Generator().manual_seed(3)
    cosines, is_sentence, frame_mask = random_batch(generator)
    scores = free_scores(cosines, is_sentence, frame_mask, 0.1)
    for a in range(3):
        for b in range(3):
            own = cosines[a, b, : int(is_sentence[b].sum()), : int(frame_mask[a].sum())]
            naive = sum((torch.softmax(row / 0.1, 0) * row).sum() for row in own) / len(own)
            torch.testing.assert_close(scores[a, b], naive)


@BLANKS
@pytest.mark.parametrize("cells, chunk_size", [(1, None), (50, None), (300, None), (2**22, None), (2**22, 2)])
def test_tiles_of_any_size_give_the_values_and_gradients_of_loops(blank, cells, chunk_size, monkeypatch):
    """The whole score from embeddings, each pair by itself; junk in the padding."""
    monkeypatch.setattr(alignment_collap, "TILE_CELLS", cells)
    generator, lengths, sentences = torch.Generator().manual_seed(6), (9, 3, 6), (3, 1, 2)
    text = F.normalize(torch.randn(3, 3, 4, generator=generator, dtype=torch.float64), dim=-1)
    text = text * (torch.arange(3) < torch.tensor(sentences)[:, None]).unsqueeze(-1)
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    audio = F.normalize(torch.randn(3, 11, 4, generator=generator, dtype=torch.float64), dim=-1)
    audio = audio.masked_fill(~mask.unsqueeze(-1), -55.5).requires_grad_()
    text.requires_grad_()
    level = None if blank is None else torch.tensor(blank, dtype=torch.float64, requires_grad=True)
    rows = []
    for a, b in itertools.product(range(3), range(3)):
        frames = torch.stack([part.mean(0) for part in audio[a, : lengths[a]].split(2)])  # (W, D)
        cosines = text[b, : sentences[b]] @ frames.T  # (Q, W)
        free = sum((torch.softmax(row / 0.1, 0) * row).sum() for row in cosines) / len(cosines)
        rows.append(2.0 * free + 3.0 * naive_monotone_score(cosines, 0.3, level))
    naive = torch.stack(rows).view(3, 3)
    scores = alignment_scores(text, audio, mask, 2, 2.0, 3.0, blank=level, chunk_size=chunk_size)
    torch.testing.assert_close(scores, naive, atol=2e-6, rtol=0)  # the number of paths is a float32
    inputs = [text, audio] if level is None else [text, audio, level]
    found, expected = (torch.autograd.grad((one**2).sum(), inputs) for one in (scores, naive))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gamma_path", [None, 1.0], ids=["free", "path"])
def test_half_precision_costs_no_more_than_its_cosines(dtype, gamma_path):
    generator = torch.Generator().manual_seed(7)
    text = F.normalize(torch.randn(3, 2, 64, generator=generator), dim=-1)
    audio = F.normalize(torch.randn(2, 20, 64, generator=generator), dim=-1)
    mask = torch.arange(20) < torch.tensor([[20], [7]])
    expected = alignment_scores(text, audio, mask, 3, 1.0, gamma_path)
    found = alignment_scores(text.to(dtype), audio.to(dtype), mask, 3, 1.0, gamma_path)
    torch.testing.assert_close(found.float(), expected, atol=2 * torch.finfo(dtype).eps, rtol=0)


def test_order_changes_the_monotone_score_and_not_the_free_one():
    text = torch.eye(3)[None]
    blocks = torch.eye(3).repeat_interleave(4, dim=0)
    audio = torch.stack([blocks, blocks.flip(0)])
    cosines, frame_mask = frame_cosines(text, audio, torch.ones(2, 12, dtype=torch.bool), frame_size=2)
    monotone = monotone_scores(cosines, sentence_mask(text), frame_mask, 0.3)[:, 0]
    free = free_scores(cosines, sentence_mask(text), frame_mask, 0.1)[:, 0]
    assert monotone[0] > monotone[1] + 0.3
    assert torch.allclose(free[0], free[1])


@pytest.mark.parametrize("lengths", [(14, 5), (12, 8), (13, 1), (2, 1)])
@pytest.mark.parametrize("frame_size", [1, 4, 20])
def test_pool_frames_means_the_real_tokens_of_every_frame(lengths, frame_size):
    tokens = max(lengths)
    audio = torch.randn(2, tokens, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    audio[~mask] = 99.0
    audio.requires_grad_()
    naive = torch.zeros(2, math.ceil(tokens / frame_size), 3, dtype=torch.float64)
    for a, length in enumerate(lengths):
        for w in range(math.ceil(length / frame_size)):
            naive[a, w] = audio[a, w * frame_size : min((w + 1) * frame_size, length)].mean(0)
    frames, frame_mask = pool_frames(audio, mask, frame_size)
    torch.testing.assert_close(frames, naive)
    assert frame_mask.sum(1).tolist() == [math.ceil(length / frame_size) for length in lengths]
    weights = torch.linspace(-1, 2, naive.numel(), dtype=torch.float64).view_as(naive)
    found, expected = (torch.autograd.grad((one * weights).sum(), audio)[0] for one in (frames, naive))
    torch.testing.assert_close(found, expected)
    assert not found[~mask].any() and found[mask].all()


@BLANKS
def test_best_path_is_the_best_of_all(blank):
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        cosines = torch.rand(3, 6, generator=generator) * 2 - 1

        def gain(path, cosines=cosines):
            return sum(blank if q in (None, -1) else cosines[q, w].item() for w, q in enumerate(path))

        best = max(map(gain, enumerated_paths(3, 6, blank is not None)))
        assert gain(best_path(cosines, blank).tolist()) == pytest.approx(best)


def test_sentences_are_told_from_padding_and_pooled():
    text = torch.zeros(2, 3, 4)
    text[0, :2] = torch.eye(4)[:2]
    text[1, 0] = torch.eye(4)[3]
    assert sentence_mask(text).tolist() == [[True, True, False], [True, False, False]]
    assert torch.allclose(pool_sentences(text)[0], torch.tensor([1.0, 1, 0, 0]) / math.sqrt(2))
    assert torch.equal(pool_sentences(text)[1], text[1, 0])
