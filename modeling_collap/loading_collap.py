"""Load all or nothing: what a checkpoint lacks is never drawn at random, nor what it has left out, without a word."""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

LOCATION = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# How weights were called before the towers were modules; such folders are converted, not loaded.
FORMER_PREFIXES = {
    "text_model.": "text_tower.encoder.",
    "text_projection.": "text_tower.projection.",
    "music_model.": "audio_tower.music.",
    "speech_model.": "audio_tower.speech.",
    "audio_adapter.": "audio_tower.adapter.",
}


NO_WEIGHTS = re.compile(r"(^|\.)(position_ids|attn\.bias|attn\.masked_bias)$")  # buffers of older checkpoints


class StrictLoading:
    """A `from_pretrained` for models that are loaded whole, or refused."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        ignore_mismatched_sizes=False,
        output_loading_info=False,
        use_safetensors=True,
        **kwargs,
    ):
        """Load as [`~transformers.PreTrainedModel.from_pretrained`] does, but refuse a checkpoint that lacks a weight
        of the configuration, which would be drawn at random, or has one more, which would be left out. Only
        safetensors are read.

        Args:
            ignore_mismatched_sizes: initialise weights that are missing or of another shape and leave out unknown ones,
                after all, for example for structure layers that are to be trained. What was loaded is logged.

        Raises:
            ValueError: for missing, unknown or pickled weights, a shard outside of the folder, a file of weights beside
                the index of others, or weights under the names of before.
            RuntimeError: from transformers, for weights of another shape.
            OSError: from transformers, for a folder, repository, revision or file that cannot be found.
        """
        name = pretrained_model_name_or_path
        check_weight_files(name, kwargs, use_safetensors)
        model, info = super().from_pretrained(
            name,
            *model_args,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            output_loading_info=True,
            use_safetensors=True,
            **kwargs,
        )
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ValueError(
                f"{name}: holds a peft adapter (adapter_config.json), beside which missing weights go unseen; load it "
                "with PeftModel.from_pretrained(model, folder)"
            )
        if not ignore_mismatched_sizes:
            advice = "ignore_mismatched_sizes=True loads what fits, to train the rest"
            check_whole(name, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), advice)
        return (model, info) if output_loading_info else model


def check_whole(name: str | Path, missing: list[str], unknown: list[str], advice: str = "") -> None:
    """Refuse a checkpoint that is not exactly that of a model's configuration.

    Args:
        name: folder or Hub id, for the message.
        missing, unknown: names of weights that the checkpoint lacks, or that the model does not have.
        advice: what else can be done, for the message.

    Raises:
        ValueError: names the weights.
    """
    faults = []
    if missing:
        faults.append(f"lacks {len(missing)} weights of this configuration ({some_names(missing)})")
    if unknown:
        faults.append(f"has {len(unknown)} that it does not know ({some_names(unknown)})")
    if faults:
        effect = "would be drawn at random" if missing else "would be left out"
        raise ValueError(
            f"{name}: the checkpoint {' and '.join(faults)}; they {effect}. Is config.json that of these weights? "
            f"{advice}".rstrip()
        )


def some_names(names: list[str]) -> str:
    """Return the first three names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_weight_files(name: str | Path | None, arguments: dict, use_safetensors: bool | None) -> None:
    """Look at the names in the weight files before anything is loaded.

    Args:
        name: folder or Hub id; None for a model whose weights are given.
        arguments: those of `from_pretrained`, of which `variant` and where to look are used.

    Raises:
        ValueError: for pickled weights, an index that is damaged, stands beside a file of weights, or names pickled
            files or files elsewhere, and for weights under the names of before.
    """
    if use_safetensors is False:
        raise ValueError(
            "CoLLAP reads safetensors only, because a pickled file can run code; found use_safetensors=False"
        )
    if name is None:
        return
    variant = arguments.get("variant")
    index_name, weights_name = SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    if variant:
        index_name = index_name.replace(".json", f".{variant}.json")
        weights_name = weights_name.replace(".safetensors", f".{variant}.safetensors")
    weights, index = (_find_file(name, file, arguments) for file in (weights_name, index_name))
    if weights and index:
        raise ValueError(
            f"{name}: holds {weights_name}, which transformers reads, and {index_name}, which names other files; "
            "remove the one that is out of date"
        )
    names = _index_names(name, index) if index else _weight_names(weights)
    former = [key for key in names if key.startswith(tuple(FORMER_PREFIXES))]
    if former:
        raise ValueError(
            f"{name}: its weights have names of an earlier release ({some_names(sorted(former))}); convert the folder "
            "once: collap convert-model OLD_FOLDER NEW_FOLDER"
        )


def _find_file(name: str | Path, file: str, arguments: dict) -> str | None:
    where = {key: arguments[key] for key in LOCATION if arguments.get(key) is not None}
    quiet = {f"_raise_exceptions_for_{case}": False for case in ("gated_repo", "missing_entries", "connection_errors")}
    return cached_file(str(name), file, **where, **quiet)


def _index_names(name: str | Path, index: str) -> list[str]:
    """Return the names of the weights in an index whose shards all lie beside it."""
    file = Path(index).name
    try:
        weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        shards = set(weight_map.values())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{name}: {file} is damaged ({type(error).__name__}: {error}); fetch or save it again"
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(
                f"{name}: {file} names the shard {shard!r}; expected the name of a safetensors file in the same folder"
            )
    return list(weight_map)


def _weight_names(path: str | None) -> list[str]:
    """Return the names of the weights in a file; none of a file that transformers will not be able to read either."""
    if path is None:
        return []
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError):
        return []


def load_whole(auto_class, name: str, unused: tuple[str, ...] = ()) -> PreTrainedModel:
    """Load a pretrained part in float32, with all of its weights but for those of one part that CoLLAP does not use.

    Heads of other tasks and what is no weight (attention masks, position numbers) may be in the checkpoint, too.

    Args:
        auto_class: an Auto class or a model class of transformers.
        name: folder or Hub id.
        unused: how the names of the weights begin that may be missing, or unknown.

    Raises:
        ValueError: weights are missing, unknown or of another shape.
        OSError: from transformers, there is no such model.
    """
    try:
        model, info = auto_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{name}: its weights cannot be loaded ({' '.join(str(error).split())})") from error
    parts = tuple(f"{part}." for part, _ in model.named_children())
    unknown = [key.removeprefix(f"{model.base_model_prefix}.") for key in info["unexpected_keys"]]
    unknown = [key for key in unknown if key.startswith(parts) and not NO_WEIGHTS.search(key)]
    missing, unknown = (
        sorted(key for key in keys if not key.startswith(unused)) for keys in (info["missing_keys"], unknown)
    )
    check_whole(name, missing, unknown)
    return model


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Remove a text encoder's own pooler: it would be saved, never trained, and stop DistributedDataParallel."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder
