"""List the tracks of any source: a folder of audio, archives, lists of paths or ids, data sets.

Nothing is read but names and tables; `collap.corpora.collect` looks at the files.
"""

import collections
import contextlib
import itertools
import json
import math
import os
import re
import socket
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from collap.data.audio_column import PATH_COLUMN
from collap.data.audio_parts import ARCHIVE, archive_members, read_member
from collap.data.catalogue import Request, find_entry, folder
from collap.data.catalogue.named import SETS
from collap.data.catalogue.named_sets import ALL, read_records
from collap.data.places import name_within
from collap.data.rows import audio_source, content_digest, row_texts
from collap.data.set_folder import AUDIO_SUFFIXES, SetFolder, cell_list
from collap.data.sources import open_dataset
from collap.files import flat, replace_file
from processing.decode_audio import AudioFileError

from .annotations import has_times
from .check import OVERLAP_SECONDS
from .tracks import Section, Track

# Names of columns, the first that a row has; in upper or lower case.
ID_COLUMNS = ("id", "track_id", "song_id", "ytid", "youtube_id", "video_id")
LICENCE_COLUMNS = ("licence", "license")
ARTIST_COLUMNS = ("artist", "artist_name", "artists", "artist_id")
TEXT_COLUMNS = ("text", "caption", "captions", "texts")
NO_TAGS = ("start", "end", "split", "config")  # of a row
TAG_CHARACTERS = 300
ID_CHARACTERS = 80


def read_tracks(
    source: str, split: str | None = None, config_name: str | None = None, keep_in: Path | None = None
) -> Iterator[Track]:
    """List the tracks of a source, one at a time; no audio is read but what a table holds as bytes.

    Args:
        source: what `open_dataset` takes, among it lists of paths (.csv, .jsonl, .parquet), a Hub id and `NAME:FOLDER`
            such as `audioset:FOLDER`; or
            - a folder without metadata: all audio files in it and below, those in .tar archives too, `song.txt` or
              webdataset's `song.json` beside one being its texts;
            - a .tar archive;
            - a list whose column `id` (or another of `ID_COLUMNS`) names files beside it by their ids.
        split: of a data set; None for `train`, and for all of a named one.
        config_name: of a Hub data set or a named one.
        keep_in: folder in which bytes of a table are written as files, called after their content.

    Yields:
        Tracks with distinct ids. What has no audio is among them, with the reason. Rows of the same file are one track
        with the texts of all; what else they say is that of the first row that says it.

    Raises:
        FileNotFoundError, ValueError: as `open_dataset`; a table holds bytes and there is no `keep_in`.
    """
    yield from join_rows(_read(source, split, config_name, keep_in))


def join_rows(tracks: Iterable[Track]) -> Iterator[Track]:
    """Join tracks of one audio into the first of them; those without audio stay as they are."""
    found: dict[str, Track] = {}
    for track in tracks:
        first = found.setdefault(track.audio or f"no audio: {track.id}", track)
        if first is track:
            continue
        first.texts += [text for text in track.texts if text not in first.texts]
        first.tags = {**track.tags, **first.tags}
        for name in ("artist", "source", "licence"):
            setattr(first, name, getattr(first, name) or getattr(track, name))
        if first.sections is None:
            first.sections, first.boundaries = track.sections, track.boundaries
    yield from found.values()


def _read(source: str, split: str | None, config_name: str | None, keep_in: Path | None) -> Iterator[Track]:
    """List tracks, one for each row, see [`read_tracks`]."""
    ids = _Ids()
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".tar":
        yield from _archive_tracks(source, path.name, ids)
        return
    entry, request = find_entry(Request(source, split or "train", config_name=config_name))
    if entry is folder.ENTRY and not _has_metadata(request.path):
        yield from _folder_tracks(request.path, ids)
    elif entry.name in SETS:
        yield from _named_tracks(SETS[entry.name], request, split or ALL, ids)
    elif request.path.is_file() and (column := _id_column(request.path)):
        yield from _listed_tracks(request.path, column, ids)
    else:
        yield from _row_tracks(open_dataset(source, request.split, "audio", None, config_name), source, ids, keep_in)


class _Ids:
    """Make names into distinct ids of letters, digits, `-` and `_`; 150 bytes are kept of each.

    A name that had to be changed gets a digest of itself, so that it has the same id wherever it is listed. Ids differ
    in more than upper and lower case, which some file systems do not tell apart.
    """

    def __init__(self):
        self.taken: set[str] = set()

    def take(self, name: str) -> str:
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        found = re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_")[:ID_CHARACTERS]
        if found != name:
            found = f"{found or 'track'}-{content_digest(name.encode('utf-8', 'surrogateescape'))[:8]}"
        number, wanted = 1, found
        while found.casefold() in self.taken:
            number += 1
            found = f"{wanted}-{number}"
        self.taken.add(found.casefold())
        return found


