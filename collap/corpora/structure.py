"""Find the sections of a track: as annotated, else as a caption names them, else as they sound.

Dimensions: `N` samples.
"""

import itertools
import math
import os
from pathlib import Path

import numpy as np

from collap.data.audio_parts import SPAN
from collap.data.catalogue.named import futga

from .annotations import find_annotation, read_annotation
from .caption_lines import plain
from .captions import read_caption
from .frames import frame_features
from .novelty import alike_sections, edge_seconds, section_edges
from .tracks import RATE, Caption, Section, Track

LEAST_SECONDS = 1.0  # of a section that is cut by the beginning or the end of the track
SLACK_SECONDS = 5.0  # by which an annotation may outlast its file: a fade-out, another encoding
FUTGA_SECONDS = futga.SET.settings["window_seconds"]


def find_sections(
    track: Track, samples: np.ndarray, annotations: Path | None = None, window_seconds: float = FUTGA_SECONDS
) -> tuple[list[Section], str]:
    """Find the sections of a track.

    Sections that the track has already stay as they are, unless there is an annotation file. An annotation file
    speaks of the whole file of the audio, a caption of what was listed of it; their times become those of the track.

    Args:
        samples: (N,) float32, mono at [`RATE`], of what is kept of the track.
        annotations: folder of annotation files; None for those beside the audio alone.
        window_seconds: what the captioner heard of what was listed, which its percents are of; 0 for all of it.

    Returns:
        The sections, ascending, none over another; and what found them: `annotation`, `caption` or `audio`. Those by
        sound cover the track, from an annotation or a caption there may be gaps. The same track has the same sections.

    Raises:
        ValueError: its annotation file is malformed, or of another recording; says which and why.
    """
    (file, listed_start), seconds = _file_and_span_start(track.audio), len(samples) / RATE
    cropped = track.crop[0] if track.crop else 0.0
    path = find_annotation(_names(track, file), file, annotations)
    if path is not None:
        is_whole = track.crop is None and file == track.audio
        return annotated_sections(path, listed_start + cropped, seconds, is_whole), "annotation"
    if track.sections is not None:
        return track.sections, track.boundaries or "annotation"
    for text in track.texts:
        sections = listed_caption(track, text, seconds, window_seconds).sections
        if len(sections) > 1:
            return sections, "caption"
    return audio_sections(samples), "audio"


def listed_caption(track: Track, text: str, seconds: float, window_seconds: float) -> Caption:
    """Read a text that a list has of a track, whose times are those of what was listed.

    Args:
        seconds: of the track, after cropping.
        window_seconds: see [`find_sections`].

    Returns:
        A caption with the times of the track. A text whose sections cannot be read is an overview without sections.
    """
    listed_seconds = track.listed_seconds or seconds
    try:
        caption = read_caption(text, listed_seconds, window_seconds)
    except ValueError:
        return Caption(plain(text))
    offset = track.crop[0] if track.crop else 0.0
    return Caption(caption.overview, kept_sections(caption.sections, offset, seconds))


def _file_and_span_start(audio: str) -> tuple[str, float]:
    """Return the file of an audio, or its path within an archive, and at which second of it the audio begins."""
    match = None if os.path.lexists(audio) else SPAN.fullmatch(audio)
    return (match["path"], float(match["start"])) if match else (audio, 0.0)


def _names(track: Track, path: str) -> tuple[str, ...]:
    """Return what its annotation file may be called: like the track, the audio, or where it is known from."""
    known = (track.source or "").partition(":")[2]
    return tuple(dict.fromkeys(name for name in (track.id, Path(path).stem, known) if name))


def annotated_sections(path: Path, offset: float, seconds: float, is_whole: bool) -> list[Section]:
    """Return the sections of an annotation file as those of a track.

    Args:
        offset, seconds: see [`kept_sections`].
        is_whole: whether the track is all of its file, which the annotation then may not outlast.

    Raises:
        ValueError: see [`find_sections`].
    """
    found = read_annotation(path)
    last = max(one.end for one in found)
    if is_whole and SLACK_SECONDS < last - seconds < math.inf:
        raise ValueError(f"{path}: ends at {last:.1f} s, the audio at {seconds:.1f} s; is it of another recording?")
    sections = kept_sections(found, offset, seconds)
    if not sections:
        raise ValueError(f"{path}: has no section from {offset:.1f} to {offset + seconds:.1f} s, which is the track")
    return sections


def kept_sections(sections: list[Section], offset: float, seconds: float) -> list[Section]:
    """Return sections of a file as those of what is kept of it.

    Args:
        sections: with times in the file.
        offset, seconds: where what is kept begins, and how long it is.

    Returns:
        Sections that lie in it, cut where it ends; without those of which less than a second is left.
    """
    kept = []
    for one in sections:
        start, end = (min(max(edge - offset, 0.0), seconds) for edge in (one.start, one.end))
        is_whole = one.start >= offset and one.end <= offset + seconds
        if end > start and (is_whole or end - start >= LEAST_SECONDS):
            kept.append(Section(start, end, one.label, one.text))
    return kept


def audio_sections(samples: np.ndarray) -> list[Section]:
    """Return the sections of samples (N,) by their sound, labelled `A`, `B`, ... : those that sound alike share one."""
    timbre, chroma = frame_features(samples)
    edges = section_edges(timbre)
    times = [0.0, *(round(edge_seconds(edge), 3) for edge in edges[1:-1]), len(samples) / RATE]
    groups = alike_sections(timbre, chroma, edges)
    pairs = zip(itertools.pairwise(times), groups, strict=True)
    return [Section(start, end, letter(group)) for (start, end), group in pairs]


def letter(number: int) -> str:
    """Return A for 0, Z for 25, AA for 26, and so on."""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)
