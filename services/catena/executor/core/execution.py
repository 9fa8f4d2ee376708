"""One execution under way, as everything that works for it sees it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from catena.executor.core.attempts import Limits
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import NOTHING_USED, Context, Usage
from catena.executor.core.estimates import Paces
from catena.executor.core.events import RunEvent, StageResult
from catena.executor.core.ports import Journal, Memory, Provider
from catena.executor.core.routes import Routes
from catena.executor.core.turns import Sleep
from catena.kit.clock import World
from catena.kit.errors import Late

Emit = Callable[[RunEvent], Awaitable[None]]
Found = TypeVar("Found")
Render = Callable[[str, Mapping[str, Any]], Awaitable[str]]
Embedder = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]


@dataclass(slots=True, kw_only=True)
class Execution:
    """One execution under way: its bounds, what it may call, and what it has done so far.

    `due_s` is on the world's monotonic clock; `streams`: the client wants deltas. `any_model`: it named none. `embed`:
    vectors by the default model; `render(template, scope)` runs a template in its sandbox. `stages` are final; `usage`
    and `spent_usd` count every call made.
    """

    tenant: str
    context: Context
    due_s: float
    models: Mapping[str, Model]
    providers: Mapping[str, Provider]
    memory: Memory
    journal: Journal
    limits: Limits
    paces: Paces
    routes: Routes
    world: World
    emit: Emit
    render: Render
    streams: bool = False
    any_model: bool = False
    embed: Embedder | None = None
    sleep: Sleep = asyncio.sleep
    stages: list[StageResult] = field(default_factory=list)
    usage: Usage = NOTHING_USED
    spent_usd: float = 0.0

    def left_s(self) -> float:
        """Seconds until the execution is late."""
        return self.due_s - self.world.clock.monotonic()

    async def once(self, key: str, kind: type[Found], work: Callable[[], Awaitable[Found]]) -> Found:
        """What `work` gives, or gave before a crash: what was looked up is looked up once, as it may have changed.

        `kind` is what it is as JSON.
        """
        recalled = await self.journal.recall(key)
        if recalled is not None:
            return msgspec.json.decode(recalled, type=kind)
        found = await work()
        await self.journal.note(key, msgspec.json.encode(found))
        return found

    def bill(self, stages: list[StageResult]) -> list[StageResult]:
        """Count what the calls cost; the same list."""
        for stage in stages:
            self.usage += stage.usage
            self.spent_usd += stage.cost_usd
        return stages

    async def tell(self, stages: list[StageResult]) -> None:
        """These are final."""
        self.stages.extend(stages)
        for stage in stages:
            await self.emit(stage)


TOLD = ("user_id", "agent_id", "agent_type", "workflow_type", "task")
"""What templates may read of who asks."""


def told(context: Context) -> dict[str, str]:
    """Who asks, as templates read it."""
    return {name: getattr(context, name) for name in TOLD}


def too_late(run: Execution) -> Late:
    """The error of an execution whose time is up."""
    cap = run.context.max_latency_ms
    why = f"max_latency_ms {cap:g}" if cap else "the call's deadline"
    return Late(f"no answer within {why}; allow more time or a faster plan", code="deadline_exceeded")
