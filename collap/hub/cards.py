"""The card of a model: metadata and generated text, from what was measured and what the training run says.

`merge_cards.py` joins it with what users wrote on the card of the Hub.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from collap.card_text import hub_id, origin, plain_name, table_text, without_local_paths
from collap.evaluation.metrics import measure_of
from collap.evaluation.results import (
    DIRECTIONS,
    Results,
    figure_names,
    interval_text,
    measures_text,
    pool_text,
    show_interval,
)
from modeling_collap import CoLLAPConfig

MODEL_TEMPLATE = Path(__file__).with_name("model_card_template.md")
MODEL_TAGS = ["collap", "audio-text-retrieval", "music", "long-form-audio", "zero-shot-audio-classification"]


def eval_results(results: dict, dataset_type: str) -> list[EvalResult]:
    """Return every figure of an evaluation as a line of the model-index.

    What the figure was measured on is in its `metric_args`: the model-index keeps `dataset_args` only once for all
    evaluations of a split, whatever their captions.

    Args:
        results: from `read_results`.
        dataset_type: Hub id of the data set, or the name of a local one.
    """
    shared = {key: results[key] for key in ("text_column", "num_audios", "num_texts")}
    found = []
    for direction, names in DIRECTIONS.items():
        for kind, by_direction in results["scores"].items():
            figures = by_direction[direction]
            sizes = {key: figures[key] for key in ("pool_size", "num_queries", "num_songs", "num_bootstrap")}
            for name in figure_names(figures):
                figure = {key: round(float(figures[name][key]), 2) for key in ("value", "low", "high", "chance")}
                interval = {"interval": [figure["low"], figure["high"]], "confidence": figures["confidence"]}
                args = {"score": kind, **shared, **sizes, **interval, "chance": figure["chance"]}
                found.append(
                    EvalResult(
                        task_type=names["task"],
                        task_name=names["task"].replace("-", " ").capitalize(),
                        dataset_type=dataset_type,
                        dataset_name=plain_name(dataset_type),
                        dataset_config=results.get("dataset_config"),
                        dataset_split=results["split"],
                        dataset_revision=results.get("revision"),
                        metric_type=name.lower().replace("r@", "recall_at_"),
                        metric_name=f"{measure_of(name).title} ({kind.replace('_', '-')} score)",
                        metric_value=figure["value"],
                        metric_config=kind,
                        metric_args={**args, "seed": results["seed"], "command": results["command"]},
                    )
                )
    return found


def result_tables(results: Results) -> list[dict]:
    """Return for each direction what the template prints: title, names of the columns, and rows of cells."""
    tables = []
    for direction, names in DIRECTIONS.items():
        by_kind = {kind: scores[direction] for kind, scores in results["scores"].items()}
        first = next(iter(by_kind.values()))
        columns = [measure_of(name) for name in figure_names(first)]
        rows = [
            [kind.replace("_", "-")] + [show_interval(one.name, figures[one.name]) for one in columns]
            for kind, figures in by_kind.items()
        ]
        rows.append(["chance", *(one.show(first[one.name]["chance"]) for one in columns)])
        title = f"{names['title']}, {pool_text(direction, first)}; in brackets the {interval_text(first)}"
        tables.append({"title": title, "names": [one.title for one in columns], "rows": rows})
    return tables


def evaluation_section(file: str, results: Results) -> dict:
    """Return what the template prints of an evaluation that the repository holds as `file`."""
    results = without_local_paths(results)
    facts = {key: value for key, value in results.items() if key != "scores"}
    facts |= {"name": plain_name(results["dataset"]), "file": file, "tables": result_tables(results)}
    return {"dataset_config": None, "revision": None, **table_text(facts)}


@dataclass
class ModelFacts:
    """Hold what a model card is made from. None is not known, and is left out or said to be unknown.

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
        """Return Hub ids of what the model was made from: as given, or from the settings of the run."""
        if self.base_models:
            return self.base_models
        settings = (self.summary or {}).get("settings", {})
        names = (
            [settings.get("model")] if settings.get("model") else [settings.get(p) for p in ("text", "music", "speech")]
        )
        return [name for name in names if hub_id(name, lambda name: self.is_on_hub(name, "model"))]

    def dataset_id(self, name: str) -> str | None:
        """Return `name` if it is a data set of the Hub."""
        return hub_id(name, lambda name: "/" in name and self.is_on_hub(name, "dataset"))

    def dataset_ids(self) -> list[str]:
        """Return Hub ids of the data that it was trained on."""
        if self.datasets:
            return self.datasets
        trained_on = (self.summary or {}).get("settings", {}).get("dataset")
        return [trained_on] if trained_on and self.dataset_id(trained_on) else []


def model_card(facts: ModelFacts) -> ModelCard:
    """Write the card of a model, as if nobody had written on one yet."""
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
        shown=table_text({name: settings.get(name) for name in ("train_split", "eval_split", "text_column")}),
        measures=measures_text(),
        towers=towers,
        trained_on=origin(settings.get("dataset"), facts.dataset_ids()),
        evaluations=[evaluation_section(file, results) for file, results in facts.evaluations.items()],
    )
