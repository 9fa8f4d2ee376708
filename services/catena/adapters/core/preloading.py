"""Loads ahead of need: what a user or a workflow is likely to ask for next, and the set that a workflow begins with."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from catena.adapters.config import Preload
from catena.adapters.core import refs
from catena.adapters.core.asking import Question
from catena.adapters.core.prediction import Predictor
from catena.adapters.core.pressure import Level
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError

ANY_OTHER = "*"
"""In the workflow sets: the set of every workflow that has none of its own."""
THRESHOLDS: Mapping[Preload, float] = {"off": 1.0, "likely": 0.7, "eager": 0.5}
LEAD = 0.5
"""A load is begun after this share of the usual wait, for half of the uses come sooner than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What came of loading one adapter ahead: it is resident now, or why not."""

    model: str
    resident: bool
    reason: str = ""


class Preloading:
    """What is to be loaded when. `load` makes a tenant's model resident if it fits; False when it does not."""

    def __init__(
        self,
        load: Callable[[str, str], Awaitable[bool]],
        *,
        level: Callable[[], Level],
        clock: Clock,
        mode: Preload,
        workflows: Mapping[str, Sequence[str]],
    ) -> None:
        """Nothing is due yet."""
        self._load = load
        self._level = level
        self._clock = clock
        self._mode = mode
        self._workflows = workflows
        self._predictor = Predictor()
        self._due_s: dict[tuple[str, str], float] = {}
        self._woken = asyncio.Event()

    def used(self, tenant: str, question: Question) -> None:
        """Learn from a use, and plan what may follow it."""
        if self._mode == "off":
            return
        now_s, model = self._clock.monotonic(), question.model
        self._due_s.pop((tenant, model), None)
        scopes = []
        if question.user:
            scopes.append(("user", tenant, question.user))
        if question.workflow:
            scopes.append(("workflow", tenant, question.workflow))
            if self._predictor.observe(("run", tenant, question.workflow, question.user), model, now_s):
                for name in self.workflow_set(question.workflow):
                    self._plan(tenant, f"{refs.parse(model).base}@{name}", now_s)
        for scope in scopes:
            self._predictor.observe(scope, model, now_s)
        for forecast in self._predictor.forecast(scopes, model, now_s):
            if forecast.probability > THRESHOLDS[self._mode] and "@" in forecast.model and forecast.model != model:
                self._plan(tenant, forecast.model, now_s + LEAD * forecast.in_s)

    def workflow_set(self, workflow: str) -> Sequence[str]:
        """The adapters that a workflow begins with."""
        return self._workflows.get(workflow, self._workflows.get(ANY_OTHER, ()))

    async def load_workflow(self, tenant: str, workflow: str, base: str) -> list[Ahead]:
        """Load a workflow's set now, all at once, as far as it fits."""
        return await self._load_all([(tenant, f"{base}@{name}") for name in self.workflow_set(workflow)])

    async def turn(self) -> list[Ahead]:
        """Load what is due, all at once; nothing while memory is any tighter than `low`."""
        self._woken.clear()
        now_s = self._clock.monotonic()
        due = [key for key, due_s in self._due_s.items() if due_s <= now_s]
        for key in due:
            del self._due_s[key]
        return await self._load_all(due) if self._level() == "low" else []

    async def rest(self, limit_s: float) -> None:
        """Wait until something is due at once, `limit_s` at most."""
        try:
            async with asyncio.timeout(limit_s):
                await self._woken.wait()
        except TimeoutError:
            return

    def _plan(self, tenant: str, model: str, due_s: float) -> None:
        key = (tenant, model)
        self._due_s[key] = min(due_s, self._due_s.get(key, due_s))
        if due_s <= self._clock.monotonic():
            self._woken.set()

    async def _load_all(self, wanted: Sequence[tuple[str, str]]) -> list[Ahead]:
        return list(await asyncio.gather(*(self._try(tenant, model) for tenant, model in wanted)))

    async def _try(self, tenant: str, model: str) -> Ahead:
        try:
            resident = await self._load(tenant, model)
        except CatenaError as error:
            # Nobody asked for it yet; whoever does is told the same.
            return Ahead(model=model, resident=False, reason=error.code)
        return Ahead(model=model, resident=resident, reason="" if resident else "no_adapter_room")
