"""Data sets of audio and text: opening them, and turning their rows into batches for training.

A row has an audio column (bytes or a path) and a text column (one text or a list of texts that all describe the audio).
"""

import difflib
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from transformers import BatchFeature

from .audio_files import audio_seconds, load_audio
from .feature_extraction_collap import pad_audio_features

TABLE_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
CACHED_COLUMN = "collap_features"


def open_dataset(
    source: str,
    split: str,
    audio_column: str = "audio",
    text_column: str = "text",
    config_name: str | None = None,
    revision: str | None = None,
) -> datasets.Dataset:
    """Opens one split of a data set, its audio not decoded.

    Args:
        source: one of
            - a folder in the layout of datasets' audiofolder: `metadata.jsonl`, `.csv` or `.parquet` beside the audio,
              its column `file_name` holding the paths; one sub-folder for each split, or a flat folder for `train`;
            - a folder written by `save_to_disk`;
            - a .csv, .tsv, .json, .jsonl or .parquet file, its audio column holding bytes or paths in its folder;
            - a Hub id.
        split: `"train"`, `"test[:100]"`, ...
        audio_column, text_column: their names; a `file_name` column becomes the audio column.
        config_name, revision: of a Hub data set.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if the split or a column is unknown (names what there is), the split is empty, or a path leads out
            of the data set's folder.
    """
    dataset = _load_split(source, split, audio_column, config_name, revision)
    if len(dataset) == 0:
        raise ValueError(f"{source}: the split {split!r} is empty")
    for column in (audio_column, text_column):
        check_column(dataset, column, source)
    return dataset.cast_column(audio_column, datasets.Audio(decode=False))


