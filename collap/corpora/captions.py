"""Read what a captioner writes into one schema, and join it to the long caption that is trained on.

An answer is read whatever its form: FUTGA's headers with percents or seconds, JSON, lists of Markdown, sentences with
clock times. What gives no times, or times that contradict each other, is not guessed at: it stays unread.
"""

import itertools
import re

from .caption_json import load_json, overview_of, read_json
from .caption_lines import Claim, Moment, plain, read_lines
from .synthetic.captions import clock
from .tracks import Caption, Section

THOUGHTS = re.compile(r"^.*</think>|<think>.*$", re.DOTALL)  # of models that reason first; perhaps cut off
LOOKS_LIKE_JSON = re.compile(r"[\[{]\s*(?:\"[^\"\n]{1,40}\"\s*:|\{)")
SLACK_SECONDS, SLACK_SHARE = 2.0, 0.02  # the larger of them is how far times may miss the end, or each other
FIRST_WORD = re.compile(r"^(?:The|An?|It|This|Here)\b")  # which stand in the middle of a line after its times
LEAST_LETTERS, LEAST_SHARE = 12, 0.6  # of what is words; the share is that of letters and spaces


def parse_caption(text: str, seconds: float, window_seconds: float = 0.0) -> Caption | None:
    """Return what [`read_caption`] reads; None where that is nothing."""
    try:
        return read_caption(text, seconds, window_seconds)
    except ValueError:
        return None


def read_caption(text: str, seconds: float, window_seconds: float = 0.0) -> Caption:
    """Read an answer that describes a track and names its sections.

    Numbers without a unit are percents, as in FUTGA, unless one is above 100 or the last one is nearer to the track's
    seconds than to 100.

    Args:
        seconds: of the track.
        window_seconds: what percents are of, from the beginning; 0 for all of the track.

    Returns:
        The overview, which may be empty, and one or more sections, ascending, within the track, none over another.

    Raises:
        ValueError: says in one line why it cannot be read.
    """
    text = THOUGHTS.sub("", text)
    overview, claims = read_json(text) if LOOKS_LIKE_JSON.search(text) else read_lines(text)
    if not claims:
        raise ValueError("names no section with its times")
    heard = min(seconds, window_seconds) if window_seconds else seconds
    sections = _check_times(_place(claims, seconds, heard), seconds)
    words = " ".join([overview, *(f"{one.label} {one.text}" for one in sections)])
    if not is_prose(words):
        raise ValueError("is no description in words")
    return Caption(overview=overview, sections=sections)


def _place(claims: list[Claim], seconds: float, heard: float) -> list[Section]:
    """Return sections in seconds; percents are of `heard` seconds, as are numbers without a unit that look like it."""
    bare = [moment.value for one in claims for moment in (one.start, one.end) if moment and not moment.unit]
    is_percent = bool(bare) and bare[-1] <= 100 >= max(bare) and abs(bare[-1] - 100) <= abs(bare[-1] - seconds)

    def place(moment: Moment) -> float:
        if moment.unit == "%" and moment.value > 100:
            raise ValueError(f"a section is at {moment.value:g} percent")
        return moment.value * heard / 100 if moment.unit == "%" or (is_percent and not moment.unit) else moment.value

    starts = [place(one.start) for one in claims]
    ends = [
        place(one.end) if one.end else following for one, following in zip(claims, [*starts[1:], seconds], strict=True)
    ]
    return [Section(*times, one.label, one.text) for one, *times in zip(claims, starts, ends, strict=True)]


def _check_times(sections: list[Section], seconds: float) -> list[Section]:
    """Return sections cut at the end of the track and where the next one starts, if little is to be cut.

    Raises:
        ValueError: names the first section whose times contradict the track or the one before it.
    """
    slack = max(SLACK_SECONDS, SLACK_SHARE * seconds)
    for number, one in enumerate(sections, start=1):
        if not one.start < one.end:
            raise ValueError(f"section {number} starts at {one.start:.1f} s and ends at {one.end:.1f} s")
        if one.start >= seconds or one.end > seconds + slack:
            raise ValueError(f"section {number} ends at {one.end:.1f} s, the track at {seconds:.1f} s")
        one.end = min(one.end, seconds)
    for number, (one, after) in enumerate(itertools.pairwise(sections), start=2):
        if after.start < one.end - slack or after.start <= one.start:
            raise ValueError(f"section {number} starts at {after.start:.1f} s, before the one before it has ended")
        one.end = min(one.end, after.start)
    for one in sections:
        one.start, one.end = round(one.start, 3), round(one.end, 3)
    return sections


def read_text(answer: str) -> str:
    """Read an answer that describes something without times, as one line.

    Raises:
        ValueError: it holds no words.
    """
    answer = THOUGHTS.sub("", answer)
    if LOOKS_LIKE_JSON.search(answer):
        found = load_json(answer)
        answer = overview_of(found) if isinstance(found, dict) else ""
    text = plain(answer)
    if not is_prose(text):
        raise ValueError("is no description in words")
    return text


def is_prose(text: str) -> bool:
    """Tell whether a text is made of words, in any script, rather than of signs, digits or broken characters."""
    letters = sum(character.isalpha() for character in text)
    share = (letters + sum(character.isspace() for character in text)) / max(len(text), 1)
    return letters >= LEAST_LETTERS and share >= LEAST_SHARE and "\ufffd" not in text


def caption_text(caption: Caption, seconds: float, with_times: bool = True) -> str:
    """Join a caption to a long text: a line for the whole track, if anything is said of it, and one for each section.

    `collap.data.sections.section_sentences` finds the line of each section again, and `without_times` its words.

    Args:
        seconds: of the track, where its sections end at the latest.
        with_times: whether a line begins with the times of its section.
    """
    lines = [plain(caption.overview)] if caption.overview.strip() else []
    for one in caption.sections:
        told = _section_line(one)
        times = f"From {clock(one.start)} to {clock(min(one.end, seconds))}, " if with_times else ""
        lines.append(times + told if times else told[0].upper() + told[1:])
    return "\n".join(lines)


def _section_line(section: Section) -> str:
    """Return what is said of a section, with its label where the text does not name it."""
    text, label = FIRST_WORD.sub(lambda word: word[0].lower(), plain(section.text)), plain(section.label)
    is_letter = len(label) <= 2 and label.isupper()  # which sections that sound alike share
    label = f"part {label}" if is_letter else label.lower()
    if text and (not label or label.lower() in text.lower()):
        return text
    name = label if is_letter else f"the {label}" if label else "a part of the track"
    return f"{name}: {text}" if text else f"{name}."
