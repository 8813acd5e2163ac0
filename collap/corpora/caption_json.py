"""Find the sections that a captioner names in JSON, in a fence of Markdown or not, even where its answer is cut off."""

import contextlib
import json
import re

from .caption_lines import SPAN, Claim, plain, read_moment, read_span

BEGINNING = re.compile(r"[\[{]\s*[\"{\[]")
TRAILING_COMMA = re.compile(r",(\s*[\]}])")
SPAN_ALONE = re.compile(rf"^\W*{SPAN}\W*$", re.I)
CLOSERS = {"{": "}", "[": "]"}
# Names that models give to what is asked for as `overview`, `sections`, `start`, `end`, `label`, `text`.
OVERVIEW = ("overview", "global", "summary", "general", "description", "caption", "global_caption", "text")
SECTIONS = ("sections", "segments", "functional_segments", "structure", "parts")
START, END = ("start", "start_time", "begin", "from"), ("end", "end_time", "stop", "to")
TIMES = ("time", "times", "timestamp", "timestamps", "time_range", "span", "range")
LABEL = ("label", "section", "segment", "name", "type", "title", "head", "func")
TEXT = ("text", "description", "caption", "content", "details")


def load_json(text: str) -> dict | list:
    """Return the first object or array of a text; where it is cut off, what is complete of it.

    Raises:
        ValueError: there is none.
    """
    beginning = BEGINNING.search(text)
    if beginning is None:
        raise ValueError("there is no JSON")
    written = text[beginning.start() :]
    try:
        for attempt in (written, TRAILING_COMMA.sub(r"\1", written)):
            with contextlib.suppress(ValueError):
                return json.JSONDecoder().raw_decode(attempt)[0]
        return json.loads(TRAILING_COMMA.sub(r"\1", complete_json(written)))
    except RecursionError as error:
        raise ValueError("its JSON has brackets in brackets without end") from error


def complete_json(written: str) -> str:
    """Close JSON that is cut off, after the last object or array that is whole.

    Raises:
        ValueError: none is whole.
    """
    stack, in_string, kept = [], False, None
    position = 0
    while position < len(written):
        mark = written[position]
        if in_string:
            position += mark == "\\"  # and what is escaped
            in_string = mark != '"'
        elif mark == '"':
            in_string = True
        elif mark in CLOSERS:
            stack.append(CLOSERS[mark])
        elif mark in "}]":
            if not stack or stack.pop() != mark:
                break
            kept = written[: position + 1] + "".join(reversed(stack))
        position += 1
    if kept is None:
        raise ValueError("no part of its JSON is whole")
    return kept


def read_json(text: str) -> tuple[str, list[Claim]]:
    """Return what an answer in JSON says of the whole, and of each section.

    Numbers that are called start and end are seconds, which the prompt asks for; those of `"0-18"` may be percents.

    Raises:
        ValueError: it is no JSON, or a section has no times that can be read.
    """
    found = load_json(text)
    if isinstance(found, list):
        return "", [_claim(one) for one in found]
    sections = next((found[name] for name in SECTIONS if isinstance(found.get(name), list | dict)), found)
    if isinstance(sections, dict):  # by their times: {"0-18": {"head": "Intro", "text": ...}}
        sections = [_with_time(key, value) for key, value in sections.items() if SPAN_ALONE.match(key)]
    return overview_of(found), [_claim(one) for one in sections]


def overview_of(found: dict) -> str:
    """Return what an object says of the whole; empty if nothing."""
    whole = next((found[name] for name in OVERVIEW if isinstance(found.get(name), str | dict)), "")
    return plain(_first(whole, TEXT) if isinstance(whole, dict) else whole)


def _with_time(key: str, value) -> dict:
    return {**(value if isinstance(value, dict) else {"text": value}), "time": key}


def _first(found: dict, names: tuple[str, ...]) -> str:
    return next((str(found[name]) for name in names if isinstance(found.get(name), str | int | float)), "")


def _claim(one) -> Claim:
    if not isinstance(one, dict):
        raise ValueError(f"a section is {str(one)[:40]!r}, expected an object with start and end")
    if span := SPAN_ALONE.match(_first(one, TIMES)):
        start, end = read_span(span)
    else:
        start, end = (read_moment(_first(one, names)) for names in (START, END))
        unit = start.unit or end.unit or "s"
        start, end = start._replace(unit=start.unit or unit), end._replace(unit=end.unit or unit)
    return Claim(start, end, plain(_first(one, LABEL)), plain(_first(one, TEXT)))
