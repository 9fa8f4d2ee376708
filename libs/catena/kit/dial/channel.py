"""The channel itself. It wraps calls rather than using grpc.aio's client interceptors, which cost a task a call."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc

from catena.kit import wire
from catena.kit.caller import caller, deadline_s
from catena.kit.dial.calls import Outgoing
from catena.kit.direct import DirectCall, door_at
from catena.kit.errors import Unavailable
from catena.kit.telemetry import current_traceparent

DEFAULT_TIMEOUT_S = 60.0
Extra = Iterable[tuple[str, str | bytes]]
MESSAGE_BYTES = 64 * 1024 * 1024
# Only failures of the transport are retried: servers push back on errors that their handlers raised.
RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.service_config", json.dumps(RETRIES)),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # By this name gRPC takes how long one attempt to connect may last; a room whose cores are taken answers late.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


@asynccontextmanager
async def dial(
    address: str,
    *,
    token: str,
    credentials: grpc.ChannelCredentials | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    direct: bool = True,
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a room, for its stubs: `RouterServiceStub(channel)`. Connects at the first call, not before.

    Every call bears `token`, the current caller and trace, and ends after the least of its own `timeout` (else
    `timeout_s`) and what remains of the call being served. It raises the CatenaError kinds that the room raised.
    A transport failure is tried three times in all, so a write carries an id that makes repeating it harmless.
    Rooms of this process are called without a socket (`kit.direct`), unless `direct` is False.
    """
    if credentials is None:
        inner = grpc.aio.insecure_channel(address, options=OPTIONS)
    else:
        inner = grpc.aio.secure_channel(address, credentials, options=OPTIONS)
    try:
        yield Channel(inner, address=address, token=token, timeout_s=timeout_s, direct=direct and credentials is None)
    finally:
        await inner.close()


class Channel(grpc.aio.Channel):
    """Makes calls that carry who asks, how long they wait and which trace they belong to."""

    def __init__(
        self, inner: grpc.aio.Channel, *, address: str, token: str, timeout_s: float, direct: bool = True
    ) -> None:
        """Call through `inner`, or through a door."""
        self._inner = inner
        self._dialled = Dialled(address, ("authorization", f"Bearer {token}"), timeout_s, direct)

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **kwargs: Any
    ) -> Any:
        """A function that calls `method`."""
        coding = Coding(request_serializer, response_deserializer)
        return self._dialled.wrap(method, self._inner.unary_unary(method, *coding, **kwargs), coding)

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **kwargs: Any
    ) -> Any:
        """A function that calls `method`."""
        coding = Coding(request_serializer, response_deserializer)
        return self._dialled.wrap(method, self._inner.unary_stream(method, *coding, **kwargs), coding)

    def stream_unary(self, method: str, *rest: Any, **kwargs: Any) -> Any:
        """A function that calls `method`."""
        return self._dialled.wrap(method, self._inner.stream_unary(method, *rest, **kwargs))

    def stream_stream(self, method: str, *rest: Any, **kwargs: Any) -> Any:
        """A function that calls `method`."""
        return self._dialled.wrap(method, self._inner.stream_stream(method, *rest, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        """End every call after `grace` seconds, and the channel."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Whether it is connected."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the state is another."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until it is connected."""
        await self._inner.channel_ready()

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()


class Coding(NamedTuple):
    """How requests become bytes, and bytes responses; None: they are bytes."""

    encode: Callable[[Any], bytes] | None
    decode: Callable[[bytes], Any] | None


@dataclass(frozen=True, slots=True)
class Dialled:
    """What every call of a channel has in common."""

    address: str
    bearer: tuple[str, str]
    timeout_s: float
    direct: bool

    def wrap(self, method: str, start: Callable[..., Any], coding: Coding | None = None) -> Callable[..., Outgoing]:
        """`start` with timeout and metadata filled in, its call wrapped; with `coding` also through a door."""
        verb = wire.verb_of(method)

        def call(
            request: Any = None,
            timeout: float | None = None,
            metadata: Extra | None = None,
            **kwargs: Any,
        ) -> Outgoing:
            limit_s = min(self.timeout_s if timeout is None else timeout, deadline_s())
            # At 0 the transport still lets a fast call through; a deadline in the past fails for certain.
            due_s = limit_s if limit_s > 0 else -1.0
            if coding is not None and (made := self._directly(method, coding, request, due_s, metadata)) is not None:
                return Outgoing(made, verb=verb, address=self.address, decode=coding.decode)
            try:
                made = start(request, timeout=due_s, metadata=self._metadata(metadata), **kwargs)
            except grpc.aio.UsageError as error:
                raise Unavailable(f"{verb}: stopping ({error}); try again", retry_after_s=1.0) from error
            return Outgoing(made, verb=verb, address=self.address)

        return call

    def _directly(
        self, method: str, coding: Coding, request: Any, due_s: float, extra: Extra | None
    ) -> DirectCall | None:
        door = door_at(self.address) if self.direct else None
        handler = door.handler(method) if door is not None else None
        if door is None or handler is None:
            return None
        raw = coding.encode(request) if coding.encode is not None else request
        return door.call(handler, raw, self._metadata(extra), due_s)

    def _metadata(self, extra: Extra | None) -> tuple[tuple[str, str | bytes], ...]:
        who = caller()
        traceparent = current_traceparent()
        return (
            self.bearer,
            ("x-catena-tenant", who.tenant),
            ("x-catena-role", who.role),
            *((("traceparent", traceparent),) if traceparent else ()),
            *(extra or ()),
        )
