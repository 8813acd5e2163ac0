"""Store what the frozen audio encoders make of every song, so that the rest of the model trains without them.

    collap precompute --dataset data/demo_songs --splits train validation \\
        --music data/demo_backbones/beats --speech data/demo_backbones/whisper --output_dir data/demo_tokens
    accelerate launch --num_processes 2 --module collap precompute --dataset owner/songs --model you/collap \\
        --dtype int8 --output_dir data/song_tokens

Every process takes its share of the shards. A run that was killed goes on from the whole shards when it is started
again; so does one after audio has changed. A file that cannot be read is named and skipped. `token_cache.py`
describes the result, and reads it.

Dimensions: `S` segments, `K` fused tokens of a segment, `T` real tokens of a song, `M` music hidden + speech hidden.
"""

import argparse
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import nn
from tqdm.auto import tqdm

from collap.data.batches import check_processes
from collap.data.guarded_reading import Source, stream_audio
from collap.data.rows import audio_source, naming_row
from collap.data.sources import open_dataset
from collap.data.token_cache import (
    INDEX,
    audio_identity,
    cache_settings,
    check_settings,
    pack_tokens,
    read_header,
    read_shards,
    shard_name,
    whole_shard,
    write_index,
    write_shard,
)
from collap.files import none_by_name
from collap.models import load_model
from modeling_collap import CoLLAPConfig
from modeling_collap.towers_collap import AudioBackbones, AudioTower, build_audio_encoders
from processing import CoLLAPFeatureExtractor
from processing.decode_audio import AudioFileError
from processing.embed_audio import feature_blocks

FRAME_SECONDS = 0.01
NAMES_SHOWN = 5  # of bad files in the last line


def backbone_tower(
    music: str | None, speech: str | None, segment_seconds: float | None
) -> tuple[AudioTower, CoLLAPConfig]:
    """Build the encoders that `CoLLAPModel.from_backbones` builds, with the same errors; no adapter is needed."""
    audio = AudioBackbones.load(music, speech)
    chosen = {} if segment_seconds is None else {"segment_seconds": segment_seconds}
    config = CoLLAPConfig(**{**audio.settings, **chosen})
    tower = AudioTower(*build_audio_encoders(config), nn.Identity(), config.music_config)
    audio.copy_to(tower)
    return tower, config


def load_encoders(options, device: torch.device) -> tuple[AudioTower, CoLLAPFeatureExtractor]:
    """Load the encoders of `--model`, or those of `--music` and `--speech`, in float32, and their feature extractor."""
    if options.model is not None:
        model, processor = load_model(options.model)
        tower, feature_extractor = model.audio_tower, processor.feature_extractor
    else:
        tower, config = backbone_tower(
            none_by_name(options.music), none_by_name(options.speech), options.segment_seconds
        )
        feature_extractor = CoLLAPFeatureExtractor.from_model_config(config)
    if options.segment_batch_size is not None:
        tower.segment_batch_size = options.segment_batch_size
    return tower.to(device).eval(), feature_extractor


@torch.inference_mode()
def encode_song(
    tower: AudioTower, feature_extractor, source: Source, dtype: str
) -> tuple[dict[str, torch.Tensor], float]:
    """Encode one file, `segment_batch_size` segments at a time.

    Returns:
        Its real tokens (T, M) as `pack_tokens` gives them, and its seconds, to 0.02.

    Raises:
        AudioFileError: it cannot be read, or its tokens not be stored.
    """
    segment_seconds, blocks, seconds = float(feature_extractor.segment_seconds), [], 0.0
    where = (tower.segment_batch_size, next(tower.parameters()).device)
    for features in feature_blocks(feature_extractor, source, *where, read=stream_audio):
        frames = features["music_attention_mask"]  # (S, F)
        fused = tower.fuse(features["music_features"], features["speech_features"], frames)  # (S, K, M)
        blocks.append(pack_tokens(fused[features["audio_token_mask"]].cpu(), dtype))  # (T, M)
        for whole, count in zip(frames.all(-1).tolist(), frames.sum(-1).tolist(), strict=True):
            seconds += segment_seconds if whole else count * FRAME_SECONDS
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}, round(seconds, 2)


