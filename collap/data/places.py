"""Find the files that a table names, inside its folder and by their literal names.

A table may be downloaded from anywhere, so a path in it may not leave its folder; what lies there may be a link to
anywhere, as the Hub's cache, DVC and git-annex lay files out: its owner made it.
"""

import os
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

# As rsync writes it: what stands behind it is the name within the data set, the same wherever the data set lies.
ROOT_MARK = "/./"


def name_within(path: str) -> str:
    """Return the name of an audio within its data set, by which it is known in any place.

    Args:
        path: from [`Place.find`]; or of another origin, where a relative path is the name, and of a whole one the base
            name.
    """
    _, mark, name = path.rpartition(ROOT_MARK)
    if mark:
        return name
    return Path(path).name if os.path.isabs(path) else os.path.normpath(path)


def is_inside(path: str, folder: str) -> bool:
    """Tell whether a whole path lies in a folder, by its name; links are not followed."""
    return os.path.normpath(path).startswith(os.path.join(folder, ""))


def _unicode_form(name: str) -> str:
    """Return the composed form: macOS decomposes the names of files, Linux keeps them."""
    return unicodedata.normalize("NFC", name)


def _caseless_form(name: str) -> str:
    return _unicode_form(name).casefold()


class Place:
    """Find files in a folder by the names that a table in it has for them.

    Each folder is listed once, which takes less than a question to the file system for each of a million names.
    """

    def __init__(self, folder: str | Path):
        self.folder = os.path.abspath(folder)
        self.listings: dict[tuple[str, Callable], dict[str, str]] = {}
        self.proven: dict[str, dict[str, str]] = {}  # folders that were found by these very names, and what is in them
        self.misspelt: list[str] = []

    def find(self, name: str | None, row: int) -> str:
        """Return the whole path of a file, [`ROOT_MARK`] before its name; the file need not be there.

        A file that is there in another Unicode form of the name is taken. One with other upper and lower case is not,
        but is remembered for [`Place.warn`].

        Raises:
            ValueError: the name is empty, or leads out of the folder; names the row.
        """
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"row {row} has no audio; expected a path in {self.folder}")
        directory, _, base = name.rpartition("/")
        if base in self.proven.get(directory, ()):
            return self.folder + ROOT_MARK + name
        for spelling in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
            inside = self._relative(spelling, row)
            found = self._spelt(inside.split("/"), _unicode_form)
            if found == name:
                self.proven[directory] = self._names(os.path.join(self.folder, directory), str)
            if found is not None:
                return self.folder + ROOT_MARK + found
        inside = self._relative(name, row)
        other = self._spelt(inside.split("/"), _caseless_form)
        if other is not None:
            self.misspelt.append(f"row {row} names {name!r}, there is {other!r}")
        return self.folder + ROOT_MARK + inside

    def holds(self, name: str) -> bool:
        """Tell whether a file of that name is there."""
        try:
            found = self._spelt(self._relative(name, 0).split("/"), _unicode_form)
        except ValueError:
            return False
        return found is not None and os.path.isfile(os.path.join(self.folder, found))

    def warn(self, source: str | Path):
        """Warn once of all names that differ from a file's in upper and lower case alone."""
        if self.misspelt:
            warnings.warn(
                f"{source}: {len(self.misspelt)} files are there in other upper and lower case only, and are missing: "
                f"{self.misspelt[0]}",
                stacklevel=2,
            )
            self.misspelt = []

    def _relative(self, name: str, row: int) -> str:
        """Return the name relative to the folder; a ValueError names the row of one that leads out of it."""
        inside = os.path.normpath(name)
        for folder in (self.folder, os.path.realpath(self.folder)) if os.path.isabs(name) else ():
            if is_inside(name, folder):
                inside = os.path.relpath(inside, folder)
                break
        if os.path.isabs(inside) or inside.split("/")[0] in ("..", ".") or "\0" in name:
            raise ValueError(
                f"row {row}: {name!r} lies outside of the data set's folder {self.folder}; audio must stay inside"
            )
        return inside

    def _spelt(self, parts: list[str], form: Callable[[str], str]) -> str | None:
        """Return the name of a file as the disk has it, equal in `form` to the one asked for; None if there is none."""
        place, spelt = self.folder, []
        for part in parts:
            if part not in self._names(place, str) and not os.path.lexists(os.path.join(place, part)):
                part = self._names(place, form).get(form(part))
                if part is None:
                    return None
            spelt.append(part)
            place = os.path.join(place, part)
        return "/".join(spelt)

    def _names(self, folder: str, form: Callable[[str], str]) -> dict[str, str]:
        """List a folder: the `form` of each name -> the name; a folder that cannot be listed counts as empty."""
        if (folder, form) not in self.listings:
            try:
                names = sorted(os.listdir(folder), reverse=True)  # of equal forms the first counts
            except OSError:
                names = []
            self.listings[folder, form] = {form(name): name for name in names}
        return self.listings[folder, form]
