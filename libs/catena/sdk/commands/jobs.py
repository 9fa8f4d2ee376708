"""`catena jobs`."""

from pathlib import Path
from typing import Annotated

import typer
import yaml
from google.protobuf import json_format
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from catena.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from catena.kit.caller import DEVELOPER
from catena.kit.errors import Invalid
from catena.sdk.terminal import Bytes, Tenant, Terminal

app = typer.Typer(help="Training jobs: list, create, watch, cancel, plan.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="Identity of the job.")]
Spec = Annotated[Path, typer.Argument(help="Job as YAML with the fields of JobSpec.")]
WATCH_S = 24 * 3600.0


def read_spec(path: Path) -> trainer_pb2.JobSpec:
    """A job file. Raises Invalid that names the field."""
    try:
        tree = yaml.safe_load(path.read_text())
        if not isinstance(tree, dict):
            raise Invalid(f"{path} holds a {type(tree).__name__}; write a mapping of JobSpec's fields", code="bad_job")
        return json_format.ParseDict(tree, trainer_pb2.JobSpec())
    except (json_format.ParseError, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise Invalid(f"{path} is no job: {error}", code="bad_job") from None


@app.command("list")
def list_(context: typer.Context, tenant: Tenant = DEVELOPER) -> None:
    """List jobs, newest first."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("trainer", trainer_pb2_grpc.TrainerServiceStub, tenant) as trainer:
            told = await trainer.ListJobs(trainer_pb2.ListJobsRequest())
        columns = ("job", "adapter", "base", "state", "step", "loss", "accuracy", "model", "reason")
        rows = [
            (
                job.id,
                job.spec.adapter,
                job.spec.base,
                job.state,
                f"{job.progress.step}/{job.progress.total_steps}",
                job.progress.loss,
                job.metrics.get("accuracy"),
                job.model,
                job.reason,
            )
            for job in told.jobs
        ]
        terminal.table("Jobs", columns, rows)

    terminal.run(work())


@app.command()
def create(context: typer.Context, spec: Spec, tenant: Tenant = DEVELOPER) -> None:
    """Accept a job; it runs even if you leave."""
    terminal: Terminal = context.obj

    async def work() -> None:
        request = trainer_pb2.CreateJobRequest(spec=read_spec(spec))
        async with terminal.room("trainer", trainer_pb2_grpc.TrainerServiceStub, tenant) as trainer:
            told = await trainer.CreateJob(request)
        terminal.message(told.job)

    terminal.run(work())


@app.command()
def plan(context: typer.Context, spec: Spec, tenant: Tenant = DEVELOPER) -> None:
    """Tell what a job would take, without running it."""
    terminal: Terminal = context.obj

    async def work() -> None:
        request = trainer_pb2.PlanJobRequest(spec=read_spec(spec))
        async with terminal.room("trainer", trainer_pb2_grpc.TrainerServiceStub, tenant) as trainer:
            told = await trainer.PlanJob(request)
        rows = [
            ("optimiser steps", told.steps),
            ("rows", told.rows),
            ("trainable parameters", told.trainable_parameters),
            ("memory", Bytes(told.memory_bytes)),
            ("memory, 4-bit base", Bytes(told.memory_bytes_4bit)),
            ("seconds", round(told.duration_s)),
        ]
        terminal.table("Plan", ("what", "how much"), rows)

    terminal.run(work())


@app.command()
def watch(context: typer.Context, job_id: Id, tenant: Tenant = DEVELOPER) -> None:
    """Watch a job's progress until it ends."""
    terminal: Terminal = context.obj

    async def work() -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        job = trainer_pb2.Job()
        async with terminal.room("trainer", trainer_pb2_grpc.TrainerServiceStub, tenant) as trainer:
            with Progress(*columns, console=terminal.console, disable=terminal.plain) as progress:
                bar = progress.add_task("queued", total=None)
                async for told in trainer.WatchJob(trainer_pb2.WatchJobRequest(id=job_id), timeout=WATCH_S):
                    job = told.job
                    total = job.progress.total_steps or None
                    label = f"{job.state}, loss {job.progress.loss:.3f}"
                    progress.update(bar, description=label, completed=job.progress.step, total=total)
        terminal.message(job)

    terminal.run(work())


@app.command()
def cancel(context: typer.Context, job_id: Id, tenant: Tenant = DEVELOPER) -> None:
    """Ask a job to stop."""
    terminal: Terminal = context.obj

    async def work() -> None:
        async with terminal.room("trainer", trainer_pb2_grpc.TrainerServiceStub, tenant) as trainer:
            told = await trainer.CancelJob(trainer_pb2.CancelJobRequest(id=job_id))
        terminal.say(f"{told.job.id} is {told.job.state}")

    terminal.run(work())
