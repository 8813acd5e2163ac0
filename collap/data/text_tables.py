"""Read tables that are text: .csv, .tsv, .json and .jsonl, strictly and without a guess.

Every cell of a .csv or .tsv stays text: `007` is not 7, `NA` and `null` are words. The first line names the columns,
and every other row has as many fields. JSON keeps its own types.
"""

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

JSON_SUFFIXES = (".json", ".jsonl")
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
# The longer ones first: that of UTF-32 begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LFS_POINTER = b"version https://git-lfs"


def read_text_table(path: Path, audio_names: tuple[str, ...], is_audio: Callable[[str], bool]) -> dict[str, list]:
    """Read a .csv, .tsv, .json or .jsonl file.

    Args:
        audio_names: what the column of audio may be called; by them the delimiter is told.
        is_audio: tells whether a cell names a file that is there; by it a quote that opens no text is told.

    Returns:
        The values of every column, all of one length, at least 1: texts, or what JSON has; None where JSON has nothing.

    Raises:
        ValueError: says in one line what is wrong, and in which row or line.
    """
    text = decode_table(path)
    if path.suffix.lower() in JSON_SUFFIXES:
        columns = read_json(path, text)
    else:
        columns = DelimitedText(path, text, audio_names, is_audio).read()
    if not columns or not next(iter(columns.values())):
        raise ValueError(f"{path}: has no rows" + (f", only the header {list(columns)!r}"[:500] if columns else ""))
    return columns


def decode_table(path: Path) -> str:
    """Return the text of a file: UTF-8, or what its byte order mark says.

    Raises:
        ValueError: names the byte and the line that are of another encoding.
    """
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise ValueError(f"{path}: is a pointer of Git LFS and not the table; run `git lfs pull`")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start)
        header = 0 if path.suffix.lower() in JSON_SUFFIXES else 1
        row = f"row {line - header}" if line >= header else "the header"
        raise ValueError(
            f"{path}: byte 0x{content[error.start]:02x} in line {line + 1} ({row}) is not "
            f"{encoding.removesuffix('-sig')}; save the table as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}: a NUL character in line {line}; expected text, save the table as UTF-8")
    if not text.strip():
        raise ValueError(f"{path}: is empty; expected a table")
    return text


