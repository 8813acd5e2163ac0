"""Give analyses what models make of a pool: scores and pooled vectors of its songs, as they are or changed.

Everything is kept on disk by [`collap.evaluation.embedding_store`]: of a song as it is all tokens, so that any texts
can be scored with it later; of a changed one its scores with the pool's texts and its pooled vector alone, some kB.
What is asked for again is read, and a run that was killed goes on. One song is in memory at a time, and one matrix of
scores.

Dimensions: `A` songs, `B` texts, `Q` sentences of a text, `M` samples, `T` tokens or windows of a song, `D` width.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from collap.data.guarded_reading import header_seconds
from collap.data.rows import audio_source, naming_row
from processing.decode_audio import AudioFileError
from processing.embed_audio import check_samples

from ..embedders import Embedder
from ..embedding_store import EmbeddingStore, audio_digest, texts_digest
from ..suite_data import NothingThere, OpenPool
from .changes import FIRST, ORIGINAL, Change


def digest_of(*parts) -> str:
    """Return what facts of JSON are known by."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


class SongReader:
    """Decode one song for all models: once for each change and sampling rate, and only what is asked for."""

    def __init__(self, source: bytes | str):
        self.source = source
        self.reader = functools.lru_cache(maxsize=1)(lambda change: change.reader(source))
        self.samples = functools.lru_cache(maxsize=2)(self._samples)  # 57 MB for 5 minutes at 48 kHz

    def _samples(self, change: Change, rate: int) -> np.ndarray:
        """Return samples (M,); see [`check_samples`] for what is refused."""
        found = self.reader(change)(rate)
        check_samples(found, self.source, rate)
        return found


