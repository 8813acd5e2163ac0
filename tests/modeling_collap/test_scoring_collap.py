"""The score against reference values, and against Eqs. 1-7 written as loops in this file."""

import doctest

import pytest
import torch
from safetensors.torch import load_file
from tiny import REFERENCE
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_collap import attention_pooled_scores, mean_pooled_scores, scoring_collap
from modeling_collap.scoring_collap import (
    TILE_CELLS,
    cells_of_pair,
    distance_from_flat_attention,
    in_tiles,
    moment_scores,
    num_frames,
    softmax_mean,
    token_scores,
)

CASES = ("one_frame", "overlap", "sharp", "tiled")
REDUCTIONS = ("mean", "printed")


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / "score_cases.safetensors")


def load_case(reference: dict, name: str, dtype: torch.dtype = torch.float32) -> tuple[tuple, dict]:
    """Positional and keyword arguments of [`attention_pooled_scores`]."""
    embeds = [reference[f"{name}.{key}"].to(dtype) for key in ("text_embeds", "audio_embeds")]
    kernel, stride, inverse_temperature, gamma_kernel, gamma_temporal = reference[f"{name}.params"].tolist()
    return (*embeds, reference[f"{name}.audio_mask"].bool()), {
        "kernel_size": int(kernel),
        "stride": int(stride),
        "gamma_kernel": gamma_kernel,
        "gamma_temporal": gamma_temporal,
        "attention_temperature": 1 / inverse_temperature,
    }


def random_case(lengths=(11, 3, 7), texts=5, width=4) -> tuple[tuple, dict]:
    """Three songs in float64, one of them shorter than a frame; junk in the padding."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), max(lengths), width)
    text = F.normalize(torch.randn(texts, width, generator=generator, dtype=torch.float64), dim=-1)
    audio = F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    audio = audio.masked_fill(~mask.unsqueeze(-1), -55.5)
    sizes = {"kernel_size": 4, "stride": 2, "gamma_kernel": 1.3, "gamma_temporal": 0.7, "attention_temperature": 0.2}
    return (text, audio, mask), sizes


def naive_scores(
    text, audio, mask, kernel_size, stride, gamma_kernel, gamma_temporal, attention_temperature=1.0, reduction="mean"
):
    """Eqs. 1-7, one audio, one text, one sum at a time."""
    rows = []
    for a in range(len(audio)):
        tokens = audio[a][mask[a]]
        starts = list(range(0, len(tokens) - kernel_size + 1, stride)) or [0]
        row = []
        for b in range(len(text)):
            frames = [[token @ text[b] for token in tokens[start : start + kernel_size]] for start in starts]
            kernel = temporal = 0.0
            for frame in frames:
                exponents = [(m / attention_temperature).exp() for m in frame]
                kernel = kernel + sum(e * m for e, m in zip(exponents, frame, strict=True)) / sum(exponents)
            for position in zip(*frames, strict=True):
                exponents = [(m / attention_temperature).exp() for m in position]
                temporal = temporal + sum(e * m for e, m in zip(exponents, position, strict=True)) / sum(exponents)
            over_kernel, over_temporal = len(frames), len(frames[0])
            if reduction == "printed":
                over_kernel, over_temporal = kernel_size, len(frames)
            row.append(gamma_kernel * kernel / over_kernel + gamma_temporal * temporal / over_temporal)
        rows.append(torch.stack([score.reshape(()) for score in row]))
    return torch.stack(rows)


def unfold_frames(tokens, kernel_size, stride):
    """(..., T) -> (..., W, H): the frames of the longest audio."""
    return F.pad(tokens, (0, max(kernel_size - tokens.shape[-1], 0))).unfold(-1, kernel_size, stride)


def frame_token_mask(mask, kernel_size, stride):
    """Mark the tokens of an audio's own frames: (A, T) -> (A, W, H)."""
    tokens = unfold_frames(mask, kernel_size, stride)
    is_frame = torch.arange(tokens.shape[1]) < num_frames(mask.sum(-1), kernel_size, stride)[:, None]
    return tokens & is_frame[:, :, None]


def attended_scores(cosines, mask, temperature, dim):
    """Eqs. 3-4 along one axis of (A, B, W, H), with a softmax of torch."""
    weights = (cosines / temperature).masked_fill(~mask, torch.finfo(cosines.dtype).min).softmax(dim)
    return (weights * cosines.masked_fill(~mask, 0.0)).sum(dim)


