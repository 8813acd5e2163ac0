"""Find out whether a captioner hears a recording to its end: several stop at 30 seconds without a word.

Music in which nothing is like its beginning is played twice, the second time with another end. If the model makes the
same of both, it did not hear that end. Where hearing stops is found by halving.

Dimensions: `N` samples at `RATE`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .tracks import RATE

NOTE_SECONDS = 0.5
ACCURACY_SECONDS = 1.0
PROMPT = "Describe this piece of music from its beginning to its end."


@dataclass(frozen=True)
class Hearing:
    """Say how much of a recording a captioner hears.

    Attributes:
        seconds: of the recording.
        heard_seconds: after so many seconds nothing changes what it makes of it, to about a second.
    """

    seconds: float
    heard_seconds: float

    @property
    def is_whole(self) -> bool:
        """Tell whether it hears to the end."""
        return self.heard_seconds >= self.seconds - 2 * ACCURACY_SECONDS

    def __str__(self) -> str:
        if self.is_whole:
            return f"hears all of {self.seconds:.0f} s: another end changes its answer"
        if self.heard_seconds < ACCURACY_SECONDS:
            return f"does not hear: of {self.seconds:.0f} s, nothing changes its answer"
        return (
            f"stops at about {self.heard_seconds:.0f} s of {self.seconds:.0f} s: what comes later does not change its "
            "answer, and captions of it are made up"
        )


def probe_sounds(seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Return two pieces of music (N,), of the same notes in another order, alike in nothing but loud first notes.

    These hold the loudest sound of both, by which a feature extractor may scale all others.
    """
    generator = np.random.default_rng(30)
    count = max(round(seconds / NOTE_SECONDS), 2)
    pitches = generator.integers(45, 85, size=count)
    times = np.arange(round(NOTE_SECONDS * RATE)) / RATE
    fade = np.minimum(1, np.minimum(times, times[::-1]) / 0.02)

    def play(pitches: np.ndarray) -> np.ndarray:
        notes = [fade * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * times) for pitch in pitches]
        sound = 0.1 * np.concatenate(notes)
        sound[: len(times)] *= 8
        return sound.astype(np.float32)

    return play(pitches), play(np.concatenate([pitches[:1], (pitches[1:] - 45 + 17) % 40 + 45]))


def probe_hearing(listen: Callable[[np.ndarray], np.ndarray | str], seconds: float) -> Hearing:
    """Find how much of a recording of some length is heard.

    Args:
        listen: what the captioner makes of samples (N,): logits of its first word, or its answer.
        seconds: of the recording, as long as the longest track.
    """
    one, other = probe_sounds(seconds)
    first = listen(one)
    noise = max(_difference(first, listen(one)) for _ in range(3))  # of a device that does not add up the same

    def is_heard_after(start: float) -> bool:
        place = round(start * RATE)
        return _difference(first, listen(np.concatenate([one[:place], other[place:]]))) > 4 * noise

    low, high = 0.0, len(one) / RATE
    if is_heard_after(high - ACCURACY_SECONDS):
        return Hearing(high, high)
    if not is_heard_after(NOTE_SECONDS):
        return Hearing(high, 0.0)
    while high - low > ACCURACY_SECONDS:
        middle = (low + high) / 2
        low, high = (middle, high) if is_heard_after(middle) else (low, middle)
    return Hearing(len(one) / RATE, (low + high) / 2)


def _difference(one: np.ndarray | str, other: np.ndarray | str) -> float:
    if isinstance(one, str):
        return float(one != other)
    return float(np.abs(one - other).max())


def probe_captioner(captioner, seconds: float) -> Hearing | None:
    """Find how much a captioner hears of a recording; None for one that asks no model.

    The logits of a first word tell more than words do: these may stay the same for another sound.
    """
    writer = getattr(captioner, "writer", None)
    if writer is None:
        return None
    if hasattr(writer, "first_scores"):
        return probe_hearing(lambda samples: writer.first_scores(PROMPT, samples), seconds)
    return probe_hearing(lambda samples: writer.write([PROMPT], [samples], [0], 0.0, 128)[0], seconds)
