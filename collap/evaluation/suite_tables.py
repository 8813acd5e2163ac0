"""Write what a suite measured: as JSON, Markdown, LaTeX, and one PNG for each table.

A figure is printed only with its manifest. What is quoted from the paper is marked so, and our figure beside it says
how far it is, and whether its interval covers the paper's.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from collap.data.check_report import TABLE_COLUMNS, TABLE_ONE
from collap.files import replace_file, replace_text

from .metrics import measure_of
from .report import COLORS, save_figure
from .results import DIRECTIONS, show_interval

DATA = ("dataset", "dataset digest", "captions", "audio", "pool")
MANIFEST = ("model", "weights", *DATA, "window", "precision", "score", "seed", "libraries", "hardware", "command")
SHARED = (*DATA, "precision", "seed", "libraries", "hardware")
COLLAPSED, OTHER = "†", "‡"
SIGNS = {sign: f"\\{sign}" for sign in "{}$&#%_"}
SIGNS |= {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", COLLAPSED: r"\dag{}", OTHER: r"\ddag{}"}

HATCHES = (None, "////", "....", "xxxx")  # of models beyond the colours
LABEL_LETTERS = 120  # in a line below a drawing
DRAWN_MARKS = {
    "chance": {"color": "black", "linestyle": "--", "linewidth": 1.2},
    "the paper's figure for this model": {
        **{"color": "white", "marker": "D", "markersize": 6, "linestyle": "none", "markeredgecolor": "black"}
    },
}


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


def beside_paper(figure: dict, paper: float) -> str:
    """Return the paper's figure with our difference from it, and whether our interval covers it."""
    covered = "not known" if figure["low"] is None else figure["low"] <= paper <= figure["high"]
    covered = {True: "covered", False: "not covered"}.get(covered, covered)
    return f"{paper:.2f} ({figure['value'] - paper:+.2f}, {covered})"


def table_blocks(results: dict, table: dict) -> Iterator[Block]:
    """Yield the blocks of a table, also of pools that were not measured: the figures, and how the models differ.

    Raises:
        ValueError: a figure has no manifest.
    """
    models = {model["name"]: model for model in results["models"]}
    for pool in table["pools"]:
        for name, row in pool["rows"].items():
            check_manifest(row, f"{table['name']}, {pool['title']}, {name}")
        for direction in DIRECTIONS:
            yield _block(table, pool, direction, models)
            yield from _comparison(table, pool, direction)


def _block(table: dict, pool: dict, direction: str, models: dict[str, dict]) -> Block:
    heading = f"{pool['title']}, {DIRECTIONS[direction]['title'].lower()}"
    quoted = _quoted_rows(table, pool, direction)
    if not pool["rows"]:
        rows = [Row(name, ("not measured",) + ("",) * (len(table["metrics"]) - 1)) for name in models]
        notes = (f"not measured: {pool['missing']}",)
        return Block(f"{heading}: not measured", ("model", *table["metrics"]), (*rows, *quoted), notes)
    first = next(iter(pool["rows"].values()))
    rows, marks = [], set()
    for name, row in pool["rows"].items():
        figures, mark = row["figures"][direction], ""
        if models[name]["collapsed"]:
            mark += COLLAPSED
        if other := differing(row["manifest"], first["manifest"]):
            mark += OTHER
            marks.add(f"{OTHER} {name}: another {', '.join(other)} than the first row; not to be compared.")
        rows.append(Row(f"{name}{mark}", tuple(_cell(metric, figures) for metric in table["metrics"])))
        rows += _paper_row(table, pool, direction, models[name]["paper_row"], figures)
        if models[name]["collapsed"]:
            marks.add(f"{COLLAPSED} its text tower is collapsed.")
    measured = first["figures"][direction]
    chance = [measure_of(m).show(measured[m]["chance"]) if m in measured else "" for m in table["metrics"]]
    expected = f" (the paper's: {pool['expected']})" if pool["expected"] else ""
    names = DIRECTIONS[direction]
    title = (
        f"{heading}: {measured['num_queries']} {names['queries']}, {measured['pool_size']} {names['pool']}{expected}"
    )
    notes = (*pool["notes"], *sorted(marks))
    return Block(title, ("model", *table["metrics"]), (*rows, Row("chance", tuple(chance)), *quoted), notes)