def _has_metadata(path: Path) -> bool:
    return any((place / name).is_file() for name in folder.METADATA for place in (path, *path.glob("*/")))


def _folder_tracks(path: Path, ids: _Ids) -> Iterator[Track]:
    """List all audio of a folder, sorted by name."""
    found = SetFolder(path)
    stems = collections.Counter(os.path.splitext(name)[0] for name in found.recordings())
    beside = {name: found.file(name) for name in found.called("*.txt", "*.json")}
    is_empty = True
    for name in found.names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() == ".tar":
            for track in _archive_tracks(str(found.file(name)), name, ids):
                is_empty = False
                yield track
        elif suffix.lower() in AUDIO_SUFFIXES:
            is_empty = False
            called = ids.take(stem if stems[stem] == 1 else name)
            row, problem = _row_beside(beside, stem, lambda file: file.read_bytes())
            yield _track(called, str(found.file(name)), f"{path}: {name}", row, problem)
    if is_empty:
        raise ValueError(f"{path}: no audio in it or below; expected files such as .mp3, .flac, .wav, or .tar archives")


def _row_beside(beside: Mapping[str, Any], stem: str, read: Callable[[Any], bytes]) -> tuple[dict, str | None]:
    """Return what `song.json` or `song.txt` beside an audio say of it, and why the first cannot be read.

    A text file with times, such as HarmonixSet's, is an annotation and no caption. One that is empty says nothing.

    Args:
        beside: files by their name.
        stem: name of the audio without its ending.
        read: returns the bytes of a file.
    """
    if f"{stem}.json" in beside:
        try:
            return dict(json.loads(read(beside[f"{stem}.json"]))), None
        except (ValueError, TypeError, RecursionError) as error:
            return {}, f"broken: {stem}.json is no JSON object ({flat(error, 200)})"
    if f"{stem}.txt" not in beside:
        return {}, None
    text = read(beside[f"{stem}.txt"]).decode("utf-8-sig", "replace").strip()
    return ({} if has_times(text) else {"text": text}), None


def _archive_tracks(path: str, name: str, ids: _Ids) -> Iterator[Track]:
    """List the audio of a webdataset archive; what stands beside it as .json or .txt are its texts and tags."""
    archive = path[: -len(".tar")]

    def read(member: str) -> bytes:
        return read_member(path, member)

    try:
        members = archive_members(path)
    except AudioFileError as error:
        yield Track(ids.take(name), path, name, dropped=f"broken: {flat(error)}")
        return
    for member in members:
        stem, suffix = os.path.splitext(member)
        if suffix.lower() not in AUDIO_SUFFIXES:
            continue
        row, problem = _row_beside({one: one for one in (f"{stem}.json", f"{stem}.txt") if one in members}, stem, read)
        called = ids.take(f"{name[: -len('.tar')]}/{stem}")
        yield _track(called, f"{archive}{ARCHIVE}{member}", f"{name}/{member}", row, problem)


def _named_tracks(named, request: Request, split: str, ids: _Ids) -> Iterator[Track]:
    """List the recordings of a named data set, also those without texts."""
    place, records = read_records(named, request)
    is_empty = True
    for record in records:
        if split not in (ALL, record.split):
            continue
        is_empty = False
        if len(record.files) > 1:
            raise ValueError(
                f"{request.source}: joins its recordings from several files; expected a set of whole tracks"
            )
        row = {name: getattr(record, name) for name in ("artist", "source", "licence", "sections", "meta")}
        audio = place.whole_path(record.files[0]) if record.files else ""
        track = _track(ids.take(record.id), audio, f"{named.name} {record.id}", {**row, "text": record.texts})
        track.dropped = None if record.files else "missing: no file of it in the folder"
        yield track
    if is_empty:
        raise ValueError(f"{request.source}: no recording of the split {split!r}")


def _id_column(path: Path) -> str | None:
    """Return the column of a list that names files by their ids; None if it has paths or bytes."""
    columns = SetFolder(path.parent).columns(path.name)
    if {"audio", PATH_COLUMN} & columns:
        return None
    return next((name for name in ID_COLUMNS if name in columns), None)


