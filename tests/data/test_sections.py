"""Songs and captions that are cut by the sections of the song: the words are those of what is heard."""

import itertools

import numpy as np
import pytest
import torch
from tiny import tiny_processor

from collap.data.batches import AudioTextCollator
from collap.data.feature_cache import cache_features
from collap.data.samples import AudioTextDataset
from collap.data.sections import SectionSettings, section_sentences, vary_text, without_times
from collap.data.sources import open_dataset
from processing import load_audio

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
    assert vary_text(text, SectionSettings(), generator) is text
    untimed = [vary_text(text, SectionSettings(drop_times=0.5), generator) for _ in range(400)]
    assert 150 < sum(one == ["drums.", "brass.", "a flute."] for one in untimed) < 250
    kept = [vary_text(text, SectionSettings(drop_sentences=0.4), generator) for _ in range(400)]
    counts = [3 if isinstance(one, str) else len(one) for one in kept]
    assert min(counts) == 1 and 1.7 < np.mean(counts) < 2.1
