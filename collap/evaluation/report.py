"""Write the results of a retrieval evaluation as JSON, Markdown and PNG, and plot where in a song a text matches."""

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from collap.files import replace_file, replace_text

from .metrics import measure_of
from .results import (
    DIRECTIONS,
    Results,
    check_results,
    figure_names,
    interval_text,
    measures_text,
    pool_text,
    show_interval,
)

# Okabe and Ito's palette, grey for its yellow, which is pale on white: told apart by colour-blind readers and in print.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#555555")


def to_plain(value: Any) -> Any:
    """Return the same value with numpy scalars, arrays, tuples and paths as what JSON knows; keys become strings."""
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return to_plain(value.tolist()) if isinstance(value, np.ndarray) else value.item()
    return str(value) if isinstance(value, Path) else value


def _row(label: str, cells: list[str]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [label, *cells]) + " |"


def _direction_table(scores: dict, direction: str) -> list[str]:
    """Return heading, table and size line of one direction."""
    by_kind = {kind: by_direction[direction] for kind, by_direction in scores.items()}
    figures = next(iter(by_kind.values()))
    names = figure_names(figures)
    lines = [f"## {DIRECTIONS[direction]['title']}", "", _row("score", [measure_of(name).title for name in names])]
    lines.append("|---" * (len(names) + 1) + "|")
    lines += [_row(kind, [show_interval(name, measured[name]) for name in names]) for kind, measured in by_kind.items()]
    lines.append(_row("chance", [measure_of(name).show(figures[name]["chance"]) for name in names]))
    sizes = f"{pool_text(direction, figures)}, of {figures['num_songs']} songs. In brackets: {interval_text(figures)}."
    if any(measured[name]["low"] == measured[name]["high"] for measured in by_kind.values() for name in names):
        sizes += " An interval without width means that all resamples agree, not certainty about other songs."
    return [*lines, "", sizes, ""]


def to_markdown(results: Results) -> str:
    """Return one table per direction: a row per score kind and one for chance, a column per figure.

    Raises:
        ValueError: a figure has no pool size, interval or chance level, or a key of `results` is missing.
    """
    check_results(results)
    results = to_plain(results)
    lines = [f"# Retrieval: {results['model']} on {results['dataset']}", ""]
    plain = {name: value for name, value in results.items() if isinstance(value, (str, int, float, bool))}
    told = ("model", "dataset", "command")  # elsewhere
    lines += [
        f"- {name.removeprefix('num_').replace('_', ' ')}: {value}" for name, value in plain.items() if name not in told
    ]
    lines += ["", "```bash", results["command"], "```", "", f"{measures_text()}.", ""]
    for direction in DIRECTIONS:
        lines += _direction_table(results["scores"], direction)
    return "\n".join(lines)