def unfolded_scores(text, audio, mask, kernel_size, stride, gamma_kernel, gamma_temporal, temperature, reduction):
    """Eqs. 1-7 over all tokens of all frames: (A, B); (A, B, W) of every frame."""
    frame_mask = frame_token_mask(mask, kernel_size, stride).unsqueeze(1)  # (A, 1, W, H)
    cosines = unfold_frames(torch.einsum("bd,atd->abt", text, audio), kernel_size, stride)  # (A, B, W, H)
    kernel, temporal = (attended_scores(cosines, frame_mask, temperature, dim) for dim in (-1, -2))
    frames, positions = frame_mask.any(-1).sum(-1), frame_mask.any(-2).sum(-1)  # (A, 1)
    over_kernel, over_temporal = (frames, positions) if reduction == "mean" else (kernel_size, frames)
    scores = gamma_kernel * kernel.sum(-1) / over_kernel + gamma_temporal * temporal.sum(-1) / over_temporal
    return scores, kernel


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", CASES)
class TestReference:
    def test_scores(self, reference, name, reduction):
        arguments, settings = load_case(reference, name)
        scores = attention_pooled_scores(*arguments, **settings, reduction=reduction)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, reference[f"{name}.scores_{reduction}"].float(), atol=1e-5, rtol=0)

    def test_each_of_the_two_terms(self, reference, name, reduction):
        arguments, settings = load_case(reference, name)
        for term, gammas in (("kernel", (1.0, 0.0)), ("temporal", (0.0, 1.0))):
            settings["gamma_kernel"], settings["gamma_temporal"] = gammas
            scores = attention_pooled_scores(*arguments, **settings, reduction=reduction)
            torch.testing.assert_close(scores, reference[f"{name}.r_{term}_{reduction}"].float(), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("junk", [0.0, -1e4, 3e38])
    def test_what_the_padding_holds_has_no_effect(self, reference, name, reduction, junk):
        (text, audio, mask), settings = load_case(reference, name)
        expected = attention_pooled_scores(text, audio, mask, **settings, reduction=reduction)
        audio = audio.masked_fill(~mask.unsqueeze(-1), 0.0) + junk * (~mask).unsqueeze(-1) / audio.shape[-1]
        scores = attention_pooled_scores(text, audio, mask, **settings, reduction=reduction)
        assert torch.equal(scores, expected)


@pytest.mark.parametrize("name", CASES)
def test_cosines_attention_and_frames_of_the_reference(reference, name):
    (text, audio, mask), settings = load_case(reference, name)
    sizes = settings["kernel_size"], settings["stride"]
    frames = num_frames(mask.sum(-1), *sizes)
    assert torch.equal(frames, reference[f"{name}.num_frames"])

    cosines = unfold_frames(token_scores(text, audio).transpose(1, 2), *sizes)  # (A, B, W, H)
    first = cosines[0, 0, : frames[0]]
    torch.testing.assert_close(first, reference[f"{name}.M_00"].float(), atol=1e-5, rtol=0)
    frame_mask = frame_token_mask(mask, *sizes)
    assert torch.equal(frame_mask.any(-1).sum(-1), frames)
    for dim, attention in ((-1, "AK_00"), (-2, "AT_00")):
        attended = attended_scores(cosines, frame_mask.unsqueeze(1), settings["attention_temperature"], dim)
        expected = (reference[f"{name}.{attention}"] * reference[f"{name}.M_00"]).sum(dim).float()
        torch.testing.assert_close(attended[0, 0, : len(expected)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("stride", [1, 2, 4, 7])
def test_values_and_gradients_equal_those_of_the_loops(reduction, chunk_size, stride):
    (text, audio, mask), settings = random_case()
    settings["stride"] = stride
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names = ("gamma_kernel", "gamma_temporal", "attention_temperature")
    results = []
    for function, extra in ((naive_scores, {}), (attention_pooled_scores, {"chunk_size": chunk_size})):
        learned = {name: torch.tensor([settings[name]], dtype=torch.float64, requires_grad=True) for name in names}
        inputs = [text.clone().requires_grad_(), audio.clone().requires_grad_()]
        scores = function(*inputs, mask, **{**settings, **learned}, reduction=reduction, **extra)
        gradients = torch.autograd.grad((scores * weights).sum(), [*inputs, *learned.values()])
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        results.append((scores, *gradients))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


GRIDS = ((1, 1), (4, 2), (4, 3), (5, 2), (3, 7), (6, 1), (12, 5), (40, 9))  # kernel and stride; songs of 1 to 30 tokens


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0, 10.0, torch.inf])
@pytest.mark.parametrize("kernel_size, stride", GRIDS)
def test_values_and_gradients_are_those_of_unfolded_frames_at_every_temperature(kernel_size, stride, temperature):
    (text, audio, mask), _ = random_case(lengths=(30, 1, 9, 4, 13), texts=3)
    audio = F.pad(audio, (0, 0, 0, 5), value=7.0)  # more padding than any song needs
    mask = F.pad(mask, (0, 5))
    learned = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (1.3, 0.7, temperature)]
    inputs = [text.requires_grad_(), audio.requires_grad_(), *learned[: 2 if temperature == torch.inf else 3]]
    weights = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for reduction in REDUCTIONS:
        expected, frames = unfolded_scores(text, audio, mask, kernel_size, stride, *learned, reduction)
        found = attention_pooled_scores(text, audio, mask, kernel_size, stride, *learned, reduction)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
        gradients = (torch.autograd.grad((one * weights).sum(), inputs) for one in (found, expected))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-8)
        single = (text.float(), audio.float(), mask, kernel_size, stride, 1.3, 0.7, temperature, reduction)
        torch.testing.assert_close(attention_pooled_scores(*single).double(), expected, atol=3e-6, rtol=3e-6)
    moments, is_frame = moment_scores(text, audio, mask, kernel_size, stride, temperature)
    assert torch.equal(is_frame, frame_token_mask(mask, kernel_size, stride).any(-1))
    torch.testing.assert_close(moments, frames, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_no_more_than_its_cosines(dtype):
    (text, audio, mask), settings = random_case(width=64)
    expected = attention_pooled_scores(text, audio, mask, **settings)
    found = attention_pooled_scores(text.to(dtype), audio.to(dtype), mask, **settings)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=2 * torch.finfo(dtype).eps, rtol=0)


