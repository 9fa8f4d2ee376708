"""The requests of the last hour, minute by minute, in memory that does not grow with their number."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

HOUR_S, MINUTE_S, PIE_S = 3600.0, 60.0, 30.0
GROWTH = 1.02
"""Of one bucket of durations to the next: what is told of them is right to 1 %."""
LEAST_MS, LOG_GROWTH = 1e-3, math.log(GROWTH)

Outcome = Literal["succeeded", "failed", "refused", "cancelled"]
"""`refused`: the request was wrong; `cancelled`: the client went. Neither says anything of the house."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A request that ended; `baseline_usd` is what it would have cost on the baseline model.

    `model` and `shape` are those that answered; empty unless it succeeded. `kind` is the model's type (`kind_of`).
    """

    at_s: float
    model: str
    shape: str
    agent_type: str
    outcome: Outcome
    duration_ms: float
    cost_usd: float
    baseline_usd: float
    tokens: int
    kind: str = "base"


class Durations:
    """Quantiles of any number of durations (DDSketch; Masson, Rim, Lee, VLDB 2019)."""

    def __init__(self) -> None:
        """None yet."""
        self._buckets: Counter[int] = Counter()

    def add(self, ms: float) -> None:
        """Count one."""
        self._buckets[math.ceil(math.log(max(ms, LEAST_MS)) / LOG_GROWTH)] += 1

    def quantile(self, share: float) -> float:
        """The nearest-rank quantile in milliseconds, within 1 %; there must be one."""
        rank = min(self._buckets.total() - 1, int(share * self._buckets.total()))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank < 0:
                return 2 * GROWTH**bucket / (1 + GROWTH)
        raise ValueError("no durations")


@dataclass(slots=True)
class Minute:
    """What ended in the minute from `start_s`. `asked`, `answered`: by agent type, of those that could succeed."""

    start_s: float
    saved_usd: float = 0.0
    by_model: defaultdict[str, Durations] = field(default_factory=lambda: defaultdict(Durations))
    by_kind: defaultdict[str, Durations] = field(default_factory=lambda: defaultdict(Durations))
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)

    def add(self, ended: Ended) -> None:
        """Take in one of this minute."""
        self.saved_usd += ended.baseline_usd - ended.cost_usd
        if ended.outcome in ("succeeded", "failed"):
            self.asked[ended.agent_type] += 1
        if ended.outcome == "succeeded":
            self.answered[ended.agent_type] += 1
            self.by_model[ended.model].add(ended.duration_ms)
            self.by_kind[ended.kind].add(ended.duration_ms)


class Hour:
    """A sliding hour of minutes, and half a minute of seconds."""

    def __init__(self) -> None:
        """Nothing ended yet."""
        self._minutes: deque[Minute] = deque()
        self._seconds: deque[tuple[float, Counter[str]]] = deque()

    def add(self, ended: Ended) -> None:
        """Take in a request that ended; one from longer ago than the hour is left out."""
        start_s = ended.at_s - ended.at_s % MINUTE_S
        if not self._minutes or self._minutes[-1].start_s < start_s:
            self._minutes.append(Minute(start_s))
            while self._minutes[0].start_s < start_s - HOUR_S:
                self._minutes.popleft()
        for minute in reversed(self._minutes):
            if minute.start_s <= start_s:
                minute.add(ended)
                break
        if ended.outcome == "succeeded":
            self._count(math.floor(ended.at_s), ended.model)

    def minutes(self, now_s: float, window_s: float = HOUR_S) -> list[Minute]:
        """The minutes that lie in the last `window_s`, or partly so; oldest first."""
        return [minute for minute in self._minutes if minute.start_s > now_s - window_s - MINUTE_S]

    def pie(self, now_s: float) -> dict[str, int]:
        """Answers by model in the last half minute."""
        return dict(sum((names for at_s, names in self._seconds if at_s >= now_s - PIE_S), Counter()))

    def _count(self, second: float, model: str) -> None:
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append((second, Counter()))
            while self._seconds[0][0] < second - PIE_S:
                self._seconds.popleft()
        self._seconds[-1][1][model] += 1


def latency_series(minutes: Iterable[tuple[float, defaultdict[str, Durations]]]) -> dict[str, list[dict[str, float]]]:
    """p50, p95, p99 by name, a point a minute."""
    told: dict[str, list[dict[str, float]]] = {}
    for start_s, by_name in minutes:
        for name, durations in by_name.items():
            shares = {f"p{share}": durations.quantile(share / 100) for share in (50, 95, 99)}
            told.setdefault(name, []).append({"at_s": start_s, **shares})
    return told


def success_heat(minutes: Iterable[Minute]) -> list[dict[str, Any]]:
    """Share of successes by agent type and hour of day (UTC), among requests that could succeed."""
    asked: Counter[tuple[str, int]] = Counter()
    answered: Counter[tuple[str, int]] = Counter()
    for minute in minutes:
        hour = int(minute.start_s // HOUR_S % 24)
        asked.update({(agent, hour): count for agent, count in minute.asked.items()})
        answered.update({(agent, hour): count for agent, count in minute.answered.items()})
    return [
        {"agent_type": agent, "hour": hour, "requests": count, "success": answered[agent, hour] / count}
        for (agent, hour), count in sorted(asked.items())
    ]
