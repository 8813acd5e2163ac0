"""Routes that search: by words, by a moment of a song, by a clip."""

import asyncio
import time
from dataclasses import asdict
from typing import Annotated

from fastapi import FastAPI, Query, Request

from .answers import Answer, Asked, Narrowed, Statistics
from .limits import Limits
from .problems import TOO_LARGE, TooLarge
from .searcher import Searcher
from .work import Work, watching

UPLOAD_BODY = {
    "required": True,
    "description": "The bytes of an audio file.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


def add_search_routes(app: FastAPI, searcher: Searcher, searches: Work, limits: Limits) -> None:
    """Add what searches the index, and what says what it holds.

    Args:
        searches: where the index is asked.
    """
    clips = Work("clips", 1, limits.clips_waiting)

    @app.get("/api/search")
    async def search(request: Request, asked: Annotated[Asked, Query()]) -> Answer:
        """Find the songs that a description fits, or that sound like a song or a moment of one, and where in them."""
        began = time.monotonic()
        async with searches.place():
            found = await searches.run(request, searcher.search, asked)
        return Answer(**found, milliseconds=_since(began))

    @app.post("/api/similar", openapi_extra={"requestBody": UPLOAD_BODY}, responses=TOO_LARGE)
    async def similar(request: Request, asked: Annotated[Narrowed, Query()]) -> Answer:
        """Find the songs that sound like a clip: any audio file, sent as the body."""
        began = time.monotonic()
        async with clips.place():
            clip = await _body(request, limits)
            async with watching(request) as gone:
                heard = await clips.run(request, searcher.embed_clip, clip, limits.clip_seconds, gone)
        async with searches.place():
            found = await searches.run(request, searcher.similar, heard, asked)
        return Answer(**found, milliseconds=_since(began))

    @app.get("/api/stats")
    async def statistics(request: Request) -> Statistics:
        """Say what the index holds, and what this server takes on."""
        async with searches.place():
            about = await searches.run(request, searcher.statistics)
        return Statistics(**about, limits=asdict(limits))


def _since(began: float) -> float:
    return round(1000 * (time.monotonic() - began), 1)


async def _body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request as far as it may go, whether or not its length is said before.

    Raises:
        TooLarge: it is longer.
        ValueError: it is empty, or takes too long.
    """
    declared = request.headers.get("content-length", "")
    too_large = TooLarge(f"the clip has more than {limits.upload_bytes} bytes, which are taken; cut it")
    if declared.isdecimal() and int(declared) > limits.upload_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.upload_bytes:
                    raise too_large
    except TimeoutError as error:
        raise ValueError(f"the clip was not there after {limits.upload_seconds:g} s; send it faster") from error
    if not body:
        raise ValueError("the body of the request is empty; expected an audio file")
    return bytes(body)
