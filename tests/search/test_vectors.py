"""What is stored of a track: int8 rows, segments of like sound, and many tracks in one file."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from collap.search import quantize
from collap.search.quantize import dequantize_rows, quantize_rows, quantized_cosines, rough_cosines, split_rows
from collap.search.segments import frame_size, mean_rows, segment_bounds
from collap.search.vectors import check_vectors, join_tracks, one_track, track_vectors


def tokens_of(sections: list[int], noise: float = 0.3, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Unit tokens (T, D) of a song whose sections have so many."""
    torch.manual_seed(seed)
    centres = torch.cat([torch.randn(1, width).expand(length, width) for length in sections])  # (T, D)
    return F.normalize(centres + noise * torch.randn(sum(sections), width), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_row_is_off_by_half_a_step_at_most(dtype):
    rows = torch.cat([tokens_of([500]), torch.zeros(1, 32), torch.eye(32)[:1], torch.full((1, 32), -(32**-0.5))])
    codes, scales = quantize_rows(rows, dtype)
    assert codes.dtype == torch.int8 and scales.dtype == dtype and codes.min() >= -127
    found = dequantize_rows(codes, scales)
    # A scale that was rounded down, to 11 bits, cuts the largest number of its row.
    step = scales.float().unsqueeze(-1) * (0.5 + 127 * (2**-11 if dtype == torch.float16 else 2**-23)) + 1e-7
    assert ((found - rows).abs() <= step).all()
    assert (found[500] == 0).all()


@pytest.mark.parametrize("multiplies_bytes", [True, False])
@pytest.mark.parametrize("width", [512, 2048])
def test_cosines_are_those_of_the_rows_that_are_stored(multiplies_bytes, width, monkeypatch):
    """Whatever the processor: by bytes, which any processor can, and by float32."""
    monkeypatch.setattr(quantize, "MULTIPLIES_BYTES", multiplies_bytes)
    texts, rows = tokens_of([3], width=width, seed=1), tokens_of([17_000], width=width)  # more than one block
    texts[1], rows[5] = 0.0, width**-0.5  # a text that is padding, and the largest sums that bytes can have
    codes, scales = quantize_rows(rows)
    found = quantized_cosines(texts, codes, scales)
    torch.testing.assert_close(found, texts @ dequantize_rows(codes, scales).T, atol=1e-6, rtol=0)
    assert (found - texts @ rows.T).square().mean().sqrt() < 4e-4


@pytest.mark.parametrize("instructions", ["DEFAULT", "AVX2"])
def test_bytes_are_multiplied_only_where_that_is_exact(instructions):
    """torch held to older instructions cuts sums to 16 bits, on the same processor."""
    program = """if True:
        import torch
        from collap.search.quantize import dequantize_rows, quantized_cosines
        texts, codes = torch.ones(2, 512), torch.full((99, 512), 127, dtype=torch.int8)
        scales = torch.full((99,), 0.01)
        expected = texts @ dequantize_rows(codes, scales).T
        torch.testing.assert_close(quantized_cosines(texts, codes, scales), expected)
    """
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_rows_are_the_sum_of_their_bytes():
    rows = tokens_of([100], width=64) * 10.0 ** torch.arange(-30, 20, 0.5).unsqueeze(1)
    rows[3] = 0.0
    parts, steps = split_rows(rows)
    error = ((parts.double() * steps.double()).sum(0) - rows.double()).abs()
    assert parts.dtype == torch.int8 and (error <= 1.5e-7 * rows.double().abs().amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("texts", [1, 5])
@pytest.mark.parametrize("rows", [1, 17, 4099])  # the product is made by blocks of rows
def test_rough_cosines_are_off_by_little(texts, rows):
    texts, rows = 7 * tokens_of([texts], width=512, seed=1), tokens_of([rows], width=512)
    rows[0] = texts[0] / 7
    codes, scales = quantize_rows(rows, torch.float32)
    true = quantized_cosines(texts, codes, scales)
    found = rough_cosines(texts, codes, scales)
    assert found.shape == true.shape and (found - true).abs().max() <= 0.01 * true.abs().max()


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_rows(torch.tensor([[1.0, torch.nan]]))


def naive_bounds(tokens: torch.Tensor, size: int, threshold: float, most: int) -> list[int]:
    """Merge the two neighbours whose merge adds least to the squared distances, all computed anew each time."""
    frames = [tokens[start : start + size].double() for start in range(0, len(tokens), size)]
    groups = [[frame] for frame in frames]

    def spread(group: list[torch.Tensor]) -> float:
        means, weights = torch.stack([one.mean(0) for one in group]), torch.tensor([len(one) / size for one in group])
        centre = (weights[:, None] * means).sum(0) / weights.sum()
        return float((weights * ((means - centre) ** 2).sum(-1)).sum())

    while len(groups) > 1:
        costs = [spread(one + other) - spread(one) - spread(other) for one, other in itertools.pairwise(groups)]
        best = min(range(len(costs)), key=costs.__getitem__)
        if costs[best] >= threshold and len(groups) <= most:
            break
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
    lengths = [sum(map(len, group)) for group in groups]
    return torch.tensor([0, *lengths]).cumsum(0).tolist()


@pytest.mark.parametrize(
    ("sections", "noise", "threshold", "most"),
    [
        ([1], 0.3, 0.2, 32),
        ([24], 0.3, 0.2, 32),
        ([25, 25], 0.1, 0.2, 32),
        ([200, 30, 120, 77], 0.5, 0.2, 32),
        ([25] * 40, 0.1, 0.2, 32),
        ([25] * 12, 0.1, 0.2, 5),
        ([300], 2.0, 0.02, 32),
        ([50] * 6, 0.5, 0.0, 32),
    ],
)
def test_segments_are_those_of_ward_computed_anew_each_time(sections, noise, threshold, most):
    tokens = tokens_of(sections, noise)
    bounds = segment_bounds(tokens, 25, threshold, most)
    assert bounds.tolist() == naive_bounds(tokens, 25, threshold, most)
    assert len(bounds) - 1 <= most


def test_segments_find_the_sections_and_their_means_are_plain_means():
    tokens = tokens_of([200, 50, 150], noise=0.2)
    assert segment_bounds(tokens, 25).tolist() == [0, 200, 250, 400]
    means = mean_rows(tokens, torch.tensor([0, 200, 250, 400]))
    for mean, part in zip(means, (tokens[:200], tokens[200:250], tokens[250:]), strict=True):
        torch.testing.assert_close(mean, part.sum(0) / len(part))
    assert segment_bounds(tokens_of([400], noise=0.2), 25).tolist() == [0, 400]
    assert [frame_size(seconds) for seconds in (0.16, 10.0, 0.1)] == [25, 1, 40]


def test_a_track_is_stored_with_its_times():
    tokens = tokens_of([100, 100], noise=0.1)
    starts = torch.arange(200) * 0.16
    found = track_vectors(tokens, starts, 0.16, seconds=31.95)
    torch.testing.assert_close(found["segment_seconds"], torch.tensor([[0.0, 16.0], [16.0, 15.95]]))
    assert found["segment_tokens"].tolist() == [100, 100]
    mean = dequantize_rows(found["means"], found["mean_scales"])[0]
    weighed = (dequantize_rows(found["segments"], found["segment_scales"]) / 2).sum(0)  # both of 100 tokens
    torch.testing.assert_close(mean, tokens.mean(0), atol=3e-3, rtol=0)
    torch.testing.assert_close(weighed, mean, atol=5e-3, rtol=0)
    with pytest.raises(ValueError, match="no vectors"):
        track_vectors(tokens[:0], starts[:0], 0.16, 1.0)


def shard() -> tuple[list[dict], dict]:
    tracks = [
        track_vectors(tokens_of(one, seed=seed), torch.arange(sum(one)) * 0.16, 0.16, 60.0)
        for seed, one in enumerate(([30], [100, 80], [7, 200]))
    ]
    return tracks, join_tracks(tracks)


def test_tracks_come_out_of_a_shard_as_they_went_in():
    tracks, joined = shard()
    check_vectors(joined, 3, 32)
    for row, track in enumerate(tracks):
        found = one_track(joined, row)
        assert found.keys() == track.keys() and all(torch.equal(found[name], track[name]) for name in track)
        assert found["tokens"].untyped_storage().data_ptr() == joined["tokens"].untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("token_offsets", lambda one: one.flip(0), "do not rise"),
        ("token_offsets", lambda one: one + torch.tensor([0, 0, 0, 10**9]), "do not rise from 0 to the"),
        ("segment_offsets", lambda one: one[:-1], "expected int64 (4,)"),
        ("tokens", lambda one: one[:-1], "token_scales is"),
        ("tokens", lambda one: one.float(), "tokens is torch.float32"),
        ("segments", lambda one: one[:, :8], "segments is"),
        ("means", lambda one: one[:2], "means is"),
        ("segment_seconds", None, "has no segment_seconds"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(name, change, said):
    joined = shard()[1]
    value = joined.pop(name)
    if change:
        joined[name] = change(value)
    with pytest.raises(ValueError) as caught:
        check_vectors(joined, 3, 32)
    assert said in str(caught.value)
