"""Keep embeddings on disk by the weights, the content and the settings that made them, so that nothing is made twice.

A file is one song, or all texts of a pool. Each is written beside its place and renamed: a run that was killed goes on
with what it had finished, and gives the same figures. Float32, so that a stored embedding scores as a new one does: a
song of 5 minutes takes 3.8 MB at 512 numbers for every 0.16 s.

Dimensions: `T` tokens or windows of a song, `B` texts, `Q` sentences of a text, `D` shared width.
"""

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from collap.data.audio_parts import audio_part
from collap.files import replace_file

# To be raised with every change of code that changes the embeddings of the same content.
VERSION = 1


def audio_digest(source: bytes | str, window_seconds: float | None = None) -> str:
    """Return what an audio is known by: its bytes, and the span of them that is heard, from its beginning at most
    `window_seconds`."""
    part = audio_part(source)
    span = [part.start, part.stop, *([] if window_seconds is None else [window_seconds])]
    digest = hashlib.blake2b(json.dumps(span).encode(), digest_size=16)
    if isinstance(part.source, bytes):
        digest.update(part.source)
    else:
        with open(part.source, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def texts_digest(texts: list[str]) -> str:
    """Return what a list of texts is known by."""
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()


class EmbeddingStore:
    """Hold the embeddings of one model with its settings, in a folder of their own below `root`."""

    def __init__(self, root: Path, weights: str, settings: dict):
        about = {"version": VERSION, "weights": weights, "settings": settings}
        name = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=12).hexdigest()
        self.root, self.folder = root, root / name
        self.about = about

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def read(self, digest: str) -> torch.Tensor | None:
        """Read an embedding; None if there is none.

        Raises:
            ValueError: its file is damaged.
        """
        path = self._path(digest)
        if not path.is_file():
            return None
        try:
            return load_file(path)["embeds"]
        except (SafetensorError, KeyError, OSError) as error:
            raise ValueError(f"{path}: a damaged embedding ({error}); delete it, and it is made anew") from error

    def write(self, digest: str, embeds: torch.Tensor) -> None:
        """Write an embedding; several processes may write the same one, as a recording may be in several songs."""
        path, writer = self._path(digest), f".{uuid.uuid4().hex}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "about.json").exists():
            text = json.dumps(self.about, indent=2) + "\n"
            replace_file(self.folder / "about.json", lambda place: place.write_text(text, encoding="utf-8"), writer)
        tensor = {"embeds": embeds.detach().float().cpu().contiguous()}
        replace_file(path, lambda place: save_file(tensor, place), writer)

    def get(self, digest: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Read an embedding, or make and write it."""
        found = self.read(digest)
        if found is None:
            found = make().detach().float().cpu()
            self.write(digest, found)
        return found

    def check_width(self, text_embeds: torch.Tensor, audio_embeds: torch.Tensor, digest: str) -> None:
        """Raise a ValueError unless a song is as wide as the texts that it is scored with."""
        if text_embeds.shape[-1] != audio_embeds.shape[-1]:
            raise ValueError(
                f"{self._path(digest)}: embeddings of width {audio_embeds.shape[-1]}, the texts' have "
                f"{text_embeds.shape[-1]}: made by another model under the same weights; delete {self.folder}"
            )
