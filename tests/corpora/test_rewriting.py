"""Captions in other words: scripted answers, and the noise of a tiny language model that chats."""

import pytest
from hearing_models import Scripted, save_tiny_chat_model

from collap.corpora import asking
from collap.corpora.asking import Asking
from collap.corpora.captioners import load_prompts, load_rewriter
from collap.corpora.captions import caption_text
from collap.corpora.rewriting import Rewriter, read_rewritten
from collap.corpora.tracks import Caption, Section, Track

SECTIONS = [Section(0.0, 36.0, "intro", "Soft piano alone."), Section(36.0, 100.0, "verse", "")]


def track(*captions: Caption) -> Track:
    return Track("a", "a.flac", captions=list(captions))


def test_words_are_new_and_times_are_not():
    writer = Scripted("A quiet work at 90 BPM, for the piano.", "Only a piano, quietly played.")
    old = Caption("A calm piece for piano at 90 BPM.", SECTIONS, "columns", "cc-by-4.0")
    [[new]] = Rewriter(writer, load_prompts()["rewrite"], Asking()).rewrite([track(old)])
    assert caption_text(new, 100.0).splitlines() == [
        "A quiet work at 90 BPM, for the piano.",
        "From 0:00 to 0:36, the intro: Only a piano, quietly played.",
        "From 0:36 to 1:40, the verse.",
    ]
    assert new.captioner == "columns, rewritten by scripted" and new.licence == "cc-by-4.0 and cc0-1.0"
    assert all(audio == 0 for _, audio, *_ in writer.asked) and "A calm piece" in writer.asked[0][0]
    assert old.sections[0].text == "Soft piano alone."


def test_an_answer_that_cannot_be_used_is_asked_for_twice_and_the_old_words_stay():
    writer = Scripted("At 120 BPM it is a calm piece.", "Only a piano, quietly played.", "It is calm, at 120 BPM too.")
    [[new]] = Rewriter(writer, "{text}", Asking()).rewrite([track(Caption("A calm piece for piano.", SECTIONS))])
    assert new.overview == "A calm piece for piano." and new.sections[0].text == "Only a piano, quietly played."
    assert new.raw == "It is calm, at 120 BPM too." and "says 120" in new.problem and new.retries == 1
    assert new.licence is None  # as that of the old words
    nothing = Caption("", [Section(0.0, 9.0, "intro")], raw="noise")
    assert Rewriter(Scripted(), "{text}", Asking()).rewrite([track(nothing)]) == [[]]


@pytest.mark.parametrize("answer", ["", "\x1d#!%", "It is calm at 91 BPM.", "A calm piece of music. " * 20])
def test_noise_new_numbers_and_another_length_are_refused(answer):
    with pytest.raises(ValueError, match="no description|which what it rewrites does not|words for"):
        read_rewritten(answer, "A calm piece at 90 BPM.")


def test_the_noise_of_a_real_language_model_is_kept_raw_and_the_same_in_any_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "MAX_TOKENS", {"rewrite": 9})
    folder = str(save_tiny_chat_model(tmp_path / "chat"))
    tracks = [
        track(Caption("A calm piece for piano.", SECTIONS)),
        track(Caption("A longer text, of strings and horns.")),
    ]
    tracks[1].id = "b"
    found = load_rewriter(folder, dtype="float32", asking=Asking(temperature=1.0)).rewrite(tracks)
    alone = load_rewriter(folder, dtype="float32", asking=Asking(temperature=1.0, batch_size=1)).rewrite(tracks[::-1])
    assert found == alone[::-1] and all(one.says_nothing and one.raw for [one] in found)
    assert found[0][0].raw != found[1][0].raw and found[0][0].licence is None


def test_a_model_that_does_not_chat_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no chat template; expected a language model that chats"):
        load_rewriter(str(save_tiny_chat_model(tmp_path, template=None)), dtype="float32")
