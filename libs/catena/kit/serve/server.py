"""Opens a room's gRPC server on its unix socket or TCP port, with health and reflection, and drains it at the end."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from catena.kit.clock import World
from catena.kit.direct import Door, Guarded
from catena.kit.errors import Conflict, Invalid
from catena.kit.serve.incoming import Admit, Incoming, by_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server bears. Each is a setting of the room that needs another value.

    `deadline_s`: for calls that bring none. `concurrent`: calls at a time, 0 for no limit; beyond it, Exhausted.
    `grace_s`: how long live calls may go on after the server stops taking new ones.
    `linger_s`: between NOT_SERVING and stopping, so that load balancers notice first.
    """

    deadline_s: float = 60.0
    concurrent: int = 0
    message_bytes: int = 64 * 1024 * 1024
    grace_s: float = 10.0
    linger_s: float = 0.0


FORGOTTEN_S = 0.2
"""When no call has been under way for so long, those that gRPC still waits for will never be handed over."""


class Server:
    """A running server. `address` is what to dial, with the port that was actually bound."""

    def __init__(
        self,
        address: str,
        server: grpc.aio.Server,
        door: Door,
        incoming: Incoming,
        names: Sequence[str],
        limits: Limits,
    ) -> None:
        """Wrap a server that is about to start; `names` are the services whose health it tells."""
        self.address = address
        self._server = server
        self._door = door
        self._incoming = incoming
        self._names = ("", *names)
        self._limits = limits
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    async def mark(self, *, serving: bool) -> None:
        """Tell probes whether this room can do its work now, for example while a model loads."""
        states = health_pb2.HealthCheckResponse
        for name in self._names:
            await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)

    async def drain(self) -> None:
        """Tell probes, take no new calls, give live ones their grace, and end; a second time does nothing."""
        await self._health.enter_graceful_shutdown()
        try:
            await asyncio.sleep(self._limits.linger_s)
        finally:
            await asyncio.gather(self._door.close(self._limits.grace_s), self._stop())

    async def _stop(self) -> None:
        """Stop within the grace, and as soon as nothing is under way.

        A call that the core has taken while grpc.aio's serving loop ends is neither handled nor refused; it would
        hold the server, and its own caller, for all of the grace.
        """
        stopping = asyncio.ensure_future(self._server.stop(self._limits.grace_s))
        quiet_s = 0.0
        while not (await asyncio.wait([stopping], timeout=FORGOTTEN_S / 4))[0]:
            quiet_s = 0.0 if self._incoming.live else quiet_s + FORGOTTEN_S / 4
            if quiet_s >= FORGOTTEN_S:
                await self._server.stop(None)
        await stopping

    async def wait(self) -> None:
        """Return when the server has stopped."""
        await self._server.wait_for_termination()


@asynccontextmanager
async def open_server(
    address: str,
    services: Sequence[Callable[[grpc.aio.Server], None]],
    *,
    names: Sequence[str],
    token: str | Admit,
    world: World | None = None,
    credentials: grpc.ServerCredentials | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Server]:
    """Serve `services` at `address` (`unix:/path.sock`, or `host:port` with 0 for a free port) until the block ends.

    Each service is a function that adds itself, `lambda server: add_RouterServiceServicer_to_server(handlers, server)`;
    `names` are their full names, for health and reflection. Callers must bear `token`, except to probe
    health; a front door gives a function that knows its callers instead.
    Raises Invalid for an empty token, Conflict when somebody else serves there.
    """
    if not token:
        raise Invalid("the service token is empty; set auth.service_token", code="no_token")
    limits = limits or Limits()
    claim(address)
    incoming = Incoming(
        admit=by_token(token) if isinstance(token, str) else token,
        limit_s=limits.deadline_s,
        clock=(world or World()).clock,
    )
    options, most = _options(limits), limits.concurrent or None
    server = grpc.aio.server(interceptors=[incoming], options=options, maximum_concurrent_rpcs=most)
    methods = _Methods(server, incoming)
    for add in services:
        add(methods)  # type: ignore[arg-type]
    door = Door(methods.find, concurrent=limits.concurrent, message_bytes=limits.message_bytes)
    running = Server(_bind(server, address, credentials), server, door, incoming, names, limits)
    await server.start()
    if credentials is None:
        door.open(running.address)
    try:
        await running.mark(serving=True)
        yield running
    finally:
        await running.drain()


class _Methods:
    """Stands for a server while services add themselves to it, and remembers their methods."""

    def __init__(self, server: grpc.aio.Server, incoming: Incoming) -> None:
        self._server = server
        self._incoming = incoming
        self._services: list[grpc.GenericRpcHandler] = []
        self._found: dict[str, Guarded | None] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Take services in."""
        self._server.add_generic_rpc_handlers(handlers)
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """The same services once more, for servers that look methods up faster."""
        self._server.add_registered_method_handlers(service, handlers)

    def find(self, name: str) -> Guarded | None:
        """A method's handler for the door: not one that streams requests, nor one that writes its answers itself."""
        if name not in self._found:
            details = _Details(name)
            handler = next((found for service in self._services if (found := service.service(details))), None)
            self._found[name] = None if handler is None or handler.request_streaming else self._guarded(name, handler)
        return self._found[name]

    def _guarded(self, name: str, handler: Any) -> Guarded | None:
        made: Any = self._incoming.around(name, handler)
        return None if made.response_serializer is not None else made.unary_stream or made.unary_unary


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


def claim(address: str) -> None:
    """Make a unix socket's folder private and remove a socket that a dead process left.

    Raises Conflict when a live process answers there.
    """
    if not address.startswith("unix:"):
        return
    path = Path(address.removeprefix("unix:"))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        else:
            raise Conflict(f"another process serves at {address}; stop it first", code="address_taken")


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise Conflict(
            f"cannot listen at {address} ({error}); free it or name another", code="address_taken"
        ) from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_metadata_size", 64 * 1024),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