def _cell(metric: str, figures: dict) -> str:
    if metric not in figures:
        return "pool too small"
    if figures[metric]["low"] is None:
        return f"{measure_of(metric).show(figures[metric]['value'])} (one song: no interval)"
    return show_interval(metric, figures[metric])


def _paper_row(table: dict, pool: dict, direction: str, row: str | None, figures: dict) -> list[Row]:
    """Return the line that says how far a model is from its own row in the paper; none if the paper has no such row."""
    papers = {metric: paper_value(table, pool, direction, row, metric) for metric in table["metrics"]}
    if all(value is None or metric not in figures for metric, value in papers.items()):
        return []
    cells = (
        beside_paper(figures[metric], paper) if paper is not None and metric in figures else ""
        for metric, paper in papers.items()
    )
    return [Row(f"the paper's {row} (ours minus it)", tuple(cells))]


def _quoted_rows(table: dict, pool: dict, direction: str) -> list[Row]:
    """Return the paper's rows, each marked as quoted."""
    found = []
    for name in [name for name in table["quoted"] or {} if name != "columns"]:
        values = [paper_value(table, pool, direction, name, metric) for metric in table["metrics"]]
        if any(value is not None for value in values):
            cells = ["" if value is None else f"{value:.2f}" for value in values]
            found.append(Row(f"{name} (quoted from the paper)", tuple(cells)))
    return found


def _comparison(table: dict, pool: dict, direction: str) -> Iterator[Block]:
    """Yield what the paired tests say of the first model and every other; nothing if there is no other."""
    found = {(one["second"], one["figure"]): one for one in pool["comparisons"] if one["direction"] == direction}
    if not found:
        return
    rows = []
    for name in dict.fromkeys(second for second, _ in found):
        cells = (found.get((name, metric)) for metric in table["metrics"])
        rows.append(Row(f"minus {name}", tuple("" if one is None else _difference(one) for one in cells)))
    first = next(iter(found.values()))["first"]
    title = f"{pool['title']}, {DIRECTIONS[direction]['title'].lower()}: {first} minus the others"
    yield Block(title, ("difference", *table["metrics"]), tuple(rows), ())


def _difference(one: dict) -> str:
    interval = "" if one["low"] is None else f" [{one['low']:.1f}, {one['high']:.1f}]"
    return f"{one['difference']:+.1f}{interval}, p {one['p_holm']:.2g}"


def statistics_block(results: dict) -> Block | None:
    """Return the data sets at hand as the paper's Table I has its own: those that are counted, each above the paper's
    row, and the pools that were measured; None if the suite counts none."""
    if not results["data_sets"]:
        return None
    rows, notes, pools = [], [], [pool for table in results["tables"] for pool in table["pools"]]
    for one in [*results["data_sets"], *pools]:
        if one["data"] is not None:
            missing = one["data"]["audio_missing"]
            cells = [*(str(one["data"][name]) for name in TABLE_COLUMNS), str(missing)]
            rows.append(Row(one["title"] if "paper_row" in one else f"{one['title']} (measured)", tuple(cells)))
        elif "paper_row" in one:
            rows.append(Row(one["title"], ("not counted",) + ("",) * len(TABLE_COLUMNS)))
            notes.append(f"{one['title']}: not counted: {one['missing']}")
        if "paper_row" in one:
            quoted = ("" if value is None else str(value) for value in TABLE_ONE[one["paper_row"]])
            rows.append(Row(f"{one['paper_row']} (quoted from the paper)", (*quoted, "")))
    columns = ("data set", *(name.replace("_", " ") for name in TABLE_COLUMNS), "without audio")
    return Block("Pairs of text and audio that is there", columns, tuple(rows), tuple(notes))


