"""Measure where in a recording a query is heard: `collap evaluate --suite temporal --parts moments`.

    collap evaluate --suite temporal --parts moments --model runs/demo/collap-gpt2/best \
        --dataset castella:data/castella --dataset_config castella --sections_column sections

A query is the text of sections, or their label where they have none, and its answers are all the windows of that text.
Recordings are heard whole, as they lie there: windows may overlap, and nothing is cut at them. Of a query for a point
in time (when is it first, or last, heard?) the answer is where its curve first, or last, stands high.

Dimensions: `Q` queries of a recording, `K` windows of one query, `W` frames of a curve.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from collap.data.guarded_reading import load_audio
from collap.data.records import FIRST, LAST
from collap.data.rows import audio_source, named_audio, row_name
from collap.data.sections import section_times
from modeling_collap.localization_collap import SPAN_LEVEL
from processing.embed_audio import embed_audio

from .report import plot_localization
from .results import command_line
from .temporal_metrics import Measured, best_iou, covered_seconds, overlaps_at_chosen_level, window_iou
from .temporal_places import LEVELS, Places, by_paper_score, by_sentences, loudest_second, sentence_embeds
from .temporal_report import to_markdown, write_temporal_report
from .temporal_rows import open_model, open_rows, sections_of_row
from .temporal_songs import RATE, wav_bytes

RECALLS = (0.5, 0.7)  # overlaps from which a span is found
HIT_SECONDS = 3.0  # within which a point in time is found, as in MusTBench
DRAWN = 6  # queries of the first recording
ALONE, PAPER = "a query alone", "the paper's score"  # by what a query is found; the second is a control


@dataclass(frozen=True)
class Query:
    """Hold what is asked for, and when it is heard: windows (K, 2) in seconds, or one point in time.

    Attributes:
        kind: "span", or [`FIRST`] or [`LAST`] of a point, which is the start and end of its window.
    """

    text: str
    kind: str
    windows: np.ndarray


@dataclass(frozen=True)
class Recording:
    """Hold a recording of a data set, path or bytes of its file, with its queries and its name in messages."""

    audio: str | bytes
    queries: list[Query]
    name: str = "row 0"


@dataclass
class Moments:
    """Hold the recordings that are measured, how many are left out, and why the first of these is."""

    recordings: list[Recording] = field(default_factory=list)
    left_out: int = 0
    reason: str | None = None


def read_queries(sections: Iterable[dict]) -> list[Query]:
    """Return the queries of a recording, each text once for every kind, in the order in which they come.

    Raises:
        ValueError: there are none, or a section has no times or ends before it starts.
    """
    found: dict[tuple[str, str], list] = {}
    for section in sections:
        is_point = section["start"] is not None and section["start"] == section["end"]
        if is_point and section["label"] not in (FIRST, LAST):
            raise ValueError(f"{section!r} is a point in time; expected the label {FIRST!r} or {LAST!r}")
        times = (section["start"],) * 2 if is_point else section_times([section], "section")[0]
        text = " ".join((section.get("text") or section["label"]).split())
        found.setdefault((text, section["label"] if is_point else "span"), []).append(times)
    if not found:
        raise ValueError("has no section")
    return [Query(text, kind, np.array(windows, np.float64)) for (text, kind), windows in found.items()]


def open_moments(options) -> Moments:
    """Open the recordings of a data set that have queries.

    Raises:
        ValueError: there are none, or there is no column or folder of sections.
    """
    rows, found = open_rows(options), Moments()
    for row in range(len(rows)):
        name = row_name(row, named_audio(rows, row, options.audio_column))
        try:
            queries = read_queries(sections_of_row(rows, row, options))
            found.recordings.append(Recording(audio_source(rows[row][options.audio_column]), queries, name))
        except (OSError, ValueError) as error:
            found.left_out += 1
            found.reason = found.reason or f"{name}: {error}"
        if len(found.recordings) == options.songs:
            break
    if not found.recordings:
        raise ValueError(
            f"{options.dataset}: no recording of {options.split!r} has sections"
            + (f"; {found.reason}" if found.reason else "")
        )
    return found


def within(queries: list[Query], seconds: float) -> list[Query]:
    """Keep what lies in a recording: windows end with it, and a query without any is left out."""
    kept = []
    for query in queries:
        windows = query.windows.clip(max=seconds)  # (K, 2)
        windows = windows[query.windows[:, 1] <= seconds] if query.kind != "span" else windows
        windows = windows[windows[:, 0] < windows[:, 1]] if query.kind == "span" else windows
        if len(windows):
            kept.append(Query(query.text, query.kind, windows))
    return kept


def point_of(curve: np.ndarray, times: np.ndarray, kind: str, level: float = SPAN_LEVEL) -> float:
    """Return when a curve (W,) is first, or last, above a level of its range: seconds.

    Args:
        times: (W, 2) start and end of every frame.
        kind: [`FIRST`]: the start of the first such frame; [`LAST`]: the end of the last.
    """
    high = np.flatnonzero(curve >= curve.min() + level * (curve.max() - curve.min()))
    return float(times[high[0], 0] if kind == FIRST else times[high[-1], 1])


def point_chance(point: float, seconds: float) -> float:
    """Return the probability that a random time of a recording is near enough to a point."""
    return (min(point + HIT_SECONDS, seconds) - max(point - HIT_SECONDS, 0)) / seconds


def window_around(centre: float, length: float, seconds: float) -> np.ndarray:
    """Return a window (2,) of a length around a point, moved into a recording."""
    start = np.clip(centre - length / 2, 0, max(seconds - length, 0))
    return np.array([start, min(start + length, seconds)])


def figure_of(name: str) -> str:
    """Return how a figure is called that something finds, with a place for what it is of."""
    return f"{'control: ' if name == PAPER else ''}{{}}, {name}"


class MomentMeasure:
    """Measure recordings one after the other, and then, with levels that other recordings chose, all of them again."""

    def __init__(self, seed: int):
        self.found, self.seed = Measured(), seed
        self.kept: dict[str, list[tuple]] = {}  # by whose curves: recording, curves, times, windows and chances

    def add(self, index: int, queries: list[Query], named: dict[str, Places], samples: np.ndarray) -> None:
        """Measure the queries of a recording.

        Args:
            index: of the recording.
            named: what found them: curves (Q, W), each by its name; the first is the model's own way.
            samples: (M,) at 16 kHz.
        """
        seconds = len(samples) / RATE
        generator = np.random.default_rng((self.seed, index, 5))
        guesses = {
            "at random": generator.uniform(0, seconds),
            "at the loudest second": loudest_second(samples),
            "at the middle": seconds / 2,
        }
        spans = [place for place, query in enumerate(queries) if query.kind == "span"]
        if spans:
            windows = [queries[place].windows for place in spans]
            draws = generator.uniform(0, seconds, 100)
            chances = self._add_guesses(index, windows, guesses, draws, seconds)
            for name, places in named.items():
                curves = places.curves[spans]  # (Q of spans, W)
                self._add_spans(index, name, Places(curves, places.times, places.spans[spans]), windows, chances)
        for place, query in enumerate(queries):
            if query.kind != "span":
                self._add_point(index, query, place, named, guesses, seconds)

    def _add_guesses(self, index, windows, guesses, draws, seconds) -> dict[str, np.ndarray | float]:
        """Add what guesses that do not hear the query give; return what chance gives, by the name of the figure."""
        length = float(np.mean(np.diff(np.concatenate(windows))))
        shares = np.array([covered_seconds(own) / seconds for own in windows])  # (Q,)
        drawn = np.array([window_around(one, length, seconds) for one in draws])  # (draws, 2)
        random = np.stack([best_iou(drawn, own) for own in windows], axis=1)  # (draws, Q)
        chances = {"pointing": shares, "mean IoU": random.mean(0)}
        chances |= {f"IoU at least {level}": (random >= level).mean(0) for level in RECALLS}
        for name, point in guesses.items():
            inside = [bool(((own[:, 0] <= point) & (point < own[:, 1])).any()) for own in windows]
            self.found.add(f"control: pointing {name}", index, inside, shares)
            overlaps = window_iou([window_around(point, length, seconds)] * len(windows), windows)
            self._add_overlaps(index, f"control: {{}}, {name}", overlaps, chances)
        whole = window_iou([[0.0, seconds]] * len(windows), windows)
        self._add_overlaps(index, "control: {}, the whole recording", whole, chances)
        return chances

    def _add_overlaps(self, index, name: str, overlaps: np.ndarray, chances: dict) -> None:
        self.found.add(name.format("mean IoU"), index, overlaps, chances["mean IoU"])
        for level in RECALLS:
            figure = f"IoU at least {level}"
            self.found.add(name.format(figure), index, overlaps >= level, chances[figure])

    def _add_spans(self, index, name: str, places: Places, windows, chances) -> None:
        """Measure where curves peak, and the runs around their peaks."""
        peaks = places.times.mean(1)[places.curves.argmax(1)]  # (Q,)
        inside = [((own[:, 0] <= peak) & (peak < own[:, 1])).any() for peak, own in zip(peaks, windows, strict=True)]
        self.found.add(figure_of(name).format("pointing"), index, inside, chances["pointing"])
        self._add_overlaps(index, figure_of(name), window_iou(places.spans, windows), chances)
        self.kept.setdefault(name, []).append((index, places.curves, places.times, windows, chances))

    def _add_point(self, index, query: Query, place: int, named: dict[str, Places], guesses, seconds: float) -> None:
        """Measure a query for a point in time."""
        point = query.windows[0, 0]
        chance = point_chance(point, seconds)
        figure = f"{query.kind} within {HIT_SECONDS:g} s"
        for name, places in named.items():
            found = point_of(places.curves[place], places.times, query.kind)
            self.found.add(figure_of(name).format(figure), index, [abs(found - point) <= HIT_SECONDS], chance)
        for name, guess in guesses.items():
            self.found.add(f"control: {figure}, {name}", index, [abs(guess - point) <= HIT_SECONDS], chance)

    def finish(self) -> dict[str, tuple[float, float]]:
        """Measure spans whose level was chosen on the other half of the recordings; return the levels."""
        chosen = {}
        for name, kept in self.kept.items():
            if len(kept) < 2:
                continue
            indexes, curves, times, windows, chances = zip(*kept, strict=True)
            overlaps, chosen[name] = overlaps_at_chosen_level(curves, times, windows, LEVELS, window_iou)
            for index, values, chance in zip(indexes, overlaps, chances, strict=True):
                self._add_overlaps(index, f"{figure_of(name)}, level of other songs", values, chance)
        return chosen


@torch.no_grad()
def find(model, processor, queries: list[Query], embedded: tuple, end: float) -> dict[str, Places]:
    """Find queries in an embedded recording of `end` seconds, by the model's curves and by the paper's score."""
    sentences = sentence_embeds(model, processor, [query.text for query in queries])  # (Q, D)
    paper = by_paper_score(model, sentences, embedded, end)
    if model.config.alignment == "paper":
        return {ALONE: paper}
    return {ALONE: by_sentences(model, sentences, embedded, end), PAPER: paper}


@dataclass
class Found:
    """Hold what was measured.

    Attributes:
        figures: by name.
        levels: of spans, that other recordings chose.
        outside: queries that lie outside of their recording.
        first: queries of the first recording, and what was found of them.
    """

    figures: dict[str, dict]
    levels: dict[str, tuple[float, float]]
    outside: int
    first: tuple[list[Query], Places] | None


def measure_moments(model, processor, recordings: list[Recording], seed: int) -> Found:
    """Measure a model on recordings; the same ones and seed give the same figures.

    Raises:
        AudioFileError, ValueError: names the row whose audio cannot be used; or no query lies in its recording.
    """
    measure, outside, first = MomentMeasure(seed), 0, None
    for index, recording in enumerate(tqdm(recordings, desc="recordings", disable=None)):
        try:
            samples = load_audio(recording.audio, RATE)
            queries = within(recording.queries, len(samples) / RATE)
            outside += len(recording.queries) - len(queries)
            if not queries:
                continue
            embedded = embed_audio(model, processor.feature_extractor, wav_bytes(samples))
        except ValueError as error:  # AudioFileError among them
            raise type(error)(f"{recording.name}: {error}") from error
        named = find(model, processor, queries, embedded, len(samples) / RATE)
        measure.add(index, queries, named, samples)
        first = first or (queries, named[ALONE])
    if first is None:
        raise ValueError(f"all {outside} queries are heard after the end of their recording; is the audio cut?")
    levels = measure.finish()
    return Found(measure.found.figures(seed), levels, outside, first)


def draw(path, queries: list[Query], places: Places, title: str) -> None:
    """Draw the curves of the first queries, where they are found as bars, and their true windows."""
    drawn = [place for place, query in enumerate(queries) if query.kind == "span"][:DRAWN]
    if not drawn:
        return
    sections = [
        {"label": queries[place].text, "start": start, "end": end}
        for place in drawn
        for start, end in queries[place].windows.tolist()
    ]
    curves = {queries[place].text: places.curves[place] for place in drawn}
    plot_localization(path, places.times.mean(1), curves, sections, title, spans=places.spans[drawn])


def run(options) -> int:
    """Do `collap evaluate --suite temporal --parts moments`; return its exit code."""
    opened = open_moments(options)
    if opened.left_out:
        print(f"{opened.left_out} recordings are left out; the first: {opened.reason}", file=sys.stderr)
    model, processor, facts = open_model(options)
    found = measure_moments(model, processor, opened.recordings, options.seed)
    if found.outside:
        print(f"{found.outside} queries are heard after the end of their recording, and left out", file=sys.stderr)
    results = {**facts, "songs": len(opened.recordings), "songs_left_out": opened.left_out}
    results |= {"queries_outside": found.outside, "command": command_line(), "levels": found.levels}
    results["figures"] = found.figures
    write_temporal_report(results, options.output_dir)
    title = f"{opened.recordings[0].name}: queries over time; bars: where each is found"
    draw(options.output_dir / "temporal.png", *found.first, title)
    print(to_markdown(results))
    return 0
