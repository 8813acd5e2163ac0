"""Join samples into batches, and plan which songs meet at which step.

Batches are formed by length and dealt to processes so that none waits for another. Plans are pure functions of (seed,
epoch), so that every process knows the plan of all, and a run resumes at any step. The rows of a step do not depend on
the number of processes.

Letters: P processes, A songs of a step over all processes, n = A / P songs of one process; B texts, Q sentences and L
tokens of a text, T audio tokens of a song, M music + speech width.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from processing.feature_extraction_collap import pad_audio_features

from .apart import keep_apart, songs_too_many
from .samples import AudioTextSample

MIN_SEEN = 100  # songs of a stream before a share of bad ones says anything


def _join_songs(audios: list[dict[str, torch.Tensor]]) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Return the songs' lengths and, for each input, the tensors of all songs in one, along the first dimension."""
    lengths = [len(next(iter(audio.values()))) for audio in audios]
    return lengths, {name: torch.cat([audio[name] for audio in audios]) for name in audios[0]}


def _split_songs(lengths: list[int], joined: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Undo [`_join_songs`], without a copy."""
    songs = zip(*(tensor.split(lengths) for tensor in joined.values()), strict=True)
    return [dict(zip(joined, song, strict=True)) for song in songs]


@dataclass
class AudioTextBatch:
    """Hold songs with their texts, nothing of the audio padded yet; text i describes audio i.

    Args:
        text: input_ids and attention_mask, (B, L), or (B, Q, L) of texts by sentences; where the samples have them,
            sentence_spans (B, Q, 2) in seconds, NaN where not known, and sentence_orders (B, Q), -1 where none.
        audios: one dict for each song, all of one kind: `waveform` (samples,); or the five features of
            `CoLLAPFeatureExtractor.segment_features`; or `fused_tokens` (T, M).
        names: row and file of each song, for messages.
        seconds: of audio of each song.
        skipped: name of each file that could not be read while making this batch, and the reason.
        state: position of the stream after this batch; None for a table.
        song_ids, text_ids: digests (n,) int64 of each one's song and text, by which equal ones are known; or None.
        shared: the audios as they are sent, once they are in shared memory.
    """

    text: dict[str, torch.Tensor]
    audios: list[dict[str, torch.Tensor]]
    names: list[str]
    seconds: list[float]
    skipped: list[tuple[str, str]]
    state: dict | None = None
    song_ids: torch.Tensor | None = None
    text_ids: torch.Tensor | None = None
    shared: tuple | None = None

    def __len__(self) -> int:
        return len(self.audios)

    def __getstate__(self) -> dict:
        # A worker sends every tensor as an open file: one for each input, not for each input of each song.
        return {**self.__dict__, "audios": self.shared or _join_songs(self.audios), "shared": None}

    def __setstate__(self, state: dict):
        self.__dict__.update(state, audios=_split_songs(*state["audios"]))

    def share_memory(self) -> "AudioTextBatch":
        """Move the tensors to shared memory, as the thread of a worker that sends a batch does otherwise: what fails
        there is told to nobody, and the batch is waited for without end.

        Raises:
            OSError: there is no room for them.
        """
        lengths, joined = _join_songs(self.audios)
        ids = [ids for ids in (self.song_ids, self.text_ids) if ids is not None]
        try:
            for tensor in (*joined.values(), *self.text.values(), *ids):
                tensor.share_memory_()
        except RuntimeError as error:
            raise OSError(
                f"a worker cannot hand over its batch ({error}): raise the limits of shared memory (/dev/shm), file "
                "size and open files, or set num_workers 0"
            ) from error
        self.shared = lengths, joined
        self.audios = _split_songs(lengths, joined)
        return self

    def pin_memory(self) -> "AudioTextBatch":
        """Move the tensors to page-locked memory; a `DataLoader` with `pin_memory=True` calls it."""
        lengths, joined = _join_songs(self.audios)
        self.audios = _split_songs(lengths, {name: tensor.pin_memory() for name, tensor in joined.items()})
        self.text = {name: tensor.pin_memory() for name, tensor in self.text.items()}
        return self

    def text_inputs(self, part: slice, device: torch.device | str) -> dict[str, torch.Tensor]:
        """Return all of `text` for the songs in `part`, on `device`."""
        return {name: tensor[part].to(device, non_blocking=True) for name, tensor in self.text.items()}

    def audio_inputs(self, part: slice, device: torch.device | str, feature_extractor) -> dict[str, torch.Tensor]:
        """Return the audio inputs of the songs in `part`, padded to the longest; features are computed on `device`.

        Returns:
            What `CoLLAPFeatureExtractor` returns; or, of songs that are tokens, fused_tokens (A, T, M) float32 and
            audio_token_mask (A, T) bool, True = token.
        """
        songs = [
            {name: tensor.to(device, non_blocking=True) for name, tensor in audio.items()}
            for audio in self.audios[part]
        ]
        if "fused_tokens" in songs[0]:
            tokens = [song["fused_tokens"].float() for song in songs]
            masks = [torch.ones(len(one), dtype=torch.bool, device=one.device) for one in tokens]
            pad = torch.nn.utils.rnn.pad_sequence
            return {"fused_tokens": pad(tokens, batch_first=True), "audio_token_mask": pad(masks, batch_first=True)}
        if "waveform" in songs[0]:
            songs = [feature_extractor.segment_features(song["waveform"]) for song in songs]
        return dict(pad_audio_features(songs))


class AudioTextCollator:
    """Join samples into an [`AudioTextBatch`]; texts are cut to what the text tower reads.

    All inputs of `CoLLAPModel.forward` that a batch's `text` has for its texts are what the processor returns, and, of
    samples that have them, `sentence_spans` and `sentence_orders`.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, samples: list[AudioTextSample]) -> AudioTextBatch:
        text = dict(self.processor(text=[sample.text for sample in samples]))
        if samples[0].spans is not None:
            text["sentence_spans"] = _padded([sample.spans for sample in samples], math.nan)  # (B, Q, 2)
        if samples[0].order is not None:
            text["sentence_orders"] = _padded([sample.order for sample in samples], -1)  # (B, Q)
        batch = AudioTextBatch(
            text=text,
            audios=[sample.audio for sample in samples],
            names=[sample.name for sample in samples],
            seconds=[sample.seconds for sample in samples],
            skipped=[bad for sample in samples for bad in sample.skipped],
            song_ids=_digests([sample.song for sample in samples]),
            text_ids=_digests([_words(sample.text) for sample in samples]),
        )
        return batch if torch.utils.data.get_worker_info() is None else batch.share_memory()


