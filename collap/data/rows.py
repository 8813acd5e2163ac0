"""Read one row of a data set: its audio, not decoded, and its texts; and say which row an error is about."""

import ast
import hashlib
import io
import json
import tokenize
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow.compute as pc

from collap.files import nearest
from processing.decode_audio import AudioFileError

from .audio_parts import part_size

LISTED = 500  # characters of a message's list of columns
TOLD_BYTES = 2**16  # at the beginning of an audio without a path, by which it is told from others of the same size


def check_column(dataset: datasets.Dataset, column: str, source: str):
    """Raise a ValueError that lists the columns and the nearest name if there is no such column."""
    if column not in dataset.column_names:
        listed, hint = repr(dataset.column_names), nearest(column, dataset.column_names)
        listed = listed if len(listed) < LISTED else f"{listed[:LISTED]}...]"
        said = f"; {hint}" if hint.startswith("did you mean") else ""  # else it would list the columns again
        raise ValueError(f"{source}: no column {column!r}; the columns are {listed}{said}")


def audio_source(audio: dict | None) -> bytes | str:
    """Return the bytes or the path of an entry of an audio column that is not decoded.

    Raises:
        AudioFileError: there is neither.
    """
    for key in ("bytes", "path"):
        if audio is not None and audio.get(key) is not None:
            return audio[key]
    raise AudioFileError("has no audio; expected bytes or a path")


def content_digest(content: bytes) -> str:
    """Return the BLAKE2b of an audio's bytes, 32 hexadecimal digits, by which audio without a path is known."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_size(path: str | Path | None) -> int | None:
    """Return the bytes of a file or of an archive's member; None where there is none: said when its row is read."""
    try:
        return part_size(path)
    except (OSError, TypeError, ValueError):
        return None


def audio_paths(dataset: datasets.Dataset, audio_column: str) -> list[str | None]:
    """Return the path of every row's audio, None for bytes without one; nothing else of the audio is read."""
    paths = []
    # Arrow, so that the bytes of the audio are not copied to look at what lies beside them.
    for table in dataset.select_columns(audio_column).with_format("arrow").iter(batch_size=1000):
        paths += pc.struct_field(table.column(audio_column), "path").to_pylist()
    return paths


def named_audio(dataset: datasets.Dataset, row: int, audio_column: str) -> dict:
    """Return the entry of one row's audio without its bytes, for messages."""
    return {"path": audio_paths(dataset.select([row]), audio_column)[0], "bytes": None}


def row_name(row: int | str, audio: dict | None) -> str:
    """Return `"row 7 (song.mp3)"`; bytes without a path have no other name than their row."""
    path = audio.get("path") if audio is not None else None
    return f"row {row} ({Path(path).name})" if path else f"row {row}"


@contextmanager
def naming_row(row: int | str, audio: dict | None) -> Iterator[None]:
    """Put `row 7 (song.mp3): ` before the message of an `AudioFileError`."""
    try:
        yield
    except AudioFileError as error:
        raise AudioFileError(f"{row_name(row, audio)}: {error}") from error


def worker_message(error: BaseException) -> str:
    """Return what an error says, without the traceback that a `DataLoader` worker puts into it.

    Returns:
        `"AudioFileError: row 7 (song.mp3): ..."` for an error of a worker, else `str(error)`.
    """
    text = str(error)
    if not text.startswith("Caught ") or "\nOriginal " not in text:
        return text
    lines = text.rpartition("Traceback (most recent call last):\n")[2].splitlines()
    start = next((index for index, line in enumerate(lines) if line and not line.startswith(" ")), 0)
    kind, separator, message = "\n".join(lines[start:]).partition(": ")
    return kind.rpartition(".")[2] + separator + message


def row_texts(text: str | list[str | None] | None, row: int | str) -> list[str]:
    """Return the texts of one row, without those that are missing or blank.

    A text that is itself a list of texts, as Python, JSON or numpy write one, is that list: so a cell of a .csv can
    hold several.

    Raises:
        ValueError: names the row if it has no text, or something else than text.
    """
    if isinstance(text, str) and (listed := listed_texts(text)) is not None:
        warnings.warn("texts that are written lists, such as ['a', 'b'], are read as lists (said once)", stacklevel=2)
        text = listed
    texts = list(text) if isinstance(text, (list, tuple)) else [text]
    for one in texts:
        if one is not None and not isinstance(one, str):
            raise ValueError(
                f"row {row} has {one!r} ({type(one).__name__}) as text; expected a string or a list of strings"
            )
    texts = [one for one in texts if one is not None and not is_blank(one)]
    if not texts:
        raise ValueError(f"row {row} has no text; expected a string or a list of strings in its text column")
    return texts


def is_blank(text: str) -> bool:
    """Tell whether a text has nothing to read: spaces, marks without a letter, and characters without width alone."""
    return all(unicodedata.category(character)[0] in "CMZ" for character in text)


def listed_texts(text: str) -> list[str] | None:
    """Return the texts of `['a', 'b']`, `["a", "b"]` or `['a' 'b']`; None of what is no list of texts."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
        return found if all(isinstance(one, str) for one in found) else None
    except (ValueError, RecursionError):
        pass
    found = []
    try:  # not ast.literal_eval: of numpy's list without commas it makes one text
        for token in tokenize.generate_tokens(io.StringIO(text[1:-1].replace("\n", " ")).readline):
            if token.type == tokenize.STRING:
                found.append(ast.literal_eval(token.string))
            elif token.string.strip(", ") and token.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
                return None
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return found if all(isinstance(one, str) for one in found) else None


def song_name(value, row: int | str, column: str) -> str:
    """Return the name of a row's song; a ValueError names the row if it has none."""
    name = "" if value is None else str(value).strip()
    if not name:
        raise ValueError(f"row {row} has no {column!r}; with a song column every row must name its song")
    return name


def row_songs(dataset: datasets.Dataset, audio_column: str, song_column: str | None = None) -> list[str]:
    """Return what every row's song is told by: its name in a column, or else its audio, which is not read for it.

    An audio is told by its path; with bytes, also by their number; without a path by their beginning.

    Raises:
        ValueError: there is no such column, or a row names no song.
    """
    if song_column is not None:
        check_column(dataset, song_column, "song_column")
        names = dataset.select_columns(song_column)[song_column]
        return [song_name(value, row, song_column) for row, value in enumerate(names)]
    songs = []
    for table in dataset.select_columns(audio_column).with_format("arrow").iter(batch_size=1000):
        audio = table.column(audio_column)
        content, paths = pc.struct_field(audio, "bytes"), pc.struct_field(audio, "path").to_pylist()
        sizes, starts = pc.binary_length(content).to_pylist(), None
        if None in paths:
            starts = pc.binary_slice(content, 0, TOLD_BYTES).to_pylist()
        for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            start = "" if path is not None else content_digest(starts[index] or b"")
            songs.append(f"{path or start} {'' if size is None else size}")
    return songs


def check_row_texts(dataset: datasets.Dataset, text_column: str) -> str:
    """Return the longest text of a data set, after a look at every row; no other column is read.

    Raises:
        ValueError: names the first row without a text, see [`row_texts`].
    """
    longest, row = "", 0
    for batch in dataset.select_columns(text_column).iter(batch_size=1000):
        for text in batch[text_column]:
            longest = max(longest, *row_texts(text, row), key=len)
            row += 1
    return longest
