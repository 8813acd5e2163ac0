"""Find tracks that are the same recording, and tracks that an evaluation set holds too.

Exact copies have one digest. Near ones, in another codec, level or rate, or cut at an end, are found by fingerprints
(`collap.data.fingerprints`): a few frames of every track are indexed, chosen by their value and so at whatever hop a
track begins, and pairs that share some are compared bit by bit over all that they have in common. Another tempo, key or
performance is another recording.

Of 5 minutes a fingerprint takes 52 kB, which lie in a temporary file, and some 18 kB of the index in memory: 50,000
tracks take 2.6 GB of disk and 0.9 GB of memory, three times that while it is sorted.

Dimensions: `F` frames of 23 ms of a fingerprint, `I` frames of the index, `N` samples.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from collap.data.catalogue import Request, all_splits, find_entry
from collap.data.catalogue.named import SETS
from collap.data.catalogue.named_sets import read_records
from collap.data.fingerprints import HOP, MAX_ERROR, MIN_FRAMES, FingerprintIndex, bit_error, fingerprint
from collap.data.fingerprints import RATE as PRINT_RATE
from collap.data.guarded_reading import Source
from collap.data.leaks import fingerprints
from collap.data.records import youtube_source
from collap.data.rows import audio_source, row_name
from collap.data.sources import open_dataset
from processing.decode_audio import AudioFileError
from processing.resample_audio import resample

from .tracks import RATE, Track

SAMPLED_BITS = 3  # one value of 8 is indexed
SCATTER = np.uint32(2654435761)  # Knuth's multiplier: which values are chosen has nothing to do with their bits
COMMON_VALUE = 64  # a value that more frames of the index have says nothing
MIN_VOTES = 2  # equal frames at one offset, for a pair to be compared
CANDIDATES = 3  # offsets of a pair that are compared
MIN_SHARED = 0.5  # of the shorter track
VIDEO_FILES = (re.compile(r".*\[(?P<video>[\w-]{11})\]"), re.compile(r"Y?(?P<video>[\w-]{11})(?:_[\d.]+)*"))


def track_fingerprint(samples: np.ndarray) -> np.ndarray:
    """Return the fingerprint (F,) uint32 of a track's samples (N,) at `tracks.RATE`."""
    pieces = resample(iter([(0, samples)]), RATE, PRINT_RATE, 0)
    return fingerprint(np.concatenate([np.zeros(0, np.float32), *pieces]))


def is_sound(bits: np.ndarray) -> np.ndarray:
    """Return (F,) bool: whether frames of a fingerprint are of sound; of digital silence all bits are alike."""
    return (bits != 0) & (bits != 2**32 - 1)


