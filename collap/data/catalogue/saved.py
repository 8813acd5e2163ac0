"""Open a folder that `save_to_disk` wrote."""

import datasets

from collap.data.tables import split_name

from .entry import Entry, Request


def _is_saved(request: Request) -> bool:
    return any((request.path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _open_saved(request: Request) -> datasets.Dataset:
    path, split = request.path, request.split
    try:
        loaded = datasets.load_from_disk(str(path))
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path}: not a whole folder of save_to_disk ({error}); save it again") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict({"train": loaded})
    if split_name(split) not in loaded:
        raise ValueError(f"{path}: no split {split_name(split)!r}; the splits are {sorted(loaded)}")
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(loaded[name]) for name in loaded})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return datasets.concatenate_datasets([loaded[part.splitname].select(range(part.from_, part.to)) for part in parts])


ENTRY = Entry("saved", "a folder written by save_to_disk", _is_saved, _open_saved)
