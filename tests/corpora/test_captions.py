"""What captioners write, in every form that they are known to use, is read into one schema, and joined again."""

import json
import random

import numpy as np
import pytest

from collap.corpora.captions import caption_text, parse_caption, read_caption, read_text
from collap.corpora.synthetic.captions import long_caption
from collap.corpora.synthetic.composition import compose_song
from collap.corpora.tracks import Caption, Section
from collap.data.catalogue.named.futga import percent_sections
from collap.data.sections import section_sentences, without_times
from processing.sentences_collap import split_sentences

PERCENT = """The song is cheerful, with guitars at a tempo of 120-130 BPM.

**Functional Segments:**

**0-18% - Intro/Verse:**
- Piano alone, from soft to loud.
- The tempo is 60-70 bpm.

**18-100% - Chorus:**
- Drums come in."""
BARE = "A calm piece for piano.\n**0-18:** Intro/Verse\n* soft piano\n**18-100:** Chorus\n* drums come in"
SECONDS = "A calm piece for piano.\n**0-36 s - Intro:** soft piano\n**36-200 s - Chorus:** drums come in"
ANSWER = {
    "overview": "A calm piece for piano.",
    "sections": [
        {"start": 0, "end": 36, "label": "Intro", "text": 'soft "piano"'},
        {"start": 36, "end": 200, "label": "Chorus", "text": "drums come in"},
    ],
}
FORMS = {
    "seconds": SECONDS,
    "bare seconds": SECONDS.replace(" s -", " -"),
    "percent in headings": "A calm piece for piano.\n## Intro (0% - 18%)\nsoft piano\n## Chorus (18-100%)\ndrums",
    "clock": "A calm piece for piano.\n1. **[0:00 - 0:36] Intro**: soft piano\n2. **[0:36 - 3:20] Chorus**: drums",
    "label first": "A calm piece for piano.\n**Intro (0:00\u20130:36):** soft\n**Chorus (0:36\u20133:20):** drums",
    "label, dash": "A calm piece for piano.\n* Intro: 0:00 - 0:36 - soft piano\n* Chorus: 0:36 - 3:20 - drums",
    "starts alone": "A calm piece for piano.\n[0:00] Intro: soft piano\n[0:36] Chorus: drums",
    "sentences": "A calm piece for piano.\nAt 0:00 the intro, up to 0:36: soft.\nThe chorus (0:36 to 3:20) has drums",
    "JSON": json.dumps(ANSWER),
    "fenced JSON": f"Sure, here it is:\n```json\n{json.dumps(ANSWER, indent=1)}\n```\nI hope it helps.",
    "JSON with clock": json.dumps(ANSWER).replace("36", '"0:36"').replace("200", '"3:20"').replace(": 0,", ': "0:00",'),
    "JSON with minutes": json.dumps(ANSWER).replace("36", '"36 sec"').replace("200", '"3 min 20 s"'),
    "cut-off JSON": json.dumps(ANSWER)[:-2] + ', {"start": 200, "end": 2',
    "JSON with commas": json.dumps(ANSWER).replace("}]", "},]"),
    "FUTGA's JSON": json.dumps(
        {"0-18": {"head": "Intro", "text": "soft"}, "18-100": {"head": "Chorus", "text": "drums"}}
        | {"global": {"func": None, "text": "A calm piece for piano."}}
    ),
    "after thoughts": f"<think>From 0:00 to 9:59 or so?</think>\n{SECONDS}",
}


def spans(caption: Caption) -> list[tuple[float, float]]:
    return [(one.start, one.end) for one in caption.sections]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_times_and_labels(form):
    caption = read_caption(FORMS[form], 200.0)
    assert caption.overview == "A calm piece for piano."
    assert spans(caption) == [(0.0, 36.0), (36.0, 200.0)]
    assert [one.label.lower() for one in caption.sections] == ["intro", "chorus"]
    assert "soft" in caption.sections[0].text and "drums" in caption.sections[1].text


@pytest.mark.parametrize("text", [PERCENT, BARE])
@pytest.mark.parametrize("window", [0.0, 180.0])
def test_futga_is_read_as_its_own_reader_does(text, window):
    caption = read_caption(text, 200.0, window)
    reference = percent_sections(text, min(window, 200.0) or 200.0)
    assert spans(caption) == [(one["start"], one["end"]) for one in reference]
    assert [one.label for one in caption.sections] == [one["label"] for one in reference]
    said = [one["text"].removeprefix(f"{one['label']}: ") for one in reference]
    assert [one.text for one in caption.sections] == said


