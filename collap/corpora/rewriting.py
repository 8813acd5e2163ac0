"""Say captions once more in other words, by a language model: the times stay, and no number is new.

The overview and what is said of each section are rewritten one by one, so that no time can be lost; whether the model
adds an instrument that is not there cannot be told.
"""

import re
from dataclasses import replace

from .asking import Asking, Question, Writer, unread_answers
from .captions import read_text
from .tracks import Caption, Track

NUMBER = re.compile(r"\d+(?:[.:]\d+)?")
LEAST_LENGTH, MOST_LENGTH, FREE_WORDS = 0.4, 2.0, 10  # of the words of what is rewritten


class Rewriter:
    """Rewrite captions.

    Args:
        writer: a language model; it needs not hear.
        prompt: with `{text}`, which is to be rewritten.
        asking: how it is asked.
    """

    def __init__(self, writer: Writer, prompt: str, asking: Asking):
        self.writer, self.prompt, self.asking = writer, prompt, asking

    def rewrite(self, tracks: list[Track]) -> list[list[Caption]]:
        """Return captions that say in other words what those of each track do, where these say anything.

        Of an answer that cannot be read, not even the second time, the old words stay, and it is kept raw.
        """
        captions = [[one for one in track.captions if any(_pieces(one))] for track in tracks]
        asked = [
            [self._questions(track.id, str(place), one) for place, one in enumerate(said)]
            for track, said in zip(tracks, captions, strict=True)
        ]
        self.asking.ask(self.writer, [one for found in asked for questions in found for one in questions])
        return [
            [self._caption(caption, questions) for caption, questions in zip(said, found, strict=True)]
            for said, found in zip(captions, asked, strict=True)
        ]

    def _questions(self, track_id: str, name: str, caption: Caption) -> list[Question]:
        return [
            Question(track_id, "rewrite", f"{name} {place}", self.prompt.replace("{text}", text), None, _reader(text))
            for place, text in enumerate(_pieces(caption))
            if text
        ]

    def _caption(self, caption: Caption, questions: list[Question]) -> Caption:
        pieces, answers = _pieces(caption), iter(questions)
        is_new = any(one.found for one in questions)
        said = [(next(answers).found or (text if is_new else "")) if text else "" for text in pieces]
        told = zip(caption.sections, said[1:], strict=True)
        licences = (caption.licence, self.writer.licence)
        return replace(
            caption,
            overview=said[0],
            sections=[replace(section, text=text) for section, text in told],
            captioner=f"{caption.captioner}, rewritten by {self.writer.name}",
            licence=None if None in licences else " and ".join(dict.fromkeys(licences)),
            **unread_answers(questions),
        )


def _pieces(caption: Caption) -> list[str]:
    """Return the overview, and the text of each section."""
    return [caption.overview.strip(), *(one.text.strip() for one in caption.sections)]


def _reader(text: str):
    return lambda answer: read_rewritten(answer, text)


def read_rewritten(answer: str, text: str) -> str:
    """Read an answer that says a text in other words.

    Raises:
        ValueError: it is no description in words, says a number that the text does not, or is of quite another length.
    """
    told = read_text(answer)
    if new := sorted(set(NUMBER.findall(told)) - set(NUMBER.findall(text))):
        raise ValueError(f"says {', '.join(new)[:80]}, which what it rewrites does not")
    words, own = len(told.split()), len(text.split())
    if not LEAST_LENGTH * own - FREE_WORDS <= words <= MOST_LENGTH * own + FREE_WORDS:
        raise ValueError(f"has {words} words for {own}")
    return told
