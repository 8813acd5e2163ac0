"""What the HTTP API takes and gives, as its OpenAPI description has it. Seconds are of the song."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ..index import Hit

MAX_CHARACTERS = 4000  # of a query
MAX_HITS = 100

Text = Annotated[str | None, Field(max_length=MAX_CHARACTERS)]
Seconds = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class Problem(BaseModel):
    """What went wrong."""

    error: str = Field(description="One line: what was found, and what was expected.")


# ---- what is asked


class Narrowed(BaseModel):
    """Which songs, and how many."""

    model_config = ConfigDict(extra="forbid")

    filter: Text = Field(None, description="Conditions on tags, such as year>=1970 and genre=jazz.")
    min_seconds: Seconds = Field(None, description="Songs that last as long or longer.")
    max_seconds: Seconds = Field(None, description="Songs that last as long or shorter.")
    k: int = Field(10, ge=1, le=MAX_HITS, description="So many songs.")


class Asked(Narrowed):
    """What to look for: a description, a moment of a song, or both."""

    q: Text = Field(None, description="A description; each of its sentences is looked for.")
    not_: Text = Field(None, alias="not", description="What it does not sound like.")
    like: Text = Field(None, description="ID or ID@SECONDS of a song: what sounds like it, or like that moment.")


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


class Answer(BaseModel):
    """Songs, the best first."""

    hits: list[Hit]
    message: str | None = Field(description="Whether they fit well.")
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