def check_column(dataset: datasets.Dataset, column: str, source: str):
    """Raises a ValueError that lists the columns and the nearest name if there is no such column."""
    if column not in dataset.column_names:
        nearest = difflib.get_close_matches(column, dataset.column_names, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{source}: no column {column!r}; the columns are {dataset.column_names}{hint}")


def _load_split(source: str, split: str, audio_column: str, config_name: str | None, revision: str | None):
    path = Path(source)
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        return _split_from_disk(path, split)
    if path.is_dir():
        return _split_from_table(_metadata_of_split(path, split), split, audio_column)
    if path.is_file():
        return _split_from_table(path, split, audio_column)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FileNotFoundError(f"{source}: no such file or folder; a Hub id has the form owner/name")
    try:
        return datasets.load_dataset(source, name=config_name, revision=revision, split=split)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{source}: neither a local folder nor a Hub data set in reach ({error})") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _split_from_disk(path: Path, split: str) -> datasets.Dataset:
    loaded = datasets.load_from_disk(str(path))
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict({"train": loaded})
    if split not in loaded:
        raise ValueError(f"{path}: no split {split!r}; the splits are {sorted(loaded)}")
    return loaded[split]


def _metadata_of_split(folder: Path, split: str) -> Path:
    """The metadata file of a split. (datasets' own audiofolder builder needs a system FFmpeg even for paths alone.)"""
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


def split_name(split: str) -> str:
    """`"test[:100]"` -> `"test"`."""
    return split.split("[")[0]


def _split_from_table(path: Path, split: str, audio_column: str) -> datasets.Dataset:
    if path.suffix not in TABLE_READERS:
        raise ValueError(f"{path}: expected one of {', '.join(TABLE_READERS)}, found {path.suffix or 'no suffix'}")
    separator = {"sep": "\t"} if path.suffix == ".tsv" else {}
    name = split_name(split) if path.stem == "metadata" else "train"
    try:
        dataset = datasets.load_dataset(
            TABLE_READERS[path.suffix], data_files={name: str(path)}, split=split, **separator
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "file_name" in dataset.column_names and audio_column not in dataset.column_names:
        dataset = dataset.rename_column("file_name", audio_column)
    kind = getattr(dataset.features.get(audio_column), "dtype", None)  # a struct of bytes and path has none
    if kind in ("string", "large_string"):
        features = datasets.Features({**dataset.features, audio_column: datasets.Value("string")})
        places = {"column": audio_column, "folder": str(path.resolve().parent)}
        dataset = dataset.map(_resolve_path, fn_kwargs=places, features=features)
    return dataset


def _resolve_path(row: dict, column: str, folder: str) -> dict:
    """A path of a table, relative to the table's folder, which it may not leave."""
    if not row[column]:
        raise ValueError(f"a row has no {column}: {row}")
    path = (Path(folder) / row[column]).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{row[column]!r} lies outside of the data set's folder {folder}; audio must stay inside")
    return {column: str(path)}


def audio_source(audio: dict) -> bytes | str:
    """Bytes or path of an entry of an audio column that is not decoded."""
    return audio["bytes"] if audio.get("bytes") is not None else audio["path"]


def audio_name(audio: dict, row: int) -> str:
    """How messages name an entry of an audio column."""
    return audio.get("path") or f"the audio of row {row}"


def row_texts(text: str | list[str] | None, row: int) -> list[str]:
    """The texts of one row.

    Raises:
        ValueError: names the row if it has no text.
    """
    texts = [text] if isinstance(text, str) else list(text or [])
    texts = [one for one in texts if isinstance(one, str) and one.strip()]
    if not texts:
        raise ValueError(f"row {row} has no text; expected a string or a list of strings in its text column")
    return texts


def crop_span(seconds: float, crop_seconds: float, generator: np.random.Generator) -> tuple[float, float]:
    """A random span of `crop_seconds`, or the whole audio if it is shorter; in seconds."""
    if seconds <= crop_seconds:
        return 0.0, seconds
    start = float(generator.uniform(0.0, seconds - crop_seconds))
    return start, start + crop_seconds


class AudioTextDataset(torch.utils.data.Dataset):
    """Rows as `{"features": inputs of one audio, "text": one of its texts}`.

    The choice of text, and of the crop if there is one, depends on `seed`, the epoch and the row alone, so it is the
    same for any number of workers and processes.

    Args:
        dataset: from [`open_dataset`], perhaps after [`cache_features`].
        feature_extractor: a [`CoLLAPFeatureExtractor`].
        audio_column, text_column: their names.
        crop_seconds: length of a random crop; None for the whole audio.
        seed: of the random choices.
    """

    def __init__(self, dataset, feature_extractor, audio_column, text_column, crop_seconds=None, seed=0):
        if crop_seconds is not None and CACHED_COLUMN in dataset.column_names:
            raise ValueError("crop_seconds needs the audio, but the features of whole songs were cached; choose one")
        self.dataset = dataset
        self.feature_extractor = feature_extractor
        self.audio_column = audio_column
        self.text_column = text_column
        self.crop_seconds = crop_seconds
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict:
        example = self.dataset[row]
        generator = np.random.default_rng((self.seed, self.epoch, row))
        texts = row_texts(example[self.text_column], row)
        text = texts[int(generator.integers(len(texts)))]
        if CACHED_COLUMN in example:
            return {"features": load_cached_features(example), "text": text}
        return {"features": self._features(example[self.audio_column], generator), "text": text}

    def _features(self, audio: dict, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        source, span = audio_source(audio), (None, None)
        if self.crop_seconds is not None:
            span = crop_span(audio_seconds(source), self.crop_seconds, generator)
        return self.feature_extractor.segment_features(
            torch.from_numpy(load_audio(source, start=span[0], stop=span[1]))
        )


class AudioTextCollator:
    """Joins rows of an [`AudioTextDataset`] into the inputs of `CoLLAPModel`; text i describes audio i."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> BatchFeature:
        batch = self.processor(text=[row["text"] for row in rows])
        batch.update(pad_audio_features([row["features"] for row in rows]))
        return batch


def cache_features(
    dataset: datasets.Dataset, feature_extractor, audio_column: str, num_workers: int = 1
) -> datasets.Dataset:
    """Computes the features of every whole audio once; `datasets` keeps them on disk and finds them again.

    30 s of audio take 2.5 MB (float32). A second call with the same audio and the same extractor settings reads them.

    Raises:
        AudioFileError: names the file that cannot be read.
    """
    settings = feature_extractor.to_dict()
    return dataset.map(
        _compute_features,
        fn_kwargs={"audio_column": audio_column, "extractor_class": type(feature_extractor), "settings": settings},
        features=datasets.Features({**dataset.features, CACHED_COLUMN: datasets.Value("large_binary")}),
        num_proc=num_workers if num_workers > 1 else None,
        writer_batch_size=8,
        desc="features",
    )


def load_cached_features(row: dict) -> dict[str, torch.Tensor]:
    """The features that [`cache_features`] stored for a row, as `CoLLAPFeatureExtractor.segment_features` gave them."""
    return load_tensors(row[CACHED_COLUMN])


def _compute_features(row: dict, audio_column: str, extractor_class, settings: dict) -> dict:
    torch.set_num_threads(1)
    extractor = extractor_class.from_dict(settings)
    features = extractor.segment_features(torch.from_numpy(load_audio(audio_source(row[audio_column]))))
    return {CACHED_COLUMN: save_tensors({name: tensor.contiguous() for name, tensor in features.items()})}
