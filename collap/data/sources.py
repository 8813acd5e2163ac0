"""Open a data set of audio and text: a folder, a table, parquet shards, a folder of `save_to_disk`, a Hub id."""

import datasets

from .catalogue import Request, find_entry
from .rows import check_column


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
