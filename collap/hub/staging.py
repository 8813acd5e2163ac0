"""What a repository is to hold, put together in a temporary folder: a model, a corpus or a Space."""

import contextlib
import hashlib
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import DatasetCard, HfApi, ModelCard, RepoCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from collap.hub.cards import (
    ModelFacts,
    dataset_card,
    lost_sections,
    merge_cards,
    model_card,
    parse_card,
    plain_name,
    read_corpus,
    read_evaluation,
    without_local_paths,
)
from collap.hub.golden import GOLDEN_FILE, write_golden
from collap.models import load_config, load_model, save_model_folder, weights_digest

CARD = "README.md"
# Weights that run code when they are loaded, and what a machine leaves in a folder.
NEVER_SENT = [
    f"*.{suffix}" for suffix in ("bin", "pt", "pth", "pt2", "pkl", "pickle", "ckpt", "joblib", "npy", "npz", "pyc")
]
NEVER_SENT += [".*", "*/.*", "__pycache__/*", "*/__pycache__/*"]
# What is written anew, and not copied from the folder.
PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt"]
TOKENIZER = ["tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*.py", *PICKLES, *TOKENIZER]
# What a former model may have left in the repository; other code and weights there are of its users.
FORMER_FILES = ["model*.safetensors", "model*.safetensors.index.json", *PICKLES, *TOKENIZER]
# Every code file that a model was ever published with. Others of these names are of their users, and stay.
UPLOADED_CODE = ["audio_collap.py", "audio_files.py", "configuration_beats.py", "configuration_collap.py"]
UPLOADED_CODE += ["decode_audio.py", "embed_audio.py", "feature_extraction_collap.py", "loading_collap.py"]
UPLOADED_CODE += ["loss_collap.py", "modeling_beats.py", "modeling_collap.py", "pipeline_collap.py"]
UPLOADED_CODE += ["processing_collap.py", "scoring_collap.py", "sentence_collap.py", "structure_collap.py"]
FORMER_FILES += UPLOADED_CODE
SUMMARY = "training/summary.json"
SUMMARY_KEYS = ("finished", "steps", "epochs", "songs", "hours_of_audio", "wall_seconds", "peak_memory_gb", "best")
SUMMARY_KEYS += ("hardware", "settings")
RUN_FOLDERS = ("best", "last")  # of train.py
# What belongs to the weights: it stays with them, and goes when others take their place.
EXPORTS = ["*.onnx", "*.onnx.data", "onnx/*"]
LOGS = ["evaluation/*", "training/*", "runs/*"]
ADAPTER = "adapter"  # of a LoRA run: it is in the weights, and names a base that is on the machine only
SHARD_BYTES = 500 * 10**6  # of a corpus


@dataclass
class PublishSettings:
    """Where to publish, and what a folder does not say of itself.

    Attributes:
        repo_id: `owner/name`, or a name of the user's own.
        repo_type: model, dataset (a corpus of collap/corpora/synthetic) or space (a metric).
        private: makes the repository private if it is new; one that exists must be.
        revision: branch, made if there is none.
        create_pr: whether to open a pull request instead of a commit on the main branch.
        license, language, base_model, datasets: for the metadata of the card; if None, what the card says already, or
            what the training run was made from.
        results: results.json files of evaluate_retrieval.py.
        energy_kwh: that the training took.
        max_shard_size: weights above it are split.
        anyway: whether to publish a model that the doctor finds unhealthy.
        token: of the user; the one that `hf auth login` stored, or HF_TOKEN, if None.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    license: str | None = None
    language: list[str] | None = None
    base_model: list[str] | None = None
    datasets: list[str] | None = None
    results: list[str] | None = None
    energy_kwh: float | None = None
    max_shard_size: str = "5GB"
    anyway: bool = False
    token: str | None = field(default=None, repr=False)

    def command(self, folder: str | Path) -> str:
        """That publishes the folder again; without the token."""
        words = ["collap", "publish", str(folder), self.repo_id]
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name not in ("repo_id", "token") and value != one.default:
                values = value if isinstance(value, list) else [] if value is True else [value]
                words += [f"--{one.name}", *map(str, values)]
        return shlex.join(words)

    def place(self) -> dict:
        """The repository, as [`HfApi`] takes it."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


# --------------------------------------------------------------------------------------------------------------------
# What the repository holds, and what of it stays


