import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from prometheus_client import CollectorRegistry

from catena.kit.config import House, TelemetryConfig
from catena.kit.errors import Conflict, Invalid, Missing
from catena.kit.telemetry import (
    Telemetry,
    counter,
    current_traceparent,
    gauge,
    histogram,
    log,
    open_admin,
    read_trace,
    setup,
    span,
    trace_id,
)
from catena.kit.telemetry.traces import FileExporter
from tests.unit.kit.echo import echo


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    with setup("allinone", House(home=str(tmp_path), profile="staging")) as running:
        yield running
    structlog.reset_defaults()


async def test_spans_of_two_rooms_in_two_servers_form_one_tree(tmp_path: Path, telemetry: Telemetry) -> None:
    async def answer(_request: bytes) -> bytes:
        with span("chat demo-small", {"gen_ai.usage.input_tokens": 7}, room="back"):
            return b""

    async with echo(tmp_path, "back", unary=answer) as back:

        async def stream(_request: bytes) -> AsyncIterator[bytes]:
            yield bytes(await back.say(b""))

        async with echo(tmp_path, "front", stream=stream) as front:
            with span("test.ask"):
                wanted = trace_id()
                assert [message async for message in front.recite(b"")] == [b""]
    telemetry.flush()
    spans = read_trace(tmp_path, wanted)
    of = {one.span_id: one for one in spans}
    tree = [(one.room, one.name, of[one.parent_id].name if one.parent_id else "") for one in spans]
    assert tree == [
        ("test", "test.ask", ""),
        ("front", "front.recite", "test.ask"),
        ("back", "back.say", "front.recite"),
        ("back", "chat demo-small", "back.say"),
    ]
    assert spans[-1].attributes == {"gen_ai.usage.input_tokens": 7}
    assert spans[0].duration_ms >= spans[1].duration_ms > 0


async def test_a_failed_call_is_marked_in_its_trace(tmp_path: Path, telemetry: Telemetry) -> None:
    async def fail(_request: bytes) -> bytes:
        raise Missing("no adapter code", code="unknown_adapter")

    async with echo(tmp_path, unary=fail) as client:
        with span("test.ask"), pytest.raises(Missing):
            wanted = trace_id()
            await client.say(b"")
    telemetry.flush()
    ask, served = read_trace(tmp_path, wanted)
    assert ask.error == ""
    assert (served.error, served.attributes["error.type"]) == ("no adapter code", "unknown_adapter")


def test_the_text_of_an_unexpected_error_stays_out_of_the_trace(tmp_path: Path, telemetry: Telemetry) -> None:
    with pytest.raises(ValueError, match="the prompt"), span("test.ask"):
        wanted = trace_id()
        raise ValueError("the prompt")
    telemetry.flush()
    assert re.fullmatch(r"ValueError at test_telemetry.py:\d+", read_trace(tmp_path, wanted)[0].error)


def test_a_consumer_joins_the_trace_of_its_event(tmp_path: Path, telemetry: Telemetry) -> None:
    with span("executor.run"):
        carried, wanted = current_traceparent(), trace_id()
    with span("other.work"), span("router.learn", parent=carried):
        assert trace_id() == wanted
    telemetry.flush()
    run, learn = read_trace(tmp_path, wanted)
    assert learn.parent_id == run.span_id


@pytest.mark.parametrize(
    "parent", ["", "junk", "00-zz-11-01", f"00-{'0' * 32}-{'0' * 16}-01", f"00-{'x' * 32}-{'1' * 16}-01"]
)
def test_a_malformed_traceparent_begins_a_new_trace(parent: str) -> None:
    with span("router.learn", parent=parent):
        assert len(trace_id()) == 32
    assert (trace_id(), current_traceparent()) == ("", "")


def test_what_is_not_sampled_is_not_written_but_still_has_an_id(tmp_path: Path) -> None:
    house = House(home=str(tmp_path), telemetry=TelemetryConfig(sample=0.0))
    with setup("router", house) as running:
        with span("router.recommend"):
            wanted = trace_id()
            assert current_traceparent().startswith(f"00-{wanted}")
        running.flush()
    structlog.reset_defaults()
    assert len(wanted) == 32
    assert read_trace(tmp_path, wanted) == []


def test_below_what_is_not_sampled_no_span_is_made(tmp_path: Path) -> None:
    house = House(home=str(tmp_path), telemetry=TelemetryConfig(sample=0.0))
    with setup("router", house) as running, span("gateway.chat") as outer:
        with span("router.recommend") as inner, span("executor.run", parent=current_traceparent()):
            assert inner is outer
            here = current_traceparent()
        assert current_traceparent() == here
        running.flush()
    structlog.reset_defaults()
    assert current_traceparent() == ""


