"""Model and dataset cards: metadata and generated text that later publishes refresh, around text that users write.

A generated part stands between `<!-- collap:NAME -->` and `<!-- /collap:NAME -->`. Publishing again replaces what is
between the two, and nothing else; where they were deleted, the text that is there stays.
"""

import json
import re
import shlex
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    DatasetCard,
    DatasetCardData,
    EvalResult,
    ModelCard,
    ModelCardData,
    RepoCard,
)
from huggingface_hub.utils import HFValidationError, validate_repo_id

from modeling_collap import CoLLAPConfig

MODEL_TEMPLATE = Path(__file__).with_name("model_card_template.md")
DATASET_TEMPLATE = Path(__file__).with_name("dataset_card_template.md")
MODEL_TAGS = ["collap", "audio-text-retrieval", "music", "long-form-audio", "zero-shot-audio-classification"]
DATASET_TAGS = ["collap", "audio-text-retrieval", "music", "synthetic"]
DIRECTIONS = {"text_to_audio": "text-to-audio-retrieval", "audio_to_text": "audio-to-text-retrieval"}
QUERIES_AND_POOL = {"text_to_audio": ("texts", "songs"), "audio_to_text": ("songs", "texts")}
REQUIRED = ("model", "dataset", "split", "caption_column", "num_audios", "num_texts", "seed", "command", "scores")
PART = re.compile(r"<!-- collap:(?P<name>\w+) -->.*?<!-- /collap:(?P=name) -->", re.DOTALL)
ROOT = r"(?:~(?:[A-Za-z_][\w.-]*)?|[A-Za-z]:|file:(?://[^/\s]*)?)?[/\\]"
# A quoted absolute path, or one without blanks that does not continue a word or an address.
ABSOLUTE_PATH = re.compile(rf"""'{ROOT}[^'\n]+'|(?<![\w./\\@%*]){ROOT}[\w.~][^\s'"=,;]*""")
WHOLE_PATH = re.compile(rf"""{ROOT}[\w.~][^'"\n]*""")  # with blanks
QUOTE = "'"
MEASURED = ("configs", "size_categories")  # of a corpus
DATA_FILES = "data/{split}-*.parquet"  # where its repository holds a split
COLUMNS = {  # of the corpora in collap/corpora/synthetic
    "audio": "the song, mono",
    "song_id": "its name",
    "captions": "long descriptions of the whole song, section by section; all are correct",
    "short_captions": "descriptions in a sentence or two",
    "seconds": "length of the song",
    "tempo_bpm": "beats in a minute",
    "key": "its key",
    "mode": "major or minor",
    "sections": "label, start and end in seconds, instruments and more of every section",
}


def without_local_paths(value: Any) -> Any:
    """Strings, also within lists and dicts, with `.../name` in place of every absolute path."""
    if isinstance(value, dict):
        return {key: without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str) and WHOLE_PATH.fullmatch(value):
        return f".../{plain_name(value)}"
    return ABSOLUTE_PATH.sub(_last_name, value) if isinstance(value, str) else value


def _last_name(path: re.Match) -> str:
    return shlex.quote(f".../{plain_name(path[0].strip(QUOTE))}")


def hub_id(name: str | None, is_on_hub: Callable[[str], bool]) -> str | None:
    """`name` if it is the id of a repository: no local path, in the form of an id, and found by `is_on_hub`."""
    if not name or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if is_on_hub(name) else None


def plain_name(name: str) -> str:
    """What a data set or model is called where its local path means nothing."""
    return re.split(r"[/\\]", str(name).rstrip("/\\"))[-1]


def origin(name: str | None, ids: list[str]) -> str | None:
    """How a card names what a model comes from: by its Hub id, or as the local folder that it was."""
    return name if not name or name in ids else f"a local folder named `{plain_name(name)}`"


def one_line(text: str) -> str:
    """Text of others that cannot end a part of the card."""
    return " ".join(text.split()).replace("<!--", "&lt;!--")


