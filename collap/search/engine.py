"""Take the candidates of a search from a vector database instead of a scan: LanceDB, in a folder, on object storage
(`s3://...`) or in its cloud (`db://...`), all by one API.

    collap index ~/Music --index music.index --engine music.lance
    collap search "a soft piano alone" --index music.index --engine music.lance

The database holds of every recording its mean and its segments, and only proposes: the tracks whose means are nearest
to the query, and those that have a segment near to it. Which of them is best is said by the estimates and exact scores
of the index, as without it. So a wrong or missing neighbour costs recall and never changes a score.

A table `shards` names the shards of the index that are in it, each added last: a run that was killed can go on.

Dimensions: `R` query vectors, `D` shared width.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from .quantize import dequantize_rows
from .vectors import Vectors

MEANS, SEGMENTS, SHARDS = "means", "segments", "shards"  # tables; the first two are called as in `vectors.py`
SPACE = b"collap_space"  # of the schema: id of the space that the vectors are of
PROPOSED = 500  # tracks of each list
SEGMENTS_FOR_EACH = 2  # rows that are asked for, so that so many tracks come of them
MIN_INDEXED = 100_000  # rows of a table: fewer are compared one by one
REFINED = 4  # times as many rows as are asked for are compared by their whole vectors
PROBES = 200  # parts of an approximate index that are read: of the 20 that are the default, a text misses some tracks
METRIC = "dot"
SHARDS_AT_A_TIME = 32  # that are added: each time costs more the more there were, and they are held in memory


def connect(uri: str | Path):
    """Open a database.

    Raises:
        ModuleNotFoundError: lancedb is not installed.
        OSError: the address cannot be used.
    """
    import lancedb

    try:
        return lancedb.connect(str(uri))
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{uri}: {' '.join(str(error).split())}") from error


def fill(uri: str | Path, space_id: str, shards: Mapping[str, Vectors]) -> int:
    """Bring a database up to date with the shards of an index: adds what is new, removes what is gone.

    Args:
        uri: folder or address; made if there is none.
        space_id: of the index.
        shards: its vectors, by name.

    Returns:
        How many shards were added.

    Raises:
        ModuleNotFoundError, OSError: see [`connect`].
        ValueError: it holds vectors of another space.
    """
    database = connect(uri)
    width = next(iter(shards.values()))["means"].shape[1] if shards else 1
    means, segments, names = _opened(database, uri, space_id) or _made(database, space_id, width)
    held = {*names.to_arrow()["name"].to_pylist()}
    for table in (means, segments):  # rows of shards that are gone, or that a killed run has begun
        known = ", ".join(f"'{name}'" for name in sorted(held & {*shards}))
        table.delete(f"shard NOT IN ({known})" if known else "true")
    if gone := held - {*shards}:
        names.delete(f"name IN ({', '.join(repr(name) for name in sorted(gone))})")
    new = sorted({*shards} - held)
    for start in range(0, len(new), SHARDS_AT_A_TIME):
        some = new[start : start + SHARDS_AT_A_TIME]
        means.add(pa.concat_tables(_mean_rows(name, shards[name]) for name in some))
        segments.add(pa.concat_tables(_segment_rows(name, shards[name]) for name in some))
        names.add(pa.table({"name": some}))
    for table in (means, segments):
        _index(table)
    return len(new)


def _opened(database, uri: str | Path, space_id: str) -> list | None:
    """Open the three tables; None if one is missing, a ValueError if they are of another space."""
    try:
        tables = [database.open_table(name) for name in (MEANS, SEGMENTS, SHARDS)]
    except ValueError:
        return None
    for table in tables[:2]:
        if (found := (table.schema.metadata or {}).get(SPACE, b"").decode()) != space_id:
            raise ValueError(f"{uri}: holds vectors of another space ({found or 'none of collap'}); name another place")
    return tables


def _filled(uri: str | Path, space_id: str, shards: Iterable[str]) -> list:
    """Open the three tables; a ValueError unless they are of this space and hold these shards."""
    tables = _opened(connect(uri), uri, space_id)
    if tables is None:
        raise ValueError(f"{uri}: holds no tables of collap; fill it with collap index --engine")
    if {*tables[2].to_arrow()["name"].to_pylist()} != {*shards}:
        raise ValueError(f"{uri}: is of another state of the index; bring it up to date with collap index --engine")
    return tables


def check_filled(uri: str | Path, space_id: str, shards: Mapping[str, Vectors]) -> None:
    """Raise an error unless a database is filled with the shards of an index.

    Args:
        uri, space_id, shards: as in [`fill`].

    Raises:
        ModuleNotFoundError, OSError: see [`connect`].
        ValueError: it is of another space, holds other shards, or not as many vectors; one line that says what to do.
    """
    for table in _filled(uri, space_id, shards)[:2]:
        expected = sum(len(vectors[table.name]) for vectors in shards.values())
        if (found := table.count_rows()) != expected:
            raise ValueError(
                f"{uri}: its table {table.name} has {found} rows, the index {expected}; remove it, and fill it with "
                "collap index --engine"
            )


def _made(database, space_id: str, width: int) -> list:
    """Make the three tables, or those of them that are missing."""
    columns = [("shard", pa.string()), ("row", pa.int32()), ("vector", pa.list_(pa.float16(), width))]
    schemas = {name: pa.schema(columns, {SPACE: space_id.encode()}) for name in (MEANS, SEGMENTS)}
    schemas[SHARDS] = pa.schema([("name", pa.string())])
    return [database.create_table(name, schema=schema, exist_ok=True) for name, schema in schemas.items()]


def _mean_rows(shard: str, vectors: Vectors) -> pa.Table:
    return _rows(shard, vectors["means"], vectors["mean_scales"], np.arange(len(vectors["means"])))


def _segment_rows(shard: str, vectors: Vectors) -> pa.Table:
    counts = np.diff(vectors["segment_offsets"].numpy())
    owners = np.repeat(np.arange(len(counts)), counts)
    return _rows(shard, vectors["segments"], vectors["segment_scales"], owners)


def _rows(shard: str, codes: torch.Tensor, scales: torch.Tensor, rows: np.ndarray) -> pa.Table:
    """Return vectors, and which shard and row they are of, as a table."""
    flat = dequantize_rows(codes, scales).half().numpy().reshape(-1)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), codes.shape[1])
    return pa.table({"shard": [shard] * len(rows), "row": pa.array(rows, pa.int32()), "vector": vectors})


def _index(table) -> None:
    """Make an approximate index of a large table, or add its new rows to the one that there is."""
    if table.list_indices():
        table.optimize()
    elif table.count_rows() >= MIN_INDEXED:
        from lancedb.index import IvfRq

        table.create_index("vector", config=IvfRq(distance_type=METRIC))


class Engine:
    """Propose tracks of an index from a database that [`fill`] has filled.

    Args:
        uri: folder or address.
        space_id: of the index.
        shards: names of its shards, in their order.
        places: (N,) number of the shard of every track; (N,) its row there.

    Raises:
        ModuleNotFoundError, OSError: see [`connect`].
        ValueError: it is of another space, or holds other shards than the index; one line that says what to do.
    """

    def __init__(self, uri: str | Path, space_id: str, shards: Sequence[str], places: tuple[np.ndarray, np.ndarray]):
        self._means, self._segments, _ = _filled(uri, space_id, shards)
        self._approximate = {table.name for table in (self._means, self._segments) if table.list_indices()}
        self._numbers = {name: number for number, name in enumerate(shards)}
        keys = _key(*places)
        self._tracks = np.argsort(keys, kind="stable")
        self._keys = keys[self._tracks]

    def propose(self, means: torch.Tensor, segments: torch.Tensor) -> np.ndarray:
        """Return the numbers of tracks, in their order, that may be among the best.

        Args:
            means: (R, D) vectors whose product with a track's mean estimates its score.
            segments: (R, D) vectors of what may be heard in a part of a track.
        """
        rows = [self._nearest(self._means, vector, PROPOSED) for vector in means]
        rows += [self._nearest(self._segments, vector, SEGMENTS_FOR_EACH * PROPOSED) for vector in segments]
        keys = np.unique(np.concatenate(rows))
        first, last = (np.searchsorted(self._keys, keys, side) for side in ("left", "right"))
        return np.sort(np.concatenate([self._tracks[a:b] for a, b in zip(first, last, strict=True)]))

    def _nearest(self, table, vector: torch.Tensor, count: int) -> np.ndarray:
        """Return the keys of the recordings of the nearest rows."""
        query = table.search(vector.numpy()).distance_type(METRIC).limit(count).select(["shard", "row", "_distance"])
        if table.name in self._approximate:
            query = query.nprobes(PROBES).refine_factor(REFINED)
        found = query.to_arrow()
        numbers = np.array([self._numbers.get(name, -1) for name in found["shard"].to_pylist()], np.int64)
        return _key(numbers, found["row"].to_numpy())[numbers >= 0]


def _key(shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return one number for a shard and a row."""
    return shards.astype(np.int64) << 32 | rows.astype(np.int64)