def test_softmax_mean_weighs_by_durations():
    """A value that lasts twice as long counts as two; one that lasts 0 does not count."""
    scores = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    found = softmax_mean(scores, 0.1, torch.tensor([2, 1, 0]))
    assert found.item() == pytest.approx(softmax_mean(scores[[0, 0, 1]], 0.1).item())


def test_chunks_bound_what_the_backward_pass_keeps():
    (text, audio, mask), settings = random_case(texts=8)
    kept = []
    for chunk_size in (None, 2):
        elements = 0

        def count(tensor):
            nonlocal elements
            elements += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            attention_pooled_scores(text.clone().requires_grad_(), audio, mask, **settings, chunk_size=chunk_size)
        kept.append(elements)
    assert kept[1] < kept[0] / 4


def test_song_shorter_than_a_frame_is_one_frame_of_its_own_tokens():
    text = torch.tensor([[1.0, 0.0]])
    audio = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    one, e = torch.ones(1), torch.e
    settings = {"kernel_size": 4, "stride": 2}
    # Kernel-wise: softmax of (1, 0) on (1, 0). Temporal: two positions of one frame each, cosines 1 and 0.
    kernel = attention_pooled_scores(text, audio, mask, gamma_kernel=one, gamma_temporal=0 * one, **settings)
    temporal = attention_pooled_scores(text, audio, mask, gamma_kernel=0 * one, gamma_temporal=one, **settings)
    assert kernel.item() == pytest.approx(e / (e + 1))
    assert temporal.item() == pytest.approx(0.5)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_order_and_padding_of_songs_and_texts_do_not_matter(reduction):
    (text, audio, mask), settings = random_case()
    settings["reduction"] = reduction
    expected = attention_pooled_scores(text, audio, mask, **settings)
    songs, texts = torch.tensor([2, 0, 1]), torch.tensor([4, 1, 0, 3, 2])
    shuffled = attention_pooled_scores(text[texts], audio[songs], mask[songs], **settings)
    torch.testing.assert_close(shuffled, expected[songs][:, texts])
    longer = attention_pooled_scores(text, F.pad(audio, (0, 0, 0, 9), value=4.0), F.pad(mask, (0, 9)), **settings)
    torch.testing.assert_close(longer, expected)
    for a, length in enumerate(mask.sum(-1).tolist()):
        alone = attention_pooled_scores(text, audio[a : a + 1, :length], mask[a : a + 1, :length], **settings)
        torch.testing.assert_close(alone[0], expected[a])


