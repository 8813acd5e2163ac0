"""Put together, in a temporary folder, what the repository of a model is to hold."""

import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import ModelCard

from collap.card_text import without_local_paths
from collap.files import write_json
from collap.models import load_config, load_model, save_model_folder

from .cards import ModelFacts, model_card
from .golden import GOLDEN_FILE, write_golden
from .merge_cards import merge_cards
from .records import SUMMARY, read_evaluations, read_summary, stage_records
from .remote import (
    ADAPTER,
    CARD,
    EXPORTS,
    LOGS,
    PICKLES,
    REPLACED,
    TOKENIZER,
    PublishSettings,
    RemoteRepository,
    is_on_hub,
    matches,
    older_cards,
    stale_files,
)

# Weights that run code when they are loaded, and what a machine leaves in a folder.
NEVER_SENT = [
    f"*.{suffix}" for suffix in ("bin", "pt", "pth", "pt2", "pkl", "pickle", "ckpt", "joblib", "npy", "npz", "pyc")
]
NEVER_SENT += [".*", "*/.*", "__pycache__/*", "*/__pycache__/*"]
# What is written anew, and not copied from the folder.
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*.py", *PICKLES, *TOKENIZER]


def own_files(folder: Path) -> dict[str, Path]:
    """Return the files to send, by their path in the folder. Links that leave it are not followed, but for those into
    the blobs of the Hub's own cache."""
    root = folder.resolve()
    inside = (root, root.parent.parent / "blobs")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: path
        for name, path in files.items()
        if not any(fnmatch(name, pattern) for pattern in NEVER_SENT)
        and any(path.resolve().is_relative_to(place) for place in inside)
    }


def copy_files(files: dict[str, Path], folder: Path) -> None:
    """Copy files to their places in a folder."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def check_model_folder(folder: Path) -> None:
    """Raise a ValueError unless it holds a model that can be saved again; names the one within a training run."""
    if (folder / "config.json").is_file():
        if getattr(load_config(folder), "quantization_config", None) is not None:
            raise ValueError(
                f"{folder}: its weights are quantised, and transformers cannot save them again; publish the model that "
                "they were made from: whoever loads it may quantise it (quantization_config=)"
            )
        return
    inside = [name for name in ("best", "last") if (folder / name / "config.json").is_file()]
    hint = f"; {folder / inside[0]} is one" if inside else ", as train.py writes it to best/ and last/"
    raise ValueError(f"{folder}: no config.json; expected the folder of a model{hint}")


def scrub_config_names(staging: Path) -> None:
    """Remove paths of this machine, from which transformers notes that a configuration came."""
    for path in staging.glob("*config.json"):
        text = path.read_text(encoding="utf-8")
        found = re.sub(r'"(\w*name_or_path)": ("[^"]*")', _scrubbed_name, text)
        path.write_text(found, encoding="utf-8")


def _scrubbed_name(found: re.Match) -> str:
    return f'"{found[1]}": {json.dumps(without_local_paths(json.loads(found[2])))}'


def stage_model(folder: Path, staging: Path, settings: PublishSettings, remote: RemoteRepository) -> list[str]:
    """Put together everything that a published model holds; return the remote files that it replaces.

    Raises:
        OSError, ValueError: the folder holds no whole model, or a file that does not fit it.
    """
    model, processor = load_model(folder, dtype="auto")
    extras = {name: path for name, path in own_files(folder).items() if not matches(name, MODEL_FILES)}
    copy_files({name: extras[name] for name in extras if not name.startswith(("evaluation/", f"{ADAPTER}/"))}, staging)
    save_model_folder(model, processor, staging, max_shard_size=settings.max_shard_size)
    scrub_config_names(staging)
    if (folder / GOLDEN_FILE).is_file():
        shutil.copyfile(folder / GOLDEN_FILE, staging / GOLDEN_FILE)
    else:
        write_golden(model, processor, staging)
    same, energy_kwh = remote.has_weights_of(staging), settings.energy_kwh
    stage_records(folder, staging, settings.results or ())
    if same:
        kept = own_files(remote.folder)
        copy_files({name: kept[name] for name in kept if name != CARD and not (staging / name).exists()}, staging)
        energy_kwh = read_summary(remote.folder).get("energy_kwh") if energy_kwh is None else energy_kwh
    summary = read_summary(staging)
    if summary and energy_kwh is not None:
        write_json(staging / SUMMARY, summary | {"energy_kwh": energy_kwh})  # where later publishes find it
    older = older_cards(ModelCard, folder, remote)
    fresh = model_card(model_facts(model, processor, staging, settings, [card.data for card in older]))
    given = [name for name in ("license", "language", "base_model", "datasets") if getattr(settings, name)]
    if remote.weights() and not same:  # what the former ones were made from is not what these were
        given += [name for name in ("base_model", "datasets") if fresh.data.get(name)]
    merge_cards(fresh, older, given).save(staging / CARD)
    return stale_files(remote, staging, REPLACED if same else [*REPLACED, *EXPORTS, *LOGS, f"{ADAPTER}/*"])


def model_facts(model, processor, staging: Path, settings: PublishSettings, older: list) -> ModelFacts:
    """Gather what the card says of the model in `staging`.

    Args:
        older: metadata of the cards that are there.
    """
    known = {name: next((data.get(name) for data in older if data.get(name)), None) for name in ("license", "language")}
    known = {name: getattr(settings, name) or value for name, value in known.items()}
    if isinstance(known["language"], str):
        known["language"] = [known["language"]]
    summary = read_summary(staging)
    return ModelFacts(
        repo_id=settings.repo_id,
        config=model.config,
        max_text_tokens=processor.max_text_tokens or processor.tokenizer.model_max_length,
        num_parameters=model.num_parameters(),
        evaluations=read_evaluations(staging),
        summary=summary or None,
        base_models=settings.base_model,
        datasets=settings.datasets,
        energy_kwh=summary.get("energy_kwh", settings.energy_kwh),
        is_on_hub=lambda name, repo_type: is_on_hub(name, repo_type, settings.token),
        **known,
    )
