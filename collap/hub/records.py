"""The records of a model: its training log and its evaluations, without paths and names of the machine."""

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from collap.card_text import plain_name, without_local_paths
from collap.evaluation.results import Results, read_results
from collap.files import write_json
from collap.models import weights_digest

SUMMARY = "training/summary.json"
SUMMARY_KEYS = ("finished", "steps", "epochs", "songs", "hours_of_audio", "wall_seconds", "peak_memory_gb", "best")
SUMMARY_KEYS += ("hardware", "settings")
RUN_FOLDERS = ("best", "last")  # of train.py


def read_json(text: str, where: str) -> dict:
    """Parse JSON; a ValueError names what is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: damaged ({error}); remove it, or the damage") from error


def read_summary(folder: Path) -> dict:
    """Read the summary.json of a published training run; empty if there is none.

    Raises:
        ValueError: it is damaged, or lacks what the card says of a run.
    """
    if not (folder / SUMMARY).is_file():
        return {}
    summary = read_json((folder / SUMMARY).read_text(encoding="utf-8"), "summary.json of the run")
    missing = [key for key in SUMMARY_KEYS if key not in summary]
    if missing:
        raise ValueError(f"summary.json of the run: no {', '.join(missing)}; expected what train.py writes")
    return summary


def stage_run(run: Path, staging: Path) -> None:
    """Copy metrics, summary and curves of a training run, without the paths and the name of the machine."""
    (staging / "training").mkdir(exist_ok=True)
    summary = read_json((run / "summary.json").read_text(encoding="utf-8"), str(run / "summary.json"))
    write_json(staging / SUMMARY, without_local_paths(summary))
    if (run / "metrics.jsonl").is_file():
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [read_json(line, f"{run / 'metrics.jsonl'}, line {i}") for i, line in enumerate(lines, start=1)]
        scrubbed = [json.dumps(without_local_paths(row)) + "\n" for row in metrics]
        (staging / "training" / "metrics.jsonl").write_text("".join(scrubbed), encoding="utf-8")
    for number, path in enumerate(sorted((run / "tensorboard").rglob("*.tfevents.*"))):
        started = path.name.split("tfevents.")[1].split(".")[0]  # the rest is the name of the machine
        copy_curves(path, staging / "runs" / f"events.out.tfevents.{started}.{number}")


def copy_curves(source: Path, target: Path) -> None:
    """Copy the curves of a file of tensorboard, and nothing else: the settings in it hold paths of the machine."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    target.parent.mkdir(exist_ok=True)
    with target.open("wb") as file:
        writer = RecordWriter(file)
        for record in RawEventFileLoader(str(source)).Load():
            event = Event.FromString(record)
            curves = [value for value in event.summary.value if value.HasField("simple_value")]
            if event.HasField("summary") and not curves:
                continue
            if curves:
                del event.summary.value[:]
                event.summary.value.extend(curves)
            writer.write(event.SerializeToString(deterministic=True))


def stage_evaluations(paths: Iterable[Path], model: Path, weights: str, staging: Path) -> None:
    """Copy results of `collap evaluate` to `evaluation/{data set}-{split}-{captions}.json`.

    Args:
        weights: `weights_digest` of the folder `model`.

    Raises:
        ValueError: a file is none, two are of the same evaluation, or one is about another model.
    """
    sources: dict[str, Path] = {}
    for path in paths:
        results = read_results(path)
        check_is_about(results, path, model, weights)
        parts = (
            plain_name(results["dataset"]),
            results.get("dataset_config"),
            results["split"],
            results["text_column"],
        )
        name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part) + ".json"
        if name in sources and read_results(sources[name]) != results:
            raise ValueError(f"{sources[name]} and {path} are both of {name.removesuffix('.json')}; give one of them")
        sources[name] = path
        (staging / "evaluation").mkdir(exist_ok=True)
        write_json(staging / "evaluation" / name, without_local_paths(results))


def check_is_about(results: dict, path: Path, model: Path, weights: str) -> None:
    """Raise a ValueError if results are of other weights than these: by the digest in them, or, in results without
    one, by the folder that they name, if it is here."""
    name = results["model"]
    measured = results.get("weights")
    if measured is None and (Path(name) / "config.json").is_file():
        measured = weights_digest(name)
    if measured is not None and measured != weights:
        raise ValueError(f"{path}: is about {name}, which had other weights than {model}; evaluate the one you publish")


def stage_records(folder: Path, staging: Path, results: Iterable[str]) -> None:
    """Copy training log and evaluations of a model; given results take the place of those in its folder."""
    run = folder.resolve().parent
    if folder.resolve().name in RUN_FOLDERS and (run / "summary.json").is_file():
        stage_run(run, staging)
    weights = weights_digest(folder)
    stage_evaluations(sorted((folder / "evaluation").glob("*.json")), folder, weights, staging)
    stage_evaluations([Path(path) for path in results], folder, weights, staging)


def read_evaluations(staging: Path) -> dict[str, Results]:
    """Read the evaluations that are staged, by the name of their file.

    Those of the folder were checked before; others may be on the Hub, and stay there.
    """
    found = {}
    for path in sorted((staging / "evaluation").glob("*.json")):
        with contextlib.suppress(ValueError):
            found[f"evaluation/{path.name}"] = read_results(path)
    return found
