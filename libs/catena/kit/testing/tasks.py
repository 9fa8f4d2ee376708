"""Waiting for something to become true, and keeping loops running meanwhile."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any


async def eventually(
    predicate: Callable[[], bool | Awaitable[bool]], timeout_s: float = 30.0, *, every_s: float = 0.02
) -> None:
    """Return once `predicate` holds. Raises AssertionError after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        outcome = predicate()
        if await outcome if inspect.isawaitable(outcome) else outcome:
            return
        if loop.time() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {inspect.getsource(predicate).strip()}")
        await asyncio.sleep(every_s)


@asynccontextmanager
async def running(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `loops` during the block, then cancel them. Raises what one of them raised by itself."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
