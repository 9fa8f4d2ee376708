"""A call's turn at a model whose rate is limited: booked ahead, waited for, and accounted for when it is over."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from catena.executor.core.chat import Usage
from catena.executor.core.routes import Route
from catena.kit.clock import Clock

Sleep = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class Turn:
    """What became of it: whether the model was `asked`, and what that `used` as far as it was told."""

    asked: bool = False
    used: Usage | None = None


@asynccontextmanager
async def turn(route: Route, tokens: int, patience_s: float, *, clock: Clock, sleep: Sleep) -> AsyncIterator[Turn]:
    """Hold a place at the model for the block, once it comes; `tokens` are what the call will probably read.

    Raises Exhausted (`upstream_queue_full`, `upstream_rate`) at once where it would come after `patience_s`.
    """
    throttle, mine = route.throttle, Turn()
    wait_s = throttle.book(route.model, tokens, clock.monotonic(), patience_s)
    try:
        throttle.waiting += 1
        try:
            if wait_s > 0:
                await sleep(wait_s)
            if throttle.places is not None:
                await throttle.places.acquire()
        finally:
            throttle.waiting -= 1
        try:
            yield mine
        finally:
            if throttle.places is not None:
                throttle.places.release()
    finally:
        if not mine.asked:
            throttle.give_back(tokens)
        elif mine.used is not None:
            throttle.settle(tokens, mine.used.input_tokens + mine.used.output_tokens)
