"""Large libraries for `benchmarks/search.py`: drawn a shard at a time, with means and segments, and tokens when asked.

A segment is the direction of genre + track + section, as in `search_library.py`; the directions of tracks and sections
are sums of two of 4096, so that a million tracks are drawn in minutes. A track's tokens are its segments, each as often
as it weighs, plus noise, the same whenever they are asked for.

Dimensions: `N` tracks, `S` segments, `T` tokens, `B` queries, `D` shared width.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from benchmarks.search_library import GENRES, QUERY_NOISE, SHARES, TEXTURES, TOKEN_SECONDS, score_function
from collap.search.quantize import dequantize_rows, quantize_rows
from collap.search.rescoring import Tokens
from collap.search.scan import Scan
from collap.search.space import Space
from collap.search.store import FAILED, TRACKS
from collap.search.vectors import Vectors, one_track
from collap.search.writing import Recording, publish, write_shard

DIRECTIONS, NOISES = 4096, 2**15
SEGMENTS = 9.2  # of a track, on average
SHARD = 256  # tracks, as collap index makes them
TRACK_TOKENS = 375  # of 0.8 s, by which recall is measured


class GrownLibrary:
    """Draw a library.

    Args:
        size: N.
        width: D.
        seed: the same one gives the same library.
    """

    def __init__(self, size: int, width: int, seed: int = 0):
        self.width, self.random = width, torch.Generator().manual_seed(seed)
        self.genres, self.textures, self.parts = (self._units(count) for count in (GENRES, TEXTURES, DIRECTIONS))
        counts = [min(SHARD, size - start) for start in range(0, size, SHARD)]
        self.shards = [self._shard(count) for count in counts]
        places = np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(count) for count in counts])
        self.scan = Scan(self.shards, places)

    @cached_property
    def noise(self) -> torch.Tensor:
        """Return rows of noise of length 1 or so, (NOISES, D), of which tokens take theirs."""
        return self._units(NOISES)

    def _units(self, count: int) -> torch.Tensor:
        return F.normalize(torch.randn(count, self.width, generator=self.random), dim=-1)

    def _some(self, of: torch.Tensor, count: int) -> torch.Tensor:
        return of[torch.randint(len(of), (count,), generator=self.random)]

    def _shard(self, count: int) -> Vectors:
        segments = torch.randint(1, round(2 * SEGMENTS), (count,), generator=self.random)  # (count,)
        total, owner = int(segments.sum()), torch.repeat_interleave(torch.arange(count), segments)
        own = F.normalize(self._some(self.parts, count) + self._some(self.parts, count), dim=-1)  # (count, D)
        whole = SHARES["genre"] ** 0.5 * self._some(self.genres, count) + SHARES["track"] ** 0.5 * own
        sections = self._some(self.parts, total).add_(self._some(self.parts, total))  # (S, D), of length 1.4
        sections.mul_(0.5**0.5).add_(self._some(self.textures, total)).mul_((SHARES["section"] / 2) ** 0.5)
        sections.add_(whole[owner])
        tokens = (TRACK_TOKENS * 5 / segments).int()[owner]  # (S,) of 0.16 s
        means = torch.zeros(count, self.width).index_add_(0, owner, sections) / segments.unsqueeze(1)  # (count, D)
        codes, scales = quantize_rows(sections, torch.float32)
        mean_codes, mean_scales = quantize_rows(means, torch.float32)
        return {
            **{"segments": codes, "segment_scales": scales, "segment_tokens": tokens.clamp(min=1)},
            **{"means": mean_codes, "mean_scales": mean_scales},
            "segment_offsets": torch.cat([torch.zeros(1, dtype=torch.int64), segments.cumsum(0)]),
        }

    def tokens(self, track: int, count: int = TRACK_TOKENS) -> Tokens:
        """Return the tokens of a track, about `count` of them."""
        shard, row = self.shards[track // SHARD], track % SHARD
        first, last = shard["segment_offsets"][row : row + 2].tolist()
        weights = shard["segment_tokens"][first:last]
        weights = (weights * count / weights.sum()).ceil().long()  # (segments,)
        segments = dequantize_rows(shard["segments"][first:last], shard["segment_scales"][first:last])
        tokens = torch.repeat_interleave(segments, weights, dim=0)  # (T, D)
        places = (torch.arange(len(tokens)) + 977 * track) % NOISES
        return quantize_rows(F.normalize(tokens + SHARES["noise"] ** 0.5 * self.noise[places], dim=-1))

    def queries(self, count: int, seed: int = 1) -> torch.Tensor:
        """Draw queries (B, D): near a segment, a whole track, a texture, and two textures, in turn; as far off that as
        texts are from sound."""
        random, found = torch.Generator().manual_seed(seed), []
        for number in range(count):
            place, segment = torch.randint(2**31, (2,), generator=random).tolist()
            shard, one = self.shards[place % len(self.shards)], self.textures[place % TEXTURES]
            near = (shard["segments"][segment % len(shard["segments"])], shard["means"][segment % len(shard["means"])])
            near = (*near, one, one + self.textures[segment % TEXTURES])[number % 4].float()
            off = F.normalize(torch.randn(self.width, generator=random), dim=0)
            found.append(F.normalize(F.normalize(near, dim=0) + QUERY_NOISE * off, dim=0))
        return torch.stack(found)

    def descriptions(self, count: int, sentences: int = 4, seed: int = 2) -> torch.Tensor:
        """Draw descriptions (B, Q, D): sentences near segments of a track, in order, as far off as queries are."""
        random, found = torch.Generator().manual_seed(seed), []
        for _ in range(count):
            place, row = torch.randint(2**31, (2,), generator=random).tolist()
            shard = self.shards[place % len(self.shards)]
            row %= len(shard["means"])
            first, last = shard["segment_offsets"][row : row + 2].tolist()
            chosen = torch.randint(first, last, (sentences,), generator=random).sort().values  # (Q,)
            near = F.normalize(shard["segments"][chosen].float(), dim=-1)  # (Q, D)
            off = F.normalize(torch.randn(sentences, self.width, generator=random), dim=-1)
            found.append(F.normalize(near + QUERY_NOISE * off, dim=-1))
        return torch.stack(found)


def with_tokens(shards: Iterable[Vectors], count: int) -> Iterable[Vectors]:
    """Give shards what they need to be written: `count` tokens of zeros for each track, times, empty fingerprints."""
    for shard in shards:
        num_tracks, total = len(shard["means"]), len(shard["segments"])
        seconds = (shard["segment_tokens"] * TOKEN_SECONDS).float()  # (S,)
        yield shard | {
            "tokens": torch.zeros(num_tracks * count, shard["means"].shape[1], dtype=torch.int8),
            "token_scales": torch.zeros(num_tracks * count, dtype=torch.float16),
            "token_offsets": torch.arange(num_tracks + 1) * count,
            "segment_seconds": torch.stack([torch.zeros(total), seconds], dim=-1),  # (S, 2)
            "prints": torch.zeros(0, 2, dtype=torch.int32),
            "print_offsets": torch.zeros(num_tracks + 1, dtype=torch.int64),
        }


def write_grown(folder: Path, library: GrownLibrary, tokens: int = 8) -> Path:
    """Write an index with the means and segments of a library, and with few tokens, which opening does not read."""
    folder.mkdir(parents=True)
    rows, shards = [], {}
    for shard in with_tokens(library.shards, tokens):
        digests = [f"{len(rows) + row:032x}" for row in range(len(shard["means"]))]
        recordings = [Recording(digest, digest, 300.0, one_track(shard, row)) for row, digest in enumerate(digests)]
        name, entry = write_shard(folder, recordings)
        shards[name] = entry
        for row, digest in enumerate(digests):
            about = {"id": digest, "digest": digest, "size": 1, "mtime_ns": 0, "seconds": 300.0}
            tags = {"title": f"Song {len(rows)}", "year": 1950 + len(rows) % 75, "artist": "A", "genre": "jazz"}
            rows.append({**about, **tags, "path": f"{len(rows):07d}.flac".encode(), "shard": name, "row": row})
    space = Space({"format": 1, "dtype": "float32", "stride": 1, "model": {"weights": "synthetic"}})
    about = {"space": space.about, "space_id": space.id, "score": score_function().to_dict(), "library": "/music"}
    settings = {"model": "synthetic", "dtype": "float32", "stride": 1, "shard_tracks": SHARD}
    tables = {"tracks": pa.Table.from_pylist(rows, TRACKS), "failed": FAILED.empty_table()}
    publish(folder, {**about, "settings": settings}, tables, shards, None)
    return folder
