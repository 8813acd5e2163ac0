"""Write what the analyses of a suite found: as JSON, Markdown, LaTeX, and a PNG for each that is a curve.

A table has a row for each model and a column for each condition, one table for each measure; a last row has what random
scores give. A figure is printed only with its manifest.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..metrics import Measure
from ..report import COLORS
from ..suite_tables import COLLAPSED, Block, Row, check_manifest, latex_text, write_results

PANELS = 3  # in a row of a drawing
TOLD = ("command", "analysis", "settings")  # elsewhere


def shown(measure: Measure, one: dict | None) -> str:
    """Return a figure with its interval as text."""
    if one is None:
        return ""
    if one["low"] is None:
        return f"{measure.show(one['value'])} (no interval)"
    return f"{measure.show(one['value'])} [{measure.show(one['low'])}, {measure.show(one['high'])}]"


def conditions_of(pool: dict) -> list[str]:
    """Return the conditions that any model was measured under, in their order."""
    return list(dict.fromkeys(name for row in pool["rows"].values() for name in row["figures"]))


def pool_blocks(results: dict, analysis: dict, pool: dict) -> Iterator[Block]:
    """Yield a table for each measure of an analysis on a pool that was measured.

    Raises:
        ValueError: a figure has no manifest.
    """
    collapsed = {model["name"]: model["collapsed"] for model in results["models"]}
    for name, row in pool["rows"].items():
        check_manifest(row, f"{analysis['name']}, {pool['title']}, {name}")
    conditions, sizes = conditions_of(pool), next(iter(pool["rows"].values()))["manifest"]
    for facts in analysis["measures"]:
        measure = Measure(**facts)
        cells = {
            name: [row["figures"].get(condition, {}).get(measure.name) for condition in conditions]
            for name, row in pool["rows"].items()
        }
        if not any(one for row in cells.values() for one in row):
            continue
        rows = [
            Row(f"{name}{COLLAPSED if collapsed[name] else ''}", tuple(shown(measure, one) for one in row))
            for name, row in cells.items()
        ]
        chances = [next((one["chance"] for one in column if one), None) for column in zip(*cells.values(), strict=True)]
        if any(chance is not None for chance in chances):
            rows.append(Row("chance", tuple("" if one is None else measure.show(one) for one in chances)))
        unit = " in percent" if measure.unit == "%" else ""
        title = f"{pool['title']}: {measure.title}{unit}; {sizes['pool']} songs, {sizes['texts']} texts"
        marks = [f"{COLLAPSED} {name}: its text tower is collapsed ({why})." for name, why in collapsed.items() if why]
        yield Block(title, ("model", *conditions), tuple(rows), (f"{measure.title}: {measure.meaning}.", *marks))


def comparison_block(analysis: dict, pool: dict) -> Block | None:
    """Return the paired differences between conditions; None if there are none."""
    measures = {one["name"]: Measure(**one) for one in analysis["measures"]}
    rows = []
    for one in pool["comparisons"]:
        interval = "" if one["low"] is None else f" [{one['low']:.1f}, {one['high']:.1f}]"
        cells = (
            measures[one["measure"]].title,
            f"{one['first']} - {one['second']}",
            f"{one['difference']:+.1f}{interval}",
            f"{one['p']:.2g}",
            f"{one['p_holm']:.2g}",
        )
        rows.append(Row(one["model"], cells))
    if not rows:
        return None
    columns = ("model", "figure", "difference of", "points", "p", "p by Holm")
    return Block(f"{pool['title']}: differences, paired by song", columns, tuple(rows), ())


def blocks_of(results: dict, analysis: dict) -> Iterator[Block]:
    """Yield all tables of an analysis."""
    for pool in analysis["pools"]:
        if not pool["rows"]:
            reason = pool["missing"] or "; ".join(pool["notes"])
            yield Block(f"{pool['title']}: not measured", ("reason",), (Row(reason, ()),), ())
            continue
        *blocks, last = pool_blocks(results, analysis, pool)
        yield from blocks
        yield Block(last.title, last.columns, last.rows, (*last.notes, *pool["notes"]))
        if compared := comparison_block(analysis, pool):
            yield compared


def markdown_tables(results: dict) -> str:
    """Return all tables, without the manifests; a ValueError if a figure has none."""
    lines = [f"# {results['title']}", "", "```bash", results["command"], "```", ""]
    lines += ["In brackets: 95 % bootstrap interval by song. p is that of a paired permutation test by song.", ""]
    for analysis in results["analyses"]:
        lines += [f"## {analysis['title']}", "", analysis["question"], ""]
        for block in blocks_of(results, analysis):
            lines += [f"### {block.title}", "", _line(block.columns), "|---" * len(block.columns) + "|"]
            lines += [_line((row.label, *row.cells)) for row in block.rows]
            lines += ["", *(f"- {note}" for note in block.notes), *([""] if block.notes else [])]
    return "\n".join(lines)


def to_markdown(results: dict) -> str:
    """Return all tables and, at the end, the manifest of every row: what all analyses of a model on a pool share, once,
    and the settings of each analysis."""
    lines = [markdown_tables(results), "## Manifests", ""]
    lines += [f"- {one['title']}: {_plain(one['settings']) or 'no settings'}" for one in results["analyses"]]
    facts = []
    for analysis in results["analyses"]:
        for pool in analysis["pools"]:
            for row in pool["rows"].values():
                told = {name: value for name, value in row["manifest"].items() if name not in TOLD}
                facts.append(f"- {pool['title']}: " + ", ".join(f"{name}: {_plain(one)}" for name, one in told.items()))
    return "\n".join([*lines, *dict.fromkeys(facts)]) + "\n"


def _plain(value) -> str:
    return " ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_latex(results: dict) -> str:
    """Return all tables for LaTeX, with booktabs."""
    lines = ["% Needs the package booktabs.", f"% {results['command']}"]
    for analysis in results["analyses"]:
        for block in blocks_of(results, analysis):
            lines += [r"\begin{table}", rf"\caption{{{latex_text(analysis['title'] + '. ' + block.title)}}}"]
            lines += [rf"\begin{{tabular}}{{l{'r' * (len(block.columns) - 1)}}}", r"\toprule"]
            lines += [" & ".join(map(latex_text, block.columns)) + r" \\", r"\midrule"]
            lines += [" & ".join(map(latex_text, (row.label, *row.cells))) + r" \\" for row in block.rows]
            lines += [r"\bottomrule", r"\end{tabular}"]
            lines += [rf"\par {latex_text(note)}" for note in block.notes]
            lines += [r"\end{table}", ""]
    return "\n".join(lines)


def draw_analysis(analysis: dict) -> Figure | None:
    """Draw the measures of a curve over its conditions, a panel for each pool and measure; None if it is no curve or
    was not measured."""
    panels = [
        (pool, Measure(**facts))
        for pool in analysis["pools"]
        for facts in analysis["measures"]
        if any(facts["name"] in figures for row in pool["rows"].values() for figures in row["figures"].values())
    ]
    if not analysis["is_curve"] or not panels:
        return None
    rows = -(-len(panels) // PANELS)
    figure = Figure(figsize=(4 * PANELS, 3.2 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, PANELS, squeeze=False).ravel()
    for place, (pool, measure) in zip(axes, panels, strict=False):
        _draw_lines(place, pool, measure)
    for place in axes[len(panels) :]:
        place.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{analysis['title']}: {analysis['question']}")
    return figure


def _draw_lines(axes, pool: dict, measure: Measure) -> None:
    """Draw a line for every model with its interval as a band, and what random scores give."""
    conditions = conditions_of(pool)
    for index, (name, row) in enumerate(pool["rows"].items()):
        found = [row["figures"].get(condition, {}).get(measure.name) for condition in conditions]
        places = [place for place, one in enumerate(found) if one and one["low"] is not None]
        if not places:
            continue
        values, lows, highs = np.array([[found[i][key] for key in ("value", "low", "high")] for i in places]).T
        color = COLORS[index % len(COLORS)]
        axes.plot(places, values, marker="o", markersize=4, color=color, label=name)
        axes.fill_between(places, lows, highs, color=color, alpha=0.15, linewidth=0)
        if index == 0 and found[places[0]]["chance"] is not None:
            chances = [found[place]["chance"] for place in places]
            axes.plot(places, chances, color="black", linestyle=(0, (3, 1)), linewidth=1.2, label="chance")
    axes.set_title(f"{pool['title']}: {measure.title}", fontsize=9)
    axes.set_xticks(range(len(conditions)), conditions, rotation=30, ha="right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)


def write_analyses(results: dict, folder: Path) -> dict[str, Path]:
    """Write results.json, results.md, results.tex, and NAME.png for each analysis that is a curve.

    Raises:
        ValueError: a figure has no manifest; nothing is written then.
    """
    drawings = ((analysis["name"], draw_analysis(analysis)) for analysis in results["analyses"])
    return write_results(results, to_markdown(results), to_latex(results), drawings, folder)
