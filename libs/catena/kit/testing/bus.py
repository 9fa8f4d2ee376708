"""A bus in memory, for unit tests of rooms: the same verbs and promises, no broker."""

import asyncio
from collections.abc import Sequence

from catena.kit.bus import DeadLetter, Handle
from catena.kit.errors import Exhausted, Late, Unavailable
from catena.kit.event import Event, check, patterns, subject_of


class MemoryBus:
    """Keeps every event in `events`; an id is stored once, a durable consumer goes on where it stopped."""

    def __init__(self) -> None:
        """Begin with an empty stream."""
        self.events: list[Event] = []
        self._ids: set[str] = set()
        self._dead: list[DeadLetter] = []
        self._next: dict[str, int] = {}
        self._news = asyncio.Condition()

    async def publish(self, event: Event, *, timeout_s: float = 30.0) -> None:
        """Store `event`, unless its id was stored before."""
        check(event)
        async with self._news:
            if event.id not in self._ids:
                self._ids.add(event.id)
                self.events.append(event)
                self._news.notify_all()

    async def publish_many(self, events: Sequence[Event], *, timeout_s: float = 30.0, window: int = 200) -> None:
        """Store `events` in order."""
        for event in events:
            await self.publish(event)

    async def consume(
        self,
        durable: str,
        types: Sequence[str],
        handle: Handle,
        *,
        in_flight: int = 1,
        max_deliver: int = 6,
        backoff_s: Sequence[float] = (),
    ) -> None:
        """Hand every event of `types` to `handle`, one after the other, until cancelled; no pauses between attempts."""
        patterns(types)
        while True:
            event = await self._at(self._next.get(durable, 0))
            if _matches(event, types):
                await self._deliver(durable, event, handle, max_deliver)
            self._next[durable] = self._next.get(durable, 0) + 1

    async def watch(self, types: Sequence[str], handle: Handle, *, since_now: bool = True) -> None:
        """Show every event of `types` to `handle` until cancelled."""
        position = len(self.events) if since_now else 0
        while True:
            event = await self._at(position)
            position += 1
            if _matches(event, types):
                await handle(event)

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The newest events that consumers gave up."""
        return self._dead[::-1][:limit]

    async def _at(self, position: int) -> Event:
        async with self._news:
            await self._news.wait_for(lambda: len(self.events) > position)
            return self.events[position]

    async def _deliver(self, durable: str, event: Event, handle: Handle, max_deliver: int) -> None:
        attempt = 1
        while True:
            try:
                await handle(event)
                return
            except (Unavailable, Late, Exhausted):
                await asyncio.sleep(0)
            except Exception as error:  # noqa: BLE001 - as the real bus: the next events must come
                if attempt >= max_deliver:
                    reason = f"{type(error).__name__}: {error}"
                    self._dead.append(DeadLetter(event=event, consumer=durable, reason=reason, deliveries=attempt))
                    return
                attempt += 1


def _matches(event: Event, types: Sequence[str]) -> bool:
    words = subject_of(event).split(".")
    wanted = (filter_.split(".") for filter_ in patterns(types))
    return any(all(want in ("*", word) for want, word in zip(want_all, words, strict=True)) for want_all in wanted)
