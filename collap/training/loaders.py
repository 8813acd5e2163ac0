"""The songs of a run: from a table or a stream, as an endless sequence of batches that starts at any step."""

import signal
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from collap.data.batches import AudioTextBatch, AudioTextCollator, EpochBatches, process_songs
from collap.data.feature_cache import CACHED_COLUMN, cache_features
from collap.data.identity import rows_digest
from collap.data.lengths import num_segments, song_segments
from collap.data.rows import check_column, check_row_texts
from collap.data.samples import AudioTextDataset
from collap.data.sections import SectionSettings
from collap.data.sources import open_dataset, open_stream
from collap.data.stream import AudioTextStream, stream_state
from collap.data.token_cache import TokenCache
from collap.training.settings import DataSettings
from modeling_collap import CoLLAPConfig

MAX_CUT_SECONDS = 5  # to which a section may be rounded


def _until_left(loader: DataLoader) -> Iterator[AudioTextBatch]:
    """Yield the batches of a loader, and end its workers however that ends. An error of a worker would keep them to the
    end of the program, which then waits for them: they outlive its SIGTERM."""
    batches = iter(loader)
    try:
        yield from batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # waits a few seconds for each
            for worker in batches._workers:
                worker.kill()


class TableData:
    """A data set with random access: every epoch is planned from the seed, so a step is a position.

    Attributes:
        identity: what a resumed run must find again.
    """

    def __init__(self, dataset: AudioTextDataset, sampler: EpochBatches, loader_settings: dict, identity: str):
        self.dataset, self.sampler, self.identity = dataset, sampler, identity
        self.num_rows, self.steps_per_epoch = len(dataset), len(sampler)
        self.loader = DataLoader(dataset, batch_sampler=sampler, **loader_settings)

    def batches(self, step: int, state: dict | None) -> Iterator[AudioTextBatch]:
        """Yield the batches of this process from `step` on, epoch after epoch; there is no `state` beyond the step."""
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            self.dataset.set_epoch(epoch)
            self.sampler.set_position(epoch, first)
            yield from _until_left(self.loader)
            step = (epoch + 1) * self.steps_per_epoch

    def state_after(self, state: dict | None, batch: AudioTextBatch) -> None:
        """Return None: a step is a position."""


class StreamData:
    """Shards that are read in order; `state` is the position of this process.

    Attributes:
        identity: None: a stream is not read to be told by its content.
    """

    num_rows = identity = None

    def __init__(self, stream: AudioTextStream, steps_per_epoch: int, loader_settings: dict):
        self.stream, self.steps_per_epoch = stream, steps_per_epoch
        self.loader = DataLoader(stream, batch_size=None, **loader_settings)

    def batches(self, step: int, state: dict | None) -> Iterator[AudioTextBatch]:
        """Yield the batches of this process after `state`, without end."""
        if state is not None:
            self.stream.load_state_dict(state)
        yield from _until_left(self.loader)

    def state_after(self, state: dict | None, batch: AudioTextBatch) -> dict:
        """Return the position after `batch`; JSON-able."""
        return stream_state(state, batch.state)


