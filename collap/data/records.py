"""Describe the recordings of a data set in one form, and make a table of them that every command reads."""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import datasets
import pyarrow as pa

from .audio_column import AUDIO_TYPE
from .joined_audio import join_files
from .set_folder import SetFolder
from .tables import keep_table

SECTIONS = pa.list_(pa.struct({"label": pa.string(), "start": pa.float64(), "end": pa.float64(), "text": pa.string()}))
FIRST, LAST = "first heard", "last heard"  # labels of sections that are a point in time
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "audio": AUDIO_TYPE,
        "text": pa.list_(pa.string()),
        "start": pa.float64(),
        "end": pa.float64(),
        "split": pa.string(),
        "config": pa.string(),
        "artist": pa.string(),
        "source": pa.string(),
        "licence": pa.string(),
        "sections": SECTIONS,
        "meta": pa.string(),
    }
)


@dataclass(slots=True)
class Record:
    """Describe a recording, or a span of one, and all texts about it.

    Attributes:
        id: its name in the data set.
        texts: about it; each of them is a correct answer.
        audio: name of its file in the folder, perhaps with a span or a member (`collap.data.audio_parts`); several
            files are played one after the other; None where it is missing.
        start, end: seconds of the span within the recording that it was taken from; None for all of it.
        split, config: the parts of the data set that it belongs to; no config where there is one alone.
        artist: who made it.
        source: where the recording is known, such as `youtube:ID`: by it data sets are compared.
        licence: of the audio, or else of the texts.
        sections: of dicts with label, start and end in seconds of the audio, and perhaps a text; None if not known. Of
            moments that are asked for the text is the query, several sections of one text are its answers, and one
            that ends where it starts is a point in time, [`FIRST`] or [`LAST`].
        meta: whatever else the data set says, for JSON.
    """

    id: str
    texts: list[str]
    audio: str | tuple[str, ...] | None = None
    start: float | None = None
    end: float | None = None
    split: str = "test"
    config: str | None = None
    artist: str | None = None
    source: str | None = None
    licence: str | None = None
    sections: list[dict] | None = None
    meta: dict = field(default_factory=dict)

    @property
    def part(self) -> str:
        """Return what its part of the data set is called: `AudioSet/train`, or `test`."""
        return f"{self.config}/{self.split}" if self.config else self.split

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of its audio files; none where it is missing."""
        if self.audio is None:
            return ()
        return (self.audio,) if isinstance(self.audio, str) else self.audio


@dataclass(frozen=True)
class NamedSet:
    """Describe a data set by name: how its folder is told, and read.

    Attributes:
        name: as in `--dataset NAME:FOLDER`.
        layout: what its folder holds, for a message.
        tables: returns the names of its tables in a folder; none tells that the folder is of another data set.
        read: yields its records, also those whose audio is missing; `settings` are those below.
        get: what brings its tables, printed where they are missing.
        fetch: returns the command that fetches the audio of a record, to be printed.
        settings: name -> default of what can be set by `NAME:FOLDER?name=value`.
        paper: its row in the paper's Table I.
        overlapping: whether its configs are versions of one another, of which one is read: the first, if none is named.
    """

    name: str
    layout: str
    tables: Callable[[SetFolder], list[str]]
    read: Callable[[SetFolder, dict], Iterator[Record]]
    get: str
    fetch: Callable[[Record], str | None] = lambda record: None
    settings: dict[str, bool | int | float] = field(default_factory=dict)
    paper: str | None = None
    overlapping: bool = False


def records_table(records: list[Record], folder: SetFolder) -> datasets.Dataset:
    """Make a table of records whose audio is there, one row for each; its columns are those of `SCHEMA`.

    The audio of a record of several files is decoded, joined and kept as bytes, once.
    """
    rows = [
        {name: getattr(record, name) for name in SCHEMA.names if name not in ("audio", "text", "meta")}
        | {"text": record.texts, "meta": json.dumps(record.meta, ensure_ascii=False)}
        | {"audio": {"bytes": None, "path": folder.whole_path(record.files[0])}}
        for record in records
    ]
    table = keep_table(pa.Table.from_pylist(rows, SCHEMA))
    several = [tuple(map(folder.whole_path, record.files)) for record in records]
    return join_files(table, several) if any(len(files) > 1 for files in several) else table


def youtube_command(record: Record) -> str:
    """Return the command that fetches a record's audio from YouTube: its span, or the whole track."""
    video = record.source.partition(":")[2]
    span = "" if record.end is None else f"--download-sections '*{record.start:g}-{record.end:g}' "
    address = shlex.quote(f"https://www.youtube.com/watch?v={video}")
    return f"yt-dlp -x --audio-format wav -f bestaudio {span}-o 'audio/%(id)s.%(ext)s' {address}"


def youtube_source(video: str) -> str:
    """Return what a YouTube video is known by."""
    return f"youtube:{video}"
