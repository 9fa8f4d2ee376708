"""What becomes of one delivered message: handled, tried again, or buried. The rules behind `Bus.consume`."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
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
        handle: Callable[[Event], Awaitable[None]],
        *,
        answer: Callable[[Msg, bytes], Awaitable[None]],
        bury: Callable[[Msg, Terms, str], Awaitable[None]],
    ) -> None:
        """`answer` tells the broker +ACK, -NAK or +TERM and waits for it to hear; `bury` moves to the dead letters."""
        self._terms = terms
        self._handle = handle
        self._answer = answer
        self._bury = bury
        self._busy: set[int] = set()

    async def deliver(self, msg: Msg) -> None:
        """See one message through; raises nothing but CancelledError. What could not be answered comes again."""
        sequence = msg.metadata.sequence.stream
        if sequence in self._busy:
            return  # delivered again while still being handled: the broker was away for longer than it waits
        self._busy.add(sequence)
        try:
            async with _kept_alive(msg, self._terms.ack_wait_s / 3):
                await self._settle(msg)
        except asyncio.CancelledError:
            await _give_back(msg)
            raise
        except Exception:
            log.exception("event left unanswered", consumer=self._terms.durable, subject=msg.subject)
        finally:
            self._busy.discard(sequence)

    async def _settle(self, msg: Msg) -> None:
        deliveries = msg.metadata.num_delivered
        try:
            event = read_event(msg.headers, msg.data)
        except Invalid as error:
            await self._bury(msg, self._terms, error.message)
            return
        if deliveries > 3 * self._terms.max_deliver:
            await self._bury(
                msg, self._terms, f"delivered {deliveries} times and never answered: does it end the process?"
            )
            return
        try:
            await self._attempt(event)
        except Exception as error:  # noqa: BLE001 - whatever one event does to its handler, the next ones must come
            await self._failed(msg, event, error)
        else:
            await self._answer(msg, b"+ACK")

    async def _attempt(self, event: Event) -> None:
        """Handle `event`, waiting in place while some other part is down."""
        waited_s, pause_s = 0.0, 0.2
        while True:
            heed_cancel()
            try:
                await self._handle(event)
                return
            except (Unavailable, Late, Exhausted, ConnectionError, TimeoutError) as error:
                if waited_s >= PATIENCE_S:
                    raise
                if not waited_s:
                    log.warning(
                        "event waits", consumer=self._terms.durable, type=event.type, id=event.id, error=str(error)
                    )
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
            await self._answer(msg, b"-NAK " + json.dumps({"delay": delay_ns}).encode())


@asynccontextmanager
async def _kept_alive(msg: Msg, every_s: float) -> AsyncIterator[None]:
    """Tell the broker now and then that the message is still being worked upon."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await msg.in_progress()
            except (nats.errors.Error, OSError) as error:
                log.debug("progress not told", subject=msg.subject, error=repr(error))

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()


async def _give_back(msg: Msg) -> None:
    """Let another process have it at once instead of after the broker's wait."""
    try:
        await msg.nak()
    except (nats.errors.Error, OSError) as error:
        log.debug("not given back", subject=msg.subject, error=repr(error))
