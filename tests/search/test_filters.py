"""The little language of filters: what it matches, and what it says of what it cannot read."""

import numpy as np
import pyarrow as pa
import pytest

from collap.search.filters import FilterError, matching, parse_filter

TRACKS = pa.table(
    {
        "title": ["A", "Straße", None, "or"],
        "artist": ["Bob", "bob", "Ann", "Zoë"],
        "album": pa.array([None, None, "x 'y'", '"'], pa.string()),
        "year": pa.array([1970, None, 1999, 2001], pa.int32()),
        "genre": ["Jazz", "jazz fusion", None, "folk"],
        "seconds": [10.0, 200.0, 300.0, 60.0],
        "path": [b"a/b.mp3", b"\xff.ogg", b"c d", b"a/(1).mp3"],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("genre=jazz", [0]),
        ("GENRE ~ JAZZ", [0, 1]),
        ("not genre = jazz", [1, 3]),  # of the third nothing is known
        ("genre != jazz", [1, 3]),
        ("not not genre=jazz", [0]),
        ("year>=1970 AND year<1999", [0]),
        ("year > 1970 and year <= 1999", [2]),
        ("not year = 1970", [2, 3]),
        ("year = 1970.0", [0]),
        ("artist = BOB or artist = ann and seconds > 1000", [0, 1]),  # `and` binds closer
        ("(artist = BOB or artist = ann) and not seconds < 100", [1, 2]),
        ("title = STRASSE", [1]),
        ("title = 'or'", [3]),
        ("title = or", [3]),
        ("album = 'x \\'y\\''", [2]),
        ('album = "\\""', [3]),
        ("artist = 'ZOE\u0308'", [3]),  # composed and decomposed letters are alike
        ("path ~ '.ogg' or path ~ \"(1)\"", [1, 3]),
        ("album = x or year = 1970", [0]),  # unknown or true is true
        ("not (album = x or year = 1970)", [2, 3]),
        ("genre = polka", []),
    ],
)
def test_what_a_filter_matches(text, expected):
    assert matching(TRACKS, text, None, None).tolist() == expected


def test_lengths_are_bounds_of_their_own():
    assert matching(TRACKS, None, 60.0, 200.0).tolist() == [1, 3]
    assert matching(TRACKS, "genre ~ jazz", None, 199.0).tolist() == [0]
    assert matching(TRACKS, None, None, None).tolist() == [0, 1, 2, 3]
    assert len(matching(TRACKS, None, 1000.0, None)) == 0


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("yeer=3", 0, "'yeer', which is no field; did you mean 'year'?"),
        ("year ~ 3", 5, "year is a number; expected = != < <= > >="),
        ("genre < 3", 6, "genre is a text; expected = != ~"),
        ("year = abc", 7, "found 'abc'; expected a number"),
        ("year = nan", 7, "expected a number"),
        ("(year = 1", 9, "the filter ends; expected ')'"),
        ("year = 1 genre = 2", 9, "found 'genre'; expected 'and' or 'or'"),
        ("year = 1)", 8, "found ')'"),
        ("title = 'abc", 8, "this quote is not closed"),
        ("year", 4, "the filter ends; expected one of ="),
        ("genre =", 7, "the filter ends; expected a value for genre"),
        ("not", 3, "expected a field"),
        ("  ", 0, "is empty"),
        ("year !1", 5, "expected an operator, found '!'"),
        ("genre = (jazz)", 8, "found '('; expected a value"),
        ("(" * 101 + "year=1" + ")" * 101, 100, "nested more than 100 deep"),
        ("__import__('os')", 0, "which is no field"),
    ],
)
def test_a_mistake_is_pointed_at(text, place, said):
    with pytest.raises(FilterError) as raised:
        parse_filter(text)
    problem, shown, arrow = str(raised.value).split("\n")
    assert said in problem and shown == f"  {text}" and arrow == f"{' ' * (place + 2)}^"


def test_no_text_breaks_the_reader():
    """Any characters are a filter or a `FilterError`, and what control characters they hold is not shown."""
    random = np.random.default_rng(0)
    pieces = ["year", "genre", "and", "not", "(", ")", "=", "~", "<", "'", '"', "\\", "3", "\n", "\x1b", "é", "!"]
    readable = 0
    for _ in range(3000):
        text = " ".join(random.choice(pieces, size=random.integers(1, 6)))
        try:
            matching(TRACKS, text, None, None)
            readable += 1
        except FilterError as error:
            assert "\x1b" not in str(error) and str(error).count("\n") == 2
    assert readable > 0
