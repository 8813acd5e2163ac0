"""Open what the suite of time measures: the rows of a data set with their sections, and the model."""

from pathlib import Path

import torch
from datasets import Dataset

from collap.data.guarded_reading import header_seconds
from collap.data.rows import audio_source, check_column, named_audio
from collap.data.segment_files import read_segments
from collap.data.sources import open_dataset
from collap.models import load_model, weights_digest


def open_rows(options) -> Dataset:
    """Open a data set, whose sections are in a column or in files.

    Raises:
        ValueError: there is no column or folder of sections, or there are both.
    """
    if (options.sections_column is None) == (options.segments is None):
        raise ValueError(
            "--suite temporal needs --sections_column, lists of sections with start and end in seconds, or --segments, "
            "a folder of files such as song.txt with lines '8.49 verse'"
        )
    if options.segments is not None and not Path(options.segments).is_dir():
        raise ValueError(f"--segments {options.segments}: no such folder")
    columns = options.audio_column, options.text_column, options.dataset_config, options.revision
    rows = open_dataset(options.dataset, options.split, *columns)
    if options.sections_column:
        check_column(rows, options.sections_column, options.dataset)
    return rows


def sections_of_row(rows: Dataset, row: int, options) -> list[dict]:
    """Read the sections of a row: its column, or the file of the folder `--segments` that is called like its audio.

    Raises:
        OSError, ValueError: there is no such file, or what is there is none.
    """
    if options.segments is None:
        return rows[row][options.sections_column] or []
    audio = named_audio(rows, row, options.audio_column)
    if not audio["path"]:
        raise ValueError("its audio has no name, by which its file of segments would be found")
    source = audio_source(rows[row][options.audio_column])
    return read_segments(Path(options.segments) / f"{Path(audio['path']).stem}.txt", header_seconds(source))


def open_model(options) -> tuple:
    """Load the model: it, its processor, and what a report says of both and of the data set.

    Raises:
        OSError, ValueError: it cannot be loaded, or there is a file where the report would go.
    """
    if options.output_dir.exists() and not options.output_dir.is_dir():
        raise ValueError(f"--output_dir {options.output_dir}: is a file; expected a folder, or the path of a new one")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = load_model(options.model, device, options.dtype)
    facts = {name: getattr(options, name) for name in ("model", "dataset", "split", "text_column", "seed")}
    facts |= {"weights": weights_digest(options.model), "alignment": model.config.alignment}
    return model, processor, facts | {"parts": list(options.parts)}
