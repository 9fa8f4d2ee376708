"""What the dashboard shows: counted in memory as requests end, over a sliding hour and since the start."""

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from catena.gateway.core.hour import Ended, Hour, latency_series, success_heat
from catena.gateway.core.training import Jobs
from catena.kit.caller import SHARED

MOST_NAMES = 50
"""Names that are counted apart; callers may make up more, which are counted as one."""
OTHER, NOBODY = "other", "none"


@dataclass(slots=True)
class Figures:
    """Counts since the start, and of the last hour."""

    requests: int = 0
    failures: int = 0
    refused: int = 0
    cancelled: int = 0
    cost_usd: float = 0.0
    baseline_usd: float = 0.0
    tokens: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    by_shape: Counter[str] = field(default_factory=Counter)
    by_agent: Counter[str] = field(default_factory=Counter)
    hour: Hour = field(default_factory=Hour)
    news: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=50))
    jobs: Jobs = field(default_factory=Jobs)

    def count(self, ended: Ended) -> None:
        """Take in a request that ended, its agent type named (`NOBODY` where none was told)."""
        self.requests += 1
        self.failures += ended.outcome == "failed"
        self.refused += ended.outcome == "refused"
        self.cancelled += ended.outcome == "cancelled"
        self.cost_usd += ended.cost_usd
        self.baseline_usd += ended.baseline_usd
        self.tokens += ended.tokens
        agent = one_more(self.by_agent, ended.agent_type)
        if ended.outcome == "succeeded":
            one_more(self.by_shape, ended.shape or "none")
            model = one_more(self.by_model, ended.model or "none")
            ended = ended if ended.model == model else replace(ended, model=model)
        self.hour.add(ended if ended.agent_type == agent else replace(ended, agent_type=agent))

    def tell(self, at_s: float, what: str, details: dict[str, Any]) -> None:
        """Take in something worth showing: a job, a promotion, an experiment."""
        self.news.appendleft({"at_s": at_s, "what": what, **details})

    @property
    def saved_percent(self) -> float:
        """How much less was spent than on the baseline since the start, in per cent."""
        return saved_percent(self.cost_usd, self.baseline_usd)

    def saved_usd(self, now_s: float, window_s: float) -> float:
        """USD less than on the baseline in the last `window_s` seconds, by whole minutes: an hour, or `inf` for all."""
        if window_s == math.inf:
            return self.baseline_usd - self.cost_usd
        return math.fsum(minute.saved_usd for minute in self.hour.minutes(now_s, window_s))

    def view(self, now_s: float) -> dict[str, Any]:
        """Everything that the page draws, as plain data."""
        minutes = self.hour.minutes(now_s)
        return {
            "requests": self.requests,
            "failures": self.failures,
            "refused": self.refused,
            "cancelled": self.cancelled,
            "tokens": self.tokens,
            "cost_usd": self.cost_usd,
            "baseline_usd": self.baseline_usd,
            "saved_percent": self.saved_percent,
            "by_model": dict(self.by_model),
            "by_shape": dict(self.by_shape),
            "models_30s": self.hour.pie(now_s),
            "latency": latency_series((minute.start_s, minute.by_model) for minute in minutes),
            "latency_by_type": latency_series((minute.start_s, minute.by_kind) for minute in minutes),
            "success": success_heat(minutes),
            "news": list(self.news),
            "jobs": self.jobs.view(),
        }


@dataclass(slots=True)
class Board:
    """Figures of the whole house, and of each tenant. There are as many as tenants that hold a key.

    `outside`: models that others serve. `tell_others` hears of every request that ended.
    """

    outside: frozenset[str] = frozenset()
    tell_others: Callable[[Ended], None] = lambda _: None
    whole: Figures = field(default_factory=Figures)
    tenants: dict[str, Figures] = field(default_factory=dict)

    def count(self, tenant: str, ended: Ended) -> None:
        """Take in a tenant's request that ended."""
        kind = kind_of(ended.model, ended.shape, self.outside)
        ended = replace(ended, kind=kind, agent_type=ended.agent_type or NOBODY)
        self.tell_others(ended)
        self.whole.count(ended)
        self._of(tenant).count(ended)

    def tell(self, tenant: str, at_s: float, what: str, details: dict[str, Any]) -> None:
        """Take in something that is worth showing to a tenant, or to all when it is `shared`."""
        self.whole.tell(at_s, what, details)
        self._of(tenant).tell(at_s, what, details)

    def jobs(self, tenant: str) -> list[Jobs]:
        """Where a tenant's training job is drawn."""
        return [self.whole.jobs, self._of(tenant).jobs]

    def view(self, tenant: str, now_s: float) -> dict[str, Any]:
        """What a key of `tenant` may see: its own figures, and the news of all; one of `shared` sees the whole."""
        if tenant == SHARED:
            return self.whole.view(now_s)
        own = self._of(tenant)
        news = sorted([*own.news, *self._of(SHARED).news], key=lambda item: item["at_s"], reverse=True)
        return {**own.view(now_s), "news": news}

    def _of(self, tenant: str) -> Figures:
        return self.tenants.setdefault(tenant, Figures())


def one_more(counts: Counter[str], name: str) -> str:
    """Count `name`, or `other` where too many names are counted already; which it was."""
    name = name if name in counts or len(counts) < MOST_NAMES else OTHER
    counts[name] += 1
    return name


def saved_percent(cost_usd: float, baseline_usd: float) -> float:
    """How much less was spent than on the baseline, 0 to 100; 0 before anything was spent."""
    return max(0.0, 100.0 * (1.0 - cost_usd / baseline_usd)) if baseline_usd > 0 else 0.0


def kind_of(model: str, shape: str, outside: frozenset[str]) -> str:
    """The type of what answered: `pipeline`, `embedding`, `outside`, `adapter` or `base`."""
    if shape == "embedding" or shape.startswith("pipeline:"):
        return shape.partition(":")[0]
    return "outside" if model in outside else "adapter" if "@" in model else "base"