class PoolRun:
    """Hold a pool that is measured, and where its embeddings are kept.

    Attributes:
        songs: the songs and texts that are measured; without those that could not be read, after [`prepare`].
        facts: of the pool, for the manifest.
        notes: what people should know of it.
    """

    def __init__(self, pool: OpenPool, folder: Path, seed: int = 0):
        self.dataset, self.songs, self.facts = pool.dataset, pool.songs, dict(pool.facts)
        self.folder, self.seed, self.notes = folder, seed, list(pool.notes)
        self._texts, self._columns = self.songs.texts, np.arange(len(self.songs.texts))
        self._texts_digest = texts_digest(self._texts)
        self._digests: dict[int, str] = {}  # by row
        self._seconds: dict[int, float] = {}
        self._held_texts: dict[str, tuple] = {}  # by model

    def store(self, embedder: Embedder) -> EmbeddingStore:
        """Return where the embeddings of a model are kept."""
        return EmbeddingStore(self.folder, embedder.weights, embedder.settings)

    def prepare(self, heard: Iterable[tuple[Embedder, Change]], title: str = "songs") -> None:
        """Embed every song by the models with the changes that are named, each decoded once for all of them.

        A song that cannot be read leaves the pool, with a warning and a note.

        Raises:
            NothingThere: fewer than two songs can be read.
            ValueError: what is kept of a song is of another width than the texts.
        """
        wanted: dict[Change, list[Embedder]] = {}
        for embedder, change in heard:
            wanted.setdefault(change, []).append(embedder)
        readable = []
        for song, row in enumerate(tqdm(self.songs.rows, desc=title, disable=None)):
            try:
                self._prepare_song(row, wanted)
                readable.append(song)
            except AudioFileError as error:
                print(f"warning: left out of {title}: {error}", file=sys.stderr)
        if left_out := len(self.songs.rows) - len(readable):
            self.notes.append(f"{left_out} songs left out that could not be read")
            kept = set(readable)
            self._columns = np.flatnonzero([song in kept for song in self.songs.song_of_text])
            self.songs = self.songs.subset(readable)
            self.facts |= {"pool": len(self.songs.rows), "texts": len(self.songs.texts)}
        if len(readable) < 2:
            raise NothingThere(f"{title}: {len(readable)} recordings can be read; a pool needs two")

    def _prepare_song(self, row: int, wanted: dict[Change, list[Embedder]]) -> None:
        reader = self._reader(row)
        for change, embedders in wanted.items():
            for embedder in embedders:
                self._summary(embedder, row, change, reader)

    def _reader(self, row: int) -> SongReader:
        """Open the audio of a row, and know it by its content.

        Raises:
            AudioFileError: it cannot be; names the row and the file.
        """
        audio = self.dataset[row]["audio"]
        with naming_row(row, audio):
            source = audio_source(audio)
            if row not in self._digests:
                self._digests[row], self._seconds[row] = audio_digest(source), header_seconds(source)
        return SongReader(source)

    def _heard(self, change: Change, row: int) -> Change:
        """Return the change that a song really undergoes: none if its first seconds are all of it."""
        is_whole = change.kind == FIRST and change.amount > self._seconds[row] + 1  # headers are not exact
        return ORIGINAL if is_whole else change

    def _tokens(self, embedder: Embedder, row: int, change: Change, reader: SongReader) -> torch.Tensor:
        """Return what a model makes of a song, (T, D); kept for a song as it is."""

        def make() -> torch.Tensor:
            with naming_row(row, self.dataset[row]["audio"]):
                return embedder.embed_audio(reader.samples(change, embedder.sampling_rate)).float().cpu()

        return self.store(embedder).get(self._digests[row], make) if change == ORIGINAL else make()

    def _summary(
        self, embedder: Embedder, row: int, change: Change, reader: SongReader | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean token of a song, (D,) of unit norm, and its scores (B,) with all texts that the pool has."""
        reader = reader or self._reader(row)
        change, texts = self._heard(change, row), self._own_text_embeds(embedder)
        facts = [self._digests[row], change.facts(), self._texts_digest, embedder.score_settings]

        def make() -> torch.Tensor:
            tokens = self._tokens(embedder, row, change, reader)
            self.store(embedder).check_width(texts[0], tokens, self._digests[row])
            return torch.cat([F.normalize(tokens.mean(0), dim=-1), score_song(embedder, texts, tokens)])  # (D + B,)

        found = self.store(embedder).get(digest_of(facts), make).numpy()
        width = texts[0].shape[-1]
        return found[:width], found[width:]

    def _text_embeds(self, embedder: Embedder, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of the texts that differ, (at most B, [Q,] D), and which of them each text is (B,)."""
        found = self.store(embedder).get(texts_digest(texts), lambda: embedder.embed_texts(texts))
        return torch.unique(found, dim=0, return_inverse=True)

    def _own_text_embeds(self, embedder: Embedder) -> tuple[torch.Tensor, torch.Tensor]:
        """Return those of the pool's texts; they are held in memory, because every song needs them."""
        if embedder.name not in self._held_texts:
            self._held_texts[embedder.name] = self._text_embeds(embedder, self._texts)
        return self._held_texts[embedder.name]

    def scores(self, embedder: Embedder, change: Change = ORIGINAL) -> np.ndarray:
        """Return the scores (A, B) of all songs with all texts."""
        return np.stack([self._summary(embedder, row, change)[1][self._columns] for row in self.songs.rows])

    def vectors(self, embedder: Embedder, change: Change = ORIGINAL) -> np.ndarray:
        """Return the mean tokens of all songs, (A, D) of unit norm."""
        return np.stack([self._summary(embedder, row, change)[0] for row in self.songs.rows])

    def tokens(self, embedder: Embedder) -> Iterator[torch.Tensor]:
        """Yield what a model makes of every song as it is, (T, D), one at a time."""
        for row in self.songs.rows:
            yield self._tokens(embedder, row, ORIGINAL, self._reader(row))

    def scores_of_texts(self, embedder: Embedder, texts: list[str]) -> np.ndarray:
        """Return the scores (A, B) of all songs, as they are, with other texts than those of the pool."""
        embeds = self._text_embeds(embedder, texts)
        rows = [
            score_song(embedder, embeds, self._tokens(embedder, row, ORIGINAL, self._reader(row)))
            for row in self.songs.rows
        ]
        return torch.stack(rows).numpy()

    def seconds(self) -> np.ndarray:
        """Return how long the songs are, (A,), by the headers of their files."""
        for row in self.songs.rows:
            self._reader(row)
        return np.array([self._seconds[row] for row in self.songs.rows])


def score_song(embedder: Embedder, texts: tuple[torch.Tensor, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Score a song (T, D) with texts: (B,).

    Equal texts get equal scores, whatever the order in which a product is summed: each is scored once.

    Args:
        texts: the embeddings of those that differ, and which of them each text is (B,).
    """
    return embedder.score(texts[0], tokens).float().cpu()[texts[1]]