def table_text(value: Any) -> Any:
    """Strings, also within lists and dicts, as what a cell of a table can hold."""
    if isinstance(value, dict):
        return {key: table_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [table_text(item) for item in value]
    return one_line(value).replace("|", "\\|") if isinstance(value, str) else value


def figure_names(figures: dict) -> list[str]:
    """R@k by k, then median rank and mAP."""
    return [
        *sorted((name for name in figures if name.startswith("R@")), key=lambda n: int(n[2:])),
        "median_rank",
        "mAP",
    ]


def read_evaluation(path: str | Path) -> dict:
    """A results.json of evaluate_retrieval.py.

    Raises:
        ValueError: it is none (says what is missing), or a figure has no pool size or interval.
        OSError: it cannot be read.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        missing = [key for key in REQUIRED if key not in results]
        if not missing:
            eval_results(results, "none")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a results.json of evaluate_retrieval.py ({error})") from error
    except KeyError as error:
        missing = [str(error)]
    if missing:
        raise ValueError(f"{path}: not a results.json of evaluate_retrieval.py (no {', '.join(missing)})")
    return results


def eval_results(results: dict, dataset_type: str) -> list[EvalResult]:
    """Every figure of an evaluation as a line of the model-index.

    What the figure was measured on is in its `metric_args`: the model-index keeps `dataset_args` only once for all
    evaluations of a split, whatever their captions.

    Args:
        results: from [`read_evaluation`].
        dataset_type: Hub id of the data set, or the name of a local one.
    """
    shared = {key: results[key] for key in ("caption_column", "num_audios", "num_texts")}
    found = []
    for direction, task in DIRECTIONS.items():
        for kind, by_direction in results["scores"].items():
            figures = by_direction[direction]
            sizes = {key: figures[key] for key in ("pool_size", "num_queries", "num_songs", "num_bootstrap")}
            for name in figure_names(figures):
                figure = {key: round(float(figures[name][key]), 2) for key in ("value", "low", "high", "chance")}
                interval = {"interval": [figure["low"], figure["high"]], "confidence": figures["confidence"]}
                args = {"score": kind, **shared, **sizes, **interval, "chance": figure["chance"]}
                found.append(
                    EvalResult(
                        task_type=task,
                        task_name=task.replace("-", " ").capitalize(),
                        dataset_type=dataset_type,
                        dataset_name=plain_name(dataset_type),
                        dataset_config=results.get("config_name"),
                        dataset_split=results["split"],
                        dataset_revision=results.get("revision"),
                        metric_type=name.lower().replace("r@", "recall_at_"),
                        metric_name=f"{name.replace('_', ' ')} ({kind.replace('_', '-')} score)",
                        metric_value=figure["value"],
                        metric_config=kind,
                        metric_args={**args, "seed": results["seed"], "command": results["command"]},
                    )
                )
    return found


def result_tables(results: dict) -> list[dict]:
    """For each direction what the template prints: title, names of the columns, and rows of cells."""
    tables = []
    for direction, task in DIRECTIONS.items():
        by_kind = {kind: scores[direction] for kind, scores in results["scores"].items()}
        first = next(iter(by_kind.values()))
        names = figure_names(first)
        rows = [
            [kind.replace("_", "-")] + ["{value:.1f} [{low:.1f}, {high:.1f}]".format(**figures[name]) for name in names]
            for kind, figures in by_kind.items()
        ]
        rows.append(["chance", *(f"{first[name]['chance']:.1f}" for name in names)])
        queries, pool = QUERIES_AND_POOL[direction]
        sizes = f"{first['num_queries']} {queries} searched in a pool of {first['pool_size']} {pool}"
        interval = f"{100 * first['confidence']:g} % bootstrap intervals by song, {first['num_bootstrap']} resamples"
        title = f"{task.replace('-', ' ').capitalize()}, {sizes}; in brackets {interval}"
        tables.append({"title": title, "names": [name.replace("_", " ") for name in names], "rows": rows})
    return tables


def evaluation_section(file: str, results: dict) -> dict:
    """What the template prints of an evaluation that the repository holds as `file`."""
    results = without_local_paths(results)
    facts = {key: value for key, value in results.items() if key not in ("scores", "command")}
    facts |= {"name": plain_name(results["dataset"]), "file": file, "tables": result_tables(results)}
    return {"config_name": None, "revision": None, **table_text(facts), "command": one_line(results["command"])}


@dataclass
class ModelFacts:
    """What a model card is made from. None is not known, and is left out or said to be unknown.

    Attributes:
        repo_id: where the model is published.
        max_text_tokens: that the processor lets through.
        num_parameters: of the whole model.
        evaluations: results by the name of their file in the repository.
        summary: summary.json of the training run.
        license, language, base_models, datasets: as the user gave them.
        energy_kwh: that the training took.
        is_on_hub: whether the Hub has a repository, called with an id and its type.
    """

    repo_id: str
    config: CoLLAPConfig
    max_text_tokens: int
    num_parameters: int
    evaluations: dict[str, dict] = field(default_factory=dict)
    summary: dict | None = None
    license: str | None = None
    language: list[str] | None = None
    base_models: list[str] | None = None
    datasets: list[str] | None = None
    energy_kwh: float | None = None
    is_on_hub: Callable[[str, str], bool] = lambda name, repo_type: False

    def base_ids(self) -> list[str]:
        """Hub ids of what the model was made from: as given, or from the settings of the run."""
        if self.base_models:
            return self.base_models
        settings = (self.summary or {}).get("settings", {})
        names = (
            [settings.get("model")] if settings.get("model") else [settings.get(p) for p in ("text", "music", "speech")]
        )
        return [name for name in names if hub_id(name, lambda name: self.is_on_hub(name, "model"))]

    def dataset_id(self, name: str) -> str | None:
        return hub_id(name, lambda name: "/" in name and self.is_on_hub(name, "dataset"))

    def dataset_ids(self) -> list[str]:
        """Hub ids of the data that it was trained on."""
        if self.datasets:
            return self.datasets
        trained_on = (self.summary or {}).get("settings", {}).get("dataset")
        return [trained_on] if trained_on and self.dataset_id(trained_on) else []


def model_card(facts: ModelFacts) -> ModelCard:
    """The card of a model that nobody has written on yet."""
    figures = []
    for results in facts.evaluations.values():
        name = results["dataset"]
        figures += eval_results(without_local_paths(results), facts.dataset_id(name) or plain_name(name))
    base_models = facts.base_ids()
    data = ModelCardData(
        license=facts.license,
        language=facts.language,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=list(MODEL_TAGS),
        datasets=facts.dataset_ids() or None,
        base_model=base_models or None,
        base_model_relation="finetune" if base_models else None,
        model_name=plain_name(facts.repo_id) if figures else None,
        eval_results=figures or None,
    )
    summary = without_local_paths(facts.summary)
    settings = (summary or {}).get("settings", {})
    parts = ("model",) if settings.get("model") else ("text", "music", "speech")
    towers = {part: origin(settings[part], facts.base_ids()) for part in parts if settings.get(part)}
    return ModelCard.from_template(
        data,
        str(MODEL_TEMPLATE),
        facts=facts,
        config=facts.config,
        summary=table_text(summary),
        settings=settings,
        towers=table_text(towers),
        trained_on=table_text(origin(settings.get("dataset"), facts.dataset_ids())),
        evaluations=[evaluation_section(file, results) for file, results in facts.evaluations.items()],
    )


# --------------------------------------------------------------------------------------------------------------------
# Data sets


def size_category(num_rows: int) -> str:
    """Of the Hub: `n<1K`, `1K<n<10K`, ... up to `n>1T`."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = len(str(num_rows)) - 3  # 1000 has four digits
    if power <= 0:
        return "n<1K"
    return f"{names[power - 1]}<n<{names[power]}" if power < len(names) else "n>1T"


def corpus_command(settings: dict) -> str:
    """The command that renders a corpus again, bit for bit, from its corpus.json."""
    counts = {split: settings["num_songs"].get(split, 0) for split in ("train", "validation", "test")}
    names = ("seed", "min_seconds", "max_seconds", "sampling_rate", "captions_per_song")
    options = [f"--{name} {value}" for name, value in {**counts, **{name: settings[name] for name in names}}.items()]
    return f"collap corpus FOLDER {' '.join(options)}"


def read_corpus(folder: Path) -> tuple[dict, dict[str, list[dict]]]:
    """The settings of a corpus built here and the metadata rows of its splits.

    Raises:
        ValueError: it is no such corpus, or not whole.
    """
    try:
        settings = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        rows = {
            split: [json.loads(line) for line in (folder / split / "metadata.jsonl").read_text("utf-8").splitlines()]
            for split in settings["num_songs"]
        }
        corpus_command(settings)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error.filename}: not found; expected a corpus of collap.corpora.synthetic.songs: corpus.json and a "
            "folder with metadata.jsonl for each split"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: its corpus.json or a metadata.jsonl is damaged ({error!r})") from error
    short = [split for split, number in settings["num_songs"].items() if len(rows[split]) != number]
    if short:
        raise ValueError(
            f"{folder}: the split {short[0]!r} has {len(rows[short[0]])} songs, corpus.json says otherwise"
        )
    return settings, rows