@dataclass
class Former:
    """What the repository held before: the commit, its files, and a folder with card, evaluations and training log."""

    commit: str | None
    files: dict[str, RepoFile]
    folder: Path

    def weights(self) -> dict[str, str]:
        """sha256 by file."""
        return {path: file.lfs.sha256 for path, file in self.files.items() if file.lfs and _is_weights(path)}

    def has_weights_of(self, staging: Path) -> bool:
        """Whether the weights are, byte for byte, those that are published now."""
        staged = {path.name: _sha256(path) for path in staging.iterdir() if _is_weights(path.name)}
        return bool(staged) and self.weights() == staged


def _is_weights(path: str) -> bool:
    return fnmatch(path, "model*.safetensors") and "/" not in path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_former(settings: PublishSettings, folder: Path) -> Former:
    """What the revision to publish to holds; its card and logs go to `folder`."""
    api, place = HfApi(token=settings.token), settings.place()
    place["revision"] = commit = api.repo_info(**place, revision=settings.revision).sha
    tree = {item.path: item for item in api.list_repo_tree(recursive=True, **place) if isinstance(item, RepoFile)}
    if any(matches(path, [CARD, *LOGS]) for path in tree):
        api.snapshot_download(allow_patterns=[CARD, *LOGS], local_dir=folder, **place)
    return Former(commit, tree, folder)


def older_cards(card_class: type[RepoCard], folder: Path, former: Former) -> list[RepoCard]:
    """The card of the repository, then that of the folder, where there is one. Text of the second that the first, which
    leads, does not let through is said."""
    paths = [path for path in (former.folder / CARD, folder / CARD) if path.is_file()]
    cards = [parse_card(card_class, path.read_text(encoding="utf-8"), str(path)) for path in paths]
    if len(cards) == 2 and (lost := lost_sections(*(card.text for card in cards))):
        left = f"{folder / CARD}: {', '.join(lost)} is not as on the Hub, where it stays as it is; edit it there"
        print(left, file=sys.stderr)
    return cards


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern fits; one without `/` is of the top folder."""
    return any(fnmatch(path, pattern) and pattern.count("/") == path.count("/") for pattern in patterns)


def stale_files(former: Former, staging: Path, patterns: Iterable[str]) -> list[str]:
    """Files of the repository that match and are not published any more."""
    return [path for path in former.files if matches(path, patterns) and not (staging / path).is_file()]


def own_files(folder: Path) -> dict[str, Path]:
    """Files to send, by their path in the folder. Links that leave it are not followed, but for those into the blobs of
    the Hub's own cache."""
    root = folder.resolve()
    inside = (root, root.parent.parent / "blobs")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: path
        for name, path in files.items()
        if not any(fnmatch(name, pattern) for pattern in NEVER_SENT)
        and any(path.resolve().is_relative_to(place) for place in inside)
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def copy_files(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


# --------------------------------------------------------------------------------------------------------------------
# A model


def check_model_folder(folder: Path) -> None:
    """ValueError unless it holds a model that can be saved again; names the one within a training run."""
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
    """transformers notes where a configuration came from, which may be a path of this machine."""
    for path in staging.glob("*config.json"):
        text = path.read_text(encoding="utf-8")
        found = re.sub(r'"(\w*name_or_path)": ("[^"]*")', _scrubbed_name, text)
        path.write_text(found, encoding="utf-8")


def _scrubbed_name(found: re.Match) -> str:
    return f'"{found[1]}": {json.dumps(without_local_paths(json.loads(found[2])))}'


def read_json(text: str, where: str) -> dict:
    """ValueError that names what is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: damaged ({error}); remove it, or the damage") from error


def read_summary(folder: Path) -> dict:
    """The summary.json of a published training run; empty if there is none.

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
    """Metrics, summary and the curves of a training run, without the paths and the name of the machine."""
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
    """A file of tensorboard with nothing but its curves: the settings in it hold paths of the machine."""
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
    """Results of evaluate_retrieval.py as `evaluation/{data set}-{split}-{captions}.json`.

    Args:
        weights: `weights_digest` of the folder `model`.

    Raises:
        ValueError: a file is none, two are of the same evaluation, or one is about another model.
    """
    sources: dict[str, Path] = {}
    for path in paths:
        results = read_evaluation(path)
        check_is_about(results, path, model, weights)
        parts = (
            plain_name(results["dataset"]),
            results.get("config_name"),
            results["split"],
            results["caption_column"],
        )
        name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part) + ".json"
        if name in sources and read_evaluation(sources[name]) != results:
            raise ValueError(f"{sources[name]} and {path} are both of {name.removesuffix('.json')}; give one of them")
        sources[name] = path
        (staging / "evaluation").mkdir(exist_ok=True)
        write_json(staging / "evaluation" / name, without_local_paths(results))


