"""What a search returns: tracks with their scores, the seconds that match, and what is to be said about all of them."""

import os
from dataclasses import dataclass, fields
from urllib.parse import quote_from_bytes

from .library import shown
from .moments import Curve, SentenceSpan, Span

TAGS = ("title", "artist", "album", "year", "genre", "seconds")


@dataclass(frozen=True)
class Hit:
    """A track that was found.

    Attributes:
        rank: 1 for the best.
        track: its number in the index.
        id: of its content and path, the same in every index.
        path: within the library, as the file system has it.
        file: the whole path.
        title, artist, album, year, genre, seconds: from its tags, None where they do not say; seconds are its length.
        score: of the model, or an estimate of it.
        rescored: whether `score` is exact, see `ranking.py`.
        certified: whether nothing that was not found can belong in this list.
        deviations: how many standard deviations the score lies above the mean of the library for this query.
        match: share of a list of ordinary descriptions of music whose best score in this library is lower; None where
            the index is not calibrated, or the query is no single text.
        spans: the parts that match best, those first.
        sentences: of a query of words, where each is heard best; if they are aligned, in their order.
        curve: over time, if it was asked for.
        copies: paths of other files of the same recording that would be hits, too, if copies were not collapsed.
    """

    rank: int
    track: int
    id: str
    path: str
    file: str
    title: str | None
    artist: str | None
    album: str | None
    year: int | None
    genre: str | None
    seconds: float
    score: float
    rescored: bool
    certified: bool
    deviations: float
    match: float | None = None
    spans: tuple[Span, ...] = ()
    sentences: tuple[SentenceSpan, ...] = ()
    curve: Curve | None = None
    copies: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return artist and title, or what the path says."""
        if self.title:
            return f"{self.artist} - {self.title}" if self.artist else self.title
        return shown(os.fsencode(self.path))

    @property
    def uri(self) -> str:
        """Return the file as a URI, in which no character can break a line or a format."""
        return f"file://{quote_from_bytes(os.fsencode(self.file))}"

    def to_dict(self) -> dict:
        """Return all as JSON can hold it; a path that is no text has its odd bytes escaped, `uri` has all of them."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["path"], content["file"] = (shown(os.fsencode(one)) for one in (self.path, self.file))
        content["uri"] = self.uri
        content["spans"] = [vars(span) for span in self.spans]
        content["sentences"] = [vars(span) for span in self.sentences]
        content["curve"] = vars(self.curve) if self.curve else None
        content["copies"] = [shown(os.fsencode(path)) for path in self.copies]
        return content


class Results(list[Hit]):
    """The hits of one query, the best first.

    Attributes:
        notes: what is to be said about them, a line each.
        matches_well: False if the best hit is weaker than nearly all best hits of ordinary descriptions of music; None
            if that is not known.
        num_rescored: how many tracks were scored exactly.
        num_searched: how many could have been found.
    """

    def __init__(self, hits=(), notes=(), matches_well=None, num_rescored=0, num_searched=0):
        super().__init__(hits)
        self.notes, self.matches_well = tuple(notes), matches_well
        self.num_rescored, self.num_searched = num_rescored, num_searched

    def to_dict(self) -> dict:
        """Return all as JSON can hold it."""
        return {
            "matches_well": self.matches_well,
            "notes": list(self.notes),
            "searched": self.num_searched,
            "rescored": self.num_rescored,
            "hits": [hit.to_dict() for hit in self],
        }
