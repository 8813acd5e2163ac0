"""A model that reads texts by sentences: what it shares with the paper's, and what only it can do."""

import pytest
import torch
from tiny import tiny_config, tiny_model, tiny_processor

from modeling_collap import CoLLAPConfig, CoLLAPModel
from modeling_collap.alignment_collap import pool_sentences
from modeling_collap.localization_collap import curve_spans

SENTENCES = ["slow piano", "loud drums and a guitar", "strings"]
SETTINGS = {"alignment": "monotone", "alignment_frame_seconds": 0.5}
KINDS = pytest.mark.parametrize("alignment", ["free", "monotone"])


def songs(*seconds: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(round(16000 * one), generator=generator) * 0.1 for one in seconds]


def inputs_of(text, audio=None, kind="gpt2", **settings) -> dict:
    audio = {} if audio is None else {"audio": audio, "sampling_rate": 16000}
    return dict(tiny_processor(kind, **(settings or SETTINGS))(text=text, **audio))


@KINDS
@torch.no_grad()
def test_without_weight_the_alignment_leaves_the_papers_score_to_the_bit(alignment):
    paper, ours = tiny_model(), tiny_model(alignment=alignment)
    ours.load_state_dict(paper.state_dict(), strict=False)
    text = inputs_of(["slow piano", "drums"], songs(2.5, 4.0), **{"alignment": "paper"})
    for name in ("sentences", "path"):
        if hasattr(ours.score_parameters, f"log_gamma_{name}"):
            getattr(ours.score_parameters, f"log_gamma_{name}").fill_(-200.0)  # exp is 0
    assert torch.equal(ours(**text).logits_per_audio, paper(**text).logits_per_audio)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
@torch.no_grad()
def test_a_sentence_has_the_vector_that_it_has_alone(kind):
    model = tiny_model(kind, **SETTINGS)
    embeds = model.get_sentence_features(**inputs_of([SENTENCES, SENTENCES[:1]], kind=kind))
    assert embeds.shape[:2] == (2, 3) and not embeds[1, 1:].any()
    for number, sentence in enumerate(SENTENCES):
        alone = model.get_text_features(**inputs_of([[sentence]], kind=kind))
        torch.testing.assert_close(embeds[0, number], alone[0], atol=1e-6, rtol=0)
    pooled = model.get_text_features(**inputs_of([SENTENCES], kind=kind))
    torch.testing.assert_close(pooled, pool_sentences(embeds[:1]))


@KINDS
@torch.no_grad()
def test_scores_do_not_depend_on_what_else_is_in_the_batch(alignment):
    settings = {**SETTINGS, "alignment": alignment, "path_blank": alignment == "monotone"}
    model, audio = tiny_model(**settings), songs(2.5, 7.0)
    texts = [SENTENCES, SENTENCES[:1], "one sentence. And another one. A third. And a fourth"]
    together = model(**inputs_of(texts, audio, **settings)).logits_per_audio
    for a, song in enumerate(audio):
        for b, text in enumerate(texts):
            alone = model(**inputs_of([text], [song], **settings)).logits_per_audio
            torch.testing.assert_close(together[a, b], alone[0, 0], atol=2e-4, rtol=0)


@torch.no_grad()
def test_only_the_monotone_score_tells_the_order_of_sentences():
    audio = songs(9.0)
    for alignment, differs in (("free", False), ("monotone", True)):
        model = tiny_model(**{**SETTINGS, "alignment": alignment})
        output = model(**inputs_of([SENTENCES, SENTENCES[::-1]], audio))
        forwards, backwards = output.logits_per_audio[0]
        assert (abs(forwards - backwards) > 1e-3) == differs
        assert output.text_embeds.shape == (2, 32) and output.sentence_embeds.shape == (2, 3, 32)


