"""Sections of songs from text files, as HarmonixSet has them."""

import pytest

from collap.data.segment_files import read_segments


def written(folder, text: str):
    (folder / "song.txt").write_text(text, encoding="utf-8")
    return folder / "song.txt"


@pytest.mark.parametrize("mark", [" ", "\t", "  "])
def test_a_line_is_a_time_and_a_label(tmp_path, mark):
    path = written(
        tmp_path, f"0.5{mark}intro\n\n8.495568{mark}verse slow\n20{mark}silence\n22{mark}chorus\n30.25{mark}end\n"
    )
    assert read_segments(path) == [
        {"label": "intro", "start": 0.5, "end": 8.495568},
        {"label": "verse slow", "start": 8.495568, "end": 20.0},
        {"label": "chorus", "start": 22.0, "end": 30.25},
    ]


def test_without_an_end_the_last_section_ends_with_the_audio(tmp_path):
    path = written(tmp_path, "\ufeff0 intro\n4 verse\n4 verse2\n")
    assert read_segments(path, 9.0) == [
        {"label": "intro", "start": 0.0, "end": 4.0},
        {"label": "verse2", "start": 4.0, "end": 9.0},
    ]
    for seconds in (None, 4.0):
        with pytest.raises(ValueError, match="the last line is 'verse2'; expected 'end'"):
            read_segments(path, seconds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 intro\nverse 8\n", "song.txt: line 2 is 'verse 8'; expected seconds and a label"),
        ("0 intro\n8\n", "line 2 is '8'; expected"),
        ("0 intro\nnan verse\n", "line 2 is 'nan verse'"),
        ("-1 intro\n", "line 1 is '-1 intro'"),
        ("5 intro\n4 verse\n", "line 2 starts at 4 s, the one before at 5 s"),
        ("", "has no section"),
        ("0 silence\n9 end\n", "has no section"),
    ],
)
def test_what_is_malformed_is_named_in_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_segments(written(tmp_path, text))
    assert "\n" not in str(raised.value)
