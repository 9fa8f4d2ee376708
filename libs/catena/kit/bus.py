"""The event bus: NATS JetStream behind four verbs, `publish`, `consume`, `watch`, `dead_letters`.

Every room's `app` opens one. The connection is made in the background and made again for ever, so a room starts, and
goes on, without the broker; what must not be lost waits in the room's outbox meanwhile.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote, unquote, urlsplit

import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError

from catena.kit.cancel import heed_cancel
from catena.kit.delivery import BACKOFF_S, MAX_DELIVER, Delivery, Gathering, Terms
from catena.kit.errors import CatenaError, Invalid, Unavailable
from catena.kit.event import Event, check, headers_of, patterns, read_event, subject_of
from catena.kit.pull import Link, pull

__all__ = ["Bus", "DeadLetter", "Event", "Handle", "open_bus"]

SCHEMES = ("nats", "tls", "ws", "wss")
STREAM = "CATENA"
DLQ = "CATENA_DLQ"
MAX_AGE_S = timedelta(days=7).total_seconds()
DEAD_MAX_AGE_S = timedelta(days=30).total_seconds()
DUPLICATE_WINDOW_S = 600.0
ACK_WAIT_S = 5.0
"""A killed broker may forget the newest acknowledgements; for this long their events, and the ones behind, wait."""
REQUEST_S = 1.5
"""A request on a connection whose server has died is only noticed by its time-out: keep it short and ask again."""
RECONNECT_S = 0.25

Handle = Callable[[Event], Awaitable[None]]
HandleAll = Callable[[Sequence[Event]], Awaitable[None]]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that `consumer` gave up after `deliveries` attempts, with the reason of the last."""

    event: Event
    consumer: str
    reason: str
    deliveries: int


