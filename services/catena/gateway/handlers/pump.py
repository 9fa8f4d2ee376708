"""Server-sent events from a task of their own: what is streamed to a client, whatever it is."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Generic, Self, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from catena.kit.telemetry import span

T = TypeVar("T")
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
AHEAD = 64


class Pump(Generic[T]):
    """Reads events in a task of its own, at most `AHEAD` ahead of the client, and stops when the client goes.

    The body of a streamed response is written by another task than the one that took the request, so a generator
    that holds scopes (deadline, tenant, span) cannot be handed over; its events can.
    """

    def __init__(self, events: AsyncGenerator[T, None]) -> None:
        """Start reading."""
        self._queue: asyncio.Queue[T | Exception | None] = asyncio.Queue(AHEAD)
        self._task = asyncio.create_task(self._read(events), name="gateway stream")

    async def _read(self, events: AsyncGenerator[T, None]) -> None:
        try:
            with span("gateway.stream"):
                async with aclosing(events):
                    async for event in events:
                        await self._queue.put(event)
            await self._queue.put(None)
        except Exception as error:  # noqa: BLE001 - carried to the reader, which raises it
            await self._queue.put(error)

    def __aiter__(self) -> Self:
        """The events themselves."""
        return self

    async def __anext__(self) -> T:
        """The next event; raises what reading raised."""
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next(self) -> T | None:
        """The same; None: there is no more."""
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def stop(self) -> None:
        """Cancel what still runs, down to the models."""
        self._task.cancel()
        await asyncio.wait([self._task])


class Streamed(StreamingResponse):
    """A streamed response that stops its pump whatever becomes of the client."""

    def __init__(self, body: AsyncIterator[bytes], pump: Pump[Any]) -> None:
        """Write `body`, which reads `pump`."""
        super().__init__(body, media_type="text/event-stream", headers=HEADERS)
        self._pump = pump

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pump.stop()


async def lively(pump: Pump[T], still_s: float) -> AsyncIterator[T | None]:
    """The events, and None whenever there was none for `still_s`."""
    while True:
        try:
            async with asyncio.timeout(still_s):
                event = await pump.next()
        except TimeoutError:
            yield None
            continue
        if event is None:
            return
        yield event


def named(name: str, data: bytes, number: int | None = None) -> bytes:
    """One event with a name, and where it has a place among others, its number as `id`."""
    place = b"" if number is None else b"id: %d\n" % number
    return place + b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
