"""What the dashboard shows: counted in memory as requests end, over a sliding hour and since the start."""

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

HOUR_S = 3600.0
PIE_S = 30.0
BUCKET_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A request that ended; `baseline_usd` is what it would have cost on the baseline model."""

    at_s: float
    model: str
    shape: str
    agent_type: str
    ok: bool
    duration_ms: float
    cost_usd: float
    baseline_usd: float
    tokens: int


@dataclass(slots=True)
class Figures:
    """Counts since the start, and the last hour's requests."""

    requests: int = 0
    failures: int = 0
    cost_usd: float = 0.0
    baseline_usd: float = 0.0
    tokens: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    by_shape: Counter[str] = field(default_factory=Counter)
    recent: deque[Ended] = field(default_factory=deque)
    news: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=50))

    def count(self, ended: Ended) -> None:
        """Take in a request that ended."""
        self.requests += 1
        self.failures += not ended.ok
        self.cost_usd += ended.cost_usd
        self.baseline_usd += ended.baseline_usd
        self.tokens += ended.tokens
        self.by_model[ended.model or "none"] += 1
        self.by_shape[ended.shape or "none"] += 1
        self.recent.append(ended)
        while self.recent and self.recent[0].at_s < ended.at_s - HOUR_S:
            self.recent.popleft()

    def tell(self, at_s: float, what: str, details: dict[str, Any]) -> None:
        """Take in something worth showing: a job, a promotion, an experiment."""
        self.news.appendleft({"at_s": at_s, "what": what, **details})

    def saved_usd(self, now_s: float, window_s: float) -> float:
        """USD less than on the baseline, over the last `window_s` seconds: at most an hour, or `inf` for all."""
        if window_s == math.inf:
            return self.baseline_usd - self.cost_usd
        return math.fsum(one.baseline_usd - one.cost_usd for one in self.recent if one.at_s >= now_s - window_s)

    def view(self, now_s: float) -> dict[str, Any]:
        """Everything that the page draws, as plain data."""
        hour = [ended for ended in self.recent if ended.at_s >= now_s - HOUR_S]
        return {
            "requests": self.requests,
            "failures": self.failures,
            "tokens": self.tokens,
            "cost_usd": self.cost_usd,
            "baseline_usd": self.baseline_usd,
            "saved_percent": saved_percent(self.cost_usd, self.baseline_usd),
            "by_model": dict(self.by_model),
            "by_shape": dict(self.by_shape),
            "models_30s": dict(Counter(ended.model for ended in hour if ended.at_s >= now_s - PIE_S)),
            "latency": latency_series(hour),
            "success": success_heat(hour),
            "news": list(self.news),
        }


def saved_percent(cost_usd: float, baseline_usd: float) -> float:
    """How much less was spent than on the baseline, 0 to 100; 0 before anything was spent."""
    return max(0.0, 100.0 * (1.0 - cost_usd / baseline_usd)) if baseline_usd > 0 else 0.0


def latency_series(ended: list[Ended]) -> dict[str, list[dict[str, float]]]:
    """p50, p95, p99 per minute of successful requests, by model."""
    buckets: dict[str, dict[float, list[float]]] = {}
    for one in ended:
        if one.ok:
            start = one.at_s - one.at_s % BUCKET_S
            buckets.setdefault(one.model, {}).setdefault(start, []).append(one.duration_ms)
    return {
        model: [
            {"at_s": start, **{f"p{share}": quantile(sorted(values), share / 100) for share in (50, 95, 99)}}
            for start, values in sorted(minutes.items())
        ]
        for model, minutes in buckets.items()
    }


def success_heat(ended: list[Ended]) -> list[dict[str, Any]]:
    """Share of successes by agent type and hour of day (UTC)."""
    cells: dict[tuple[str, int], list[bool]] = {}
    for one in ended:
        hour = int(one.at_s // 3600 % 24)
        cells.setdefault((one.agent_type or "none", hour), []).append(one.ok)
    return [
        {"agent_type": agent, "hour": hour, "requests": len(oks), "success": sum(oks) / len(oks)}
        for (agent, hour), oks in sorted(cells.items())
    ]


def quantile(ordered: list[float], share: float) -> float:
    """The nearest-rank quantile of a sorted, non-empty list."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
