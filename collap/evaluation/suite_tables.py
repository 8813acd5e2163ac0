"""Write what a suite measured: as JSON, Markdown, LaTeX, and one PNG for each table.

A figure is printed only with its manifest. What is quoted from the paper is marked so, and our figure beside it says
how far it is, and whether its interval covers the paper's.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from collap.files import replace_file, replace_text

from .metrics import measure_of
from .report import COLORS, save_figure
from .results import DIRECTIONS, show_interval

MANIFEST = ("model", "weights", "dataset", "dataset digest", "captions", "pool", "window", "precision", "score", "seed")
MANIFEST += ("libraries", "hardware", "command")
SHARED = ("dataset", "dataset digest", "captions", "pool", "precision", "seed", "libraries", "hardware")
COLLAPSED, OTHER = "†", "‡"
SIGNS = {sign: f"\\{sign}" for sign in "{}$&#%_"}
SIGNS |= {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", COLLAPSED: r"\dag{}", OTHER: r"\ddag{}"}


@dataclass(frozen=True)
class Row:
    """Hold a line of a table: its label and its cells."""

    label: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Hold the lines of one pool in one direction."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def check_manifest(row: dict, place: str) -> None:
    """Raise a ValueError that begins with `place` unless a row of figures says what they depend on."""
    missing = [name for name in MANIFEST if row.get("manifest", {}).get(name) in (None, "")]
    if missing:
        raise ValueError(f"{place}: no {', '.join(missing)} in its manifest; a figure without one is not printed")


def differing(manifest: dict, first: dict) -> list[str]:
    """Return what two figures of one table do not share, though figures that are compared must."""
    return [name for name in SHARED if manifest.get(name) != first.get(name)]


def paper_value(table: dict, pool: dict, direction: str, row: str | None, name: str) -> float | None:
    """Return what the quoted table has in a row and column; None if it has nothing there."""
    quoted, column = table["quoted"] or {}, pool["paper"].get(direction)
    values = quoted.get(row, {}).get(name) if row and column else None
    return None if values is None else values[quoted["columns"].index(column)]


def beside_paper(name: str, figure: dict, paper: float) -> str:
    """Return a figure beside the paper's: difference, and whether the interval covers it."""
    covers = "covers it" if figure["low"] <= paper <= figure["high"] else "does not cover it"
    return f"{show_interval(name, figure)}; paper {paper:.2f}, {figure['value'] - paper:+.2f}, {covers}"


def table_blocks(results: dict, table: dict) -> Iterator[Block]:
    """Yield the blocks of a table, also of pools that were not measured.

    Raises:
        ValueError: a figure has no manifest.
    """
    models = {model["name"]: model for model in results["models"]}
    for pool in table["pools"]:
        for name, row in pool["rows"].items():
            check_manifest(row, f"{table['name']}, {pool['title']}, {name}")
        for direction in DIRECTIONS:
            yield _block(table, pool, direction, models)


def _block(table: dict, pool: dict, direction: str, models: dict[str, dict]) -> Block:
    heading = f"{pool['title']}, {DIRECTIONS[direction]['title'].lower()}"
    quoted = _quoted_rows(table, pool, direction)
    if not pool["rows"]:
        rows = [
            Row(name, (f"not measured: {pool['missing']}",) + ("",) * (len(table["metrics"]) - 1)) for name in models
        ]
        return Block(f"{heading}: not measured", ("model", *table["metrics"]), (*rows, *quoted), (pool["missing"],))
    first = next(iter(pool["rows"].values()))
    rows, marks = [], set()
    for name, row in pool["rows"].items():
        figures, mark = row["figures"][direction], ""
        if models[name]["collapsed"]:
            mark += COLLAPSED
        if other := differing(row["manifest"], first["manifest"]):
            mark += OTHER
            marks.add(f"{OTHER} {name}: another {', '.join(other)} than the first row; not to be compared.")
        cells = [_cell(table, pool, direction, models[name], metric, figures) for metric in table["metrics"]]
        rows.append(Row(f"{name}{mark}", tuple(cells)))
        if models[name]["collapsed"]:
            marks.add(f"{COLLAPSED} {name}: its text tower is collapsed ({models[name]['collapsed']}).")
    measured = first["figures"][direction]
    chance = [measure_of(m).show(measured[m]["chance"]) if m in measured else "" for m in table["metrics"]]
    expected = f" (the paper's: {pool['expected']})" if pool["expected"] else ""
    names = DIRECTIONS[direction]
    title = (
        f"{heading}: {measured['num_queries']} {names['queries']}, {measured['pool_size']} {names['pool']}{expected}"
    )
    notes = (*pool["notes"], *sorted(marks), *_compared(pool, direction))
    return Block(title, ("model", *table["metrics"]), (*rows, Row("chance", tuple(chance)), *quoted), notes)


def _cell(table: dict, pool: dict, direction: str, model: dict, metric: str, figures: dict) -> str:
    if metric not in figures:
        return "pool too small"
    if figures[metric]["low"] is None:
        return f"{measure_of(metric).show(figures[metric]['value'])} (one song: no interval)"
    paper = paper_value(table, pool, direction, model["paper_row"], metric)
    if paper is None:
        return show_interval(metric, figures[metric])
    return beside_paper(metric, figures[metric], paper)


def _quoted_rows(table: dict, pool: dict, direction: str) -> list[Row]:
    """Return the paper's rows, each marked as quoted."""
    found = []
    for name in [name for name in table["quoted"] or {} if name != "columns"]:
        values = [paper_value(table, pool, direction, name, metric) for metric in table["metrics"]]
        if any(value is not None for value in values):
            cells = ["" if value is None else f"{value:.2f}" for value in values]
            found.append(Row(f"{name} (quoted from the paper)", tuple(cells)))
    return found