def dataset_card(folder: str | Path, repo_id: str, license: str | None = None) -> DatasetCard:
    """The card of a corpus built here, which nobody has written on yet.

    Args:
        folder: of `collap.corpora.synthetic.songs`.

    Raises:
        ValueError: as [`read_corpus`].
    """
    settings, rows = read_corpus(Path(folder))
    everything = [row for split in rows.values() for row in split]
    words = [len(text.split()) for row in everything for text in row["captions"]]
    files = [{"split": split, "path": DATA_FILES.format(split=split)} for split in rows]
    data = DatasetCardData(
        pretty_name=plain_name(repo_id),
        license=license,
        language=["en"],
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"],
        multilinguality=["monolingual"],
        source_datasets=["original"],
        size_categories=[size_category(len(everything))],
        tags=list(DATASET_TAGS),
        configs=[{"config_name": "default", "data_files": files}],
    )
    return DatasetCard.from_template(
        data,
        str(DATASET_TEMPLATE),
        repo_id=repo_id,
        license=license,
        settings=settings,
        splits={
            split: {"songs": len(songs), "hours": sum(row["seconds"] for row in songs) / 3600}
            for split, songs in rows.items()
        },
        columns={name: COLUMNS[name] for name in ("audio", *everything[0]) if name in COLUMNS},
        words=[min(words), round(statistics.median(words)), max(words)],
        command=corpus_command(settings),
    )


