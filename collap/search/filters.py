"""The little language in which a search is limited to some tracks: `year >= 1970 and (genre = jazz or genre ~ soul)`.

    filter      = term { "or" term }
    term        = factor { "and" factor }
    factor      = "not" factor  |  "(" filter ")"  |  FIELD OPERATOR VALUE
    OPERATOR    = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~" (contains)
    VALUE       = a word or a number, or anything in single or double quotes, where \\ stands before a quote

Upper and lower case are alike. What a track's tags do not say is unknown, and the unknown never matches, with `not`
before it neither. Nothing is evaluated but this grammar.
"""

import operator
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collap.files import nearest

TEXTS = ("title", "artist", "album", "genre", "path")
NUMBERS = ("year", "seconds")
FIELDS = (*TEXTS, *NUMBERS)
COMPARISONS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "~": operator.contains,
}
TOKEN = re.compile(
    r"\s*(?:(?P<mark>[()]|[<>!]=|[=<>~])|(?P<quoted>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')|(?P<word>[^\s()<>=!~\"']+))"
)
MAX_DEPTH = 100  # of parentheses and nots


class FilterError(ValueError):
    """A filter that cannot be read; its message has a line for the filter and one that points at the place."""

    def __init__(self, text: str, place: int, problem: str):
        shown = "".join(one if one.isprintable() else " " for one in text)
        super().__init__(f"filter: {problem}\n  {shown}\n  {' ' * place}^")


@dataclass(frozen=True)
class Token:
    """A word, a quoted text or a mark of a filter, and where it begins; the kind `end` stands behind the last."""

    kind: str
    text: str
    place: int

    def says(self, word: str) -> bool:
        """Tell whether this is a word of the language, in upper or lower case."""
        return self.kind == "word" and self.text.lower() == word


def tokens_of(text: str) -> list[Token]:
    """Cut a filter into tokens.

    Raises:
        FilterError: points at what is none.
    """
    found, place = [], 0
    while text[place:].strip():
        match = TOKEN.match(text, place)
        if match is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            problem = (
                "this quote is not closed" if text[place] in "\"'" else f"expected an operator, found {text[place]!r}"
            )
            raise FilterError(text, place, problem)
        kind = match.lastgroup
        word = match[kind]
        if kind == "quoted":
            word = re.sub(r"\\(.)", r"\1", word[1:-1])
        found.append(Token(kind, word, match.start(kind)))
        place = match.end()
    return [*found, Token("end", "", len(text))]


def folded(text: str) -> str:
    """Return a text as it is compared: composed characters, no upper case."""
    return unicodedata.normalize("NFC", text).casefold()


Condition = Callable[[pa.Table], pa.Array]  # of a table of tracks: of each row true, false or unknown (null)