def headed_blocks(results: dict) -> Iterator[tuple[str, list[Block]]]:
    """Yield the title of every table with its blocks; that of data sets first, if the suite counts any.

    Raises:
        ValueError: a figure has no manifest.
    """
    if statistics := statistics_block(results):
        yield "Table I: data sets", [statistics]
    for table in results["tables"]:
        yield table["title"], list(table_blocks(results, table))


def markdown_tables(results: dict) -> str:
    """Return all tables, without the manifests.

    Raises:
        ValueError: a figure has no manifest.
    """
    collapsed = [one for one in results["models"] if one["collapsed"]]
    lines = [f"# {results['title']}", "", "```bash", results["command"], "```", ""]
    lines += [
        "In brackets: 95 % bootstrap interval by song. p: a paired permutation test by song, by Holm over the table.",
        "",
        *(f"- {COLLAPSED} {one['name']}: text tower: {one['collapsed']}" for one in collapsed),
        *([""] if collapsed else []),
    ]
    for title, blocks in headed_blocks(results):
        lines += [f"## {title}", ""]
        for block in blocks:
            lines += [f"### {block.title}", "", _line(block.columns), "|---" * len(block.columns) + "|"]
            lines += [_line((row.label, *row.cells)) for row in block.rows]
            lines += ["", *(f"- {note}" for note in block.notes), *([""] if block.notes else [])]
    return "\n".join(lines) + "\n"


def to_markdown(results: dict) -> str:
    """Return all tables and, at the end, the manifest of every row."""
    lines = [markdown_tables(results), "## Manifests", ""]
    lines += [f"- Table I, {one['title']}: dataset: {one['dataset']}" for one in results["data_sets"] if one["data"]]
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
    for title, blocks in headed_blocks(results):
        for block in blocks:
            lines += [r"\begin{table}", rf"\caption{{{latex_text(title + '. ' + block.title)}}}"]
            lines += [rf"\begin{{tabular}}{{l{'r' * (len(block.columns) - 1)}}}", r"\toprule"]
            lines += [" & ".join(map(latex_text, block.columns)) + r" \\", r"\midrule"]
            lines += [" & ".join(map(latex_text, (row.label, *row.cells))) + r" \\" for row in block.rows]
            lines += [r"\bottomrule", r"\end{tabular}"]
            lines += [rf"\par {latex_text(note)}" for note in block.notes]
            lines += [r"\end{table}", ""]
    return "\n".join(lines)


