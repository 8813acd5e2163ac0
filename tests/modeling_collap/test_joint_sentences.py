"""Sentence vectors from one pass over a text: what a loop over texts and sentences gives, whatever else is read."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, tiny_processor
from torch.nn import functional as F

from collap.training.cost import PAPER, build_meta_model, part_flops
from modeling_collap.towers_collap import pack_sentences, pool_text

SENTENCES = ["slow piano", "loud drums and a guitar", "strings"]
SETTINGS = {"alignment": "monotone", "sentence_encoding": "joint"}
TOWERS = pytest.mark.parametrize(
    ("kind", "pooling"), [("gpt2", "last"), ("gpt2", "mean"), ("roberta", "first"), ("roberta", "mean")]
)


def inputs_of(texts: list, kind: str = "gpt2") -> dict[str, torch.Tensor]:
    return dict(tiny_processor(kind, **SETTINGS)(text=texts))


def naive_packing(lengths: list[list[int]], limit: int | None) -> tuple[list, list]:
    sequences, starts, number = [], [], -1
    for text in lengths:
        used, own = 0, ([], [])
        number += any(text)
        for length in text:
            if limit is not None and used and used + length > limit:
                number, used = number + 1, 0
            own[0].append(number)
            own[1].append(used)
            used += length
        sequences.append(own[0])
        starts.append(own[1])
    return sequences, starts


@pytest.mark.parametrize("limit", [None, 1, 7, 20, 1000])
def test_sentences_are_packed_as_a_loop_over_them_would(limit):
    lengths = torch.randint(0, 9, (12, 10), generator=torch.Generator().manual_seed(0))
    lengths[3] = 0  # a text without sentences
    lengths[5, 2] = 30  # a sentence beyond most limits
    sequences, starts = pack_sentences(lengths, limit)
    expected = naive_packing(lengths.tolist(), limit)
    real = lengths > 0
    for found, naive in zip((sequences, starts), expected, strict=True):
        assert torch.equal(found[real], torch.tensor(naive)[real])
    if limit is not None:
        ends = (starts + lengths)[real & (lengths <= limit)]
        assert ends.max() <= limit


def naive_vectors(tower, texts: list[list[torch.Tensor]]) -> torch.Tensor:
    """One text, and one sentence, after the other."""
    rows = []
    for sentences in texts:
        ids = torch.cat(sentences)[None]
        hidden_states, end = tower.encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state, 0
        for sentence in sentences:
            own, end = hidden_states[:, end : end + len(sentence)], end + len(sentence)
            rows.append(tower.projection(pool_text(own, torch.ones(own.shape[:2]), tower.pooling))[0])
    return F.normalize(torch.stack(rows), dim=-1)


@TOWERS
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_sentence_is_pooled_from_its_span_of_the_text(kind, pooling, side):
    model = tiny_model(kind, text_pooling=pooling, **SETTINGS).double()
    inputs = inputs_of([SENTENCES, SENTENCES[1:2], SENTENCES[::-1][:2]], kind)
    mask = inputs["attention_mask"].bool()
    texts = [
        [ids[own] for ids, own in zip(inputs["input_ids"][b], mask[b], strict=True) if own.any()] for b in range(3)
    ]
    if side == "left":
        inputs = {name: one.flip(-1) for name, one in inputs.items()}
        for ids, own in zip(inputs["input_ids"].flatten(0, 1), inputs["attention_mask"].flatten(0, 1), strict=True):
            ids[own == 1] = ids[own == 1].flip(0)
    found = model.get_sentence_features(**inputs)
    assert found.shape == (3, 3, 32) and not found[~mask.any(-1)].any()
    expected = naive_vectors(model.text_tower, texts)
    torch.testing.assert_close(found[mask.any(-1)].double(), expected, atol=1e-6, rtol=0)
    weights = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    parameters = [one for one in model.text_tower.parameters() if one.requires_grad]
    gradients = [
        torch.autograd.grad((one * weights).sum(), parameters, allow_unused=True, materialize_grads=True)
        for one in (found[mask.any(-1)].double(), expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert sum(one.abs().sum() for one in gradients[0]) > 1


@TOWERS
@torch.no_grad()
def test_one_sentence_has_the_same_vector_either_way(kind, pooling):
    joint, separate = (
        tiny_model(kind, text_pooling=pooling, **{**SETTINGS, "sentence_encoding": way})
        for way in ("joint", "separate")
    )
    inputs = inputs_of([[one] for one in SENTENCES], kind)
    assert torch.equal(joint.get_sentence_features(**inputs), separate.get_sentence_features(**inputs))
    assert torch.equal(joint.get_text_features(**inputs), separate.get_text_features(**inputs))


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
@torch.no_grad()
def test_what_stands_before_a_sentence_matters_in_joint_vectors_alone(kind):
    inputs = inputs_of([SENTENCES, SENTENCES[::-1]], kind)
    for way, differs in (("joint", True), ("separate", False)):
        forwards, backwards = tiny_model(kind, **{**SETTINGS, "sentence_encoding": way}).get_sentence_features(**inputs)
        changes = (forwards - backwards.flip(0)).norm(dim=-1)
        assert changes[0] > 1e-3 if differs else changes.max() < 1e-5
        assert (changes[2] > 1e-3) == differs


@torch.no_grad()
def test_texts_beyond_the_positions_are_cut_between_sentences(monkeypatch):
    model, read = tiny_model("roberta", **SETTINGS), []  # of 128 positions
    encode = model.text_tower.encode
    monkeypatch.setattr(model.text_tower, "encode", lambda ids, mask: read.append(mask.sum(-1)) or encode(ids, mask))
    text = [f"{'slow' if n % 3 else 'loud'} piano and drums" for n in range(40)]
    inputs = inputs_of([text, SENTENCES], "roberta")
    found = model.get_sentence_features(**inputs)
    (tokens,) = read
    assert len(tokens) > 3 and tokens.max() <= 128 and tokens.sum() == inputs["attention_mask"].sum()
    alone = model.get_sentence_features(**inputs_of([SENTENCES], "roberta"))
    torch.testing.assert_close(found[1, :3], alone[0], atol=1e-6, rtol=0)
    too_long = {name: one.repeat(1, 1, 12) for name, one in inputs.items()}
    with pytest.raises(ValueError, match="the text tower reads 128: shorten it"):
        model.get_sentence_features(**too_long)


def test_the_cost_of_a_text_beyond_the_positions_is_that_of_its_parts():
    model = tiny_model(**SETTINGS)
    lengths = {length: part_flops(build_meta_model(model.config, PAPER), work(length))["text"] for length in (128, 384)}
    assert lengths[384] == tuple(3 * one for one in lengths[128])


def work(text_tokens: int):
    return replace(PAPER, text_tokens=text_tokens, mean_seconds=2.0, max_seconds=2.0)
