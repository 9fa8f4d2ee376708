"""`catena predict`."""

import json
import sys
from typing import Annotated, Any

import typer

from catena.sdk.terminal import Terminal


def predict(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A classifier, span finder, model of features, or pipeline:<name>.")],
    data: Annotated[str, typer.Argument(help="JSON, or a text that is none; '-' reads standard input.")],
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=JSON, such as top=3 or truncate=true.")
    ] = None,
) -> None:
    """Show what a model or pipeline makes of data, as JSON."""
    terminal: Terminal = context.obj
    asked = _value(sys.stdin.read() if data == "-" else data)
    parameters = {name: _value(told) for name, _, told in (one.partition("=") for one in parameter or ())}

    async def work() -> None:
        async with terminal.gateway() as catena:
            result = await catena.predict(model, asked, **parameters)
        terminal.console.print_json(data=result)

    terminal.run(work())


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
