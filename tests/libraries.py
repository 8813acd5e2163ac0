"""Libraries of music as people have them: six formats with tags, in folders, of rendered songs."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from audio_matrix import encode

from benchmarks.library import write_tags
from benchmarks.search_library import SyntheticSongs, draw_tracks
from collap.cli import main

KINDS = {
    "wav": "wav, 16 bit",
    "flac": "flac (libFLAC)",
    "mp3": "mp3 (libmp3lame)",
    "ogg": "ogg, Vorbis (libsndfile)",
    "opus": "ogg, Opus",
    "m4a": "m4a, AAC",
}


def tags_of(number: int) -> dict[str, str]:
    """The tags of song `number`."""
    return {
        "title": f"Lied Nº {number}",
        "artist": f"Künstler {number % 3}",
        "album": f"Album {number % 2}",
        "date": f"{1990 + number}-05-01",
        "genre": ("Jazz", "Rock", "Folk")[number % 3],
    }


def make_library(folder: Path, songs: list[Path], kinds: tuple[str, ...] = tuple(KINDS)) -> Path:
    """Write songs into a folder for each artist, the formats taking turns."""
    for number, song in enumerate(songs):
        samples, rate = soundfile.read(song, dtype="float32", always_2d=True)  # (N, C)
        suffix = kinds[number % len(kinds)]
        if suffix == "opus":  # it has one rate
            samples, rate = np.repeat(samples, 48_000 // rate, axis=0), 48_000
        path = folder / tags_of(number)["artist"] / f"{number:02d} {song.stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert encode(KINDS[suffix], path, samples, rate)
        write_tags(path, tags_of(number))
    return folder


def paths_of(folder: Path) -> list[str]:
    """The names of all files in a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def index(*arguments: object) -> int:
    """`collap index` in this process; its exit code."""
    return main(["index", *map(str, arguments)])


def index_process(log: Path, *arguments: object, before: Callable[[], None] = bool) -> multiprocessing.Process:
    """`collap index` in another process, see `command_process`."""
    return command_process(log, "index", *arguments, before=before)


def command_process(log: Path, *arguments: object, before: Callable[[], None] = bool) -> multiprocessing.Process:
    """A `collap` command in another process, forked because importing torch takes longer than the run.

    Args:
        log: file of its output.
        before: called in that process first.
    """

    def work() -> None:
        with log.open("a") as output:
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
        before()
        os._exit(main(list(map(str, arguments))))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def drawn_songs(width: int, count: int, seed: int) -> SyntheticSongs:
    """Songs that were never heard: `tokens` of each, 32 s of them, a fifth with many sections; and queries for them."""
    songs = SyntheticSongs(width, seed=seed)
    songs.tokens = list(draw_tracks(songs, count, 200, many=0.2))
    return songs
