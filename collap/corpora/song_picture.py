"""Draw a track: its loudness over time, its sections, and what its caption says of each.

Dimensions: `N` samples at `tracks.RATE`.
"""

import textwrap
from pathlib import Path

import numpy as np

from collap.data.guarded_reading import load_audio

from .synthetic.captions import clock
from .tracks import RATE, Caption, Track

COLUMNS = 800  # of the envelope
LINE_CHARACTERS = 118
COLOURS = ("#4878a8", "#e49444", "#6a9f58", "#d1615d", "#85b6b2", "#a87c9f", "#967662", "#e7ca60")


def envelope(samples: np.ndarray) -> np.ndarray:
    """Return the largest magnitude (COLUMNS,) in equal stretches of samples (N,)."""
    edges = np.linspace(0, len(samples), COLUMNS + 1).astype(int)[:-1]
    return np.maximum.reduceat(np.abs(samples), edges)


def draw_song(path: Path, track: Track, caption: Caption, text: str) -> None:
    """Draw a track with a caption of it and the sections that this names, or else those of the track.

    Args:
        text: of the caption: a line for each of its sections, perhaps after one on the whole.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = load_audio(track.audio, RATE, *(track.crop or (None, None)))
    sections, lines = caption.sections or track.sections or [], text.splitlines()
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(dict.fromkeys(one.label for one in sections))}
    own = [colours[one.label] for one in caption.sections]
    own = [None] * (len(lines) - len(own)) + own
    wrapped = [(part, colour) for line, colour in zip(lines, own, strict=True) for part in _wrap(line)]
    figure = Figure(figsize=(10, 2.2 + 0.19 * len(wrapped)), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[2.0, 0.19 * len(wrapped)])
    heights = envelope(samples)
    times = np.linspace(0, len(samples) / RATE, len(heights))
    above.fill_between(times, -heights, heights, color="#444444", linewidth=0)
    for one in sections:
        above.axvspan(one.start, one.end, color=colours[one.label], alpha=0.35, linewidth=0)
        above.text(
            (one.start + one.end) / 2, 0.98, one.label, ha="center", va="top", transform=above.get_xaxis_transform()
        )
    above.set_xlim(0, len(samples) / RATE)
    above.set_yticks([])
    above.xaxis.set_major_formatter(lambda value, _: clock(value))
    below.axis("off")
    for row, (part, colour) in enumerate(wrapped):
        below.text(0, 1 - row / len(wrapped), part, color=colour or "black", va="top", fontsize=8, family="monospace")
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, LINE_CHARACTERS, subsequent_indent="    ") or [""]
