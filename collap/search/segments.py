"""Cut a track where its sound changes: few vectors that stand for all of its tokens. Pure functions.

Means of 4 s are merged with their neighbours in time, the two that differ least first, by Ward's criterion: what a
merge adds to the squared distances of all means from that of their segment,

    cost = n_a n_b / (n_a + n_b)  |m_a - m_b|^2        n: 4-s means in a segment, m: their mean

until the next merge would cost `threshold`, or as long as there are more than `most` segments. A track of one texture
becomes one segment, one of many sections many: equal cuts miss short sections, and a fixed number of segments misses
those of long medleys. The vector of a segment is the plain mean of its tokens, not scaled to unit norm, so that its
product with a text is the mean cosine.

Dimensions: `T` tokens of a track, `W` means of 4 s, `S` segments, `D` shared width.
"""

import numpy as np
import torch

FRAME_SECONDS = 4.0
THRESHOLD = 0.2  # chosen by how many candidates an exact answer needs, see docs/search.md
MOST_SEGMENTS = 32


def frame_size(token_seconds: float) -> int:
    """Return how many tokens a 4-s mean is of; at least 1."""
    return max(1, round(FRAME_SECONDS / token_seconds))


def segment_bounds(
    tokens: torch.Tensor, size: int, threshold: float = THRESHOLD, most: int = MOST_SEGMENTS
) -> torch.Tensor:
    """Find where the segments of a track begin and end.

    Args:
        tokens: (T, D), T at least 1.
        size: tokens of a mean, from [`frame_size`]; the last mean may be of fewer, and counts by its share.
        threshold: cost from which on segments stay apart.
        most: segments that a track may have.

    Returns:
        (S + 1,) int64, from 0 to T: segment i holds the tokens `bounds[i]` to `bounds[i + 1]`.
    """
    edges = torch.cat([torch.arange(0, len(tokens), size), torch.tensor([len(tokens)])])  # (W + 1,)
    means = mean_rows(tokens, edges).double().numpy()  # (W, D)
    counts = edges.diff().double().numpy() / size  # (W,)
    following = np.arange(1, len(means) + 1)  # (W,) the segment after each, by the place of its first mean
    previous = np.arange(-1, len(means) - 1)
    costs = np.full(len(means), np.inf)  # of merging a segment with the one that follows it
    costs[:-1] = _merge_costs(counts[:-1], counts[1:], means[:-1], means[1:])
    left = len(means)
    while left > 1 and (costs.min() < threshold or left > most):
        first = int(costs.argmin())
        second, third = following[first], following[following[first]]
        total = counts[first] + counts[second]
        means[first] = (counts[first] * means[first] + counts[second] * means[second]) / total
        counts[first], following[first], costs[second], left = total, third, np.inf, left - 1
        costs[first] = np.inf
        if third < len(means):
            previous[third] = first
            costs[first] = _merge_costs(total, counts[third], means[first], means[third])
        if (before := previous[first]) >= 0:
            costs[before] = _merge_costs(counts[before], total, means[before], means[first])
    starts = _chain(following, len(means))
    return torch.cat([edges[starts], edges[-1:]])  # (S + 1,)


def mean_rows(rows: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Average consecutive rows (T, D) between bounds (S + 1,): (S, D) float32."""
    return torch.stack([part.float().mean(0) for part in rows.split(bounds.diff().tolist())])  # (S, D)


def _merge_costs(count, other_count, mean, other_mean):
    """Return what merging two segments adds to the squared distances from the segments' means."""
    return count * other_count / (count + other_count) * ((mean - other_mean) ** 2).sum(-1)


def _chain(following: np.ndarray, end: int) -> list[int]:
    """Return 0, the one that follows it, and so on, up to `end`."""
    place, found = 0, []
    while place < end:
        found.append(place)
        place = int(following[place])
    return found
