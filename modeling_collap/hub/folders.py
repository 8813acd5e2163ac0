"""Model folders: what a saved CoLLAP holds, and how this package loads one."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

from modeling_collap import CoLLAPConfig, CoLLAPModel
from processing import CoLLAPProcessor


def load_config(name: str | Path, **kwargs) -> CoLLAPConfig:
    """Configuration of a CoLLAP folder or Hub id.

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


def load_folder(
    name: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32", **kwargs
) -> tuple[CoLLAPModel, CoLLAPProcessor]:
    """A CoLLAP folder or Hub id, in evaluation mode. Code in it never runs: the classes are those of this package.

    Args:
        **kwargs: of `from_pretrained`, as in [`load_config`].

    Raises:
        OSError: there is no such model.
        ValueError: it is another model, weights are missing, or the device is not there.
    """
    load_config(name, **kwargs)
    model = AutoModel.from_pretrained(name, dtype=dtype, trust_remote_code=False, **kwargs)
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **kwargs)
    try:
        return model.to(device).eval(), processor
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error


def save_folder(
    model: CoLLAPModel,
    processor: CoLLAPProcessor,
    folder: str | Path,
    max_shard_size: str = "5GB",
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes all that loads a model by name: weights, configuration, processor, and the code of both.

    Args:
        max_shard_size: weights above it are split into several safetensors files.
        state_dict: to save instead of the model's own weights.
    """
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