@dataclass
class Split:
    """Hold a split on its way into a cache: where, from what, and with which settings."""

    folder: Path
    dataset: datasets.Dataset
    audio_column: str
    settings: dict

    @property
    def num_shards(self) -> int:
        return -(-len(self.dataset) // self.settings["shard_songs"])

    def rows_of(self, shard: int) -> range:
        size = self.settings["shard_songs"]
        return range(shard * size, min((shard + 1) * size, len(self.dataset)))

    def audio(self, row: int) -> dict | None:
        return self.dataset[row][self.audio_column]


def compute_shard(split: Split, shard: int, tower: AudioTower, feature_extractor, progress: tqdm):
    """Compute and write a shard unless it is there; rows that cannot be read get no tokens."""
    path = split.folder / shard_name(shard)
    identities = [audio_identity(split.audio(row)) for row in split.rows_of(shard)]
    if whole_shard(path, split.settings, identities):
        progress.update(len(identities))
        return
    songs = []
    for row, identity in zip(split.rows_of(shard), identities, strict=True):
        audio, dtype = split.audio(row), split.settings["dtype"]
        try:
            with naming_row(row, audio):
                packed, seconds = encode_song(tower, feature_extractor, audio_source(audio), dtype)
        except AudioFileError as error:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            packed, seconds = pack_tokens(torch.zeros(0, split.settings["width"]), dtype), 0.0
        songs.append(({**identity, "seconds": seconds}, packed))
        progress.update()
    write_shard(path, split.settings, songs)


def check_bad_share(split: Split, rows: list[dict], max_bad_share: float) -> str:
    """Say how many of the `rows` of a split have no tokens.

    Raises:
        ValueError: more than `max_bad_share` of the split.
    """
    bad = [row["name"] or "bytes without a name" for row in rows if not row["tokens"]]
    names = ", ".join(bad[:NAMES_SHOWN]) + (", ..." if len(bad) > NAMES_SHOWN else "")
    message = f"{len(bad)} of {len(split.dataset)} songs could not be read" + (f" ({names})" if bad else "")
    if len(bad) > max_bad_share * len(split.dataset):
        raise ValueError(
            f"{split.folder}: {message}, more than --max_bad_share {max_bad_share}; mend or remove those files, or "
            "allow a larger share, and start again: whole shards are kept"
        )
    return message


def compute_split(split: Split, tower: AudioTower, feature_extractor, max_bad_share: float, accelerator: Accelerator):
    """Compute this process's shards; the main one then writes the index and says what the split has become."""
    if accelerator.is_main_process:
        split.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(split.folder.glob("shard-*.safetensors")):
            found = read_header(path)
            if found is not None:
                check_settings(found[0], split.settings, path)
        (split.folder / INDEX).unlink(missing_ok=True)  # until all shards are those of this run
    accelerator.wait_for_everyone()
    own = range(accelerator.process_index, split.num_shards, accelerator.num_processes)
    total, rows = sum(len(split.rows_of(shard)) for shard in own), []
    disable = None if accelerator.is_main_process else True
    with tqdm(total=total, desc=split.folder.name, unit="song", disable=disable) as bar:
        for shard in own:
            compute_shard(split, shard, tower, feature_extractor, bar)
            rows += read_header(split.folder / shard_name(shard))[1]
            check_bad_share(split, rows, max_bad_share)  # what this process alone has found can be too much
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        rows = read_shards(split.folder, split.settings, split.num_shards)
        message = check_bad_share(split, rows, max_bad_share)
        index = write_index(split.folder, split.settings, rows)
        size = sum(index["shards"].values())
        print(
            f"{split.folder}: {index['hours']:.2f} hours in {size / 1e6:.1f} MB of {index['dtype']}, "
            f"{index['bytes_per_hour'] / 1e6:.1f} MB for an hour of audio; {message}"
        )


def check_options(options: argparse.Namespace):
    """Raise a ValueError for options that cannot work, before anything is loaded."""
    if (options.model is None) == (options.music is None):
        raise ValueError("name the encoders by one of --model (a CoLLAP model) and --music with --speech")
    if options.model is not None and options.segment_seconds is not None:
        raise ValueError("--segment_seconds is for --music; the model that --model names has its own")
    for name in ("shard_songs", "segment_batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, found {getattr(options, name)}")
    if not 0 <= options.max_bad_share < 1:
        raise ValueError(f"--max_bad_share must be from 0 to below 1, found {options.max_bad_share}")
    if len(set(options.splits)) < len(options.splits):
        raise ValueError(f"--splits names a split twice: {' '.join(options.splits)}")


def run(options: argparse.Namespace) -> int:
    """Do `collap precompute`; return its exit code."""
    check_options(options)
    # Processes meet only at the end of a split, hours after one another where the songs are uneven.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))])
    check_processes(accelerator)
    columns = {"audio_column": options.audio_column, "text_column": None}
    source = {"config_name": options.dataset_config, "revision": options.revision}
    with accelerator.main_process_first():
        opened = {name: open_dataset(options.dataset, name, **columns, **source) for name in options.splits}
    tower, feature_extractor = load_encoders(options, accelerator.device)
    settings = cache_settings(tower, feature_extractor, options.dtype, options.shard_songs)
    for name, dataset in opened.items():
        dataset = dataset.select_columns(options.audio_column)
        split = Split(options.output_dir / name, dataset, options.audio_column, settings)
        compute_split(split, tower, feature_extractor, options.max_bad_share, accelerator)
    accelerator.end_training()
    return 0
