"""Answer what cannot be done with one line of JSON; a stack trace goes to the log alone."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from collap.files import flat

from ..filters import FilterError
from .answers import Problem
from .library_files import NotServed
from .work import TooBusy

RETRY_SECONDS = 5
CLIENT_GONE = 499  # nobody receives it

# What routes may answer, for their description.
NOT_THERE = {404: {"model": Problem, "description": "There is no such thing, or it is not served."}}
TOO_LARGE = {413: {"model": Problem, "description": "The clip is too large."}}
ANYWHERE = {
    422: {"model": Problem, "description": "What is asked for cannot be answered; `error` says why."},
    503: {"model": Problem, "description": "Too much is waiting; try again."},
}


class TooLarge(Exception):
    """Say that more was sent than is taken."""


def add_problems(app: FastAPI) -> None:
    """Let an application answer errors by their kind."""
    kinds = {NotServed: 404, TooLarge: 413, ValueError: 422, TooBusy: 503}
    for kind, status in kinds.items():
        app.add_exception_handler(kind, _answering(status))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=CLIENT_GONE))
    app.add_exception_handler(Exception, _unexpected)  # it is raised again for the log


def _answering(status: int):
    headers = {"retry-after": str(RETRY_SECONDS)} if status == 503 else None

    async def answer(request: Request, error: Exception) -> JSONResponse:
        line = (
            str(error).splitlines()[0] if isinstance(error, FilterError) else flat(error)
        )  # the others draw the place
        return JSONResponse({"error": line}, status, headers)

    return answer


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """Name each parameter that is wrong and what was expected of it."""
    problems = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
    return JSONResponse({"error": flat(ValueError("; ".join(problems)))}, 422)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    line = f"{request.method} {request.scope['path']!r}: {error.detail}; /openapi.json says what there is"
    return JSONResponse({"error": line}, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the server has failed at this; its log says how"}, 500)