@torch.no_grad()
def test_a_text_in_another_order_is_a_negative_as_if_it_were_given_besides():
    """The scores of texts whose sentences are given in that order, in the softmax of each audio."""
    model, texts = tiny_model(**SETTINGS), [SENTENCES, SENTENCES[:1], ["a choir", "a flute"]]
    inputs = inputs_of(texts, songs(6.0, 4.0, 5.0))
    found = model(**inputs, return_loss=True, sentence_orders=torch.tensor([[2, 1, 0], [-1] * 3, [1, 0, -1]]))
    swapped = inputs_of([*texts, SENTENCES[::-1], ["a flute", "a choir"]], songs(6.0, 4.0, 5.0))
    scores = model(**swapped).logits_per_audio
    torch.testing.assert_close(found.logits_per_audio, scores[:, :3])
    labels = torch.arange(3)
    own = torch.nn.functional.cross_entropy(scores[:, :3].T, labels)
    torch.testing.assert_close(found.loss, (torch.nn.functional.cross_entropy(scores, labels) + own) / 2)
    assert found.loss > model(**inputs, return_loss=True).loss + 0.05
    with pytest.raises(ValueError, match="sentence_orders need the alignment 'monotone', found 'free'"):
        orders = torch.zeros(3, 3, dtype=torch.int64)
        tiny_model(alignment="free")(**inputs, return_loss=True, sentence_orders=orders)


@pytest.mark.parametrize("sentence_encoding", ["separate", "joint"])
@torch.no_grad()
def test_texts_of_two_thousand_words_are_read_whole(sentence_encoding):
    text = " ".join(f"Here a {'slow' if n % 3 else 'loud'} piano plays with drums and strings." for n in range(250))
    changed = text.rsplit("slow", 1)[0] + "loud" + text.rsplit("slow", 1)[1]
    assert len(text.split()) == 2250
    model, audio = tiny_model("roberta", **SETTINGS, sentence_encoding=sentence_encoding), songs(4.0)
    scores = model(**inputs_of([text, changed], audio, "roberta")).logits_per_audio[0]
    assert scores.isfinite().all() and scores[0] != scores[1]


@torch.no_grad()
def test_sentences_are_found_in_a_song_that_plays_them_one_after_the_other():
    model = tiny_model(**SETTINGS, path_blank=True)
    vectors = torch.eye(32)[:3]
    tokens = vectors.repeat_interleave(12, dim=0)[None]  # 12 tokens in a segment of 2 s, one segment for each
    mask = torch.ones(1, 36, dtype=torch.bool)
    found = model.localize(vectors[None], tokens, mask)
    torch.testing.assert_close(found.path[0, 0, :, 0], torch.tensor([0.0, 2.0, 4.0]), atol=0.5, rtol=0)
    torch.testing.assert_close(found.spans[0, 0], found.path[0, 0], atol=0.6, rtol=0)
    assert found.curves.shape == (1, 1, 3, 12) and found.frame_seconds.shape == (12, 2)
    backwards = model.localize(vectors.flip(0)[None], tokens, mask)
    assert (backwards.path[0, 0, 1:, 0] >= backwards.path[0, 0, :-1, 0]).all()  # in order, even where it does not fit
    torch.testing.assert_close(backwards.spans[0, 0].flip(0), found.spans[0, 0])


def test_a_span_is_the_run_around_the_highest_point():
    times = torch.stack([torch.arange(6.0), torch.arange(6.0) + 1], dim=-1)
    curves = torch.tensor([[0.9, 0.0, 0.85, 1.0, 0.9, 0.1], [1.0, 0.0, 0.0, 0.0, 0.0, 0.99]])
    assert curve_spans(curves, times).tolist() == [[2.0, 5.0], [0.0, 1.0]]


def test_a_folder_keeps_its_alignment_and_one_of_before_is_the_papers(tmp_path):
    model = tiny_model(**SETTINGS, path_blank=True)
    model.save_pretrained(tmp_path)
    again = CoLLAPModel.from_pretrained(tmp_path)
    assert again.config.alignment == "monotone" and again.config.path_blank
    assert again.state_dict().keys() == model.state_dict().keys()
    settings = tiny_config().to_dict()
    for name in [name for name in settings if name.startswith(("alignment", "path", "gamma_alignment", "sentence"))]:
        del settings[name]
    assert CoLLAPConfig.from_dict(settings).alignment == "paper"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"alignment": "backwards"}, "alignment must be one of paper, free, monotone, found 'backwards'"),
        ({"sentence_encoding": "joint"}, "sentence_encoding 'joint' needs an alignment, found alignment 'paper'"),
        ({"path_blank": True}, "path_blank is of the alignment 'monotone', found alignment 'paper'"),
        ({"alignment_frame_seconds": 0.0}, "alignment_frame_seconds must be positive, found 0.0"),
        (
            {"alignment": "free", "gamma_alignment_init": 101.0},
            r"gamma_max \(100.0\) is below the initial value 101.00",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)