def _compared(pool: dict, direction: str) -> Iterator[str]:
    """Yield what the paired tests say of the first model and every other."""
    for one in pool["comparisons"]:
        if one["direction"] == direction:
            interval = "" if one["low"] is None else f" [{one['low']:.1f}, {one['high']:.1f}]"
            text = f"{one['figure']}: {one['first']} - {one['second']} = {one['difference']:.1f}{interval}"
            yield f"{text}, p = {one['p']:.2g}, by Holm over the table {one['p_holm']:.2g}."


def to_markdown(results: dict) -> str:
    """Return all tables and, at the end, the manifest of every row."""
    lines = [f"# {results['title']}", "", "```bash", results["command"], "```", ""]
    lines += [
        "In brackets: 95 % bootstrap interval by song. A p-value is that of a paired permutation test by song.",
        "",
    ]
    for table in results["tables"]:
        lines += [f"## {table['title']}", ""]
        for block in table_blocks(results, table):
            lines += [f"### {block.title}", "", _line(block.columns), "|---" * len(block.columns) + "|"]
            lines += [_line((row.label, *row.cells)) for row in block.rows]
            lines += ["", *(f"- {note}" for note in block.notes), *([""] if block.notes else [])]
    lines += ["## Manifests", ""]
    for table in results["tables"]:
        for pool in table["pools"]:
            for row in pool["rows"].values():
                facts = ", ".join(
                    f"{name}: {_plain(value)}" for name, value in row["manifest"].items() if name != "command"
                )
                lines.append(f"- {pool['title']}: {facts}")
    return "\n".join(lines) + "\n"


def _plain(value) -> str:
    return " ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def latex_text(text: str) -> str:
    """Return a text with all that LaTeX would read as a command escaped."""
    return "".join(SIGNS.get(sign, sign) for sign in text)


def to_latex(results: dict) -> str:
    """Return all tables for LaTeX, with booktabs."""
    lines = ["% Needs the package booktabs.", f"% {results['command']}"]
    for table in results["tables"]:
        for block in table_blocks(results, table):
            lines += [r"\begin{table}", rf"\caption{{{latex_text(table['title'] + '. ' + block.title)}}}"]
            lines += [rf"\begin{{tabular}}{{l{'r' * len(table['metrics'])}}}", r"\toprule"]
            lines += [" & ".join(map(latex_text, block.columns)) + r" \\", r"\midrule"]
            lines += [" & ".join(map(latex_text, (row.label, *row.cells))) + r" \\" for row in block.rows]
            lines += [r"\bottomrule", r"\end{tabular}"]
            lines += [rf"\par {latex_text(note)}" for note in block.notes]
            lines += [r"\end{table}", ""]
    return "\n".join(lines)


def draw_table(results: dict, table: dict) -> Figure | None:
    """Draw the percentages of a table with their intervals, a panel for each pool and direction, the paper's figure as
    a diamond; None if nothing of it was measured."""
    pools = [pool for pool in table["pools"] if pool["rows"]]
    metrics = [name for name in table["metrics"] if measure_of(name).unit == "%"]
    if not pools or not metrics:
        return None
    figure = Figure(figsize=(11, 3.2 * len(pools) + 0.8), layout="constrained")
    panels = figure.subplots(len(pools), 2, sharey=True, squeeze=False)
    for axes_row, pool in zip(panels, pools, strict=True):
        for axes, direction in zip(axes_row, DIRECTIONS, strict=True):
            _draw_panel(axes, results, table, pool, direction, metrics)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(table["title"])
    return figure


def _draw_panel(axes, results: dict, table: dict, pool: dict, direction: str, metrics: list[str]) -> None:
    models = {model["name"]: model for model in results["models"]}
    width = 0.8 / len(pool["rows"])
    for index, (name, row) in enumerate(pool["rows"].items()):
        figures = row["figures"][direction]
        places = [
            place for place, metric in enumerate(metrics) if metric in figures and figures[metric]["low"] is not None
        ]
        numbers = [[figures[metrics[place]][key] for key in ("value", "low", "high")] for place in places]
        values, lows, highs = np.array(numbers).reshape(-1, 3).T
        centres = np.array(places) + (index - (len(pool["rows"]) - 1) / 2) * width
        whiskers = [np.maximum(values - lows, 0), np.maximum(highs - values, 0)]
        axes.bar(centres, values, 0.92 * width, color=COLORS[index % len(COLORS)], label=name)
        axes.errorbar(centres, values, whiskers, fmt="none", ecolor="#222222", elinewidth=1, capsize=3)
        for centre, place in zip(centres, places, strict=True):
            paper = paper_value(table, pool, direction, models[name]["paper_row"], metrics[place])
            if paper is not None:
                axes.plot(centre, paper, "D", color="white", markeredgecolor="black", markersize=6)
    axes.set_title(f"{pool['title']}: {DIRECTIONS[direction]['title'].lower()}", fontsize=9)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set_ylim(0, 103)
    axes.spines[["top", "right"]].set_visible(False)


def write_tables(results: dict, folder: Path) -> dict[str, Path]:
    """Write results.json, results.md, results.tex, and NAME.png for each table of which something was measured.

    Raises:
        ValueError: a figure has no manifest; nothing is written then.
    """
    texts = {
        "json": json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "md": to_markdown(results),
        "tex": to_latex(results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for suffix, text in texts.items():
        paths[suffix] = folder / f"results.{suffix}"
        replace_text(paths[suffix], text)
    for table in results["tables"]:
        figure = draw_table(results, table)
        if figure is not None:
            paths[table["name"]] = folder / f"{table['name']}.png"
            replace_file(paths[table["name"]], lambda path, one=figure: save_figure(one, path))
    return paths
