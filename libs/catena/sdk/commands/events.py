"""`catena events`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.markup import escape

from catena.api.events.v1 import events_pb2
from catena.kit import nats_server
from catena.kit.bus import open_bus
from catena.kit.event import Event
from catena.sdk.terminal import Terminal

BODIES: dict[str, type[Message]] = {
    "executor.execution.completed": events_pb2.ExecutionCompleted,
    "executor.run.finished": events_pb2.RunFinished,
    "learner.feedback.recorded": events_pb2.FeedbackRecorded,
    "learner.dataset.ready": events_pb2.DatasetReady,
    "learner.promotion.decided": events_pb2.PromotionDecided,
    "trainer.job.started": events_pb2.JobStarted,
    "trainer.job.progressed": events_pb2.JobProgressed,
    "trainer.job.finished": events_pb2.JobFinished,
    "adapters.adapter.registered": events_pb2.AdapterRegistered,
    "adapters.adapter.aliased": events_pb2.AdapterAliased,
    "adapters.adapter.withdrawn": events_pb2.AdapterWithdrawn,
    "adapters.residency.changed": events_pb2.ResidencyChanged,
    "router.experiment.decided": events_pb2.ExperimentDecided,
    "features.value.set": events_pb2.ValueSet,
    "memory.document.indexed": events_pb2.DocumentIndexed,
    "gateway.key.changed": events_pb2.KeyChanged,
    "gateway.key.used": events_pb2.KeyUsed,
}


def events(
    context: typer.Context,
    type_: Annotated[str, typer.Option("--type", help="Only this event, for example learner.promotion.decided.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="From the oldest that is kept, not from now.")] = False,
) -> None:
    """Show events as they come, until Ctrl-C."""
    terminal: Terminal = context.obj
    if type_ and type_ not in BODIES:
        raise typer.BadParameter(f"unknown event {type_!r}; use one of {', '.join(BODIES)}")

    async def show(event: Event) -> None:
        body = BODIES[event.type].FromString(event.data)
        if terminal.plain:
            terminal.message(body)
            return
        clock = datetime.fromtimestamp(event.time_s, UTC).strftime("%H:%M:%S.%f")[:-3]
        told = f"{clock} [bold]{event.type}[/bold] {event.tenant} {escape(summary(body))}"
        terminal.console.print(told, highlight=False, soft_wrap=True)

    async def work() -> None:
        url = nats_server.url(Path(terminal.house.home), terminal.house.bus.url)
        async with open_bus(url, name="cli") as bus:
            await bus.ensure_streams()  # an absent broker is told of, one that is lost later is waited for
            await bus.watch([type_] if type_ else list(BODIES), show, since_now=not all_)

    terminal.run(work())


def summary(body: Message) -> str:
    """The plain fields of an event on one line."""
    plain = json_format.MessageToDict(body, preserving_proto_field_name=True)
    return " ".join(f"{name}={value}" for name, value in plain.items() if not isinstance(value, dict | list))
