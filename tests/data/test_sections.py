"""Songs and captions that are cut by the sections of the song: the words are those of what is heard."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch
from tiny import tiny_processor

from collap.data.batches import AudioTextCollator
from collap.data.feature_cache import cache_features
from collap.data.samples import AudioTextDataset
from collap.data.sections import (
    Passage,
    SectionSettings,
    Sentence,
    cut_stored,
    draw_order,
    section_sentences,
    vary_caption,
    without_times,
)
from collap.data.sources import open_dataset
from processing import load_audio
from processing.decode_audio import AudioFileError

CROPS = SectionSettings("sections", crop_sections=2, crop_epochs=1)
PROCESSOR = tiny_processor(alignment="monotone")
RATE = 16_000


@pytest.fixture(scope="module")
def songs(corpus):
    return open_dataset(corpus, "train", text_column="captions")


def dataset(rows, **settings) -> AudioTextDataset:
    return AudioTextDataset(rows, PROCESSOR.feature_extractor, "audio", "captions", **settings)


def sections_of(sample, row: dict) -> list[dict]:
    """The sections whose sentences a sample has, found by their words."""
    spans = []
    for caption in row["captions"]:
        lines = [without_times(line) for line in caption.split("\n")][1:]
        if all(sentence in lines for sentence in sample.text):
            spans = [row["sections"][lines.index(sentence)] for sentence in sample.text]
    return spans


def test_crops_are_neighbouring_sections_with_their_sentences(songs):
    data, counts = dataset(songs, features_in_worker=False, sections=CROPS), set()
    for row in range(len(songs)):
        sample = data[row]
        own = sections_of(sample, songs[row])
        assert own and all(before["end"] == after["start"] for before, after in itertools.pairwise(own))
        expected = load_audio(songs[row]["audio"]["path"], RATE, start=own[0]["start"], stop=own[-1]["end"])
        assert np.array_equal(sample.audio["waveform"].numpy(), expected)
        assert not any(character.isdigit() for sentence in sample.text for character in sentence)  # no time is left
        counts.add(len(own))
    assert counts == {1, 2}


def test_crops_are_drawn_anew_in_every_epoch_and_end_after_theirs(songs):
    data = dataset(songs, features_in_worker=False, sections=SectionSettings("sections", crop_sections=2))
    first = [data[row].text for row in range(len(songs))]
    assert [data[row].text for row in range(len(songs))] == first
    data.set_epoch(1)
    assert [data[row].text for row in range(len(songs))] != first
    data = dataset(songs, features_in_worker=False, sections=CROPS)
    data.set_epoch(1)
    assert data[0].text in songs[0]["captions"]
    assert data[0].seconds == pytest.approx(songs[0]["seconds"], abs=0.01)


def test_stored_tokens_and_features_are_cut_at_the_same_times(songs):
    extractor = PROCESSOR.feature_extractor  # segments of 2 s with 12 tokens each
    tokens = [torch.arange(12 * 10, dtype=torch.float32).view(-1, 1) for _ in range(len(songs))]
    waveforms = dataset(songs, features_in_worker=False, sections=CROPS)
    stored = dataset(songs, sections=CROPS, token_cache=tokens)
    cached = dataset(cache_features(songs, extractor, "audio"), sections=CROPS)
    for row in range(len(songs)):
        sample, whole = stored[row], waveforms[row]
        assert sample.text == whole.text == cached[row].text
        own = sections_of(sample, songs[row])
        found = sample.audio["fused_tokens"][:, 0]
        starts = 2.0 * (found // 12) + 0.16 * (found % 12)
        assert abs(starts[0] - own[0]["start"]) < 0.25 and abs(starts[-1] + 0.16 - own[-1]["end"]) < 0.25
        segments = len(cached[row].audio["music_features"])
        assert segments == pytest.approx((own[-1]["end"] - own[0]["start"]) / 2, abs=1)


def test_a_batch_of_crops_reaches_the_model_by_sentences(songs):
    data = dataset(songs, sections=CROPS)
    batch = AudioTextCollator(PROCESSOR)([data[row] for row in range(4)])
    assert batch.text["input_ids"].ndim == 3 and len(batch.text_ids) == 4
    assert batch.text["attention_mask"].any(-1).sum(-1).tolist() == [len(data[row].text) for row in range(4)]


def test_captions_that_do_not_fit_the_sections_leave_the_song_whole(songs):
    row = {**songs[0], "captions": ["one. two. three. four. five. six. seven. eight. nine. ten."]}
    rows = songs.select([0]).map(lambda _: {"captions": row["captions"]})
    sample = dataset(rows, features_in_worker=False, sections=CROPS)[0]
    assert sample.text == row["captions"][0] and sample.seconds == pytest.approx(row["seconds"], abs=0.01)
    assert section_sentences("ignored", [{"text": "a"}, {"text": "b"}]) == ["a", "b"]
    assert section_sentences("a song\nfirst\nsecond", [{}, {}]) == ["first", "second"]
    assert section_sentences("first\nsecond", [{}, {}]) == ["first", "second"]
    assert section_sentences("first", [{}, {}]) is None and section_sentences("first", []) is None


@pytest.mark.parametrize(
    "sentence, left",
    [
        ("From 0:00 to 0:16, the intro features drums.", "the intro features drums."),
        ("The solo (1:05 to 1:20) is played by a flute.", "The solo is played by a flute."),
        ("At 0:40 the chorus begins, lasting until 1:02: brass.", "the chorus begins, lasting brass."),
        ("It lasts 2:31 and has 5 sections at 92 BPM.", "It lasts and has 5 sections at 92 BPM."),
        ("0:31", "0:31"),
    ],
)
def test_clock_times_are_left_out(sentence, left):
    assert without_times(sentence) == left


def test_shares_of_times_and_sentences_are_left_out():
    generator, text = np.random.default_rng(0), "From 0:00 to 0:16, drums.\nAt 0:16 brass.\nAt 0:30 a flute."
    assert vary_caption(Passage(text), SectionSettings(), generator).text is text
    untimed = [vary_caption(Passage(text), SectionSettings(drop_times=0.5), generator).text for _ in range(400)]
    assert 150 < sum(one == ["drums.", "brass.", "a flute."] for one in untimed) < 250
    kept = [vary_caption(Passage(text), SectionSettings(drop_sentences=0.4), generator).text for _ in range(400)]
    counts = [3 if isinstance(one, str) else len(one) for one in kept]
    assert min(counts) == 1 and 1.7 < np.mean(counts) < 2.1


LABELLED = {"order_negatives": True, "tell_spans": True}


def test_whole_songs_tell_when_their_sentences_are_heard(songs):
    data = dataset(songs, features_in_worker=False, sections=SectionSettings("sections", tell_spans=True))
    for row in range(len(songs)):
        sample, times = data[row], [(s["start"], s["end"]) for s in songs[row]["sections"]]
        assert sample.text in [caption.split("\n") for caption in songs[row]["captions"]] and sample.order is None
        assert np.isnan(sample.spans[0]).all() and sample.spans[1:] == times  # the overview is heard nowhere


def test_crops_tell_it_from_where_they_begin(songs):
    data = dataset(songs, features_in_worker=False, sections=dataclasses.replace(CROPS, **LABELLED))
    for row in range(len(songs)):
        sample = data[row]
        own = sections_of(sample, songs[row])
        expected = [(s["start"] - own[0]["start"], s["end"] - own[0]["start"]) for s in own]
        assert sample.spans == pytest.approx(np.array(expected), abs=1e-9)
        assert sample.order == ([-1] if len(own) == 1 else [1, 0])
        assert sample.text == dataset(songs, features_in_worker=False, sections=CROPS)[row].text


def test_left_out_sentences_take_their_times_with_them(songs):
    settings = SectionSettings("sections", drop_sentences=0.5, drop_times=0.5, **LABELLED)
    data, lengths = dataset(songs, features_in_worker=False, sections=settings), set()
    for epoch, row in itertools.product(range(2), range(len(songs))):
        data.set_epoch(epoch)
        sample, spans = data[row], {}
        for caption in songs[row]["captions"]:
            overview, *lines = caption.split("\n")
            times = [(s["start"], s["end"]) for s in songs[row]["sections"]]
            for change in (str, without_times):
                spans |= dict(zip(map(change, lines), times, strict=True)) | {change(overview): None}
        assert len(sample.spans) == len(sample.text) == len(sample.order)
        found = [None if np.isnan(span[0]) else span for span in sample.spans]
        assert found == [spans[sentence] for sentence in sample.text]
        lengths.add(len(found))
    assert len(lengths) > 2


def test_stored_audio_tells_it_by_where_the_cut_begins(songs):
    """Tokens that are numbered by when they start say themselves what is heard when."""
    settings, extractor = SectionSettings("sections", exchange_sections=1.0, **LABELLED), PROCESSOR.feature_extractor
    starts = torch.tensor([2.0 * (t // 12) + 0.16 * (t % 12) for t in range(12 * 10)])
    for sections in (settings, dataclasses.replace(CROPS, **LABELLED)):
        stored = dataset(songs, sections=sections, token_cache=[starts.view(-1, 1)] * len(songs))
        whole = dataset(songs, sections=sections, features_in_worker=False)
        cached = dataset(cache_features(songs, extractor, "audio"), sections=sections)
        for row in range(len(songs)):
            sample, wanted = stored[row], whole[row]
            assert sample.text == wanted.text == cached[row].text and sample.order == wanted.order
            times = {(s["start"], s["end"]) for s in songs[row]["sections"]}
            in_song, placed = sample.audio["fused_tokens"][:, 0] + 0.08, 0
            middles = starts[: len(in_song)] + 0.08
            for span, exact, rounded in zip(sample.spans, wanted.spans, cached[row].spans, strict=True):
                if np.isnan(exact[0]):
                    assert np.isnan(span[0]) and np.isnan(rounded[0])
                    continue
                heard = in_song[(middles > span[0] + 0.16) & (middles < span[1] - 0.16)]
                assert any((heard > start).all() and (heard < end).all() for start, end in times)
                assert len(heard) > (exact[1] - exact[0]) / 0.16 - 5
                assert np.abs(np.array(span) - exact).max() < 0.6 and np.abs(np.array(rounded) - exact).max() < 4
                placed += 1
            assert placed and cached[row].audio["audio_token_mask"][:-1].all()


def test_exchanged_sections_are_those_of_the_song_in_the_order_of_their_sentences(songs):
    settings = SectionSettings("sections", exchange_sections=1.0, tell_spans=True)
    data = dataset(songs, features_in_worker=False, sections=settings)
    for row in range(len(songs)):
        sample, times = data[row], [(s["start"], s["end"]) for s in songs[row]["sections"]]
        song = load_audio(songs[row]["audio"]["path"], RATE)
        lines = [[without_times(line) for line in caption.split("\n")] for caption in songs[row]["captions"]]
        (own,) = (one for one in lines if set(one) == set(sample.text))
        order = [own.index(sentence) - 1 for sentence in sample.text[1:]]
        assert sample.text[0] == own[0] and sorted(order) == list(range(len(times))) != order
        parts = [song[round(times[i][0] * RATE) : round(times[i][1] * RATE)] for i in order]
        assert np.array_equal(sample.audio["waveform"].numpy(), np.concatenate(parts))
        ends = np.cumsum([len(part) for part in parts]) / RATE
        assert np.array(sample.spans[1:])[:, 1] == pytest.approx(ends, abs=1e-4)
        assert np.array(sample.spans[1:])[:, 0] == pytest.approx([0.0, *ends[:-1]], abs=1e-4)
    again = dataset(songs, features_in_worker=False, sections=settings)
    assert [again[row].text for row in range(8)] == [data[row].text for row in range(8)]
    data.set_epoch(1)
    assert [again[row].text for row in range(8)] != [data[row].text for row in range(8)]


def test_a_share_of_the_whole_songs_is_exchanged_and_no_crop(songs):
    settings = SectionSettings("sections", exchange_sections=0.5)
    data, changed = dataset(songs, token_cache=[torch.zeros(120, 1)] * len(songs), sections=settings), 0
    for epoch in range(8):
        data.set_epoch(epoch)
        changed += sum(isinstance(data[row].text, list) for row in range(len(songs)))
    assert 18 < changed < 46
    both = dataclasses.replace(CROPS, exchange_sections=1.0)
    assert [dataset(songs, sections=both)[row].text for row in range(3)] == [
        dataset(songs, sections=CROPS)[row].text for row in range(3)
    ]


def test_no_segment_with_silence_moves_into_the_middle_of_a_song():
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[2, 5:] = False
    stored = {"music_features": torch.arange(3.0).view(3, 1), "audio_token_mask": mask}
    joined, shifts = cut_stored(stored, [(2.1, 4.9), (0.0, 2.1)], 12, 2, 0.16)
    assert joined["music_features"].flatten().tolist() == [1, 0] and shifts == [2.0, -2.0]
    with pytest.raises(AudioFileError, match="shorter than a segment"):
        cut_stored({"audio_token_mask": mask[2:]}, [(0.5, 0.9), (0.0, 0.5)], 12, 2, 0.16)


def test_another_order_says_something_else_and_leaves_the_overview():
    generator = np.random.default_rng(0)
    placed = [Sentence(one, (0.0, 1.0)) for one in "abc"]
    drawn = {tuple(draw_order([Sentence("all"), *placed], generator)) for _ in range(100)}
    assert len(drawn) == 5 and all(order[0] == 0 and sorted(order) == [0, 1, 2, 3] for order in drawn)
    assert {tuple(draw_order([placed[0], placed[1], placed[0]], generator)) for _ in range(50)} == {
        (order[0], order[1], order[2]) for order in itertools.permutations(range(3)) if order[1] != 1
    }
    for told in (placed[:1], [placed[0]] * 3, [Sentence("one"), Sentence("two")], [Sentence("all"), placed[0]]):
        assert draw_order(told, generator) == [-1] * len(told)


def test_a_batch_has_spans_and_orders_only_if_asked_for(songs):
    collate = AudioTextCollator(PROCESSOR)
    plain, labelled = (
        collate([dataset(songs, sections=dataclasses.replace(CROPS, **labels))[row] for row in range(4)])
        for labels in ({}, LABELLED)
    )
    assert plain.text.keys() == {"input_ids", "attention_mask"}
    inputs = pickle.loads(pickle.dumps(labelled)).text_inputs(slice(1, 4), "cpu")
    sentences = inputs["attention_mask"].any(-1)
    assert (
        inputs["sentence_spans"].shape == (*sentences.shape, 2) and inputs["sentence_orders"].shape == sentences.shape
    )
    assert torch.equal(inputs["sentence_spans"].isnan().any(-1), ~sentences)
    assert (inputs["sentence_orders"][~sentences] == -1).all()


def test_a_caption_that_does_not_fit_has_no_places(songs):
    settings = SectionSettings("sections", exchange_sections=1.0, **LABELLED)
    rows = songs.select([0]).map(lambda _: {"captions": ["one. two. three. four. five. six. seven. eight. nine. ten."]})
    sample = dataset(rows, features_in_worker=False, sections=settings)[0]
    assert len(sample.text) == 10 and np.isnan(sample.spans).all() and sample.order == [-1] * 10


def test_sections_without_times_and_beyond_the_song_are_named(songs):
    settings = SectionSettings("sections", tell_spans=True, exchange_sections=1.0)

    def changed(**edges):
        sections = [{**songs[0]["sections"][0]}, {**songs[0]["sections"][1], **edges}]
        captions = ["\n".join(songs[0]["captions"][0].split("\n")[:3])]
        return dataset(songs.select([0]).map(lambda _: {"sections": sections, "captions": captions}), sections=settings)

    with pytest.raises(ValueError, match=r"row 0 .*: sections\[1\] is .*; expected a section with start < end"):
        changed(start=None)[0]
    with pytest.raises(AudioFileError, match="a section starts at 500.00 s, the audio ends at 1"):
        changed(start=500.0, end=501.0)[0]
