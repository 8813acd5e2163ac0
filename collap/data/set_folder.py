"""Find what lies in the folder of a data set, whatever its layout: tables by their names, audio by the id of its file.

The folder is walked once. What a table says of a file is looked up among the names that were found, and so leads to no
other place.
"""

import csv
import fnmatch
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .audio_column import AUDIO_TYPE
from .audio_parts import with_span
from .lengths import song_seconds
from .places import ROOT_MARK
from .rows import file_size, listed_texts
from .tables import keep_table
from .text_tables import DELIMITERS, read_text_table

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".mp4", ".webm", ".mka", ".wma")
AUDIO_SUFFIXES += (".aif", ".aiff", ".aifc", ".caf", ".au", ".w64", ".m4b", ".mp2", ".ac3", ".amr")
AUDIO_SUFFIXES += (".wv", ".ape", ".tta", ".tak", ".mpc", ".dsf")
TITLED = re.compile(r".+ \[([\w-]{11})\]", re.DOTALL)  # `Title [ID].webm`, as yt-dlp calls files by itself
EXCERPT = ".2min"  # Song Describer's files of the first two minutes
CUT_SECONDS = 1.0  # a file that is longer than a clip by less than this is the clip


@dataclass(frozen=True)
class Clip:
    """Hold the audio of a span of a recording.

    Attributes:
        audio: name of the file within the folder, with the span if it is a part of the file; None if there is none.
        problem: why a file that is there cannot be used.
    """

    audio: str | None = None
    problem: str | None = None


class SetFolder:
    """Hold the names of all files of a folder and of those below it.

    Attributes:
        path: whole path of the folder.
        names: relative names, sorted; hidden files and folders are left out.
        problems: what was found that cannot be used; readers add to it.
    """

    def __init__(self, path: str | Path):
        self.path = os.path.abspath(path)
        self.names = sorted(_walk(self.path))
        self.problems: list[str] = []
        self.headers: dict[str, frozenset[str]] = {}
        self.by_key: dict[str, list[str]] = {}
        self.videos: frozenset[str] | None = None  # what may be ids of videos in the names of its audio
        for name in self.names:
            if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES:
                key = _key(name)
                self.by_key.setdefault(key, []).append(name)
                if titled := TITLED.fullmatch(key):
                    self.by_key.setdefault(titled[1], []).append(name)

    def called(self, *patterns: str) -> list[str]:
        """Return the files whose base name matches a pattern such as `*.csv`, in upper or lower case.

        Those that lie higher come first: a table before the copy of it in a folder of backups.
        """
        found = [
            name
            for name in self.names
            if any(fnmatch.fnmatchcase(name.rpartition("/")[2].lower(), pattern.lower()) for pattern in patterns)
        ]
        return sorted(found, key=lambda name: (name.count("/"), name))

    def called_once(self, *names: str) -> list[str]:
        """Return the files of some base names, one for each: the highest. Others are told in `problems`."""
        found: dict[str, str] = {}
        for name in self.called(*names):
            if found.setdefault(name.rpartition("/")[2].lower(), name) != name:
                problem = f"{name}: is left out, as {found[name.rpartition('/')[2].lower()]} has the same name"
                self.problems += [problem] if problem not in self.problems else []
        return list(found.values())

    def file(self, name: str) -> Path:
        """Return the path of one of the names."""
        return Path(self.path, name)

    def whole_path(self, name: str) -> str:
        """Return the path of an audio as a data set's table has it, see `collap.data.places`."""
        return f"{self.path}{ROOT_MARK}{name}"

    def rows(self, name: str) -> Iterator[dict]:
        """Yield the rows of a table: .csv, .tsv, .json, .jsonl or .parquet; the cells of the first two are texts.

        Raises:
            ValueError: it is malformed; names the file and the row.
        """
        path = self.file(name)
        if path.suffix.lower() == ".parquet":
            try:
                for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
                    yield from batch.to_pylist()
            except pa.ArrowException as error:
                raise ValueError(f"{path}: {' '.join(str(error).split())[:300]}") from error
            return
        columns = read_text_table(path, (), lambda cell: False)
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))

    def columns(self, name: str) -> frozenset[str]:
        """Return the names of a table's columns, by its beginning; none of a file that is no table."""
        if name not in self.headers:
            try:
                self.headers[name] = frozenset(_header(self.file(name)))
            except (ValueError, OSError, pa.ArrowException):
                self.headers[name] = frozenset()
        return self.headers[name]

    def recordings(self) -> list[str]:
        """Return the names of all audio files, sorted."""
        return [name for name in self.names if os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES]

    def audio(self, name: str) -> str | None:
        """Find an audio file by its id or by a path that a table has for it, in any folder and of any kind.

        Raises:
            ValueError: there are two.
        """
        found = [one for one in self.by_key.get(_key(name), ()) if file_size(self.file(one))]
        folder, _, base = _form(name).rpartition("/")
        if len(found) > 1:
            found = [one for one in found if _form(one).rpartition("/")[2] == base] or found
        if len(found) > 1:
            found = [one for one in found if f"/{os.path.dirname(_form(one))}".endswith(f"/{folder}")] or found
        if len({os.path.realpath(self.file(one)) for one in found}) > 1:
            raise ValueError(f"{self.path}: two files for {name!r}: {found[0]} and {found[1]}; keep one of them")
        return found[0] if found else None

    def first_audio(self, *names: str | None) -> str | None:
        """Find an audio file by the first of several names that has one."""
        return next((found for name in names if name and (found := self.audio(name))), None)

    def seconds(self, names: Iterable[str]) -> dict[str, float]:
        """Return the length of audio files by their headers; 0 of one that cannot be read. Kept for the next time."""
        names = sorted(set(names))
        if not names:
            return {}
        audio = [{"bytes": None, "path": self.whole_path(name)} for name in names]
        rows = keep_table(pa.table({"audio": pa.array(audio, AUDIO_TYPE)}))
        return dict(zip(names, song_seconds(rows, "audio"), strict=True))

    def clips(self, spans: Sequence[tuple[str, float, float]], full_tracks: bool = False) -> list[Clip]:
        """Find the audio of spans of YouTube videos, which may lie there cut or as whole tracks.

        A file whose name has the span in it, `ID_30_40.wav`, is the span. One that has only the id is the span if it
        is no longer, and else the whole track, of which the span is read.

        Args:
            spans: id, start and end in seconds.
            full_tracks: take whole files.
        """
        if self.videos is None:
            self.videos = frozenset(video for key in self.by_key for video in _videos(key))
        is_there = [span[0] in self.videos for span in spans]  # most of AudioSet is not
        cut = [
            self.first_audio(*_cut_names(*span)) if there and not full_tracks else None
            for there, span in zip(is_there, spans, strict=True)
        ]
        whole = [
            self.first_audio(span[0], f"Y{span[0]}") if there and not own else None
            for there, own, span in zip(is_there, cut, spans, strict=True)
        ]
        seconds = {} if full_tracks else self.seconds(name for name in whole if name)
        found = []
        for own, name, (_, start, end) in zip(cut, whole, spans, strict=True):
            if own or name is None or full_tracks or seconds[name] <= end - start + CUT_SECONDS:
                found.append(Clip(own or name))
            elif seconds[name] <= start:
                found.append(Clip(None, f"{name} ends at {seconds[name]:.1f} s, before its clip at {start:g} s"))
            else:
                found.append(Clip(with_span(name, start, end)))
        return found


