"""What is stored of a track's sound, and of many tracks in one file: tensors that stand one after another.

    tokens            (sum T, D) int8      every moment, for the exact score
    token_scales      (sum T,) float16
    segments          (sum S, D) int8      a few segments of like sound, for finding candidates
    segment_scales    (sum S,) float32
    segment_tokens    (sum S,) int32       tokens that a segment is the mean of: its weight
    segment_seconds   (sum S, 2) float32   when it begins, and how long it lasts
    means             (N, D) int8          of all tokens of a track
    mean_scales       (N,) float32
    prints            (sum F, 2) int32     fingerprint of the sound, 43 frames a second: 32 bits, and which can be heard
    token_offsets     (N + 1,) int64       tokens of track i: token_offsets[i] to token_offsets[i + 1]
    segment_offsets   (N + 1,) int64
    print_offsets     (N + 1,) int64

Dimensions: `N` tracks, `T` tokens, `S` segments and `F` frames of the fingerprint of a track, `D` shared width.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .quantize import quantize_rows
from .segments import frame_size, mean_rows, segment_bounds

Vectors = dict[str, torch.Tensor]

DTYPES = {
    "tokens": torch.int8,
    "token_scales": torch.float16,
    "segments": torch.int8,
    "segment_scales": torch.float32,
    "segment_tokens": torch.int32,
    "segment_seconds": torch.float32,
    "means": torch.int8,
    "mean_scales": torch.float32,
    "prints": torch.int32,
}
PAIRS = {"segment_seconds": (2,), "prints": (2,)}
OFFSETS = {"token_offsets": "tokens", "segment_offsets": "segments", "print_offsets": "prints"}


def track_vectors(
    embeds: torch.Tensor, starts: torch.Tensor, token_seconds: float, seconds: float, prints: np.ndarray | None = None
) -> Vectors:
    """Make what is stored of one track, without offsets.

    Args:
        embeds: (T, D) unit vectors, float32.
        starts: (T,) when each begins, in seconds.
        token_seconds: that each lasts.
        seconds: length of the track, beyond which no segment lasts.
        prints: fingerprint (F, 2) uint32 of its sound: all bits, and ones for those that can be heard; None for
            vectors of no sound, of which no copies are known.

    Raises:
        ValueError: there is no token, or NaN or infinity among them.
    """
    if not len(embeds):
        raise ValueError("the model gives no vectors for it; expected one or more")
    tokens, token_scales = quantize_rows(embeds)
    bounds = segment_bounds(embeds, frame_size(token_seconds))  # (S + 1,)
    segments, segment_scales = quantize_rows(mean_rows(embeds, bounds), torch.float32)
    means, mean_scales = quantize_rows(embeds.mean(0, keepdim=True), torch.float32)
    first = starts[bounds[:-1]]  # (S,)
    last = (starts[bounds[1:] - 1] + token_seconds).clamp(max=max(seconds, float(starts[-1])))  # (S,)
    prints = np.zeros((0, 2), np.uint32) if prints is None else prints
    return {
        "tokens": tokens,
        "token_scales": token_scales,
        "segments": segments,
        "segment_scales": segment_scales,
        "segment_tokens": bounds.diff().int(),
        "segment_seconds": torch.stack([first, last - first], dim=-1).float(),
        "means": means,
        "mean_scales": mean_scales,
        "prints": torch.from_numpy(prints.view(np.int32)),
    }


def join_tracks(tracks: Sequence[Vectors]) -> Vectors:
    """Put tracks of [`track_vectors`] one after another, with offsets."""
    joined = {name: torch.cat([track[name] for track in tracks]) for name in DTYPES}
    for offsets, name in OFFSETS.items():
        joined[offsets] = torch.tensor([0, *(len(track[name]) for track in tracks)]).cumsum(0)  # (N + 1,)
    return joined


def one_track(joined: Vectors, row: int) -> Vectors:
    """Take track `row` of [`join_tracks`] out again, as views."""
    spans = {name: joined[offsets][row : row + 2].tolist() for offsets, name in OFFSETS.items()}
    whole = {"mean": [row, row + 1], **{name.removesuffix("s"): span for name, span in spans.items()}}
    taken = {}
    for name in DTYPES:
        first, last = whole[name.split("_")[0].removesuffix("s")]
        taken[name] = joined[name][first:last]
    return taken


def check_vectors(vectors: Vectors, num_tracks: int, width: int | None = None) -> None:
    """Raise a ValueError unless tensors fit together as the top of this file says, for `num_tracks` tracks."""
    if missing := {*DTYPES, *OFFSETS} - vectors.keys():
        raise ValueError(f"has no {', '.join(sorted(missing))}")
    counts = {"mean": num_tracks, **{name.removesuffix("s"): len(vectors[name]) for name in OFFSETS.values()}}
    width = vectors["means"].shape[-1] if width is None else width
    for name, dtype in DTYPES.items():
        further = (width,) if name in ("tokens", "segments", "means") else PAIRS.get(name, ())
        shape = (counts[name.split("_")[0].removesuffix("s")], *further)
        if vectors[name].dtype != dtype or tuple(vectors[name].shape) != shape:
            found = f"{vectors[name].dtype} {tuple(vectors[name].shape)}"
            raise ValueError(f"{name} is {found}, expected {dtype} {shape}")
    for offsets, name in OFFSETS.items():
        places = vectors[offsets]
        if places.dtype != torch.int64 or tuple(places.shape) != (num_tracks + 1,):
            raise ValueError(f"{offsets} is {places.dtype} {tuple(places.shape)}, expected int64 ({num_tracks + 1},)")
        least = 0 if name == "prints" else 1  # a fingerprint of a moment has no frame
        if places[0] != 0 or places[-1] != len(vectors[name]) or (places.diff() < least).any():
            raise ValueError(f"{offsets} do not rise from 0 to the {len(vectors[name])} {name}")


def map_vectors(path: Path) -> Vectors:
    """Map the tensors of a safetensors file into memory; what is read of them is read when it is used.

    Raises:
        ValueError: it is damaged; names the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: is damaged ({' '.join(str(error).split())})") from error
