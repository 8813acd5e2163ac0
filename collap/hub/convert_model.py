"""Convert a model folder of an earlier release, whose weights had other names, to one that this release loads.

    collap convert-model runs/old/best runs/best

Weights, configuration, processor and code are written anew. The golden vectors that came with the model, if any, are
computed again and compared: a converted model makes the numbers that the old one made. Everything else in the folder
(README.md, evaluation, training) is copied; evaluations that told the old weights tell the new ones.
"""

import json
import shutil
import tempfile
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from collap.files import flat, write_folder, write_json
from collap.hub.checks import FLOAT32_DRIFT, LOW_PRECISION_DRIFT
from collap.hub.golden import GOLDEN_FILE, golden_drift, probe_vectors, read_golden
from collap.hub.remote import UPLOADED_CODE
from collap.models import save_model_folder, weights_digest
from modeling_collap import CoLLAPModel
from modeling_collap.configuration_collap import FORMER_SETTINGS
from modeling_collap.loading_collap import FORMER_PREFIXES

WEIGHTS = "model*.safetensors"
# Written anew, or of no use beside other names: a LoRA run's adapter names the weights of its base.
REPLACED = (WEIGHTS, "model*.safetensors.index.json", "*_collap.py", *UPLOADED_CODE, "adapter/*", GOLDEN_FILE, ".*")


def new_name(weight: str) -> str:
    """Return what a weight of an earlier release is called now; other names stay."""
    for former, present in FORMER_PREFIXES.items():
        if weight.startswith(former):
            return present + weight.removeprefix(former)
    return weight


def read_settings(folder: Path) -> dict:
    """Read the configuration of a CoLLAP folder whose weights have their former names, without former settings.

    Raises:
        OSError: there is no such folder, or no configuration in it.
        ValueError: it is damaged, of another model or quantised, or its weights have their present names.
    """
    path = folder / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if found != "collap":
        raise ValueError(f"{path}: has model_type {found!r}; expected 'collap', a CoLLAP folder")
    if settings.get("quantization_config"):
        raise ValueError(f"{folder}: is quantised; convert the folder it was made from, and quantise that again")
    return {name: value for name, value in settings.items() if name not in FORMER_SETTINGS}


def rename_weights(folder: Path, target: Path) -> int:
    """Write the weights of a folder to another one under their present names, file by file.

    Returns:
        How many were renamed.

    Raises:
        ValueError: there are no safetensors, or they are damaged.
    """
    renamed, weight_map = 0, {}
    for path in sorted(folder.glob(WEIGHTS)):
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error
        renamed += sum(new_name(name) != name for name in weights)
        weights = {new_name(name): tensor for name, tensor in weights.items()}
        save_file(weights, target / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(weights, path.name)
    if not weight_map:
        raise ValueError(f"{folder}: holds no {WEIGHTS}; only safetensors are converted")
    if set(weight_map.values()) != {"model.safetensors"}:
        write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return renamed


def load_former(folder: Path) -> tuple[CoLLAPModel, object]:
    """Load a folder of an earlier release with its processor, in the precision in which it was saved.

    Raises:
        OSError, ValueError: it is no such folder, or a damaged one.
    """
    settings = read_settings(folder)
    with tempfile.TemporaryDirectory() as staging:
        if not rename_weights(folder, Path(staging)):
            raise ValueError(f"{folder}: its weights have their present names already; it needs no conversion")
        write_json(Path(staging) / "config.json", settings)
        model = CoLLAPModel.from_pretrained(staging, dtype="auto").eval()
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def check_golden(model: CoLLAPModel, processor, folder: Path) -> str:
    """Compare what the model makes of the built-in set with the vectors stored beside the former weights.

    Returns:
        One line: whether they are equal; only then are they copied.
    """
    try:
        golden = read_golden(folder)
    except ValueError as error:
        return f"{GOLDEN_FILE} is left out: {error}"
    if golden is None:
        return f"no {GOLDEN_FILE} to compare with"
    drift = max(golden_drift(probe_vectors(model, processor), golden).values())
    limit = (
        FLOAT32_DRIFT if golden.metadata["dtype"] == str(model.dtype).removeprefix("torch.") else LOW_PRECISION_DRIFT
    )
    if drift > limit:
        return f"{GOLDEN_FILE} is left out: the model is {drift:.1e} from it, expected at most {limit:.0e}"
    return f"the model makes its golden vectors to {drift:.1e}"


def copy_rest(folder: Path, target: Path, digests: tuple[str, str]) -> None:
    """Copy what is not written anew; evaluations of the former weights are of the present ones.

    Args:
        digests: `weights_digest` of the folder and of the target.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        copy = target / name
        if copy.exists() or any(fnmatch(name, pattern) for pattern in REPLACED):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for path in (target / "evaluation").glob("*.json"):
        with suppress(ValueError):  # not ours
            results = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(results, dict) and results.get("weights") == digests[0]:
                write_json(path, results | {"weights": digests[1]})


def convert(folder: Path, target: Path) -> str:
    """Convert a folder of an earlier release; `target` is written whole or not at all.

    Returns:
        What [`check_golden`] says.

    Raises:
        OSError, ValueError: `folder` is no such folder, or `target` is there already or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder; expected a new one")
    model, processor = load_former(folder)
    said = check_golden(model, processor, folder)

    def write(temporary: Path) -> None:
        save_model_folder(model, processor, temporary)
        copy_rest(folder, temporary, (weights_digest(folder), weights_digest(temporary)))
        if said.startswith("the model makes"):
            shutil.copyfile(folder / GOLDEN_FILE, temporary / GOLDEN_FILE)

    write_folder(target, write)
    return said


def run(options) -> int:
    """Do `collap convert-model`; return its exit code."""
    try:
        said = convert(options.folder, options.target)
    except RuntimeError as error:  # from transformers: weights of another shape
        raise ValueError(f"{options.folder}: {flat(error)}") from error
    print(f"{options.target}: converted; {said}")
    if (options.folder / "adapter").is_dir():
        print("adapter: left out, it names the weights of its base; the converted weights contain it")
    return 0