def _padded(rows: list[list], padding: float) -> torch.Tensor:
    """Return lists of Q numbers, or of Q pairs, as one tensor (B, Q) or (B, Q, 2)."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, padding)


def _words(text: str | list[str]) -> str:
    return text.strip() if isinstance(text, str) else "\n".join(text)


def _digests(names: list[str | None]) -> torch.Tensor | None:
    """Return what equal names have in common, (n,) int64; None if one has no name."""
    if None in names:
        return None
    digests = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names]
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])  # (n,)


def length_buckets(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """Form batches of songs of about one length, in random order.

    Args:
        lengths: (n,), in any unit; equal ones are shuffled. n is a multiple of `batch_size`.

    Returns:
        (n / batch_size, batch_size) indexes into `lengths`, each once.
    """
    order = generator.permutation(len(lengths))
    order = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
    return generator.permutation(order.reshape(-1, batch_size))  # (n / batch_size, batch_size)


def padding_share(segments: np.ndarray) -> float:
    """Return the share of silence in batches padded to the longest song of each process.

    Args:
        segments: (steps, P, n) real segments of every song.

    Returns:
        `1 - real / padded`, where a process's padded batch holds `n * max` segments.
    """
    padded = segments.max(axis=-1).sum() * segments.shape[-1]
    return float(1 - segments.sum() / padded)


def idle_share(segments: np.ndarray) -> float:
    """Return the share of all processes' time spent waiting for the slowest one, which ends each step.

    Args:
        segments: (steps, P, n) real segments of every song; they alone are encoded, so a process's time for a step is
            taken to be their sum.

    Returns:
        `1 - sum of costs / (P * sum of the steps' largest costs)`.
    """
    cost = segments.sum(axis=-1)  # (steps, P)
    return float(1 - cost.sum() / (cost.max(axis=1).sum() * cost.shape[1]))


def epoch_plan(
    num_rows: int,
    batch_size: int,
    seed: int,
    epoch: int,
    segments: Sequence[int] | None = None,
    pool_batches: int = 64,
    songs: np.ndarray | None = None,
) -> np.ndarray:
    """Plan the rows of every step of an epoch, each row at most once; a random rest that fills no batch is left out.

    Args:
        segments: of every row, to form batches of songs of about one length: random pools of `pool_batches` batches are
            sorted and cut. None for plain random batches.
        songs: (num_rows,) int, equal for rows of one song, which then meet in no batch, where that can be. None where
            each row is a song.

    Returns:
        (steps, A) rows.
    """
    generator = np.random.default_rng((seed, epoch))
    steps = num_rows // batch_size
    rows, rest = np.split(generator.permutation(num_rows), [steps * batch_size])
    if segments is None:
        lengths, plan = np.zeros(num_rows), rows.reshape(steps, batch_size)  # (steps, A)
    else:
        lengths, pool_rows = np.asarray(segments), pool_batches * batch_size
        pools = [rows[start : start + pool_rows] for start in range(0, len(rows), pool_rows)]
        plan = np.concatenate([pool[length_buckets(lengths[pool], batch_size, generator)] for pool in pools])
    return plan if songs is None else keep_apart(plan, rest, songs, lengths, generator)  # (steps, A)


def song_numbers(songs: Sequence[str]) -> np.ndarray | None:
    """Number the songs of rows, (rows,) int; None if no song has several."""
    known: dict[str, int] = {}
    numbers = np.fromiter((known.setdefault(song, len(known)) for song in songs), np.int64, len(songs))
    return numbers if len(known) < len(numbers) else None


def _warn_of_crowds(crowded: int, places: int):
    """Warn once where songs must meet themselves."""
    if crowded:
        warnings.warn(
            f"at least {crowded} of {places} places of an epoch's batches are taken by a song that is in its batch "
            "already, for want of other songs: they are not contrasted with one another; lower batch_size",
            stacklevel=3,
        )


def deal_rows(plan: np.ndarray, num_processes: int, segments: Sequence[int] | None = None) -> np.ndarray:
    """Split the rows of every step over processes, with nearly equal sums of segments if those are given.

    Args:
        plan: (steps, A) rows; P divides A.

    Returns:
        (steps, P, n) rows.
    """
    steps, songs = len(plan), plan.shape[1] // num_processes
    if segments is None:
        return plan.reshape(steps, num_processes, songs)  # (steps, P, n)
    order = np.argsort(-np.asarray(segments)[plan], axis=1, kind="stable")
    rounds = np.take_along_axis(plan, order, axis=1).reshape(steps, songs, num_processes)  # (steps, n, P)
    rounds[:, 1::2] = rounds[:, 1::2, ::-1].copy()  # as a snake: whoever got the longest gets the shortest next
    return rounds.swapaxes(1, 2)  # (steps, P, n)


def process_songs(batch_size: int, num_processes: int) -> int:
    """Return n, or raise a ValueError if the processes cannot have equal shares of a batch."""
    if batch_size % num_processes:
        raise ValueError(
            f"batch_size {batch_size} cannot be split evenly over {num_processes} processes; make it a multiple"
        )
    return batch_size // num_processes


def check_processes(accelerator: Accelerator):
    """Raise a ValueError if a launcher has started processes that do not know of one another."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, and Accelerate sees {accelerator.num_processes}: without a GPU set "
            "ACCELERATE_USE_CPU=true in front of the command"
        )


