"""A provider seen by telemetry: a GenAI span and Prometheus figures for each call."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import aclosing
from typing import Any, cast

from opentelemetry.trace import Span, SpanKind

from catena.executor.core.breaker import State
from catena.executor.core.catalogue import LOCAL, base_of
from catena.executor.core.chat import NOTHING_USED
from catena.executor.core.ports import Ask, Ended, Piece, Provider
from catena.executor.core.routes import Routes
from catena.kit import genai
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError
from catena.kit.telemetry import by_labels, counter, gauge, histogram, span

ROOM = "executor"
OBSERVE_EVERY_S = 5.0
OPENNESS: Mapping[State, float] = {"closed": 0.0, "half-open": 0.5, "open": 1.0}
ALORA_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0)


class Observed:
    """Passes calls on and tells how they went."""

    def __init__(self, provider: Provider, *, agent_types: Collection[str] = ()) -> None:
        """Of those who ask, `agent_types` are told apart; all others are `other`."""
        self._provider = provider
        self._agent_types = frozenset(agent_types)
        calls = counter(ROOM, "model_calls_total", "Calls of models", ["model", "outcome"])
        seconds = histogram(ROOM, "model_call_duration_seconds", "Duration of model calls", ["model"])
        tokens = counter(ROOM, "model_tokens_total", "Tokens read and written", ["model", "direction"])
        alora = counter("", "alora_model_requests_total", "Calls of models", ["model_name", "agent_type"])
        alora_s = histogram(
            "", "alora_model_latency_seconds", "Duration of model calls", ["model_name"], buckets=ALORA_BUCKETS_S
        )
        self._calls, self._seconds, self._tokens = by_labels(calls), by_labels(seconds), by_labels(tokens)
        self._alora, self._alora_s = by_labels(alora), by_labels(alora_s)

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """The provider's pieces."""
        name = ask.model.name
        started = time.perf_counter()
        outcome = "cancelled"
        attributes = {
            genai.OPERATION: genai.CHAT,
            genai.PROVIDER: genai.LOCAL_PROVIDER if ask.model.provider == LOCAL else ask.model.provider,
            genai.REQUEST_MODEL: name,
        }
        try:
            with span(genai.span_name(genai.CHAT, name), attributes, kind=SpanKind.CLIENT, room=ROOM) as here:
                async with aclosing(cast(Any, self._provider.generate(ask))) as pieces:
                    async for piece in pieces:
                        if piece.ended is not None:
                            outcome = "ok"
                            self._note(here, name, piece.ended)
                        yield piece
                outcome = "stream_cut" if outcome == "cancelled" else outcome
        except CatenaError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:
            raise
        finally:
            took_s = time.perf_counter() - started
            # Anybody may ask for an adapter that is not there: only names that answered become labels.
            name = name if outcome == "ok" else base_of(name)
            self._calls(name, outcome).inc()
            self._seconds(name).observe(took_s)
            agent_type = ask.context.agent_type
            who = agent_type if agent_type in self._agent_types else "other"
            self._alora(name, who).inc()
            self._alora_s(name).observe(took_s)

    def _note(self, here: Span, name: str, ended: Ended) -> None:
        usage = ended.usage or NOTHING_USED
        self._tokens(name, "input").inc(usage.input_tokens)
        self._tokens(name, "output").inc(usage.output_tokens)
        if here.is_recording():
            here.set_attribute(genai.RESPONSE_MODEL, ended.resolved_model)
            here.set_attribute(genai.INPUT_TOKENS, usage.input_tokens)
            here.set_attribute(genai.OUTPUT_TOKENS, usage.output_tokens)
            here.set_attribute(genai.CACHE_READ_TOKENS, usage.cached_input_tokens)
            here.set_attribute(genai.CACHE_WRITE_TOKENS, usage.cache_write_tokens)


async def observe_routes(routes: Routes, clock: Clock, *, every_s: float = OBSERVE_EVERY_S) -> None:
    """Tell how outside models are faring, until cancelled: their circuits, queues and second copies."""
    circuit = gauge(ROOM, "circuit_open", "1 while the model is left alone, 0.5 while it is tried again", ["model"])
    waiting = gauge(ROOM, "upstream_waiting", "Calls that wait for the model's rate to allow them", ["model"])
    copies = counter(ROOM, "second_copies_total", "Calls that were sent twice", ["model"])
    told: dict[str, int] = {}
    while True:
        for route in routes.known():
            circuit.labels(route.model).set(OPENNESS[route.breaker.state(clock.monotonic())])
            waiting.labels(route.model).set(route.throttle.waiting)
            copies.labels(route.model).inc(route.hedges.sent - told.get(route.model, 0))
            told[route.model] = route.hedges.sent
        await asyncio.sleep(every_s)
