"""What a search writes: nothing in a path or a tag can break a format."""

import json
import os
from urllib.parse import unquote_to_bytes

import pytest

from collap.search.hits import Hit, Results
from collap.search.moments import Curve, SentenceSpan, Span
from collap.search.outputs import FORMATS, clock

ODD = os.fsdecode(b"a\nb/\xff #1 \x1b[31m-->.mp3")


def hit(rank: int = 1, path: str = "a/b.mp3", **changes) -> Hit:
    about = {
        "title": "Blå <i>",
        "artist": "A --> B\n2",
        "album": None,
        "year": 1971,
        "genre": "jazz",
        "seconds": 3723.4,
    }
    spans = (Span(61.5, 75.25, 0.5), Span(0.0, 4.0, 0.4))
    about |= {"score": 12.5, "rescored": True, "certified": False, "deviations": 2.5, "spans": spans} | changes
    return Hit(rank=rank, track=rank, id=f"id{rank}", path=path, file=f"/music/{path}", **about)


@pytest.mark.parametrize("path", ["a/b.mp3", ODD, "#x.mp3", " x.mp3", "ü.mp3"])
def test_a_playlist_has_two_lines_and_the_file_for_each_track(path):
    lines = FORMATS["m3u"](Results([hit(), hit(2, path, title=None)]), "two\nlines").split("\n")
    assert lines[:3] == ["#EXTM3U", "#PLAYLIST:two lines", "#EXTINF:3723,A --> B 2 - Blå <i>"]
    assert lines[3:5] == ["#EXTVLCOPT:start-time=61.50", "/music/a/b.mp3"]
    assert lines[5].startswith("#EXTINF:3723,") and lines[6] == "#EXTVLCOPT:start-time=61.50" and lines[8:] == [""]
    place = lines[7]
    named = unquote_to_bytes(place.removeprefix("file://")) if place.startswith("file://") else place.encode()
    assert named == os.fsencode(f"/music/{path}") and place.isprintable() and not place.startswith("#")
    "\n".join(lines).encode()


def test_json_holds_every_field_and_any_path():
    curve = Curve([0.0, 5.0], [10.0, 15.0], [0.1, 0.2])
    sentences = (SentenceSpan(1.0, 2.0, 0.3, "one."),)
    results = Results([hit(path=ODD, curve=curve, sentences=sentences, copies=(ODD,))], ["a note"], True, 50, 900)
    found = json.loads(FORMATS["json"](results, "q").encode("utf-8"))
    assert {name: found[name] for name in ("query", "matches_well", "notes", "searched", "rescored")} == {
        "query": "q",
        "matches_well": True,
        "notes": ["a note"],
        "searched": 900,
        "rescored": 50,
    }
    (one,) = found["hits"]
    assert set(one) == {*Hit.__dataclass_fields__, "uri"}
    assert one["spans"][0] == {"start": 61.5, "end": 75.25, "score": 0.5}
    assert one["sentences"] == [{"start": 1.0, "end": 2.0, "score": 0.3, "text": "one.", "heard": True}]
    assert one["curve"] == {"starts": [0.0, 5.0], "ends": [10.0, 15.0], "scores": [0.1, 0.2]}
    assert unquote_to_bytes(one["uri"].removeprefix("file://")) == os.fsencode(f"/music/{ODD}")
    assert one["path"].isprintable() and one["copies"] == [one["path"]]


def test_cues_are_in_the_order_of_time_and_hold_no_arrow():
    cues = FORMATS["webvtt"](Results([hit(path=ODD), hit(2)]), "a --> <b>\n\nc")
    head, note, *blocks = cues.rstrip("\n").split("\n\n")
    assert head == "WEBVTT" and note.startswith("NOTE\n") and "-->" not in note
    times = "00:00:00.000 --> 00:00:04.000"
    assert blocks[0].split("\n") == ["1", times, "a --&gt; &lt;b&gt; c (0.40)"]
    assert blocks[1].split("\n")[:2] == ["2", "00:01:01.500 --> 00:01:15.250"] and len(blocks) == 2
    sentences = (SentenceSpan(9.0, 20.0, 0.3, "second"), SentenceSpan(0.0, 9.0, 0.2, "first"))
    said = FORMATS["webvtt"](Results([hit(sentences=sentences)]), "q")
    assert said.index("first (0.20)") < said.index("second (0.30)")
    said = FORMATS["webvtt"](
        Results([hit(sentences=(sentences[0], SentenceSpan(0.0, 1.0, -0.2, "third", False)))]), "q"
    )
    assert "second" in said and "third" not in said
    assert FORMATS["webvtt"](Results(), "q") == "WEBVTT\n"


def test_a_table_has_a_line_for_each_track_each_of_several_sentences_and_each_copy():
    sentences = (SentenceSpan(0.0, 9.0, 0.2, "first\x1b[31m"), SentenceSpan(9.0, 3700.0, 0.3, "second"))
    sentences += (SentenceSpan(3700.0, 3701.0, -0.1, "third", False),)
    lines = FORMATS["table"](Results([hit(sentences=sentences), hit(2, ODD, title=None)]), "q").splitlines()
    assert lines[0].split() == ["1", "12.500", "+2.5", "sd", "1:01-1:15", "A", "-->", "B", "2", "-", "Blå", "<i>"]
    assert lines[1].split() == ["0:00-0:09", "first", "[31m"] and lines[2].split() == ["0:09-1:01:40", "second"]
    assert lines[3].split() == ["not", "heard", "third"]
    assert len(lines) == 5 and all(line.isprintable() for line in lines)
    copied = FORMATS["table"](Results([hit(copies=("a/b.ogg", ODD)), hit(2)]), "q").splitlines()
    assert len(copied) == 4 and copied[1].split() == ["same", "recording", "a/b.ogg"] and copied[2].isprintable()
    assert FORMATS["table"](Results(), "q") == ""


@pytest.mark.parametrize(("seconds", "shown", "cue"), [(0, "0:00", "00:00:00.000"), (59.9996, "0:59", "00:01:00.000")])
def test_clocks(seconds, shown, cue):
    assert clock(seconds) == shown and clock(seconds, hours=True) == cue
    assert clock(3600) == "1:00:00" and clock(36_000, hours=True) == "10:00:00.000"
