"""What the HTTP API takes and gives, as its OpenAPI description has it. Seconds are of the song."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..moments import Curve, SentenceSpan, Span
from ..ranking import MODES

MAX_CHARACTERS = 4000  # of a query
MAX_HITS = 100

Text = Annotated[str | None, Field(max_length=MAX_CHARACTERS)]
Seconds = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class Problem(BaseModel):
    """What went wrong."""

    error: str = Field(description="One line: what was found, and what was expected.")


# ---- what is asked


class Described(BaseModel):
    """What to look for: a description, or a moment of a song."""

    model_config = ConfigDict(extra="forbid")

    q: Text = Field(None, description="A description; each of its sentences is looked for.")
    like: Text = Field(None, description="ID or ID@SECONDS of a song: what sounds like it, or like that moment.")


class Narrowed(BaseModel):
    """Which songs, how many, and what to say of them."""

    model_config = ConfigDict(extra="forbid")

    filter: Text = Field(None, description="Conditions on tags, such as year>=1970 and genre=jazz.")
    min_seconds: Seconds = Field(None, description="Songs that last as long or longer.")
    max_seconds: Seconds = Field(None, description="Songs that last as long or shorter.")
    k: int = Field(10, ge=1, le=MAX_HITS, description="So many songs.")
    mode: Literal[MODES] = Field("fixed", description="How many songs are scored exactly.")
    curve: bool = Field(False, description="Whether to give the score over the time of each song.")
    all_copies: bool = Field(False, description="Whether copies of one recording are songs of their own.")


class Asked(Described, Narrowed):
    """What a search is for."""

    not_: Text = Field(None, alias="not", description="What it must not sound like.")


# ---- what is answered


class Track(BaseModel):
    """A song of the library, and what its tags say."""

    id: str
    path: str = Field(description="Within the library.")
    title: str | None
    artist: str | None
    album: str | None
    year: int | None
    genre: str | None
    seconds: float


class FoundTrack(Track):
    """A song that was found; the fields are those of `collap search --json`, but for places of the server's disk."""

    rank: int = Field(description="1 for the best.")
    score: float = Field(description="Of the model.")
    rescored: bool = Field(description="Whether the score is exact, and no estimate.")
    certified: bool = Field(description="Whether no song that is not in the list can belong in it.")
    deviations: float = Field(description="Standard deviations above the mean of the library for this query.")
    match: float | None = Field(description="Share of ordinary descriptions whose best song here scores lower.")
    spans: list[Span] = Field(description="The parts that fit best, those first.")
    sentences: list[SentenceSpan] = Field(description="Where each sentence of a description is heard.")
    curve: Curve | None = Field(description="The score over time, if it was asked for.")
    copies: list[str] = Field(description="Within the library: other files of the same recording that fit as well.")


class Answer(BaseModel):
    """Songs, the best first."""

    hits: list[FoundTrack]
    matches_well: bool | None = Field(description="False if even the best fits badly; null if that is not known.")
    notes: list[str] = Field(description="What is to be said about all of them.")
    searched: int = Field(description="Songs that could have been found.")
    rescored: int = Field(description="Songs that were scored exactly.")
    milliseconds: float = Field(description="From the request to its answer, waiting included.")


class Waveform(BaseModel):
    """The loudest sample of each part of a song; all parts are of one length."""

    peaks: list[float] = Field(description="From 0 to 1.")


class Genre(BaseModel):
    name: str
    tracks: int


class Statistics(BaseModel):
    """What the index holds."""

    tracks: int
    hours: float
    failed: int = Field(description="Files that could not be read.")
    bytes: int
    model: str
    space: str = Field(description="Id of the space that the vectors are of.")
    generation: int = Field(description="How many times the index was published.")
    genres: list[Genre] = Field(description="The most frequent.")
    filter_help: str
    limits: dict[str, float]
