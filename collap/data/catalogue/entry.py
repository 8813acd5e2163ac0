"""Describe a kind of data set, and what is asked of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets


@dataclass(frozen=True)
class Request:
    """One split of a data set, as a user names it.

    Attributes:
        source: path or Hub id.
        split: `"train"`, `"test[:100]"`, ...
        audio_column: name of the column of audio.
        config_name, revision: of a Hub data set.
    """

    source: str
    split: str
    audio_column: str = "audio"
    config_name: str | None = None
    revision: str | None = None

    @property
    def path(self) -> Path:
        return Path(self.source)


@dataclass(frozen=True)
class Entry:
    """One kind of data set.

    Attributes:
        name: what it is called, also in `--dataset NAME:PLACE`.
        layout: what it looks like, in a few words for a message.
        holds: tells whether what the user named is of this kind.
        open_split: opens the split; its audio column holds bytes or whole paths. Raises a ValueError or
            FileNotFoundError of one line.
    """

    name: str
    layout: str
    holds: Callable[[Request], bool]
    open_split: Callable[[Request], datasets.Dataset]
