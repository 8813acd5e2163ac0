"""Find the sections that a captioner names line by line: headers of FUTGA, lists of Markdown, sentences with times.

What a section is said to be is a [`Claim`]: its times stay as they are written until it is known what they are of.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from collap.data.sections import without_times

CLOCK = r"(?:\d{1,2}:)?\d{1,3}:\d{2}(?:\.\d+)?"  # 0:16, 1:02:05, 00:16.5
MOMENT = rf"(?:{CLOCK}|\d{{1,4}}(?:\.\d+)?(?:\s*(?:%|percent\b|s(?:ec(?:ond)?s?)?\b))?)"
DASH = r"[-\u2013\u2014\u2212~]"
# The end is no part of a longer number, and both are no tempo.
SPAN = (
    rf"(?P<start>{MOMENT})\s*(?:{DASH}|to|until|till|through|and)\s*(?P<end>{MOMENT})"
    r"(?!\d|:\d|%)(?!\s*(?:bpm|hz|beats|bars)\b)"
)
LIST_MARK = re.compile(r"^\s*(?:>\s*)?(?:#{1,6}\s+|[-+*\u2022]\s+)?(?:\d{1,2}[.)]\s+)?")  # of Markdown
OPEN = r"^[\s*_\[(]*"
SPAN_FIRST = re.compile(
    rf"(?P<open>{OPEN})(?P<word>(?:from|between|at|times?:?)\s+)?{SPAN}(?P<rest>.*)$", re.IGNORECASE
)
LABEL_FIRST = re.compile(
    rf"^[\s*_]*(?P<label>[^\W\d_][^.!?\n:(\[]{{0,60}}?)(?P<open>[\s*_(\[:,|-]+){SPAN}(?P<rest>.*)$", re.IGNORECASE
)
TWO_CLOCKS = re.compile(rf"^[^\d]{{0,60}}(?P<start>{CLOCK})[^\d]{{1,60}}(?P<end>{CLOCK})", re.IGNORECASE)
START_FIRST = re.compile(
    rf"{OPEN}(?P<start>{CLOCK}|\d{{1,4}}(?:\.\d+)?\s*s(?:ec(?:ond)?s?)?\b)(?P<rest>.*)$", re.IGNORECASE
)
CLOSED = re.compile(r"^\s*(?:%|[)\]]|\*\*|:|[-\u2013\u2014|]\s|$)")  # what follows the times of a header
# "Intro:** It starts", "Intro: it starts", "Intro) - It starts", "Intro".
LABEL = re.compile(
    r"^(?P<label>[^.:!?\n*)\]]{1,60}?)\s*(?:\*\*[\s:]*|[)\]]\**\s*[:\u2013\u2014-]*|:\**|\s[-\u2013\u2014]\s|$)\s*(?P<text>.*)$"
)
NAMES = re.compile(
    r"\b(?:intro(?:duction)?|(?:pre-?|post-?)?chorus|verse|bridge|solo|outro|coda|breakdown|build-?up|drop|hook|"
    r"refrain|interlude|instrumental|ending)(?:\s+\d{1,2}\b)?",
    re.IGNORECASE,
)
ARTICLES = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)
CLOSING = re.compile(r"^(?:overall|in summary|in conclusion|to sum up|altogether)\b", re.IGNORECASE)
MARKUP = re.compile(r"\*\*|__|`+|^\s*(?:[-*\u2022+>]|#{1,6})\s+", re.MULTILINE)
MOST_LABEL_WORDS = 6


UNITS = {"": "", "%": "%", "percent": "%"} | dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s")
NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z%]*)")
MINUTES = re.compile(
    r"(?P<minutes>\d+(?:\.\d+)?)\s*m(?:in(?:ute)?s?)?\.?(?:\s*(?:and\s*)?(?P<seconds>\d+(?:\.\d+)?)\s*s(?:ec(?:ond)?s?)?)?"
)


class Moment(NamedTuple):
    """Hold a time as it is written: its number, and its unit, `s` or `%`, empty if none is given."""

    value: float
    unit: str


@dataclass
class Claim:
    """Hold what a captioner says of one section; `end` is None where the next section's start is meant."""

    start: Moment
    end: Moment | None
    label: str
    text: str


def read_moment(written: str) -> Moment:
    """Return the time that `1:02:05`, `0:16`, `16 s`, `2 min 30 s`, `18%` or `18` say; those of a clock in seconds.

    Raises:
        ValueError: it is none of these.
    """
    written = written.strip().lower()
    if re.fullmatch(CLOCK, written):
        value = 0.0
        for part in written.split(":"):
            value = value * 60 + float(part)
        return Moment(value, "s")
    if said := MINUTES.fullmatch(written):
        return Moment(60 * float(said["minutes"]) + float(said["seconds"] or 0), "s")
    said = NUMBER.fullmatch(written)
    if said is None or said[2] not in UNITS:
        raise ValueError(f"{written[:40]!r} is no time")
    return Moment(float(said[1]), UNITS[said[2]])


