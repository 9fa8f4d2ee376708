"""What will be asked for next, from what followed what before, per user and per workflow.

Counts of transitions fade by half in `half_life_s`. The chance of a successor is its share of all that followed, of a
user and a workflow together, with one imaginary other: a single precedent is a chance of 1/2, three are 3/4.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

HALF_LIFE_S = 86_400.0
SESSION_S = 3600.0
"""What comes later than this after the last use follows nothing; it begins anew."""
SCOPES, PREDECESSORS, SUCCESSORS = 4096, 64, 32
Scope: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A model that is likely to be asked for next, and in about how many seconds."""

    model: str
    probability: float
    in_s: float


@dataclass(slots=True)
class _Successor:
    count: float = 0.0
    gap_s: float = 0.0


@dataclass(slots=True)
class _Row:
    at_s: float
    successors: dict[str, _Successor] = field(default_factory=dict)


@dataclass(slots=True)
class _Past:
    model: str
    at_s: float
    rows: dict[str, _Row] = field(default_factory=dict)


class Predictor:
    """Learns from each use, and forecasts the next. Keeps the scopes that were seen last."""

    def __init__(self, *, half_life_s: float = HALF_LIFE_S) -> None:
        """Know nothing yet."""
        self._half_life_s = half_life_s
        self._pasts: dict[Scope, _Past] = {}

    def observe(self, scope: Scope, model: str, now_s: float) -> bool:
        """Learn that `scope`, a user or a workflow, used `model`; whether a session began with it."""
        past = self._pasts.pop(scope, None)
        begins = past is None or now_s - past.at_s > SESSION_S
        if past is None:
            if len(self._pasts) >= SCOPES:
                del self._pasts[next(iter(self._pasts))]
            past = _Past(model, now_s)
        elif not begins:
            self._count(past, model, now_s)
        past.model, past.at_s = model, now_s
        self._pasts[scope] = past
        return begins

    def forecast(self, scopes: Iterable[Scope], model: str, now_s: float) -> list[Forecast]:
        """What may follow `model`, the likeliest first."""
        counts: dict[str, float] = {}
        waits: dict[str, float] = {}
        for scope in scopes:
            past = self._pasts.get(scope)
            row = past.rows.get(model) if past is not None else None
            if row is None:
                continue
            kept = self._kept(row, now_s)
            for name, successor in row.successors.items():
                counts[name] = counts.get(name, 0.0) + kept * successor.count
                waits[name] = waits.get(name, 0.0) + kept * successor.count * successor.gap_s
        total = 1.0 + sum(counts.values())
        found = [
            Forecast(model=name, probability=count / total, in_s=waits[name] / count)
            for name, count in counts.items()
            if count > 0
        ]
        return sorted(found, key=lambda forecast: -forecast.probability)

    def _count(self, past: _Past, model: str, now_s: float) -> None:
        row = past.rows.get(past.model)
        if row is None:
            if len(past.rows) >= PREDECESSORS:
                del past.rows[min(past.rows, key=lambda name: past.rows[name].at_s)]
            row = past.rows[past.model] = _Row(now_s)
        kept = self._kept(row, now_s)
        for successor in row.successors.values():
            successor.count *= kept
        row.at_s = now_s
        if model not in row.successors and len(row.successors) >= SUCCESSORS:
            del row.successors[min(row.successors, key=lambda name: row.successors[name].count)]
        successor = row.successors.setdefault(model, _Successor())
        successor.count += 1.0
        successor.gap_s += (now_s - past.at_s - successor.gap_s) / successor.count

    def _kept(self, row: _Row, now_s: float) -> float:
        return float(2.0 ** (-max(0.0, now_s - row.at_s) / self._half_life_s))
