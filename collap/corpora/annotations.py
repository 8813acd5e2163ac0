"""Find the annotation file of a track and read its sections: HarmonixSet's text files, JAMS, SALAMI.

    song.txt                              0.0 intro, as `collap.data.segment_files` reads it
    song.jams                             JSON; an annotation of one of `NAMESPACES`
    song/parsed/textfile1_functions.txt   SALAMI's: time, tab, label; `_uppercase` has letters; textfile2 is the second
                                          annotator's

They are found by a name of the track, in a folder at any depth, or beside the audio.
"""

import functools
import itertools
import json
import math
import os
import re
from pathlib import Path

from collap.data.catalogue.named.harmonixset import plain_label
from collap.data.segment_files import SILENCE, read_segments
from collap.data.set_folder import SetFolder

from .tracks import Section

# Of several, the first that is there: a label is worth more than a letter.
NAMESPACES = (
    "segment_salami_function",
    "segment_open",
    "segment_isophonics",
    "segment_tut",
    "segment_salami_upper",
)
SALAMI_FILES = tuple(f"textfile{number}_{kind}.txt" for kind in ("functions", "uppercase") for number in (1, 2))
SALAMI_FOLDER = "parsed"
NO_SECTIONS = ("beats_and_downbeats",)  # a folder of HarmonixSet whose files are called like those of the sections
NO_LABEL = ("no_function",)
LETTER = re.compile(r"[A-Z]+'*")


def find_annotation(names: tuple[str, ...], audio: str, folder: Path | None) -> Path | None:
    """Find the annotation file of a track.

    Args:
        names: by which it may be called, without `.txt` and the like.
        audio: path of its file, where one may lie beside it; it need not be there.
        folder: of annotations, looked through first; None for none.

    Returns:
        Its path; None if there is none.

    Raises:
        ValueError: the folder is not there, or has two files of one kind for it.
    """
    if folder is not None:
        listed = _listed(os.fspath(folder))
        found = next((listed[name] for name in names if name in listed), None)
        if found is not None:
            best = [path for path in found if _rank(path) == _rank(found[0])]
            if len(best) > 1:
                best = [path for path in best if Path(path).parent.name == Path(audio).parent.name] or best
            if len(best) > 1:
                raise ValueError(f"{folder}: two annotations of one track: {best[0]} and {best[1]}; keep one of them")
            return Path(folder, best[0])
    place = Path(audio).parent
    for name in names:
        salami = (place / name / SALAMI_FOLDER / file for file in SALAMI_FILES)
        for path in (place / f"{name}.txt", place / f"{name}.jams", *salami):
            if path.is_file() and (path.suffix != ".txt" or has_times(_beginning(path))):
                return path
    return None


@functools.lru_cache(maxsize=8)
def _listed(folder: str) -> dict[str, list[str]]:
    """Return name of a track -> its annotation files in a folder, the best kind first. A folder is listed once."""
    if not os.path.isdir(folder):
        raise ValueError(f"{folder}: no such folder; expected one of annotation files (.txt, .jams)")
    found: dict[str, list[str]] = {}
    for path in sorted(SetFolder(folder).called("*.txt", "*.jams"), key=lambda path: (_rank(path), path)):
        place = Path(path).parent
        if place.name == SALAMI_FOLDER and Path(path).name in SALAMI_FILES:
            found.setdefault(place.parent.name, []).append(path)
        elif place.name not in (*NO_SECTIONS, SALAMI_FOLDER):
            found.setdefault(Path(path).stem, []).append(path)
    return found


def _rank(path: str) -> int:
    """Return how good a kind of file is, 0 for the best."""
    name = Path(path).name
    return 2 + SALAMI_FILES.index(name) if name in SALAMI_FILES else int(name.lower().endswith(".jams"))


def _beginning(path: Path) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.read(1000)


def has_times(text: str) -> bool:
    """Tell whether a text begins with two lines of ascending times: beside audio lie captions and lyrics too."""
    lines = [line.split() for line in text[:1000].splitlines() if line.strip()][:2]
    try:
        times = [float(words[0]) for words in lines]
    except ValueError:
        return False
    return len(times) == 2 and times[0] <= times[1] and all(len(words) > 1 for words in lines)


def read_annotation(path: Path) -> list[Section]:
    """Read the sections of a recording, in the times of its file.

    Args:
        path: from [`find_annotation`].

    Returns:
        Sections, ascending, none over another; without silence. Labels are plain: `verse` for `Verse2`, letters as they
        are, empty if a file says that there is none. The end of the last one is infinite if the file does not say it.

    Raises:
        ValueError: it is malformed or has no section; names the file and the place in it.
    """
    try:
        sections = read_jams(path) if path.suffix.lower() == ".jams" else read_segments(path, math.inf)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return [Section(one["start"], one["end"], _plain(one["label"])) for one in sections]


def _plain(label: str) -> str:
    if label.lower() in NO_LABEL:
        return ""
    return label if LETTER.fullmatch(label) else plain_label(label)


def read_jams(path: Path) -> list[dict]:
    """Read the sections of a JAMS file (Humphrey et al., ISMIR 2014): the first annotation of the first of
    `NAMESPACES` that it has.

    Returns:
        Dicts with label, start and end in seconds, ascending; without silence and what has no length. One that lasts
        beyond the next one's start, as times that were rounded do, ends there.

    Raises:
        ValueError: no JSON, or not of this form; names what is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({' '.join(str(error).split())[:200]}); expected a JAMS file") from error
    listed = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ValueError(f"{path}: has no list of annotations; expected a JAMS file")
    of_namespace = {one.get("namespace"): one for one in reversed(listed) if isinstance(one, dict)}
    name = next((name for name in NAMESPACES if name in of_namespace), None)
    if name is None:
        raise ValueError(f"{path}: has no annotation of sections; expected one of {', '.join(NAMESPACES)}")
    data = of_namespace[name].get("data")
    rows = [_jams_row(row, f"{path}: {name}, row {i}") for i, row in enumerate(data if isinstance(data, list) else ())]
    rows = sorted((row for row in rows if row["label"].lower() not in (*SILENCE, "end")), key=lambda row: row["start"])
    for row, following in itertools.pairwise(rows):
        row["end"] = min(row["end"], following["start"])
    rows = [row for row in rows if row["end"] > row["start"]]
    if not rows:
        raise ValueError(f"{path}: {name} has no section; expected a list of rows with time, duration and value")
    return rows


def _jams_row(row: object, name: str) -> dict:
    """Return the section of a row."""
    times = [row.get(key) if isinstance(row, dict) else None for key in ("time", "duration")]
    if not all(isinstance(time, (int, float)) and math.isfinite(time) and time >= 0 for time in times):
        raise ValueError(f"{name} is {str(row)[:80]}; expected time and duration in seconds")
    label = row.get("value")
    return {"label": str(label or "").strip(), "start": float(times[0]), "end": float(times[0] + times[1])}
