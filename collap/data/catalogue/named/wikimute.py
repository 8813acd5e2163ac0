"""WikiMuTe: sentences and short phrases of Wikipedia articles about recordings of Wikimedia (Bomme/wikimute).

Columns of lists are written as texts; a recording may stand in several articles, and has the sentences of all of them.
`all.csv` is read where it is there, `--dataset_config filtered_sf` and `filtered_mc` name the others.
"""

import re
import shlex
from collections.abc import Iterator
from urllib.parse import unquote

from collap.data.records import NamedSet, Record
from collap.data.set_folder import SetFolder, cell_list

COLUMNS = {"file", "sentences", "aspects", "audio_url"}
TABLES = ("all.csv", "filtered_sf.csv", "filtered_mc.csv")


def _place(table: str) -> int:
    return TABLES.index(table.rpartition("/")[2].lower())


def _tables(folder: SetFolder) -> list[str]:
    return [name for name in sorted(folder.called_once(*TABLES), key=_place) if folder.columns(name) >= COLUMNS]


def _names(file: str, url: str) -> list[str]:
    """Return what the audio of a row may be called: spaces and underscores are the same for Wikimedia."""
    names = [re.sub(r"^File:", "", file), unquote(url.rpartition("/")[2])]
    return [form for name in names for form in (name, name.replace("_", " "), name.replace(" ", "_"))]


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    for table in _tables(folder):
        recordings: dict[str, list[dict]] = {}
        for row in folder.rows(table):
            recordings.setdefault(row["file"].strip(), []).append(row)
        for file, rows in recordings.items():
            sentences = list(dict.fromkeys(one for row in rows for one in cell_list(row["sentences"])))
            aspects = list(dict.fromkeys(one for row in rows for one in cell_list(row["aspects"])))
            yield Record(
                id=file,
                texts=sentences or ([", ".join(aspects)] if aspects else []),
                audio=folder.first_audio(*_names(file, rows[0]["audio_url"])),
                config=table.rpartition("/")[2].removesuffix(".csv"),
                source=f"wikimedia:{file}",
                licence="CC BY-SA 3.0 (texts)",
                meta={"aspects": aspects, "audio_url": rows[0]["audio_url"], "articles": [row["url"] for row in rows]},
            )


def _fetch(record: Record) -> str:
    return shlex.join(["curl", "-L", "--create-dirs", "-o", f"audio/{record.id}", record.meta["audio_url"]])


SET = NamedSet(
    name="wikimute",
    layout="all.csv, filtered_sf.csv or filtered_mc.csv, and the audio by its Wikimedia name",
    tables=_tables,
    read=_read,
    get="Zenodo record 10223362: all.csv, filtered_sf.csv and filtered_mc.csv",
    fetch=_fetch,
    overlapping=True,
)
