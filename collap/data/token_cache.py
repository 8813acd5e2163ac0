"""Keep on disk what the frozen audio encoders make of every song: the rest of the model trains without running them.

A split is a folder of shards, each with the songs of consecutive rows, and of index.json, which is written last:

    train/shard-00000.safetensors  tokens (sum T, M) float16, or int8 with scales (sum T, 1) float32; offsets (rows + 1)
    train/index.json               settings, sizes, and of every row its shard, length and audio

`collap precompute` writes it, [`TokenCache`] reads it. A shard also holds what the index says of its rows, so that
an interrupted run goes on from whole shards alone.

Dimensions: `T` real fused tokens of a song, `K` of a whole segment, `M` music hidden + speech hidden.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from collap.files import replace_file
from modeling_collap.configuration_collap import segment_tokens
from processing.decode_audio import AudioFileError

from .audio_parts import audio_part
from .feature_cache import FEATURES_VERSION
from .places import name_within
from .rows import audio_source, content_digest, file_size, naming_row

FORMAT_VERSION = 1
DTYPES = ("float16", "int8")
INDEX = "index.json"
HEADER = "collap_tokens"  # the only metadata entry of a shard: safetensors writes several in no fixed order

# What changes the output of an encoder in evaluation and cannot be told from its weights.
ENCODER_SETTINGS = {
    "music": (
        *("patch_size", "num_attention_heads", "hidden_act", "layer_norm_first", "deep_norm", "conv_pos_groups"),
        *("num_buckets", "max_distance", "gated_relative_position", "relative_position_embedding", "layer_norm_eps"),
    ),
    "speech": ("encoder_attention_heads", "activation_function", "scale_embedding"),
}
FEATURE_SETTINGS = (
    *("segment_seconds", "music_mel_bins", "speech_mel_bins", "patch_size"),
    *("fbank_mean", "fbank_std", "sampling_rate"),
)


# --------------------------------------------------------------------------------------------------------------------
# What a cache was made from


def encoder_digest(audio_tower) -> str:
    """Return the BLAKE2b of the audio encoders: names, dtypes, shapes and bytes of their weights, and their settings.

    Args:
        audio_tower: an `AudioTower`.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part, encoder in audio_tower.encoders.items():
        names = ENCODER_SETTINGS[part]
        digest.update(json.dumps([f"{part}_model", {name: getattr(encoder.config, name) for name in names}]).encode())
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def cache_settings(audio_tower, feature_extractor, dtype: str, shard_songs: int) -> dict:
    """Return all that decides which tokens a cache holds of the same audio, and how.

    Args:
        audio_tower: an `AudioTower`, with or without its adapter.
        feature_extractor: a `CoLLAPFeatureExtractor`.
        dtype: one of `DTYPES`.
        shard_songs: rows of a shard.
    """
    features = {name: float(getattr(feature_extractor, name)) for name in FEATURE_SETTINGS}  # 30 and 30.0 are the same
    return {
        "format_version": FORMAT_VERSION,
        "features": {**features, "features_version": FEATURES_VERSION},
        "encoders": encoder_digest(audio_tower),
        "dtype": dtype,
        "shard_songs": shard_songs,
        "width": audio_tower.width,
        "tokens_per_segment": segment_tokens(feature_extractor.segment_seconds, audio_tower.grid.patch_size),
    }


def check_settings(found: dict, wanted: dict, place: Path):
    """Raise a ValueError that says what tells the settings of a cache from those asked for, and what to do."""
    advice = "name another folder, or delete this one and run collap precompute"
    for name in ("format_version", "dtype", "shard_songs"):
        if found.get(name) != wanted[name]:
            raise ValueError(f"{place}: {name} is {found.get(name)}, expected {wanted[name]}; {advice}")
    # Features before encoders: segments of another length also take other speech positions.
    stored = found["features"]
    names = [name for name in wanted["features"] if stored.get(name) != wanted["features"][name]]
    if names:
        listed = ", ".join(f"{name} is {stored.get(name)}, expected {wanted['features'][name]}" for name in names)
        raise ValueError(f"{place}: made with other feature settings: {listed}; {advice}")
    if found != wanted:
        raise ValueError(f"{place}: made by other encoders (weights or configuration of BEATs or Whisper); {advice}")


