"""`catena trace`."""

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.tree import Tree

from catena.kit.errors import Missing
from catena.kit.telemetry import read_trace
from catena.kit.telemetry.traces import TraceSpan
from catena.sdk.terminal import Terminal


def trace(
    context: typer.Context,
    trace_id: Annotated[str, typer.Argument(help="From the header x-catena-trace-id, or from `catena` in an answer.")],
) -> None:
    """Show one request's spans as a tree, over every room."""
    terminal: Terminal = context.obj

    async def work() -> None:
        spans = read_trace(Path(terminal.house.home), trace_id)
        if not spans:
            raise Missing(
                f"no spans of trace {trace_id!r} in {terminal.house.home}/traces; spans are written within a second",
                code="unknown_trace",
            )
        if terminal.plain:
            sys.stdout.write(json.dumps([asdict(span) for span in spans], default=str) + "\n")
        else:
            terminal.console.print(span_tree(spans))

    terminal.run(work())


def span_tree(spans: list[TraceSpan]) -> Tree:
    """The spans as a tree: name, room, start after the root, duration, error."""
    children: dict[str, list[TraceSpan]] = defaultdict(list)
    known = {span.span_id for span in spans}
    for span in spans:
        children[span.parent_id if span.parent_id in known else ""].append(span)
    start_s = spans[0].start_s
    root = Tree(f"trace {spans[0].trace_id}")

    def grow(tree: Tree, parent: str) -> None:
        for span in children[parent]:
            after_ms = 1000 * (span.start_s - start_s)
            error = f" [red]{escape(span.error)}[/red]" if span.error else ""
            label = f"[bold]{escape(span.name)}[/bold] [dim]+{after_ms:.1f} ms[/dim] {span.duration_ms:.1f} ms{error}"
            grow(tree.add(label), span.span_id)

    grow(root, "")
    return root
