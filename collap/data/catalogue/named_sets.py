"""Open the data sets of `collap.data.catalogue.named`: find their records in a folder, and make a table of them."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import datasets

from collap.data.records import NamedSet, Record, records_table
from collap.data.set_folder import SetFolder
from collap.data.tables import split_name, take_split
from collap.files import nearest

from .entry import Entry, Request
from .named import SETS

ALL = "all"  # every split at once
NAMES_SHOWN = 3


class NoSuchConfig(ValueError):
    """Say that a folder has no table of the config that was asked for."""


def named_entry(named: NamedSet) -> Entry:
    """Return the kind of data set that [`open_dataset`] opens a named one by."""
    return Entry(
        named.name,
        named.layout,
        lambda request: True,  # what it lacks is said when it is read
        lambda request: sorted({record.split for record in read_records(named, request)[1]}),
        lambda request: open_split(named, request),
    )


def read_records(named: NamedSet, request: Request) -> tuple[SetFolder, Iterator[Record]]:
    """Find the records of a data set in the folder that a request names, those without audio too.

    Raises:
        FileNotFoundError: there is no such folder, or it is of another data set; says of which.
        ValueError: a setting is unknown; while reading, a table is malformed.
        NoSuchConfig: while reading, there is no table of the config.
    """
    place, settings = _place_and_settings(named, request.source)
    if not place or not Request(place).path.is_dir():
        raise FileNotFoundError(f"{place or named.name + ':'}: no such folder; expected one with {named.layout}")
    folder = SetFolder(place)
    if not named.tables(folder):
        others = [other.name for other in SETS.values() if other is not named and other.tables(folder)]
        hint = f"it looks like {' or '.join(f'{name}:{place}' for name in others)}" if others else f"get {named.get}"
        raise FileNotFoundError(f"{place}: holds no {named.name}; expected {named.layout}; {hint}")
    return folder, _of_config(named, request, named.read(folder, settings))


def _place_and_settings(named: NamedSet, source: str) -> tuple[str, dict]:
    """Return the folder of `FOLDER?name=value`, and the settings with their defaults."""
    place, mark, query = source.partition("?")
    if not mark or Request(source).path.exists():
        return source, dict(named.settings)
    settings = dict(named.settings)
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in settings:
            raise ValueError(f"{named.name}: no setting {name!r}; {nearest(name, settings or ['no settings'])}")
        settings[name] = _value(f"{named.name}?{name}", text, settings[name])
    return place, settings


def _value(name: str, text: str, default: bool | int | float) -> bool | int | float:
    """Parse a setting as what its default is."""
    words = {"true": True, "1": True, "false": False, "0": False}
    try:
        value = words[text.lower()] if isinstance(default, bool) else type(default)(text)
    except (KeyError, ValueError):
        value = -1
    if value < 0 or value != value:
        kind = "true or false" if isinstance(default, bool) else f"a number, 0 or more, such as {default}"
        raise ValueError(f"{name}={text}: expected {kind}")
    return value


def _of_config(named: NamedSet, request: Request, records: Iterator[Record]) -> Iterator[Record]:
    """Yield the records of the config that was asked for; without one all, or the first of several that overlap."""
    wanted, seen = request.config_name, {}
    for record in records:
        seen[record.config] = True
        if wanted is None and named.overlapping:
            wanted = record.config
        if wanted is None or record.config == wanted:
            yield record
    if wanted is not None and wanted not in seen:
        raise NoSuchConfig(f"{named.name}: no config {wanted!r}; {nearest(wanted, filter(None, seen))}")


def open_split(named: NamedSet, request: Request) -> datasets.Dataset:
    """Open a split, or `all`: the recordings whose audio and texts are there. How many are missing is warned of.

    Raises:
        ValueError: there is no such split, or nothing of it can be used.
    """
    folder, records = read_records(named, request)
    wanted, used, missing, splits = split_name(request.split), [], Missing(), set()
    for record in records:
        splits.add(record.split)
        if wanted not in (ALL, record.split):
            continue
        if record.files and record.texts:
            used.append(record)
        else:
            missing.add(record)
    if not used and not missing.count:
        raise ValueError(f"{request.source}: no split {wanted!r}; the splits are {[*sorted(splits), ALL]}")
    if missing.count:
        _say_missing(named, request, len(used), missing)
    return take_split({wanted: records_table(used, folder)}, request.split, request.source)


@dataclass
class Missing:
    """Count the recordings that cannot be used, of which there may be two million.

    Attributes:
        ids: of the first.
        lacks_audio: whether one of them does, and not only texts.
    """

    count: int = 0
    ids: list[str] = field(default_factory=list)
    lacks_audio: bool = False

    def add(self, record: Record) -> None:
        """Count one."""
        self.count += 1
        self.lacks_audio |= not record.files
        if self.count <= NAMES_SHOWN:
            self.ids.append(record.id)


def _say_missing(named: NamedSet, request: Request, used: int, missing: Missing) -> None:
    """Warn of recordings that are left out; a ValueError if that is all of them."""
    what = "audio" if missing.lacks_audio else "text"
    listed = ", ".join(missing.ids) + (", ..." if missing.count > NAMES_SHOWN else "")
    advice = f"`collap data check {named.name} FOLDER` lists them"
    if not used:
        raise ValueError(
            f"{request.source}: none of the {missing.count} recordings of {request.split!r} has {what} in the folder "
            f"({listed}); expected {named.layout}; {advice}, with commands that fetch audio"
        )
    warnings.warn(
        f"{request.source}: {missing.count} of {used + missing.count} recordings of {request.split!r} have no "
        f"{what} and are left out ({listed}); the pool is {used}. {advice}",
        stacklevel=2,
    )
