"""Search an index of music: `collap search`.

    collap search "a soft piano alone, later drums and strings" --index music.index
    collap search "distorted guitars" --not "a singer" --filter "year >= 1990 and genre ~ rock" --index music.index
    collap search --like "Artist/Album/03 Song.flac@1:23" --index music.index --m3u > like_this.m3u8

Results go to stdout; what is to be said about them, and errors, to stderr.
"""

import argparse
import sys

from .index import TrackIndex
from .outputs import FORMATS


def run(options: argparse.Namespace) -> int:
    """Do `collap search`; return its exit code, 1 if nothing was found."""
    if options.curve and options.format != "json":
        raise ValueError("--curve is what --json prints; expected both")
    index = TrackIndex.open(options.index, options.model, options.device or "cpu", options.engine)
    results = index.search(
        options.text,
        options.k,
        filters=options.filter,
        not_text=options.not_text,
        like=options.like,
        min_seconds=options.min_seconds,
        max_seconds=options.max_seconds,
        mode=options.mode,
        candidates=options.candidates,
        curve=options.curve,
        collapse=not options.all_copies,
    )
    for note in results.notes:
        print(f"note: {note}", file=sys.stderr)
    query = options.text if options.text is not None else f"like {options.like}"
    sys.stdout.write(FORMATS[options.format](results, query))
    return 0 if results else 1
