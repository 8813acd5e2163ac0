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
    attention_pooled_cosines,
    cells_of_pair,
    distance_from_flat_attention,
    frame_means,
    moment_scores,
    num_frames,
    position_means,
    softmax_mean,
    stride_blocks,
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


def attended(cosines, temperature):
    """sum(softmax(m / tau) * m); what is subtracted from all logits changes nothing."""
    exponentials = [((m - max(cosines).detach()) / temperature).exp() for m in cosines]
    return sum(e * m for e, m in zip(exponentials, cosines, strict=True)) / sum(exponentials)


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
                kernel = kernel + attended(frame, attention_temperature)
            for position in zip(*frames, strict=True):
                temporal = temporal + attended(position, attention_temperature)
            over_kernel, over_temporal = len(frames), len(frames[0])
            if reduction == "printed":
                over_kernel, over_temporal = kernel_size, len(frames)
            row.append(gamma_kernel * kernel / over_kernel + gamma_temporal * temporal / over_temporal)
        rows.append(torch.stack([score.reshape(()) for score in row]))
    return torch.stack(rows)


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

    cosines, own = token_scores(text, audio), min(int(mask[0].sum()), sizes[0])
    for v in range(int(frames[0])):
        frame = cosines[0, v * sizes[1] :, 0][:own]
        torch.testing.assert_close(frame, reference[f"{name}.M_00"][v, :own].float(), atol=1e-5, rtol=0)
    blocks = stride_blocks(cosines, mask, *sizes, settings["attention_temperature"])
    within = frame_means(*blocks, sizes[0])[0, : frames[0], 0]  # (W,)
    over = position_means(*blocks, frames, sizes[0])[0, :own, 0]  # (H,)
    for attended, dim, attention in ((within, -1, "AK_00"), (over, -2, "AT_00")):
        weighted = (reference[f"{name}.{attention}"] * reference[f"{name}.M_00"]).sum(dim).float()
        torch.testing.assert_close(attended, weighted[: len(attended)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunk_size", [None, 2, 100])
@pytest.mark.parametrize(
    ("stride", "temperature"), [(1, 0.2), (2, 0.01), (2, 10.0), (3, 0.05), (3, 1.0), (4, 0.1), (7, 0.2)]
)
def test_values_and_gradients_equal_those_of_the_loops(reduction, chunk_size, stride, temperature):
    (text, audio, mask), settings = random_case()
    settings |= {"stride": stride, "attention_temperature": temperature}
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


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.05, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("stride", [1, 3, 4, 9])
def test_float32_is_as_exact_at_every_temperature(stride, temperature):
    """Cosines from -1 to 1, but in one frame of a song, and at one position of another's, all near -1: over the
    temperature they lie up to 2000 below the others. Frames of 8 tokens; the last song has 5."""
    generator = torch.Generator().manual_seed(0)
    cosines = 2 * torch.rand(5, 29, 3, generator=generator) - 1  # (A, T, B)
    cosines[0, 8:17], cosines[1, ::stride] = -1 + 1e-3 * cosines[0, 8:17], -0.9 + 1e-3 * cosines[1, ::stride]
    mask = torch.arange(29) < torch.tensor([[29], [28], [12], [8], [5]])
    settings = {"kernel_size": 8, "stride": stride, "gamma_kernel": 0.6, "gamma_temporal": 0.4}
    found = attention_pooled_cosines(cosines, mask, **settings, attention_temperature=temperature)
    tokens, texts = cosines.double(), torch.eye(3, dtype=torch.float64)  # whose cosines with the texts are these
    expected = naive_scores(texts, tokens, mask, **settings, attention_temperature=temperature)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=0)


def test_half_precision_is_summed_in_float32():
    (text, audio, mask), settings = random_case()
    for dtype in (torch.float16, torch.bfloat16):
        halves = text.to(dtype), audio.to(dtype).masked_fill(~mask.unsqueeze(-1), 0)
        found = attention_pooled_scores(*halves, mask, **settings)
        expected = attention_pooled_scores(*(half.double() for half in halves), mask, **settings)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=2 * torch.finfo(dtype).eps, rtol=0)


