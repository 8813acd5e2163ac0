"""Keep rows as Arrow files in the cache of `datasets`, each under a name that its content decides.

So any number of processes map one file, and a table that was changed is read anew.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.fingerprint import Hasher

HASHED_BYTES = 2**26  # larger files are told by their end and the file system's times, not by all bytes


def keep_rows(digest: str, schema: pa.Schema, batches: Callable[[], Iterable[pa.RecordBatch]]) -> datasets.Dataset:
    """Map the Arrow file of a digest; write it first unless it is there. A killed run leaves no half file."""
    file = _kept_file(digest)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=file.parent)
        try:
            with open(descriptor, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for batch in batches():
                    writer.write_batch(batch)
            os.replace(partial, file)
        finally:
            Path(partial).unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(file))


def map_once(dataset: datasets.Dataset, function: Callable, fn_kwargs: dict, **settings) -> datasets.Dataset:
    """Do `dataset.map`, and keep what it gives in the cache of `datasets`, where a second call finds it.

    `map` itself keeps it beside the rows: in a folder of `save_to_disk`, which may not be written to, and whose name it
    may take for an address.

    Args:
        function: of a module.
        fn_kwargs: of the function; what is kept is known by them and the rows.
        **settings: of `map`.
    """
    digest = Hasher.hash((dataset._fingerprint, function.__module__, function.__qualname__, fn_kwargs))
    file = _kept_file(digest)
    file.parent.mkdir(parents=True, exist_ok=True)
    return dataset.map(function, fn_kwargs=fn_kwargs, cache_file_name=str(file), new_fingerprint=digest, **settings)


def _kept_file(digest: str) -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "collap" / digest / "rows.arrow"


def file_stamp(file: Path) -> str:
    """Return what changes with the content of a file: a digest of its bytes, or, of a large one, of its end and times.

    The time at which the state of a file changed, unlike that of its content, cannot be set by a program.
    """
    status, digest = file.stat(), hashlib.blake2b(digest_size=16)
    with open(file, "rb") as content:
        if status.st_size > HASHED_BYTES:
            digest.update(repr((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)).encode())
            content.seek(-(2**20), os.SEEK_END)
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
