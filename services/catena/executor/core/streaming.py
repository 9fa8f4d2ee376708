"""One task works, another listens: events in order, small deltas joined, and an end for whoever stops listening."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from catena.executor.core.chat import Delta, merged
from catena.executor.core.events import RunEvent
from catena.kit.clock import Clock

BACKLOG = 256
"""Events that may wait for a slow listener before the work waits too."""

Work = Callable[[Callable[[RunEvent], Awaitable[None]]], Awaitable[None]]


async def stream(work: Work, *, window_s: float, clock: Clock) -> AsyncGenerator[RunEvent, None]:
    """What `work` emits. The first delta passes at once, those less than `window_s` behind it are joined.

    Raises what `work` raises, after its last event. Leaving the iteration cancels `work` and waits for it to end.
    """
    queue: asyncio.Queue[RunEvent | None] = asyncio.Queue(BACKLOG)
    task = asyncio.create_task(_worked(work, queue))
    try:
        async for event in _joined(queue, window_s, clock):
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _worked(work: Work, queue: asyncio.Queue[Any]) -> None:
    try:
        await work(queue.put)
    except Exception:
        await queue.put(None)
        raise
    await queue.put(None)


async def _joined(queue: asyncio.Queue[RunEvent | None], window_s: float, clock: Clock) -> AsyncIterator[RunEvent]:
    held: Delta | None = None
    free_s = 0.0
    while True:
        event = await _next(queue, None if held is None else free_s - clock.monotonic())
        joins = isinstance(event, Delta) and held is not None and held.index == event.index
        if joins and isinstance(event, Delta) and held is not None:
            held = merged([held, event])
        elif held is not None:
            yield held
            free_s = clock.monotonic() + window_s
            held = None
        if event is None:
            return
        if isinstance(event, _Silence) or joins:
            continue
        if isinstance(event, Delta) and clock.monotonic() < free_s and not event.finish_reason:
            held = event
            continue
        if isinstance(event, Delta):
            free_s = clock.monotonic() + window_s
        yield event


class _Silence:
    """Nothing came while a delta was held."""


async def _next(queue: asyncio.Queue[RunEvent | None], wait_s: float | None) -> RunEvent | _Silence | None:
    if wait_s is None:
        return await queue.get()
    try:
        async with asyncio.timeout(max(0.0, wait_s)):
            return await queue.get()
    except TimeoutError:
        return _Silence()
