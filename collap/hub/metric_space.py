"""The Space of the retrieval metric, written from the functions by which `collap evaluate` measures."""

import ast
import shutil
from pathlib import Path

from huggingface_hub import RepoCard

from collap.card_text import plain_name
from collap.evaluation import metrics

from .merge_cards import parse_card
from .remote import CARD

METRIC = "audio_text_retrieval"  # what `evaluate` calls the Space and the module in it
TEMPLATES = Path(__file__).with_name("spaces") / METRIC
MODULE_TEMPLATE = "module_template.py"


def metric_module() -> str:
    """Return the module that `evaluate.load` reads: the template with the functions in place of their import."""
    template = (TEMPLATES / MODULE_TEMPLATE).read_text(encoding="utf-8")
    (line,) = (line for line in template.splitlines() if line.startswith(f"from {metrics.__name__} import "))
    source = Path(metrics.__file__).read_text(encoding="utf-8")
    docstring = ast.parse(source).body[0]
    functions = "\n".join(source.splitlines()[docstring.end_lineno :])
    return template.replace(line, functions.strip() + "\n")


def write_metric_space(parent: Path) -> Path:
    """Write the files of the Space into a new folder of the metric's name, by which `evaluate.load` takes it, too."""
    folder = parent / METRIC
    folder.mkdir()
    for path in TEMPLATES.iterdir():
        if path.is_file() and path.name != MODULE_TEMPLATE:
            shutil.copyfile(path, folder / path.name)
    (folder / f"{METRIC}.py").write_text(metric_module(), encoding="utf-8")
    return folder


def space_sdk(folder: Path, repo_id: str) -> str:
    """Return the SDK of a metric or another Space.

    Raises:
        ValueError: its card lacks what the Hub needs, or a metric has no script of its name.
    """
    card = parse_card(RepoCard, (folder / CARD).read_text("utf-8") if (folder / CARD).is_file() else "", folder / CARD)
    missing = [name for name in ("sdk", "tags") if not card.data.get(name)]
    if missing:
        raise ValueError(
            f"{folder / CARD}: no {' and no '.join(missing)} in its metadata, without which a Space does not run"
        )
    script = f"{plain_name(repo_id)}.py"
    if "metric" in card.data.tags and not (folder / script).is_file():
        raise ValueError(
            f"{folder}: no {script}, which evaluate.load({repo_id!r}) reads; name the Space like the metric's script"
        )
    return card.data.sdk
