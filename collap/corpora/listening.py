"""Take a track through every stage that needs its sound, in a process of its own: it is decoded once.

Dimensions: `N` samples at `tracks.RATE`, `S` sections.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

from collap.data.audio_parts import audio_part
from collap.files import replace_file
from processing.decode_audio import AudioFileError

from .collect import Limits, listen, look_at
from .duplicates import track_fingerprint
from .features import measure_track, record_features
from .state import State
from .structure import FUTGA_SECONDS, find_sections, listed_caption
from .template_captions import TemplateCaptioner
from .tracks import RATE, Caption, Section, Track

WITHOUT_WEIGHTS = ("template", "columns")  # captioners that run where a track is decoded


@dataclass(frozen=True)
class Listening:
    """Set what is done to a track.

    Attributes:
        limits: of what is kept.
        annotations: folder of annotation files, besides those beside the audio.
        captioners: those of `WITHOUT_WEIGHTS` that describe tracks here.
        seed: of their wording.
        window_seconds: what percents in captions that a list has are of.
        embed: whether what is kept of a longer recording is written as a file, to be put into the data set.
        hand_over: whether the samples are returned, for captioners that run elsewhere.
    """

    limits: Limits
    annotations: Path | None = None
    captioners: tuple[str, ...] = ("template",)
    seed: int = 0
    window_seconds: float = FUTGA_SECONDS
    embed: bool = True
    hand_over: bool = False


def hear(track: Track, state: State, settings: Listening) -> tuple[Track, np.ndarray | None]:
    """Look at a track, decode and measure it, find its sections and describe it; or say why it is left out.

    Returns:
        The track; and its samples (N,) if they are to be handed over. Otherwise the track is done, and saved.
    """
    samples = listen(look_at(track, settings.limits), settings.limits)
    if samples is not None:
        try:
            _describe(track, samples, settings)
        except ValueError as error:  # an annotation that is malformed, or of another recording
            track.dropped, samples = f"annotation: {' '.join(str(error).split())}", None
    if samples is not None:
        state.save_print(track.id, track_fingerprint(samples))
        if settings.embed and is_part(track):
            write_flac(state.audio / f"{track.id}.flac", samples)
    if settings.hand_over and samples is not None:
        return track, samples
    state.save(track)
    return track, None


def is_part(track: Track) -> bool:
    """Tell whether a track is a part of its file, and not all of it."""
    if track.crop is not None:
        return True
    with contextlib.suppress(AudioFileError):
        return audio_part(track.audio).stop is not None
    return False


def _describe(track: Track, samples: np.ndarray, settings: Listening) -> None:
    """Fill in sections, measures and captions of a track by its samples (N,)."""
    track.sections, track.boundaries = find_sections(track, samples, settings.annotations, settings.window_seconds)
    sections = track.sections or [Section(0.0, len(samples) / RATE)]
    record_features(track.measures, sections, *measure_track(samples, sections))
    for name in settings.captioners:
        if name == "template":
            track.captions += TemplateCaptioner(settings.seed).describe([track], [samples])
        else:
            track.captions += column_captions(track, len(samples) / RATE, settings.window_seconds)


def column_captions(track: Track, seconds: float, window_seconds: float) -> list[Caption]:
    """Return a caption of each text that a list has of a track, by the schema of all captions: the captioner `columns`.

    Args:
        seconds, window_seconds: see [`listed_caption`].
    """
    captions = [listed_caption(track, text, seconds, window_seconds) for text in track.texts]
    return [replace(one, captioner="columns", licence=None) for one in captions]


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Write samples (N,) at `RATE` as FLAC of 16 bits."""
    scaled = (np.clip(samples, -1, 1) * 32767).round().astype(np.int16)
    replace_file(path, lambda temporary: soundfile.write(temporary, scaled, RATE, format="FLAC", subtype="PCM_16"))


# ---- processes


def _begin() -> None:
    """Make a process of the pool leave Ctrl-C to the one that started it, and end with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def mapping(num_workers: int) -> Iterator[Callable]:
    """Give a function that maps others over items, in order: in so many processes, or here for one.

    At most twice as many items as there are processes are under way, so that memory is bounded.

    Raises:
        OSError: a process was killed; says what to do.
    """
    if num_workers == 1:
        yield map
        return
    context = multiprocessing.get_context("forkserver")  # no process is forked from one with threads
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(num_workers, context, _begin)
    try:
        yield lambda function, items: _in_order(pool, function, items, 2 * num_workers)
    except BaseException as error:
        for child in multiprocessing.active_children():
            child.terminate()  # what is half done is not waited for
        if isinstance(error, BrokenProcessPool):
            raise OSError(
                "a process of the pool was killed, perhaps because memory was at its end; the same command goes on, "
                "with fewer --num_workers if so"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, function: Callable, items: Iterable, most: int) -> Iterator:
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
