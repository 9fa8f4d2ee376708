"""Traces without a collector: OTLP-JSON lines in rotating files under `home/traces`, and reading them back.

The format is the OpenTelemetry file exporter's: one `TracesData` object a line, so a collector can take the files in.
"""

import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from catena.kit.telemetry.logs import log

FILE_BYTES = 8 * 1024 * 1024
FILES = 4
_NUMBER = re.compile(r"-(\d+)\.jsonl\Z")


class FileExporter(SpanExporter):
    """Appends spans to `folder/<process>-<n>.jsonl`, starts the next file at `file_bytes`, keeps `files` of them."""

    def __init__(self, folder: Path, process: str, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        """Go on with the newest file, if any."""
        self._folder = folder
        self._process = process
        self._file_bytes = file_bytes
        self._files = files
        self._lock = threading.Lock()
        self._number = max([1, *self._numbers()])

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write one line; a full or read-only disk loses these spans, never the process."""
        line = msgspec.json.encode({"resourceSpans": encode(spans)}) + b"\n"
        try:
            with self._lock:
                self._append(line)
        except OSError as error:
            log.warning("spans lost", folder=str(self._folder), spans=len(spans), reason=str(error))
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _append(self, line: bytes) -> None:
        # One write with O_APPEND keeps lines whole when two processes of the same name share the file.
        handle = os.open(self._path(self._number), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)
            full = os.fstat(handle).st_size >= self._file_bytes
        finally:
            os.close(handle)
        if full:
            self._number += 1
            for old in self._numbers():
                if old <= self._number - self._files:
                    self._path(old).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._process}-{number}.jsonl"

    def _numbers(self) -> list[int]:
        self._folder.mkdir(parents=True, exist_ok=True)
        found = (_NUMBER.search(path.name) for path in self._folder.glob(f"{self._process}-*.jsonl"))
        return [int(match[1]) for match in found if match]


def encode(spans: Iterable[ReadableSpan]) -> list[dict[str, Any]]:
    """Spans as OTLP-JSON `resourceSpans`, grouped by resource."""
    groups: dict[int, tuple[Mapping[str, Any], list[dict[str, Any]]]] = {}
    for span in spans:
        _, members = groups.setdefault(id(span.resource), (span.resource.attributes, []))
        members.append(_encode_span(span))
    return [
        {"resource": {"attributes": _pairs(resource)}, "scopeSpans": [{"scope": {"name": "catena"}, "spans": members}]}
        for resource, members in groups.values()
    ]


def _encode_span(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    encoded: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value + 1,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _pairs(span.attributes or {}),
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }
    if span.parent is not None:
        encoded["parentSpanId"] = f"{span.parent.span_id:016x}"
    if span.events:
        encoded["events"] = [
            {"timeUnixNano": str(event.timestamp), "name": event.name, "attributes": _pairs(event.attributes or {})}
            for event in span.events
        ]
    if span.links:
        encoded["links"] = [
            {"traceId": f"{link.context.trace_id:032x}", "spanId": f"{link.context.span_id:016x}"}
            for link in span.links
        ]
    return encoded


def _pairs(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case tuple() | list():
            return {"arrayValue": {"values": [_value(item) for item in value]}}
        case _:
            return {"stringValue": str(value)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpan:
    """A span as read back. `parent_id` is empty for a root; `error` is empty when it went well."""

    trace_id: str
    span_id: str
    parent_id: str
    room: str
    name: str
    start_s: float
    duration_ms: float
    attributes: Mapping[str, Any]
    error: str = ""


def read_trace(home: Path, trace_id: str) -> list[TraceSpan]:
    """Every span of a trace that any process of `home` wrote, in order of start; empty when there is none."""
    wanted = trace_id.lower().encode()
    found = [
        span
        for path in sorted((home / "traces").glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
        if wanted in line
        for span in _decode(line)
        if span.trace_id == trace_id.lower()
    ]
    return sorted(found, key=lambda span: span.start_s)


def _decode(line: bytes) -> list[TraceSpan]:
    try:
        data = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return []  # the last line of a process that was killed while it wrote
    spans = []
    for group in data["resourceSpans"]:
        room = str(_plain(group["resource"]["attributes"]).get("service.name", ""))
        spans += [_decode_span(raw, room) for scope in group["scopeSpans"] for raw in scope["spans"]]
    return spans


def _decode_span(raw: dict[str, Any], room: str) -> TraceSpan:
    start, end = int(raw["startTimeUnixNano"]), int(raw["endTimeUnixNano"])
    return TraceSpan(
        trace_id=raw["traceId"],
        span_id=raw["spanId"],
        parent_id=raw.get("parentSpanId", ""),
        room=room,
        name=raw["name"],
        start_s=start / 1e9,
        duration_ms=(end - start) / 1e6,
        attributes=_plain(raw["attributes"]),
        error=(raw["status"]["message"] or "failed") if raw["status"]["code"] == 2 else "",
    )


def _plain(pairs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: _bare(pair["value"]) for pair in pairs}


def _bare(value: Mapping[str, Any]) -> Any:
    kind, inner = next(iter(value.items()))
    if kind == "arrayValue":
        return [_bare(item) for item in inner["values"]]
    return int(inner) if kind == "intValue" else inner
