"""Embeddings and predictions of outside models with the same care as answers: tried again, within rates and circuits.

A vector of another model is no substitute, so nobody stands in for one that fails.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from catena.executor.core.attempts import may_repeat, pause_s
from catena.executor.core.catalogue import Model
from catena.executor.core.estimates import CHARS_PER_TOKEN
from catena.executor.core.ports import Embedding, Prediction, Predictor, Vectors
from catena.executor.core.routes import Routes
from catena.executor.core.turns import Sleep, turn
from catena.kit.clock import World
from catena.kit.errors import CatenaError

Made = TypeVar("Made", Vectors, Prediction)
Work = Callable[[float], Awaitable[Made]]
"""Does it within the given seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """What experience tells, how often a call is tried in all, and the world."""

    routes: Routes
    attempts: int
    world: World
    sleep: Sleep = asyncio.sleep


@dataclass(frozen=True, slots=True)
class SteadyEmbedding:
    """An embedding with care."""

    inner: Embedding
    care: Care

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """As the port has it."""
        return await _steadily(
            self.care,
            model,
            sum(map(len, texts)),
            timeout_s,
            lambda left_s: self.inner.embed(model, texts, left_s, truncate=truncate),
        )


@dataclass(frozen=True, slots=True)
class SteadyPredictor:
    """A predictor with care."""

    inner: Predictor
    care: Care

    async def predict(
        self, model: Model, inputs: Sequence[Any], parameters: Mapping[str, Any], timeout_s: float
    ) -> Prediction:
        """As the port has it."""
        return await _steadily(
            self.care,
            model,
            sum(len(str(one)) for one in inputs),
            timeout_s,
            lambda left_s: self.inner.predict(model, inputs, parameters, left_s),
        )


async def _steadily(care: Care, model: Model, chars: int, timeout_s: float, work: "Work[Made]") -> Made:
    """What `work` gives, tried as often as is allowed and safe within the time. Raises the last error."""
    clock = care.world.clock
    due_s = clock.monotonic() + timeout_s
    number = 1
    while True:
        try:
            return await _once(care, model, chars, due_s, work)
        except CatenaError as error:
            wait_s = pause_s(number, error, care.world.rng)
            in_time = clock.monotonic() + wait_s < due_s
            if number >= care.attempts or not in_time or not may_repeat(error, streamed=False):
                raise
        await care.sleep(wait_s)
        number += 1


async def _once(care: Care, model: Model, chars: int, due_s: float, work: "Work[Made]") -> Made:
    clock, route = care.world.clock, care.routes.of(model)
    if route is None:
        return await work(due_s - clock.monotonic())
    permit, error = route.admit(clock.monotonic()), None
    started_s, done = clock.monotonic(), False
    try:
        tokens, patience_s = round(chars / CHARS_PER_TOKEN), due_s - clock.monotonic()
        async with turn(route, tokens, patience_s, clock=clock, sleep=care.sleep) as mine:
            mine.asked, started_s = True, clock.monotonic()
            made = await work(due_s - started_s)
            mine.used, done = made.usage, True
            return made
    except CatenaError as caught:
        error = caught
        raise
    finally:
        now_s = clock.monotonic()
        if done or error is not None:
            route.settle(permit, error, now_s - started_s, now_s)
        else:
            route.breaker.settle(permit, "untold", now_s)
