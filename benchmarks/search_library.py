"""Make libraries that were never heard: tokens with the statistics of songs, and index files of any tokens.

A token is the direction of genre + track + section + noise. Their shares of its square are such that tokens of one
section have a cosine of .75, of two sections of a track .45, and neighbours .95. A section is half of its own and half
one of 200 textures that all songs share, so that one section of a song may match where the rest of it does not.

Queries are near a section, near the whole of a track, near a texture, or near the sum of two textures, and as far off
that direction as texts are from what is heard. Descriptions are several such vectors, one for each sentence.

Dimensions: `N` tracks, `T` tokens of a track, `K` sections of a track, `B` queries, `D` shared width.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy.signal import lfilter

from collap.search.score_function import ScoreFunction
from collap.search.space import Space
from collap.search.store import FAILED, TRACKS
from collap.search.vectors import track_vectors
from collap.search.writing import Recording, publish, write_shard

GENRES, TEXTURES = 20, 200
SHARES = {"genre": 0.20, "track": 0.25, "section": 0.30, "noise": 0.25}
PERSISTENCE = 0.8  # of the noise, from one token to the next
QUERY_NOISE = 1.5
SECTIONS, MANY_SECTIONS = (4, 9), (15, 41)
MOST_SENTENCES = 5
TOKEN_SECONDS = 0.16
GENRE_NAMES = ("jazz", "rock", "folk", "pop", "soul")


def score_function(temperature: float = 1.0) -> ScoreFunction:
    """Return the paper's score with frames of 10 s every 5 s."""
    gamma = 0.5 / 0.07
    times = {"tokens_per_segment": 187, "segment_seconds": 30.0, "token_seconds": TOKEN_SECONDS}
    return ScoreFunction(62, 31, gamma, gamma, temperature, "mean", **times)


def aligned_function(temperature: float = 1.0) -> ScoreFunction:
    """Return a score that aligns sentences with frames of 1.28 s in their order, weighed as training begins."""
    gamma = 1 / 0.07
    weights = {"gamma_kernel": 0.5, "gamma_temporal": 0.5, "gamma_sentences": gamma, "gamma_path": gamma, "blank": 0.4}
    return replace(score_function(temperature), alignment="monotone", alignment_frame_size=8, **weights)


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class SyntheticSongs:
    """Draw songs and queries.

    Args:
        width: D.
        seed: the same one gives the same songs.
    """

    def __init__(self, width: int, seed: int = 0):
        self.width, self.random = width, np.random.default_rng(seed)
        self.genres, self.textures = self._directions(GENRES), self._directions(TEXTURES)
        self.drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def _directions(self, count: int) -> np.ndarray:
        return unit(self.random.normal(size=(count, self.width)))

    def track(self, num_tokens: int, has_many_sections: bool = False) -> torch.Tensor:
        """Draw the tokens of a song, (T, D) unit vectors."""
        count = min(int(self.random.integers(*(MANY_SECTIONS if has_many_sections else SECTIONS))), num_tokens)
        borders = np.sort(self.random.choice(np.arange(1, num_tokens), count - 1, replace=False))
        section = np.repeat(np.arange(count), np.diff([0, *borders, num_tokens]))  # (T,)
        textures = self.textures[self.random.integers(TEXTURES, size=count)]
        sections = unit(textures + self._directions(count))  # (K, D)
        whole = np.sqrt(SHARES["genre"]) * self.genres[self.random.integers(GENRES)]
        whole = whole + np.sqrt(SHARES["track"]) * self._directions(1)[0]  # (D,)
        noise = self.random.standard_normal((num_tokens, self.width), dtype=np.float32) / np.sqrt(self.width)
        noise[1:] *= np.sqrt(1 - PERSISTENCE**2)
        noise = lfilter([1], [1, -PERSISTENCE], noise, axis=0)  # (T, D)
        self.drawn.append((whole, sections))
        return torch.from_numpy(
            unit(whole + np.sqrt(SHARES["section"]) * sections[section] + np.sqrt(SHARES["noise"]) * noise)
        )

    def queries(self, count: int) -> torch.Tensor:
        """Draw queries for the songs that were drawn, the four kinds in turn: (B, D) unit vectors."""
        found = []
        for number in range(count):
            whole, sections = self.drawn[self.random.integers(len(self.drawn))]
            some = np.sqrt(SHARES["section"]) * sections[self.random.integers(len(sections))]
            textures = self.textures[self.random.integers(TEXTURES, size=2)]
            meant = (whole + some, whole + sections.mean(0), textures[0], textures.sum(0))[number % 4]
            found.append(unit(unit(meant) + QUERY_NOISE * self._directions(1)[0]))
        return torch.from_numpy(np.stack(found))

    def descriptions(self, count: int) -> torch.Tensor:
        """Draw descriptions of two to five sentences: of sections of a song, in their order or out of it, of textures,
        and single sentences, in turn: (B, 5, D) unit vectors, zeros where there are fewer sentences."""
        found = np.zeros((count, MOST_SENTENCES, self.width), np.float32)
        for number in range(count):
            whole, sections = self.drawn[self.random.integers(len(self.drawn))]
            wanted = 1 if number % 4 == 3 else int(self.random.integers(2, MOST_SENTENCES + 1))
            chosen = self.random.permutation(len(sections))[:wanted]
            chosen = np.sort(chosen) if number % 4 == 0 else chosen
            meant = whole + np.sqrt(SHARES["section"]) * sections[chosen]  # (sentences, D)
            if number % 4 == 2:
                meant = self.textures[self.random.integers(TEXTURES, size=wanted)]
            found[number, : len(meant)] = unit(unit(meant) + QUERY_NOISE * self._directions(len(meant)))
        return torch.from_numpy(found)


