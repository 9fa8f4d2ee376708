"""A pull from a JetStream consumer that outlives the broker.

nats-py's own `fetch` stalls behind orphaned pulls, and its pull subscriptions stay silent after the broker restarts.
Here each pull asks for heartbeats: two missed ones, or a new connection, and the consumer and the inbox are made anew.
Used by `bus` only.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig
from nats.js.errors import BadRequestError

from catena.kit.cancel import heed_cancel
from catena.kit.errors import Invalid

HEARTBEAT_S = 2.0
SILENCE_S = 2.5 * HEARTBEAT_S
EXPIRES_S = 30.0
NS = 1_000_000_000
REPEAT = {"404", "408"}
log = structlog.get_logger()


class Link:
    """The present connection, and who must know that it changed."""

    def __init__(self) -> None:
        """Start without a connection."""
        self.up = asyncio.Event()
        self.client: Client | None = None
        self.inboxes: set[asyncio.Queue[Msg | None]] = set()

    async def wait(self) -> Client:
        """The client, as soon as it is connected and the streams exist."""
        while self.client is None:
            await self.up.wait()
        return self.client

    def lift(self, client: Client) -> None:
        """`client` is connected (again): whoever pulls starts anew."""
        self.client = client
        self.up.set()
        for inbox in self.inboxes:
            inbox.put_nowait(None)

    def drop(self) -> None:
        """The connection is gone."""
        self.up.clear()
        self.client = None


async def pull(
    link: Link,
    stream: str,
    config: Callable[[int], ConsumerConfig],
    deliver: Callable[[Msg], Awaitable[None]],
    *,
    batch: int,
) -> None:
    """Pass every message of the consumer to `deliver`, one after the other, until cancelled.

    `config` gets the stream sequence after which to go on (0: nothing seen yet) whenever the consumer is made anew.
    Raises Invalid when the broker refuses the configuration.
    """
    seen = 0

    async def note(msg: Msg) -> None:
        nonlocal seen
        seen = max(seen, msg.metadata.sequence.stream)
        await deliver(msg)

    while True:
        heed_cancel()
        client = await link.wait()
        try:
            began = await _pull_once(link, client, stream, config(seen), note, batch)
            seen = max(seen, began)
        except BadRequestError as error:
            raise Invalid(f"the broker refuses the consumer: {error.description}", code="bad_consumer") from error
        except (nats.errors.Error, OSError) as error:
            log.info("pull interrupted", stream=stream, error=repr(error))
            await asyncio.sleep(0.2)


async def _pull_once(
    link: Link,
    client: Client,
    stream: str,
    config: ConsumerConfig,
    deliver: Callable[[Msg], Awaitable[None]],
    batch: int,
) -> int:
    """Pull until the connection changes or falls silent; the sequence at which the consumer began."""
    info = await client.jetstream(timeout=HEARTBEAT_S).add_consumer(stream, config)
    began: int = info.delivered.stream_seq if info.delivered else 0
    queue: asyncio.Queue[Msg | None] = asyncio.Queue()

    async def arrive(msg: Msg) -> None:
        queue.put_nowait(msg)

    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=arrive)
    link.inboxes.add(queue)
    try:
        await _read(client, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{info.name}", inbox, queue, deliver, batch)
    finally:
        link.inboxes.discard(queue)
        with contextlib.suppress(nats.errors.Error, OSError):
            await subscription.unsubscribe()
    return began


async def _read(
    client: Client,
    endpoint: str,
    inbox: str,
    queue: asyncio.Queue[Msg | None],
    deliver: Callable[[Msg], Awaitable[None]],
    batch: int,
) -> None:
    request = {"batch": batch, "expires": int(EXPIRES_S * NS), "idle_heartbeat": int(HEARTBEAT_S * NS)}
    left = 0
    while True:
        if left <= 0:
            await client.publish(endpoint, json.dumps(request).encode(), reply=inbox)
            left = batch
        heed_cancel()
        try:
            async with asyncio.timeout(SILENCE_S):
                msg = await queue.get()
        except TimeoutError:
            log.warning("broker silent, subscribing anew", endpoint=endpoint)
            return
        if msg is None:
            return
        status = _status(msg)
        if status is None:
            left -= 1
            await deliver(msg)
        elif status in REPEAT or (status == "409" and "Batch Completed" in _description(msg)):
            left = 0
        elif status != "100":
            log.debug("pull ended", endpoint=endpoint, status=status, description=_description(msg))
            raise nats.errors.Error(f"pull ended with {status} {_description(msg)}")


def _status(msg: Msg) -> str | None:
    headers: dict[str, Any] = msg.headers or {}
    return None if msg.data else headers.get("Status")


def _description(msg: Msg) -> str:
    return str((msg.headers or {}).get("Description", ""))