def _outlive_signals(worker: int):
    """Leave it to the main process to stop a worker.

    A preempted job's processes all get SIGTERM; workers go on until the last step is saved, at most ten minutes: an
    evaluation may come first, and the death of a worker would end the program before it has saved. Ctrl-C reaches all
    processes of a terminal, too.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(600))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _loader_settings(num_workers: int, seed: int, accelerator: Accelerator) -> dict:
    """Return settings of a `DataLoader`; the generator is there so that making an iterator does not draw from the one
    that dropout uses."""
    return {
        "num_workers": num_workers,
        "worker_init_fn": _outlive_signals,
        "pin_memory": accelerator.device.type == "cuda",
        "generator": torch.Generator().manual_seed(seed),
    }


def build_train_data(
    data: DataSettings, batch_size: int, seed: int, model, processor, accelerator: Accelerator
) -> TableData | StreamData:
    """Open the training split for this process.

    Raises:
        ValueError, OSError: from the data set and its settings; name what is wrong with them.
    """
    process_songs(batch_size, accelerator.num_processes)
    # On a GPU features take a fraction of the worker's time and of the transfer; on the CPU workers share the work.
    features_in_worker = accelerator.device.type == "cpu"
    settings = {"crop_seconds": data.crop_seconds, "seed": seed, "features_in_worker": features_in_worker}
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    loader_settings = _loader_settings(data.num_workers, seed, accelerator)
    columns = (data.audio_column, data.text_column)
    if data.streaming:
        rows = open_stream(
            data.dataset, data.train_split, *columns, data.dataset_config, data.revision, data.song_column
        )
        workers = {"num_workers": data.num_workers, "song_column": data.song_column}
        stream = AudioTextStream(rows, processor, *columns, batch_size, **settings, **place, **workers)
        return StreamData(stream, data.steps_per_epoch, loader_settings)
    rows = open_dataset(data.dataset, data.train_split, *columns, data.dataset_config, data.revision)
    for column in filter(None, (data.song_column, data.sections_column)):
        check_column(rows, column, data.dataset)
    check_section_cuts(data, processor.feature_extractor.segment_seconds)
    check_alignment(data, model.config)
    check_rows(rows, data, batch_size, accelerator)
    processor(text=check_row_texts(rows, data.text_column))  # says here if texts will be cut, not in every worker
    identity = training_identity(rows, data, accelerator)
    token_cache = open_token_cache(data, data.train_split, rows, model, processor)
    rows = with_cached_features(data, rows, processor, accelerator)
    segments = song_lengths(data, rows, token_cache, processor, accelerator)
    stored = {
        "token_cache": token_cache,
        "song_column": data.song_column,
        "sections": section_settings(data, model.config),
    }
    dataset = AudioTextDataset(rows, processor.feature_extractor, *columns, **settings, **stored)
    sampler = EpochBatches(len(rows), batch_size, seed, **place, segments=segments, songs=dataset.songs)
    return TableData(dataset, sampler, {**loader_settings, "collate_fn": AudioTextCollator(processor)}, identity)


def section_settings(data: DataSettings, config: CoLLAPConfig) -> SectionSettings:
    """Return what is done by the sections of a song, for a model of this configuration."""
    return SectionSettings(
        data.sections_column,
        data.crop_sections,
        data.crop_epochs,
        data.drop_times,
        data.drop_sentences,
        data.exchange_sections,
        data.order_negatives,
        tell_spans=bool(config.location_weight and data.sections_column),
    )


def check_section_cuts(data: DataSettings, segment_seconds: float):
    """Refuse to cut sections out of cached features, to whole segments, where these are long."""
    cuts = [name for name in ("crop_sections", "exchange_sections") if getattr(data, name)]
    if cuts and data.cache_features and segment_seconds > MAX_CUT_SECONDS:
        raise ValueError(
            f"{cuts[0]} cuts cached features to whole segments, here of {segment_seconds:g} s, which are longer "
            f"than {MAX_CUT_SECONDS} s: leave out cache_features, or store tokens (collap precompute)"
        )


def check_alignment(data: DataSettings, config: CoLLAPConfig):
    """Refuse negatives in another order for a model whose score does not see it."""
    if data.order_negatives and config.alignment != "monotone":
        raise ValueError(f"order_negatives need the alignment 'monotone', found {config.alignment!r}: leave them out")


def check_rows(rows, data: DataSettings, batch_size: int, accelerator: Accelerator):
    """Refuse fewer rows than a batch, and say what an epoch leaves out."""
    if len(rows) < batch_size:
        raise ValueError(f"{data.train_split} has {len(rows)} rows, fewer than batch_size {batch_size}")
    rest = len(rows) % batch_size
    if rest:
        accelerator.print(
            f"{len(rows)} rows of {data.train_split} are {len(rows) // batch_size} batches of {batch_size} and {rest} "
            "more: every epoch leaves out as many, drawn anew"
        )


def training_identity(rows, data: DataSettings, accelerator: Accelerator) -> str:
    """Return what a resumed run must find again: the content of the rows, from the main process."""
    digest = None
    if accelerator.is_main_process:
        columns = data.text_column, data.song_column, data.duration_column, data.sections_column
        others = [name for name in columns if name]
        digest = rows_digest(rows, data.audio_column, others)
    (digest, *_) = gather_object([digest])
    return f"{len(rows)} rows, {digest[:16]}"


def build_eval_data(data: DataSettings, model, processor, accelerator: Accelerator):
    """Open the evaluation split and its token cache, if any; (None, None) without evaluation."""
    if data.eval_split is None:
        return None, None
    columns = (data.audio_column, data.text_column, data.dataset_config, data.revision)
    rows = open_dataset(data.dataset, data.eval_split, *columns)
    if data.song_column:
        check_column(rows, data.song_column, data.dataset)
    token_cache = open_token_cache(data, data.eval_split, rows, model, processor)
    return with_cached_features(data, rows, processor, accelerator), token_cache


def open_token_cache(data: DataSettings, split: str, rows, model, processor) -> TokenCache | None:
    """Open the cache that `precomputed` names, checked against data set, encoders and features."""
    if not data.precomputed:
        return None
    return TokenCache.open(data.precomputed, split, model, processor.feature_extractor, rows, data.audio_column)


def with_cached_features(data: DataSettings, rows, processor, accelerator: Accelerator):
    """Return the rows with the features of whole songs, computed by one process and found by the others."""
    if not data.cache_features:
        return rows
    with accelerator.main_process_first():
        return cache_features(rows, processor.feature_extractor, data.audio_column, data.num_workers)


def song_lengths(data: DataSettings, rows, token_cache, processor, accelerator: Accelerator) -> list[int] | None:
    """Return the segments of every song, to form batches by; None for crops, which are all alike."""
    if data.crop_seconds is not None:
        return None
    seconds = processor.feature_extractor.segment_seconds
    if token_cache is not None:
        return [num_segments(token_cache.seconds(row), seconds) for row in range(len(rows))]
    with accelerator.main_process_first():
        column = None if CACHED_COLUMN in rows.column_names else data.duration_column
        return song_segments(rows, data.audio_column, seconds, column, num_workers=data.num_workers)