def exact_duplicates(digests: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return the id of the first track of the same content for every later one; None is no content."""
    first: dict[str, str] = {}
    found = {}
    for name, digest in digests:
        if digest is not None and first.setdefault(digest, name) != name:
            found[name] = first[digest]
    return found


class _Prints:
    """Keep fingerprints in a temporary file, to be read one at a time."""

    def __init__(self):
        self.file = tempfile.TemporaryFile()  # noqa: SIM115, which goes with this object
        self.starts = [0]

    def add(self, bits: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(bits, np.uint32).tobytes())
        self.starts.append(self.starts[-1] + len(bits))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, track: int) -> np.ndarray:
        start, stop = self.starts[track : track + 2]
        self.file.seek(4 * start)
        return np.frombuffer(self.file.read(4 * (stop - start)), np.uint32)


class SampledIndex:
    """Find the tracks that share frames with another: values (I,), the tracks they are of, and their frames.

    Args:
        prints: fingerprint (F,) of each track.
    """

    def __init__(self, prints: "_Prints | Sequence[np.ndarray]"):
        chosen = [_sampled(prints[track]) for track in range(len(prints))]
        sizes = [len(frames) for frames, _ in chosen]
        owners = np.repeat(np.arange(len(chosen), dtype=np.int32), sizes)  # (I,)
        frames = np.concatenate([np.zeros(0, np.int32), *(frames for frames, _ in chosen)])
        values = np.concatenate([np.zeros(0, np.uint32), *(values for _, values in chosen)])
        del chosen
        order = np.argsort(values, kind="stable")
        self.values, self.owners, self.frames = values[order], owners[order], frames[order]

    def candidates(self, track: int, bits: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield earlier tracks and the offsets at which they share most frames with the fingerprint of a track.

        An offset is the frame of the track at which frame 0 of the earlier one lies.
        """
        frames, values = _sampled(bits)
        first, stop = (np.searchsorted(self.values, values, side=side) for side in ("left", "right"))
        counts = np.where(stop - first <= COMMON_VALUE, stop - first, 0)
        places = np.repeat(first, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        earlier = self.owners[places] < track
        offsets = (np.repeat(frames, counts) - self.frames[places])[earlier]
        pairs, votes = np.unique(np.stack([self.owners[places][earlier], offsets]), axis=1, return_counts=True)
        for owner in np.unique(pairs[0, votes >= MIN_VOTES]):
            own = np.flatnonzero(pairs[0] == owner)
            best = own[np.argsort(-votes[own], kind="stable")[:CANDIDATES]]
            yield from ((int(owner), int(pairs[1, place])) for place in best if votes[place] >= MIN_VOTES)


def _sampled(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames (I,) int32 that the index has of a fingerprint (F,), and their values; of a run the first."""
    is_chosen = (bits * SCATTER) >> np.uint32(32 - SAMPLED_BITS) == 0
    is_new = np.append(True, bits[1:] != bits[:-1])[: len(bits)]
    frames = np.flatnonzero(is_chosen & is_new & is_sound(bits)).astype(np.int32)
    return frames, bits[frames]


def shared_error(one: np.ndarray, other: np.ndarray, offset: int) -> float | None:
    """Return the share of bits that differ where two fingerprints (F,) overlap; None if that is too little to tell.

    Args:
        offset: frame of `other` at which frame 0 of `one` lies.
    """
    start, stop = max(0, -offset), min(len(one), len(other) - offset)
    if stop - start < MIN_SHARED * min(len(one), len(other)):
        return None
    one, other = one[start:stop], other[start + offset : stop + offset]
    sound = is_sound(one) & is_sound(other)
    return bit_error(one[sound], other[sound]) if sound.sum() >= max(MIN_FRAMES, len(one) / 4) else None


def find_duplicates(prints: Iterable[tuple[str, np.ndarray]]) -> dict[str, str]:
    """Find tracks that are the recording of an earlier one.

    Args:
        prints: id and fingerprint (F,) of tracks, of which the first of a recording is kept; read once.

    Returns:
        Id of a track that is not to be kept -> `ID, 12.3 % of bits differ, begins 10.0 s later`: the kept one.
    """
    names, kept = [], _Prints()
    for name, bits in prints:
        names.append(name)
        kept.add(bits)
    index, found = SampledIndex(kept), {}
    for track, name in enumerate(names):
        bits, matches = kept[track], []
        for other, offset in index.candidates(track, bits):
            # Not with one that is left out: a medley of two songs would make one of them.
            error = None if names[other] in found else shared_error(kept[other], bits, offset)
            if error is not None and error < MAX_ERROR:
                matches.append((other, error, -offset * HOP / PRINT_RATE))
        if matches:
            other, error, seconds = min(matches)
            when = f", begins {abs(seconds):.1f} s {'later' if seconds > 0 else 'earlier'}" if round(seconds, 1) else ""
            found[name] = f"{names[other]}, {error:.1%} of bits differ{when}"
    return found


class EvaluationSets:
    """Hold what evaluation sets are told by: the sources of their recordings, and fingerprints of them.

    Args:
        names: data sets as `open_dataset` takes them, all their splits; `NAME:FOLDER` has sources too. Their sound
            takes 170 bytes a second, and 24 in memory for every frame of 23 ms.

    Attributes:
        compared: name -> how many recordings it has (`listed`), of how many tracks are told by their source (`by_id`),
            and of how many files by their sound (`by_sound`). Those that are not there or cannot be decoded are not
            among the last.

    Raises:
        FileNotFoundError, ValueError: as `open_dataset`.
    """

    def __init__(self, names: Sequence[str]):
        self.sources: dict[str, str] = {}  # source of a recording -> what it is called
        self.compared: dict[str, dict[str, int]] = {}
        prints = []
        for name in names:
            self.compared[name] = {"listed": 0, "by_id": 0}
            found = list(fingerprints(self._recordings(name)))
            self.compared[name]["by_sound"] = len(found)
            prints += found
        self.index = FingerprintIndex(prints) if prints else None

    def _recordings(self, name: str) -> Iterator[tuple[str, tuple[Source, ...]]]:
        """Yield what the recordings of a set are called, and their audio; note their sources, and count them."""
        entry, request = find_entry(Request(name))
        count = self.compared[name]
        if entry.name not in SETS:
            for called in _rows_of(name):
                count["listed"] += 1
                yield called
            return
        folder, records = read_records(SETS[entry.name], request)
        for record in records:
            called = f"{name} {record.id}"
            count["listed"] += 1
            if record.source is not None:
                count["by_id"] += 1
                self.sources.setdefault(record.source, called)
            yield called, tuple(map(folder.whole_path, record.files))

    def held(self, track: Track, bits: np.ndarray | None = None) -> str | None:
        """Return which recording a track is, or has a passage of 3 s of; None if there is none.

        Args:
            bits: fingerprint (F,) of the track; None to compare ids alone.
        """
        for source in filter(None, (track.source, _source_of_file(track.audio))):
            if source in self.sources:
                return f"{self.sources[source]} is {source} too"
        matches = self.index.matches(track.id, bits) if self.index and bits is not None and len(bits) else ()
        best = min(matches, key=lambda match: (match.error, match.name), default=None)
        return best and f"{best.name} is heard from {best.other_start:.1f} s on, {best.error:.1%} of bits differ"


def _source_of_file(audio: str) -> str | None:
    """Return the YouTube video that a file is called after, as yt-dlp and cutting tools do; None if it is not."""
    stem = os.path.splitext(os.path.basename(audio.partition("#t=")[0]))[0]
    match = next((match for form in VIDEO_FILES if (match := form.fullmatch(stem))), None)
    return match and youtube_source(match["video"])


def _rows_of(source: str) -> Iterator[tuple[str, tuple[Source, ...]]]:
    """Yield name and audio of all rows of a data set without a name of its own."""
    for split in all_splits(Request(source)):
        for row, audio in enumerate(open_dataset(source, split, text_column=None).select_columns("audio")):
            files: tuple[Source, ...] = ()
            with contextlib.suppress(AudioFileError):  # there is none
                files = (audio_source(audio["audio"]),)
            yield f"{source} {split} {row_name(row, audio['audio'])}", files
