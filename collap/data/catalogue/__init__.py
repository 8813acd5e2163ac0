"""List the data sets that can be named: one entry for each kind, in the order in which they are tried.

To add one, write a file like those beside this one, with its `ENTRY`, and put that entry into `ENTRIES`. A user names
it as `NAME:PLACE`, such as `hub:owner/songs`; without a name the first entry that holds the place is taken.
"""

import dataclasses

from . import folder, hub, saved, shards, table
from .entry import Entry, Request

ENTRIES = (saved.ENTRY, shards.ENTRY, folder.ENTRY, table.ENTRY, hub.ENTRY)


def find_entry(request: Request) -> tuple[Entry, Request]:
    """Return the kind of a data set, and the request without the name of that kind.

    A file or folder whose own name has a colon is taken as it is.

    Raises:
        FileNotFoundError: there is no data set of the kind that was named.
    """
    name, colon, place = request.source.partition(":")
    named = [entry for entry in ENTRIES if colon and entry.name == name and not request.path.exists()]
    if named:
        request = dataclasses.replace(request, source=place)
    for entry in named or ENTRIES:
        if entry.holds(request):
            return entry, request
    raise FileNotFoundError(f"{place}: expected {named[0].layout}")


def all_splits(request: Request) -> list[str]:
    """Return the names of the splits of a data set; a folder may have some as shards and others as files."""
    entry, request = find_entry(request)
    kinds = (folder.ENTRY, shards.ENTRY) if entry in (folder.ENTRY, shards.ENTRY) else (entry,)
    return list(dict.fromkeys(name for kind in kinds for name in kind.splits(request)))