async def test_spans_go_to_a_collector_when_the_house_names_one(tmp_path: Path) -> None:
    heard: list[str] = []

    async def export(request: trace_service_pb2.ExportTraceServiceRequest, _context: Any) -> Any:
        heard.extend(span.name for group in request.resource_spans for part in group.scope_spans for span in part.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    method = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=trace_service_pb2.ExportTraceServiceRequest.FromString,
        response_serializer=trace_service_pb2.ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    collector = grpc.aio.server()
    collector.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": method}),))
    port = collector.add_insecure_port("127.0.0.1:0")
    await collector.start()
    endpoint = TelemetryConfig(otlp_endpoint=f"http://127.0.0.1:{port}")
    with setup("router", House(home=str(tmp_path), telemetry=endpoint)) as running:
        with span("router.recommend"):
            pass
        await asyncio.to_thread(running.flush)
    structlog.reset_defaults()
    await collector.stop(None)
    assert heard == ["router.recommend"]


def test_trace_files_rotate_and_the_oldest_go(tmp_path: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        SimpleSpanProcessor(FileExporter(tmp_path / "traces", "router", file_bytes=900, files=3))
    )
    tracer = provider.get_tracer("test")
    for number in range(40):
        tracer.start_span(f"router.work{number}").end()
    left = sorted((tmp_path / "traces").iterdir())
    assert len(left) in (2, 3)
    assert all(path.stat().st_size < 2000 for path in left)
    last = f"{list_last(tmp_path)['traceId']}"
    assert [one.name for one in read_trace(tmp_path, last)] == ["router.work39"]


def list_last(home: Path) -> dict[str, str]:
    lines = [line for path in (home / "traces").iterdir() for line in path.read_text().splitlines()]
    spans = [json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0] for line in lines]
    return dict(max(spans, key=lambda one: int(one["startTimeUnixNano"])))


def test_a_half_written_line_does_not_hide_the_rest(tmp_path: Path) -> None:
    spans: list[ReadableSpan] = []
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(FileExporter(tmp_path / "traces", "router")))
    tracer = provider.get_tracer("test")
    made = tracer.start_span("router.work", attributes={"a": True, "b": 1.5, "c": ["x", "y"]})
    made.end()
    spans.append(made)  # type: ignore[arg-type]
    wanted = f"{made.get_span_context().trace_id:032x}"
    with (tmp_path / "traces" / "router-1.jsonl").open("a") as file:
        file.write(f'{{"resourceSpans": [{{"traceId": "{wanted}')
    found = read_trace(tmp_path, wanted.upper())
    assert [dict(one.attributes) for one in found] == [{"a": True, "b": 1.5, "c": ["x", "y"]}]


def test_logs_are_json_lines_with_trace_ids_and_without_secrets(
    telemetry: Telemetry, capsys: pytest.CaptureFixture[str]
) -> None:
    with span("router.recommend"):
        wanted = trace_id()
        log.info("adapter loaded", adapter="base@code", api_key="sk-1", ms=3)
    log.debug("not at this level")
    logging.getLogger("nats").warning("slow %s", "consumer")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["level"], first["room"]) == ("adapter loaded", "info", "allinone")
    assert (first["trace_id"], first["api_key"], first["ms"]) == (wanted, "***", 3)
    assert (second["event"], second["level"]) == ("slow consumer", "warning")


def test_a_logged_traceback_shows_no_variables(telemetry: Telemetry, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "".join(["my ", "prompt"])
    try:
        raise KeyError(len(prompt))
    except KeyError:
        log.exception("handler failed")
    line = json.loads(capsys.readouterr().err)
    assert "KeyError" in line["exception"]
    assert "my prompt" not in line["exception"]


def test_two_rooms_asking_for_one_metric_share_it() -> None:
    registry = CollectorRegistry()
    first = counter("router", "plans_total", "Plans", ["model"], registry=registry)
    first.labels("small").inc()
    counter("router", "plans_total", "Plans", ["model"], registry=registry).labels("small").inc()
    assert registry.get_sample_value("catena_router_plans_total", {"model": "small"}) == 2
    histogram("", "alora_model_latency_seconds", "Latency", ["model_name"], buckets=[0.1, 1], registry=registry)
    gauge("adapters", "resident_bytes", "Bytes", ["tier"], registry=registry).labels("host").set(5)
    assert registry.get_sample_value("catena_adapters_resident_bytes", {"tier": "host"}) == 5
    with pytest.raises(Invalid, match="is a Counter"):
        gauge("router", "plans_total", "Plans", registry=registry)


@pytest.mark.parametrize("label", ["tenant", "trace_id", "api_key", "user"])
def test_a_label_without_bound_is_refused(label: str) -> None:
    with pytest.raises(Invalid, match="no bound"):
        counter("router", "plans_total", "Plans", [label], registry=CollectorRegistry())


async def test_the_admin_port_tells_metrics_and_health() -> None:
    registry = CollectorRegistry()
    counter("router", "plans_total", "Plans", registry=registry).inc(3)
    parts = {"bus": True, "store": True}
    async with open_admin(0, lambda: parts, registry=registry) as port, aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert "catena_router_plans_total 3.0" in await answer.text()
        async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert (answer.status, await answer.json()) == (200, parts)
        parts["bus"] = False
        async with http.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert (answer.status, await answer.json()) == (503, {"bus": False, "store": True})
        with pytest.raises(Conflict, match="is taken"):
            async with open_admin(port, lambda: parts):
                pass
