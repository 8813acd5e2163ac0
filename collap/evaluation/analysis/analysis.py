"""Define what an analysis is: settings that a suite's file can give, what it must hear, and figures under conditions.

One is added as a frozen dataclass of its settings that inherits [`Analysis`], and named in `analysis/__init__.py`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..embedders import Embedder
from ..metrics import Measure, measure_of
from ..results import DIRECTIONS
from .changes import ORIGINAL, Change
from .pool_run import PoolRun

COMPARED = "MRR"  # uses every rank
MEANS = ("mAP", COMPARED, "nDCG@10")  # over queries, so that they can be compared within each song
METRICS = ("R@1", "R@10", COMPARED)


@dataclass
class Outcome:
    """Hold what an analysis found of one model on one pool.

    Attributes:
        figures: condition, such as "10 words" -> name of a measure -> `value`, `low`, `high` and `chance`; the last is
            what random scores give, None where nothing does.
        comparisons: of conditions, paired by song: `measure`, `first`, `second`, `difference`, `low`, `high`, `p`.
        notes: what people should know of them.
    """

    figures: dict[str, dict[str, dict]] = field(default_factory=dict)
    comparisons: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Analysis:
    """Measure one thing of every model on a pool; the fields of a subclass are its settings.

    Attributes:
        name: its key in a suite's file.
        title, question: what people read.
        is_curve: whether its conditions are points of a line.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    is_curve: ClassVar[bool] = False

    def measures(self) -> tuple[Measure, ...]:
        """Return what its figures are, by name, in the order in which they are shown."""
        raise NotImplementedError

    def hears(self, embedder: Embedder) -> list[tuple[Embedder, Change]]:
        """Return which models, forms of this one, it needs to hear every song, and how changed."""
        return [(embedder, ORIGINAL)]

    def measure(self, run: PoolRun, embedder: Embedder) -> Outcome:
        """Measure a model; without figures if it cannot be, and a note that says why."""
        raise NotImplementedError


def check_numbers(name: str, numbers: tuple, smallest: float = 0.0) -> None:
    """Raise a ValueError unless a setting is a list of numbers above `smallest`."""
    fits = isinstance(numbers, tuple) and numbers
    if not fits or not all(isinstance(one, (int, float)) and one > smallest for one in numbers):
        raise ValueError(f"{name}: {numbers!r}; expected a list of numbers above {smallest:g}")


def check_metrics(metrics: tuple) -> None:
    """Raise a ValueError unless a setting is a list of figures of retrieval, with the one that is tested."""
    for name in metrics if isinstance(metrics, tuple) else (metrics,):
        known = isinstance(name, str) and (name in MEANS or (name.startswith("R@") and name[2:].isdigit()))
        if not known or name == "R@0":
            raise ValueError(f"metrics: {name!r}; expected a list of R@k, {', '.join(MEANS)}")
    if COMPARED not in metrics:
        raise ValueError(
            f"metrics: {', '.join(metrics)}; expected {COMPARED} among them, by which conditions are tested"
        )


def retrieval_measures(metrics: tuple[str, ...], prefix: str = "") -> tuple[Measure, ...]:
    """Return figures of retrieval in both directions, by the names `DIRECTION FIGURE`."""
    return tuple(
        replace(one, name=f"{direction} {name}", title=f"{prefix}{one.title}, {facts['title'].lower()}")
        for direction, facts in DIRECTIONS.items()
        for name, one in zip(metrics, map(measure_of, metrics), strict=True)
    )
