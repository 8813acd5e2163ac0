"""Read the sections of songs from text files, one for each song, as HarmonixSet has them.

A file is called like the audio, `song.txt` beside or apart from `song.mp3`. A line is the time in seconds at which a
section starts, a space or tab, and its label: `8.49 verse`. A last label `end` says where the last section ends.
"""

import itertools
import math
from pathlib import Path

SILENCE = ("silence",)  # labels of what no caption describes


def read_segments(path: str | Path, seconds: float | None = None) -> list[dict]:
    """Read the sections of a song.

    Args:
        path: of the file.
        seconds: length of the audio, where a last section without `end` ends; None if it is not known.

    Returns:
        Dicts with label, start and end in seconds, ascending; without silence and what has no length.

    Raises:
        OSError: there is no such file.
        ValueError: names the line that is malformed, or says that no section is there.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            rows.append(_read_line(line, f"{path}: line {number}", rows))
    if rows and rows[-1][1].lower() != "end":
        if seconds is None or seconds <= rows[-1][0]:
            raise ValueError(f"{path}: the last line is {rows[-1][1]!r}; expected 'end' with the time at which it ends")
        rows.append((seconds, "end"))
    pairs = itertools.pairwise(rows)
    sections = [{"label": label, "start": start, "end": end} for (start, label), (end, _) in pairs if end > start]
    sections = [section for section in sections if section["label"].lower() not in SILENCE]
    if not sections:
        raise ValueError(f"{path}: has no section; expected lines such as '8.49 verse'")
    return sections


def _read_line(line: str, name: str, before: list[tuple[float, str]]) -> tuple[float, str]:
    """Return time and label of a line."""
    start, _, label = line.strip().replace("\t", " ").partition(" ")
    try:
        time = float(start)
    except ValueError:
        time = math.nan
    if not math.isfinite(time) or time < 0 or not label.strip():
        raise ValueError(f"{name} is {line.strip()[:80]!r}; expected seconds and a label, such as '8.49 verse'")
    if before and time < before[-1][0]:
        raise ValueError(
            f"{name} starts at {time:g} s, the one before at {before[-1][0]:g} s; expected ascending times"
        )
    return time, label.strip()
