"""Open a data set of audio and text: a folder, a table, parquet shards, a folder of `save_to_disk`, a Hub id, or one
of the data sets that have a name, such as MusicCaps."""

import datasets
import pyarrow as pa

from .catalogue import Request, find_entry
from .catalogue.hub import check_hub_id
from .catalogue.named import SETS
from .catalogue.shards import parquet_shards
from .parquet_tables import ParquetShards
from .places import Place
from .rows import check_column
from .shard_rows import HubRows, ParquetRows, TableRows
from .tables import split_name


def open_dataset(
    source: str,
    split: str,
    audio_column: str = "audio",
    text_column: str | None = "text",
    config_name: str | None = None,
    revision: str | None = None,
) -> datasets.Dataset:
    """Open one split of a data set, its audio not decoded.

    A cell of a .csv or .tsv is text as it stands there: `007`, `NA` and `null` are texts; the delimiter is a comma,
    tab, semicolon or vertical bar; a row of more or fewer fields than the header is named. JSON keeps its types;
    numbers beside texts become texts. The encoding is UTF-8, or what a byte order mark says; half a character in JSON
    becomes U+FFFD, with a warning. A text that is itself a list of texts, `['a', 'b']`, is that list when it is used
    (`row_texts`), and one of spaces and characters without width is none.

    Audio is bytes, paths, or arrays with a sampling rate. Names of files and folders are literal. A path lies in the
    folder of its table and may not lead out of it, but a link there may, which its owner made. A name is found in
    another Unicode form, not in other upper and lower case. What was read is kept in the cache of `datasets` by its
    content.

    Args:
        source: one of
            - a folder in the layout of datasets' audiofolder: `metadata.jsonl`, `.csv` or `.parquet` beside the audio,
              its column `file_name` holding the paths; one sub-folder for each split, or a flat folder for `train`. One
              metadata file above sub-folders called `train`, `test`, ... gives each split the rows of its folder;
            - a folder without metadata, in which `song.txt` beside `song.mp3` is its text; it is the split `train`;
            - a folder of parquet shards, audio as bytes or as paths in the folder of the shard:
              `train-00000-of-00008.parquet`, `data/train-*.parquet` or `train/*.parquet`; all of one set and no others;
            - a folder written by `save_to_disk`;
            - a .csv, .tsv, .json, .jsonl or .parquet file, its audio column holding bytes or paths in its folder; it is
              the split `train`;
            - a Hub id;
            - the name of a kind in `collap.data.catalogue` before one of these: `hub:owner/songs`;
            - the name of a data set in `collap.data.catalogue.named` before its folder: `musiccaps:FOLDER`, or with its
              settings `musiccaps:FOLDER?full_tracks=true`. Its columns are `audio`, `text` (lists) and those of
              `collap.data.records`; recordings without audio are left out, with a warning; the split `all` is all of
              them.
        split: `"train"`, `"test[:100]"`, ...
        audio_column, text_column: their names; a `file_name` column becomes the audio column. No text column is looked
            for if that is None.
        config_name: of a Hub data set, or of a named one.
        revision: of a Hub data set.

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
    return dataset.cast_column(audio_column, datasets.Audio(decode=False))


def open_stream(
    source: str,
    split: str,
    audio_column: str = "audio",
    text_column: str = "text",
    config_name: str | None = None,
    revision: str | None = None,
    song_column: str | None = None,
) -> ParquetRows | TableRows | HubRows:
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
        Rows of these columns, see `collap.data.shard_rows`.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: as [`open_dataset`]; while reading, if a path leads out of the data set's folder.
    """
    entry, request = find_entry(Request(source, split, audio_column, config_name, revision))
    path = request.path
    columns = list(dict.fromkeys(filter(None, (audio_column, text_column, song_column))))
    if entry.name in SETS:
        table = open_dataset(source, split, audio_column, text_column, config_name)
        return TableRows(_with_columns(table, columns, source), columns)
    is_one_shard = path.suffix.lower() == ".parquet" and path.is_file() and split_name(split) == "train"
    shards = [path] if is_one_shard else parquet_shards(path, split)
    if path.exists() and not shards:
        table = open_dataset(source, split, audio_column, text_column)
        return TableRows(_with_columns(table, columns, source), columns)
    if "[" in split:
        raise ValueError(f"{source}: a stream has no slices; found split {split!r}, expected {split_name(split)!r}")
    if shards:
        _with_columns(ParquetShards(shards, audio_column, Place(shards[0].parent)), columns, source)
        return ParquetRows(shards, columns)
    return _stream_hub(request, columns)


def _with_columns(rows, columns: list[str], source: str):
    """Return the rows; a ValueError names a column that they lack."""
    for column in columns:
        check_column(rows, column, source)
    return rows


def _stream_hub(request: Request, columns: list[str]) -> HubRows:
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
    if isinstance(_with_columns(stream, columns, source).features[columns[0]], datasets.Audio):
        stream = stream.cast_column(columns[0], datasets.Audio(decode=False))
    return HubRows(stream, columns, source)
