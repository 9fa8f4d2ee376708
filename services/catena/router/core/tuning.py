"""Moves the configured cascade's threshold to where recorded outcomes want it: bounded, explained, reversible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from catena.kit.errors import Missing
from catena.plan.build import ShapeConfig, build
from catena.plan.model import Plan, Shape
from catena.router.core.guarantee import Certificate, Promise, certify, paired
from catena.router.core.knowledge import Knowledge

THRESHOLD = "cascade.threshold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """A setting that moved, and why."""

    setting: str
    before: float
    after: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far a tuning may go: quality that may be lost, the longest step, outcomes needed before any.

    `promise`: what must be certified of a threshold before it is moved to; None: what is expected of it is enough.
    """

    margin: float
    max_step: float
    min_judged: int
    promise: Promise | None = None


def tune_threshold(
    config: ShapeConfig,
    knowledge: Knowledge,
    mix: Mapping[str, float],
    levels: tuple[float, ...],
    bounds: Bounds,
) -> Adjustment | None:
    """The cheapest threshold whose expected quality over the domains' `mix` is within the margin of the best one's.

    Under a promise, the cheapest that is also certified; where none is, a step towards the strictest.
    """
    if knowledge.judged_outcomes < bounds.min_judged or not mix:
        return None
    plan = build(Shape.CASCADE, config)
    candidates = sorted({config.threshold, *levels})
    try:
        told = {level: _over(plan, level, knowledge, mix) for level in candidates}
    except Missing:
        return None
    best = max(quality for quality, _ in told.values())
    certificate = _certificate(plan, knowledge, candidates, bounds.promise)
    floor = 0.0 if bounds.promise is None else certificate.threshold if certificate is not None else max(candidates)
    good = {level: told[level] for level in candidates if told[level][0] >= best - bounds.margin and level >= floor}
    wanted = min((cost, level) for level, (_, cost) in good.items())[1] if good else floor
    step = min(max(wanted - config.threshold, -bounds.max_step), bounds.max_step)
    after = round(config.threshold + step, 4)
    if abs(after - config.threshold) < 1e-3:
        return None
    quality, cost = told[wanted]
    old_quality, old_cost = told[config.threshold]
    return Adjustment(
        setting=THRESHOLD,
        before=config.threshold,
        after=after,
        reason=(
            f"at {wanted:g} the cascade is expected to be right {quality:.3f} of the time for {cost:.3g} USD, "
            f"at {config.threshold:g} {old_quality:.3f} for {old_cost:.3g}{_promised(bounds.promise, certificate)}"
        ),
    )


def _certificate(
    plan: Plan, knowledge: Knowledge, levels: Sequence[float], promise: Promise | None
) -> Certificate | None:
    if promise is None or knowledge.evidence is None:
        return None
    return certify(*paired(plan, knowledge.evidence), levels, promise)


def _promised(promise: Promise | None, certificate: Certificate | None) -> str:
    """What is promised, in words; empty: nothing was asked for."""
    if promise is None:
        return ""
    limit = f"a loss of at most {promise.max_loss:g} with probability {promise.probability:g}"
    if certificate is None:
        return f"; no threshold keeps {limit} for sure yet: towards the strictest"
    return f"; {limit} is certified from {certificate.threshold:g} on ({certificate.requests} requests)"


def _over(plan: Plan, level: float, knowledge: Knowledge, mix: Mapping[str, float]) -> tuple[float, float]:
    at = replace(plan, settings=replace(plan.settings, threshold=level))
    told = [(share, knowledge.predict(at, domain)) for domain, share in mix.items()]
    whole = sum(mix.values())
    quality = sum(share * prediction.quality.mean for share, prediction in told) / whole
    return quality, sum(share * prediction.cost_usd.mean for share, prediction in told) / whole
