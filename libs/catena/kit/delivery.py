"""What becomes of delivered messages: handled, tried again, or buried. The rules behind `Bus.consume`."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import nats
import structlog
from nats.aio.msg import Msg

from catena.kit.cancel import heed_cancel
from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Unavailable
from catena.kit.event import Event, read_event

MAX_DELIVER = 6
BACKOFF_S = (0.1, 0.5, 2.0, 5.0, 15.0)
PATIENCE_S = 600.0
"""How long a part may be down before the event itself is suspected."""
LONGEST_PAUSE_S = 10.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How often, and with which pauses, an event is delivered to the consumer `durable`."""

    durable: str
    ack_wait_s: float
    max_deliver: int
    backoff_s: tuple[float, ...]

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait after the failed `attempt`, counted from 1."""
        return self.backoff_s[min(attempt, len(self.backoff_s)) - 1] if self.backoff_s else 0.0


class Delivery:
    """Runs one consumer's handler over messages and tells the broker how each ended."""

    def __init__(
        self,
        terms: Terms,
        handle: Callable[[Sequence[Event]], Awaitable[None]],
        *,
        answer: Callable[[Sequence[Msg], bytes], Awaitable[None]],
        bury: Callable[[Msg, Terms, str], Awaitable[None]],
    ) -> None:
        """`answer` tells the broker +ACK, -NAK or +TERM and waits for it to hear; `bury` moves to the dead letters."""
        self._terms = terms
        self._handle = handle
        self._answer = answer
        self._bury = bury
        self._busy: set[int] = set()

    async def deliver(self, *msgs: Msg) -> None:
        """See messages through, together; raises nothing but CancelledError. What could not be answered comes again.

        Where the handler fails, each is handled by itself: those that are sound are done, and the one to blame is
        tried again, or buried, alone.
        """
        # One that is delivered again while it is still being handled: the broker was away for longer than it waits.
        fresh = {number: msg for msg in msgs if (number := msg.metadata.sequence.stream) not in self._busy}
        self._busy.update(fresh)
        several = list(fresh.values())
        try:
            async with _kept_alive(several, self._terms.ack_wait_s / 3):
                await self._settle(several)
        except asyncio.CancelledError:
            await _give_back(several)
            raise
        except Exception:
            subjects = sorted({msg.subject for msg in several})
            log.exception("events left unanswered", consumer=self._terms.durable, subjects=subjects)
        finally:
            self._busy.difference_update(fresh)

    async def _settle(self, msgs: Sequence[Msg]) -> None:
        read = [(msg, event) for msg in msgs if (event := await self._read(msg)) is not None]
        if not read:
            return
        try:
            await self._attempt([event for _, event in read])
        except Exception as error:  # noqa: BLE001 - whatever one event does to its handler, the next ones must come
            if len(read) == 1:
                await self._failed(*read[0], error)
                return
            for msg, _ in read:
                await self._settle([msg])
        else:
            await self._answer([msg for msg, _ in read], b"+ACK")

    async def _read(self, msg: Msg) -> Event | None:
        """The event; None once it is buried, for it is none or never comes to an end."""
        deliveries = msg.metadata.num_delivered
        try:
            event = read_event(msg.headers, msg.data)
        except Invalid as error:
            await self._bury(msg, self._terms, error.message)
            return None
        if deliveries > 3 * self._terms.max_deliver:
            told = f"delivered {deliveries} times and never answered: does it end the process?"
            await self._bury(msg, self._terms, told)
            return None
        return event

    async def _attempt(self, events: Sequence[Event]) -> None:
        """Handle `events`, waiting in place while some other part is down."""
        waited_s, pause_s = 0.0, 0.2
        while True:
            heed_cancel()
            try:
                await self._handle(events)
                return
            except (Unavailable, Late, Exhausted, ConnectionError, TimeoutError) as error:
                if waited_s >= PATIENCE_S:
                    raise
                if not waited_s:
                    first = {"type": events[0].type, "id": events[0].id, "count": len(events)}
                    log.warning("events wait", consumer=self._terms.durable, **first, error=str(error))
                asked_s = error.retry_after_s if isinstance(error, CatenaError) else 0.0
                step_s = min(max(pause_s, asked_s), LONGEST_PAUSE_S)
                await asyncio.sleep(step_s)
                waited_s, pause_s = waited_s + step_s, pause_s * 2

    async def _failed(self, msg: Msg, event: Event, error: Exception) -> None:
        attempt = msg.metadata.num_delivered
        last = attempt >= self._terms.max_deliver
        log.error(
            "event buried" if last else "event failed",
            consumer=self._terms.durable,
            type=event.type,
            id=event.id,
            attempt=attempt,
            exc_info=error,
        )
        if last:
            await self._bury(msg, self._terms, f"{type(error).__name__}: {error}")
        else:
            delay_ns = int(self._terms.pause_s(attempt) * 1e9)
            await self._answer([msg], b"-NAK " + json.dumps({"delay": delay_ns}).encode())


class Gathering:
    """Collects messages as they come and sees them through together, `most` at a time, in their order."""

    def __init__(self, delivery: Delivery, *, linger_s: float, most: int) -> None:
        """Whoever comes first waits `linger_s` for others."""
        self._delivery = delivery
        self._linger_s = linger_s
        self._most = most
        self._come: asyncio.Queue[Msg] = asyncio.Queue()
        self._group: list[Msg] = []

    async def add(self, msg: Msg) -> None:
        """Take in a message; `run` sees to it."""
        self._come.put_nowait(msg)

    async def run(self) -> None:
        """See messages through until cancelled."""
        try:
            while True:
                heed_cancel()
                self._group.append(await self._come.get())
                await asyncio.sleep(self._linger_s)
                self._group.extend(self._waiting(self._most - 1))
                group, self._group = self._group, []
                await self._delivery.deliver(*group)
        finally:
            await _give_back([*self._group, *self._waiting(self._come.qsize())])

    def _waiting(self, most: int) -> list[Msg]:
        return [self._come.get_nowait() for _ in range(min(most, self._come.qsize()))]


@asynccontextmanager
async def _kept_alive(msgs: Sequence[Msg], every_s: float) -> AsyncIterator[None]:
    """Tell the broker now and then that messages are still being worked upon."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                for msg in msgs:
                    await msg.in_progress()
            except (nats.errors.Error, OSError) as error:
                log.debug("progress not told", count=len(msgs), error=repr(error))

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()


async def _give_back(msgs: Sequence[Msg]) -> None:
    """Let another process have them at once instead of after the broker's wait."""
    try:
        for msg in msgs:
            await msg.nak()
    except (nats.errors.Error, OSError) as error:
        log.debug("not given back", count=len(msgs), error=repr(error))