def test_cosines_alone_make_the_score_of_embeddings():
    (text, audio, mask), settings = random_case()
    found = attention_pooled_cosines(torch.einsum("atd,bd->atb", audio, text), mask, **settings)
    torch.testing.assert_close(found, attention_pooled_scores(text, audio, mask, **settings))
    for changes in ({"reduction": "max"}, {"stride": 0}):
        with pytest.raises(ValueError, match="reduction must be 'mean' or|stride must be at least 1"):
            attention_pooled_cosines(audio, mask, **{**settings, **changes})


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, torch.inf])
def test_softmax_mean_weighs_by_durations(temperature):
    scores = 2 * torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) - 1
    durations = torch.tensor([[2.0, 1.0, 0.0, 3.0]])  # of four segments; the third is none
    found = softmax_mean(scores, temperature, durations.unsqueeze(-1), dim=1)
    for a in range(3):
        for b in range(5):
            repeated = [scores[a, n, b].double() for n in (0, 0, 1, 3, 3, 3)]
            assert found[a, b].item() == pytest.approx(attended(repeated, temperature).item(), abs=1e-6)
    kept = softmax_mean(scores[:, [0, 1, 3]], temperature, dim=1)
    torch.testing.assert_close(softmax_mean(scores, temperature, durations.unsqueeze(-1) > 0, dim=1), kept)


def test_the_compiler_finds_one_graph():
    (text, audio, mask), settings = random_case()
    arguments = text.requires_grad_(), audio, mask
    temperature = torch.tensor([settings.pop("attention_temperature")], dtype=torch.float64, requires_grad=True)

    def score(temperature):
        return attention_pooled_scores(*arguments, **settings, attention_temperature=temperature)

    found, expected = torch.compile(score, backend="eager", fullgraph=True)(temperature), score(temperature)
    torch.testing.assert_close(found, expected)
    for pair in zip(*(torch.autograd.grad(one.sum(), (text, temperature)) for one in (found, expected)), strict=True):
        torch.testing.assert_close(*pair)


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
    scores, is_frame = moment_scores(torch.ones(1, 1), torch.ones(4, 9, 1), mask, 4, 2)  # frames start at 0, 2, 4
    assert is_frame.tolist() == [[True, True, True], [True, True, False], [True, False, False], [False] * 3]
    assert torch.equal(scores, is_frame.float().unsqueeze(1))


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
    """Songs x texts x tokens are bounded, not texts alone; values and gradients are those of all at once."""
    monkeypatch.setattr(scoring_collap, "CELLS_AT_A_TIME", 10_000)
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(60, 2, generator=generator).double(), dim=-1).requires_grad_()
    audio = F.normalize(torch.randn(2, tokens, 2, generator=generator).double(), dim=-1)
    arguments = (audio, torch.ones(2, tokens, dtype=torch.bool), 6, 3, 1.0, 2.0, 0.1)
    with LargestTensor() as seen, torch.no_grad():
        found = attention_pooled_scores(texts, *arguments)
        moments, _ = moment_scores(texts, *arguments[:4], arguments[-1])
    assert 2_000 < seen.elements <= max(10_000, moments.numel())
    with LargestTensor() as seen:
        attention_pooled_scores(texts, *arguments).sum().backward()
    assert 2_000 < seen.elements <= max(10_000, audio.numel())
    gradient, texts.grad = texts.grad, None
    monkeypatch.undo()
    expected = attention_pooled_scores(texts, *arguments)
    expected.sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, texts.grad)
    assert moments.shape == (2, 60, (tokens - 6) // 3 + 1)


@pytest.mark.parametrize(("tile_cells", "parts"), [(100, "texts"), (1_000, "songs"), (10**6, "neither")])
def test_parts_of_songs_and_texts_make_the_same_scores(tile_cells, parts, monkeypatch):
    (text, audio, mask), settings = random_case(lengths=(11, 3, 7, 9, 0, 5), texts=5)
    expected = torch.cat(
        [attention_pooled_scores(text, a[None], m[None], **settings) for a, m in zip(audio, mask, strict=True)]
    )
    monkeypatch.setattr(scoring_collap, "TILE_CELLS", tile_cells)
    sizes = []

    def counted(cosines, *arguments):
        sizes.append(cosines.shape)
        return attention_pooled_cosines(cosines, *arguments)

    monkeypatch.setattr(scoring_collap, "attention_pooled_cosines", counted)
    torch.testing.assert_close(attention_pooled_scores(text, audio, mask, **settings), expected, equal_nan=True)
    assert {"texts": sizes[0][2] < 5, "songs": sizes[0][2] == 5 and sizes[0][0] < 6, "neither": len(sizes) == 1}[parts]


def test_a_song_of_five_minutes_makes_little_more_numbers_than_tokens():
    assert 1870 <= cells_of_pair(1870, 62, 31) < 1.25 * 1870
