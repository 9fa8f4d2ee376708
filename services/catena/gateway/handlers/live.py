"""The dashboard: the page, its figures once, and its figures as they change, as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from catena.gateway.core.keys import Key
from catena.gateway.handlers.asking import Asking
from catena.gateway.handlers.exchange import json_response
from catena.gateway.handlers.pump import Pump, Streamed, named
from catena.gateway.handlers.routes import Entry
from catena.gateway.handlers.tiers import Tiers
from catena.gateway.handlers.trials import Trials
from catena.kit.caller import unhurried

EVERY_S = 2.0
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What the page draws for a key: its tenant's figures, to one of `shared` everybody's.

    `closing` is set when the gateway ends: a page that stays open must not hold it up, and comes again to the next.
    """

    asking: Asking
    tiers: Tiers
    trials: Trials
    page: str
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def data(self, _: Request, key: Key) -> Response:
        """All of it, once."""
        return json_response(await self._view(key))

    async def events(self, _: Request, key: Key) -> Response:
        """All of it, now and whenever some of it changed; at most every two seconds."""
        pump = Pump(self._views(key))
        return Streamed(_body(pump), pump)

    async def show(self, _: Request) -> Response:
        """The page; its data need a key."""
        return HTMLResponse(self.page)

    async def _view(self, key: Key) -> dict[str, Any]:
        view = self.asking.figures.view(key.tenant, self.asking.world.clock.now())
        tiers, trials = await asyncio.gather(self.tiers.view(), self.trials.view())
        return {**view, "tiers": tiers, "experiments": trials}

    async def _views(self, key: Key) -> AsyncGenerator[bytes, None]:
        before, still = b"", 0
        with unhurried():
            while not self.closing.is_set():
                now = msgspec.json.encode(await self._view(key))
                # Repeated now and then, so that a line that is gone is noticed at both ends.
                if now != before or still >= 5:
                    before, still = now, 0
                    yield now
                still += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.closing.wait(), EVERY_S)


async def _body(pump: Pump[bytes]) -> AsyncIterator[bytes]:
    try:
        async for view in pump:
            yield named("figures", view)
    except Exception:
        # The page comes again.
        log.exception("dashboard stream failed")


def live_entries(live: Live) -> list[Entry]:
    """Where it is."""
    return [
        Entry(verb="GET", path="/dashboard/data", says="what the dashboard draws", handler=live.data),
        Entry(verb="GET", path="/dashboard/events", says="the same whenever it changed", handler=live.events,
              media="text/event-stream"),
        Entry(verb="GET", path="/dashboard", says="the live page", open=live.show, media="text/html"),
    ]  # fmt: skip
