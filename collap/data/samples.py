"""Data sets of audio and text: opening them, and turning their rows into batches for training.

A row has an audio column (bytes or a path) and a text column (one text or a list of texts that all describe the audio).
"""

import difflib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from datasets.fingerprint import Hasher
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from processing.audio_collap import HOP_LENGTH, SAMPLING_RATE, num_kaldi_frames
from processing.decode_audio import AudioFileError, header_seconds, load_audio, load_crop
from processing.embed_audio import check_samples
from processing.feature_extraction_collap import MIN_SECONDS, pad_audio_features

TABLE_READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
CACHED_COLUMN = "collap_features"
UNREADABLE = b"\xff" * 8  # what no safetensors file begins with: a header of 2^64 - 1 bytes
# To be raised with every change of code that changes the features of the same audio: cached ones are not used then.
FEATURES_VERSION = 1
# Files that are tried in place of one that cannot be read: more than this many in a row is a broken data set.
MAX_REPLACEMENTS = 20


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
            - a folder of parquet shards, audio as bytes or as paths in the folder of the shard:
              `train-00000-of-00008.parquet`, `data/train-*.parquet` or `train/*.parquet`;
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
        files = parquet_shards(path, split) or [_metadata_of_split(path, split)]
        return _split_from_table(files, split, audio_column)
    if path.is_file():
        if split_name(split) != "train":
            raise ValueError(f"{path}: no split {split!r}; a single table is the split 'train' (or 'train[:100]', ...)")
        return _split_from_table([path], split, audio_column)
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


def parquet_shards(folder: Path, split: str) -> list[Path]:
    """The shards of a split in a folder: `train-*.parquet`, `data/train-*.parquet` or `train/*.parquet`; or none."""
    name = split_name(split)
    for pattern in (f"{name}-*.parquet", f"data/{name}-*.parquet", f"{name}/*.parquet"):
        shards = sorted(shard for shard in folder.glob(pattern) if shard.name != "metadata.parquet")
        if shards:
            return shards
    return []


def _split_from_table(files: list[Path], split: str, audio_column: str) -> datasets.Dataset:
    """A table, or the shards of one, all in one folder."""
    path = files[0]
    if path.suffix not in TABLE_READERS:
        raise ValueError(f"{path}: expected one of {', '.join(TABLE_READERS)}, found {path.suffix or 'no suffix'}")
    if not path.stat().st_size:
        raise ValueError(f"{path}: is empty (0 bytes); expected a table")
    separator = {"sep": "\t"} if path.suffix == ".tsv" else {}
    data_files = {split_name(split): [str(file) for file in files]}
    try:
        dataset = datasets.load_dataset(TABLE_READERS[path.suffix], data_files=data_files, split=split, **separator)
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
        return dataset.map(resolve_path, with_indices=True, fn_kwargs=places, features=features)
    if kind not in ("struct", "dict"):
        return dataset  # open_dataset says what is wrong with it
    # On the Arrow column: a loop over the rows would read the bytes of every audio only to look at its path.
    audio = dataset.cast_column(audio_column, datasets.Audio(decode=False)).data.column(audio_column)
    has_bytes = pc.is_valid(pc.struct_field(audio, "bytes")).to_pylist()
    for row, name in enumerate(pc.struct_field(audio, "path").to_pylist()):
        if name is not None and not has_bytes[row]:
            resolve_path({audio_column: name}, row, **places)
    return dataset


def resolve_path(example: dict, row: int, column: str, folder: str) -> dict:
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


def row_name(row: int | str, audio: dict | None) -> str:
    """`"row 7 (song.mp3)"`; bytes without a path have no other name than their row."""
    path = audio.get("path") if audio is not None else None
    return f"row {row} ({Path(path).name})" if path else f"row {row}"


@contextmanager
def naming_row(row: int | str, audio: dict | None) -> Iterator[None]:
    """Puts `row 7 (song.mp3): ` before the message of an `AudioFileError`."""
    try:
        yield
    except AudioFileError as error:
        raise AudioFileError(f"{row_name(row, audio)}: {error}") from error


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


