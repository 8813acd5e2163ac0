"""Open a folder of audio files: with their metadata, as datasets' audiofolder has it, or with a text beside each."""

import warnings
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from collap.data.audio_column import settle_table
from collap.data.places import Place, name_within
from collap.data.set_folder import SetFolder
from collap.data.tables import keep_table, read_table, split_name, take_split
from collap.data.text_tables import decode_table

from .entry import Entry, Request

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SPLITS = ("train", "validation", "test", "training", "valid", "val", "dev", "testing", "eval", "evaluation")


def _metadata_in(folder: Path) -> Path | None:
    """Find the metadata file of a folder. (datasets' own audiofolder needs a system FFmpeg even for paths alone.)"""
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        listed = ", ".join(file.name for file in found)
        raise ValueError(f"{folder}: holds {listed}; expected one of them, remove the others")
    return found[0] if found else None


def _read_root(request: Request) -> dict[str, datasets.Dataset]:
    """Return the splits of a folder whose metadata lies in it: those of its sub-folders `train`, `test`, ..., or train.

    A row belongs to the split whose folder its `file_name` begins with; the others are `train` if there is no folder
    of that name.
    """
    metadata = _metadata_in(request.path)
    if metadata is None:
        return _read_text_files(request)
    rows = read_table([metadata], request.audio_column)
    if request.audio_column not in rows.column_names:
        return {"train": rows}
    paths = pc.struct_field(rows.data.column(request.audio_column), "path").to_pylist()
    folders = [name_within(path).partition("/")[0] if path and "/" in name_within(path) else None for path in paths]
    names = {name for name in folders if name in (*SPLITS, split_name(request.split)) and name is not None}
    if not names:
        return {"train": rows}
    places = {name: [row for row, folder in enumerate(folders) if folder == name] for name in names}
    others = [row for row, folder in enumerate(folders) if folder not in names]
    if others and "train" not in names:
        places["train"] = others
    elif others:
        warnings.warn(
            f"{metadata}: {len(others)} rows, the first is row {others[0]}, lie in none of the folders of the splits "
            f"{sorted(names)} and belong to none",
            stacklevel=2,
        )
    return {name: rows.select(chosen) for name, chosen in places.items()}


def _read_text_files(request: Request) -> dict[str, datasets.Dataset]:
    """Read a folder without metadata, in which `song.txt` beside `song.mp3` is its text; it is the split train."""
    if any(request.path.glob("*/metadata.*")):
        return {}
    folder = SetFolder(request.path)
    texts = {name.removesuffix(".txt"): name for name in folder.called("*.txt")}
    audio = folder.recordings()
    pairs = {name: texts[name.rpartition(".")[0]] for name in audio if name.rpartition(".")[0] in texts}
    if not pairs:
        return {}
    if len(pairs) < len(audio):
        warnings.warn(
            f"{request.path}: {len(audio) - len(pairs)} of {len(audio)} audio files have no text beside them, and are "
            "left out",
            stacklevel=2,
        )
    columns = {
        request.audio_column: pa.array(list(pairs)),
        "text": pa.array([decode_table(folder.file(text)).strip() for text in pairs.values()]),
    }
    table = settle_table(pa.table(columns), Place(request.path), request.audio_column, request.path)
    return {"train": keep_table(table)}


def _splits(request: Request) -> list[str]:
    return sorted({place.parent.name for place in request.path.glob("*/metadata.*")} | set(_read_root(request)))


def _open_folder(request: Request) -> datasets.Dataset:
    name = split_name(request.split)
    own = _metadata_in(request.path / name)
    parts = {name: read_table([own], request.audio_column)} if own is not None else _read_root(request)
    if name in parts:
        return take_split(parts, request.split, request.path)
    splits = _splits(request)
    raise ValueError(
        f"{request.path}: no metadata.jsonl, .csv or .parquet for the split {name!r}; "
        + (
            f"the splits are {splits}"
            if splits
            else "expected one with the columns file_name and the text, or song.txt beside song.mp3"
        )
    )


LAYOUT = "a folder of audio files with metadata.jsonl, .csv or .parquet, or with song.txt beside song.mp3"
ENTRY = Entry("folder", LAYOUT, lambda request: request.path.is_dir(), _splits, _open_folder)
