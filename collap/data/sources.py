"""Open a data set of audio and text: a folder, a table, parquet shards, a folder of `save_to_disk`, a Hub id."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from .catalogue import Request, find_entry
from .catalogue.hub import check_hub_id
from .catalogue.shards import parquet_shards
from .places import Place
from .rows import check_column
from .tables import ROWS_READ, ParquetShards, settle_table, split_name

MAX_FOLDER_SHARDS = 256  # ranges of rows that a local folder of files is cut into when it is streamed


def open_dataset(
    source: str,
    split: str,
    audio_column: str = "audio",
    text_column: str | None = "text",
    config_name: str | None = None,
    revision: str | None = None,
) -> datasets.Dataset:
    """Open one split of a data set, its audio not decoded.

    Args:
        source: one of
            - a folder in the layout of datasets' audiofolder: `metadata.jsonl`, `.csv` or `.parquet` beside the audio,
              its column `file_name` holding the paths; one sub-folder for each split, or a flat folder for `train`;
            - a folder of parquet shards, audio as bytes or as paths in the folder of the shard:
              `train-00000-of-00008.parquet`, `data/train-*.parquet` or `train/*.parquet`;
            - a folder written by `save_to_disk`;
            - a .csv, .tsv, .json, .jsonl or .parquet file, its audio column holding bytes or paths in its folder; it is
              the split `train`;
            - a Hub id;
            - the name of a kind in `collap.data.catalogue` before one of these: `hub:owner/songs`.
        split: `"train"`, `"test[:100]"`, ...
        audio_column, text_column: their names; a `file_name` column becomes the audio column. No text column is looked
            for if that is None.
        config_name, revision: of a Hub data set.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if the split or a column is unknown (names what there is), the split is empty, a file is malformed,
            the audio column holds no audio, a row of a table has none, or a path leads out of the data set's folder.
    """
    entry, request = find_entry(Request(source, split, audio_column, config_name, revision))
    dataset = entry.open_split(request)
    if len(dataset) == 0:
        raise ValueError(f"{source}: the split {split!r} is empty")
    for column in filter(None, (audio_column, text_column)):
        check_column(dataset, column, source)
    try:
        return dataset.cast_column(audio_column, datasets.Audio(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # pyarrow's casts raise all three
        found = dataset.features[audio_column]
        raise ValueError(
            f"{source}: the column {audio_column!r} holds {found}; expected audio: bytes or paths"
        ) from error


def open_stream(
    source: str,
    split: str,
    audio_column: str = "audio",
    text_column: str = "text",
    config_name: str | None = None,
    revision: str | None = None,
    song_column: str | None = None,
) -> datasets.IterableDataset:
    """Open one split of a data set to be read shard by shard, its audio not decoded.

    Args:
        source: one of
            - a folder of parquet shards, or a .parquet file: `train-00000-of-00008.parquet`, `data/train-*.parquet` or
              `train/*.parquet`; audio as bytes, or as paths in the folder of the shard;
            - any other local source of [`open_dataset`], such as a folder of files with their metadata;
            - a Hub id; its shards hold the bytes of the audio.
        split: `"train"`, ...; a slice only of a local source that is not parquet.
        audio_column, text_column: their names.
        config_name, revision: of a Hub data set.
        song_column: one that names the song of every row, if any.

    Returns:
        Rows of these columns, in the format of Arrow.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: as [`open_dataset`]; while reading, if a path leads out of the data set's folder.
    """
    _, request = find_entry(Request(source, split, audio_column, config_name, revision))
    path = request.path
    columns = list(dict.fromkeys(filter(None, (audio_column, text_column, song_column))))
    is_one_shard = path.suffix.lower() == ".parquet" and path.is_file() and split_name(split) == "train"
    shards = [path] if is_one_shard else parquet_shards(path, split)
    if path.exists() and not shards:
        table = open_dataset(source, split, audio_column, text_column)
        for column in columns:
            check_column(table, column, source)
        stream = table.to_iterable_dataset(num_shards=min(len(table), MAX_FOLDER_SHARDS))
        return stream.select_columns(columns).with_format("arrow")
    if "[" in split:
        raise ValueError(f"{source}: a stream has no slices; found split {split!r}, expected {split_name(split)!r}")
    return _stream_shards(shards, source, columns) if shards else _stream_hub(request, columns)


def _stream_shards(files: list[Path], source: str, columns: list[str]) -> datasets.IterableDataset:
    """Stream parquet files by their literal names, which `load_dataset` would take for patterns and addresses."""
    shards = ParquetShards(files, columns[0], Place(files[0].parent))
    for column in columns:
        check_column(shards, column, source)
    stream = datasets.IterableDataset.from_generator(
        _shard_rows,
        features=datasets.Features({name: shards.features[name] for name in columns}),
        gen_kwargs={"files": files, "columns": tuple(columns)},  # a list would be split over processes,
    )
    return stream.with_format("arrow")


def _shard_rows(files: list[Path], columns: tuple[str, ...]) -> Iterator[dict]:
    """Give the rows of shards; `datasets` splits the list of files."""
    for batch in ParquetShards(files, columns[0], Place(files[0].parent), columns).batches():
        yield from batch.to_pylist()


def _stream_hub(request: Request, columns: list[str]) -> datasets.IterableDataset:
    """Stream a data set of the Hub."""
    source, place = request.source, {"name": request.config_name, "revision": request.revision}
    check_hub_id(source)
    try:
        stream = datasets.load_dataset(source, streaming=True, split=request.split, **place)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{source}: neither a local folder nor a Hub data set in reach ({error})") from error
    except (ValueError, RuntimeError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{source}: {error.__cause__ or error}") from error
    if not stream.column_names:
        raise ValueError(f"{source}: its files do not state their columns; expected parquet shards to stream")
    for column in columns:
        check_column(stream, column, source)
    if isinstance(stream.features[columns[0]], datasets.Audio):
        stream = stream.cast_column(columns[0], datasets.Audio(decode=False))
    features = {**stream.features, columns[0]: datasets.Audio(decode=False)}
    return (
        stream.select_columns(columns)
        .with_format("arrow")
        .map(
            _settle_hub_rows,
            with_indices=True,
            batched=True,
            batch_size=ROWS_READ,
            fn_kwargs={"column": columns[0], "source": source},
            features=datasets.Features({name: features[name] for name in columns}),
        )
    )


class _NoPlace:
    """Refuse paths: nothing but its shards is fetched of a stream from the Hub."""

    def find(self, name: str | None, row: int) -> str:
        """Raise a ValueError that names the row."""
        raise ValueError(
            f"row {row} holds paths without bytes ({name!r}); a stream from the Hub needs the bytes in its shards: "
            "train without streaming, or download the data set"
        )


def _settle_hub_rows(table: pa.Table, rows: list[int], column: str, source: str) -> pa.Table:
    return settle_table(table, _NoPlace(), column, source, rows[0])
