"""Times real time at which songs are composed, rendered and written as FLAC, on one core.

    python -m benchmarks.render_songs
    python -m benchmarks.render_songs --songs 40 --repeats 9

Every repeat is the same songs from an empty note cache, in processor time, which other programs on the machine change
less than they change time by the clock. The median is what to expect, the minimum the worst of the repeats.
"""

import argparse
import io
import statistics
import time

import numpy as np
import soundfile

from collap.corpora.synthetic import songs as synthetic_songs
from collap.corpora.synthetic.songs import compose_song, render_song

SAMPLING_RATE = 16_000


def real_time_factor(num_songs: int) -> float:
    """Seconds of music for each second of the processor."""
    synthetic_songs._render_note.cache_clear()
    started, music = time.process_time(), 0.0
    for number in range(num_songs):
        song = compose_song(f"song-{number}", seed=1)
        samples = (render_song(song, SAMPLING_RATE) * 32767).astype(np.int16)
        soundfile.write(io.BytesIO(), samples, SAMPLING_RATE, format="FLAC")
        music += song.seconds
    return music / (time.process_time() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--songs", type=int, default=12, help="songs of 1 to 5 minutes in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    factors = [real_time_factor(options.songs) for _ in range(options.repeats)]
    print(
        f"{options.songs} songs, {options.repeats} repeats: {statistics.median(factors):.0f} times real time (median), "
        f"{min(factors):.0f} (minimum)"
    )


if __name__ == "__main__":
    main()
