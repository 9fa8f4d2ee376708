"""The fourth part of the tour: one request's spans over every room, and over NATS to the rooms that learn from it."""

import asyncio
from pathlib import Path

from rich.console import Console

from catena.kit.telemetry import read_trace
from catena.kit.telemetry.traces import TraceSpan
from catena.sdk.commands.trace import span_tree
from demo.desk import Desk, Row
from demo.questions import Question

WANTED = ("gateway", "router", "executor", "adapters", "learner")
PATIENCE_S = 15.0


async def follow_one(desk: Desk, home: Path) -> list[TraceSpan]:
    """Ask through a cascade and read the spans of that request once every room has written its own."""
    asked = await desk.ask(Question("reverse", "reverse: stone", "enots"), Row(name="cascade", shape="cascade"))
    trace = str(asked.told["trace_id"])
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    spans: list[TraceSpan] = []
    while asyncio.get_running_loop().time() < deadline:
        spans = await asyncio.to_thread(read_trace, home, trace)
        heard = {span.name.split(".")[0] for span in spans if ".on_" in span.name}
        if set(WANTED) <= rooms(spans) and {"router", "learner"} <= heard:
            break
        await asyncio.sleep(0.3)
    return spans


def rooms(spans: list[TraceSpan]) -> set[str]:
    """The rooms that the request went through."""
    return {span.room for span in spans}


def show(spans: list[TraceSpan], console: Console) -> None:
    """Print the tree."""
    if spans:
        console.print(span_tree(spans))


def failures(spans: list[TraceSpan]) -> list[str]:
    """Which rooms left no span; empty when all did."""
    missing = [room for room in WANTED if room not in rooms(spans)]
    return [f"the trace has no span of {', '.join(missing)}"] if missing else []
