"""List the data sets that can be named: kinds of files here, sets such as MusicCaps in `named`.

A user names one as `NAME:PLACE`, such as `hub:owner/songs` or `musiccaps:FOLDER`; without a name the first of `ENTRIES`
that holds the place is taken. To add a kind, write a file like those beside this one, with its `ENTRY`, and put that
entry into `ENTRIES`; to add a set, see `named`.
"""

import dataclasses
import re

from collap.files import nearest

from . import folder, hub, saved, shards, table
from .entry import Entry, Request
from .named import SETS
from .named_sets import named_entry

ENTRIES = (saved.ENTRY, shards.ENTRY, folder.ENTRY, table.ENTRY, hub.ENTRY)
NAMES = {entry.name: entry for entry in (*ENTRIES, *map(named_entry, SETS.values()))}
NAMED_PLACE = re.compile(r"(?P<name>[A-Za-z][\w-]+):(?!//|\\)(?P<place>.*)", re.DOTALL)  # no C:\songs, no address


def find_entry(request: Request) -> tuple[Entry, Request]:
    """Return the kind of a data set, and the request without the name of that kind.

    A file or folder whose own name has a colon is taken as it is.

    Raises:
        FileNotFoundError: there is no data set of the kind that was named, or no such kind.
    """
    named = None if request.path.exists() else NAMED_PLACE.fullmatch(request.source)
    if named is None:
        return next(entry for entry in ENTRIES if entry.holds(request)), request
    entry = NAMES.get(named["name"])
    if entry is None:
        raise FileNotFoundError(
            f"{request.source}: no such file or folder, and no data set is called {named['name']!r}; "
            + nearest(named["name"], NAMES)
        )
    request = dataclasses.replace(request, source=named["place"])
    if not entry.holds(request):
        raise FileNotFoundError(f"{request.source}: expected {entry.layout}")
    return entry, request


def all_splits(request: Request) -> list[str]:
    """Return the names of the splits of a data set; a folder may have some as shards and others as files."""
    entry, request = find_entry(request)
    kinds = (folder.ENTRY, shards.ENTRY) if entry in (folder.ENTRY, shards.ENTRY) else (entry,)
    return list(dict.fromkeys(name for kind in kinds for name in kind.splits(request)))


def public_name(source: str) -> str | None:
    """Return what a data set by name is called wherever its folder lies: `futga?window_seconds=0` of
    `futga:FOLDER?window_seconds=0`; None of one that has no name."""
    named = NAMED_PLACE.fullmatch(source)
    if named is None or named["name"] not in SETS:
        return None
    settings = re.search(r"\?[\w=&.+-]*$", named["place"])
    return named["name"] + (settings[0] if settings else "")
