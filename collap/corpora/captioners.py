"""Describe tracks by a music language model, or by a captioner of the user's own.

A captioner is named by the folder or Hub id of a transformers model that hears, or by a Python file with a `load()`.
`template` and `columns`, which need no weights, are carried out where a track is decoded: `collap.corpora.listening`.

Dimensions: `N` samples at `RATE`, `S` sections.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from collap.files import nearest

from .captions import read_caption, read_text
from .tracks import RATE, Caption, Section, Track
from .transformers_writer import TransformersWriter

PROMPTS = Path(__file__).with_name("prompts")
RETRY_TEMPERATURE = 0.7  # at least, or the same question would get the same answer
LEAST_SECONDS = 1.0  # of the audio of a section that is asked about
MAX_TOKENS = {"overview": 256, "section": 192, "track": 2048}


@runtime_checkable
class Captioner(Protocol):
    """Describe tracks. `name` and `licence` go with every caption."""

    name: str
    licence: str | None

    def describe(self, tracks: list[Track], samples: list[np.ndarray]) -> list[Caption]:
        """Return a caption of each track; samples are (N,), mono at `RATE`. The same for a track beside any others."""


@runtime_checkable
class Writer(Protocol):
    """Answer questions about audio in words."""

    name: str
    licence: str | None

    def write(
        self, prompts: list[str], audios: list[np.ndarray], seeds: list[int], temperature: float, max_tokens: int
    ) -> list[str]:
        """Return an answer to each prompt about its audio (N,). Temperature 0 takes the likeliest word, always."""


@dataclass
class Question:
    """Hold what is asked about a track, and what came back.

    Attributes:
        track: its place in the call.
        kind: name of its prompt: `overview`, `section` or `track`.
        key: tells it from other questions about the same track.
        read: what makes something of an answer, or raises a ValueError.
    """

    track: int
    kind: str
    key: str
    prompt: str
    audio: np.ndarray
    read: Callable[[str], object]
    answer: str = ""
    found: object = None
    problem: str | None = None
    retries: int = 0


class PromptedCaptioner:
    """Ask a model about tracks, and read its answers; what cannot be read is asked once more, with another seed.

    Args:
        writer: answers.
        prompts: by name, see [`load_prompts`].
        seed: of the answers, with the track's id: neither order nor neighbours matter.
        batch_size: questions at a time.
        temperature: 0 for the likeliest words.
        names_sections: whether the model itself names the sections of the whole track, rather than describing those
            that the track has. It does where a track has none.
    """

    def __init__(
        self,
        writer: Writer,
        prompts: dict[str, str],
        seed: int = 0,
        batch_size: int = 4,
        temperature: float = 0.0,
        names_sections: bool = False,
    ):
        self.writer, self.prompts, self.seed = writer, prompts, seed
        self.batch_size, self.temperature, self.names_sections = batch_size, temperature, names_sections
        self.name, self.licence = writer.name, writer.licence

    def describe(self, tracks: list[Track], samples: list[np.ndarray]) -> list[Caption]:
        """Return a caption of each track.

        An answer that cannot be read the second time either leaves its words empty, and is kept raw.
        """
        asked = [self._questions(place, *one) for place, one in enumerate(zip(tracks, samples, strict=True))]
        questions = [one for questions in asked for one in questions]
        self._ask(questions, tracks, attempt=0)
        self._ask([one for one in questions if one.problem], tracks, attempt=1)
        return [self._caption(track, questions) for track, questions in zip(tracks, asked, strict=True)]

    def _questions(self, place: int, track: Track, samples: np.ndarray) -> list[Question]:
        seconds = len(samples) / RATE
        if self.names_sections or not track.sections:
            prompt = self._prompt("track", seconds)
            return [Question(place, "track", "", prompt, samples, lambda answer: read_caption(answer, seconds))]
        questions = [Question(place, "overview", "", self._prompt("overview", seconds), samples, read_text)]
        for number, one in enumerate(track.sections):
            start, stop = round(one.start * RATE), round(max(one.end, one.start + LEAST_SECONDS) * RATE)
            prompt = self._prompt("section", one.end - one.start, one.label)
            questions.append(Question(place, "section", str(number), prompt, samples[start:stop], read_text))
        return questions

    def _prompt(self, kind: str, seconds: float, label: str = "") -> str:
        named = f", its {label}" if len(label) > 2 else ""  # a letter says nothing to a listener
        return self.prompts[kind].replace("{seconds}", f"{seconds:.0f}").replace("{label}", named)

    def _ask(self, questions: list[Question], tracks: list[Track], attempt: int) -> None:
        """Fill in answers, a batch at a time, of questions that are alike and equally long."""
        questions = sorted(questions, key=lambda one: (one.kind, -len(one.audio)))
        temperature = max(self.temperature, RETRY_TEMPERATURE) if attempt else self.temperature
        first = 0
        while first < len(questions):
            kind = questions[first].kind
            batch = [one for one in questions[first : first + self.batch_size] if one.kind == kind]
            seeds = [answer_seed(tracks[one.track].id, one.kind, one.key, attempt, self.seed) for one in batch]
            told = [one.prompt for one in batch], [one.audio for one in batch]
            answers = self.writer.write(*told, seeds, temperature, MAX_TOKENS[kind])
            for one, answer in zip(batch, answers, strict=True):
                one.answer, one.problem, one.retries = answer, None, attempt
                try:
                    one.found = one.read(answer)
                except ValueError as error:
                    one.problem = str(error)
            first += len(batch)

    def _caption(self, track: Track, questions: list[Question]) -> Caption:
        failed = [one for one in questions if one.problem]
        first = questions[0]
        if first.kind == "track":
            caption = first.found or Caption("")
        else:
            told = zip(track.sections, questions[1:], strict=True)
            sections = [Section(one.start, one.end, one.label, answer.found or "") for one, answer in told]
            caption = Caption(first.found or "", sections)
        return replace(
            caption,
            captioner=self.name,
            licence=self.licence,
            raw="\n\n".join(one.answer for one in failed) if failed else None,
            problem=f"{failed[0].kind}: {failed[0].problem}" if failed else None,
            retries=sum(one.retries for one in questions),
        )


def answer_seed(*parts: object) -> int:
    """Return a seed (below 2^63) that depends on all of its parts, and on nothing else."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def load_prompts(folder: Path | None = None) -> dict[str, str]:
    """Return the prompts by name: `overview`, `section`, `track`, `pieces`.

    Args:
        folder: of text files that take the place of the package's own.

    Raises:
        ValueError: it holds none, or one of another name.
    """
    prompts = {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(PROMPTS.glob("*.txt"))}
    if folder is None:
        return prompts
    own = {path.stem: path for path in sorted(Path(folder).glob("*.txt"))}
    if not own:
        raise ValueError(f"{folder}: holds no prompt; expected one or more of {', '.join(f'{n}.txt' for n in prompts)}")
    for name, path in own.items():
        if name not in prompts:
            raise ValueError(f"{path}: no prompt is called so; {nearest(name, prompts)}")
        prompts[name] = path.read_text(encoding="utf-8").strip()
    return prompts


