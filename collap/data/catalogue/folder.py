"""Open a folder of audio files with their metadata, in the layout of datasets' audiofolder."""

from pathlib import Path

import datasets

from collap.data.tables import read_table, split_name

from .entry import Entry, Request


def _metadata_of_split(folder: Path, split: str) -> Path:
    """Find the metadata file of a split. (datasets' own audiofolder needs a system FFmpeg even for paths alone.)"""
    name = split_name(split)
    places = [folder / name, *([folder] if name == "train" else [])]
    for place in places:
        for suffix in (".jsonl", ".csv", ".parquet"):
            if (place / f"metadata{suffix}").is_file():
                return place / f"metadata{suffix}"
    splits = sorted({found.parent.name for found in folder.glob("*/metadata.*")})
    raise ValueError(
        f"{folder}: no metadata.jsonl, .csv or .parquet for the split {name!r}; "
        + (f"the splits are {splits}" if splits else "expected one with the columns file_name and the text")
    )


def _is_folder(request: Request) -> bool:
    return request.path.is_dir()


def _open_folder(request: Request) -> datasets.Dataset:
    return read_table([_metadata_of_split(request.path, request.split)], request.split, request.audio_column)


ENTRY = Entry("folder", "a folder of audio files with metadata.jsonl, .csv or .parquet", _is_folder, _open_folder)
