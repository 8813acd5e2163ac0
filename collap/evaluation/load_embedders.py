"""Load the models that are measured beside each other.

A model is named on the command line by its folder or Hub id, with `@` and how it reads a song: `runs/best`,
`runs/best@mean`, `laion/clap-htsat-unfused@first`. All of them are measured on the same texts, songs and pool.
"""

import importlib.util
from pathlib import Path

from transformers import AutoConfig

from collap.files import flat

from .embedders import RANDOM, CoLLAPEmbedder, Embedder, RandomVectors
from .window_embedders import WINDOWED


def load_adapter(path: Path) -> Embedder:
    """Run a Python file of the user's own and return what its `load()` gives.

    Raises:
        ValueError: it has no `load()`, or this gives no [`Embedder`].
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    embedder = module.load() if hasattr(module, "load") else None
    if not isinstance(embedder, Embedder):
        raise ValueError(f"{path}: expected a function load() that returns a collap.evaluation.embedders.Embedder")
    return embedder


def split_reading(spec: str) -> tuple[str, str]:
    """Return the folder or Hub id that a user names, and how it is to read a song; "" if that is not said."""
    if "@" not in spec or Path(spec).exists():
        return spec, ""
    name, _, reading = spec.rpartition("@")
    return name, reading


def load_embedder(spec: str, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> Embedder:
    """Load what a user names: a CoLLAP, a CLAP or a PE-A model, an adapter of their own, or `random`.

    Args:
        spec: folder or Hub id, perhaps with `@` and how it reads a song; `FILE.py`; `random`.

    Raises:
        OSError, ValueError: there is no such model, of such a kind, that reads songs so; one line.
    """
    if spec == RANDOM:
        return RandomVectors(seed)
    if spec.endswith(".py"):
        if not Path(spec).is_file():
            raise FileNotFoundError(f"{spec}: no such file; expected one with a load() as docs/evaluation.md shows")
        return load_adapter(Path(spec))
    name, reading = split_reading(spec)
    try:
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    except (OSError, ValueError) as error:
        raise OSError(f"{name}: no such folder, and no model that can be read ({flat(error)})") from error
    kinds = {"collap": CoLLAPEmbedder, **WINDOWED}
    if kind not in kinds:
        raise ValueError(
            f"{name}: a {kind!r} model; expected one of {', '.join(kinds)}, or a .py with an adapter for it, see "
            "docs/evaluation.md"
        )
    return kinds[kind](name, reading or kinds[kind].READINGS[0], device, dtype)
