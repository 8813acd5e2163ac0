"""Describe a kind of data set, and what is asked of it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets


@dataclass(frozen=True)
class Request:
    """Name one split of a data set, as a user does.

    Attributes:
        source: path or Hub id.
        split: `"train"`, `"test[:100]"`, ...
        audio_column: name of the column of audio.
        config_name, revision: of a Hub data set.
    """

    source: str
    split: str = "train"
    audio_column: str = "audio"
    config_name: str | None = None
    revision: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "source", os.fspath(self.source))  # a Path is as good

    @property
    def path(self) -> Path:
        """Return the source as a path."""
        return Path(self.source)


@dataclass(frozen=True)
class Entry:
    """Describe one kind of data set.

    Attributes:
        name: what it is called, also in `--dataset NAME:PLACE`.
        layout: what it looks like, in a few words for a message.
        holds: tells whether what the user named is of this kind.
        splits: returns the names of its splits.
        open_split: opens one of them; its audio column holds bytes, or whole paths of files inside of its folder.
            Both raise a ValueError or FileNotFoundError of one line.
    """

    name: str
    layout: str
    holds: Callable[[Request], bool]
    splits: Callable[[Request], list[str]]
    open_split: Callable[[Request], datasets.Dataset]
