"""Stream audio and text: read a data set shard by shard, never whole, as batches for training.

A shard is a file of a data set (or a range of rows of a local folder of files). Every epoch the shards are shuffled and
dealt to the processes, and of each process to its lanes: one lane for each worker. A lane reads its shards one after
the other, a window of rows at a time, and goes on to its next epoch by itself. A position in a lane is (epoch, index of
the shard in the lane's order of that epoch, row of the shard).
"""

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
import numpy as np
import torch
from torch.utils.data import get_worker_info

from processing.decode_audio import AudioFileError

from .apart import keep_apart, songs_too_many
from .batches import AudioTextBatch, AudioTextCollator, length_buckets, song_numbers
from .guarded_reading import header_seconds
from .lengths import num_segments
from .rows import audio_source, content_digest, row_name, song_name
from .samples import MAX_REPLACEMENTS, AudioTextSample, SampleReader, no_replacement
from .shard_rows import HubRows, ParquetRows, TableRows

WINDOW_BATCHES = 16


def stream_state(state: dict | None, batch_state: dict) -> dict:
    """Return the position of a process after one more batch, ready for JSON and `load_state_dict`.

    Args:
        state: the position before; None before the first batch.
        batch_state: `AudioTextBatch.state` of the batch that was trained on.
    """
    state = state or {"batches": 0, "lanes": {}}
    lane = {name: batch_state[name] for name in ("start", "batches", "drawn")}
    return {
        "layout": batch_state["layout"],
        "batches": state["batches"] + 1,
        "lanes": {**state["lanes"], str(batch_state["lane"]): lane},
    }


@dataclass
class _Row:
    """Hold a row of a lane with its position, its audio not decoded."""

    epoch: int
    order: int
    shard: int
    row: int
    example: dict
    song: str

    @property
    def key(self) -> tuple[int, int]:
        return self.shard, self.row

    @property
    def position(self) -> list[int]:
        return [self.epoch, self.order, self.row]


class _Rows:
    """Iterate over rows, and take rows back."""

    def __init__(self, rows: Iterator[_Row]):
        self.rows, self.waiting = rows, deque()

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> _Row:
        return self.waiting.popleft() if self.waiting else next(self.rows)

    def put_back(self, rows: list[_Row]):
        self.waiting.extendleft(reversed(rows))


