"""Write the results of a retrieval evaluation as JSON, Markdown and PNG, and plot where in a song a text matches.

`results` is one dict:

    {"model", "dataset", "split", "caption_column", "command": str, "num_audios", "num_texts", "seed": int,
     "scores": {score kind: {"text_to_audio": figures, "audio_to_text": figures}}, ...}

`figures` is what the metric `audio_text_retrieval` returns. Further keys are kept: all in the JSON, plain values also
in the Markdown. No figure is written without its pool size, interval and chance level.
"""

import json
import math
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

DIRECTIONS = {"text_to_audio": "Text to audio", "audio_to_text": "Audio to text"}
QUERY_AND_POOL = {"text_to_audio": ("texts", "audios"), "audio_to_text": ("audios", "texts")}
FIGURE_KEYS = ("value", "low", "high", "chance")
SIZE_KEYS = ("pool_size", "num_queries", "num_songs", "num_bootstrap", "confidence")
TEXT_KEYS = ("model", "dataset", "split", "caption_column", "num_audios", "num_texts", "seed", "command")
# Okabe and Ito's palette, grey for its yellow, which is pale on white: told apart by colour-blind readers and in print.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#555555")


def to_plain(value: Any) -> Any:
    """The same value with numpy scalars, arrays, tuples and paths as what JSON knows; keys become strings."""
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return to_plain(value.tolist()) if isinstance(value, np.ndarray) else value.item()
    return str(value) if isinstance(value, Path) else value


def figure_names(figures: dict) -> list[str]:
    """Names of the figures in the order of the table: R@k by k, then median rank and mAP."""
    recalls = sorted((name for name in figures if name.startswith("R@")), key=lambda name: int(name[2:]))
    return [*recalls, "median_rank", "mAP"]


def check_results(results: dict) -> None:
    """Raise ValueError, naming the place, unless every figure has a pool size, an interval and a chance level."""
    missing = [key for key in (*TEXT_KEYS, "scores") if key not in results]
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
            facts = {key: by_direction[direction][key] for key in SIZE_KEYS}
            shared[kind] = {**facts, "figures": figure_names(by_direction[direction])}
        first = next(iter(shared))
        different = [kind for kind in shared if shared[kind] != shared[first]]
        if different:
            raise ValueError(
                f"{direction}: score kinds in one table must share pool, queries and figures, but "
                f"{first!r} has {shared[first]} and {different[0]!r} has {shared[different[0]]}."
            )


def _check_figures(figures: dict, place: str) -> None:
    """`check_results` for one direction of one score kind."""
    missing = [key for key in SIZE_KEYS if not isinstance(figures.get(key), (int, float, np.number))]
    if missing:
        raise ValueError(
            f"{place} has no {', '.join(missing)}: a figure without its pool and resampling is not printed."
        )
    names = figure_names(figures)
    if len(names) == 2:
        raise ValueError(
            f"{place} has no R@k: call the metric with a k of at most the pool size {figures['pool_size']}."
        )
    for name in names:
        for key in FIGURE_KEYS:
            figure = figures.get(name)
            number = figure.get(key) if isinstance(figure, dict) else None
            if number is None or not math.isfinite(number):
                raise ValueError(
                    f"{place}[{name!r}][{key!r}] is {number}, expected a finite number. An interval needs two songs or "
                    f"more; there are {figures['num_songs']}."
                )


def _number(name: str, number: float) -> str:
    """One decimal; a rank loses a trailing zero, and a percentage that would round to zero keeps one digit."""
    if name == "median_rank":
        return f"{number:.1f}".removesuffix(".0")
    return f"{number:.1g}" if 0 < number < 0.05 else f"{number:.1f}"


def _row(label: str, cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [label, *cells]) + " |"


