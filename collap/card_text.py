"""Text of others for a card: without paths of the machine, and unable to become HTML or to end a part of the card."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from collap.data.catalogue import public_name
from collap.data.catalogue.named import SETS

ROOT = r"(?:~(?:[A-Za-z_][\w.-]*)?|[A-Za-z]:|file:(?://[^/\s]*)?)?[/\\]"
# A quoted absolute path, or one without blanks that does not continue a word or an address.
ABSOLUTE_PATH = re.compile(rf"""'{ROOT}[^'\n]+'|(?<![\w./\\@%*]){ROOT}[\w.~][^\s'"=,;]*""")
WHOLE_PATH = re.compile(rf"""{ROOT}[\w.~][^'"\n]*""")  # with blanks
NAMES = "|".join(SETS)
WHOLE_SET = re.compile(rf"(?:{NAMES}):\S[^\n]*")  # `song_describer:data/sdd`, perhaps with blanks
# The same within a command: quoted, or of the characters that a shell does not quote.
NAMED_SET = re.compile(rf"""'(?:{NAMES}):[^'\n]+'|(?<![\w./\\:-])(?:{NAMES}):[\w@%+=:,./~\\-]+""")
QUOTE = "'"


def without_local_paths(value: Any) -> Any:
    """Return strings, also within lists and dicts and their keys, with `.../name` in place of every absolute path.

    A data set by name, `song_describer:data/sdd`, becomes `song_describer`; within a command `song_describer:FOLDER`.
    """
    if isinstance(value, dict):
        return {without_local_paths(key): without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if WHOLE_SET.fullmatch(value):
        return public_name(value)
    if WHOLE_PATH.fullmatch(value):
        return f".../{plain_name(value)}"
    return ABSOLUTE_PATH.sub(_last_name, NAMED_SET.sub(_named_folder, value))


def _named_folder(source: re.Match) -> str:
    name, mark, settings = public_name(source[0].strip(QUOTE)).partition("?")
    return shlex.quote(f"{name}:FOLDER{mark}{settings}")


def _last_name(path: re.Match) -> str:
    return shlex.quote(f".../{plain_name(path[0].strip(QUOTE))}")


def hub_id(name: str | None, is_on_hub: Callable[[str], bool]) -> str | None:
    """Return `name` if it is the id of a repository: no local path, in the form of an id, and found by `is_on_hub`."""
    if not name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if is_on_hub(name) else None


def plain_name(name: str) -> str:
    """Return what a data set or model is called where its local path means nothing."""
    return public_name(str(name)) or re.split(r"[/\\]", str(name).rstrip("/\\"))[-1]


def origin(name: str | None, ids: list[str]) -> str | None:
    """Return how a card names what a model comes from: by its Hub id, as a data set by name, or as the local folder
    that it was."""
    if not name or name in ids:
        return table_text(name)
    kind = "the data set" if public_name(name) or name.partition("?")[0] in SETS else "a local folder named"
    return f"{kind} `{table_text(plain_name(name))}`"


def one_line(text: str) -> str:
    """Return text of others in one line, which is no HTML, and ends neither a part of the card nor a span of code."""
    for character, shown in (("<", "&lt;"), (">", "&gt;"), ("`", "'")):
        text = text.replace(character, shown)
    return " ".join(text.split())


def table_text(value: Any) -> Any:
    """Return strings, also within lists and dicts, as what a cell of a table can hold."""
    if isinstance(value, dict):
        return {key: table_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [table_text(item) for item in value]
    return one_line(value).replace("|", "\\|") if isinstance(value, str) else value
