"""Open a data set of the Hub."""

import os

import datasets
from huggingface_hub.constants import HF_HUB_CACHE

from collap.data.audio_column import settle_dataset
from collap.data.places import ROOT_MARK, is_inside

from .entry import Entry, Request

ERRORS = (ValueError, RuntimeError, datasets.exceptions.DatasetsError)


class HubPlace:
    """Let the rows of a Hub data set name files that were downloaded with it, and no others."""

    def find(self, name: str | None, row: int) -> str:
        """Return a path in the cache of the Hub; a ValueError names the row of any other."""
        folders = (HF_HUB_CACHE, os.fspath(datasets.config.HF_DATASETS_CACHE), datasets.config.DOWNLOADED_DATASETS_PATH)
        if name and any(is_inside(name, os.path.abspath(folder)) for folder in folders):
            root, mark, inside = name.partition("/snapshots/")
            revision, slash, inside = inside.partition("/")
            return f"{root}{mark}{revision}{ROOT_MARK}{inside}" if mark and slash else name
        raise ValueError(
            f"row {row} names the file {name!r}, which did not come with the data set; expected audio as bytes. If the "
            "files lie in the repository, download it (`hf download`) and open the folder"
        )


def check_hub_id(source: str):
    """Raise a FileNotFoundError if a source that is no local file cannot be a Hub id either."""
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FileNotFoundError(f"{source}: no such file or folder; a Hub id has the form owner/name")


def _splits(request: Request) -> list[str]:
    check_hub_id(request.source)
    try:
        return datasets.get_dataset_split_names(request.source, request.config_name, revision=request.revision)
    except (OSError, *ERRORS) as error:
        raise FileNotFoundError(f"{request.source}: neither a local data set nor one of the Hub ({error})") from error


def _open_hub(request: Request) -> datasets.Dataset:
    source = request.source
    check_hub_id(source)
    try:
        rows = datasets.load_dataset(source, name=request.config_name, revision=request.revision, split=request.split)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{source}: neither a local folder nor a Hub data set in reach ({error})") from error
    except ERRORS as error:
        raise ValueError(f"{source}: {error.__cause__ or error}") from error
    return settle_dataset(rows, request.audio_column, HubPlace(), source)


ENTRY = Entry("hub", "a data set of the Hub, owner/name", lambda request: True, _splits, _open_hub)