def _direction_table(scores: dict, direction: str) -> list[str]:
    """Heading, table and size line of one direction."""
    by_kind = {kind: by_direction[direction] for kind, by_direction in scores.items()}
    figures = next(iter(by_kind.values()))
    names = figure_names(figures)
    lines = [f"## {DIRECTIONS[direction]}", "", _row("score", names).replace("median_rank", "median rank")]
    lines.append("|---" * (len(names) + 1) + "|")
    for kind, measured in by_kind.items():
        cells = [[_number(name, measured[name][key]) for key in ("value", "low", "high")] for name in names]
        lines.append(_row(kind, [f"{value} [{low}, {high}]" for value, low, high in cells]))
    lines.append(_row("chance", [_number(name, figures[name]["chance"]) for name in names]))
    queries, pool = QUERY_AND_POOL[direction]
    interval = f"{100 * figures['confidence']:g} % bootstrap interval by song ({figures['num_bootstrap']} resamples)"
    lines += ["", f"Pool: {figures['pool_size']} {pool}. Queries: {figures['num_queries']} {queries} of "]
    lines[-1] += f"{figures['num_songs']} songs. In brackets: {interval}."
    if any(measured[name]["low"] == measured[name]["high"] for measured in by_kind.values() for name in names):
        lines[-1] += " An interval without width means that all resamples agree, not certainty about other songs."
    return [*lines, ""]


def to_markdown(results: dict) -> str:
    """One table per direction: a row per score kind and one for chance, a column per figure as `39.0 [30.1, 48.2]`.

    R@k and mAP are in percent.

    Raises:
        ValueError: a figure has no pool size, interval or chance level, or a key of `results` is missing.
    """
    check_results(results)
    results = to_plain(results)
    lines = [f"# Retrieval: {results['model']} on {results['dataset']}", ""]
    facts = {"split": results["split"], "caption column": results["caption_column"]}
    facts |= {"audios": results["num_audios"], "texts": results["num_texts"], "seed": results["seed"]}
    facts |= {
        key: value
        for key, value in results.items()
        if key not in TEXT_KEYS and isinstance(value, (str, int, float, bool))
    }
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "```bash",
        results["command"],
        "```",
        "",
        "R@k and mAP in percent, higher is better; ranks: lower is better.",
        "",
    ]
    for direction in DIRECTIONS:
        lines += _direction_table(results["scores"], direction)
    return "\n".join(lines)


def write_report(results: dict, folder: str | Path) -> dict[str, Path]:
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
    _write_atomically(paths["json"], lambda path: path.write_text(text, encoding="utf-8"))
    _write_atomically(paths["md"], lambda path: path.write_text(markdown, encoding="utf-8"))
    _write_atomically(paths["png"], lambda path: _save_figure(_recall_figure(plain), path))
    return paths


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _save_figure(figure: Figure, path: Path) -> None:
    """Save as PNG on the Agg canvas of a bare Figure, without a version stamp: equal input gives equal bytes."""
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        # A description may hold dollar signs, which are not formulas.
        text.set_parse_math(False)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _recall_figure(results: dict) -> Figure:
    """Bars of R@k with their intervals per score kind, chance marked, one panel per direction."""
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
    """One panel of `_recall_figure`."""
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
    queries, pool = QUERY_AND_POOL[direction]
    interval = f"{100 * figures['confidence']:g} % interval by song"
    sizes = f"{figures['num_queries']} {queries} of {figures['num_songs']} songs, pool {figures['pool_size']} {pool}"
    axes.set_title(f"{DIRECTIONS[direction]}\n{sizes}; {interval}", fontsize=9)
    axes.set_xticks(places, names)
    axes.set_ylim(0, 103)
    axes.grid(axis="y", color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plot_localization(
    path: str | Path, times: np.ndarray, scores: dict[str, np.ndarray], sections: list[dict], title: str
) -> None:
    """Plot one song's scores over time as lines on its true sections as shaded, labelled spans.

    A section whose label is the name of a line has the line's colour; the others are grey.

    Args:
        path: where the PNG goes; its folder is made if needed.
        times: (W,) centre of each frame in seconds, ascending.
        scores: for each text its score over time (W,).
        sections: dicts with "label" and "start" and "end" in seconds; may be empty.

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
    axes.set(xlabel="time (min:s)", ylabel="score")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 1.5, 2, 3, 6, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{int(seconds) // 60}:{int(seconds) % 60:02d}"))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(lines, names, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    figure.suptitle(textwrap.fill(title, 100))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, lambda temporary: _save_figure(figure, temporary))


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
