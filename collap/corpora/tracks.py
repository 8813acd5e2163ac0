"""Describe a track on its way into a data set: what is known of it, where its sections are, what is said of them.

Each stage of the builder takes a [`Track`] and its samples and fills in what it finds; as JSON it is kept after every
stage, so that a run that was killed goes on.

Dimensions: `N` samples at [`RATE`].
"""

import dataclasses
from dataclasses import dataclass, field

RATE = 16_000  # Hz at which every stage hears a track


@dataclass
class Section:
    """Describe a section of a track.

    Attributes:
        start, end: seconds in the track as it is written (after cropping).
        label: such as `verse`, or a letter that sections which sound alike share; empty if not known.
        text: what is said of it, without its times; empty until it is captioned.
    """

    start: float
    end: float
    label: str = ""
    text: str = ""


@dataclass
class Caption:
    """Hold what a captioner says of a track.

    Attributes:
        overview: of the whole track, without times.
        sections: with their times and texts, ascending; none if the captioner names no sections.
        captioner: who wrote it: `template`, a column or data set, or a model with its digest.
        licence: under which the captioner's texts, or its weights, are given; None if not known.
        raw: what the model wrote, word for word, where it could not be parsed; else None.
        problem: why that could not be parsed; else None.
        retries: how many of its answers could not be parsed and were asked for once more.
        score: how well a model finds that it fits its track; None if none was asked.
    """

    overview: str
    sections: list[Section] = field(default_factory=list)
    captioner: str = "template"
    licence: str | None = None
    raw: str | None = None
    problem: str | None = None
    retries: int = 0
    score: float | None = None

    @property
    def says_nothing(self) -> bool:
        """Tell whether nothing that its model wrote could be read: its times and labels are those it was given."""
        return self.raw is not None and not any(map(str.strip, [self.overview, *(one.text for one in self.sections)]))


@dataclass
class Track:
    """Describe a track.

    Attributes:
        id: its name in the data set, of letters, digits, `-` and `_`; distinct.
        audio: path of its file, or as `collap.data.audio_parts` names a span or a member of an archive.
        origin: where it was listed, for messages: `list.csv, row 3`.
        seconds: length as written; None until it is known.
        listed_seconds: length of what was listed, before it was cropped, which the times of its texts are of.
        crop: start and end in seconds of what is kept of a longer recording; None for all of it.
        listing: digest of what was listed of it, by which a list that was changed is told.
        digest: of the content of its file; None until it was read.
        artist, source, licence: as the list says; None if not known. `source` is `youtube:ID` or alike.
        tags: what the list, or tags of the file, say of it, such as genre, mood, title.
        texts: captions that the list has.
        sections: as annotated or found; None until then.
        boundaries: what found them: `annotation`, `caption`, `audio`; None until then.
        measures: by name: levels, tempo, and so on, of the whole track and of sections.
        captions: what captioners said of it.
        dropped: why it is left out; None if it is kept.
    """

    id: str
    audio: str
    origin: str = ""
    seconds: float | None = None
    listed_seconds: float | None = None
    crop: tuple[float, float] | None = None
    listing: str | None = None
    digest: str | None = None
    artist: str | None = None
    source: str | None = None
    licence: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    sections: list[Section] | None = None
    boundaries: str | None = None
    measures: dict = field(default_factory=dict)
    captions: list[Caption] = field(default_factory=list)
    dropped: str | None = None

    def to_json(self) -> dict:
        """Return what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: dict) -> "Track":
        """Return the track that [`to_json`] wrote."""
        found = dict(found)
        if found["crop"] is not None:
            found["crop"] = tuple(found["crop"])
        if found["sections"] is not None:
            found["sections"] = [Section(**one) for one in found["sections"]]
        captions = [{**one, "sections": [Section(**part) for part in one["sections"]]} for one in found["captions"]]
        return cls(**{**found, "captions": [Caption(**one) for one in captions]})