def read_span(found: re.Match) -> tuple[Moment, Moment]:
    """Return the times of a span; where only one of them has a unit it is that of both: `0-18%`."""
    start, end = read_moment(found["start"]), read_moment(found["end"])
    return start._replace(unit=start.unit or end.unit), end._replace(unit=end.unit or start.unit)


def plain(text: str) -> str:
    """Return a text in one line, without the marks of Markdown."""
    return " ".join(MARKUP.sub(" ", text).split())


def short_label(text: str) -> str:
    """Return a label as it stands in a list, such as `Verse 1`; empty if the text is longer than a label."""
    label = ARTICLES.sub("", plain(text)).strip(" :.,-\u2013\u2014()[]|\"'*_")
    return label if len(label.split()) <= MOST_LABEL_WORDS else ""


def known_label(text: str) -> str:
    """Return the first name of a section, such as `verse`, near the beginning of a sentence; empty if there is none."""
    found = NAMES.search(text[:80])
    return found[0].lower() if found else ""


def _label_and_text(content: str) -> tuple[str, str]:
    """Cut what follows the times of a header into a label and a text."""
    content = content.strip().lstrip("%)]*_:,.-\u2013\u2014|( \t")
    found = LABEL.match(content)
    if found and (label := short_label(found["label"])):
        return label, plain(found["text"])
    return known_label(content), plain(content)


def _span_first(line: str) -> Claim | None:
    found = SPAN_FIRST.match(line)
    if found is None:
        return None
    start, end = read_span(found)
    if found["word"]:  # a sentence: "From 0:12 to 0:31, the verse has drums."
        text = plain(found["rest"]).lstrip(")],:;. ")
        return Claim(start, end, known_label(text), text) if start.unit else None
    if not start.unit and not (found["open"].strip() or CLOSED.match(found["rest"])):
        return None  # "120-130 BPM"
    return Claim(start, end, *_label_and_text(found["rest"]))


def _label_first(line: str) -> Claim | None:
    found = LABEL_FIRST.match(line)
    if found is None:
        return None
    start, end = read_span(found)
    label, is_opened = short_label(found["label"]), any(mark in found["open"] for mark in "([*:")
    is_clock = ":" in found["start"]
    if not (is_clock or is_opened) or not (start.unit or NAMES.search(label)):
        return None
    after = found["rest"].lstrip(" )]*%")
    if label and (is_opened or not after) and CLOSED.match(after):
        return Claim(start, end, label, plain(after.lstrip("*_:,.-\u2013\u2014| \t")))
    return _sentence(line, start, end)  # "The verse (0:12 to 0:31) is played by drums."


def _sentence(line: str, start: Moment, end: Moment) -> Claim:
    text = plain(line)
    return Claim(start, end, known_label(text), without_times(text))


def _two_clocks(line: str) -> Claim | None:
    found = TWO_CLOCKS.match(plain(line))
    return _sentence(line, *read_span(found)) if found else None


def _start_first(line: str) -> Claim | None:
    found = START_FIRST.match(line)
    return Claim(read_moment(found["start"]), None, *_label_and_text(found["rest"])) if found else None


def _header(line: str) -> Claim | None:
    """Return what a line says of a section, if it gives the times of one."""
    line = LIST_MARK.sub("", line)
    return _span_first(line) or _label_first(line) or _two_clocks(line)


def read_lines(text: str) -> tuple[str, list[Claim]]:
    """Return what a text says of the whole, and of each section that it gives times of.

    A section's text is what follows its times, up to those of the next one. If no line has two times, lines that
    begin with one each begin a section.
    """
    for read in (_header, lambda line: _start_first(LIST_MARK.sub("", line))):
        overview, claims = _gather(text, read)
        if claims:
            break
    return plain("\n".join(line for line in overview if not _is_heading(line))), claims


def _is_heading(line: str) -> bool:
    """Tell whether a line only announces what comes: `**Functional Segments:**`, `## Structure`."""
    line = line.strip()
    is_marked = line.startswith("#") or line.rstrip("*_ ").endswith(":")
    return is_marked and len(line.split()) <= MOST_LABEL_WORDS + 1


def _gather(text: str, read) -> tuple[list[str], list[Claim]]:
    overview, claims, after_blank = [], [], False
    for line in text.splitlines():
        claim = read(line)
        if claim is not None:
            claims.append(claim)
        elif not claims or (after_blank and CLOSING.match(plain(line))):
            overview.append(line)
        elif line.strip():
            claims[-1].text = f"{claims[-1].text} {plain(line)}".strip()
        after_blank = not line.strip()
    return overview, claims
