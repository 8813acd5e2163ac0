"""Cut a description into what it says one after the other: lines, sections with their times, or sentences."""

import itertools
import re
from collections.abc import Mapping

# A section of a caption by FUTGA (arXiv 2407.20445), in both of its dialects: "**0-18% - Intro:**", "**0-16:** Intro".
DASH = r"\s*[-\u2013\u2014]\s*"
SECTION_HEADER = re.compile(
    rf"^\s*\*\*\s*\d{{1,3}}\s*%?{DASH}\d{{1,3}}\s*%?(?:\s*:|{DASH})?[^*\n]*\*\*.*$", re.MULTILINE
)
MARKS = re.compile(r"\*\*|^\s*[-*\u2022]\s+|^\s*#+\s*", re.MULTILINE)  # of Markdown
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[\u3002\uff01\uff1f])\s*")  # of Chinese and Japanese, too
# After these, or an initial, a full stop ends no sentence.
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|\d+|e\.g|i\.e|etc|mr|mrs|dr|st|no|vs|feat|ft|approx)\.$", re.IGNORECASE
)


def cut_at_sentences(text: str) -> list[str]:
    """Cut a text after its full stops, but for those of abbreviations and initials."""
    parts, start = [], 0
    for match in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[start : match.start()].rstrip("\"')]")):
            parts.append(text[start : match.end()])
            start = match.end()
    return [*parts, text[start:]]


def split_sentences(text: str) -> list[str]:
    """Cut a text into parts that each describe one thing, in their order.

    A caption with two or more section headers of FUTGA is cut at these, what stands before them is one part; a text of
    several lines is cut into its lines; any other into its sentences. No word is lost.

    Returns:
        At least one part, none of them blank.
    """
    starts = [match.start() for match in SECTION_HEADER.finditer(text)]
    if len(starts) > 1:
        edges = [0, *starts, len(text)]
        parts = [text[start:end] for start, end in itertools.pairwise(edges)]
    elif len(text.strip().splitlines()) > 1:
        parts = text.splitlines()
    else:
        parts = cut_at_sentences(text)
    parts = [" ".join(MARKS.sub(" ", part).split()) for part in parts]
    return [part for part in parts if part] or [text.strip()]


def list_sentences(text: str | list, name: str) -> list[str]:
    """Return the sentences of one text: of a string as [`split_sentences`] finds them, of a list its own.

    Args:
        text: a string, or a list of sentences or of sections, dicts with a `text` (other entries, such as `start` and
            `end`, do not matter here).
        name: of the text, for messages.

    Raises:
        ValueError: names the first that is empty or no string.
    """
    if isinstance(text, str):
        return split_sentences(text)
    sentences = [one.get("text") if isinstance(one, Mapping) else one for one in text]
    if not sentences:
        raise ValueError(f"{name} has no sentences; expected at least one")
    for number, one in enumerate(sentences):
        if not isinstance(one, str):
            raise ValueError(
                f"{name}[{number}] is a {type(text[number]).__name__}; expected a string, or a section with a text"
            )
        if not one.strip():
            raise ValueError(f"{name}[{number}] is empty; expected a description")
    return sentences
