"""The schema of results and the table of figures, as reports, cards and the training log use them."""

import pytest

from collap.evaluation.metrics import MEASURES, measure_of, retrieval_metrics
from collap.evaluation.results import command_line, figure_names, measures_text, show_interval


def test_the_table_has_every_figure_that_is_measured():
    figures = retrieval_metrics([[1], [2]], 10, ["a", "b"], k=(1, 5, 10))
    names = figure_names(figures)
    assert names == ["R@1", "R@5", "R@10", "median_rank", "mAP", "MRR", "nDCG@10"]
    assert {name for name, figure in figures.items() if isinstance(figure, dict)} == set(names)
    assert [measure_of(name).title for name in names] == ["R@1", "R@5", "R@10", "median rank", "mAP", "MRR", "nDCG@10"]
    assert [measure_of(name).higher_is_better for name in names] == [True, True, True, False, True, True, True]
    with pytest.raises(KeyError):
        measure_of("accuracy")
    assert measures_text() == (
        "R@k (%, higher is better), median rank (rank, lower is better), mAP (%, higher is better), "
        "MRR (%, higher is better), nDCG@10 (%, higher is better)"
    )
    assert len(MEASURES) == 5
    earlier = {name: figure for name, figure in figures.items() if name not in ("MRR", "nDCG@10")}
    assert figure_names(earlier) == names[:-2]


@pytest.mark.parametrize(
    ("name", "number", "shown"),
    [
        ("R@1", 39.04, "39.0"),
        ("R@1", 0.0123, "0.01"),
        ("R@1", 0.0, "0.0"),
        ("mAP", 100.0, "100.0"),
        ("median_rank", 3.0, "3"),
        ("median_rank", 3.5, "3.5"),
    ],
)
def test_how_a_figure_is_shown(name, number, shown):
    assert measure_of(name).show(number) == shown
    assert show_interval(name, {"value": number, "low": number, "high": number}) == f"{shown} [{shown}, {shown}]"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/venv/bin/collap", "evaluate", "--model", "my runs/x"], "collap evaluate --model 'my runs/x'"),
        (["/site-packages/collap/__main__.py", "evaluate"], "collap evaluate"),
        (["evaluate_retrieval.py", "--model", "x"], "python evaluate_retrieval.py --model x"),
        (["train.py", "a.yaml"], "python train.py a.yaml"),
    ],
)
def test_the_command_is_the_one_to_type_again(arguments, command):
    assert command_line(arguments) == command
