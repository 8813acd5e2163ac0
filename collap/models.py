"""Load a CoLLAP model by folder or Hub id, save one with all that loads it elsewhere, and tell weights apart."""

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.utils import cached_file

import processing
from collap.files import flat
from modeling_collap import CoLLAPConfig, CoLLAPModel
from processing import CoLLAPProcessor
from processing.pipeline_collap import add_pipeline
from processing.processing_collap import MODALITY_CONFIG, has_words


def load_config(name: str | Path, **kwargs) -> CoLLAPConfig:
    """Read the configuration of a CoLLAP folder or Hub id.

    Args:
        **kwargs: of `from_pretrained`: revision, subfolder, token, cache_dir, local_files_only, ...

    Raises:
        OSError: there is no such model.
        ValueError: it is another model.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=False, **kwargs)
    if config.model_type != "collap":
        raise ValueError(f"{name}: a {config.model_type!r} model; expected a CoLLAP model, as train.py writes it")
    return config


@contextmanager
def naming_device(device: str | torch.device) -> Iterator[None]:
    """Turn what torch says of a device that is not there, or is full, into a ValueError of one line."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a GPU so far, in bytes; elsewhere, that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux; getrusage would count what the process was before it started this program
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def vocabulary_problem(tokenizer, text_config) -> str | None:
    """Say why the vocabulary of a tokenizer does not fit the text tower; None if it does.

    transformers builds a tokenizer without a word of its vocabulary where tokenizer.json is missing: with it all texts
    are the same few special tokens, and every model scores them alike.

    Args:
        tokenizer: of transformers.
        text_config: configuration of the text tower, with `vocab_size`.
    """
    rows = text_config.vocab_size
    if not has_words(tokenizer):
        return (
            f"the tokenizer has no vocabulary but {len(tokenizer)} special tokens, the text tower {rows} embeddings; "
            "put tokenizer.json (or vocab.json and merges.txt) beside config.json"
        )
    if len(tokenizer) > rows:
        return f"the tokenizer has {len(tokenizer)} tokens, the text tower {rows}: it is that of another model"
    return None


def check_vocabulary(tokenizer, text_config, name: str | Path) -> None:
    """Raise a ValueError that begins with `name` if there is a [`vocabulary_problem`]."""
    if problem := vocabulary_problem(tokenizer, text_config):
        raise ValueError(f"{name}: {problem}")


def load_model(
    name: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32", **kwargs
) -> tuple[CoLLAPModel, CoLLAPProcessor]:
    """Load a CoLLAP folder or Hub id, in evaluation mode. Code in it never runs: the classes are those of this package.

    Args:
        **kwargs: of `from_pretrained`, as in [`load_config`].

    Raises:
        OSError: there is no such model.
        ValueError: it is another model, weights are missing or damaged, the tokenizer has no vocabulary that fits, or
            the device is not there.
    """
    config = load_config(name, **kwargs)
    try:
        model = AutoModel.from_pretrained(name, dtype=dtype, trust_remote_code=False, **kwargs)
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: a weight of another shape, or a conversion
        raise ValueError(f"{name}: its weights cannot be loaded ({flat(error)})") from error
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **kwargs)
    check_vocabulary(processor.tokenizer, config.text_config, name)
    with naming_device(device):
        return model.to(device).eval(), processor


def weights_digest(name: str | Path) -> str:
    """Hash the weights of a folder, or of a Hub id that is in the cache: every tensor's name and bytes, in any files.

    Raises:
        OSError, ValueError: there is no such model, or its weights are damaged.
    """
    folder, found = Path(cached_file(name, "config.json", local_files_only=True)).parent, {}
    for path in folder.glob("model*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    tensor = file.get_tensor(key).reshape(-1).view(torch.uint8)  # (bytes,)
                    found[key] = hashlib.sha256(tensor.numpy()).hexdigest()
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def add_sentence_transformers(folder: str | Path) -> None:
    """Add to a saved model with its pipeline what `SentenceTransformer(folder, trust_remote_code=True)` reads."""
    file = Path(processing.__file__).with_name("sentence_collap.py")
    shutil.copyfile(file, Path(folder) / file.name)
    parts = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": f"{file.stem}.CoLLAPEmbedder"}],
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
        "sentence_bert_config.json": {"modality_config": MODALITY_CONFIG},  # by which mteb knows that it takes audio
    }
    for name, content in parts.items():
        (Path(folder) / name).write_text(json.dumps(content, indent=2) + "\n")


def save_model_folder(
    model: CoLLAPModel,
    processor: CoLLAPProcessor,
    folder: str | Path,
    max_shard_size: str = "5GB",
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write all that loads a model by name: weights, configuration, processor, their code, and what `pipeline` and
    sentence-transformers read.

    Args:
        max_shard_size: weights above it are split into several safetensors files.
        state_dict: to save instead of the model's own weights.
    """
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    add_pipeline(folder)
    add_sentence_transformers(folder)
