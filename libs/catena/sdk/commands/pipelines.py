"""`catena pipelines`."""

from pathlib import Path
from typing import Annotated

import typer

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.kit.errors import Invalid
from catena.sdk.terminal import Tenant, Terminal

app = typer.Typer(help="Pipelines of your own: write them as YAML, store them in versions, run them with `predict`.")
Name = Annotated[str, typer.Argument(help="The pipeline's name.")]


@app.command("list")
def listed(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """List the tenant's pipelines and those that are everybody's."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("executor", executor_pb2_grpc.ExecutorServiceStub, tenant) as executor:
            told = await executor.ListPipelines(executor_pb2.ListPipelinesRequest())
        rows = [(p.name, p.version, " > ".join(step.type for step in p.steps), p.description) for p in told.pipelines]
        terminal.table("Pipelines", ("name", "version", "steps", "description"), rows)

    terminal.run(work())


@app.command()
def put(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="YAML: name, description and steps of name, type and config.")],
    tenant: Tenant = DEVELOPER,
) -> None:
    """Check a pipeline and store it as its next version."""
    terminal: Terminal = context.obj

    async def work() -> None:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"{path} cannot be read: {error}", code="bad_pipeline") from error
        async with terminal.room("executor", executor_pb2_grpc.ExecutorServiceStub, tenant) as executor:
            told = await executor.PutPipeline(executor_pb2.PutPipelineRequest(yaml=text))
        terminal.table("Stored", ("name", "version"), [(told.pipeline.name, told.pipeline.version)])

    terminal.run(work())


@app.command()
def show(
    context: typer.Context,
    name: Name,
    version: Annotated[int, typer.Option(help="The newest unless named.")] = 0,
    tenant: Tenant = DEVELOPER,
) -> None:
    """Show a pipeline as stored."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("executor", executor_pb2_grpc.ExecutorServiceStub, tenant) as executor:
            told = await executor.GetPipeline(executor_pb2.GetPipelineRequest(name=name, version=version))
        terminal.message(told.pipeline)

    terminal.run(work())


@app.command()
def delete(context: typer.Context, name: Name, tenant: Tenant = DEVELOPER) -> None:
    """Remove a pipeline with all its versions."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("executor", executor_pb2_grpc.ExecutorServiceStub, tenant) as executor:
            await executor.DeletePipeline(executor_pb2.DeletePipelineRequest(name=name))

    terminal.run(work())
