"""Ask the index that is published now, in the terms of the HTTP API. Functions may be called from several threads.

Dimensions: `T` tokens and `S` segments of a clip, `D` shared width.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from starlette.requests import ClientDisconnect

from collap.data.guarded_reading import Source, stream_audio
from collap.files import flat

from ..filters import COMPARISONS, FIELDS
from ..index import TrackIndex
from ..library import shown
from ..moments import Curve
from ..segments import frame_size, mean_rows, segment_bounds
from ..store import MANIFEST, IndexStore, named_files
from .answers import Asked, Described, Narrowed, Track
from .library_files import NotServed

MOST_GENRES = 12  # that the statistics name
AGAIN_SECONDS = 10  # after which an index that could not be opened is tried again
FILTER_HELP = f"fields: {', '.join(FIELDS)}; {' '.join(COMPARISONS)} (~ contains); and, or, not, ( )"

logger = logging.getLogger(__name__)


class Searcher:
    """Hold an index that is open, and open it anew once another is published in its place.

    Args:
        folder: of the index.
        library: where its songs lie; None for where they lay when they were indexed.
        model, device, engine: see [`TrackIndex.open`].

    Raises:
        OSError, ValueError: there is no such index or model; one line.
    """

    def __init__(
        self,
        folder: Path,
        library: Path | None = None,
        model: str | None = None,
        device: str = "cpu",
        engine: str | None = None,
    ):
        self._folder, self._library, self._model, self._device, self._engine = folder, library, model, device, engine
        self._lock, self._seen, self._looked = threading.Lock(), _state(folder), -math.inf
        self._index = self._opened()

    @property
    def index(self) -> TrackIndex:
        """Return the index that is published now; the last one that could be opened if that one cannot."""
        with self._lock:
            state = _state(self._folder)
            if state not in (None, self._seen) and time.monotonic() >= self._looked + AGAIN_SECONDS:
                try:
                    self._index, self._seen = self._opened(self._index), state
                except (OSError, ValueError) as error:  # such as an engine that is not filled yet
                    self._looked = time.monotonic()
                    logger.warning("%s; what was published before is searched", flat(error))
            return self._index

    def _opened(self, before: TrackIndex | None = None) -> TrackIndex:
        """Open the index and load its model, or keep that of the index before."""
        store = IndexStore.open(self._folder)
        is_same = before is not None and before.store.space.id == store.space.id
        index = TrackIndex(store, before.embedder if is_same else self._model, self._device, self._engine)
        index.embedder  # noqa: B018 (loaded now, not at the first search)
        return index

    @property
    def library(self) -> Path:
        """Return the folder that the songs lie in."""
        return self._library or self._index.store.library

    # ---- songs

    def track(self, id: str) -> Track:
        """Return what is known of a song; raises NotServed if there is none of this id."""
        index = self.index
        row = _row(index, id)
        about = index.store.tracks.slice(row, 1).to_pylist()[0]
        return Track(**{name: about[name] for name in Track.model_fields if name != "path"}, path=shown(about["path"]))

    def file_of(self, id: str) -> tuple[bytes, int]:
        """Return the path of a song within the library, and its bytes; raises NotServed as [`track`] does."""
        index = self.index
        row = _row(index, id)
        return index.store.tracks["path"][row].as_py(), index.store.tracks["size"][row].as_py()

    # ---- searching

    def search(self, asked: Asked) -> dict:
        """Return the fields of an answer, but for its time.

        Raises:
            ValueError: not one thing is asked for, or the filter or the moment is none.
        """
        _check(asked)
        found = self.index.search(asked.q, like=asked.like, not_text=asked.not_, **_narrowed(asked))
        return found.to_dict()

    def similar(self, clip: torch.Tensor, asked: Narrowed) -> dict:
        """Return the fields of an answer to a clip, see [`embed_clip`]."""
        (found,) = self.index.search(vectors=[clip], **_narrowed(asked))
        return found.to_dict()

    def curve(self, id: str, asked: Described) -> Curve:
        """Return how well a song fits over its time; raises as [`track`] and [`search`] do."""
        index = self.index
        track = _row(index, id)
        _check(asked)
        return index.moments(track, asked.q, like=asked.like, curve=True)["curve"]

    def embed_clip(self, clip: bytes, max_seconds: float, gone: threading.Event) -> torch.Tensor:
        """Decode a clip in the process that is for it, and embed it.

        Args:
            clip: bytes of an audio file.
            max_seconds: that it may last.
            gone: once set, nobody waits for it any more, and no more of it is embedded.

        Returns:
            (S, D): its segments in their order, or with a score that knows no order, the mean of all, (1, D).

        Raises:
            ValueError: it is no audio, or longer.
            ClientDisconnect: `gone` was set.
        """
        index = self.index
        embeds = index.embedder.embed_file(clip, read=_read_up_to(max_seconds, gone)).float().cpu()  # (T, D)
        if not index.function.has_sentences:
            return embeds.mean(0, keepdim=True)  # (1, D)
        return mean_rows(embeds, segment_bounds(embeds, frame_size(index.function.token_seconds)))  # (S, D)

    def statistics(self) -> dict:
        """Return the fields of `Statistics` that are of the index."""
        store = self.index.store
        genres = pc.value_counts(store.tracks["genre"].drop_null()).to_pylist()
        genres = sorted(genres, key=lambda one: (-one["counts"], one["values"]))[:MOST_GENRES]
        return {
            "tracks": len(store.tracks),
            "hours": (pc.sum(store.tracks["seconds"]).as_py() or 0.0) / 3600,
            "failed": len(store.failed),
            "bytes": sum(size for _, size, _ in named_files(store.folder, store.manifest)),
            "model": os.path.basename(store.settings["model"].rstrip("/")),  # a folder's place is not for everybody
            "space": store.space.id,
            "generation": store.generation,
            "genres": [{"name": one["values"], "tracks": one["counts"]} for one in genres],
            "filter_help": FILTER_HELP,
        }


def _state(folder: Path) -> tuple[int, int, int] | None:
    """Return what an index that is published anew does not keep; None while there is none."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _check(asked: Described) -> None:
    if (asked.q is None) == (asked.like is None):
        raise ValueError("expected q, a description, or like, ID or ID@SECONDS of a song, and not both")


def _row(index: TrackIndex, id: str) -> int:
    row = pc.index(index.store.tracks["id"], id).as_py()
    if row < 0:
        raise NotServed(f"{id!r}: no song of the index; expected an id that a search has given")
    return row


def _narrowed(asked: Narrowed) -> dict:
    seconds = {"min_seconds": asked.min_seconds, "max_seconds": asked.max_seconds}
    how = {"mode": asked.mode, "curve": asked.curve, "collapse": not asked.all_copies}
    return {"k": asked.k, "filters": asked.filter, **how, **seconds}


def _read_up_to(max_seconds: float, gone: threading.Event) -> Callable[..., Iterator[np.ndarray]]:
    """Return `stream_audio` for a clip that somebody waits for, see [`Searcher.embed_clip`]."""

    def read(source: Source, sampling_rate: int, **settings) -> Iterator[np.ndarray]:
        left = max_seconds * sampling_rate
        for block in stream_audio(source, sampling_rate, **settings):
            left -= len(block)
            if left < 0:
                raise ValueError(f"the clip is longer than {max_seconds:g} s; cut it")
            if gone.is_set():
                raise ClientDisconnect
            yield block

    return read
