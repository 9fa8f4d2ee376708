"""Structured logs to stderr: JSON lines, or colours for a person at a terminal; trace ids added, secrets masked."""

import logging
import sys
from typing import Literal

import msgspec
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from catena.kit.config import SECRETS

Level = Literal["debug", "info", "warning", "error"]

log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


def configure(process: str, level: Level) -> None:
    """Send our logs from `level` up, and other libraries' warnings, to stderr as lines that name `process`."""

    def add_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("room", process)
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_process,
        add_trace,
        mask_secrets,
    ]
    # Tracebacks without local variables: those hold prompts and tokens.
    pretty = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    last: list[Processor] = [pretty] if sys.stderr.isatty() else [structlog.processors.format_exc_info, render]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: StderrLogger(),
        cache_logger_on_first_use=False,
    )
    handler = StderrHandler()
    foreign = structlog.stdlib.ProcessorFormatter
    handler.setFormatter(foreign(foreign_pre_chain=shared, processors=[foreign.remove_processors_meta, *last]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the current span's `trace_id` and `span_id`."""
    here = trace.get_current_span().get_span_context()
    if here.is_valid:
        event["trace_id"] = f"{here.trace_id:032x}"
        event["span_id"] = f"{here.span_id:016x}"
    return event


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the text under every secret-like key."""
    for key, value in event.items():
        if isinstance(value, str) and key.endswith(SECRETS):
            event[key] = "***"
    return event


def render(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """One JSON line; a value that JSON lacks is written as its text."""
    return msgspec.json.encode(event, enc_hook=str).decode()


class StderrLogger:
    """Writes each line to whatever stderr is now, in one write, so that lines of several threads do not mix."""

    def msg(self, line: str) -> None:
        """Write the line."""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


class StderrHandler(logging.Handler):
    """The same for records of the standard library's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        StderrLogger().msg(self.format(record))