def draw_table(results: dict, table: dict) -> Figure | None:
    """Draw the percentages of a table with their intervals, a panel for each pool and direction, chance as a dashed
    line, the paper's figure as a diamond; None if no percentage of it has an interval."""
    metrics = [name for name in table["metrics"] if measure_of(name).unit == "%"]
    pools = [pool for pool in table["pools"] if any(_drawn(pool, direction, metrics) for direction in DIRECTIONS)]
    if not pools:
        return None
    models = {model["name"]: model for model in results["models"]}
    styles = {
        name: {"color": COLORS[index % len(COLORS)], "hatch": HATCHES[index // len(COLORS) % len(HATCHES)]}
        for index, name in enumerate(models)
    }
    marks = {name: mark for name, mark in DRAWN_MARKS.items() if name == "chance" or table["quoted"]}
    labels = [textwrap.fill(name, LABEL_LETTERS, break_on_hyphens=False) for name in [*models, *marks]]
    columns = max(1, min(3, LABEL_LETTERS // max(map(len, labels))))
    rows = -(-len(labels) // columns) + sum(label.count("\n") for label in labels)
    figure = Figure(figsize=(11, 3.2 * len(pools) + 0.6 + 0.22 * rows), layout="constrained")
    panels = figure.subplots(len(pools), 2, sharey=True, squeeze=False)
    for axes_row, pool in zip(panels, pools, strict=True):
        for axes, direction in zip(axes_row, DIRECTIONS, strict=True):
            _draw_panel(axes, table, pool, direction, metrics, models, styles)
    bars = [Patch(facecolor=style["color"], hatch=style["hatch"], edgecolor="white") for style in styles.values()]
    handles = [*bars, *(Line2D([], [], **mark) for mark in marks.values())]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(table["title"])
    return figure


def _drawn(pool: dict, direction: str, metrics: list[str]) -> list[int]:
    """Return which of the figures every model has with an interval, as places in `metrics`."""
    found = [row["figures"][direction] for row in pool["rows"].values()]
    have = [all(one.get(name) and one[name]["low"] is not None for one in found) for name in metrics]
    return [place for place in range(len(metrics)) if found and have[place]]


def _draw_panel(axes, table: dict, pool: dict, direction: str, metrics: list[str], models: dict, styles: dict) -> None:
    places, width = _drawn(pool, direction, metrics), 0.8 / len(pool["rows"])
    for index, (name, row) in enumerate(pool["rows"].items()):
        figures = row["figures"][direction]
        numbers = [[figures[metrics[place]][key] for key in ("value", "low", "high")] for place in places]
        values, lows, highs = np.array(numbers).reshape(-1, 3).T
        centres = np.array(places) + (index - (len(pool["rows"]) - 1) / 2) * width
        whiskers = [np.maximum(values - lows, 0), np.maximum(highs - values, 0)]
        axes.bar(centres, values, 0.92 * width, edgecolor="white", linewidth=0, **styles[name])
        axes.errorbar(centres, values, whiskers, fmt="none", ecolor="#222222", elinewidth=1, capsize=3)
        for centre, place in zip(centres, places, strict=True):
            paper = paper_value(table, pool, direction, models[name]["paper_row"], metrics[place])
            if paper is not None:
                axes.plot(centre, paper, **DRAWN_MARKS["the paper's figure for this model"])
    measured = next(iter(pool["rows"].values()))["figures"][direction]
    for place in places:
        axes.plot([place - 0.46, place + 0.46], [measured[metrics[place]]["chance"]] * 2, **DRAWN_MARKS["chance"])
    sizes = f"{measured['num_queries']} {DIRECTIONS[direction]['queries']}, pool of {measured['pool_size']}"
    axes.set_title(f"{pool['title']}, {DIRECTIONS[direction]['title'].lower()}: {sizes}", fontsize=9)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set_xlim(-0.6, len(metrics) - 0.4)
    axes.set_ylim(0, 103)
    axes.spines[["top", "right"]].set_visible(False)


def write_tables(results: dict, folder: Path) -> dict[str, Path]:
    """Write results.json, results.md, results.tex, and NAME.png for each table of which something was measured.

    Raises:
        ValueError: a figure has no manifest; nothing is written then.
    """
    drawings = ((table["name"], draw_table(results, table)) for table in results["tables"])
    return write_results(results, to_markdown(results), to_latex(results), drawings, folder)


def write_results(results: dict, markdown: str, latex: str, drawings: Iterable[tuple], folder: Path) -> dict[str, Path]:
    """Write results.json, results.md, results.tex, and NAME.png for each drawing.

    Args:
        drawings: name and figure of each, drawn one at a time; None where there is nothing to draw.

    Returns:
        The files, by suffix or by the name of the drawing.
    """
    texts = {
        "json": json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "md": markdown,
        "tex": latex,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {suffix: folder / f"results.{suffix}" for suffix in texts}
    for suffix, text in texts.items():
        replace_text(paths[suffix], text)
    for name, figure in drawings:
        if figure is not None:
            paths[name] = folder / f"{name}.png"
            replace_file(paths[name], lambda path, one=figure: save_figure(one, path))
    return paths
