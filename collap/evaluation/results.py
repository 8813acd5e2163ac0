"""The results of a retrieval evaluation: one schema, for reports, cards and the training log.

A figure is never without its pool, its interval and its chance level. Further keys of `Results` are kept: all in the
JSON, plain values also in the Markdown.
"""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from .metrics import MEASURES, measure_of

SIZES = ("pool_size", "num_queries", "num_songs", "num_bootstrap", "confidence")
LATER_FIGURES = ("MRR", "nDCG@10")  # which the results of earlier releases lack
FIGURE_KEYS = ("value", "low", "high", "chance")


class Figure(TypedDict):
    """Hold a number, its interval, and what random scores give."""

    value: float
    low: float
    high: float
    chance: float


class Direction(TypedDict):
    """Hold what is searched with and in: `title` for people, `task` on the Hub."""

    title: str
    task: str
    queries: str
    pool: str


DIRECTIONS = {
    "text_to_audio": Direction(title="Text to audio", task="text-to-audio-retrieval", queries="texts", pool="songs"),
    "audio_to_text": Direction(title="Audio to text", task="audio-to-text-retrieval", queries="songs", pool="texts"),
}


class Results(TypedDict):
    """Hold what `collap evaluate` writes as results.json.

    Attributes:
        model: folder or Hub id; `weights` tells those that were evaluated, see `collap.models.weights_digest`.
        dataset, dataset_config, revision, split, text_column: the data, as the options name them.
        num_audios, num_texts: sizes of the pools.
        texts_of_several_songs: texts that describe several songs in the same words; all of those are correct.
        texts_read_alike: other texts that the text tower cannot tell from one of another song, because both begin
            alike and are cut, or differ in words that it does not know.
        seed: of the bootstrap.
        command: that repeats the evaluation.
        scores: score kind -> direction -> figures as `collap.evaluation.metrics.retrieval_metrics` returns them.
    """

    model: str
    weights: NotRequired[str]
    dataset: str
    dataset_config: NotRequired[str | None]
    revision: NotRequired[str | None]
    split: str
    text_column: str
    num_audios: int
    num_texts: int
    texts_of_several_songs: NotRequired[int]
    texts_read_alike: NotRequired[int]
    seed: int
    command: str
    scores: dict[str, dict[str, dict]]


REQUIRED = tuple(sorted(Results.__required_keys__))


def figure_names(figures: dict) -> list[str]:
    """Return the names of the figures in the order of `MEASURES`, R@k by k, without later ones that are not there."""
    recalls = sorted((name for name in figures if name.startswith("R@")), key=lambda name: int(name[2:]))
    names = [name for measure in MEASURES for name in (recalls if measure.name == "R@k" else [measure.name])]
    return [name for name in names if name in figures or name not in LATER_FIGURES]


def show_interval(name: str, figure: Figure) -> str:
    """Return a figure with its interval as text, e.g. "39.0 [30.1, 48.2]"."""
    value, low, high = (measure_of(name).show(figure[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def pool_text(direction: str, figures: dict) -> str:
    """Return what was searched, and in what, e.g. "300 texts searched in a pool of 100 songs"."""
    names = DIRECTIONS[direction]
    return f"{figures['num_queries']} {names['queries']} searched in a pool of {figures['pool_size']} {names['pool']}"


def interval_text(figures: dict) -> str:
    """Return what the intervals of one direction are."""
    return f"{100 * figures['confidence']:g} % bootstrap interval by song ({figures['num_bootstrap']} resamples)"


def measures_text() -> str:
    """Return what the figures are, and which way each is better."""
    better = {True: "higher is better", False: "lower is better"}
    return ", ".join(f"{one.title} ({one.unit}, {better[one.higher_is_better]})" for one in MEASURES)


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return the command of this process, or of these arguments, as one types it again."""
    program, *rest = sys.argv if arguments is None else arguments
    is_collap = Path(program).name in ("collap", "__main__.py")  # `python -m collap` is `collap`
    return shlex.join(["collap", *rest] if is_collap else ["python", program, *rest])


def check_results(results: Results) -> None:
    """Raise a ValueError that names the place unless every figure has a pool size, an interval and a chance level."""
    missing = [key for key in REQUIRED if key not in results]
    if missing or not results["scores"]:
        raise ValueError(f"results must hold {', '.join(missing) or 'at least one score kind in scores'}.")
    for direction in DIRECTIONS:
        shared = {}
        for kind, by_direction in results["scores"].items():
            place = f"scores[{kind!r}][{direction!r}]"
            if direction not in by_direction:
                raise ValueError(f"{place} is missing: both directions are reported.")
            _check_figures(by_direction[direction], place)
            # One chance row and one line of sizes stand for all score kinds.
            facts = {key: by_direction[direction][key] for key in SIZES}
            shared[kind] = {**facts, "figures": figure_names(by_direction[direction])}
        first = next(iter(shared))
        different = [kind for kind in shared if shared[kind] != shared[first]]
        if different:
            raise ValueError(
                f"{direction}: score kinds in one table must share pool, queries and figures, but "
                f"{first!r} has {shared[first]} and {different[0]!r} has {shared[different[0]]}."
            )


def _check_figures(figures: dict, place: str) -> None:
    """Check one direction of one score kind, see [`check_results`]."""
    missing = [key for key in SIZES if not _is_number(figures.get(key))]
    if missing:
        raise ValueError(
            f"{place} has no {', '.join(missing)}: a figure without its pool and resampling is not printed."
        )
    names = figure_names(figures)
    if not any(name.startswith("R@") for name in names):
        raise ValueError(
            f"{place} has no R@k: call the metric with a k of at most the pool size {figures['pool_size']}."
        )
    for name in names:
        for key in FIGURE_KEYS:
            figure = figures.get(name)
            number = figure.get(key) if isinstance(figure, dict) else None
            if not _is_number(number) or not math.isfinite(number):
                raise ValueError(
                    f"{place}[{name!r}][{key!r}] is {number}, expected a finite number. An interval needs two songs or "
                    f"more; there are {figures['num_songs']}."
                )


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, (bool, str))


def read_results(path: str | Path) -> Results:
    """Read a results.json of `collap evaluate`.

    Raises:
        ValueError: it is none; says what is missing.
        OSError: it cannot be read.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        check_results(results)
    except (ValueError, AttributeError, TypeError, KeyError) as error:  # among them JSON and Unicode errors
        raise ValueError(f"{path}: not a results.json of `collap evaluate` ({error})") from error
    return results