def is_true(cell) -> bool:
    """Tell whether a cell says so: `True`, or `TRUE` once Excel has saved the table; an empty one does not."""
    return str(cell).strip().lower() in ("true", "1", "1.0")


def cell_list(cell) -> list[str]:
    """Return the texts of a cell: a list, a list written as a text, or one text."""
    if isinstance(cell, str):
        listed = listed_texts(cell)
        cell = [cell] if listed is None else listed
    texts = cell if isinstance(cell, (list, tuple)) else [cell]
    return [" ".join(str(one).split()) for one in texts if one is not None and str(one).strip()]


def _walk(path: str) -> Iterator[str]:
    """Yield the names of all files below a folder; a link to a folder is followed, once."""
    seen = set()
    for place, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        inside = os.path.relpath(place, path)
        yield from (os.path.normpath(os.path.join(inside, name)) for name in files if not name.startswith("."))


def _header(path: Path) -> Iterable[str]:
    """Return the names of the columns of a table."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return pq.read_schema(path).names
    if suffix == ".json":
        return read_text_table(path, (), lambda cell: False)
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = next((line for line in file if line.strip()), "")
    if suffix == ".jsonl":
        row = json.loads(line)
        return row if isinstance(row, dict) else ()
    cells = [next(csv.reader([line.rstrip()], delimiter=delimiter)) for delimiter in DELIMITERS]
    return [cell.strip() for cell in max(cells, key=len)]


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


def _key(name: str) -> str:
    """Return what an audio file is found by: its base name without `.mp3` and the like, and without `.2min`."""
    base = _form(name).rpartition("/")[2]
    stem, suffix = os.path.splitext(base)
    return (stem if suffix.lower() in AUDIO_SUFFIXES else base).removesuffix(EXCERPT)


def _videos(key: str) -> Iterator[str]:
    """Yield what may be the id of a video in what an audio file is found by: all that [`_cut_names`] begins with."""
    yield from (key, key.rpartition("_")[0], key.rpartition("_")[0].rpartition("_")[0])
    yield key[1:].partition("]-[")[0]  # also behind a Y


def _cut_names(video: str, start: float, end: float) -> Iterator[str]:
    """Yield the names that tools give to a span of a video."""
    for first, last in ((f"{start:g}", f"{end:g}"), (f"{start:.1f}", f"{end:.1f}"), (f"{start:.3f}", f"{end:.3f}")):
        yield f"{video}_{first}_{last}"
        yield f"[{video}]-[{first}-{last}]"
    yield f"{video}_{round(start * 1000)}_{round(end * 1000)}"
    yield f"{video}_{round(start):06d}_{round(end):06d}"
    yield from (f"{video}_{start:g}", f"{video}_{round(start):06d}")
