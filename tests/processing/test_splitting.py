"""Texts by sentences: where they are cut, and how they reach the model."""

import numpy as np
import pytest
import torch
from tiny import tiny_processor

from processing.sentences_collap import split_sentences

FUTGA = """A calm song.

**Functional Segments:**
**0-19:** Intro and Verse 1
- soft piano
* no drums
**19\u201340% - Verse:** a guitar enters
**78-100% - Outro:**
everything stops."""


@pytest.mark.parametrize(
    "text, parts",
    [
        ("A piano opens. Then drums enter!", ["A piano opens.", "Then drums enter!"]),
        ("By J. S. Bach, e.g. at approx. 92.5 BPM. Slow.", ["By J. S. Bach, e.g. at approx. 92.5 BPM.", "Slow."]),
        ("no full stop", ["no full stop"]),
        ("  one\n\n two: (0:10 to 0:20). With more. \n", ["one", "two: (0:10 to 0:20). With more."]),
        (FUTGA, ["A calm song. Functional Segments:", "0-19: Intro and Verse 1 soft piano no drums",
                 "19\u201340% - Verse: a guitar enters", "78-100% - Outro: everything stops."]),
        ("**Tempo:** 120 BPM. Fast.", ["Tempo: 120 BPM.", "Fast."]),
        ("\u9759\u304b\u3002\u901f\u3044\u3002", ["\u9759\u304b\u3002", "\u901f\u3044\u3002"]),
        ("...", ["..."]),
    ],
)  # fmt: skip
def test_a_text_is_cut_at_headers_lines_or_full_stops(text, parts):
    assert split_sentences(text) == parts


def test_sentences_are_padded_to_the_longest_and_most():
    processor = tiny_processor(alignment="free")
    inputs = processor(text=["slow piano. Loud drums and a guitar.", ["strings"]])
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape and inputs["input_ids"].shape[:2] == (2, 2)
    assert inputs["attention_mask"].any(-1).tolist() == [[True, True], [True, False]]
    sections = [{"start": 0.0, "end": 1.0, "text": "slow piano."}, {"text": "Loud drums and a guitar."}]
    again = processor(text=[sections, "strings"])
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    as_numpy = processor(text=[sections, "strings"], return_tensors="np")
    assert np.array_equal(as_numpy["input_ids"], inputs["input_ids"].numpy())
    lists = processor(text=[sections], return_tensors=None)
    assert [len(text) for text in lists["input_ids"]] == [2]


def test_a_processor_of_the_papers_model_joins_sentences(tmp_path):
    processor = tiny_processor()
    assert torch.equal(processor(text=[["one", "two"]])["input_ids"], processor(text="one\ntwo")["input_ids"])
    ours = tiny_processor(alignment="monotone")
    ours.save_pretrained(tmp_path)
    assert type(ours).from_pretrained(tmp_path).split_texts


@pytest.mark.parametrize(
    "text, message",
    [
        ([[]], r"text\[0\] has no sentences"),
        ([["a", ""]], r"text\[0\]\[1\] is empty"),
        ([["a", 3]], r"text\[0\]\[1\] is a int; expected a string, or a section with a text"),
        ([[{"start": 0}]], r"text\[0\]\[0\] is a dict; expected a string, or a section with a text"),
    ],
)
@pytest.mark.parametrize("alignment", ["paper", "monotone"])
def test_what_is_no_sentence_is_named(text, message, alignment):
    with pytest.raises(ValueError, match=message):
        tiny_processor(alignment=alignment)(text=text)