def test_mean_does_not_depend_on_the_length_of_a_constant_match_and_printed_does():
    text = torch.tensor([[1.0, 0.0]])
    audio = torch.tensor([0.8, 0.6]).expand(3, 60, 2)  # every moment of every song matches with 0.8
    mask = torch.arange(60) < torch.tensor([[8], [30], [60]])
    settings = {"kernel_size": 4, "stride": 2}
    frames = torch.tensor([[3.0], [14.0], [29.0]])
    for gammas, printed in (((1.0, 0.0), 0.8 * frames / 4), ((0.0, 1.0), 0.8 * 4 / frames)):
        settings["gamma_kernel"], settings["gamma_temporal"] = gammas
        torch.testing.assert_close(attention_pooled_scores(text, audio, mask, **settings), torch.full((3, 1), 0.8))
        scores = attention_pooled_scores(text, audio, mask, reduction="printed", **settings)
        torch.testing.assert_close(scores, printed)


def test_temperature_turns_the_mean_into_the_maximum():
    (text, audio, mask), settings = random_case(lengths=(8,), texts=1)
    settings |= {"kernel_size": 8, "gamma_kernel": 1.0, "gamma_temporal": 0.0}
    cosines = token_scores(text, audio)
    for temperature, expected in ((1e-4, cosines.max()), (1e6, cosines.mean()), (torch.inf, cosines.mean())):
        settings["attention_temperature"] = temperature
        assert attention_pooled_scores(text, audio, mask, **settings).item() == pytest.approx(expected.item(), abs=1e-5)


def test_number_of_frames():
    # H = 8, S = 3: frames start at 0, 3, 6, ... as long as 8 tokens are left; never less than one.
    tokens = torch.tensor([1, 7, 8, 10, 11, 13, 14, 40])
    assert num_frames(tokens, kernel_size=8, stride=3).tolist() == [1, 1, 1, 1, 2, 2, 3, 11]


def test_frames_beyond_the_last_token_belong_to_no_song():
    mask = torch.arange(9) < torch.tensor([[9], [6], [2], [0]])
    text, audio = torch.ones(1, 1), torch.ones(4, 9, 1)
    scores, is_frame = moment_scores(text, audio, mask, kernel_size=4, stride=2)  # starts 0, 2, 4
    assert is_frame.tolist() == [[True, True, True], [True, True, False], [True, False, False], [False, False, False]]
    assert torch.equal(scores[:, 0], is_frame.float())


def test_mean_pooled_scores_are_the_cosine_with_the_mean_token():
    (text, audio, mask), _ = random_case()
    scores = mean_pooled_scores(text, audio, mask)
    for a in range(3):
        mean = audio[a][mask[a]].mean(0)
        torch.testing.assert_close(scores[a], text @ (mean / mean.norm()))


