"""Join several files to one recording, such as the sentences of a speaker."""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import pyarrow as pa

from processing.audio_collap import SAMPLING_RATE

from .arrow_cache import keep_rows
from .audio_column import AUDIO_TYPE
from .guarded_reading import load_audio


def join_files(rows: datasets.Dataset, files: Sequence[tuple[str, ...]]) -> datasets.Dataset:
    """Put the joined audio of several files into the column `audio` of some rows, as the bytes of a 16 kHz flac.

    They are decoded once, and kept in the cache of `datasets` until a file changes.

    Args:
        rows: with `audio`, whose path names the joined audio.
        files: paths of every row, in order.

    Raises:
        AudioFileError: one of them cannot be read.
    """
    stamps = [[(path, *_stamp(path)) for path in paths] for paths in files]
    digest = hashlib.blake2b(repr((rows._fingerprint, stamps)).encode(), digest_size=16).hexdigest()
    schema = rows.data.schema

    def batches() -> Iterator[pa.RecordBatch]:
        for row, paths in enumerate(files):
            table = rows.data.table.slice(row, 1).combine_chunks()
            name = table["audio"][0].as_py()["path"]
            audio = pa.array([{"bytes": joined_flac(paths), "path": name}], AUDIO_TYPE)
            yield from table.set_column(table.column_names.index("audio"), schema.field("audio"), audio).to_batches()

    return keep_rows(digest, schema, batches)


def joined_flac(paths: Sequence[str]) -> bytes:
    """Return the flac of some files, one after the other, at 16 kHz, mono, 16 bits."""
    import soundfile

    content = io.BytesIO()
    samples = np.concatenate([load_audio(path) for path in paths])
    soundfile.write(content, np.clip(samples, -1, 1), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