def audio_identity(audio: dict | None) -> dict:
    """Return name, size in bytes and content digest of an entry of an audio column; None for what there is not."""
    identity = {"name": _name(audio and audio.get("path")), "bytes": None, "digest": None}
    try:
        source = audio_source(audio)
        source = audio_part(source).source  # of a span of a file the whole file; the name says which span
        if not isinstance(source, bytes):
            with open(source, "rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
                return {**identity, "bytes": file.tell(), "digest": digest.hexdigest()}
    except (OSError, ValueError):  # said with its row when it is decoded
        return identity
    return {**identity, "bytes": len(source), "digest": content_digest(source)}


def audio_sizes(dataset: datasets.Dataset, audio_column: str) -> Iterator[tuple[str | None, int | None]]:
    """Give name and size in bytes of every row's audio as in [`audio_identity`], without reading it."""
    # Arrow, so that the bytes of the audio are not copied to be counted.
    for table in dataset.select_columns(audio_column).with_format("arrow").iter(batch_size=100):
        audio = table.column(audio_column)
        paths = pc.struct_field(audio, "path").to_pylist()
        sizes = pc.binary_length(pc.struct_field(audio, "bytes")).to_pylist()
        for path, size in zip(paths, sizes, strict=True):
            yield _name(path), size if size is not None else file_size(path)


def _name(path: str | None) -> str | None:
    return name_within(path) if path else None


# --------------------------------------------------------------------------------------------------------------------
# Tokens and shards


def pack_tokens(tokens: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """Pack tokens as they are stored; int8 is symmetric, with the largest magnitude of each token at 127.

    Args:
        tokens: (T, M) float32.
        dtype: one of `DTYPES`.

    Returns:
        `tokens` (T, M), and `scales` (T, 1) float32 for int8.

    Raises:
        AudioFileError: NaN, infinity, or a value that float16 cannot hold.
    """
    scales = tokens.abs().amax(-1, keepdim=True) / 127  # (T, 1)
    packed = {"tokens": tokens.half()}
    if dtype == "int8":
        packed = {"tokens": (tokens / scales.clamp_min(torch.finfo().tiny)).round().to(torch.int8), "scales": scales}
    if not (scales.isfinite().all() and packed["tokens"].isfinite().all()):
        raise AudioFileError(f"the encoders give values for it that {dtype} cannot hold (NaN or too large)")
    return packed


def unpack_tokens(packed: dict[str, torch.Tensor]) -> torch.Tensor:
    """Undo [`pack_tokens`] up to its rounding: (T, M) float32."""
    tokens = packed["tokens"].float()
    return tokens * packed["scales"] if "scales" in packed else tokens


def checksum(packed: dict[str, torch.Tensor]) -> int:
    """Return the CRC-32 of a song's packed tokens."""
    value = 0
    for name in sorted(packed):
        value = zlib.crc32(packed[name].contiguous().numpy(), value)
    return value


def shard_name(shard: int) -> str:
    """Return `"shard-00007.safetensors"` of 7."""
    return f"shard-{shard:05d}.safetensors"


def write_shard(path: Path, settings: dict, songs: list[tuple[dict, dict[str, torch.Tensor]]]):
    """Write the songs of consecutive rows.

    Args:
        settings: from [`cache_settings`].
        songs: of every row its [`audio_identity`] with `seconds`, and its tokens from [`pack_tokens`].
    """
    rows = [{**row, "tokens": len(packed["tokens"]), "crc32": checksum(packed)} for row, packed in songs]
    tensors = {name: torch.cat([packed[name] for _, packed in songs]) for name in songs[0][1]}  # (sum T, M), (sum T, 1)
    tensors["offsets"] = torch.tensor([0, *(row["tokens"] for row in rows)]).cumsum(0)  # (rows + 1,)
    header = {HEADER: json.dumps({**settings, "rows": rows})}
    replace_file(path, lambda partial: save_file(tensors, partial, metadata=header))


def read_header(path: Path) -> tuple[dict, list[dict]] | None:
    """Read settings and rows of a shard; None if there is none or it is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            header = json.loads(shard.metadata()[HEADER])
        return header, header.pop("rows")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def read_tokens(path: Path, start: int, count: int) -> dict[str, torch.Tensor]:
    """Read `count` packed tokens of a shard from `start` on, and nothing else of it."""
    # Opened anew each time: a tenth of a millisecond, and no handles to share among worker processes or to run out of.
    with safe_open(path, framework="pt") as shard:
        names = [name for name in shard.keys() if name != "offsets"]  # noqa: SIM118  it is no mapping
        return {name: shard.get_slice(name)[start : start + count] for name in names}


def whole_shard(path: Path, settings: dict, identities: list[dict]) -> bool:
    """Tell whether a shard is there, of these settings and audios, and every song in it is as it was written."""
    found = read_header(path)
    if found is None or found[0] != settings:
        return False
    rows, start = found[1], 0
    if [{name: row[name] for name in ("name", "bytes", "digest")} for row in rows] != identities:
        return False
    for row in rows:
        if checksum(read_tokens(path, start, row["tokens"])) != row["crc32"]:
            return False
        start += row["tokens"]
    return True


def read_shards(folder: Path, settings: dict, num_shards: int) -> list[dict]:
    """Read the rows of all shards, each with its shard and the place of its first token.

    Raises:
        ValueError: a shard is missing or damaged: another run is writing to the folder, or processes do not share it.
    """
    rows = []
    for name in map(shard_name, range(num_shards)):
        found = read_header(folder / name)
        if found is None or found[0] != settings:
            raise ValueError(f"{folder / name}: missing or changed since it was written; do all processes share it?")
        start = 0
        for row in found[1]:
            rows.append({"shard": name, "start": start, **row})
            start += row["tokens"]
    return rows


def write_index(folder: Path, settings: dict, rows: list[dict]) -> dict:
    """Write index.json for the rows of [`read_shards`], remove shards of an earlier, larger data set, and return the
    index."""
    sizes = {name: (folder / name).stat().st_size for name in dict.fromkeys(row["shard"] for row in rows)}
    for path in folder.glob("shard-*"):
        if path.name not in sizes:
            path.unlink()
    hours = sum(row["seconds"] for row in rows) / 3600
    per_hour = round(sum(sizes.values()) / hours) if hours else 0
    index = {**settings, "hours": hours, "bytes_per_hour": per_hour, "shards": sizes, "rows": rows}
    replace_file(folder / INDEX, lambda partial: partial.write_text(json.dumps(index)))
    return index


# --------------------------------------------------------------------------------------------------------------------
# Training from a cache


class TokenCache:
    """Give the stored tokens of a split; row i is that of the data set. Made by [`TokenCache.open`].

    `model(fused_tokens=..., audio_token_mask=...)` takes them, padded to one length. It keeps no file open, so it works
    in the workers of a `DataLoader`.
    """

    def __init__(self, folder: Path, rows: list[dict]):
        self.folder = folder
        self.rows = rows

    @classmethod
    def open(
        cls,
        folder: str | Path,
        split: str,
        model,
        feature_extractor,
        dataset: datasets.Dataset,
        audio_column: str = "audio",
    ) -> "TokenCache":
        """Open the cache of a split after checking that it belongs to this model and data set: the encoders' weights,
        the settings, and names and sizes of all audio and shards; the content is checked where it is read.

        Args:
            folder: the `--output_dir` of `collap precompute`.
            split: as it was given there.
            model: a `CoLLAPModel` with the encoders that made the cache, not compiled or sharded yet.
            feature_extractor: of its processor.
            dataset: from `open_dataset`.
            audio_column: its name.

        Raises:
            ValueError: there is no whole cache, or it was made with other settings, encoders or audio; says which, and
                what to do.
        """
        folder = Path(folder) / split
        index = _read_index(folder)
        settings = cache_settings(model.audio_tower, feature_extractor, index.get("dtype"), index.get("shard_songs"))
        check_settings({name: index.get(name) for name in settings}, settings, folder)
        _check_rows(index["rows"], dataset, audio_column, folder)
        for name, size in index["shards"].items():
            if file_size(folder / name) != size:
                raise ValueError(
                    f"{folder / name}: has {file_size(folder / name)} bytes, expected {size}; run "
                    "collap precompute again: it computes what is missing or damaged"
                )
        return cls(folder, index["rows"])

    def __len__(self) -> int:
        return len(self.rows)

    def seconds(self, row: int) -> float:
        """Return the length of a row's audio in seconds, to 0.02 s; 0 if it could not be read."""
        return self.rows[row]["seconds"]

    def tokens(self, row: int) -> int:
        """Return T of a row; 0 if its audio could not be read."""
        return self.rows[row]["tokens"]

    def __getitem__(self, row: int) -> torch.Tensor:
        """Read the real fused tokens of a row, (T, M) float32.

        Raises:
            AudioFileError: its audio could not be read when the cache was made; names the row.
            ValueError: the shard is damaged.
        """
        entry = self.rows[row]
        if not entry["tokens"]:
            with naming_row(row, {"path": entry["name"]}):
                raise AudioFileError("has no tokens: collap precompute could not read it")
        path = self.folder / entry["shard"]
        try:
            packed = read_tokens(path, entry["start"], entry["tokens"])
            damage = "" if checksum(packed) == entry["crc32"] else "the checksum does not match"
        except (OSError, SafetensorError) as error:
            damage = str(error)
        if damage:
            raise ValueError(f"{path}: row {row} is damaged ({damage}); run collap precompute again to mend it")
        return unpack_tokens(packed)


def _read_index(folder: Path) -> dict:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError as error:
        made = sorted(found.parent.name for found in folder.parent.glob(f"*/{INDEX}"))
        raise ValueError(
            f"{path}: not there; the splits with a whole cache are {made}. Run collap precompute, or run it again "
            "if it was interrupted: it goes on from the shards that are there"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); run collap precompute again") from error
    if not isinstance(index, dict) or index.get("format_version") != FORMAT_VERSION:
        found = index.get("format_version") if isinstance(index, dict) else None
        raise ValueError(f"{path}: has format_version {found}, expected {FORMAT_VERSION}; make the cache anew")
    return index


def _check_rows(rows: list[dict], dataset: datasets.Dataset, audio_column: str, folder: Path):
    if len(rows) != len(dataset):
        raise ValueError(
            f"{folder}: holds {len(rows)} rows, the data set {len(dataset)}: another data set or split; run "
            "collap precompute on this one, with another --output_dir"
        )
    for row, (name, size) in enumerate(audio_sizes(dataset, audio_column)):
        if (rows[row]["name"], rows[row]["bytes"]) != (name, size):
            raise ValueError(
                f"{folder}: row {row} was made from {rows[row]['name']} ({rows[row]['bytes']} bytes), in the data set "
                f"it is {name} ({size} bytes); run collap precompute again: it computes only shards that changed"
            )
