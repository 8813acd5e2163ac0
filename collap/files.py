"""Files and folders that are replaced in one go, so that a reader, or a run after a kill, sees the old content or the
new; and the nearest of some names."""

import difflib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch and safetensors have their own for a full disk


def none_by_name(value: str | None) -> str | None:
    """Return None for what people write for it on a command line."""
    return None if value in ("none", "None") else value


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what an unknown `name` may have meant: "did you mean 'x'?", or else "expected one of a, b, c"."""
    known = [str(one) for one in known]
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"


def write_json(path: Path, content: dict | list) -> None:
    """Replace a file by `content` as JSON."""
    replace_text(path, json.dumps(content, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replace a file by `text`."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], Any], writer: str = "") -> None:
    """Let `write` fill a file of another name, and rename it to `path` when all of it is on the disk.

    Args:
        writer: a name of its own for each of those who may write this file at the same time.

    Raises:
        OSError: it cannot be written; names the file. What was there before is untouched.
    """
    temporary = path.with_name(f"{path.name}{writer}.partial")  # one name: the next run overwrites what is left
    try:
        write(temporary)
        flush_path(temporary)
        temporary.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a folder by what `write` puts into an empty one; `path` is never half-written.

    Raises:
        OSError: says what could not be written; `path` is as it was.
    """
    temporary, old = (path.with_name(f".{path.name}.{ending}") for ending in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        flush(temporary)
    except WRITE_ERRORS as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{path} could not be written ({one_line(error)}); what was there before is untouched") from error
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Put back what was there before, if a kill came between the two renames of [`write_folder`]."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)


def flush(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush_path(path)


def flush_path(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flat(error: BaseException, limit: int | None = None) -> str:
    """Return all that an error says in one line, at most `limit` characters of it."""
    return " ".join(str(error).split())[:limit]


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line that it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
