"""Data sets of audio and text: opening them, and turning their rows into batches for training.

A row has an audio column (bytes or a path) and a text column (one text or a list of texts that all describe the audio).
"""

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from datasets.fingerprint import Hasher
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from transformers import BatchFeature

from .audio_files import AudioFileError, audio_seconds, load_audio
from .embed_audio import check_samples
from .feature_extraction_collap import MIN_SECONDS, pad_audio_features

TABLE_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
CACHED_COLUMN = "collap_features"
# To be raised with every change of code that changes the features of the same audio: cached ones are not used then.
FEATURES_VERSION = 1


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
            - a .csv, .tsv, .json, .jsonl or .parquet file, its audio column holding bytes or paths in its folder; it is
              the split `train`;
            - a Hub id.
        split: `"train"`, `"test[:100]"`, ...
        audio_column, text_column: their names; a `file_name` column becomes the audio column.
        config_name, revision: of a Hub data set.

    Raises:
        FileNotFoundError: if a source does not exist.
        ValueError: if the split or a column is unknown (names what there is), the split is empty, a file is malformed,
            the audio column holds no audio, a row of a table has none, or a path leads out of the data set's folder.
    """
    dataset = _load_split(source, split, audio_column, config_name, revision)
    if len(dataset) == 0:
        raise ValueError(f"{source}: the split {split!r} is empty")
    for column in (audio_column, text_column):
        check_column(dataset, column, source)
    try:
        return dataset.cast_column(audio_column, datasets.Audio(decode=False))
    except (NotImplementedError, TypeError, ValueError) as error:  # pyarrow's casts raise all three
        found = dataset.features[audio_column]
        raise ValueError(
            f"{source}: the column {audio_column!r} holds {found}; expected audio: bytes or paths"
        ) from error


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
        if split_name(split) != "train":
            raise ValueError(f"{path}: no split {split!r}; a single table is the split 'train' (or 'train[:100]', ...)")
        return _split_from_table(path, split, audio_column)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FileNotFoundError(f"{source}: no such file or folder; a Hub id has the form owner/name")
    try:
        return datasets.load_dataset(source, name=config_name, revision=revision, split=split)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{source}: neither a local folder nor a Hub data set in reach ({error})") from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{source}: {error.__cause__ or error}") from error


def _split_from_disk(path: Path, split: str) -> datasets.Dataset:
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
    if not path.stat().st_size:
        raise ValueError(f"{path}: is empty (0 bytes); expected a table")
    separator = {"sep": "\t"} if path.suffix == ".tsv" else {}
    files = {split_name(split): str(path)}
    try:
        dataset = datasets.load_dataset(TABLE_READERS[path.suffix], data_files=files, split=split, **separator)
    except (ValueError, StopIteration, datasets.exceptions.DatasetsError) as error:  # StopIteration: JSON without a row
        raise ValueError(f"{path}: {str(error.__cause__ or error).strip() or 'has no rows'}") from error
    if "file_name" in dataset.column_names and audio_column not in dataset.column_names:
        dataset = dataset.rename_column("file_name", audio_column)
    if audio_column not in dataset.column_names:
        return dataset
    places = {"column": audio_column, "folder": str(path.resolve().parent)}
    kind = getattr(dataset.features[audio_column], "dtype", "struct")  # of bytes and path
    if kind in ("string", "large_string"):
        features = datasets.Features({**dataset.features, audio_column: datasets.Value("string")})
        return dataset.map(_resolve_path, with_indices=True, fn_kwargs=places, features=features)
    if kind not in ("struct", "dict"):
        return dataset  # open_dataset says what is wrong with it
    # On the Arrow column: a loop over the rows would read the bytes of every audio only to look at its path.
    audio = dataset.cast_column(audio_column, datasets.Audio(decode=False)).data.column(audio_column)
    has_bytes = pc.is_valid(pc.struct_field(audio, "bytes")).to_pylist()
    for row, name in enumerate(pc.struct_field(audio, "path").to_pylist()):
        if name is not None and not has_bytes[row]:
            _resolve_path({audio_column: name}, row, **places)
    return dataset


def _resolve_path(example: dict, row: int, column: str, folder: str) -> dict:
    """A path of a table, relative to the table's folder, which it may not leave."""
    name = example[column]
    if not name:
        raise ValueError(f"row {row} has no audio: its {column!r} is empty; expected a path in {folder}")
    path = (Path(folder) / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"row {row}: {name!r} lies outside of the data set's folder {folder}; audio must stay inside")
    return {column: str(path)}


def audio_source(audio: dict | None) -> bytes | str:
    """Bytes or path of an entry of an audio column that is not decoded.

    Raises:
        AudioFileError: there is neither.
    """
    for key in ("bytes", "path"):
        if audio is not None and audio.get(key) is not None:
            return audio[key]
    raise AudioFileError("has no audio; expected bytes or a path")


@contextmanager
def naming_row(row: int, audio: dict | None) -> Iterator[None]:
    """Puts `row 7 (song.mp3): ` before the message of an `AudioFileError`; bytes have no other name."""
    try:
        yield
    except AudioFileError as error:
        path = audio.get("path") if audio is not None else None
        name = f"row {row} ({Path(path).name})" if path else f"row {row}"
        raise AudioFileError(f"{name}: {error}") from error


