"""Starts the platform and keeps it: the broker, then every room, as leashed children; Ctrl-C stops all of it.

On a laptop this stands where Kubernetes stands on a cluster. `split` gives every room a process of its own.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.kit import nats_server
from catena.kit.chassis import kept_token
from catena.kit.config import ROOMS, House
from catena.kit.dial import dial
from catena.kit.errors import Invalid
from catena.kit.supervise import Child, Supervisor
from catena.sdk.home import front_file, front_url, occupied, vacated

Step = Callable[[str], None]
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A running platform: where it listens, and the key that the development profile keeps."""

    house: House
    url: str
    key: str
    home: Path
    supervisor: Supervisor


@asynccontextmanager
async def platform(
    house: House, config: Path | None, *, split: bool = False, step: Step = lambda _: None
) -> AsyncIterator[Platform]:
    """Run the platform that `config` describes until the block ends; `step` is told what is being started.

    Raises Invalid for a configuration that some room could not read, Conflict (`already_running`) where one runs in
    this home already, Unavailable, with the child's last words, when a part does not come up.
    """
    home, front = house.folder(), front_file(house)
    with occupied(house):
        await _check(config)
        await vacated(house)
        front.unlink(missing_ok=True)
        async with _children(house, config, split, step) as supervisor:
            yield Platform(house=house, url=front_url(front), key=_dev_key(home), home=home, supervisor=supervisor)


async def uncallable(house: House) -> dict[str, str]:
    """The models of a running platform that cannot be called, and why; `auto` leaves them out."""
    token = kept_token(house)
    async with dial(house.address("executor"), token=token) as channel:
        listed = await executor_pb2_grpc.ExecutorServiceStub(channel).ListModels(executor_pb2.ListModelsRequest())
    return {model.name: model.problem for model in listed.models if model.problem and not model.parent}


@asynccontextmanager
async def _children(house: House, config: Path | None, split: bool, step: Step) -> AsyncIterator[Supervisor]:
    """The broker and the rooms, ready."""
    home = house.folder()
    async with Supervisor(house.folder("run")) as supervisor:
        if not house.bus.url:
            step("event broker")
            broker = Child(name="nats", command=nats_server.command(home), ready=lambda: nats_server.ready(home))
            await supervisor.start(broker)
        names = ROOMS if split else ("allinone",)
        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    step(name)
                    child = _child(name, config, house)
                    group.create_task(supervisor.start(child, timeout_s=START_TIMEOUT_S))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        yield supervisor


async def _check(config: Path | None) -> None:
    """Raises Invalid with every complaint of `catena.allinone.check`, which knows the rooms' sections."""
    command = [sys.executable, "-m", "catena.allinone.check", *_arguments(config)]
    told = await asyncio.to_thread(subprocess.run, command, stderr=subprocess.PIPE, text=True, errors="replace")
    if told.returncode:
        raise Invalid(told.stderr.strip(), code="bad_config")


def _arguments(config: Path | None) -> list[str]:
    return ["--config", str(config)] if config else []


def _child(name: str, config: Path | None, house: House) -> Child:
    rooms = ROOMS if name == "allinone" else (name,)

    async def ready() -> bool:
        serving = await asyncio.gather(*(_serving(house.address(room)) for room in rooms))
        return all(serving) and ("gateway" not in rooms or await _answers(front_file(house)))

    return Child(name=name, command=[sys.executable, "-m", f"catena.{name}", *_arguments(config)], ready=ready)


async def _serving(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            told = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.aio.AioRpcError:
            return False
    return bool(told.status == health_pb2.HealthCheckResponse.SERVING)


async def _answers(front: Path) -> bool:
    try:
        url = front_url(front)
        async with aiohttp.ClientSession() as session, session.get(f"{url}/healthz") as answer:
            return answer.status == 200
    except (OSError, aiohttp.ClientError, msgspec.DecodeError):
        return False


def _dev_key(home: Path) -> str:
    path = home / "keys" / "development.key"
    return path.read_text().strip() if path.exists() else ""
