"""Counts and averages of what was run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFigures:
    """Calls of one stage so far."""

    name: str
    calls: int
    mean_duration_ms: float
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFigures:
    """Executions of one pipeline or shape so far."""

    name: str
    executions: int
    successes: int
    cost_usd: float
    stages: tuple[StageFigures, ...]