def test_distance_from_flat_attention_is_the_spread_of_the_difference():
    flat = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    assert distance_from_flat_attention(flat, flat) == 0.0
    assert distance_from_flat_attention(flat + 4.0, flat) == 0.0  # a constant changes no ranking
    assert distance_from_flat_attention(1.5 * flat, flat).item() == pytest.approx(0.5)
    assert torch.isfinite(distance_from_flat_attention(flat, torch.ones(2, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduction": "max"}, "reduction must be 'mean' or 'printed', found 'max'"),
        ({"kernel_size": 0}, "kernel_size must be at least 1, found 0"),
        ({"stride": 0}, "stride must be at least 1, found 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, found 0"),
        ({"text_embeds": torch.ones(2, 5)}, r"found \(2, 5\), \(3, 11, 4\) and \(3, 11\)"),
        ({"text_embeds": torch.ones(4)}, r"found \(4,\), "),
        ({"audio_embeds": torch.ones(11, 4)}, r"found \(5, 4\), \(11, 4\) and "),
        ({"audio_token_mask": torch.ones(3, 10)}, r"found \(5, 4\), \(3, 11, 4\) and \(3, 10\)"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(changes, message):
    (text, audio, mask), settings = random_case()
    arguments = {"text_embeds": text, "audio_embeds": audio, "audio_token_mask": mask, **settings, **changes}
    with pytest.raises(ValueError, match=message):
        attention_pooled_scores(**arguments)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_song_without_tokens_has_no_score_and_does_not_touch_the_others(reduction):
    (texts, songs, mask), settings = random_case(lengths=(11, 3, 7))
    expected = attention_pooled_scores(texts, songs, mask, reduction=reduction, **settings)
    mask[1] = False
    found = attention_pooled_scores(texts, songs, mask, reduction=reduction, **settings)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


def test_the_formulas_in_the_docstring_hold():
    found = doctest.testmod(scoring_collap)
    assert found.attempted >= 10 and found.failed == 0


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not found._is_view():
            self.elements = max(self.elements, found.numel())
        return found


@pytest.mark.parametrize("tokens", [40, 400, 2000])
def test_the_memory_of_a_score_does_not_grow_with_the_song(tokens, monkeypatch):
    """Texts x frames x kernel are bounded, not texts alone; values and gradients are those of all at once."""
    monkeypatch.setattr(scoring_collap, "CELLS_AT_A_TIME", 10_000)
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(300, 2, generator=generator).double(), dim=-1).requires_grad_()
    audio = F.normalize(torch.randn(1, tokens, 2, generator=generator).double(), dim=-1)
    arguments = (audio, torch.ones(1, tokens, dtype=torch.bool), 6, 3, 1.0, 2.0, 0.1)
    with LargestTensor() as seen, torch.no_grad():
        found = attention_pooled_scores(texts, *arguments)
        moments, _ = moment_scores(texts, *arguments[:4], arguments[-1])
    assert 2_000 < seen.elements <= max(10_000, 300 * (tokens // 3))  # the result of `moment_scores`
    with LargestTensor() as seen:
        attention_pooled_scores(texts, *arguments).sum().backward()
    assert seen.elements <= 10_000
    gradient, texts.grad = texts.grad, None
    expected = attention_pooled_scores(texts, *arguments, chunk_size=300)
    expected.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, texts.grad)
    assert moments.shape == (1, 300, (tokens - 6) // 3 + 1)


def scored_shapes(num_texts: int, num_audios: int, cells: int, chunk_size: int | None = None) -> list[tuple[int, int]]:
    """(audios, texts) of every call that `in_tiles` makes; every pair is scored once and lands in its place."""
    texts, audios, shapes = torch.arange(num_texts), torch.arange(num_audios), []

    def score(texts, audios):
        shapes.append((len(audios), len(texts)))
        return audios[:, None] * num_texts + texts

    found = in_tiles(score, (texts,), (audios,), cells, chunk_size)
    assert torch.equal(found, torch.arange(num_audios * num_texts).view(num_audios, num_texts))
    return shapes


def test_tiles_hold_no_more_than_a_cache_and_no_less_than_a_pair():
    cells = cells_of_pair(1870, 62, 31)  # a song of five minutes; frames of 10 s every 5 s
    for texts, audios in ((256, 16), (1000, 4), (1, 280), (3, 2)):
        shapes = scored_shapes(texts, audios, cells)
        largest = max(some_texts * some_audios for some_audios, some_texts in shapes)
        assert largest * cells <= TILE_CELLS
        assert len(shapes) == 1 or 2 * largest * cells > TILE_CELLS
    assert scored_shapes(3, 2, 10**9) == [(1, 1)] * 6
    assert max(texts for _, texts in scored_shapes(10, 4, 1, chunk_size=3)) == 3
    four_hours = cells_of_pair(480 * 187, 62, 31)
    assert max(texts for _, texts in scored_shapes(50, 1, four_hours)) == TILE_CELLS // four_hours > 5


@pytest.mark.parametrize("cells", [1, 50, 200, 1000])
@pytest.mark.parametrize("constant", ["TILE_CELLS", "CELLS_AT_A_TIME"])
def test_tiles_of_any_size_change_no_value_and_no_gradient(constant, cells, monkeypatch):
    (text, audio, mask), settings = random_case()
    results = []
    for size in (2**24, cells):
        monkeypatch.setattr(scoring_collap, constant, size)
        inputs = [text.clone().requires_grad_(), audio.clone().requires_grad_()]
        scores = attention_pooled_scores(*inputs, mask, **settings)
        results.append((scores, *torch.autograd.grad((scores**2).sum(), inputs)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
