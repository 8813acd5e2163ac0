"""Routes of a song: what its tags say, its file, its cover, its waveform, and the score over its time."""

import os
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, Response

from ..moments import Curve
from .answers import Described, Track, Waveform
from .covers import cover_of
from .library_files import NotServed, OpenFileResponse, audio_type, open_library_file
from .problems import NOT_THERE
from .searcher import Searcher
from .waveforms import Waveforms
from .work import Work

COVER_SECONDS = 3600  # that a browser keeps a cover

# What is not JSON, for the description.
SOUND = {
    200: {"content": {"audio/*": {}}, "description": "The whole file."},
    206: {"content": {"audio/*": {}}, "description": "Ranges of it."},
    416: {"description": "The file has no such range."},
}
PICTURE = {200: {"content": {"image/*": {}}, "description": "The picture."}}


def add_track_routes(app: FastAPI, searcher: Searcher, searches: Work, reading: Work) -> None:
    """Add what is known of a song, and its sound.

    Args:
        searches: where the index is asked.
        reading: where files are read.
    """
    waveforms = Waveforms()

    def opened(id: str) -> tuple[int, str]:
        """Open the file of a song: its descriptor, and its path."""
        return open_library_file(searcher.library, *searcher.file_of(id))

    def cover(id: str) -> tuple[bytes, str]:
        with open(opened(id)[0], "rb") as file:
            found = cover_of(file)
        if found is None:
            raise NotServed("the file has no picture")
        return found

    def waveform(id: str) -> list[float]:
        descriptor, path = opened(id)
        os.close(descriptor)  # it is decoded in another process
        return waveforms.get(id) or waveforms.compute(id, path, searcher.track(id).seconds)

    @app.get("/api/tracks/{id}", responses=NOT_THERE)
    async def track(request: Request, id: str) -> Track:
        """Say what is known of a song."""
        async with searches.place():
            return await searches.run(request, searcher.track, id)

    @app.get("/api/tracks/{id}/curve", responses=NOT_THERE)
    async def curve(request: Request, id: str, asked: Annotated[Described, Query()]) -> Curve:
        """Say how well a song fits over its time."""
        async with searches.place():
            return await searches.run(request, searcher.curve, id, asked)

    @app.get("/api/tracks/{id}/audio", responses=NOT_THERE | SOUND, response_class=FileResponse)
    @app.head("/api/tracks/{id}/audio", include_in_schema=False)
    async def audio(request: Request, id: str) -> Response:
        """Send the file of a song as it is, or the ranges of it that are asked for."""
        async with reading.place():
            descriptor, path = await reading.run(request, opened, id)
        return OpenFileResponse(descriptor, audio_type(path))

    @app.get("/api/tracks/{id}/cover", responses=NOT_THERE | PICTURE, response_class=Response)
    async def picture(request: Request, id: str) -> Response:
        """Send the picture that the file of a song holds: JPEG, PNG, GIF or WebP."""
        async with reading.place():
            content, kind = await reading.run(request, cover, id)
        return Response(content, media_type=kind, headers={"cache-control": f"private, max-age={COVER_SECONDS}"})

    @app.get("/api/tracks/{id}/waveform", responses=NOT_THERE)
    async def shape(request: Request, id: str) -> Waveform:
        """Give what a waveform is drawn of; it is computed when it is first asked for."""
        async with reading.place():
            return Waveform(peaks=await reading.run(request, waveform, id))