def load_own(path: Path) -> Captioner | Writer:
    """Run a Python file of the user's own and return what its `load()` gives.

    Raises:
        OSError, ValueError: there is no such file, it has no `load()`, or this gives neither of the two.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected one with a load() that returns a captioner")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.load() if hasattr(module, "load") else None
    if not isinstance(found, Captioner | Writer):
        raise ValueError(
            f"{path}: expected a function load() that returns a collap.corpora.captioners.Captioner or Writer"
        )
    return found


def load_captioner(
    spec: str,
    device: str = "cpu",
    dtype: str = "bfloat16",
    seed: int = 0,
    prompts: Path | None = None,
    batch_size: int = 4,
    temperature: float = 0.0,
    names_sections: bool = False,
    trust_remote_code: bool = False,
) -> Captioner:
    """Load what a user names.

    Args:
        spec: folder or Hub id of a transformers model, or `FILE.py`.
        device, dtype: of a model.
        seed, batch_size, temperature, names_sections: see [`PromptedCaptioner`].
        prompts: see [`load_prompts`].
        trust_remote_code: whether code in the model's folder may run, as MOSS-Music needs.

    Raises:
        OSError, ValueError: there is no such captioner; one line.
    """
    texts = load_prompts(prompts)
    if spec.endswith(".py"):
        writer = load_own(Path(spec))
        if isinstance(writer, Captioner):
            return writer
    else:
        writer = TransformersWriter(spec, device, dtype, texts["pieces"], trust_remote_code)
    return PromptedCaptioner(writer, texts, seed, batch_size, temperature, names_sections)