def test_a_number_without_a_unit_is_a_percent_unless_it_cannot_be():
    text = "**0-{0}:** Intro\nsoft piano\n**{0}-{1}:** Chorus\ndrums come in"
    assert spans(read_caption(text.format(20, 100), 200.0)) == [(0.0, 40.0), (40.0, 200.0)]
    assert spans(read_caption(text.format(20, 200), 200.0)) == [(0.0, 20.0), (20.0, 200.0)]
    assert spans(read_caption(text.format(20, 60), 60.0)) == [(0.0, 20.0), (20.0, 60.0)]
    assert spans(read_caption(text.format(20, 100), 60.0)) == [(0.0, 12.0), (12.0, 60.0)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("A calm piece for piano at 120-130 BPM, in two parts.", "no section"),
        (SECONDS.replace("200", "260"), "ends at 260.0 s, the track at 200.0 s"),
        (SECONDS.replace("0-36 s", "0-90 s"), "section 2 starts at 36.0 s, before the one before it"),
        (SECONDS.replace("0-36 s", "36-36 s"), "section 1 starts at 36.0 s and ends at 36.0 s"),
        (PERCENT.replace("18-100%", "18-120%"), "120 percent"),
        ('{"overview": "A calm piece", "sections": []}', "no section"),
        ('{"overview": "A calm piece", "sections": [{"start": 0, "end"', "JSON"),
        ('{"sections": [{"start": "soon", "end": 3}]}', "'soon' is no time"),
        ('{"a": ' * 4000, "brackets in brackets without end"),
        ('{"sections": [{"start": "0 bars", "end": "8 bars"}]}', "'0 bars' is no time"),
        ("[0:00 - 0:20] \ufffd\ufffd#!\n[0:20 - 0:40] $$$", "no description in words"),
    ],
)
def test_what_names_no_times_or_contradicts_itself_is_not_guessed_at(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_caption(text, 200.0)
    assert parse_caption(text, 200.0) is None


def test_numbers_called_start_and_end_in_json_are_the_seconds_that_were_asked_for():
    answer = json.dumps(ANSWER).replace("36", "20").replace("200", "98")  # the last minutes are left out
    assert spans(read_caption(answer, 150.0)) == [(0.0, 20.0), (20.0, 98.0)]


def test_times_that_miss_by_little_are_cut():
    caption = read_caption(SECONDS.replace("200", "201").replace("0-36 s", "0-37 s"), 200.0)
    assert spans(caption) == [(0.0, 36.0), (36.0, 200.0)]


def test_what_is_said_at_the_end_of_the_whole_is_not_of_the_last_section():
    caption = read_caption(f"{SECONDS}\n\nOverall, it is a fine song.", 200.0)
    assert caption.overview == "A calm piece for piano. Overall, it is a fine song."
    assert caption.sections[-1].text == "drums come in"


def test_rendered_songs_are_read_back_from_their_captions():
    for number in range(12):
        song = compose_song(f"read-{number}", seed=1)
        for variant in range(6):
            caption = read_caption(long_caption(song, variant), song.seconds)
            assert [one.label for one in caption.sections] == [one.label for one in song.sections]
            assert np.allclose(spans(caption), [(one.start, one.end) for one in song.sections], atol=0.51)


def test_noise_of_any_kind_is_never_an_error():
    generator = random.Random(0)
    alphabet = '0123456789:-% s*#[](){}",\n\\abc\ufffd'
    for _ in range(400):
        text = "".join(generator.choices(alphabet, k=generator.randrange(120)))
        caption = parse_caption(text, 100.0)
        times = [edge for one in caption.sections for edge in (one.start, one.end)] if caption else []
        assert times == sorted(times) and all(0 <= time <= 100 for time in times)


def test_a_description_without_times_is_read_from_prose_markdown_or_json():
    assert read_text("**Soft** piano,\n- and a _low_ voice.") == "Soft piano, and a _low_ voice."
    assert read_text('```json\n{"description": "Soft piano and a voice."}\n```') == "Soft piano and a voice."
    assert read_text("\u67d4\u3089\u304b\u306a\u30d4\u30a2\u30ce\u3068\u5f37\u3044\u30c9\u30e9\u30e0\u3002").startswith(
        "\u67d4"
    )
    for noise in ("", "\x1d#!%% 0:10", "\ufffd\ufffdx and more words follow"):
        with pytest.raises(ValueError, match="no description in words"):
            read_text(noise)


@pytest.mark.parametrize("overview", ["A calm piece.\nIt has two parts.", ""])
def test_a_joined_caption_has_the_sentence_of_every_section(overview):
    sections = [
        Section(0.0, 36.0, "Intro", "**Soft** piano.\n- It is low. Then it rises."),
        Section(36.0, 100.0, "B", ""),
        Section(100.0, 200.0, "", "The drums come in."),
    ]
    text = caption_text(Caption(overview, sections), 200.0)
    said = section_sentences(text, [{"start": one.start, "end": one.end} for one in sections])
    assert said == [
        "From 0:00 to 0:36, the intro: Soft piano. It is low. Then it rises.",
        "From 0:36 to 1:40, part B.",
        "From 1:40 to 3:20, the drums come in.",
    ]
    assert len(split_sentences(text)) == 3 + bool(overview)
    assert [without_times(one) for one in said][2] == "the drums come in."
    plainly = caption_text(Caption(overview, sections), 200.0, with_times=False)
    assert len(plainly.splitlines()) == 3 + bool(overview) and ":36" not in plainly


def test_a_joined_caption_is_read_back():
    caption = read_caption(PERCENT, 200.0)
    again = read_caption(caption_text(caption, 200.0), 200.0)
    assert spans(again) == spans(caption) and again.overview == caption.overview