def draw_tracks(songs: SyntheticSongs, count: int, num_tokens: int, many: float = 0.0) -> Iterator[torch.Tensor]:
    """Draw tracks, a share `many` of them with 15 to 40 sections."""
    for _ in range(count):
        yield songs.track(num_tokens, bool(songs.random.random() < many))


def write_index(
    folder: Path,
    tracks: Iterable[torch.Tensor],
    function: ScoreFunction,
    tags: Iterable[dict] = (),
    shard_tracks: int = 256,
    settings: dict | None = None,
    space: Space | None = None,
) -> Path:
    """Write an index of tokens, as `collap index` writes one of files.

    Args:
        tracks: (T, D) of each; read one after another, and not kept.
        tags: `title`, `artist`, ... of each; where there are none, they are made up.
        shard_tracks: tracks of a file.
        settings, space: of the model, where there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, shards, batch, tags = [], {}, [], iter(tags)

    def close() -> None:
        name, entry = write_shard(folder, batch)
        shards[name] = entry
        for row, one in enumerate(batch):
            rows[one_number(one)].update(shard=name, row=row)
        batch.clear()

    def one_number(recording: Recording) -> int:
        return int(recording.digest, 16)

    for number, tokens in enumerate(tracks):
        starts = function.token_starts(len(tokens))
        seconds = float(starts[-1]) + function.token_seconds
        digest = f"{number:032x}"
        batch.append(Recording(digest, digest, seconds, track_vectors(tokens, starts, function.token_seconds, seconds)))
        rows.append({"id": digest, "digest": digest, "size": 1, "mtime_ns": 0, "seconds": seconds})
        made_up = {"title": f"Song {number}", "artist": f"Artist {number % 97}", "album": None}
        made_up |= {"year": 1950 + number % 75, "genre": GENRE_NAMES[number % 5], "path": f"{number:07d}.flac".encode()}
        rows[-1] |= {**made_up, **next(tags, {})}
        if len(batch) == shard_tracks:
            close()
    if batch:
        close()
    about = (space or Space({"format": 1, "dtype": "float32", "stride": 1, "model": {"weights": "synthetic"}})).about
    settings = settings or {"model": "synthetic", "dtype": "float32", "stride": 1, "shard_tracks": shard_tracks}
    named = {"space": about, "space_id": Space(about).id, "score": function.to_dict(), "settings": settings}
    tables = {"tracks": pa.Table.from_pylist(rows, TRACKS).sort_by("path"), "failed": FAILED.empty_table()}
    publish(folder, {**named, "library": "/music"}, tables, shards, None)
    return folder