class AudioTextStream(torch.utils.data.IterableDataset):
    """Give endless [`AudioTextBatch`]es of one process.

    For `DataLoader(stream, batch_size=None, num_workers=num_workers)`.

    Every row comes once in an epoch, and no song twice in a batch, where
    that can be. (Where the rows of a lane are so few that the end of
    an epoch cannot make a batch with other songs from the next one's beginning, those last rows are left out.) A row
    whose file cannot be read is replaced by the one that is next in line. Processes may be at different epochs.

    Each lane holds `window` rows undecoded, with the bytes of their files: 1024 songs of 5 MB take 5 GB.

    Args:
        dataset: from [`open_stream`].
        processor: a [`CoLLAPProcessor`].
        audio_column, text_column: their names.
        batch_size: songs of all processes at a step.
        crop_seconds, seed, features_in_worker: as in `AudioTextDataset`; the same seed gives the same choices.
        process_index, num_processes: of this process. With fewer shards than processes each reads every shard and keeps
            its share of the rows.
        num_workers: of the `DataLoader`.
        window: rows that are shuffled and sorted by length together; None for 16 batches.
        song_column: names the song of every row; None where a song is told by its audio.

    Raises:
        ValueError: if the batch cannot be split over the processes, or a process has fewer shards than workers.
        AudioFileError: while iterating, if no file can be read in place of a bad one.
    """

    def __init__(
        self,
        dataset: ParquetRows | TableRows | HubRows,
        processor,
        audio_column: str,
        text_column: str,
        batch_size: int,
        crop_seconds: float | None = None,
        seed: int = 0,
        features_in_worker: bool = True,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
        window: int | None = None,
        song_column: str | None = None,
    ):
        if batch_size % num_processes:
            raise ValueError(f"batch_size {batch_size} cannot be split evenly over {num_processes} processes")
        self.songs = batch_size // num_processes
        self.window = window if window is not None else WINDOW_BATCHES * self.songs
        if self.window < self.songs:
            raise ValueError(f"window is {self.window} rows; expected at least the {self.songs} of a batch")
        self.num_shards = dataset.num_shards
        self.split_rows = self.num_shards < num_processes
        shards = self.num_shards if self.split_rows else self.num_shards // num_processes
        if num_workers > shards:
            raise ValueError(
                f"num_workers is {num_workers}, but of {self.num_shards} shards a process has only {shards}, and a "
                f"shard is read by one worker: set num_workers to at most {shards}, or write more shards"
            )
        self.dataset, self.collate = dataset, AudioTextCollator(processor)
        self.reader = SampleReader(
            processor.feature_extractor, audio_column, text_column, crop_seconds, seed, features_in_worker
        )
        self.song_column = song_column
        self.process_index, self.num_processes, self.num_workers = process_index, num_processes, num_workers
        self.lanes = max(num_workers, 1)
        self.layout = {
            "seed": seed,
            "batch_size": batch_size,
            "process": process_index,
            "processes": num_processes,
            "lanes": self.lanes,
            "window": self.window,
            "shards": self.num_shards,
        }
        self.state = {"batches": 0, "lanes": {}}

    def load_state_dict(self, state: dict):
        """Go on after the batches that `state` counts; to be called before the `DataLoader` starts its workers.

        Raises:
            ValueError: if the stream was another one; says in what.
        """
        found = state["layout"]
        other = [f"{name} {found.get(name)} (now {now})" for name, now in self.layout.items() if found.get(name) != now]
        if other:
            raise ValueError(f"the stream cannot be resumed, it was saved with {', '.join(other)}; set what it was")
        self.state = state

    def __iter__(self) -> Iterator[AudioTextBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 0)
        if workers != self.num_workers:
            raise ValueError(f"the stream was made for num_workers={self.num_workers}; the DataLoader has {workers}")
        if info is not None:
            fsspec.asyn.reset_lock()  # a lock of the parent's file system would never be released in a worker
        # A DataLoader begins with worker 0, but the batch that is due is that of another lane.
        lane = (worker + self.state["batches"]) % self.lanes
        return self._batches(lane, **self.state["lanes"].get(str(lane), {"start": [0, 0, 0], "batches": 0, "drawn": 0}))

    def _batches(self, lane: int, start: list[int], batches: int, drawn: int) -> Iterator[AudioTextBatch]:
        """Give those of a lane after the first `batches` of the window at `start`, which used `drawn` rows after it."""
        rows = _Rows(self._lane_rows(lane, start))
        while True:
            window = self._read_window(rows)
            start = window[0].position
            plan = self._plan(window, lane)
            for _ in range(drawn):
                next(rows)
            for index in range(batches, len(plan)):
                samples, passed = self._read_samples([window[i] for i in plan[index]], rows)
                drawn += passed
                batch = self.collate(samples)
                position = {"start": start, "batches": index + 1, "drawn": drawn}
                batch.state = {"layout": self.layout, "lane": lane, **position}
                yield batch
            batches, drawn = 0, 0

    def _plan(self, window: list[_Row], lane: int) -> np.ndarray:
        """Return (batches, songs) indexes into a window, batches of about one length."""
        generator = np.random.default_rng((self.reader.seed, self.process_index, lane, *window[0].position))
        lengths = np.array([self._segments(row) for row in window])
        plan, songs = length_buckets(lengths, self.songs, generator), song_numbers([row.song for row in window])
        if songs is None:
            return plan
        if songs_too_many(songs, *plan.shape):
            warnings.warn(
                f"{self.window} rows that are read together hold too few songs for batches of {self.songs} different "
                "ones: equal songs of a batch are not contrasted; shuffle the rows, or raise the window (said once)",
                stacklevel=2,
            )
        return keep_apart(plan, [], songs, lengths, generator)

    def _segments(self, row: _Row) -> int:
        try:
            seconds = header_seconds(audio_source(row.example[self.reader.audio_column]))
        except AudioFileError:  # counted when its batch is due
            return 1
        longest = self.reader.crop_seconds or seconds
        return num_segments(min(seconds, longest), self.reader.feature_extractor.segment_seconds)

    def _read_samples(self, batch: list[_Row], rows: _Rows) -> tuple[list[AudioTextSample], int]:
        """Read the samples of a batch, and tell how many of `rows` were drawn in place of those that cannot be read."""
        samples, skipped, keys, drawn = [], [], {row.key for row in batch}, 0
        songs = {row.song for row in batch}
        songs = songs if len(songs) == len(batch) else set()  # a batch that is crowded anyway
        waiting, failed = deque(batch), 0
        while waiting:
            row = waiting.popleft()
            place = f"{row.row} of shard {row.shard}"
            try:
                samples.append(self.reader.read(row.example, place, row.epoch))
                samples[-1].song = row.song
                failed = 0
                continue
            except AudioFileError as error:
                skipped.append((row_name(place, row.example[self.reader.audio_column]), str(error)))
                failed += 1
            if failed > MAX_REPLACEMENTS:
                raise no_replacement(skipped)
            row, passed = self._next_free(rows, keys, songs, skipped)
            drawn += passed
            keys.add(row.key)
            songs.add(row.song)
            waiting.appendleft(row)
        samples[0].skipped = skipped
        return samples, drawn

    @staticmethod
    def _next_free(
        rows: _Rows, keys: set[tuple[int, int]], songs: set[str], skipped: list[tuple[str, str]]
    ) -> tuple[_Row, int]:
        """Return the next row neither among `keys` nor of one of `songs`, and how many were drawn to find it."""
        last = None
        for drawn, row in enumerate(rows, 1):
            if row.key not in keys and row.song not in songs:
                return row, drawn
            last = row.epoch + 2 if last is None else last
            if row.epoch >= last:  # a whole epoch went by
                break
        raise no_replacement(skipped)

    def _read_window(self, rows: _Rows) -> list[_Row]:
        """Read whole batches of different songs; put back what was read beyond them."""
        for _ in range(2):
            read, keys = [], set()
            for row in rows:
                read.append(row)
                if row.key in keys or len(read) == self.window:
                    break
                keys.add(row.key)
            different = len({row.key for row in read})
            whole = different // self.songs * self.songs
            if whole:
                rows.put_back(read[whole:])
                return read[:whole]
            # Too few rows were left of an epoch before the next one came to the same songs: it starts there.
            rows.put_back([row for row in read if row.epoch != read[0].epoch])
        raise ValueError(
            f"a worker has fewer rows than the {self.songs} songs of a batch: lower batch_size or num_workers, or "
            "train without streaming"
        )

    def _lane_rows(self, lane: int, start: list[int]) -> Iterator[_Row]:
        """Give the rows of one lane from a position on, epoch after epoch."""
        epoch, first_shard, first_row = start
        while True:
            shards, is_empty = self._lane_shards(epoch, lane), (first_shard, first_row) == (0, 0)
            for order in range(first_shard, len(shards)):
                for row, example in self._shard_rows(shards[order], first_row):
                    is_empty = False
                    place = f"{row} of shard {shards[order]}"
                    yield _Row(epoch, order, shards[order], row, example, self._song(example, place))
                first_row = 0
            if is_empty:
                raise ValueError("the stream's shards hold no rows for one of its workers; lower num_workers")
            epoch, first_shard = epoch + 1, 0

    def _song(self, example: dict, place: str) -> str:
        """Return what a row's song is told by: its column, or else its audio."""
        if self.song_column is not None:
            return song_name(example[self.song_column], place, self.song_column)
        audio = example[self.reader.audio_column] or {}
        content = audio.get("bytes") or b""
        return f"{audio.get('path') or content_digest(content)} {len(content)}"

    def _lane_shards(self, epoch: int, lane: int) -> list[int]:
        order = np.random.default_rng((self.reader.seed, epoch)).permutation(self.num_shards)
        own = order if self.split_rows else order[self.process_index :: self.num_processes]
        return own[lane :: self.lanes].tolist()

    def _shard_rows(self, shard: int, first: int) -> Iterator[tuple[int, dict]]:
        """Give (row, example) of this process in a shard, from row `first` on."""
        row = first
        for table in self.dataset.tables(shard, first):
            for index in range(len(table)):
                if not self.split_rows or row % self.num_processes == self.process_index:
                    yield row, table.slice(index, 1).to_pylist()[0]
                row += 1
