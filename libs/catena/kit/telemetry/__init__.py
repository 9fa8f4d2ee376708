"""Logs, traces and metrics of a process: one set-up, called first by each `__main__`; rooms use the functions."""

from catena.kit.telemetry.admin import open_admin
from catena.kit.telemetry.logs import log
from catena.kit.telemetry.metrics import by_labels, counter, gauge, histogram
from catena.kit.telemetry.setup import Telemetry, setup
from catena.kit.telemetry.spans import current_traceparent, recorded, span, trace_id
from catena.kit.telemetry.traces import TraceSpan, read_trace

__all__ = [
    "Telemetry",
    "TraceSpan",
    "by_labels",
    "counter",
    "current_traceparent",
    "gauge",
    "histogram",
    "log",
    "open_admin",
    "read_trace",
    "recorded",
    "setup",
    "span",
    "trace_id",
]
