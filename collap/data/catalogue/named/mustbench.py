"""MusTBench: 400 questions of when an instrument is first or last heard, and 250 of the intervals of a mood (Sony).

One table, `benchmarks/mustbench.parquet`, with the columns `id`, `track_id`, `task`, `category`, `qa_type`, `question`,
`answer`, `answers` and `split`. Read are the tasks whose answer is a time: TSG, `0:45`, and MTR, one or more intervals
`2:05-2:40`; what is chosen or described (LTR, TAD, GTO) is left out. As the values of `qa_type` are not published where
we could read them, the question's words say whether a sound is first or last heard; one that says neither is noted and
left out. That audio is called by its `track_id` is assumed, too.

A model of texts and audio takes no questions: `When does the electric guitar first start to play?` becomes the query
`the electric guitar`. `questions=true` keeps questions as they are.
"""

import re
from collections.abc import Iterator

from collap.data.records import FIRST, LAST, NamedSet, Record
from collap.data.set_folder import SetFolder, cell_list

COLUMNS = {"track_id", "task", "question", "answer", "answers"}
TIMED = ("TSG", "MTR")
TIME = r"(?:(\d+):)?(\d+):(\d{1,2}(?:\.\d+)?)"
INTERVAL = re.compile(rf"{TIME}\s*(?:[-\u2013\u2014~]|to)\s*{TIME}")
LATE = re.compile(
    r"\b(last|final|finally|stops?|stopped|ends?|ended|disappears?|exits?|fades?|ceases?|finish\w*|offset)\b"
)
EARLY = re.compile(
    r"\b(first|starts?|started|begins?|began|appears?|enters?|entrance|entry|introduced|comes? in|onset)\b"
)
QUESTION = re.compile(
    r"^(?:at (?:what|which) (?:time|timestamp|point|moment)|when|where)\s+(?:does|do|did|is|are|was|were|can)\s+"
    r"(?:the (?:first|last|final) time (?:that )?)?((?:(?:the|an?)\s+)?\S+.*?)"
    r"(?:\s+(?:first|finally|last|starts?|begins?|enters?|appears?|disappears?|stops?|ends?|plays?|played|playing|heard"
    r"|introduced|be heard|come in|fade|exit|in (?:this|the) (?:track|song|music|piece|audio))\b.*)?$",
    re.IGNORECASE,
)
LENGTH = re.compile(r"\s+(?:durations?|intervals?|sections?|segments?|periods?|regions?|parts?)$")


def query_of(question: str) -> str:
    """Return what a question asks for the time of: `the electric guitar`; the question itself if it is of no kind that
    is known."""
    found = QUESTION.match(" ".join(question.split()).rstrip(" ?."))
    return LENGTH.sub("", found[1]) if found else question.strip()


def _seconds(hours: str | None, minutes: str, seconds: str) -> float:
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)


def times_of(row: dict) -> list[tuple[str, float, float]]:
    """Return the answers of a question: label, start and end in seconds.

    A point in time starts and ends there, and its label is [`FIRST`] or [`LAST`].

    Raises:
        ValueError: says why there are none.
    """
    if row["task"] == "MTR":
        text = ", ".join(cell_list(row["answers"]) or cell_list(row["answer"]))
        spans = [(_seconds(*found[:3]), _seconds(*found[3:])) for found in INTERVAL.findall(text)]
        if not spans or any(start >= end for start, end in spans):
            raise ValueError(f"the answer is {text!r}; expected intervals such as 2:05-2:40")
        return [("interval", *span) for span in sorted(spans)]
    text = str(row["answer"]).strip()
    found = re.fullmatch(TIME, text)
    if not found:
        raise ValueError(f"the answer is {text!r}; expected a time such as 0:45")
    asked = str(row["question"]).lower()
    if not LATE.search(asked) and not EARLY.search(asked):
        raise ValueError(f"{row['question']!r} asks for neither a first nor a last time")
    return [(LAST if LATE.search(asked) else FIRST, *[_seconds(*found.groups())] * 2)]


def _tables(folder: SetFolder) -> list[str]:
    return [name for name in folder.called("*mustbench*.parquet") if folder.columns(name) >= COLUMNS][:1]


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    tracks: dict[tuple[str, str], list[dict]] = {}
    table = _tables(folder)[0]
    for row in folder.rows(table):
        if row["task"] in TIMED:
            split = str(row.get("split") or "test").strip().lower()
            tracks.setdefault((str(row["track_id"]), split), []).append(row)
    for (track, split), rows in tracks.items():
        sections = []
        for row in rows:
            try:
                times = times_of(row)
            except ValueError as error:
                folder.problems.append(f"{table}: {row.get('id')}: {error}")
                continue
            text = row["question"].strip() if settings["questions"] else query_of(row["question"])
            sections += [{"label": label, "start": start, "end": end, "text": text} for label, start, end in times]
        yield Record(
            id=track,
            texts=list(dict.fromkeys(section["text"] for section in sections)),
            audio=folder.first_audio(track),
            split=split,
            source=f"mustbench:{track}",
            sections=sections or None,
            meta={"questions": [row["question"] for row in rows], "tasks": [row["task"] for row in rows]},
        )


SET = NamedSet(
    name="mustbench",
    layout="benchmarks/mustbench.parquet and the audio, TRACK_ID.mp3",
    tables=_tables,
    read=_read,
    get="git clone the repository wqysony/MusTBench into it, or hf download --repo-type dataset sony/MusTBench",
    settings={"questions": False},
)