class EpochBatches(torch.utils.data.Sampler[list[int]]):
    """Sample the batches of one process over a table, from any step of any epoch on.

    Args:
        num_rows: of the data set.
        batch_size: A, songs of all processes.
        seed: of the plan of every epoch.
        process_index, num_processes: of this process.
        segments: of every row, see [`epoch_plan`]; None for plain random batches.
        pool_batches: batches whose songs are sorted together.
        songs: what every row's song is told by, see [`epoch_plan`]; None where each row is a song.

    Raises:
        ValueError: if A is no multiple of the processes or larger than the data set, or segments and rows differ.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        segments: Sequence[int] | None = None,
        pool_batches: int = 64,
        songs: Sequence[str] | None = None,
    ):
        process_songs(batch_size, num_processes)
        if num_rows < batch_size:
            raise ValueError(f"the data set has {num_rows} rows, fewer than batch_size {batch_size}; lower batch_size")
        if segments is not None and len(segments) != num_rows:
            raise ValueError(f"found segments of {len(segments)} rows; expected those of all {num_rows}")
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.segments, self.pool_batches = segments, pool_batches
        self.songs = song_numbers(songs) if songs is not None else None
        if self.songs is not None and process_index == 0:
            _warn_of_crowds(songs_too_many(self.songs, len(self), batch_size), len(self) * batch_size)
        self.set_position(0, 0)

    def set_position(self, epoch: int, step: int):
        """Set where the next iteration starts."""
        self.epoch, self.step = epoch, step

    def __len__(self) -> int:
        """Return the steps of a whole epoch."""
        return self.num_rows // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        settings = (self.segments, self.pool_batches, self.songs)
        plan = epoch_plan(self.num_rows, self.batch_size, self.seed, self.epoch, *settings)
        rows = deal_rows(plan[self.step :], self.num_processes, self.segments)  # (steps, P, n)
        yield from rows[:, self.process_index].tolist()


class BadFiles:
    """Count files that cannot be read, and stop a run that has too many of them.

    Args:
        max_share: of bad files that is borne.
        num_rows: of the data set; None for a stream, where the share is that of the songs seen, from the 100th on.
    """

    def __init__(self, max_share: float, num_rows: int | None):
        self.max_share, self.num_rows = max_share, num_rows
        self.reasons: dict[str, str] = {}
        self.seen = 0

    def add(self, skipped: Sequence[tuple[str, str]], num_read: int = 0):
        """Add the bad files met while reading `num_read` good songs (needed for a stream alone).

        Raises:
            ValueError: their share is too large; names the first of them.
        """
        self.seen += num_read + len(skipped)
        self.reasons.update(skipped)
        total = self.num_rows if self.num_rows is not None else self.seen
        share = len(self.reasons) / max(total, 1)
        if share > self.max_share and (self.num_rows is not None or self.seen >= MIN_SEEN):
            first = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:3])
            raise ValueError(
                f"{len(self.reasons)} of {total} files cannot be read ({100 * share:.3g} %, allowed are "
                f"{100 * self.max_share:.3g} %): {first}; repair or remove them, or allow a larger share"
            )

    def state_dict(self) -> dict:
        """Return the counts, ready for JSON."""
        return {"reasons": dict(self.reasons), "seen": self.seen}

    def load_state_dict(self, state: dict):
        self.reasons, self.seen = dict(state["reasons"]), state["seen"]
