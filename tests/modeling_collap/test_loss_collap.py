"""The contrastive loss, and its gathered negatives in two real processes against one process with the whole batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny import REFERENCE, tiny_model, tiny_processor
from torch.nn.parallel import DistributedDataParallel

from modeling_collap import contrastive_loss
from modeling_collap.loss_collap import gather_rows, other_orders, split_orders

DIRECTIONS = ("symmetric", "audio_to_text")
SECONDS = (3.1, 1.2, 6.9, 2.5)  # of the four songs: the two of each process are padded to another number of segments
TEXTS = ("a slow song", "piano and drums", "a choir sings over strings, then a loud guitar", "drums")


def cross_entropy(scores: torch.Tensor) -> torch.Tensor:
    """Of every row with its diagonal element, in plain sums."""
    return sum(-(row[i].exp() / row.exp().sum()).log() for i, row in enumerate(scores)) / len(scores)


def scores_of_three() -> torch.Tensor:
    """Not symmetric: the two directions differ."""
    return torch.tensor([[3.0, 1.0, -1.0], [0.5, 2.0, 1.5], [2.5, -2.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["one_frame", "overlap", "sharp", "tiled"])
def test_equals_the_reference(name):
    reference = load_file(REFERENCE / "score_cases.safetensors")
    scores, printed = reference[f"{name}.scores_mean"], reference[f"{name}.scores_printed"]
    audio_to_text, text_to_audio = (
        reference[f"{name}.loss_{direction}_mean"] for direction in ("audio_to_text", "text_to_audio")
    )
    assert contrastive_loss(scores, "audio_to_text").item() == pytest.approx(audio_to_text.item(), rel=1e-9)
    assert contrastive_loss(scores.T, "audio_to_text").item() == pytest.approx(text_to_audio.item(), rel=1e-9)
    both = (audio_to_text + text_to_audio).item() / 2
    assert contrastive_loss(scores).item() == pytest.approx(both, rel=1e-9)
    expected = reference[f"{name}.loss_audio_to_text_printed"].item()
    assert contrastive_loss(printed, "audio_to_text").item() == pytest.approx(expected, rel=1e-9)


def test_symmetric_is_the_mean_of_two_different_directions():
    scores = scores_of_three()
    audio_to_text, text_to_audio = cross_entropy(scores), cross_entropy(scores.T)
    assert abs(audio_to_text - text_to_audio) > 0.1
    torch.testing.assert_close(contrastive_loss(scores, "audio_to_text"), audio_to_text)
    torch.testing.assert_close(contrastive_loss(scores.T, "audio_to_text"), text_to_audio)
    torch.testing.assert_close(contrastive_loss(scores), (audio_to_text + text_to_audio) / 2)
    torch.testing.assert_close(contrastive_loss(scores.T), contrastive_loss(scores))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_pair_has_a_gradient_that_pulls_matches_and_pushes_negatives(direction):
    scores = scores_of_three().requires_grad_()
    contrastive_loss(scores, direction).backward()
    is_match = torch.eye(3, dtype=torch.bool)
    assert (scores.grad[is_match] < 0).all()
    assert (scores.grad[~is_match] > 0).all()


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (4,), (2, 2, 2)])
def test_different_numbers_of_audios_and_texts_are_refused(shape):
    with pytest.raises(ValueError, match=rf"as many texts as audios.*found {shape[0]} audios and {shape[-1]} texts"):
        contrastive_loss(torch.zeros(shape))


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="'symmetric' or 'audio_to_text', found 'text_to_audio'"):
        contrastive_loss(torch.zeros(2, 2), "text_to_audio")


def test_one_process_gathers_its_own_rows():
    rows = torch.randn(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows


def in_double_precision(patch: pytest.MonkeyPatch):
    """The model casts embeddings to float32 by `.float()`; here that means float64, so that 1e-6 can be asked for."""
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)


def loss_and_gradients(model, songs: slice, **settings) -> dict[str, torch.Tensor]:
    """Of the given songs and their texts, through the processor and `forward`."""
    generator = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(round(16000 * seconds), generator=generator) * 0.1 for seconds in SECONDS]
    processor = tiny_processor("gpt2")
    inputs = processor(text=list(TEXTS[songs]), audio=waveforms[songs], sampling_rate=16000)
    for name in ("music_features", "speech_features"):
        inputs[name] = inputs[name].double()
    model.zero_grad()
    output = model(**inputs, return_loss=True, **settings)
    output.loss.backward()
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": output.loss.detach()} | {name: grad.clone() for name, grad in gradients.items() if grad is not None}


def double_model(direction: str):
    return tiny_model("gpt2", structure_layers=1, loss_direction=direction, learn_attention_temperature=True).double()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_false_negatives_count_in_no_sum(direction):
    """Songs 0 and 2 are one: the loss and its gradient are those of plain sums without the pairs (0, 2) and (2, 0)."""
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])

    def without(scores: torch.Tensor) -> torch.Tensor:
        rows = [[1.0 if i == j or not same[i, j] else 0.0 for j in range(3)] for i in range(3)]
        kept = torch.tensor(rows, dtype=torch.float64)
        return sum(-(row[i].exp() / (row.exp() * kept[i]).sum()).log() for i, row in enumerate(scores)) / 3

    scores = scores_of_three().requires_grad_()
    found = contrastive_loss(scores, direction, same)
    (gradient,) = torch.autograd.grad(found, scores)
    naive = without(scores) if direction == "audio_to_text" else (without(scores) + without(scores.T)) / 2
    (expected,) = torch.autograd.grad(naive, scores)
    assert found.item() == pytest.approx(naive.item(), abs=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert gradient[0, 2] == 0 and gradient[2, 0] == 0 and gradient[0, 1] != 0
    assert found < contrastive_loss(scores, direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_further_negatives_are_of_the_softmax_over_texts_alone(direction):
    """Plain sums: text 2 has no other order, and that of text 2's song, 0, is none of a negative for audio 2."""
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    generator = torch.Generator().manual_seed(0)
    scores = scores_of_three().requires_grad_()
    further = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    further[:, 2] = -torch.inf
    further.requires_grad_()

    def of_texts() -> torch.Tensor:
        losses = []
        for i in range(3):
            others = [scores[i, j].exp() for j in range(3) if j == i or not same[i, j]]
            others += [further[i, j].exp() for j in range(2) if j == i or not same[i, j]]
            losses.append(-(scores[i, i].exp() / sum(others)).log())
        return sum(losses) / 3

    found = contrastive_loss(scores, direction, same, further)
    of_audios = 2 * contrastive_loss(scores, "symmetric", same) - contrastive_loss(scores, "audio_to_text", same)
    naive = of_texts() if direction == "audio_to_text" else (of_texts() + of_audios) / 2
    assert found.item() == pytest.approx(naive.item(), abs=1e-12)
    gradients = torch.autograd.grad(found, [scores, further])
    for gradient, expected in zip(gradients, torch.autograd.grad(naive, [scores, further]), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert gradients[1][0, 0] > 0 and gradients[1][2, 0] == 0 and not gradients[1][:, 2].any()


def test_other_orders_are_of_the_same_sentences():
    texts = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    texts[1:, 2] = 0.0
    orders = torch.tensor([[2, 0, 1], [1, 0, -1], [-1, -1, -1]])
    found = other_orders(texts, orders)
    assert torch.equal(found[0], texts[0][[2, 0, 1]]) and torch.equal(found[1], texts[1][[1, 0, 2]])
    assert torch.equal(found[2], texts[2])
    own, further = split_orders(torch.arange(12.0).view(2, 6), orders)
    assert own.tolist() == [[0, 1, 2], [6, 7, 8]] and further.tolist() == [[3, 4, -torch.inf], [9, 10, -torch.inf]]
    for texts_of_other_shape in (texts[:2], texts[:, :2], texts[:, 0]):
        with pytest.raises(ValueError, match=r"expected sentence_orders \(B, Q\) of sentences \(B, Q, D\), found"):
            other_orders(texts_of_other_shape, orders)


def work(rank: int, folder: str):
    """One of two processes: everything that the tests below compare is written to `folder`."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    result = {}
    with pytest.MonkeyPatch.context() as patch:
        in_double_precision(patch)
        for direction in DIRECTIONS:
            model = DistributedDataParallel(double_model(direction))
            for step in range(2):  # the second would fail if the first had left a parameter without gradient
                result[f"{direction}{step}"] = loss_and_gradients(
                    model, slice(2 * rank, 2 * rank + 2), gather_negatives=True
                )

    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64).add(10 * rank).requires_grad_()
    bias = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.arange(8.0, dtype=torch.float64).view(4, 2) + 100 * rank
    gathered = gather_rows(rows)
    # `weights` reaches both terms of the sum as one and the same gradient.
    (gathered + bias).backward(weights)
    result["gather"] = {"gathered": gathered.detach(), "rows": rows.grad, "bias": bias.grad, "weights": weights}
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict]:
    """What both processes found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_two_processes_compute_the_loss_and_gradients_of_the_whole_batch(processes, direction, monkeypatch):
    in_double_precision(monkeypatch)
    expected = loss_and_gradients(double_model(direction), slice(0, 4))
    model = double_model(direction)
    assert expected.keys() - {"loss"} == {name for name, p in model.named_parameters() if p.requires_grad}
    alone = loss_and_gradients(model, slice(0, 2))
    assert abs(alone["loss"] - expected["loss"]) > 0.1  # negatives of the other process matter
    for found in processes:
        for step in range(2):
            assert found[f"{direction}{step}"].keys() == expected.keys()
            for name, value in expected.items():
                error = (found[f"{direction}{step}"][name] - value).norm()
                # A key's bias has no gradient (softmax ignores it): rounding noise, without a scale of its own.
                assert error <= 1e-6 * max(value.norm().item(), 1e-6), name


def test_gathered_rows_are_in_the_order_of_ranks_and_their_gradients_are_summed(processes):
    rows = [[1.0, 2.0], [3.0, 4.0], [11.0, 12.0], [13.0, 14.0]]
    weights = torch.arange(8.0, dtype=torch.float64).view(4, 2)
    summed = 2 * weights + 100
    for rank, found in enumerate(result["gather"] for result in processes):
        assert found["gathered"].tolist() == rows
        assert torch.equal(found["rows"], summed[2 * rank : 2 * rank + 2])
        assert torch.equal(found["bias"], weights + 100 * rank)
        assert torch.equal(found["weights"], weights + 100 * rank)