def _listed_tracks(path: Path, column: str, ids: _Ids) -> Iterator[Track]:
    """List the tracks that a list names by ids; their files lie beside it or below."""
    place = SetFolder(path.parent)
    for number, row in enumerate(place.rows(path.name)):
        name = str(row.get(column) or "").strip()
        if not name:
            raise ValueError(f"{path}: row {number} has no {column!r}")
        found = place.audio(name)
        track = _track(ids.take(name), str(place.file(found)) if found else "", f"{path.name}, row {number}", row)
        if column in ("ytid", "youtube_id", "video_id"):
            track.source = track.source or f"youtube:{name}"
        track.dropped = None if found else f"missing: no audio file called {name!r} beside {path.name}"
        yield track


def _row_tracks(dataset, source: str, ids: _Ids, keep_in: Path | None) -> Iterator[Track]:
    """List the rows of an opened data set."""
    for number, row in enumerate(dataset):
        origin = f"{source}, row {number}"
        try:
            content = audio_source(row["audio"])
        except AudioFileError as error:
            yield _track(ids.take(f"row-{number}"), "", origin, row, f"missing: {error}")
            continue
        named = row["audio"].get("path") or ""
        name = next((str(row[one]) for one in ID_COLUMNS if row.get(one) not in (None, "")), "")
        if isinstance(content, bytes):
            name = name or os.path.splitext(name_within(named))[0] or content_digest(content)
            content = kept_bytes(content, os.path.splitext(named)[1], keep_in, source)
        yield _track(ids.take(name or os.path.splitext(name_within(content))[0]), content, origin, row)


def kept_bytes(content: bytes, suffix: str, keep_in: Path | None, source: str) -> str:
    """Write the bytes of a table's audio as a file, once, and return its path."""
    if keep_in is None:
        raise ValueError(f"{source}: holds audio as bytes; expected a folder to write it to")
    path = Path(keep_in) / f"{content_digest(content)}{suffix if suffix.lower() in AUDIO_SUFFIXES else ''}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = f".{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"  # parts may begin at one moment
        replace_file(path, lambda temporary: temporary.write_bytes(content), writer)
    return str(path)


def _track(name: str, audio: str, origin: str, row: dict, dropped: str | None = None) -> Track:
    """Make a track of a row's columns: those that tracks have, and what is left as tags."""
    row = {str(key).lower(): value for key, value in row.items() if value not in (None, "")}
    row = {**_object(row.pop("meta", None)), **row}
    row = {key: value for key, value in row.items() if key not in ("audio", *NO_TAGS)}
    texts = [text for column in TEXT_COLUMNS for text in _texts(row.pop(column, None))]
    columns = {"artist": ARTIST_COLUMNS, "source": ("source",), "licence": LICENCE_COLUMNS}
    known = {name: next((row[one] for one in listed if one in row), None) for name, listed in columns.items()}
    row = {key: value for key, value in row.items() if key not in ("artist", "source", *LICENCE_COLUMNS)}
    known = {name: ", ".join(cell_list(value)) or None for name, value in known.items()}
    sections, problem = _sections(row.pop("sections", None))
    tags = {column: ", ".join(cell_list(value))[:TAG_CHARACTERS] for column, value in row.items() if _is_tag(value)}
    tags = {column: tag for column, tag in tags.items() if tag}
    track = Track(name, audio, origin, texts=texts, tags=tags, dropped=dropped or problem, **known)
    if sections:
        track.sections, track.boundaries = sections, "caption" if any(one.text for one in sections) else "annotation"
    return track


def _object(value: object) -> dict:
    """Return what a cell with an object, or one that is written as JSON, holds; of any other cell nothing."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(value) if isinstance(value, str) else value
    return value if isinstance(value, dict) else {}


def _sections(value: object) -> tuple[list[Section], str | None]:
    """Return the sections of a cell, or the JSON of them, ascending; and what is wrong with them."""
    try:
        found = json.loads(value) if isinstance(value, str) else value or []
        sections = [
            Section(float(one["start"]), float(one["end"]), str(one.get("label") or ""), str(one.get("text") or ""))
            for one in found
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return [], f"annotation: its sections are no list of objects with start and end ({flat(error, 100)})"
    sections.sort(key=lambda one: one.start)
    if not all(0 <= one.start < one.end < math.inf for one in sections):
        return [], "annotation: a section of it does not start before it ends"
    if any(after.start < one.end - OVERLAP_SECONDS for one, after in itertools.pairwise(sections)):
        return [], "annotation: its sections overlap"
    return sections, None


def _texts(value) -> list[str]:
    """Return the texts of a cell; none of what is no text."""
    try:
        return row_texts(value, "")
    except ValueError:
        return []


def _is_tag(value) -> bool:
    """Tell whether a cell is a word or a list of words, or a number."""
    values = value if isinstance(value, list) else [value]
    return all(isinstance(one, (str, int, float)) for one in values)