def table_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, of which one is held at a time: AudioSet's largest table has two million.

    Raises:
        ValueError: as [`decode_table`].
    """
    marks = tuple(mark for mark, encoding in BYTE_ORDER_MARKS.items() if encoding != "utf-8-sig")
    with open(path, "rb") as file:
        if not file.peek(1) or file.peek(len(LFS_POINTER)).startswith((LFS_POINTER, *marks)):
            yield from decode_table(path).splitlines()
            return
        try:
            for number, line in enumerate(file):
                yield line.decode("utf-8" if number else "utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError:
            decode_table(path)  # says where


# --------------------------------------------------------------------------------------------------------------------
# Delimited text


@dataclass
class Record:
    """One row as it stands in a file.

    Attributes:
        line, end: its first line and the one after its last, from 0.
        fields: its cells.
    """

    line: int
    end: int
    fields: list[str]


@dataclass
class DelimitedText:
    """Read the rows of a .csv or .tsv; the arguments are those of [`read_text_table`] and the text of the file.

    Quotes are read as RFC 4180 has them. Where that fails, or where a quote would swallow lines that are rows of their
    own, quotes are part of the text, as in tables without quoting; where that cannot be either, the row is named.
    """

    path: Path
    text: str
    audio_names: tuple[str, ...]
    is_audio: Callable[[str], bool]

    def read(self) -> dict[str, list[str]]:
        """Return the cells of every column, see [`read_text_table`]."""
        self.lines = list(io.StringIO(self.text, newline=""))  # at \n, \r and \r\n alone, as csv counts them
        self.delimiter, spaced = self._find_delimiter()
        records = self._read_rows(spaced)
        names = [name.strip() for name in records[0].fields]
        self._check_header(names)
        # A column without a name, such as the index that pandas writes, cannot be asked for.
        return {
            name: [record.fields[place] for record in records[1:]] for place, name in enumerate(names) if name != ""
        }

    def _read_rows(self, spaced: bool) -> list[Record]:
        """Return header and rows, each with as many fields, in the first of the readings that is without fault."""
        faults = []
        for skip_spaces in dict.fromkeys((spaced, True)):
            try:
                records = self._parse(csv.QUOTE_MINIMAL, skip_spaces)
            except ValueError as error:
                faults.append(error)
                continue
            if not skip_spaces and len(records) > 1 and _is_spaced(records[1:]):
                continue  # a comma and a space between all fields
            swallowing = next((record for record in records if self._swallows(record)), None)
            if swallowing is None:
                return records
            faults.append(self._fault(records.index(swallowing), swallowing, "a quote is opened and not closed"))
        try:
            records = self._parse(csv.QUOTE_NONE, spaced)
        except ValueError:
            raise faults[0] from None
        if any(len(cell) > 1 and cell[0] == cell[-1] == '"' for record in records for cell in record.fields):
            raise faults[0]  # this table does quote its texts
        return records

    def _parse(self, quoting: int, skip_spaces: bool) -> list[Record]:
        """Return header and rows, without blank lines; a ValueError names the row of another number of fields."""
        reader = self._reader(self.lines, quoting, skip_spaces)
        records, line = [], 0
        try:
            for fields in reader:
                if len(fields) > 1 or (fields and fields[0].strip()):
                    records.append(Record(line, reader.line_num, fields))
                    self._check_fields(len(records) - 1, records[-1], records[0])
                line = reader.line_num
        except csv.Error as error:
            record = Record(line, reader.line_num, [])
            raise self._fault(len(records), record, f"{error}; double the quotes within a text") from error
        return records

    def _reader(self, lines: list[str], quoting: int, skip_spaces: bool):
        settings = {"delimiter": self.delimiter, "quoting": quoting, "skipinitialspace": skip_spaces}
        return csv.reader(lines, strict=True, **settings)

    def _check_fields(self, index: int, record: Record, header: Record):
        if len(record.fields) != len(header.fields):
            raise self._fault(
                index,
                record,
                f"Expected {len(header.fields)} fields in line {record.line + 1}, saw {len(record.fields)}; put "
                f"quotes around a text that holds a {DELIMITERS[self.delimiter]}",
            )

    def _fault(self, index: int, record: Record, what: str) -> ValueError:
        place = f"row {index - 1}" if index else "the header"
        return ValueError(f"{self.path}: {place} (line {record.line + 1}): {what}")

    def _swallows(self, record: Record) -> bool:
        """Tell whether a quoted text of several lines is made of rows that a stray quote has joined.

        It is so if each of its lines is a row by the number of its fields, and, as a text of several lines may have a
        comma in each, if those rows name files that are there.
        """
        if record.end - record.line < 2:
            return False
        rows = list(self._reader(self.lines[record.line : record.end], csv.QUOTE_NONE, False))
        if any(len(row) != len(record.fields) for row in rows):
            return False
        return self.delimiter == "\t" or all(any(map(self.is_audio, row)) for row in rows)

    def _find_delimiter(self) -> tuple[str, bool]:
        """Return the delimiter of the header, and whether a space follows it.

        It is the one that gives a column of audio, or else the most columns; Excel may say it in a line of its own.
        """
        said = re.fullmatch(r"sep=([,\t;|])\r?\n?", self.lines[0])
        if said:
            self.lines[0] = "\n"
        scores = {}
        for delimiter in [said[1]] if said else DELIMITERS:
            names = [name.strip() for name in self._first_row(delimiter, csv.QUOTE_MINIMAL)]
            is_usual = delimiter == ("\t" if self.path.suffix.lower() == ".tsv" else ",")
            scores[delimiter] = any(name in names for name in self.audio_names), len(names), is_usual
        best = max(scores, key=scores.get)
        if scores[best][:2] <= (False, 1):
            first = next((line for line in self.lines if line.strip()), "").strip()
            listed = ", ".join(DELIMITERS.values())
            raise ValueError(f"{self.path}: found no delimiter in the header {first[:80]!r}; expected one of {listed}")
        header = self._first_row(best, csv.QUOTE_NONE)
        return best, len(header) > 1 and all(name.startswith(" ") for name in header[1:])

    def _first_row(self, delimiter: str, quoting: int) -> list[str]:
        """Return the fields of the first line that is not blank; none if its quotes are not closed."""
        try:
            rows = csv.reader(self.lines, strict=True, quoting=quoting, delimiter=delimiter)
            return next((row for row in rows if row), [])
        except csv.Error:
            return []

    def _check_header(self, names: list[str]):
        twice = [name for place, name in enumerate(names) if name and name in names[:place]]
        if twice:
            raise ValueError(f"{self.path}: two columns are called {twice[0]!r}; rename one of them")
        if not any(name in names for name in self.audio_names) and any(map(self.is_audio, names)):
            raise ValueError(
                f"{self.path}: the first line, {', '.join(names)[:80]!r}, names a file and no columns; expected a "
                f"header with the columns {self.audio_names[0]} and the text"
            )


def _is_spaced(records: list[Record]) -> bool:
    return all(len(one.fields) > 1 and all(cell.startswith(" ") for cell in one.fields[1:]) for one in records)


# --------------------------------------------------------------------------------------------------------------------
# JSON


def read_json(path: Path, text: str) -> dict[str, list]:
    """Read lines of objects; in a .json file also a list of objects, or an object of lists, its columns.

    Raises:
        ValueError: names the line, or the row.
    """
    content = None
    if path.suffix.lower() == ".json":
        try:
            content = _loads(path, text, 1)
        except _ExtraData:
            content = None  # lines of objects
    if content is None:
        lines = enumerate(text.split("\n"), 1)  # not splitlines: a text may hold other ends of lines
        try:
            content = [_loads(path, line, number) for number, line in lines if line.strip()]
        except _ExtraData as error:
            raise ValueError(f"{error}; expected one object in a line") from error
    if isinstance(content, dict):
        lengths = {len(value) if isinstance(value, list) else -1 for value in content.values()}
        if len(lengths) == 1 and lengths != {-1}:
            return content
        content = [content]
    if not isinstance(content, list):
        raise ValueError(f"{path}: holds {type(content).__name__}; expected a list of objects")
    for row, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: row {row} is a {type(entry).__name__}; expected an object with its columns")
    names = dict.fromkeys(itertools.chain.from_iterable(content))
    return {name: [entry.get(name) for entry in content] for name in names}


class _ExtraData(ValueError):
    """Say that a file goes on after its first object."""


def _loads(path: Path, text: str, line: int):
    """Parse JSON; a ValueError names the line."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        kind = _ExtraData if error.msg == "Extra data" else ValueError
        raise kind(f"{path}: JSON parse error in line {line + error.lineno - 1}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a key twice, a number of 5,000 digits, brackets without end
        raise ValueError(f"{path}: JSON parse error in line {line} or after it: {error}") from error


def _unique_keys(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two values for {next(name for name in names if names.count(name) > 1)!r}")
    return found
