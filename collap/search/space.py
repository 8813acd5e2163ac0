"""Tell which vectors and scores may be compared: those of one space, the same model with the same settings.

Two models, or one with other segments, give vectors of the same width whose cosines mean nothing. So an index carries
the space that its vectors are of, and refuses queries and additions of another. A space is told from files alone,
without loading the model:

    format      of what is stored
    model       digest of the weights; configuration, processor and tokenizer
    reading     of a model of short clips: its windows are tokens
    dtype       of the encoders
    stride      every so many segments are embedded
    versions    of the code that makes features and vectors, and of libraries by their first number
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import cached_file

from collap.data.feature_cache import FEATURES_VERSION
from collap.evaluation.embedders import Embedder, files_digest
from collap.evaluation.embedding_store import VERSION as EMBEDDING_VERSION
from collap.evaluation.load_embedders import load_embedder, split_reading
from collap.evaluation.window_embedders import WINDOWED
from collap.files import flat

from .int8 import INT8, load_in_int8

VECTORS_VERSION = 1  # raise it with every change of what is stored of the same embeddings
LIBRARIES = ("torch", "torchaudio", "transformers", "av")
CONFIGURATIONS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt")
# Of a configuration: where it was saved, by which version, for which classes.
NO_SETTINGS = {"_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"}
TOKENS = "tokens"
SHOWN = 4  # differences in a message


@dataclass(frozen=True)
class Space:
    """Hold what decides the vectors of an index, as JSON has it."""

    about: dict

    @cached_property
    def id(self) -> str:
        """Return 32 hexadecimal digits that only this space has."""
        return hashlib.blake2b(json.dumps(self.about, sort_keys=True).encode(), digest_size=16).hexdigest()

    def differences(self, other: "Space") -> list[str]:
        """Say in what two spaces differ, as `model.weights is x, there it is y`; empty if in nothing."""
        own, others = dict(_leaves(self.about)), dict(_leaves(other.about))
        names = [name for name in {**own, **others} if own.get(name) != others.get(name)]
        return [f"{name} is {own.get(name)!r}, there it is {others.get(name)!r}" for name in names]

    def check(self, index: "Space", place: Path) -> None:
        """Raise a ValueError of one line if this is not the space of the index at `place`."""
        if found := self.differences(index):
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise ValueError(
                f"{place}: its vectors are of another space: {'; '.join(found[:SHOWN])}{more}; name the model and the "
                "settings that it was made with, or another --index for these"
            )


def _leaves(content: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted name and the value of whatever is in nested dicts."""
    if not isinstance(content, dict):
        yield name, content
        return
    for key, value in content.items():
        yield from _leaves(value, f"{name}.{key}" if name else key)


def searched_model(spec: str) -> tuple[str, str]:
    """Return the name of a model that can be searched with, and what `load_embedder` calls it.

    Args:
        spec: folder or Hub id; models of short clips are read by their windows, with or without `@tokens`.

    Raises:
        OSError, ValueError: there is no such model, or it does not give vectors over the time of a song.
    """
    name, reading = split_reading(spec)
    try:
        config = json.loads(_config_file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OSError(f"{name}: no such folder, and no model that can be read ({flat(error)})") from error
    kind = config.get("model_type")
    expected = {"collap": "", **dict.fromkeys(WINDOWED, TOKENS)}
    if kind not in expected:
        raise ValueError(f"{name}: a {kind!r} model; expected one of {', '.join(expected)}")
    if reading not in ("", expected[kind] or "attention"):
        raise ValueError(f"{spec}: gives no vectors over the time of a song that its score is of; name it without @")
    return name, f"{name}@{TOKENS}" if expected[kind] else name


def _config_file(name: str, **settings) -> Path:
    """Return the configuration of a folder or Hub id; an OSError if there is none."""
    path = cached_file(name, "config.json", **settings)
    if path is None:
        raise OSError("it has no config.json")
    return Path(path)


def load_searched(spec: str, device: str = "cpu", dtype: str = "float32") -> Embedder:
    """Load a model that songs are indexed and searched with, see [`searched_model`]; `int8` as [`load_in_int8`]."""
    loaded = searched_model(spec)[1]
    return load_in_int8(loaded, device) if dtype == INT8 else load_embedder(loaded, device, dtype)


def best_device(dtype: str) -> str:
    """Return where a model runs if nobody says: on a GPU, if there is one; in int8 on the processor."""
    return "cuda" if torch.cuda.is_available() and dtype != INT8 else "cpu"


def space_of(spec: str, dtype: str = "float32", stride: int = 1) -> Space:
    """Return the space of a model with these settings, from its files; a Hub id has to be in the cache.

    Args:
        spec: see [`searched_model`].
        dtype: of the encoders.
        stride: every so many segments are embedded.

    Raises:
        OSError, ValueError: there is no such model, or its weights are not there or are damaged.
    """
    name, loaded = searched_model(spec)
    folder = _config_file(name, local_files_only=True).parent
    settings = {file: _settings(folder / file) for file in CONFIGURATIONS if (folder / file).is_file()}
    tokenizers = {file: _digest(folder / file) for file in TOKENIZERS if (folder / file).is_file()}
    versions = {"features": FEATURES_VERSION, "embeddings": EMBEDDING_VERSION}
    return Space(
        {
            "format": VECTORS_VERSION,
            "model": {"weights": files_digest(name), **settings, **tokenizers},
            "reading": "tokens" if loaded != name else "attention",
            "dtype": dtype,
            "stride": stride,
            "versions": {**versions, **{library: version(library).split(".")[0] for library in LIBRARIES}},
        }
    )


def fetched_space(spec: str, device: str, dtype: str, stride: int) -> Space:
    """Return the space of a model as [`space_of`] does; what is on the Hub and not in the cache is fetched first."""
    try:
        return space_of(spec, dtype, stride)
    except OSError:
        load_searched(spec, device, dtype)
        return space_of(spec, dtype, stride)


def _settings(path: Path) -> dict:
    """Read a configuration, without what does not change what a model computes."""
    try:
        return _without(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({flat(error)})") from error


def _without(content):
    if not isinstance(content, dict):
        return content
    return {key: _without(value) for key, value in content.items() if key not in NO_SETTINGS}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
