"""Say whether a CoLLAP model is healthy: whole, undamaged, better than chance, and still what it was when stored.

    collap doctor runs/demo/collap-gpt2/best
    collap doctor you/collap-gpt2 --revision v1.0 --json

Everything is measured on a built-in set of eight clips with three texts each (`evaluation/probe_clips`) and takes
seconds. Code in the folder never runs. Exit code: 0 healthy (there may be warnings), 1 a check failed, 2 there is no
such model or the command is wrong.
"""

import contextlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import DryRunError
from transformers import AutoModel, AutoProcessor

from collap.files import flat
from collap.hub.checks import (
    PICKLES,
    Check,
    attempted,
    check_card,
    check_copies,
    check_execution,
    check_files,
    check_probes,
    check_processor,
    check_score_parameters,
    check_weights,
    error_line,
)
from collap.models import load_config, naming_device

NOT_FETCHED = (*(f"*{suffix}" for suffix in PICKLES), "*.onnx*", "*.pt2", "runs/*")


@dataclass(frozen=True)
class Diagnosis:
    """Hold what [`diagnose`] found of the model `name`."""

    name: str
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Tell whether no check failed."""
        return not any(check.status == "failed" for check in self.checks)

    def to_dict(self) -> dict:
        return {"model": self.name, "healthy": self.healthy, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        counts = {status: sum(check.status == status for check in self.checks) for status in ("failed", "warning")}
        lines = [f"{check.status:8s} {check.name}: {check.detail}" for check in self.checks]
        found = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "all is well"
        return "\n".join([*lines, f"{self.name} is {'healthy' if self.healthy else 'NOT HEALTHY'} ({found})"])


def fetch(name: str, revision: str | None = None, **download) -> tuple[Path, list[str], bool]:
    """Find the folder of a model, the files that it has, and whether it comes from the Hub.

    Args:
        **download: of `snapshot_download`: token, cache_dir, local_files_only, ...

    Raises:
        OSError: no such folder, repository or revision; no access, or no network.
        ValueError: `name` is neither a folder nor the id of a repository, or a folder with a `revision`.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"--revision {revision}: {name} is a folder, and has no revisions; leave it out")
        return Path(name), sorted(path.name for path in Path(name).iterdir()), False
    if Path(name).exists():
        raise ValueError(f"{name} is a file; expected a folder with a model, or a Hub id")
    try:
        folder = Path(snapshot_download(name, revision=revision, ignore_patterns=NOT_FETCHED, **download))
    except (OSError, ValueError) as error:  # ValueError: it cannot be an id
        raise OSError(f"{name}: no such folder, and no model of the Hub that can be read ({flat(error)})") from error
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    with contextlib.suppress(DryRunError):  # offline: only what is in the cache is known
        listed = snapshot_download(name, revision=revision, dry_run=True, **download)
        files += [file.filename for file in listed]
    return folder, sorted(set(files)), True


def load(folder: Path, device: str, dtype: str, attn_implementation: str | None) -> tuple:
    """Load the model with whatever weights fit, its processor, and what transformers says of the others.

    Raises:
        Exception: of any kind, from a folder that is damaged.
    """
    load_config(folder)
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model, info = AutoModel.from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # to tell of all at once
        output_loading_info=True,
        **options,
    )
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    return model.to(device).eval(), processor, info


def diagnose(
    name: str | Path,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    attn_implementation: str | None = None,
    **download,
) -> Diagnosis:
    """Examine a model.

    Args:
        name: a folder or Hub id; files of the Hub are fetched into the cache.
        revision: branch, tag or commit on the Hub.
        device, dtype, attn_implementation: how the model is run; golden vectors are compared most tightly in float32.
        **download: of `huggingface_hub.snapshot_download`: token, cache_dir, local_files_only, ...

    Raises:
        OSError, ValueError: as [`fetch`], or the device is not there. What is wrong with the model itself is a check.
    """
    with naming_device(device):
        torch.empty(1, device=device)
    folder, files, on_hub = fetch(str(name), revision, **download)
    checks = attempted("files", check_files, folder, files)
    checks += attempted("copies", check_copies, folder) if on_hub else []
    checks += attempted("card", check_card, folder, on_hub)
    try:
        model, processor, info = load(folder, device, dtype, attn_implementation)
    except Exception as error:  # whatever a damaged folder makes the loaders do is the finding
        checks.append(Check("loading", "failed", f"{error_line(error)}; nothing further can be checked"))
        return Diagnosis(str(name), tuple(checks))
    checks += attempted("weights", check_weights, model, info)
    if info["missing_keys"] or info["mismatched_keys"]:
        checks.append(Check("loading", "failed", "nothing further is checked: a part of the weights is random"))
        return Diagnosis(str(name), tuple(checks))
    checks += attempted("processor", check_processor, model, processor)
    checks += attempted("score parameters", check_score_parameters, model)
    checks += attempted("execution", check_execution, model, device, dtype, attn_implementation)
    checks += attempted("built-in set", check_probes, folder, model, processor)
    return Diagnosis(str(name), tuple(checks))


def run(options) -> int:
    """Do `collap doctor`; return its exit code."""
    settings = vars(options)
    name, as_json = settings.pop("model"), settings.pop("json")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints: stdout holds the diagnosis alone
            diagnosis = diagnose(name, **settings)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        if as_json:
            print(json.dumps({"model": name, "healthy": False, "error": str(error)}))
        return 2
    print(json.dumps(diagnosis.to_dict()) if as_json else diagnosis)
    return 0 if diagnosis.healthy else 1
