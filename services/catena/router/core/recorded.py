"""Executions made elsewhere, told by their caller: figures without stages."""

import math
from dataclasses import dataclass

from catena.kit.errors import Invalid
from catena.plan.model import Plan, Role, Shape
from catena.router.core.ask import task_name
from catena.router.core.observation import Observation, StageOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One execution. `quality` 0 to 1, None: nobody judged; `time_s` 0: now."""

    execution_id: str
    configuration_id: str
    text: str = ""
    domain: str = ""
    latency_ms: float = 0.0
    cost_usd: float = 0.0
    quality: float | None = None
    succeeded: bool = True
    time_s: float = 0.0


def check_recorded(told: Recorded) -> Recorded:
    """The same. Raises Invalid when an id is missing or a figure makes no sense."""
    for name in ("execution_id", "configuration_id"):
        if not getattr(told, name):
            raise Invalid(f"{name} is empty; name the execution and what ran", code="bad_execution")
    for name in ("latency_ms", "cost_usd", "time_s"):
        if not math.isfinite(getattr(told, name)) or getattr(told, name) < 0.0:
            raise Invalid(f"{name} is {getattr(told, name)}; send 0 or more", code="bad_execution")
    if told.quality is not None and not 0.0 <= told.quality <= 1.0:
        raise Invalid(f"quality is {told.quality}; send 0 to 1", code="bad_execution")
    return told


def observation_of(told: Recorded, plan: Plan | None, domain: str, now_s: float) -> Observation:
    """What it teaches. Of a configuration that never ran here only the totals grow."""
    named = task_name(domain)
    stages: tuple[StageOutcome, ...] = ()
    if plan is not None and plan.shape is Shape.SEQUENTIAL and plan.stages:
        stages = (
            StageOutcome(
                name="main",
                role=Role.MAIN,
                model=plan.main_model,
                duration_ms=told.latency_ms,
                failed=not told.succeeded,
            ),
        )
    return Observation(
        execution_id=told.execution_id,
        time_s=told.time_s or now_s,
        configuration_id=told.configuration_id,
        plan=plan or Plan(shape=Shape.SEQUENTIAL, pipeline=told.configuration_id),
        domain=named,
        routed=bool(named),
        chars=len(told.text),
        stages=stages,
        cost_usd=told.cost_usd,
        latency_ms=told.latency_ms,
        succeeded=told.succeeded,
    )
