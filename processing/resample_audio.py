"""Resampling of a stream of samples, so that a span of it is the slice of the whole, bit for bit.

Dimensions: `N` samples at the source's rate `R`, `M` samples at the asked rate `r`.
"""

import math
from collections.abc import Iterator

import numpy as np

try:
    import av
except ImportError:  # where a model's code was fetched from the Hub
    av = None

# libswresample's default filter spans 33 samples of the lower of both rates; twice that on either side.
RUN_UP_SAMPLES = 66


def resampling_start(first: int, source_rate: int, rate: int) -> tuple[int, int]:
    """Return (source sample, output sample) at which resampling has to start to give output sample `first`.

    Both grids meet every R / gcd source samples. Starting at such a point gives the filter the phases it has in the
    whole file. Negative before the file, where there is silence.
    """
    divisor = math.gcd(source_rate, rate)
    source_step, output_step = source_rate // divisor, rate // divisor
    run_up = math.ceil(RUN_UP_SAMPLES * max(source_rate, rate) / (rate * source_step))
    cycle = first // output_step - run_up
    return cycle * source_step, cycle * output_step


def resample(chunks: Iterator[tuple[int, np.ndarray]], source_rate: int, rate: int, first: int) -> Iterator[np.ndarray]:
    """Yield output samples from `first` on; M = ceil(N r / R) in the whole file, with silence on either side of it.

    Args:
        chunks: (position, (N',) float32) in one row, from `resampling_start` or before it to the end.

    Raises:
        MemoryError: the resampler gave fewer samples than it must, as it does without a word where memory ends.
    """
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)

    def convert(samples: np.ndarray) -> np.ndarray:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None, :], format="flt", layout="mono")
        frame.sample_rate = source_rate
        outputs = [output.to_ndarray()[0] for output in resampler.resample(frame)]
        return np.concatenate(outputs) if outputs else np.zeros(0, np.float32)

    start, index = resampling_start(first, source_rate, rate)
    if start < 0:
        index += len(convert(np.zeros(-start, np.float32)))
    end = 0
    for position, samples in chunks:
        end = position + len(samples)
        samples = samples[max(start - position, 0) :]
        if len(samples):
            outputs = convert(samples)
            yield outputs[max(first - index, 0) :]
            index += len(outputs)
    # Silence, not the resampler's flush, which mirrors the end and returns nothing for less than a filter length.
    outputs = convert(np.zeros(math.ceil(RUN_UP_SAMPLES * max(source_rate / rate, 1)), np.float32))
    num_outputs = -(-end * rate // source_rate)
    if end > start and index + len(outputs) < num_outputs:
        raise MemoryError(f"resampling gave {index + len(outputs)} of {num_outputs} samples")
    yield outputs[: max(num_outputs - index, 0)][max(first - index, 0) :]


def blocks(pieces: Iterator[np.ndarray], block_samples: int, num_samples: int | None) -> Iterator[np.ndarray]:
    """Yield the pieces, in one row and cut after `num_samples`, as blocks; the last may be shorter."""
    block, filled, left = np.empty(block_samples, np.float32), 0, math.inf if num_samples is None else num_samples
    for piece in pieces:
        piece = piece[: min(left, len(piece))]
        left -= len(piece)
        while len(piece):
            taken = piece[: block_samples - filled]
            block[filled : filled + len(taken)] = taken
            filled, piece = filled + len(taken), piece[len(taken) :]
            if filled == block_samples:
                yield block
                block, filled = np.empty(block_samples, np.float32), 0
        if not left:
            break
    if filled:
        yield block[:filled].copy()
