"""Open a data set of the Hub."""

import datasets

from .entry import Entry, Request


def check_hub_id(source: str):
    """Raise a FileNotFoundError if a source that is no local file cannot be a Hub id either."""
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FileNotFoundError(f"{source}: no such file or folder; a Hub id has the form owner/name")


def _open_hub(request: Request) -> datasets.Dataset:
    source = request.source
    check_hub_id(source)
    try:
        return datasets.load_dataset(source, name=request.config_name, revision=request.revision, split=request.split)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{source}: neither a local folder nor a Hub data set in reach ({error})") from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{source}: {error.__cause__ or error}") from error


ENTRY = Entry("hub", "a data set of the Hub, owner/name", lambda request: True, _open_hub)
