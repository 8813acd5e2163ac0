"""Describe tracks by a music language model, or by a captioner of the user's own.

A captioner is named by the folder or Hub id of a transformers model that hears, or by a Python file with a `load()`.
`template` and `columns`, which need no weights, are carried out where a track is decoded: `collap.corpora.listening`.

Dimensions: `N` samples at `RATE`, `S` sections.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from collap.files import nearest

from .asking import Asking, Question, Writer, unread_answers
from .captions import read_caption, read_text
from .rewriting import Rewriter
from .tracks import RATE, Caption, Section, Track
from .transformers_writer import TransformersWriter

PROMPTS = Path(__file__).with_name("prompts")
LEAST_SECONDS = 1.0  # of the audio of a section that is asked about


@runtime_checkable
class Captioner(Protocol):
    """Describe tracks. `name` and `licence` go with every caption."""

    name: str
    licence: str | None

    def describe(self, tracks: list[Track], samples: list[np.ndarray]) -> list[Caption]:
        """Return a caption of each track; samples are (N,), mono at `RATE`. The same for a track beside any others."""


class PromptedCaptioner:
    """Ask a model about tracks, and read its answers.

    Args:
        writer: answers.
        prompts: by name, see [`load_prompts`].
        asking: how it is asked.
        names_sections: whether the model itself names the sections of the whole track, rather than describing those
            that the track has. It does where a track has none.
    """

    def __init__(
        self,
        writer: Writer,
        prompts: dict[str, str],
        asking: Asking = Asking(),  # noqa: B008, which is frozen
        names_sections: bool = False,
    ):
        self.writer, self.prompts, self.asking, self.names_sections = writer, prompts, asking, names_sections
        self.name, self.licence = writer.name, writer.licence

    def describe(self, tracks: list[Track], samples: list[np.ndarray]) -> list[Caption]:
        """Return a caption of each track.

        An answer that cannot be read the second time either leaves its words empty, and is kept raw.
        """
        asked = [self._questions(*one) for one in zip(tracks, samples, strict=True)]
        self.asking.ask(self.writer, [one for questions in asked for one in questions])
        return [self._caption(track, questions) for track, questions in zip(tracks, asked, strict=True)]

    def _questions(self, track: Track, samples: np.ndarray) -> list[Question]:
        seconds = len(samples) / RATE
        if self.names_sections or not track.sections:
            prompt = self._prompt("track", seconds)
            return [Question(track.id, "track", "", prompt, samples, lambda answer: read_caption(answer, seconds))]
        questions = [Question(track.id, "overview", "", self._prompt("overview", seconds), samples, read_text)]
        for number, one in enumerate(track.sections):
            start, stop = round(one.start * RATE), round(max(one.end, one.start + LEAST_SECONDS) * RATE)
            prompt = self._prompt("section", one.end - one.start, one.label)
            questions.append(Question(track.id, "section", str(number), prompt, samples[start:stop], read_text))
        return questions

    def _prompt(self, kind: str, seconds: float, label: str = "") -> str:
        named = f", its {label}" if len(label) > 2 else ""  # a letter says nothing to a listener
        return self.prompts[kind].replace("{seconds}", f"{seconds:.0f}").replace("{label}", named)

    def _caption(self, track: Track, questions: list[Question]) -> Caption:
        first = questions[0]
        if first.kind == "track":
            caption = first.found or Caption("")
        else:
            told = zip(track.sections, questions[1:], strict=True)
            sections = [Section(one.start, one.end, one.label, answer.found or "") for one, answer in told]
            caption = Caption(first.found or "", sections)
        return replace(caption, captioner=self.name, licence=self.licence, **unread_answers(questions))


def load_prompts(folder: Path | None = None) -> dict[str, str]:
    """Return the prompts by name: `overview`, `section`, `track`, `pieces`, `rewrite`.

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
            f"{path}: expected a function load() that returns a Captioner of collap.corpora.captioners, or a Writer of "
            "collap.corpora.asking"
        )
    return found


def load_captioner(
    spec: str,
    device: str = "cpu",
    dtype: str = "bfloat16",
    prompts: Path | None = None,
    asking: Asking = Asking(),  # noqa: B008, which is frozen
    names_sections: bool = False,
    trust_remote_code: bool = False,
) -> Captioner:
    """Load what a user names.

    Args:
        spec: folder or Hub id of a transformers model, or `FILE.py`.
        device, dtype: of a model.
        prompts: see [`load_prompts`].
        asking, names_sections: see [`PromptedCaptioner`].
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
    return PromptedCaptioner(writer, texts, asking, names_sections)


def load_rewriter(
    name: str,
    device: str = "cpu",
    dtype: str = "bfloat16",
    prompts: Path | None = None,
    asking: Asking = Asking(),  # noqa: B008, which is frozen
    trust_remote_code: bool = False,
) -> Rewriter:
    """Load what says captions in other words; the arguments are those of [`load_captioner`].

    Args:
        name: folder or Hub id of a language model that chats, or `FILE.py` whose `load()` gives a [`Writer`].

    Raises:
        OSError, ValueError: there is no such model, or it has no chat template; one line.
    """
    texts = load_prompts(prompts)
    if name.endswith(".py"):
        writer = load_own(Path(name))
        if not isinstance(writer, Writer):
            raise ValueError(f"{name}: its load() gives no Writer, which could rewrite")
    else:
        writer = TransformersWriter(name, device, dtype, texts["pieces"], trust_remote_code)
        if not writer.chats:
            raise ValueError(f"{name}: has no chat template; expected a language model that chats")
    return Rewriter(writer, texts["rewrite"], asking)
