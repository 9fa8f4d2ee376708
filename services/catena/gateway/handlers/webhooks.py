"""Tells a run's webhook that it ended: promised with the run, due when `executor.run.finished` comes, then posted."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import structlog
from prometheus_client import Counter

from catena.api.events.v1 import events_pb2
from catena.api.executor.v1 import executor_pb2
from catena.gateway.config import WebhookConfig
from catena.gateway.core.webhooks import (
    SECRET_BYTES,
    Webhook,
    check_url,
    pause_s,
    secret_bytes,
    secret_of,
    signature,
)
from catena.kit.clock import World
from catena.kit.errors import CatenaError
from catena.kit.event import Event
from catena.kit.telemetry import counter

Post = Callable[[str, bytes, dict[str, str]], Awaitable[str]]
DURABLE = "gateway-webhooks"
ENDED = ("succeeded", "failed", "cancelled")
LOOK_S = 5.0
"""How often a replica looks for what another one left due."""
log = structlog.get_logger()


def posts() -> Counter:
    """The count of posts by what came of them."""
    return counter("gateway", "webhook_posts_total", "posts to webhooks", ["outcome"])


class WebhookBody(msgspec.Struct, frozen=True, kw_only=True):
    """`webhook` of a run: where to post that it ended, and with what to sign; without `secret` one is made."""

    url: str
    secret: str = ""


class Kept(Protocol):
    """What is promised, in SQL."""

    async def promise(self, webhook: Webhook) -> Webhook:
        """Commit it; the first one stays."""
        ...

    async def ended(self, run_id: str, *, outcome: str, execution_id: str) -> bool:
        """Make it due."""
        ...

    async def take(self, lease_s: float) -> Sequence[Webhook]:
        """Some that are due."""
        ...

    async def again(self, run_id: str, due_s: float) -> None:
        """Try again then."""
        ...

    async def close(self, run_id: str, state: str) -> None:
        """Delivered or given up."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhooks:
    """Promises, and keeps, that runs' ends are posted; at least once each."""

    kept: Kept
    post: Post
    world: World
    config: WebhookConfig
    counted: Counter = field(default_factory=posts)
    _due: asyncio.Event = field(default_factory=asyncio.Event)

    def check(self, wanted: WebhookBody) -> None:
        """Raise Invalid (`bad_webhook`) for a target or secret that cannot be."""
        check_url(wanted.url, self.config.private_networks)
        if wanted.secret:
            secret_bytes(wanted.secret)

    async def promise(self, wanted: WebhookBody, tenant: str, run: executor_pb2.Run) -> Webhook:
        """The webhook of a run that was just stored, once it is stored too."""
        secret = wanted.secret or secret_of(secrets.token_bytes(SECRET_BYTES))
        return await self.kept.promise(Webhook(run_id=run.id, tenant=tenant, url=wanted.url, secret=secret))

    async def ended(self, run_id: str, outcome: str, execution_id: str) -> None:
        """Have the run's webhook posted, if it has one that waits."""
        if await self.kept.ended(run_id, outcome=outcome, execution_id=execution_id):
            self._due.set()

    async def hear(self, event: Event) -> None:
        """Take in `executor.run.finished`."""
        told = events_pb2.RunFinished.FromString(event.data)
        await self.ended(told.run_id, told.state, told.execution_id)

    async def run(self) -> None:
        """Post what is due, for ever."""
        while True:
            self._due.clear()
            try:
                taken = await self.kept.take(2 * self.config.timeout_s)
            except CatenaError as error:
                log.warning("webhooks not read", error=error.message)
                taken = []
            if taken:
                await asyncio.gather(*(self.deliver(webhook) for webhook in taken))
                continue
            try:
                async with asyncio.timeout(min(LOOK_S, self.config.first_retry_s)):
                    await self._due.wait()
            except TimeoutError:
                continue

    async def deliver(self, webhook: Webhook) -> None:
        """Post once, and note what came of it."""
        now_s = self.world.clock.now()
        body = message(webhook)
        headers = {
            "content-type": "application/json",
            "user-agent": "catena-webhooks/1",
            "webhook-id": message_id(webhook),
            "webhook-timestamp": str(int(now_s)),
            "webhook-signature": signature(webhook.secret, message_id(webhook), int(now_s), body),
        }
        trouble = await self.post(webhook.url, body, headers)
        try:
            await self._note(webhook, trouble)
        except CatenaError as error:
            log.warning("webhook posted, not noted; it is posted again", run=webhook.run_id, error=error.message)

    async def _note(self, webhook: Webhook, trouble: str) -> None:
        if not trouble:
            self.counted.labels("delivered").inc()
            await self.kept.close(webhook.run_id, "delivered")
        elif webhook.attempts >= self.config.attempts:
            self.counted.labels("given_up").inc()
            log.warning("webhook given up", run=webhook.run_id, attempts=webhook.attempts, trouble=trouble)
            await self.kept.close(webhook.run_id, "failed")
        else:
            self.counted.labels("retried").inc()
            wait_s = pause_s(webhook.attempts, self.config.first_retry_s, self.world.rng.random())
            await self.kept.again(webhook.run_id, self.world.clock.now() + wait_s)


def message_id(webhook: Webhook) -> str:
    """The same for every try, so that the receiver can tell a repeat."""
    return f"evt_{webhook.run_id}"


def message(webhook: Webhook) -> bytes:
    """What is posted: which run ended and how; its texts are for who polls it with a key."""
    return msgspec.json.encode(
        {
            "object": "event",
            "id": message_id(webhook),
            "type": f"run.{webhook.outcome}",
            "created_at": int(webhook.finished_s),
            "data": {"id": webhook.run_id, "state": webhook.outcome, "execution_id": webhook.execution_id},
        }
    )