# --------------------------------------------------------------------------------------------------------------------
# Publishing again


def parse_card(card_class: type[RepoCard], text: str, where: str) -> RepoCard:
    """ValueError that names the card if its metadata cannot be read."""
    try:
        return card_class(text)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{where}: the metadata between its --- lines cannot be read ({reason}); correct it"
        ) from error


def sections_of(text: str) -> dict[str, str]:
    """From one `## ` heading to the next, by heading; the first is what stands above them, named by nothing."""
    sections, name, fenced = {"": ""}, "", False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            name = line.strip()
            sections[name] = ""
        sections[name] += line
    return sections


def handwritten_sections(text: str) -> dict[str, str]:
    """Sections with a heading and without any generated part."""
    return {name: part for name, part in sections_of(text).items() if name and "<!-- collap:" not in part}


def lost_sections(leading: str, other: str) -> list[str]:
    """Headings under which users have written something else in `other`, which [`merge_text`] leaves out."""
    kept, own = (
        {name: set(PART.sub("", part).splitlines()) for name, part in sections_of(text).items()}
        for text in (leading, other)
    )
    return [name or "the text at its top" for name in own if name in kept and own[name] - kept[name]]


def merge_text(fresh: str, older: Iterable[str]) -> str:
    """The first card in `older` that says anything, its generated parts refreshed, with the hand-written sections that
    only the others have; `fresh` if there is none."""
    written = [text for text in older if text.strip()]
    if not written:
        return fresh
    merged, *others = written
    for other in others:
        own = handwritten_sections(fresh) | {line.strip(): "" for line in merged.splitlines() if line.startswith("## ")}
        missing = [section for name, section in handwritten_sections(other).items() if name not in own]
        merged = "\n".join([merged.rstrip() + "\n", *missing]) if missing else merged
    parts = {found["name"]: found[0] for found in PART.finditer(fresh)}
    return PART.sub(lambda found: parts.get(found["name"], found[0]), merged)


def merge_cards(fresh: RepoCard, older: Iterable[RepoCard], given: Iterable[str] = ()) -> RepoCard:
    """The card to publish, from the one of today and those that users may have written on.

    Text: see [`merge_text`]. Metadata: what an older card has is kept, but for the fields that are `given` and the
    figures measured by CoLLAP; lists, such as tags and base models, are joined.

    Args:
        older: the card of the Hub, then that of the folder; the first leads.
        given: names of metadata fields in which the card of today is right.
    """
    older, data, given = list(older), fresh.data, set(given)
    kept: dict[str, Any] = {}
    for card in reversed(older):
        kept |= {name: value for name, value in card.data.__dict__.items() if value is not None}
    for name, value in kept.items():
        new = data.get(name)
        if name == "eval_results" or name in given or (name in MEASURED and new is not None):
            continue
        if isinstance(value, list) and isinstance(new, list):
            value = [*value, *(item for item in new if item not in value)]
        data[name] = value
    if isinstance(data, ModelCardData):
        figures = list(data.eval_results or [])
        for figure in (figure for card in older for figure in card.data.eval_results or []):
            if not _is_ours(figure) and figure not in figures:
                figures.append(figure)
        data.eval_results = figures or None
        data.model_name = data.model_name if figures else None
    fresh.text = merge_text(fresh.text, [card.text for card in older])
    return fresh


def _is_ours(figure: EvalResult) -> bool:
    return figure.task_type in DIRECTIONS.values() and "num_bootstrap" in (figure.metric_args or {})
