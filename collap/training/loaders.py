"""The songs of a run: from a table or a stream, as an endless sequence of batches that starts at any step."""

import signal
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from collap.data.batches import AudioTextBatch, AudioTextCollator, EpochBatches, process_songs
from collap.data.feature_cache import CACHED_COLUMN, cache_features
from collap.data.lengths import num_segments, song_segments
from collap.data.rows import check_column, check_row_texts
from collap.data.samples import AudioTextDataset
from collap.data.sources import open_dataset
from collap.data.stream import AudioTextStream, open_stream, stream_state
from collap.data.token_cache import TokenCache
from collap.training.settings import TrainConfig


class TableData:
    """A data set with random access: every epoch is planned from the seed, so a step is a position."""

    def __init__(self, dataset: AudioTextDataset, sampler: EpochBatches, loader_settings: dict):
        self.dataset, self.sampler = dataset, sampler
        self.num_rows, self.steps_per_epoch = len(dataset), len(sampler)
        self.loader = DataLoader(dataset, batch_sampler=sampler, **loader_settings)

    def batches(self, step: int, state: dict | None) -> Iterator[AudioTextBatch]:
        """Batches of this process from `step` on, epoch after epoch; there is no `state` beyond the step."""
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            self.dataset.set_epoch(epoch)
            self.sampler.set_position(epoch, first)
            yield from self.loader
            step = (epoch + 1) * self.steps_per_epoch

    def state_after(self, state: dict | None, batch: AudioTextBatch) -> None:
        return None


class StreamData:
    """Shards that are read in order; `state` is the position of this process."""

    num_rows = None

    def __init__(self, stream: AudioTextStream, steps_per_epoch: int, loader_settings: dict):
        self.stream, self.steps_per_epoch = stream, steps_per_epoch
        self.loader = DataLoader(stream, batch_size=None, **loader_settings)

    def batches(self, step: int, state: dict | None) -> Iterator[AudioTextBatch]:
        """Batches of this process after `state`, without end."""
        if state is not None:
            self.stream.load_state_dict(state)
        yield from self.loader

    def state_after(self, state: dict | None, batch: AudioTextBatch) -> dict:
        """The position after `batch`; JSON-able."""
        return stream_state(state, batch.state)


def _outlive_sigterm(worker: int):
    """A preempted job's processes all get SIGTERM; workers go on until the last step is saved, at most ten minutes: an
    evaluation may come first, and the death of a worker would end the program before it has saved."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(600))


def _loader_settings(config: TrainConfig, accelerator: Accelerator) -> dict:
    """The generator is there so that making an iterator does not draw from the one that dropout uses."""
    return {
        "num_workers": config.num_workers,
        "worker_init_fn": _outlive_sigterm,
        "pin_memory": accelerator.device.type == "cuda",
        "generator": torch.Generator().manual_seed(config.seed),
    }


def build_train_data(config: TrainConfig, model, processor, accelerator: Accelerator) -> TableData | StreamData:
    """The training split for this process.

    Raises:
        ValueError, OSError: from the data set and its settings; name what is wrong with them.
    """
    process_songs(config.batch_size, accelerator.num_processes)
    columns = (config.audio_column, config.text_column, config.dataset_config)
    # On a GPU features take a fraction of the worker's time and of the transfer; on the CPU workers share the work.
    features_in_worker = accelerator.device.type == "cpu"
    settings = {"crop_seconds": config.crop_seconds, "seed": config.seed, "features_in_worker": features_in_worker}
    place = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
    loader_settings = _loader_settings(config, accelerator)
    if config.streaming:
        stream = AudioTextStream(
            open_stream(config.dataset, config.train_split, *columns),
            processor,
            config.audio_column,
            config.text_column,
            config.batch_size,
            **settings,
            **place,
            num_workers=config.num_workers,
        )
        return StreamData(stream, config.steps_per_epoch, loader_settings)
    rows = open_dataset(config.dataset, config.train_split, *columns)
    if len(rows) < config.batch_size:
        raise ValueError(f"{config.train_split} has {len(rows)} rows, fewer than batch_size {config.batch_size}")
    processor(text=check_row_texts(rows, config.text_column))  # says here if texts will be cut, not in every worker
    token_cache = open_token_cache(config, config.train_split, rows, model, processor)
    rows = with_cached_features(config, rows, processor, accelerator)
    segments = _segments(config, rows, token_cache, processor, accelerator)
    sampler = EpochBatches(len(rows), config.batch_size, config.seed, **place, segments=segments)
    extractor, names = processor.feature_extractor, (config.audio_column, config.text_column)
    dataset = AudioTextDataset(rows, extractor, *names, **settings, token_cache=token_cache)
    return TableData(dataset, sampler, {**loader_settings, "collate_fn": AudioTextCollator(processor)})


def build_eval_data(config: TrainConfig, model, processor, accelerator: Accelerator):
    """The evaluation split and its token cache, if any; (None, None) without evaluation."""
    if config.eval_split is None:
        return None, None
    columns = (config.audio_column, config.text_column, config.dataset_config)
    rows = open_dataset(config.dataset, config.eval_split, *columns)
    if config.song_column:
        check_column(rows, config.song_column, config.dataset)
    token_cache = open_token_cache(config, config.eval_split, rows, model, processor)
    return with_cached_features(config, rows, processor, accelerator), token_cache


def open_token_cache(config: TrainConfig, split: str, rows, model, processor) -> TokenCache | None:
    """The cache that `precomputed` names, checked against data set, encoders and features."""
    if not config.precomputed:
        return None
    return TokenCache.open(config.precomputed, split, model, processor.feature_extractor, rows, config.audio_column)


def with_cached_features(config: TrainConfig, rows, processor, accelerator: Accelerator):
    """The rows with the features of whole songs, computed by one process and found by the others."""
    if not config.cache_features:
        return rows
    with accelerator.main_process_first():
        return cache_features(rows, processor.feature_extractor, config.audio_column, config.num_workers)


def _segments(config: TrainConfig, rows, token_cache, processor, accelerator: Accelerator) -> list[int] | None:
    """Length of every song, to form batches by; None for crops, which are all alike."""
    if config.crop_seconds is not None:
        return None
    seconds = processor.feature_extractor.segment_seconds
    if token_cache is not None:
        return [num_segments(token_cache.seconds(row), seconds) for row in range(len(rows))]
    with accelerator.main_process_first():
        column = None if CACHED_COLUMN in rows.column_names else config.duration_column
        return song_segments(rows, config.audio_column, seconds, column, num_workers=config.num_workers)