def worker_message(error: BaseException) -> str:
    """What an error says, without the traceback that a `DataLoader` worker puts into it.

    Returns:
        `"AudioFileError: row 7 (song.mp3): ..."` for an error of a worker, else `str(error)`.
    """
    text = str(error)
    if not text.startswith("Caught ") or "\nOriginal " not in text:
        return text
    lines = text.rpartition("Traceback (most recent call last):\n")[2].splitlines()
    start = next((index for index, line in enumerate(lines) if line and not line.startswith(" ")), 0)
    kind, separator, message = "\n".join(lines[start:]).partition(": ")
    return kind.rpartition(".")[2] + separator + message


def row_texts(text: str | list[str | None] | None, row: int) -> list[str]:
    """The texts of one row, without those that are missing or blank.

    Raises:
        ValueError: names the row if it has no text, or something else than text.
    """
    texts = list(text) if isinstance(text, (list, tuple)) else [text]
    for one in texts:
        if one is not None and not isinstance(one, str):
            raise ValueError(
                f"row {row} has {one!r} ({type(one).__name__}) as text; expected a string or a list of strings"
            )
    texts = [one for one in texts if one is not None and one.strip()]
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
        crop_seconds: length of a random crop, at least 0.1; None for the whole audio.
        seed: of the random choices.

    Raises:
        AudioFileError, ValueError: from a row; name it, and its file.
    """

    def __init__(self, dataset, feature_extractor, audio_column, text_column, crop_seconds=None, seed=0):
        if crop_seconds is not None and CACHED_COLUMN in dataset.column_names:
            raise ValueError("crop_seconds needs the audio, but the features of whole songs were cached; choose one")
        if crop_seconds is not None and not crop_seconds >= MIN_SECONDS:
            raise ValueError(f"crop_seconds must be at least {MIN_SECONDS}, found {crop_seconds}")
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
        audio = example[self.audio_column]
        with naming_row(row, audio):
            return {"features": self._features(audio, generator), "text": text}

    def _features(self, audio: dict | None, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        source, span = audio_source(audio), (None, None)
        if self.crop_seconds is not None:
            span = crop_span(audio_seconds(source), self.crop_seconds, generator)
        samples = load_audio(source, start=span[0], stop=span[1])
        check_samples(samples, source, self.feature_extractor.sampling_rate)  # a crop is short only if the audio is
        return self.feature_extractor.segment_features(torch.from_numpy(samples))


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

    30 s of audio take 2.5 MB (float32). A second call with the same audio (bytes, or path, size and time of the last
    change), extractor settings and `FEATURES_VERSION` reads them.

    Raises:
        AudioFileError: names the row and the file that cannot be read.
    """
    arguments = {
        "audio_column": audio_column,
        "extractor_class": type(feature_extractor),
        "settings": feature_extractor.to_dict(),
        "stamp": (FEATURES_VERSION, audio_files_digest(dataset, audio_column)),
    }
    threads = torch.get_num_threads()
    cached = dataset.map(
        _compute_features,
        with_indices=True,
        fn_kwargs=arguments,
        features=datasets.Features({**dataset.features, CACHED_COLUMN: datasets.Value("large_binary")}),
        num_proc=num_workers if num_workers > 1 else None,
        writer_batch_size=8,
        desc="features",
    )
    torch.set_num_threads(threads)  # without workers it was this process that went down to one
    return cached


def audio_files_digest(dataset: datasets.Dataset, audio_column: str) -> str:
    """Changes when a file of the audio column does: in size, time of the last change, or by vanishing."""
    hasher = Hasher()
    # Arrow, so that no audio bytes are copied; their content is in the data set's own fingerprint.
    for table in dataset.select_columns(audio_column).with_format("arrow").iter(batch_size=100):
        for audio in table.column(audio_column):
            if audio.is_valid and not audio["bytes"].is_valid:
                hasher.update(_file_stamp(audio["path"].as_py()))
    return hasher.hexdigest()


def _file_stamp(path: str | None) -> tuple:
    try:
        status = os.stat(path)
    except (OSError, TypeError, ValueError):  # named with its row when it is read
        return (path,)
    return path, status.st_size, status.st_mtime_ns


def load_cached_features(row: dict) -> dict[str, torch.Tensor]:
    """The features that [`cache_features`] stored for a row, as `CoLLAPFeatureExtractor.segment_features` gave them."""
    return load_tensors(row[CACHED_COLUMN])


def _compute_features(
    example: dict, row: int, audio_column: str, extractor_class, settings: dict, stamp: tuple
) -> dict:
    """`stamp` is there for the fingerprint that `datasets` makes of the arguments."""
    torch.set_num_threads(1)
    extractor = extractor_class.from_dict(settings)
    audio = example[audio_column]
    with naming_row(row, audio):
        source = audio_source(audio)
        samples = load_audio(source)
        check_samples(samples, source, extractor.sampling_rate)
    features = extractor.segment_features(torch.from_numpy(samples))
    return {CACHED_COLUMN: save_tensors({name: tensor.contiguous() for name, tensor in features.items()})}
