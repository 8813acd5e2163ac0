"""Ask a language model, a batch at a time; what cannot be read of its answers is asked once more, with another seed.

Dimensions: `N` samples at `tracks.RATE`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

RETRY_TEMPERATURE = 0.7  # at least, or the same question would get the same answer
MAX_TOKENS = {"overview": 256, "section": 192, "track": 2048, "rewrite": 384}


@runtime_checkable
class Writer(Protocol):
    """Answer questions, most of them about audio, in words."""

    name: str
    licence: str | None

    def write(
        self,
        prompts: list[str],
        audios: list[np.ndarray | None],
        seeds: list[int],
        temperature: float,
        max_tokens: int,
    ) -> list[str]:
        """Return an answer to each prompt about its audio (N,), None for no audio in all of them.

        Temperature 0 takes the likeliest word, always.
        """


@dataclass
class Question:
    """Hold what is asked about a track, and what came back.

    Attributes:
        track_id: of the track.
        kind: name of its prompt, see `MAX_TOKENS`.
        key: tells it from other questions of the kind about the same track.
        read: what makes something of an answer, or raises a ValueError.
    """

    track_id: str
    kind: str
    key: str
    prompt: str
    audio: np.ndarray | None
    read: Callable[[str], object]
    answer: str = ""
    found: object = None
    problem: str | None = None
    retries: int = 0


@dataclass(frozen=True)
class Asking:
    """Say how a model is asked.

    Attributes:
        seed: of the answers, with the track's id: neither order nor neighbours matter.
        batch_size: questions at a time.
        temperature: 0 for the likeliest words.
    """

    seed: int = 0
    batch_size: int = 4
    temperature: float = 0.0

    def ask(self, writer: Writer, questions: list[Question]) -> None:
        """Fill in what a model answers to questions, and what is read of it or why it cannot be."""
        self._ask(writer, questions, attempt=0)
        self._ask(writer, [one for one in questions if one.problem], attempt=1)

    def _ask(self, writer: Writer, questions: list[Question], attempt: int) -> None:
        """Ask a batch at a time, of questions that are alike and about equally long."""
        size = [len(one.audio) if one.audio is not None else len(one.prompt) for one in questions]
        order = sorted(range(len(questions)), key=lambda place: (questions[place].kind, -size[place]))
        questions = [questions[place] for place in order]
        temperature = max(self.temperature, RETRY_TEMPERATURE) if attempt else self.temperature
        first = 0
        while first < len(questions):
            kind = questions[first].kind
            batch = [one for one in questions[first : first + self.batch_size] if one.kind == kind]
            seeds = [answer_seed(one.track_id, kind, one.key, attempt, self.seed) for one in batch]
            told = [one.prompt for one in batch], [one.audio for one in batch]
            answers = writer.write(*told, seeds, temperature, MAX_TOKENS[kind])
            for one, answer in zip(batch, answers, strict=True):
                one.answer, one.problem, one.retries = answer, None, attempt
                try:
                    one.found = one.read(answer)
                except ValueError as error:
                    one.problem = str(error)
            first += len(batch)


def unread_answers(questions: list[Question]) -> dict[str, object]:
    """Return `raw`, `problem` and `retries` of a caption that was made of the answers to some questions."""
    failed = [one for one in questions if one.problem]
    return {
        "raw": "\n\n".join(one.answer for one in failed) if failed else None,
        "problem": f"{failed[0].kind}: {failed[0].problem}" if failed else None,
        "retries": sum(one.retries for one in questions),
    }


def answer_seed(*parts: object) -> int:
    """Return a seed (below 2^63) that depends on all of its parts, and on nothing else."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