class Bus:
    """One room's connection to the broker."""

    def __init__(self, url: str, *, name: str) -> None:
        """Remember where the broker is (`nats://[token@]host:port`); `name` shows in its monitoring."""
        self._url = url
        self._name = name
        self._link = Link()
        self._told = ""

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable now, as far as the connection knows."""
        return self._link.up.is_set()

    async def publish(self, event: Event, *, timeout_s: float = 30.0) -> None:
        """Return once the broker has stored `event`. Sent again under the same id when no answer comes: stored once.

        Raises Invalid when it can never be stored, Unavailable when the broker did not answer within `timeout_s`.
        """
        subject, headers = subject_of(check(event)), headers_of(event)
        try:
            async with asyncio.timeout(timeout_s):
                await self._store(subject, event.data, headers)
        except TimeoutError:
            raise Unavailable(
                f"the broker did not acknowledge {event.type} within {timeout_s:g} s; it is safe to publish it again"
            ) from None

    async def publish_many(self, events: Sequence[Event], *, timeout_s: float = 30.0, window: int = 200) -> None:
        """Publish with up to `window` events on the way at once; order holds unless the connection breaks.

        Raises as `publish` does, for the first event that failed; others may have been stored.
        """
        for start in range(0, len(events), window):
            batch = (self.publish(event, timeout_s=timeout_s) for event in events[start : start + window])
            for outcome in await asyncio.gather(*batch, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    async def consume(
        self,
        durable: str,
        types: Sequence[str],
        handle: Handle,
        *,
        in_flight: int = 1,
        max_deliver: int = MAX_DELIVER,
        backoff_s: Sequence[float] = BACKOFF_S,
    ) -> None:
        """Hand every event of `types` to `handle`, from where `durable` stopped, until cancelled.

        Events may come twice: make the effect and `outbox.once` one transaction. With `in_flight` 1 the order of each
        room holds through failures, restarts and replicas that share `durable`; above 1 that many are handled at once.
        Unavailable, Late and Exhausted mean that a part is down: the event is tried again in place. Any other error
        counts against `max_deliver`, with pauses `backoff_s`; after the last the event goes to CATENA_DLQ.
        A type added to `types` of an existing `durable` is heard from then on, not from before.
        Raises Invalid when `types` are malformed or overlap.
        """

        async def alone(events: Sequence[Event]) -> None:
            for event in events:
                await handle(event)

        config, delivery = _durable(durable, types, in_flight), self._delivery(durable, alone, max_deliver, backoff_s)
        async with asyncio.TaskGroup() as tasks:

            async def start(msg: Msg) -> None:
                tasks.create_task(delivery.deliver(msg))

            await pull(self._link, STREAM, config, start, batch=max(in_flight, 64))

    async def consume_together(
        self,
        durable: str,
        types: Sequence[str],
        handle: HandleAll,
        *,
        linger_s: float = 0.25,
        most: int = 128,
        max_deliver: int = MAX_DELIVER,
        backoff_s: Sequence[float] = BACKOFF_S,
    ) -> None:
        """As `consume`, but hand events to `handle` in groups: what comes within `linger_s`, `most` at a time.

        For what comes often and costs nearly as much for one as for many. A group whose handling fails is handled
        again one by one. The order is that of coming, but for events that are tried again.
        """
        config, delivery = _durable(durable, types, 2 * most), self._delivery(durable, handle, max_deliver, backoff_s)
        gathering = Gathering(delivery, linger_s=linger_s, most=most)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(gathering.run())
            await pull(self._link, STREAM, config, gathering.add, batch=2 * most)

    async def watch(self, types: Sequence[str], handle: Handle, *, since_now: bool = True) -> None:
        """Show every event of `types` once to `handle`, in order, until cancelled; nothing is remembered at the broker.

        For dashboards and the command line. `since_now` False begins with the oldest event kept (7 days).
        An error of `handle` is logged and the event passed over.
        """
        config = ConsumerConfig(
            filter_subjects=patterns(types),
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.NEW if since_now else DeliverPolicy.ALL,
            inactive_threshold=60.0,
            mem_storage=True,
        )

        def resume(after: int) -> ConsumerConfig:
            if after == 0:
                return config
            return config.evolve(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1)

        async def show(msg: Msg) -> None:
            try:
                await handle(read_event(msg.headers, msg.data))
            except Exception:  # a viewer that stumbles over one event goes on with the next
                log.exception("watcher failed", subject=msg.subject)

        await pull(self._link, STREAM, resume, show, batch=256)

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The newest events that consumers gave up, newest first. Raises Unavailable."""
        client = await self._client(REQUEST_S * 4)
        js = client.jetstream(timeout=REQUEST_S)
        found: list[DeadLetter] = []
        try:
            state = (await js.stream_info(DLQ)).state
            for seq in range(state.last_seq, max(state.first_seq, 1) - 1, -1):
                if len(found) >= limit:
                    break
                with contextlib.suppress(NotFoundError):
                    found.append(_dead_letter(await js.get_msg(DLQ, seq)))
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"the broker does not show {DLQ}: {error!r}") from error
        return found

    async def ensure_streams(self) -> None:
        """Create or update CATENA and CATENA_DLQ. Done at every connection. Raises Unavailable."""
        client = await self._client(REQUEST_S * 4)
        try:
            await _ensure_streams(client)
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"the broker refuses the streams: {error!r}") from error

    async def stay_connected(self) -> None:
        """Connect, and connect again whenever the client has given up for good; until cancelled."""
        while True:
            client, changed = Client(), asyncio.Event()
            try:
                await self._connect(client, changed)
                while not client.is_closed:
                    heed_cancel()
                    changed.clear()
                    if client.is_connected:
                        await self._announce(client)
                    await changed.wait()
            except Exception:
                log.exception("bus connection fails", bus=self._name)
            finally:
                self._link.drop()
                if not client.is_closed:
                    await _disconnect(client)
            await asyncio.sleep(RECONNECT_S)

    async def _connect(self, client: Client, changed: asyncio.Event) -> None:
        """Try until connected; `changed` is set whenever the connection comes, goes, or is given up."""

        async def on_error(error: Exception) -> None:
            if repr(error) != self._told:  # an absent broker repeats itself four times a second
                self._told = repr(error)
                log.info("bus error", bus=self._name, error=self._told)

        async def on_lost() -> None:
            if self._link.client is client:
                log.warning("bus lost", bus=self._name)
            self._link.drop()
            changed.set()

        async def on_change() -> None:
            changed.set()

        await client.connect(
            servers=[self._url],
            name=self._name,
            error_cb=on_error,
            disconnected_cb=on_lost,
            reconnected_cb=on_change,
            closed_cb=on_change,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_S,  # type: ignore[arg-type]  # annotated int, used as seconds
            connect_timeout=2,
            ping_interval=10,
            max_outstanding_pings=2,
        )

    async def _announce(self, client: Client) -> None:
        """Open the gate once the streams exist; a broker that just started may need a moment to say so."""
        while client.is_connected:
            heed_cancel()
            try:
                await _ensure_streams(client)
            except (nats.errors.Error, OSError) as error:
                log.debug("streams not ready", bus=self._name, error=repr(error))
                await asyncio.sleep(0.1)
            else:
                self._told = ""
                self._link.lift(client)
                return

    async def _client(self, timeout_s: float) -> Client:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._link.wait()
        except TimeoutError:
            raise Unavailable(f"no connection to the broker within {timeout_s:g} s") from None

    async def _store(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        """Publish until acknowledged."""
        while True:
            heed_cancel()
            client = await self._link.wait()
            js: JetStreamContext = client.jetstream(timeout=REQUEST_S)
            try:
                await js.publish(subject, data, headers=headers)
                return
            except (MaxPayloadError, BadRequestError) as error:
                raise Invalid(f"the broker refuses {subject} ({len(data)} bytes): {error}") from error
            except APIError as error:
                log.warning("publish refused", subject=subject, error=str(error))
            except (nats.errors.Error, OSError) as error:
                log.debug("publish unanswered", subject=subject, error=repr(error))
                with contextlib.suppress(CatenaError):
                    await self.ensure_streams()
            await asyncio.sleep(0.1)

    def _delivery(self, durable: str, handle: HandleAll, max_deliver: int, backoff_s: Sequence[float]) -> Delivery:
        terms = Terms(durable=durable, ack_wait_s=ACK_WAIT_S, max_deliver=max_deliver, backoff_s=tuple(backoff_s))
        return Delivery(terms, handle, answer=self._answer, bury=self._bury)

    async def _answer(self, msgs: Sequence[Msg], answer: bytes) -> None:
        """Tell the broker what became of `msgs`, and wait until it has heard; given up, it delivers again.

        It hears in order: when it has heard the last one, it has heard all.
        """
        *others, last = msgs
        for _ in range(10):
            heed_cancel()
            client = await self._link.wait()
            with contextlib.suppress(nats.errors.Error, OSError):
                for msg in others:
                    await client.publish(msg.reply, answer)
                await client.request(last.reply, answer, timeout=REQUEST_S)
                return
        log.warning("acknowledgement unanswered", subject=last.subject)

    async def _bury(self, msg: Msg, terms: Terms, reason: str) -> None:
        """Copy `msg` to the dead-letter stream with its reason, then end its delivery."""
        kept = {k: v for k, v in (msg.headers or {}).items() if not k.lower().startswith("nats-")}
        kept |= {
            "Nats-Msg-Id": f"{terms.durable}:{msg.metadata.sequence.stream}",
            "catena-consumer": terms.durable,
            "catena-reason": quote(reason[:1000]),
            "catena-deliveries": str(msg.metadata.num_delivered),
        }
        await self._store(f"catena-dlq.{terms.durable}.{msg.subject.removeprefix('catena.')}", msg.data, kept)
        await self._answer([msg], b"+TERM")


@asynccontextmanager
async def open_bus(url: str, *, name: str) -> AsyncIterator[Bus]:
    """A bus that connects in the background; nothing here waits for the broker, the verbs do.

    Raises Invalid when `url` cannot be one.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise Invalid(f"bus.url has scheme {parts.scheme!r}, host {parts.hostname!r}; it should read nats://host:port")
    bus = Bus(url, name=name)
    keeper = asyncio.create_task(bus.stay_connected(), name=f"bus {name}")
    try:
        yield bus
    finally:
        while not keeper.done():  # connecting may swallow a cancellation too
            keeper.cancel()
            await asyncio.wait({keeper}, timeout=0.5)


def _durable(name: str, types: Sequence[str], in_flight: int) -> Callable[[int], ConsumerConfig]:
    """A consumer that the broker remembers, wherever the pull goes on. Raises Invalid for types it cannot have."""
    config = ConsumerConfig(
        durable_name=name,
        filter_subjects=patterns(types),
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=ACK_WAIT_S,
        max_ack_pending=in_flight,
        max_deliver=-1,
    )
    return lambda _: config


async def _disconnect(client: Client) -> None:
    """Hand over what is still buffered, then close."""
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        if client.is_connected:
            await client.flush(timeout=1)
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        await client.close()


async def _ensure_streams(client: Client) -> None:
    js = client.jetstream(timeout=REQUEST_S)
    for config in (
        StreamConfig(name=STREAM, subjects=["catena.>"], max_age=MAX_AGE_S, duplicate_window=DUPLICATE_WINDOW_S),
        StreamConfig(name=DLQ, subjects=["catena-dlq.>"], max_age=DEAD_MAX_AGE_S, duplicate_window=DUPLICATE_WINDOW_S),
    ):
        assert config.name is not None
        try:
            await js.stream_info(config.name)
        except NotFoundError:
            await js.add_stream(config)


def _dead_letter(raw: "nats.js.api.RawStreamMsg") -> DeadLetter:
    headers = raw.headers or {}
    return DeadLetter(
        event=read_event(headers, raw.data or b""),
        consumer=headers.get("catena-consumer", ""),
        reason=unquote(headers.get("catena-reason", "")),
        deliveries=int(headers.get("catena-deliveries", "0")),
    )
