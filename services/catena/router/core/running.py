"""Calls that are in flight: of plans that were handed out, until they are heard of."""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from catena.plan.model import Plan

LOST_S = 300.0
"""Seconds after which a plan that was recommended and never heard of again is no longer taken to run."""
MOST_RUNNING = 20_000
_WORD_S, _MOST_WORD_S, _FADING = 1.0, 5.0, 0.95
"""Seconds that word of an execution takes: until one was heard of, at most, and what the longest fades by."""


@dataclass(slots=True)
class Begun:
    """A plan that was handed out; `due_s`: when it is expected to end."""

    models: tuple[str, ...]
    begun_s: float
    due_s: float
    counted: bool = True


@dataclass(slots=True)
class Running:
    """Plans that were recommended and whose executions were not heard of yet.

    Word of an execution comes a while after its end. So each counts until it may have ended and word be under way, then
    no more, and again where it was not heard of for longer than it should take with its word: it runs still.
    """

    _beside: Counter[str] = field(default_factory=Counter)
    _begun: dict[str, Begun] = field(default_factory=dict)
    _turns: list[tuple[float, str]] = field(default_factory=list)
    _word_s: float = _WORD_S

    def began(self, plan: Plan, now_s: float) -> None:
        """The plan was handed out; its calls are taken to run."""
        told = plan.prediction
        usual_s, least_s = (LOST_S, LOST_S) if told is None else (told.latency_ms.mean / 1e3, told.latency_ms.low / 1e3)
        models = tuple(sorted({stage.model for stage in plan.stages}))
        self._begun[plan.id] = Begun(models, now_s, now_s + usual_s)
        self._beside.update(models)
        heapq.heappush(self._turns, (now_s + max(usual_s - self._word_s, least_s), plan.id))
        while len(self._begun) > MOST_RUNNING or self._oldest_s() < now_s - LOST_S:
            self._leave(next(iter(self._begun)))

    def ended(self, plan_id: str, took_ms: float, now_s: float) -> None:
        """Its execution was heard of, here or on another replica, and took so long."""
        begun = self._leave(plan_id)
        if begun is not None:
            word_s = max(now_s - begun.begun_s - took_ms / 1000.0, self._word_s * _FADING)
            self._word_s = min(word_s, _MOST_WORD_S)

    def beside(self, now_s: float) -> Mapping[str, int]:
        """Calls in flight by model."""
        while self._turns and self._turns[0][0] <= now_s:
            _, plan_id = heapq.heappop(self._turns)
            begun = self._begun.get(plan_id)
            if begun is not None and begun.counted:
                self._count(begun, -1)
                heapq.heappush(self._turns, (begun.due_s + self._word_s, plan_id))
            elif begun is not None:
                self._count(begun, 1)
        return self._beside

    def _leave(self, plan_id: str) -> Begun | None:
        begun = self._begun.pop(plan_id, None)
        if begun is not None and begun.counted:
            self._count(begun, -1)
        return begun

    def _count(self, begun: Begun, by: int) -> None:
        begun.counted = by > 0
        for model in begun.models:
            self._beside[model] += by
            if not self._beside[model]:
                del self._beside[model]

    def _oldest_s(self) -> float:
        return next(iter(self._begun.values())).begun_s if self._begun else float("inf")
