"""What happens around every handler: admission, deadline, span, metrics and errors, in one interceptor.

One and not five, because this is the hot path, and because the order matters: the span is outermost so that a
refusal is traced too, and errors are mapped inside the deadline's scope.
"""

import asyncio
import hmac
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from opentelemetry.trace import SpanKind

from catena.kit import wire
from catena.kit.caller import Caller, deadline_s, enter
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError, Denied, Invalid, Late
from catena.kit.telemetry import counter, histogram, log, span, trace_id
from catena.kit.telemetry.spans import mark_failed

TENANT_KEY, ROLE_KEY, TOKEN_KEY, TRACE_KEY = "x-catena-tenant", "x-catena-role", "authorization", "traceparent"
PROBES = (
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)
"""What asks whether a server is there, by gRPC's own protocol and by that of inference servers."""
LAST_WORD_S = 1.0
_OUTCOME = {kind: kind.__name__.lower() for kind in wire.KINDS}

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour = Callable[[Any, Context], Any]
Headers = Mapping[str, Any]
Admit = Callable[[Headers], Caller]
"""Says who calls, from the call's metadata. Raises Denied."""


def by_token(token: str) -> Admit:
    """Let in other rooms, which bear the service token and say for whom they call."""
    bearer = f"Bearer {token}".encode()

    def admit(headers: Headers) -> Caller:
        if not hmac.compare_digest(headers.get(TOKEN_KEY, "").encode(), bearer):
            raise Denied("the service token is missing or wrong; rooms share auth.service_token", code=wire.BAD_TOKEN)
        return Caller(headers.get(TENANT_KEY, "shared"), headers.get(ROLE_KEY, "user"))

    return admit


class Incoming(grpc.aio.ServerInterceptor):
    """Wraps each method once, when first called; probes pass untouched and need no token."""

    def __init__(self, *, admit: Admit, limit_s: float, clock: Clock) -> None:
        """Let in whom `admit` knows; a call that brings no deadline gets `limit_s`. `live` counts calls under way."""
        self._admit = admit
        self._limit_s = limit_s
        self._clock = clock
        self._wrapped: dict[str, Handler] = {}
        self.live = 0

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """The method's handler, wrapped; None when there is no such method."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        return handler if handler is None or method.startswith(PROBES) else self.around(method, handler)

    def around(self, method: str, handler: Handler) -> Handler:
        """The handler of a method with everything around it, made once."""
        if method not in self._wrapped:
            self._wrapped[method] = self._wrap(handler, Verb.of(method))
        return self._wrapped[method]

    def _wrap(self, handler: Handler, verb: "Verb") -> Handler:
        behaviour, work = _work_of(handler)

        async def guarded(request: Any, context: Context) -> Any:
            return await self._run(verb, context, lambda: work(behaviour, request, context))

        return _rebuilt(handler, guarded)

    async def _run(self, verb: "Verb", context: Context, work: Callable[[], Awaitable[Any]]) -> Any:
        started = self._clock.monotonic()
        outcome = "ok"
        self.live += 1
        headers = dict(context.invocation_metadata() or ())
        try:
            with span(verb.name, parent=str(headers.get(TRACE_KEY, "")), kind=SpanKind.SERVER, room=verb.room) as here:
                try:
                    return await self._admitted(headers, context, work)
                except asyncio.CancelledError as error:
                    if _cancelled_from_outside():
                        outcome = "late" if deadline_s() <= 0 else "cancelled"
                        here.set_attribute("error.type", outcome)
                        raise
                    failure = _expected(error, verb)
                except grpc.aio.AbortError:
                    outcome = "aborted"
                    raise
                except grpc.aio.InternalError as error:
                    # How grpc fails a write that waited for a client which left without reading.
                    outcome = "cancelled"
                    raise asyncio.CancelledError from error
                except Exception as error:  # noqa: BLE001 - the one place that maps what handlers raise
                    failure = _expected(error, verb)
                outcome = _OUTCOME.get(wire.kind_of(failure), "internal")
                mark_failed(here, failure)
            await _abort(context, failure)
        finally:
            self.live -= 1
            verb.count(outcome, self._clock.monotonic() - started)

    async def _admitted(self, headers: dict[str, Any], context: Context, work: Callable[[], Awaitable[Any]]) -> Any:
        who = self._admit(headers)
        # Typed as a float, yet None when the client set no deadline.
        remaining: float | None = context.time_remaining()
        if remaining is not None:
            enter(who, remaining)
            return await work()
        enter(who, self._limit_s)
        try:
            async with asyncio.timeout(self._limit_s) as limit:
                return await work()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Late(f"no answer within {self._limit_s:g} s, the limit of calls without a deadline") from error


@dataclass(frozen=True, slots=True)
class Verb:
    """A method as telemetry knows it."""

    room: str
    name: str
    count: Callable[[str, float], None]

    @staticmethod
    def of(method: str) -> "Verb":
        """The verb of a full gRPC method name, with its metrics."""
        name = wire.verb_of(method)
        room, _, verb = name.partition(".")
        calls = counter(room, "calls_total", "gRPC calls served", ["verb", "outcome"])
        seconds = histogram(room, "call_duration_seconds", "Duration of gRPC calls", ["verb"]).labels(verb)
        of_outcome: dict[str, Any] = {}

        def count(outcome: str, took_s: float) -> None:
            if outcome not in of_outcome:
                of_outcome[outcome] = calls.labels(verb, outcome)
            of_outcome[outcome].inc()
            seconds.observe(took_s)

        return Verb(room, name, count)


def _work_of(handler: Handler) -> tuple[Behaviour, Callable[[Behaviour, Any, Context], Awaitable[Any]]]:
    """The handler's behaviour, and how to run it on a raw request so that bad bytes become Invalid, not UNKNOWN."""
    decode, encode = handler.request_deserializer or _same, handler.response_serializer or _same

    def incoming(request: Any) -> Any:
        if handler.request_streaming:
            return request
        try:
            return decode(request)
        except Exception as error:
            raise Invalid(
                f"the request is not the expected message: {type(error).__name__}", code="malformed"
            ) from error

    async def answer(behaviour: Behaviour, request: Any, context: Context) -> Any:
        return encode(await behaviour(incoming(request), context))

    async def stream(behaviour: Behaviour, request: Any, context: Context) -> None:
        messages = behaviour(incoming(request), context)
        try:
            async for message in messages:
                await context.write(encode(message))
        finally:
            # Closed here and now: left to the collector, a handler parked at `yield` would hold its slot for long.
            await messages.aclose()

    async def writer(behaviour: Behaviour, request: Any, context: Context) -> None:
        await behaviour(incoming(request), context)

    behaviour = _behaviour(handler)
    if not handler.response_streaming:
        return behaviour, answer
    return behaviour, stream if inspect.isasyncgenfunction(behaviour) else writer


