"""Keep the features of every whole song on disk, so that each is computed once."""

import os

import datasets
import pyarrow.compute as pc
import torch
from datasets.fingerprint import Hasher
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from processing.decode_audio import AudioFileError
from processing.embed_audio import check_samples

from .arrow_cache import map_once
from .audio_parts import file_of
from .guarded_reading import load_audio
from .rows import audio_source

CACHED_COLUMN = "collap_features"
UNREADABLE = b"\xff" * 8  # what no safetensors file begins with: a header of 2^64 - 1 bytes
# To be raised with every change of code that changes the features of the same audio: stored ones are not used then.
FEATURES_VERSION = 1


def cache_features(
    dataset: datasets.Dataset, feature_extractor, audio_column: str, num_workers: int = 1
) -> datasets.Dataset:
    """Compute the features of every whole audio once; `datasets` keeps them on disk and finds them again.

    30 s of audio take 2.5 MB (float32). Of a file that cannot be read the reason is kept, and raised where its features
    are asked for. A second call with the same audio (bytes, or path, size and times of the last change), extractor
    settings and `FEATURES_VERSION` reads them.
    """
    arguments = {
        "audio_column": audio_column,
        "extractor_class": type(feature_extractor),
        "settings": feature_extractor.to_dict(),
        "stamp": (FEATURES_VERSION, audio_files_digest(dataset, audio_column)),
    }
    threads = torch.get_num_threads()
    features = map_once(
        dataset.select_columns(audio_column),
        _compute_features,
        fn_kwargs=arguments,
        remove_columns=[audio_column],  # else its bytes would be stored once more
        features=datasets.Features({CACHED_COLUMN: datasets.Value("large_binary")}),
        num_proc=num_workers if num_workers > 1 else None,
        writer_batch_size=8,
        desc="features",
    )
    torch.set_num_threads(threads)  # without workers it was this process that went down to one
    return datasets.concatenate_datasets([features, dataset], axis=1)


def load_cached_features(row: dict) -> dict[str, torch.Tensor]:
    """Load the features that [`cache_features`] stored for a row, as `segment_features` gave them.

    Raises:
        AudioFileError: the audio could not be read; does not name the row.
    """
    content = row[CACHED_COLUMN]
    if content.startswith(UNREADABLE):
        raise AudioFileError(content.removeprefix(UNREADABLE).decode())
    return load_tensors(content)


def audio_files_digest(dataset: datasets.Dataset, audio_column: str) -> str:
    """Return what changes when a file of the audio column does: in size, by a change of its state, or by vanishing."""
    hasher = Hasher()
    # Arrow, so that no audio bytes are copied; their content is in the data set's own fingerprint.
    for table in dataset.select_columns(audio_column).with_format("arrow").iter(batch_size=1000):
        audio = table.column(audio_column)
        has_bytes = pc.is_valid(pc.struct_field(audio, "bytes")).to_pylist()
        for path, is_content in zip(pc.struct_field(audio, "path").to_pylist(), has_bytes, strict=True):
            if not is_content:
                hasher.update(_file_stamp(path))
    return hasher.hexdigest()


def _file_stamp(path: str | None) -> tuple:
    try:
        status = os.stat(file_of(path))
    except (OSError, TypeError, ValueError):  # named with its row when it is read
        return (path,)
    return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns  # the last cannot be set


def _compute_features(example: dict, audio_column: str, extractor_class, settings: dict, stamp: tuple) -> dict:
    """Compute one row; `stamp` is there for the fingerprint that `datasets` makes of the arguments."""
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