def row_texts(text: str | list[str | None] | None, row: int | str) -> list[str]:
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


def check_row_texts(dataset: datasets.Dataset, text_column: str) -> str:
    """The longest text of a data set, after a look at every row.

    Raises:
        ValueError: names the first row without a text, see [`row_texts`].
    """
    longest, row = "", 0
    for batch in dataset.select_columns(text_column).iter(batch_size=1000):
        for text in batch[text_column]:
            longest = max(longest, *row_texts(text, row), key=len)
            row += 1
    return longest


def sample_generator(seed: int, epoch: int, audio: dict | None) -> np.random.Generator:
    """The generator of a sample's random choices in an epoch.

    The sample is known by the base name of its path, or else by its bytes, so that it is the same one in a table and in
    a stream, in any place, and for any number of workers and processes.
    """
    path, content = (audio.get("path"), audio.get("bytes")) if audio is not None else (None, None)
    key = Path(path).name.encode() if path else content or b""
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return np.random.default_rng((seed, epoch, int.from_bytes(digest, "little")))


def length_buckets(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """Batches of songs of about one length, in random order.

    Args:
        lengths: (n,), in any unit; equal ones are shuffled. n is a multiple of `batch_size`.

    Returns:
        (n / batch_size, batch_size) indexes into `lengths`, each once.
    """
    order = generator.permutation(len(lengths))
    order = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
    return generator.permutation(order.reshape(-1, batch_size))  # (n / batch_size, batch_size)


def _join_songs(audios: list[dict[str, torch.Tensor]]) -> tuple[list[int], dict[str, torch.Tensor]]:
    """The songs' lengths and, for each input, the tensors of all songs in one, along the first dimension."""
    lengths = [len(next(iter(audio.values()))) for audio in audios]
    return lengths, {name: torch.cat([audio[name] for audio in audios]) for name in audios[0]}


def _split_songs(lengths: list[int], joined: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Undoes [`_join_songs`], without a copy."""
    songs = zip(*(tensor.split(lengths) for tensor in joined.values()), strict=True)
    return [dict(zip(joined, song, strict=True)) for song in songs]


@dataclass
class AudioTextSample:
    """One audio, one of its texts, its name, its length in seconds, and the files it stands in for with the reasons."""

    text: str
    audio: dict[str, torch.Tensor]
    name: str
    seconds: float
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class AudioTextBatch:
    """Songs with their texts, nothing of the audio padded yet; text i describes audio i.

    Args:
        text: input_ids and attention_mask, (B, L).
        audios: one dict for each song, all of one kind: `waveform` (samples,); or the five features of
            `CoLLAPFeatureExtractor.segment_features`; or `fused_tokens` (T, M).
        names: row and file of each song, for messages.
        seconds: of audio of each song.
        skipped: name of each file that could not be read while making this batch, and the reason.
        state: position of the stream after this batch; None for a table.
        song_ids, text_ids: digests (n,) int64 of each one's song and text, by which equal ones are known; or None.
    """

    text: dict[str, torch.Tensor]
    audios: list[dict[str, torch.Tensor]]
    names: list[str]
    seconds: list[float]
    skipped: list[tuple[str, str]]
    state: dict | None = None
    song_ids: torch.Tensor | None = None
    text_ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.audios)

    def __getstate__(self) -> dict:
        # A worker sends every tensor as an open file: one for each input, not for each input of each song.
        return {**self.__dict__, "audios": _join_songs(self.audios)}

    def __setstate__(self, state: dict):
        self.__dict__.update(state, audios=_split_songs(*state["audios"]))

    def pin_memory(self) -> "AudioTextBatch":
        """Moves the tensors to page-locked memory; a `DataLoader` with `pin_memory=True` calls it."""
        lengths, joined = _join_songs(self.audios)
        self.audios = _split_songs(lengths, {name: tensor.pin_memory() for name, tensor in joined.items()})
        self.text = {name: tensor.pin_memory() for name, tensor in self.text.items()}
        return self

    def text_inputs(self, part: slice, device: torch.device | str) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask (part, L) on `device`."""
        return {name: tensor[part].to(device, non_blocking=True) for name, tensor in self.text.items()}

    def audio_inputs(self, part: slice, device: torch.device | str, feature_extractor) -> dict[str, torch.Tensor]:
        """The audio inputs of the songs in `part`, padded to the longest of them; features are computed on `device`.

        Returns:
            What `CoLLAPFeatureExtractor` returns; or, of songs that are tokens, fused_tokens (A, T, M) float32 and
            audio_token_mask (A, T) bool, True = token.
        """
        songs = [
            {name: tensor.to(device, non_blocking=True) for name, tensor in audio.items()}
            for audio in self.audios[part]
        ]
        if "fused_tokens" in songs[0]:
            tokens = [song["fused_tokens"].float() for song in songs]
            masks = [torch.ones(len(one), dtype=torch.bool, device=one.device) for one in tokens]
            pad = torch.nn.utils.rnn.pad_sequence
            return {"fused_tokens": pad(tokens, batch_first=True), "audio_token_mask": pad(masks, batch_first=True)}
        if "waveform" in songs[0]:
            songs = [feature_extractor.segment_features(song["waveform"]) for song in songs]
        return dict(pad_audio_features(songs))


@dataclass
class SampleReader:
    """Decodes one row of audio and text; see [`AudioTextDataset`] for the arguments."""

    feature_extractor: object
    audio_column: str
    text_column: str
    crop_seconds: float | None = None
    seed: int = 0
    features_in_worker: bool = True

    def __post_init__(self):
        if self.crop_seconds is not None and not self.crop_seconds >= MIN_SECONDS:
            raise ValueError(f"crop_seconds must be at least {MIN_SECONDS}, found {self.crop_seconds}")

    def read(
        self, example: dict, row: int | str, epoch: int, stored: dict[str, torch.Tensor] | None = None
    ) -> AudioTextSample:
        """The sample of a row in an epoch; `stored` are its inputs if its audio need not be read.

        Raises:
            AudioFileError: the audio cannot be read; does not name the row.
            ValueError: the row has no text; names the row.
        """
        audio = example[self.audio_column]
        texts = row_texts(example[self.text_column], row)
        generator = sample_generator(self.seed, epoch, audio)
        text = texts[int(generator.integers(len(texts)))]
        if stored is not None:
            return AudioTextSample(text, stored, row_name(row, audio), self._stored_seconds(stored))
        source = audio_source(audio)
        if self.crop_seconds is None:
            samples = load_audio(source)
        else:
            samples = load_crop(source, self.crop_seconds, generator.uniform())
        check_samples(samples, source, SAMPLING_RATE)  # a crop is short only if the audio is
        inputs = {"waveform": torch.from_numpy(samples)}
        if self.features_in_worker:
            inputs = self.feature_extractor.segment_features(inputs["waveform"])
        return AudioTextSample(text, inputs, row_name(row, audio), len(samples) / SAMPLING_RATE)

    def _stored_seconds(self, stored: dict[str, torch.Tensor]) -> float:
        """Length of an audio by its tokens, to 0.16 s; a segment is a little longer than its whole tokens."""
        patch_size, segment_seconds = self.feature_extractor.patch_size, self.feature_extractor.segment_seconds
        mask = stored.get("audio_token_mask")
        tokens = int(mask.sum()) if mask is not None else len(stored["fused_tokens"])
        segments, rest = divmod(tokens, num_kaldi_frames(segment_seconds) // patch_size)
        return segments * segment_seconds + rest * patch_size * HOP_LENGTH / SAMPLING_RATE


class AudioTextDataset(torch.utils.data.Dataset):
    """Rows as [`AudioTextSample`].

    The choice of text, and of the crop if there is one, depends on `seed`, the epoch and the audio's name alone, see
    [`sample_generator`].

    A `DataLoader` that asks for whole batches gets another row in place of one whose file cannot be read. Which one
    depends on `seed`, the epoch, the row and the other rows of the batch.

    Args:
        dataset: from [`open_dataset`], perhaps after [`cache_features`].
        feature_extractor: a [`CoLLAPFeatureExtractor`].
        audio_column, text_column: their names.
        crop_seconds: length of a random crop, at least 0.1; None for the whole audio.
        seed: of the random choices.
        features_in_worker: False for waveforms, whose features the training device computes.
        token_cache: the fused tokens (T, M) of every row, to be read in place of its audio.

    Raises:
        AudioFileError, ValueError: from a row; name it, and its file.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        feature_extractor,
        audio_column: str,
        text_column: str,
        crop_seconds: float | None = None,
        seed: int = 0,
        features_in_worker: bool = True,
        token_cache: Sequence[torch.Tensor] | Mapping[int, torch.Tensor] | None = None,
    ):
        if crop_seconds is not None and CACHED_COLUMN in dataset.column_names:
            raise ValueError("crop_seconds needs the audio, but the features of whole songs were cached; choose one")
        if crop_seconds is not None and token_cache is not None:
            raise ValueError("crop_seconds needs the audio, but the token cache holds whole songs; choose one")
        self.reader = SampleReader(feature_extractor, audio_column, text_column, crop_seconds, seed, features_in_worker)
        self.dataset = dataset
        self.token_cache = token_cache
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int):
        """To be called before the epoch's first batch is asked for, also with persistent workers."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> AudioTextSample:
        example = self.dataset[row]
        with naming_row(row, example[self.reader.audio_column]):
            return self._read(example, row)

    def __getitems__(self, rows: list[int]) -> list[AudioTextSample]:
        """The samples of a batch, other rows in place of those that cannot be read."""
        taken = set(rows)
        return [self._read_or_replace(row, taken) for row in rows]

    def _read(self, example: dict, row: int) -> AudioTextSample:
        stored = None
        if self.token_cache is not None:
            stored = {"fused_tokens": self.token_cache[row]}
        elif CACHED_COLUMN in example:
            stored = load_cached_features(example)
        return self.reader.read(example, row, int(self._epoch), stored)

    def _read_or_replace(self, first: int, taken: set[int]) -> AudioTextSample:
        """The first row that can be read, beginning with `first`; adds those tried to `taken`."""
        skipped, row = [], first
        while True:
            example = self.dataset[row]
            try:
                sample = self._read(example, row)
            except AudioFileError as error:
                skipped.append((row_name(row, example[self.reader.audio_column]), str(error)))
            else:
                sample.skipped = skipped
                return sample
            if len(skipped) > MAX_REPLACEMENTS or len(taken) >= len(self):
                raise no_replacement(skipped)
            generator = np.random.default_rng((self.reader.seed, int(self._epoch), first, len(skipped)))
            row = int(generator.integers(len(self) - len(taken)))
            for other in sorted(taken):  # the row-th of those that are free
                row += other <= row
            taken.add(row)


def no_replacement(skipped: list[tuple[str, str]]) -> AudioFileError:
    """The error for files that cannot be read, and no others in their place."""
    named = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
    return AudioFileError(
        f"{named}; a batch met {len(skipped)} files that cannot be read and no row to stand in for the last one: "
        "repair or remove them"
    )


class AudioTextCollator:
    """Joins samples into an [`AudioTextBatch`]; texts are cut to what the text tower reads."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, samples: list[AudioTextSample]) -> AudioTextBatch:
        return AudioTextBatch(
            text=dict(self.processor(text=[sample.text for sample in samples])),
            audios=[sample.audio for sample in samples],
            names=[sample.name for sample in samples],
            seconds=[sample.seconds for sample in samples],
            skipped=[bad for sample in samples for bad in sample.skipped],
        )


def cache_features(
    dataset: datasets.Dataset, feature_extractor, audio_column: str, num_workers: int = 1
) -> datasets.Dataset:
    """Computes the features of every whole audio once; `datasets` keeps them on disk and finds them again.

    30 s of audio take 2.5 MB (float32). Of a file that cannot be read the reason is kept, and raised where its features
    are asked for. A second call with the same audio (bytes, or path, size and time of the last
    change), extractor settings and `FEATURES_VERSION` reads them.
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
    """The features that [`cache_features`] stored for a row, as `CoLLAPFeatureExtractor.segment_features` gave them.

    Raises:
        AudioFileError: the audio could not be read; does not name the row.
    """
    content = row[CACHED_COLUMN]
    if content.startswith(UNREADABLE):
        raise AudioFileError(content.removeprefix(UNREADABLE).decode())
    return load_tensors(content)


def _compute_features(example: dict, audio_column: str, extractor_class, settings: dict, stamp: tuple) -> dict:
    """`stamp` is there for the fingerprint that `datasets` makes of the arguments."""
    torch.set_num_threads(1)
    extractor = extractor_class.from_dict(settings)
    try:
        source = audio_source(example[audio_column])
        samples = load_audio(source)
        check_samples(samples, source, extractor.sampling_rate)
    except AudioFileError as error:
        return {CACHED_COLUMN: UNREADABLE + str(error).encode()}
    features = extractor.segment_features(torch.from_numpy(samples))
    return {CACHED_COLUMN: save_tensors({name: tensor.contiguous() for name, tensor in features.items()})}


def num_segments(seconds: float, segment_seconds: float) -> int:
    """Segments of an audio, at least 1; half a sample too many in `seconds` is rounding."""
    return max(math.ceil((seconds - 0.5 / SAMPLING_RATE) / segment_seconds), 1)


def song_seconds(
    dataset: datasets.Dataset, audio_column: str, duration_column: str | None = None, num_workers: int = 1
) -> list[float]:
    """Length of every row's audio, from a column of durations in seconds, else from the headers of the files.

    `datasets` keeps what was read there. A row that cannot be read counts as 0.

    Raises:
        ValueError: names the first row without a positive duration, or the columns if there is none of that name.
    """
    if duration_column is not None:
        check_column(dataset, duration_column, "duration_column")
        return [check_duration(value, row, duration_column) for row, value in enumerate(dataset[duration_column])]
    return dataset.select_columns(audio_column).map(
        _measure_seconds,
        fn_kwargs={"audio_column": audio_column, "stamp": audio_files_digest(dataset, audio_column)},
        remove_columns=[audio_column],
        features=datasets.Features({"seconds": datasets.Value("float64")}),
        num_proc=num_workers if num_workers > 1 else None,
        desc="durations",
    )["seconds"]


def song_segments(
    dataset: datasets.Dataset,
    audio_column: str,
    segment_seconds: float,
    duration_column: str | None = None,
    num_workers: int = 1,
) -> list[int]:
    """Number of segments of every row's audio, to form batches by length: from cached features if there are any, else
    from [`song_seconds`]. A row that cannot be read counts as one segment."""
    if CACHED_COLUMN in dataset.column_names:
        return _cached_segments(dataset)
    seconds = song_seconds(dataset, audio_column, duration_column, num_workers)
    return [num_segments(one, segment_seconds) for one in seconds]


def check_duration(value: float | None, row: int, column: str) -> float:
    """A duration in seconds; a ValueError names the row of one that is missing or no positive number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"row {row} has {column} {value!r}; expected the length of its audio in seconds, above 0")
    return float(value)


def _measure_seconds(example: dict, audio_column: str, stamp: str) -> dict:
    """`stamp` is there for the fingerprint that `datasets` makes of the arguments."""
    try:
        return {"seconds": header_seconds(audio_source(example[audio_column]))}
    except AudioFileError:
        return {"seconds": 0.0}


def _cached_segments(dataset: datasets.Dataset) -> list[int]:
    """By the header of each row's safetensors: the features themselves, 2.5 MB for a segment, stay on disk. A row that
    could not be read counts as one segment."""
    segments = []
    for table in dataset.select_columns(CACHED_COLUMN).with_format("arrow").iter(batch_size=1):
        content = memoryview(table.column(CACHED_COLUMN)[0].as_buffer())
        if bytes(content[:8]) == UNREADABLE:
            segments.append(1)
            continue
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        segments.append(json.loads(bytes(header))["segment_mask"]["shape"][0])
    return segments
