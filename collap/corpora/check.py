"""Check captions: against the times of their track, against what is measured of it, and against one another.

A contradiction is a time that cannot be; an untrue statement is one that a measurement refutes: a tempo, a length, or a
silence. What no measurement here can tell, such as an instrument, is not looked at.

Dimensions: `S` sections.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .features import SILENCE_DB
from .tracks import Caption, Section

SLACK_SECONDS = 0.5  # by which a section may outlast its track
SLACK_SAID = 1.5  # a clock time is said in whole seconds
OVERLAP_SECONDS = 0.05  # by which sections may overlap: rounding
COVERED = 0.95  # share of the track that the sections of a caption that covers it have
# As tempi are compared in MIR ("accuracy 2" of Gouyon et al., 2006), with more tolerance: texts round.
TEMPO_RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)
TEMPO_TOLERANCE = 0.06
LENGTH_TOLERANCE, LENGTH_SECONDS = 0.03, 3.0  # the larger of them; of a length said in whole minutes:
MINUTE_SECONDS = 45.0
CLOCK = re.compile(r"\b(\d{1,2}):([0-5]\d)\b")
TEMPO = re.compile(r"\b(\d{2,3}(?:\.\d+)?)\s*(?:bpm\b|beats (?:per|a) minute)", re.IGNORECASE)
LASTING = r"\b(?:lasts?|lasting|length of|duration of|runs? for|runtime of|long at)\s+(?:about |around |roughly |of )*"
LENGTH_CLOCK = re.compile(rf"{LASTING}(\d{{1,2}}):([0-5]\d)\b", re.IGNORECASE)
LENGTH_WORDS = re.compile(
    rf"{LASTING}(\d+(?:\.\d+)?)[ -](minutes?|seconds?)(?: and (\d+) seconds?)?"
    r"|\b(\d+(?:\.\d+)?)[ -](minute|second)s?(?:[ -]long)? (?:song|track|piece|recording)",
    re.IGNORECASE,
)
SILENT = re.compile(r"\b(?:is|are|falls|goes|complete(?:ly)?|total(?:ly)?) silen(?:t|ce)\b|\bwithout a sound\b", re.I)
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
ENGLISH_SHARE = 0.15  # of a text, that these words take; of English prose they take 30 to 50 %
COMMON_WORDS = (
    "the of and a to in is it that was for on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over "
    "did down only way find use may long little very after before part again"
)
ENGLISH_WORDS = frozenset(COMMON_WORDS.split())


def impossible_times(sections: Sequence[Section], seconds: float) -> list[str]:
    """Return what contradicts the length of a track, or one another, in the times of S sections; one line for each."""
    found = []
    for number, one in enumerate(sections, start=1):
        if not 0 <= one.start < one.end:
            found.append(f"section {number}: starts at {one.start:.1f} s and ends at {one.end:.1f} s")
        elif one.end > seconds + SLACK_SECONDS:
            found.append(f"beyond the end: section {number} ends at {one.end:.1f} s, the track at {seconds:.1f} s")
    for number, (one, after) in enumerate(itertools.pairwise(sections), start=2):
        if after.start < one.start:
            found.append(
                f"descending: section {number} starts at {after.start:.1f} s, the one before at {one.start:.1f} s"
            )
        elif after.start < one.end - OVERLAP_SECONDS:
            found.append(
                f"overlap: section {number} starts at {after.start:.1f} s, the one before ends at {one.end:.1f} s"
            )
    return found


def times_beyond(text: str, seconds: float) -> list[str]:
    """Return the clock times such as 4:31 that a text says and that lie beyond the end of its track."""
    said = [(match[0], 60 * int(match[1]) + int(match[2])) for match in CLOCK.finditer(text)]
    return [
        f"beyond the end: says {one}, the track ends at {seconds:.1f} s"
        for one, at in said
        if at > seconds + SLACK_SAID
    ]


def covered_share(sections: Sequence[Section], seconds: float) -> float:
    """Return the share of a track that S sections cover, each moment counted once."""
    covered, reached = 0.0, 0.0
    for one in sorted(sections, key=lambda one: one.start):
        start, end = max(one.start, reached), min(one.end, seconds)
        if end > start:
            covered, reached = covered + end - start, end
    return covered / seconds if seconds > 0 else 0.0


def untrue_tempi(text: str, tempo: float | None) -> list[str]:
    """Return the tempi that a text says and that the measured one refutes; none where no tempo is measured."""
    said = [float(match[1]) for match in TEMPO.finditer(text)] if tempo else []
    return [f"tempo: says {one:g} BPM, measured {tempo:.0f}" for one in said if not _is_tempo(one, tempo)]


def _is_tempo(said: float, measured: float) -> bool:
    return any(abs(said / (ratio * measured) - 1) <= TEMPO_TOLERANCE for ratio in TEMPO_RATIOS)


def untrue_lengths(text: str, seconds: float) -> list[str]:
    """Return the lengths of the whole track that a text says and that are not its own."""
    said = [(match[0], 60.0 * int(match[1]) + int(match[2]), 1.0) for match in LENGTH_CLOCK.finditer(text)]
    for match in LENGTH_WORDS.finditer(text):
        number, unit, rest = match[1] or match[4], match[2] or match[5], match[3]
        scale = 60.0 if unit.lower().startswith("minute") else 1.0
        slack = MINUTE_SECONDS if scale == 60 and not rest else 1.0
        said.append((match[0], float(number) * scale + float(rest or 0), slack))
    tolerance = max(LENGTH_TOLERANCE * seconds, LENGTH_SECONDS)
    return [
        f"length: says {' '.join(words.split())!r}, measured {seconds:.1f} s"
        for words, length, slack in said
        if abs(length - seconds) > max(tolerance, slack)
    ]


def untrue_silence(sections: Sequence[Section], loudness: Sequence[float]) -> list[str]:
    """Return which of S sections is said to be silent and is not, or is silent and not said to be.

    Args:
        loudness: RMS of each section in dB of full scale.
    """
    found = []
    for number, (one, level) in enumerate(zip(sections, loudness, strict=True), start=1):
        is_silent, says = level < SILENCE_DB, bool(SILENT.search(one.text))
        if one.text and is_silent != says:
            told = "silent, and is not" if says else "no silence, and is silent"
            found.append(f"silence: section {number} is said to be {told} ({level:.0f} dB)")
    return found


def is_english(text: str) -> bool:
    """Tell whether a text is English, by its share of common English words; ten words or more are needed to tell."""
    words = [word.lower() for word in WORD.findall(text)]
    return len(words) < 10 or sum(word in ENGLISH_WORDS for word in words) >= ENGLISH_SHARE * len(words)


@dataclass(frozen=True)
class CaptionCheck:
    """Hold what was found in a caption.

    Attributes:
        contradictions: times that cannot be.
        untrue: statements that a measurement refutes.
    """

    words: int
    sections: int
    covered: float
    contradictions: list[str]
    untrue: list[str]
    is_english: bool


def check_caption(caption: Caption, text: str, seconds: float, measures: dict) -> CaptionCheck:
    """Check a caption of a track.

    Args:
        text: the caption as one text.
        seconds: length of the track.
        measures: of the track; `tempo` in BPM or None, and `sections`: a list of dicts with `start`, `end` and
            `loudness` of the stretches that were measured.
    """
    levels = {(one["start"], one["end"]): one["loudness"] for one in measures.get("sections", [])}
    measured = [one for one in caption.sections if (one.start, one.end) in levels]
    untrue = [
        *untrue_tempi(text, measures.get("tempo")),
        *untrue_lengths(caption.overview, seconds),
        *untrue_silence(measured, [levels[one.start, one.end] for one in measured]),
    ]
    return CaptionCheck(
        words=len(text.split()),
        sections=len(caption.sections),
        covered=covered_share(caption.sections, seconds),
        contradictions=[*impossible_times(caption.sections, seconds), *times_beyond(text, seconds)],
        untrue=untrue,
        is_english=is_english(text),
    )


@dataclass
class CaptionTotals:
    """Count what was found in the captions of a data set; texts are counted, and not kept.

    Attributes:
        words, sections: of each caption.
        covering, contradicting, not_english, repeated: number of captions that cover their track, contradict it, are
            not English, or are word for word that of another.
        untrue: kind of statement (`tempo`, `length`, `silence`) -> number of captions with one that is refuted.
        untrue_examples: some of these, with their track.
        vocabulary: how often each word is there.
    """

    words: list[int] = field(default_factory=list)
    sections: list[int] = field(default_factory=list)
    covering: int = 0
    contradicting: int = 0
    not_english: int = 0
    repeated: int = 0
    untrue: Counter = field(default_factory=Counter)
    untrue_examples: list[str] = field(default_factory=list)
    vocabulary: Counter = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)

    def add(self, track_id: str, text: str, check: CaptionCheck) -> None:
        """Count a caption that is kept."""
        self.words.append(check.words)
        self.sections.append(check.sections)
        self.covering += check.covered >= COVERED
        self.not_english += not check.is_english
        self.untrue.update({line.partition(":")[0] for line in check.untrue})
        self.untrue_examples += [f"{track_id}: {line}" for line in check.untrue][
            : max(0, 20 - len(self.untrue_examples))
        ]
        self.vocabulary.update(word.lower() for word in WORD.findall(text))
        digest = hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=12).digest()
        self.repeated += digest in self.seen
        self.seen.add(digest)

    def figures(self) -> dict:
        """Return what is said of them, for JSON."""
        count = max(len(self.words), 1)
        return {
            "captions": len(self.words),
            "mean_words": round(sum(self.words) / count, 2),
            "mean_sections": round(sum(self.sections) / count, 2),
            "cover_the_track": round(self.covering / count, 4),
            "contradicting_dropped": self.contradicting,
            "untrue": dict(sorted(self.untrue.items())),
            "untrue_examples": self.untrue_examples,
            "not_english": self.not_english,
            "repeated": self.repeated,
            "vocabulary": len(self.vocabulary),
            "said_once": sum(number == 1 for number in self.vocabulary.values()),
        }