def write_report(results: Results, folder: str | Path) -> dict[str, Path]:
    """Write `results.json`, `results.md` and `results.png` into `folder`, which is made if needed.

    Each file is written beside its place and renamed, so a reader never meets half of one.

    Returns:
        {"json", "md", "png"}: the paths.

    Raises:
        ValueError: as `to_markdown`; or a further key holds what JSON cannot. Nothing is written then.
    """
    markdown = to_markdown(results)
    plain = to_plain(results)
    try:
        text = json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"results cannot be written as JSON: {error}. Keep to text, finite numbers, lists.") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {suffix: folder / f"results.{suffix}" for suffix in ("json", "md", "png")}
    replace_text(paths["json"], text)
    replace_text(paths["md"], markdown)
    replace_file(paths["png"], lambda path: save_figure(_recall_figure(plain), path))
    return paths


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PNG on the Agg canvas of a bare Figure, without a version stamp: equal input gives equal bytes."""
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        # A description may hold dollar signs, which are not formulas.
        text.set_parse_math(False)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _recall_figure(results: dict) -> Figure:
    """Draw bars of R@k with their intervals per score kind, chance marked, one panel per direction."""
    names = figure_names(next(iter(results["scores"].values()))["text_to_audio"])
    figure = Figure(figsize=(max(9.0, 0.5 * len(names) * (1 + len(results["scores"]))), 5.2), layout="constrained")
    panels = figure.subplots(1, len(DIRECTIONS), sharey=True)
    for axes, direction in zip(panels, DIRECTIONS, strict=True):
        _draw_recalls(axes, results["scores"], direction)
    panels[0].set_ylabel("R@k in percent")
    labels = [*results["scores"], "chance"]
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(textwrap.fill(f"{results['model']} on {results['dataset']} ({results['split']})", 100))
    return figure


def _draw_recalls(axes: Axes, scores: dict, direction: str) -> None:
    """Draw one panel of `_recall_figure`."""
    by_kind = {kind: by_direction[direction] for kind, by_direction in scores.items()}
    figures = next(iter(by_kind.values()))
    names = [name for name in figure_names(figures) if name.startswith("R@")]
    places = np.arange(len(names))
    width = 0.8 / len(by_kind)
    for index, (kind, measured) in enumerate(by_kind.items()):
        values, lows, highs = np.array([[measured[name][key] for key in ("value", "low", "high")] for name in names]).T
        centres = places + (index - (len(by_kind) - 1) / 2) * width
        axes.bar(centres, values, 0.92 * width, color=COLORS[index % len(COLORS)], label=kind)
        whiskers = [np.maximum(values - lows, 0), np.maximum(highs - values, 0)]
        axes.errorbar(centres, values, whiskers, fmt="none", ecolor="#222222", elinewidth=1, capsize=3)
    chances = [figures[name]["chance"] for name in names]
    # White below black stays visible both on the bars and between them.
    axes.hlines(chances, places - 0.46, places + 0.46, colors="white", linewidth=3)
    axes.hlines(
        chances, places - 0.46, places + 0.46, colors="black", linestyles=(0, (3, 1)), linewidth=1.6, label="chance"
    )
    sizes = f"{pool_text(direction, figures)}; {100 * figures['confidence']:g} % interval by song"
    axes.set_title(f"{DIRECTIONS[direction]['title']}\n{sizes}", fontsize=9)
    axes.set_xticks(places, names)
    axes.set_ylim(0, 103)
    axes.grid(axis="y", color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plot_localization(
    path: str | Path,
    times: np.ndarray,
    scores: dict[str, np.ndarray],
    sections: list[dict],
    title: str,
    spans: np.ndarray | None = None,
) -> None:
    """Plot one song's scores over time as lines on its true sections as shaded, labelled spans.

    A section whose label is the name of a line has the line's colour; the others are grey.

    Args:
        path: where the PNG goes; its folder is made if needed.
        times: (W,) centre of each frame in seconds, ascending.
        scores: for each text its score over time (W,).
        sections: dicts with "label" and "start" and "end" in seconds; may be empty.
        spans: (scores, 2) start and end in seconds that were found for each text, drawn as bars at the foot; or None.

    Raises:
        ValueError: no score, shapes that differ from (W,), numbers that are not finite, or a section that does not end
            after it starts.
    """
    times = np.asarray(times, dtype=np.float64)
    scores = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    _check_localization(times, scores, sections)
    colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(scores)}
    names = [textwrap.fill(name, 120) for name in scores]
    legend_rows = sum(1 + name.count("\n") for name in names)
    figure = Figure(figsize=(10, 4 + 0.2 * legend_rows), layout="constrained")
    axes = figure.subplots()
    # The first centre is half a frame after the start, so the last frame ends about as long after the last centre.
    axes.set_xlim(0, max([times[-1] + times[0], 1, *(section["end"] for section in sections)]))
    _draw_sections(axes, sections, colors)
    style = {"marker": "o", "markersize": 4} if len(times) < 40 else {}
    lines = []
    for index, (name, values) in enumerate(scores.items()):
        # A new dash pattern when the colours start over.
        dashes = ("-", "--", ":")[index // len(COLORS) % 3]
        lines += axes.plot(times, values, color=colors[name], linestyle=dashes, **style)
    if spans is not None:
        foot = axes.get_ylim()[0]
        for name, (start, end) in zip(scores, spans, strict=True):
            axes.plot([start, end], [foot, foot], color=colors[name], linewidth=9, solid_capstyle="butt")
    axes.set(xlabel="time (min:s)", ylabel="score")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 1.5, 2, 3, 6, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{int(seconds) // 60}:{int(seconds) % 60:02d}"))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(lines, names, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    figure.suptitle(textwrap.fill(title, 100))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: save_figure(figure, temporary))


def _draw_sections(axes: Axes, sections: list[dict], colors: dict[str, str]) -> None:
    """Shade the sections and write their labels above, slanted when one is wider than its span."""
    labels = [textwrap.shorten(str(section["label"]), 32, placeholder=" ...") for section in sections]
    seconds_per_letter = axes.get_xlim()[1] / 110
    spans = [section["end"] - section["start"] for section in sections]
    slanted = any(len(label) * seconds_per_letter > span for label, span in zip(labels, spans, strict=True))
    style = {"rotation": 30, "ha": "left", "rotation_mode": "anchor"} if slanted else {"ha": "center"}
    for index, (section, label) in enumerate(zip(sections, labels, strict=True)):
        # Two greys, so that neighbours can be told apart.
        grey = ("#999999", "#CCCCCC")[index % 2]
        axes.axvspan(section["start"], section["end"], color=colors.get(section["label"], grey), alpha=0.2, linewidth=0)
        axes.axvline(section["start"], color="#999999", linewidth=0.6)
        middle = (section["start"] + section["end"]) / 2
        axes.text(middle, 1.02, label, transform=axes.get_xaxis_transform(), va="bottom", fontsize=9, **style)


def _check_localization(times: np.ndarray, scores: dict[str, np.ndarray], sections: list[dict]) -> None:
    """Raise ValueError for what `plot_localization` cannot draw."""
    if times.ndim != 1 or len(times) == 0 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError(f"times must be ascending finite seconds (W,), found the shape {times.shape}: {times}.")
    if not scores:
        raise ValueError("scores is empty: give at least one text with its score over time.")
    for name, values in scores.items():
        if values.shape != times.shape or not np.isfinite(values).all():
            raise ValueError(f"scores[{name!r}] must be finite with the shape {times.shape} of times, found {values}.")
    for index, section in enumerate(sections):
        if not {"label", "start", "end"} <= set(section) or not section["start"] < section["end"]:
            raise ValueError(
                f"sections[{index}] must hold label, start and end in seconds, start < end; found {section}."
            )
