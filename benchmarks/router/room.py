"""The router's real core over its real journal; a table's models are its catalogue, their answers the world."""

import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.router.table import Table
from catena.kit.clock import World, still_world
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, sqlite_url
from catena.plan.answer import answer_features
from catena.plan.build import ShapeConfig
from catena.plan.model import Plan, Role, Shape, Stage
from catena.router.app import manner_of
from catena.router.config import RouterConfig
from catena.router.core.ask import Ask, task_name
from catena.router.core.candidates import House, free_plans
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.features import request_features
from catena.router.core.observation import Observation, StageOutcome
from catena.router.core.ports import Seen, Verdict
from catena.router.core.router import Ports, Router
from catena.router.drivers.journal import SqlJournal
from catena.router.drivers.tables import MIGRATIONS, metadata

TENANT = "bench"
WINDOW = 200_000
"""No outcome is forgotten for being old unless a part asks for it."""
_MS_PER_TOKEN = 20.0
"""Where a table tells no times: each token written takes as long, so that latency follows length."""

_APART_S = 600.0
"""One request is answered before the next one comes: a table does not tell how models slow each other down."""


@dataclass
class Room:
    """A router that was opened for one table, and the table as the world that answers; `plans`: all it can choose."""

    router: Router
    table: Table
    world: World
    place: Mapping[str, int]
    plans: Sequence[Plan] = ()
    _count: int = 0

    def ask(self, row: int, *, objective: str = "quality") -> Ask:
        """The question as it would reach the room; its category is the task that the caller names."""
        text = self.table.texts[row]
        return Ask(
            text=text,
            chars=round(float(np.nanmean(self.table.tokens_in[row])) * 4.0),
            task=self.table.categories[row],
            objective=objective,
        )

    def features(self, row: int) -> tuple[float, ...]:
        """What the room sees of the question."""
        return request_features(self.ask(row))

    async def teach(self, rows: Iterable[int]) -> None:
        """What every model answered to these questions, and which were right, as executions that asked them all."""
        told = [self.shown(int(row)) for row in rows]
        for start in range(0, len(told), 256):
            await self.router.observe([_seen(one) for one in told[start : start + 256]])
        await self.router.settle()

    def shown(self, row: int) -> Observation:
        """One execution in which every model of the table was asked and each answer was judged."""
        asked = [n for n in range(len(self.table.models)) if not np.isnan(self.table.right[row, n])]
        stages = tuple(self._call(f"member-{n + 1}", Role.MEMBER, row, n, judged=True) for n in asked)
        members = tuple(Stage(name=s.name, role=Role.MEMBER, model=s.model) for s in stages)
        return self._observation(row, Plan(shape=Shape.CONSENSUS, stages=members), stages)

    def run(self, plan: Plan, row: int) -> tuple[Observation, bool]:
        """What the plan would have done, and whether its answer is right.

        Knows sequential plans, cascades by agreement and majority votes.
        """
        if plan.shape is Shape.SEQUENTIAL:
            stages = [self._call("main", Role.MAIN, row, self.place[plan.main_model])]
        elif plan.shape is Shape.CASCADE:
            stages = self._cascade(plan, row)
        else:
            stages = self._vote(plan, row)
        observation = self._observation(row, plan, tuple(stages))
        spoken = max((s for s in stages if s.kept), key=lambda s: s.role is Role.MAIN)
        return observation, bool(self.table.right[row, self.place[spoken.model]] == 1.0)

    async def hear(self, one: Observation, right: bool, *, feedback: float) -> None:
        """Let the room see what ran; with probability `feedback` the answer is judged."""
        await self.router.observe([_seen(one)])
        if self.world.rng.random() < feedback:
            verdict = Verdict(execution_id=one.execution_id, score=float(right))
            await self.router.judge(TENANT, verdict, f"said {one.execution_id}")

    def _cascade(self, plan: Plan, row: int) -> list[StageOutcome]:
        fast = [self._call(s.name, s.role, row, self.place[s.model]) for s in plan.of(Role.FAST)]
        if fast[0].digest and len({stage.digest for stage in fast}) == 1 and len(fast) > 1:
            return fast
        main = plan.of(Role.MAIN)[0]
        return [
            *(replace(stage, kept=False) for stage in fast),
            self._call(main.name, main.role, row, self.place[main.model]),
        ]

    def _vote(self, plan: Plan, row: int) -> list[StageOutcome]:
        calls = [self._call(s.name, s.role, row, self.place[s.model]) for s in plan.stages]
        said = [call.digest for call in calls]
        winner = max(calls, key=lambda call: (said.count(call.digest) * bool(call.digest), -calls.index(call)))
        return [replace(call, kept=call.digest == winner.digest) for call in calls]

    def _call(self, name: str, role: Role, row: int, model: int, *, judged: bool = False) -> StageOutcome:
        table = self.table
        latency = table.latency_ms[row, model]
        return StageOutcome(
            name=name,
            role=role,
            model=table.models[model],
            input_tokens=round(table.tokens_in[row, model]),
            output_tokens=max(round(table.tokens_out[row, model]), 1),
            duration_ms=float(_MS_PER_TOKEN * table.tokens_out[row, model] if np.isnan(latency) else latency),
            digest=table.answers[row][model],
            features=answer_features(table.texts[row], table.words[row][model]) if table.words else (),
            score=float(table.right[row, model]) if judged else None,
        )

    def _observation(self, row: int, plan: Plan, stages: tuple[StageOutcome, ...]) -> Observation:
        self._count += 1
        ask = self.ask(row)
        task = task_name(self.table.categories[row])
        plan = plan if plan.features else replace(plan, features=request_features(ask), domain=task)
        return Observation(
            execution_id=f"x{self._count}",
            time_s=_APART_S * self._count,
            configuration_id=plan.configuration_id,
            plan=plan,
            domain=task,
            routed=True,
            chars=ask.chars,
            stages=stages,
            cost_usd=float(sum(self.table.usd[row, self.place[stage.model]] for stage in stages)),
            latency_ms=max((s.duration_ms for s in stages if s.role is not Role.MAIN), default=0.0)
            + sum(s.duration_ms for s in stages if s.role is Role.MAIN),
        )


