"""Replicas of the gateway tell each other what limited keys used, so that a limit holds for all of them together.

It is told every moment, not with each request: what keys use meanwhile may go past a limit by that much. A replica that
starts reads what was spent from SQL.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from catena.api.events.v1 import events_pb2
from catena.gateway.core.keys import Gateway, Used
from catena.kit.clock import World
from catena.kit.errors import CatenaError
from catena.kit.event import Event

USED = "gateway.key.used"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """`me` tells this replica from others; `publish` sends an event."""

    gateway: Gateway
    world: World
    me: str
    publish: Callable[[Event], Awaitable[None]]

    async def tell(self) -> None:
        """Tell what was used since the last call; what cannot be told is not told again, for SQL has it."""
        now_s = self.world.clock.now()
        for key_id, used in self.gateway.take_untold().items():
            told = events_pb2.KeyUsed(
                key_id=key_id,
                replica=self.me,
                minute=used.minute,
                requests=used.requests,
                tokens=used.tokens,
                cost_usd=used.cost_usd,
            )
            data, id_ = told.SerializeToString(), self.world.new_id()
            try:
                await self.publish(
                    Event(id=id_, type=USED, tenant="shared", subject=key_id, time_s=now_s, data=data, traceparent="")
                )
            except CatenaError as error:
                log.warning("other replicas not told what a key used", key_id=key_id, error=error.message)

    async def hear(self, event: Event) -> None:
        """Count what another replica tells."""
        told = events_pb2.KeyUsed.FromString(event.data)
        if told.replica == self.me:
            return
        used = Used(minute=told.minute, requests=told.requests, tokens=told.tokens, cost_usd=told.cost_usd)
        self.gateway.hear(told.key_id, used, self.world.clock.now())
