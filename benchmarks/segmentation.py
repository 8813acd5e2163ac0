"""Boundaries and letters of sections by the sound of a track, against the true ones, beside guesses.

    python -m benchmarks.segmentation                                            # 60 rendered songs of 1 to 5 minutes
    python -m benchmarks.segmentation --audio songs --annotations dataset/segments     # HarmonixSet, SALAMI, JAMS

F-measures are those of mir_eval.segment, without the start and the end of a song; labels are compared by pairs of
frames. Rendered songs have hard cuts and one timbre for each section, which real ones have not: their figures say that
the method does what it should, not how well it does on records. "equal loudness" are the same songs with each section
at the same level, so that loudness gives no boundary away.

Dimensions: `N` samples.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import mir_eval
import numpy as np

from collap.corpora.annotations import find_annotation, read_annotation
from collap.corpora.structure import audio_sections, kept_sections
from collap.corpora.synthetic.songs import compose_song, render_song
from collap.corpora.tracks import RATE, Section
from collap.data.set_folder import SetFolder
from collap.evaluation.temporal_metrics import boundary_f_measures, share_with_interval
from processing.decode_audio import load_audio

EDGE_SECONDS = 0.1  # from the start and the end of a song, where no boundary is: lengths are rounded to samples
FIGURES = ("F at 0.5 s", "F at 3 s", "labels, pairwise F")


class Sectioned(NamedTuple):
    """Hold samples (N,) at `RATE` and their true sections."""

    samples: np.ndarray
    sections: list[Section]


def rendered(count: int, seed: int, equal_loudness: bool) -> Iterator[Sectioned]:
    """Yield songs of 1 to 5 minutes, as they are or with each section at the same level."""
    for number in range(count):
        song = compose_song(f"segmentation-{number:04d}", seed)
        samples = render_song(song, RATE)
        for one in song.sections if equal_loudness else ():
            part = samples[round(one.start * RATE) : round(one.end * RATE)]  # a view
            part *= 0.05 / np.sqrt(np.square(part).mean())
        yield Sectioned(samples, [Section(one.start, one.end, one.label) for one in song.sections])


def annotated(audio: Path, annotations: Path) -> Iterator[Sectioned]:
    """Yield the recordings of a folder that have an annotation."""
    folder = SetFolder(audio)
    for name in sorted(itertools.chain.from_iterable(folder.by_key.values())):
        path = find_annotation((Path(name).stem,), str(folder.file(name)), annotations)
        if path is not None:
            samples = load_audio(folder.file(name), RATE)
            yield Sectioned(samples, kept_sections(read_annotation(path), 0.0, len(samples) / RATE))


def figures(found: list[Section], true: list[Section], end: float) -> list[float]:
    """Return what `FIGURES` names, for the sections of a song that ends at `end` seconds."""
    edges = [sorted({one.start for one in sections} | {one.end for one in sections}) for sections in (found, true)]
    inner = ([edge for edge in one if EDGE_SECONDS < edge < end - EDGE_SECONDS] for one in edges)
    measured = boundary_f_measures(*inner, end)
    pair = []
    for sections in (true, found):
        times = np.array([[one.start, one.end] for one in sections])  # (sections, 2)
        pair += mir_eval.util.adjust_intervals(times, [one.label for one in sections], 0.0, end)
    return [*measured, float(mir_eval.segment.pairwise(*pair)[2])]


def at_places(places: np.ndarray, end: float) -> list[Section]:
    """Return sections of different labels between so many places, in seconds, and a song's ends."""
    edges = [0.0, *np.sort(places).tolist(), end]
    return [Section(*times, str(number)) for number, times in enumerate(itertools.pairwise(edges))]


def guesses(generator: np.random.Generator) -> dict[str, Callable[[Sectioned], list[Section]]]:
    """Return guesses by name; equal and random ones know how many sections there are."""

    def end(song):
        return len(song.samples) / RATE

    return {
        "equal sections": lambda song: at_places(np.linspace(0, end(song), len(song.sections) + 1)[1:-1], end(song)),
        "random places": lambda song: at_places(generator.uniform(0, end(song), len(song.sections) - 1), end(song)),
        "one section": lambda song: at_places(np.zeros(0), end(song)),
    }


def measure(songs: Iterator[Sectioned], with_guesses: bool, seed: int) -> tuple[dict[str, list[list[float]]], dict]:
    """Return by name of a method the figures of every song; and what there is to say of all songs."""
    methods = {"by sound": lambda song: audio_sections(song.samples)}
    methods |= guesses(np.random.default_rng(seed)) if with_guesses else {}
    found: dict[str, list[list[float]]] = {name: [] for name in methods}
    about = {"seconds": 0.0, "processor seconds": 0.0, "sections": 0, "true sections": 0}
    for song in songs:
        end = len(song.samples) / RATE
        for name, method in methods.items():
            started = time.process_time()
            sections = method(song)
            if name == "by sound":
                about["processor seconds"] += time.process_time() - started
                about["sections"] += len(sections)
            found[name].append(figures(sections, song.sections, end))
        about["seconds"] += end
        about["true sections"] += len(song.sections)
    return found, about


def table(found: dict[str, list[list[float]]]) -> list[str]:
    """Return lines of means in % with their 95 % intervals by song."""
    lines = [f"| | {' | '.join(FIGURES)} |", "|---" * (1 + len(FIGURES)) + "|"]
    for name, values in found.items():
        cells = []
        for column in np.array(values).T:
            figure = share_with_interval(column, range(len(column)))
            cells.append(f"{figure['mean']:.1f} ({figure['low']:.1f} to {figure['high']:.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, help="folder of recordings; without, songs are rendered")
    parser.add_argument("--annotations", type=Path, help="folder of their sections; without, those beside the audio")
    parser.add_argument("--songs", type=int, default=60, help="that are rendered")
    parser.add_argument("--seed", type=int, default=202, help="of rendered songs; parameters were chosen with 101")
    options = parser.parse_args()
    if options.audio:
        found, about = measure(annotated(options.audio, options.annotations), True, options.seed)
    else:
        found, about = measure(rendered(options.songs, options.seed, False), True, options.seed)
        levelled, _ = measure(rendered(options.songs, options.seed, True), False, options.seed)
        found["by sound, equal loudness"] = levelled["by sound"]
    count = len(found["by sound"])
    if not count:
        parser.error(f"{options.audio}: no recording has an annotation; expected song.mp3 and song.txt, or song.jams")
    print(*table(found), sep="\n")
    print(
        f"{count} songs of {about['seconds'] / count:.0f} s; {about['sections'] / count:.1f} sections found in a song, "
        f"{about['true sections'] / count:.1f} true; "
        f"{300 * about['processor seconds'] / about['seconds']:.2f} s of the processor for 5 minutes"
    )


if __name__ == "__main__":
    main()
