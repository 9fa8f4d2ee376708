"""`catena models`."""

import typer

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.sdk.terminal import Tenant, Terminal

app = typer.Typer(
    help="Without a command: the models that may be asked for. Bases as files: import, merge, export, verify."
)


@app.callback(invoke_without_command=True)
def models(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """List the models that may be asked for, with prices in USD per million tokens; commands below work on files."""
    terminal: Terminal = context.obj
    if context.invoked_subcommand is None:
        terminal.run(_models(terminal, tenant))


async def _models(terminal: Terminal, tenant: str) -> None:
    async with terminal.room("executor", executor_pb2_grpc.ExecutorServiceStub, tenant) as executor:
        told = await executor.ListModels(executor_pb2.ListModelsRequest())
    columns = ("model", "type", "provider", "parent", "input", "output", "context", "status", "calls")
    rows = [
        (
            m.name,
            m.type,
            m.provider,
            m.parent,
            m.price_input,
            m.price_output,
            m.context_tokens,
            m.problem or m.status,
            m.calls,
        )
        for m in told.models
    ]
    terminal.table("Models", columns, rows)
