"""Divide work among machines that do not know each other: `--shard 0/4` does the first of four parts of it."""

import re
from dataclasses import dataclass

SHARD = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Shard:
    """Hold which part of the work is done here: part `index` of `count`."""

    index: int = 0
    count: int = 1

    def has(self, number: int) -> bool:
        """Tell whether what is numbered `number` belongs to this part."""
        return number % self.count == self.index

    def part(self, index: int, count: int) -> "Shard":
        """Return a part of this part."""
        return Shard(self.index + self.count * index, self.count * count)


def parse_shard(text: str | None) -> Shard:
    """Read `0/4`; None is all of the work.

    Raises:
        ValueError: it is no such part.
    """
    if text is None:
        return Shard()
    match = SHARD.fullmatch(text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"--shard {text}: expected i/n, from 0/n to the last, which is (n - 1)/n: 0/4, 1/4, 2/4, 3/4")
    return Shard(int(match[1]), int(match[2]))