def _behaviour(handler: Handler) -> Behaviour:
    kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    found: Behaviour = next(getattr(handler, kind) for kind in kinds if getattr(handler, kind))
    return found


def _rebuilt(handler: Handler, guarded: Behaviour) -> Handler:
    """The same kind of handler around `guarded`, which does the (de)serialising itself wherever it can."""
    writes_itself = handler.response_streaming and not inspect.isasyncgenfunction(_behaviour(handler))
    decode = handler.request_deserializer if handler.request_streaming else None
    encode = handler.response_serializer if writes_itself else None
    make: Callable[..., Handler] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(guarded, request_deserializer=decode, response_serializer=encode)


def _same(message: Any) -> Any:
    return message


def _cancelled_from_outside() -> bool:
    """Whether the running call itself was cancelled, rather than something it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _expected(error: BaseException, verb: Verb) -> CatenaError:
    """The failure to report; what nobody expected is logged here, and told to the caller by trace id only."""
    found = wire.expected(error)
    if found is not None:
        return found
    if isinstance(error, TimeoutError) and deadline_s() <= 0:
        return Late(f"{verb.name} did not finish before its deadline")
    log.error("handler failed", verb=verb.name, error=type(error).__name__, exc_info=error)
    return CatenaError(f"internal error {trace_id()}")


async def _abort(context: Context, failure: CatenaError) -> None:
    """Send the failure. Its pushback stops transport retries: a handler that ran and refused is not run again."""
    trailers = ((wire.DETAILS_KEY, wire.details(failure)), ("grpc-retry-pushback-ms", "-1"))
    # A reader that stopped reading must not hold the handler's task: what it held is free, its status is lost.
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORD_S):
            await context.abort(wire.grpc_status(failure), wire.summary(failure), trailing_metadata=trailers)
