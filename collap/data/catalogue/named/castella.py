"""CASTELLA and other sets of audio moments: queries with the times at which they are heard in recordings of minutes.

Read are the tables of lighthouse (line/lighthouse, `data/castella/castella_test_release.jsonl` and those beside it), a
query on each line with `query`, `vid`, `duration` and `relevant_windows` in seconds; Clotho-Moment, UnAV-100 and TUT
2017 have the same, and the name of a table says of which it is: DCASE 2026, task 6, is `castella` with `clotho_moment`.
Windows come in any order, in whole seconds, and may end a second after the recording. No audio comes with CASTELLA: it
is the first five minutes of YouTube videos. The authors' own JSON (line/castella) is not read.
"""

import re
from collections.abc import Iterator

from collap.data.records import NamedSet, Record, youtube_command, youtube_source
from collap.data.set_folder import SetFolder

TABLE = re.compile(r"(.+?)_(train|val|valid|test)(?:_release)?\.jsonl", re.IGNORECASE)
SPLITS = {"val": "validation", "valid": "validation"}
COLUMNS = {"query", "vid", "relevant_windows"}
VIDEO = re.compile(r"[\w-]{11}")


def _tables(folder: SetFolder) -> list[str]:
    named = [name for name in folder.called("*.jsonl") if TABLE.fullmatch(name.rpartition("/")[2])]
    return [name for name in named if folder.columns(name) >= COLUMNS]


def _windows(row: dict, table: str, folder: SetFolder) -> list[list[float]]:
    """Return the windows of a query that have a length, in order; notes the others."""
    found = []
    for window in row["relevant_windows"] or ():
        try:
            start, end = map(float, window)
        except (TypeError, ValueError):
            start = end = 0.0
        if 0 <= start < end:
            found.append([start, end])
        else:
            folder.problems.append(f"{table}: {row['vid']}: {window!r} is no window; expected [start, end] in seconds")
    return sorted(found)


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    for table in _tables(folder):
        config, split = TABLE.fullmatch(table.rpartition("/")[2].lower()).groups()
        recordings: dict[str, list[dict]] = {}
        for row in folder.rows(table):
            recordings.setdefault(str(row["vid"]), []).append(row)
        for name, rows in recordings.items():
            queries = {" ".join(str(row["query"]).split()): None for row in rows}  # each once
            sections = [
                {"label": "moment", "start": start, "end": end, "text": " ".join(str(row["query"]).split())}
                for row in rows
                for start, end in _windows(row, table, folder)
            ]
            yield Record(
                id=name,
                texts=[query for query in queries if query],
                audio=folder.first_audio(name),
                split=SPLITS.get(split, split),
                config=config,
                source=youtube_source(name) if config == "castella" and VIDEO.fullmatch(name) else f"{config}:{name}",
                sections=sections or None,
                meta={"seconds": rows[0].get("duration")},
            )


def _fetch(record: Record) -> str | None:
    return youtube_command(record) if record.source.startswith("youtube:") else None


SET = NamedSet(
    name="castella",
    layout="castella_test_release.jsonl, ..., clotho_moment_test_release.jsonl, ... and the audio, ID.wav",
    tables=_tables,
    read=_read,
    get="data/castella/*.jsonl of the repository line/lighthouse",
    fetch=_fetch,
)
