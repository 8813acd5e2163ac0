"""Open a folder that `save_to_disk` wrote."""

import json
from pathlib import Path

import datasets
import pyarrow as pa

from collap.data.audio_column import settle_dataset
from collap.data.places import Place
from collap.data.tables import take_split
from collap.files import flat

from .entry import Entry, Request

DICTIONARY, STATE = "dataset_dict.json", "state.json"


def _is_saved(request: Request) -> bool:
    return any((request.path / name).is_file() for name in (DICTIONARY, STATE))


def _splits(request: Request) -> list[str]:
    if not (request.path / DICTIONARY).is_file():
        return ["train"]
    try:
        return [_plain_name(name) for name in json.loads((request.path / DICTIONARY).read_text("utf-8"))["splits"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _damaged(request.path, error) from error


def _open_saved(request: Request) -> datasets.Dataset:
    parts = {}
    for name in _splits(request):
        folder = request.path / name if (request.path / DICTIONARY).is_file() else request.path
        parts[name] = settle_dataset(_read_saved(folder), request.audio_column, Place(folder), folder)
    return take_split(parts, request.split, request.path)


def _read_saved(folder: Path) -> datasets.Dataset:
    """Map the files of one split. (`load_from_disk` takes names with `::` for addresses, and files from anywhere.)"""
    try:
        names = [
            _plain_name(entry["filename"]) for entry in json.loads((folder / STATE).read_text("utf-8"))["_data_files"]
        ]
        rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(folder / name)) for name in names])
        rows.data.validate(full=True)
        return rows
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
        raise _damaged(folder, error) from error


def _plain_name(name: str) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"{name!r} lies outside of it")
    return name


def _damaged(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder}: not a whole folder of save_to_disk ({flat(error, 300)}); save it again")


ENTRY = Entry("saved", "a folder written by save_to_disk", _is_saved, _splits, _open_saved)
