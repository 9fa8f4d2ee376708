"""`catena chat`."""

import sys
from typing import Annotated, Any

import typer

from catena.api.executor.v1 import executor_pb2
from catena.api.types.v1 import types_pb2
from catena.sdk.terminal import Terminal


def chat(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to ask; '-' reads standard input.")],
    model: Annotated[str, typer.Option(help="auto, a base, base@adapter, pipeline:<name>, an outside model.")] = "auto",
    pipeline_type: Annotated[str, typer.Option(help="sequential, cascade, consensus, ... or auto.")] = "",
    objective: Annotated[str, typer.Option(help="cost, latency, quality or balanced.")] = "",
    task: Annotated[str, typer.Option(help="The task, if you know it.")] = "",
    max_cost: Annotated[float, typer.Option(help="Hard cap in USD; 0: none.")] = 0.0,
) -> None:
    """Ask, and watch the answer come; then see which plan ran, and what it cost."""
    terminal: Terminal = context.obj
    asked = sys.stdin.read() if text == "-" else text
    wanted = {"objective": objective, "task": task, "max_cost_usd": max_cost}
    terminal.run(_chat(terminal, asked, model, pipeline_type, wanted))


async def _chat(terminal: Terminal, text: str, model: str, pipeline_type: str, wanted: dict[str, Any]) -> None:
    finished = executor_pb2.Finished()
    streamed = False
    async with terminal.gateway() as catena:
        async for event in catena.stream(text, model=model, pipeline_type=pipeline_type, **wanted):
            if event.HasField("delta") and not terminal.plain:
                streamed = True
                terminal.console.print(event.delta.text, end="", markup=False, highlight=False)
            elif event.HasField("finished"):
                finished = event.finished
    if terminal.plain:
        terminal.message(finished)
        return
    if not streamed and finished.choices:
        terminal.console.print(finished.choices[0].message.content, end="", markup=False, highlight=False)
    terminal.console.print()
    rows = [
        (
            stage.name,
            stage.model,
            stage.outcome,
            stage.duration_ms,
            stage.usage.input_tokens + stage.usage.output_tokens,
            f"{stage.cost_usd:.8f}",
        )
        for stage in finished.stages
    ]
    shape = types_pb2.Shape.Name(finished.plan.shape).removeprefix("SHAPE_").lower().replace("_", "-")
    title = f"{finished.plan.pipeline or shape}, {finished.duration_ms:.0f} ms, {finished.cost_usd:.8f} USD"
    terminal.table(title, ("stage", "model", "outcome", "ms", "tokens", "USD"), rows)
    terminal.say(f"execution {finished.execution_id}")
