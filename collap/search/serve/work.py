"""Run what takes the processor or a disk in a few threads, so that the server answers meanwhile; refuse what it cannot
do soon."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request

Result = TypeVar("Result")

LOOK_SECONDS = 0.5  # after which it is looked again whether a client is there


class TooBusy(Exception):
    """Say that so much is waiting already that nothing more is taken on."""


class Work:
    """Carry out functions in threads; the others wait, up to a number of them, in the order in which they came.

    Args:
        name: of the work, for messages.
        threads: functions that run at a time.
        waiting: requests that may wait beside these.
    """

    def __init__(self, name: str, threads: int, waiting: int):
        self.name, self.most = name, threads + waiting
        self.limiter, self.taken = anyio.CapacityLimiter(threads), 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Take a place among what waits and runs, and give it back.

        Raises:
            TooBusy: there is none.
        """
        if self.taken >= self.most:
            raise TooBusy(f"{self.taken} {self.name} are waiting; try again in a few seconds")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, request: Request, function: Callable[..., Result], *arguments) -> Result:
        """Return what a function returns; it is not called if the client goes away before its turn.

        Raises:
            ClientDisconnect: the client has gone.
        """
        async with self.limiter:
            if await request.is_disconnected():
                raise ClientDisconnect
            return await anyio.to_thread.run_sync(function, *arguments)


@asynccontextmanager
async def watching(request: Request) -> AsyncIterator[threading.Event]:
    """Give an event that is set once the client has gone, for what takes long; the body must have been read."""
    gone = threading.Event()

    async def look() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(LOOK_SECONDS)
        gone.set()

    looking = asyncio.create_task(look())
    try:
        yield gone
    finally:
        looking.cancel()
