"""Wikipedia articles and music: any pairs of an article and a recording.

The paper's Wiki-SD and Wiki-MC were never released, so this reads pairs of the user's own: a table (.csv, .tsv, .jsonl,
.parquet) with a column of file names or ids and one of articles, or `articles/NAME.txt` for `NAME.mp3`. An article may
describe several recordings. It is no reproduction of the paper's Table IV.
"""

from collections.abc import Iterator

from collap.data.records import NamedSet, Record
from collap.data.set_folder import SetFolder, cell_list

AUDIO_COLUMNS = ("file_name", "audio", "audio_path", "path", "file", "track_id", "ytid", "id")
TEXT_COLUMNS = ("article", "text", "wikipedia", "extract", "summary", "description")
TABLES = ("*.csv", "*.tsv", "*.jsonl", "*.parquet")
ARTICLES = ("articles", "article", "texts", "text", "txt", "wiki")  # folders of one file for each recording


def _columns(folder: SetFolder, table: str) -> tuple[str, str] | None:
    """Return the columns of audio and of articles of a table; None if it lacks one."""
    found = folder.columns(table)
    audio, text = (next((name for name in names if name in found), None) for names in (AUDIO_COLUMNS, TEXT_COLUMNS))
    return (audio, text) if audio and text else None


def _articles(folder: SetFolder) -> list[str]:
    return [name for name in folder.called("*.txt") if name.split("/")[-2:-1] and name.split("/")[-2] in ARTICLES]


def _tables(folder: SetFolder) -> list[str]:
    return [name for name in folder.called(*TABLES) if _columns(folder, name)] or _articles(folder)


def _pairs(folder: SetFolder) -> Iterator[tuple[str, str | list, dict]]:
    """Yield what names the recording, the article, and the rest of the row."""
    for table in _tables(folder):
        columns = _columns(folder, table)
        if columns is None:
            yield table.rpartition("/")[2].removesuffix(".txt"), folder.file(table).read_text(encoding="utf-8"), {}
            continue
        for row in folder.rows(table):
            rest = {name: value for name, value in row.items() if name not in columns and value}
            audio = row[columns[0]]
            yield str(audio.get("path") if isinstance(audio, dict) else audio), row[columns[1]], rest


def _read(folder: SetFolder, settings: dict) -> Iterator[Record]:
    recordings: dict[str, Record] = {}
    for name, article, rest in _pairs(folder):
        record = recordings.get(name)
        if record is None:
            record = recordings[name] = Record(
                id=name,
                texts=[],
                audio=folder.audio(name),
                split=str(rest.get("split", "test")),
                artist=rest.get("artist"),
                source=f"wiki:{name}",
                licence="CC BY-SA 4.0 (articles)",
                meta={key: rest[key] for key in ("title", "url", "pageid") if key in rest},
            )
        record.texts += cell_list(article)
    yield from recordings.values()


SET = NamedSet(
    name="wiki",
    layout="a table with the columns file_name and article (or text), or articles/NAME.txt, and the audio",
    tables=_tables,
    read=_read,
    get="the paper's pairs were not released: write your own table, or use wikimute",
)