def _seen(one: Observation) -> Seen:
    return Seen(tenant=TENANT, observation=one, verdict=None, event_id=one.execution_id)


@asynccontextmanager
async def open_room(
    table: Table,
    *,
    shapes: Mapping[Shape, ShapeConfig] | None = None,
    seed: int = 0,
    adapters: int = 0,
    **settings: object,
) -> AsyncIterator[Room]:
    """A router of its own for the block, configured as told, over a journal in a scratch folder."""
    config = RouterConfig(**{**_SETTINGS, **settings})  # type: ignore[arg-type]
    world = still_world(seed)
    models = [
        ModelCard(name=name, price_input=read, price_output=written)
        for name, (read, written) in zip(table.models, table.prices, strict=True)
    ]
    for n in range(adapters):
        base = models[n % len(table.models)]
        models.append(replace(base, name=f"{base.name}@adapter-{n}", parent=base.name))

    async def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.empty((len(texts), 0), np.float32)

    async def fetch(_: str) -> Sequence[ModelCard]:
        return models

    with tempfile.TemporaryDirectory(prefix="catena-bench-") as scratch:
        url = sqlite_url(Path(scratch))
        async with open_store(url, metadata, room="router", migrations=MIGRATIONS) as store:
            journal = SqlJournal(store, Outbox(store, MemoryBus(), world), window=WINDOW)
            house = House(shapes=shapes or {}, thresholds=tuple(config.thresholds))
            ports = Ports(journal=journal, embed=embed, fetch_models=fetch)
            router = Router(ports, house, models, manner_of(config), world)
            plans = free_plans(house, catalogue_of(models))
            yield Room(router, table, world, {name: n for n, name in enumerate(table.models)}, plans)


_SETTINGS: Mapping[str, object] = {
    "window": WINDOW,
    "half_life": 10 * WINDOW,
    "exploration": 0.0,
    "exploration_floor": 0.0,
    "min_judged": 1,
}
