"""Spans that cost little: `with span("router.recommend") as s`.

Until `setup` has run nothing is recorded, but trace ids exist and travel, so tests and tools need no set-up.
"""

import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer

from catena.kit.errors import CatenaError

Attributes = Mapping[str, str | bool | int | float]
_SCOPE = "catena"


class Tracers:
    """A tracer per room over one span processor, so that every span is filed under the room that made it."""

    def __init__(self, process: str, sampler: Sampler, processor: SpanProcessor | None) -> None:
        """Record what `sampler` keeps; `process` names the spans whose name carries no room."""
        self.process = process
        self._sampler = sampler
        self._processor = processor
        self._of_room: dict[str, Tracer] = {}

    def of(self, room: str) -> Tracer:
        """The tracer of a room, made when first asked for."""
        tracer = self._of_room.get(room)
        if tracer is None:
            resource = Resource({"service.namespace": "catena", "service.name": room})
            provider = TracerProvider(sampler=self._sampler, resource=resource, shutdown_on_exit=False)
            if self._processor is not None:
                provider.add_span_processor(self._processor)
            tracer = self._of_room[room] = provider.get_tracer(_SCOPE)
        return tracer


class Current:
    """Where the process's tracers are found; telemetry is the one thing that every line of code may reach."""

    idle = Tracers("catena", ALWAYS_OFF, None)
    tracers = idle


class SpanScope:
    """A span that is current inside a `with` block, and marked failed by an exception that leaves it."""

    __slots__ = ("_outer", "span")

    def __init__(self, made: Span) -> None:
        """Hold a started span."""
        self.span = made
        self._outer: Context | None = None

    def __enter__(self) -> Span:
        """Make it current."""
        here = context.get_current()
        if trace.get_current_span(here) is not self.span:
            self._outer = here
            context.attach(trace.set_span_in_context(self.span, here))
        return self.span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it. Messages of unexpected errors stay out: they may quote a prompt."""
        if error is not None and isinstance(error, Exception):
            mark_failed(self.span, error)
        self.span.end()
        # A generator closed by the garbage collector ends in a foreign context, which must keep its own span.
        if self._outer is not None and trace.get_current_span() is self.span:
            context.attach(self._outer)


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    parent: str = "",
    kind: SpanKind = SpanKind.INTERNAL,
    room: str = "",
) -> SpanScope:
    """A span named `room.verb`, child of the current one or of the `parent` traceparent, to be used in `with`.

    A name without a room, such as `chat base@adapter`, is filed under `room`, or else under the process. Below a span
    that is not kept nothing is, so there the span above itself is given: its trace's id is all that is passed on.
    """
    above = _remote(parent) if parent else None
    here = trace.get_current_span(above)
    found = here.get_span_context()
    if found.is_valid and not found.trace_flags.sampled:
        return SpanScope(here)
    tracers = Current.tracers
    if not room:
        head, dot, _ = name.partition(".")
        room = head if dot and " " not in name else tracers.process
    return SpanScope(
        tracers.of(room).start_span(
            name, above, kind, attributes, record_exception=False, set_status_on_exception=False
        )
    )


def mark_failed(target: Span, error: Exception) -> None:
    """Give `target` the error's code and message, or its type and place where the error was not expected."""
    if target.is_recording():
        code = error.code if isinstance(error, CatenaError) else type(error).__name__
        target.set_attribute("error.type", code)
        told = error.message if isinstance(error, CatenaError) else f"{code}{_place(error)}"
        target.set_status(Status(StatusCode.ERROR, told))


def _place(error: Exception) -> str:
    """Where `error` was raised, as ` at file.py:123`."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def current_traceparent() -> str:
    """The W3C `traceparent` of the current span; empty outside any."""
    here = trace.get_current_span().get_span_context()
    return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}" if here.is_valid else ""


def trace_id() -> str:
    """The current trace's id as 32 hexadecimal digits; empty outside any span."""
    here = trace.get_current_span().get_span_context()
    return f"{here.trace_id:032x}" if here.is_valid else ""


def recorded(traceparent: str) -> bool:
    """Whether the trace of a W3C traceparent is kept (the flag `sampled`)."""
    return traceparent.endswith(("1", "3", "5", "7", "9", "b", "d", "f"))


def _remote(traceparent: str) -> Context | None:
    """The context of a W3C traceparent (version 00); None, so a new or inherited trace, when it is malformed."""
    parts = traceparent.split("-")
    if len(parts) < 4 or (len(parts[1]), len(parts[2]), len(parts[3])) != (32, 16, 2):
        return None
    try:
        flags = TraceFlags(int(parts[3], 16))
        found = SpanContext(int(parts[1], 16), int(parts[2], 16), is_remote=True, trace_flags=flags)
    except ValueError:
        return None
    return trace.set_span_in_context(NonRecordingSpan(found), Context()) if found.is_valid else None
