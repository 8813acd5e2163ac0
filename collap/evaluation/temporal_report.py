"""Write what a model knows of time as JSON and Markdown, and draw one song: its sentences over time, path and sections.

Dimensions: `Q` sentences of a song, `W` frames.
"""

import textwrap
from pathlib import Path

from collap.files import replace_text, write_json

from .report import plot_localization
from .temporal_places import Places
from .temporal_songs import SectionedSong, true_spans


def to_markdown(results: dict) -> str:
    """Write the figures as a table."""
    levels = ", ".join(f"{name}: {even:g} and {odd:g}" for name, (even, odd) in results["levels"].items())
    lines = [
        f"# What {results['model']} knows of time",
        "",
        f"{results['songs']} songs of {results['dataset']}, split {results['split']} ({results['songs_left_out']} left "
        f"out), seed {results['seed']}; in %, with 95 % bootstrap intervals by song. An interval without width means "
        "that all resamples agree.",
        "",
        "| | % | 95 % | chance | queries | songs |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for name, one in results["figures"].items():
        figures = f"{one['mean']:.1f} | {one['low']:.1f} to {one['high']:.1f} | {one['chance']:.1f}"
        lines.append(f"| {name} | {figures} | {one['queries']} | {one['songs']} |")
    said = f"Levels of spans, of even songs chosen on odd ones and of odd on even: {levels}."
    return "\n".join([*lines, "", said, "", f"`{results['command']}`", ""])


def write_temporal_report(results: dict, folder: Path) -> None:
    """Write temporal.json and temporal.md into a folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "temporal.json", results)
    replace_text(folder / "temporal.md", to_markdown(results))


def draw_song(path: Path, song: SectionedSong, places: Places) -> None:
    """Draw the cosine of every sentence over time, the spans that were found as bars, and the true sections.

    A section has the colour of its sentence. The bars are those of the path, or without one of each curve.
    """
    names = [f"{place + 1} {section.get('label', '')}".strip() for place, section in enumerate(song.sections)]
    names = [textwrap.shorten(name, 32, placeholder=" ...") for name in names]
    sections = [
        {"label": name, "start": start, "end": end}
        for name, (start, end) in zip(names, true_spans(song).tolist(), strict=True)
    ]
    curves = dict(zip(names, places.curves, strict=True))
    found = places.spans if places.path is None else places.path
    told = "curve alone" if places.path is None else "path of all"
    title = f"row {song.row}: each section's sentence over time; bars: where it is found by the {told}"
    plot_localization(path, places.times.mean(1), curves, sections, title, spans=found)
