"""Keep what is known of each track on the disk, so that a build that was killed goes on where it was.

    OUT/work/settings.json        what the tracks below were made with
    OUT/work/prints/ID.npy        fingerprint of a track that is kept
    OUT/work/audio/ID.flac        what is kept of a recording of which it is a part
    OUT/work/tracks/ID.json       the track; it is written last, so what it speaks of is there

Every file is put in place in one go. Folders of several machines are joined by copying their files into one.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from collap.files import replace_file, replace_text

from .tracks import Track

VERSION = 2  # raise it with every change of what the same settings make of the same track


class State:
    """Hold the folder of a build's work.

    Args:
        folder: `OUT/work`; made if it is not there.
        settings: what decides what is made of a track, as JSON has it.

    Raises:
        ValueError: it holds tracks that were made with other settings; names them.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self.tracks, self.prints, self.audio = (folder / name for name in ("tracks", "prints", "audio"))
        settings = json.loads(json.dumps({"version": VERSION, **settings}))
        path = folder / "settings.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            others = [name for name in {**settings, **found} if settings.get(name) != found.get(name)]
            if others:
                said = "; ".join(f"{one} was {found.get(one)!r}, is {settings.get(one)!r}" for one in others)
                raise ValueError(
                    f"{folder}: holds tracks of other settings ({said}); delete it, or name another folder"
                )
        for place in (self.tracks, self.prints, self.audio):
            place.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            self.share("settings.json", settings)

    def share(self, name: str, content: dict) -> None:
        """Write a file that several processes may write at once, all of them the same."""
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=f".{name}.", delete=False) as file:
            file.write(json.dumps(content, indent=2) + "\n")
        os.replace(file.name, self.folder / name)

    def has(self, track: Track) -> bool:
        """Tell whether a track is done, and was listed then as it is now."""
        return (self.tracks / f"{track.id}.json").is_file() and self.load(track.id).listing == track.listing

    def load(self, name: str) -> Track:
        """Return a track that is done.

        Raises:
            ValueError: its file is damaged; says what to do.
        """
        path = self.tracks / f"{name}.json"
        try:
            return Track.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: is damaged ({' '.join(str(error).split())[:200]}); delete it, and run again"
            ) from error

    def save(self, track: Track) -> None:
        """Write a track: it is done."""
        replace_text(self.tracks / f"{track.id}.json", json.dumps(track.to_json(), ensure_ascii=False) + "\n")

    def save_print(self, name: str, bits: np.ndarray) -> None:
        """Write the fingerprint (F,) of a track."""

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                np.save(file, bits)

        replace_file(self.prints / f"{name}.npy", write)

    def load_print(self, name: str) -> np.ndarray:
        """Return the fingerprint (F,) of a track."""
        return np.load(self.prints / f"{name}.npy")

    def all(self, names: Iterable[str]) -> Iterator[Track]:
        """Yield tracks that are done, one at a time."""
        return map(self.load, names)
