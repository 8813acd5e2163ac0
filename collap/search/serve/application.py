"""The HTTP API and the page, put together.

What takes the processor or a disk runs in threads (`work.py`), so that the server answers meanwhile. What goes wrong is
one line of JSON (`problems.py`).
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from .guard import Guard
from .limits import Limits
from .problems import ANYWHERE, add_problems
from .search_routes import add_search_routes
from .searcher import Searcher
from .track_routes import add_track_routes
from .work import Work

PAGE = Path(__file__).with_name("page")
DESCRIPTION = """Search a library of music by descriptions. Seconds are of the song, scores are the model's own.

Every error is `{"error": "one line"}`."""


def make_application(
    searcher: Searcher,
    limits: Limits | None = None,
    names: frozenset[str] = frozenset(),
    embedded_in: str | None = None,
) -> FastAPI:
    """Make the ASGI application that answers for an index.

    Args:
        searcher: of the index.
        limits: what is taken on.
        names, embedded_in: whom it answers, see [`Guard`].
    """
    limits = limits or Limits()
    # The pages that FastAPI makes of its description take their scripts from elsewhere.
    app = FastAPI(
        title="CoLLAP search",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        responses=ANYWHERE,
    )
    add_problems(app)
    searches = Work("searches", limits.search_threads, limits.searches_waiting)
    add_search_routes(app, searcher, searches, limits)
    add_track_routes(app, searcher, searches, Work("files", limits.reading_threads, limits.readings_waiting))
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_middleware(Guard, names=names, embedded_in=embedded_in)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    return app