def check_is_about(results: dict, path: Path, model: Path, weights: str) -> None:
    """ValueError if results are of other weights than these: by the digest in them, or, in results without one, by the
    folder that they name, if it is here."""
    name = results["model"]
    measured = results.get("weights")
    if measured is None and (Path(name) / "config.json").is_file():
        measured = weights_digest(name)
    if measured is not None and measured != weights:
        raise ValueError(f"{path}: is about {name}, which had other weights than {model}; evaluate the one you publish")


def stage_records(folder: Path, staging: Path, results: Iterable[str]) -> None:
    """Training log and evaluations of a model; given results take the place of those in its folder."""
    run = folder.resolve().parent
    if folder.resolve().name in RUN_FOLDERS and (run / "summary.json").is_file():
        stage_run(run, staging)
    weights = weights_digest(folder)
    stage_evaluations(sorted((folder / "evaluation").glob("*.json")), folder, weights, staging)
    stage_evaluations([Path(path) for path in results], folder, weights, staging)


def stage_model(folder: Path, staging: Path, settings: PublishSettings, former: Former) -> list[str]:
    """Everything that a published model holds; returns the files of the repository that it replaces.

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
    same, energy_kwh = former.has_weights_of(staging), settings.energy_kwh
    stage_records(folder, staging, settings.results or ())
    if same:
        kept = own_files(former.folder)
        copy_files({name: kept[name] for name in kept if name != CARD and not (staging / name).exists()}, staging)
        energy_kwh = read_summary(former.folder).get("energy_kwh") if energy_kwh is None else energy_kwh
    summary = read_summary(staging)
    if summary and energy_kwh is not None:
        write_json(staging / SUMMARY, summary | {"energy_kwh": energy_kwh})  # where later publishes find it
    older = older_cards(ModelCard, folder, former)
    fresh = model_card(model_facts(model, processor, staging, settings, [card.data for card in older]))
    given = [name for name in ("license", "language", "base_model", "datasets") if getattr(settings, name)]
    if former.weights() and not same:  # what the former ones were made from is not what these were
        given += [name for name in ("base_model", "datasets") if fresh.data.get(name)]
    merge_cards(fresh, older, given).save(staging / CARD)
    return stale_files(former, staging, FORMER_FILES if same else [*FORMER_FILES, *EXPORTS, *LOGS, f"{ADAPTER}/*"])


def is_on_hub(name: str, repo_type: str, token: str | None) -> bool:
    """Whether the Hub has a repository that the user may see."""
    try:
        return HfApi(token=token).repo_exists(name, repo_type=repo_type)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            raise
        return False


def read_evaluations(staging: Path) -> dict[str, dict]:
    """By the name of their file. Those of the folder were checked before; others may be on the Hub, and stay there."""
    found = {}
    for path in sorted((staging / "evaluation").glob("*.json")):
        with contextlib.suppress(ValueError):
            found[f"evaluation/{path.name}"] = read_evaluation(path)
    return found


def model_facts(model, processor, staging: Path, settings: PublishSettings, older: list) -> ModelFacts:
    """What the card says of the model in `staging`.

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


# --------------------------------------------------------------------------------------------------------------------
# A corpus, a Space


def stage_corpus(folder: Path, staging: Path, settings: PublishSettings, former: Former) -> None:
    """Parquet shards that hold the audio, corpus.json and the card; `load_dataset` and train.py read them by Hub id."""
    from datasets import Audio  # with the `train` extra, as the reader of corpora
    from datasets.table import embed_table_storage

    from collap.data.sources import open_dataset

    _, rows = read_corpus(folder)
    for split in rows:
        dataset = open_dataset(str(folder), split, text_column="captions")
        size = sum(path.stat().st_size for path in (folder / split).iterdir())
        num_shards = max(1, math.ceil(size / SHARD_BYTES))
        for index in range(num_shards):
            shard = dataset.shard(num_shards, index, contiguous=True).with_format("arrow")
            shard = shard.map(embed_table_storage, batched=True, keep_in_memory=True)
            path = staging / "data" / f"{split}-{index:05d}-of-{num_shards:05d}.parquet"
            shard.with_format(None).cast_column("audio", Audio()).to_parquet(path, batch_size=32)
    shutil.copyfile(folder / "corpus.json", staging / "corpus.json")
    older = older_cards(DatasetCard, folder, former)
    license = settings.license or next((card.data.license for card in older if card.data.license), None)
    card = dataset_card(folder, settings.repo_id, license)
    merge_cards(card, older, ["license"] if settings.license else []).save(staging / CARD)


def space_sdk(folder: Path, repo_id: str) -> str:
    """Of a metric or another Space; ValueError unless its card has what the Hub needs, and a metric its script."""
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