class FilterParser:
    """Read a filter; `parse_filter` is what to call."""

    def __init__(self, text: str):
        self.text, self.tokens, self.depth = text, tokens_of(text), 0

    def take(self) -> Token:
        """Go past a token and return it."""
        token = self.tokens[0]
        if token.kind != "end":
            self.tokens.pop(0)
        return token

    def fail(self, token: Token, expected: str) -> FilterError:
        """Return the error that something else was expected here."""
        found = "the filter ends" if token.kind == "end" else f"found {token.text!r}"
        return FilterError(self.text, token.place, f"{found}; expected {expected}")

    def parse(self) -> Condition:
        """Read all of it."""
        condition = self.joined("or", pc.or_kleene, lambda: self.joined("and", pc.and_kleene, self.factor))
        if self.tokens[0].kind != "end" and self.depth == 0:
            raise self.fail(self.tokens[0], "'and' or 'or'")
        return condition

    def joined(self, word: str, join: Callable, part: Callable[[], Condition]) -> Condition:
        """Read parts with a word between them."""
        condition = part()
        while self.tokens[0].says(word):
            self.take()
            condition = _both(join, condition, part())
        return condition

    def factor(self) -> Condition:
        """Read a comparison, or what `not` or a parenthesis begins."""
        token = self.take()
        if not (token.says("not") or (token.kind == "mark" and token.text == "(")):
            return self.comparison(token)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FilterError(self.text, token.place, f"is nested more than {MAX_DEPTH} deep")
        if token.says("not"):
            inner = self.factor()
            condition = lambda table: pc.invert(inner(table))  # noqa: E731
        else:
            condition = self.parse()
            if (closing := self.take()).text != ")" or closing.kind != "mark":
                raise self.fail(closing, "')', 'and' or 'or'")
        self.depth -= 1
        return condition

    def comparison(self, field: Token) -> Condition:
        """Read a field, an operator and a value."""
        name = field.text.lower()
        if field.kind != "word" or name not in FIELDS:
            if field.kind != "word":
                raise self.fail(field, f"a field: {', '.join(FIELDS)}")
            problem = f"found {field.text!r}, which is no field; {nearest(name, FIELDS)}"
            raise FilterError(self.text, field.place, problem)
        sign = self.take()
        if sign.kind != "mark" or sign.text not in COMPARISONS:
            raise self.fail(sign, f"one of {' '.join(COMPARISONS)} after {name}")
        is_number = name in NUMBERS
        if (sign.text == "~" and is_number) or (sign.text[0] in "<>" and not is_number):
            known = "= != < <= > >=" if is_number else "= != ~"
            raise FilterError(
                self.text, sign.place, f"{name} is a {'number' if is_number else 'text'}; expected {known}"
            )
        value = self.take()
        if value.kind not in ("word", "quoted"):
            raise self.fail(value, f"a value for {name}")
        return compared(name, sign.text, self.number(value) if is_number else folded(value.text))

    def number(self, token: Token) -> float:
        """Read a number."""
        try:
            number = float(token.text)
        except ValueError:
            number = np.nan
        if not np.isfinite(number):
            raise self.fail(token, "a number")
        return number


def _both(join: Callable, first: Condition, second: Condition) -> Condition:
    return lambda table: join(first(table), second(table))


def compared(name: str, sign: str, value: float | str) -> Condition:
    """Return the condition that a column compares so with a value; unknown where the column has none."""
    compare = COMPARISONS[sign]

    def condition(table: pa.Table) -> pa.Array:
        column = table[name]
        if name in NUMBERS:
            values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # NaN where there is none
            return pa.array(compare(values, value), mask=np.isnan(values))
        known = column.combine_chunks().dictionary_encode()
        texts = [os.fsdecode(one) if isinstance(one, bytes) else one for one in known.dictionary.to_pylist()]
        matches = pa.array([compare(folded(one), value) for one in texts], pa.bool_())
        return matches.take(known.indices)

    return condition


def parse_filter(text: str) -> Condition:
    """Read a filter, as the top of this file says.

    Raises:
        FilterError: says what was expected, and points at the place.
    """
    if not text.strip():
        raise FilterError(text, 0, "is empty; expected something like year >= 1970 and genre = jazz")
    return FilterParser(text).parse()


def matching(tracks: pa.Table, filters: str | None, min_seconds: float | None, max_seconds: float | None) -> np.ndarray:
    """Return the numbers of the tracks that a filter matches and that are so long, (A,); possibly none.

    Args:
        tracks: with the columns [`FIELDS`].
        filters: None for all.
        min_seconds, max_seconds: None for any.
    """
    bounds = ((">=", min_seconds), ("<=", max_seconds))
    conditions = [compared("seconds", sign, bound) for sign, bound in bounds if bound is not None]
    conditions += [] if filters is None else [parse_filter(filters)]
    matches = np.ones(len(tracks), dtype=bool)
    for condition in conditions:
        matches &= pc.fill_null(condition(tracks), False).to_numpy(zero_copy_only=False)
    return np.flatnonzero(matches)
