"""Moves the cascade's threshold and the weights of `balanced` to where recorded outcomes want them, within bounds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from catena.kit.errors import Missing
from catena.plan.build import ShapeConfig, build
from catena.plan.model import Plan, Shape
from catena.router.core.confidence import Array
from catena.router.core.guarantee import Certificate, Promise, certify, paired
from catena.router.core.knowledge import Knowledge
from catena.router.core.steps import Adjustment

THRESHOLD = "cascade.threshold"
WEIGHT = "weights."
_SURE = 2.6
"""Standard errors that a gain must exceed: one in twenty, shared by all the weights that are tried."""
_LEVELS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
"""Where weights are tried, as shares of how far they may go."""

Weights = Mapping[str, float]
Gains = Callable[[Weights], Array]
"""What choices under these weights would have realised more of the configured utility, by logged request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far a tuning may go: quality that may be lost, the longest step, outcomes needed before any.

    `promise`: what must be certified of a threshold before it is moved to; None: what is expected of it is enough.
    `weight_step`: the most that one tuning moves a weight; `weight_range`: how far from the configured one, 0: stay.
    """

    margin: float
    max_step: float
    min_judged: int
    promise: Promise | None = None
    weight_step: float = 0.05
    weight_range: float = 0.2


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


def tune_weights(now: Weights, configured: Weights, gains: Gains, bounds: Bounds) -> list[Adjustment]:
    """A step towards the weights whose choices would have realised most of the *configured* utility.

    The configured weights say what matters and are the yardstick; those in force only steer the choice, and are moved
    where recorded outcomes show, beyond chance, that predictions lead it astray. Empty: nothing has to move.
    """
    best: tuple[float, float, int, Weights] | None = None
    for wanted in _tried(configured, bounds.weight_range):
        gained = gains(wanted)
        if len(gained) < bounds.min_judged or not gained.any():
            continue
        mean, error = float(gained.mean()), float(gained.std(ddof=1)) / float(np.sqrt(len(gained)))
        if mean > _SURE * error and (best is None or mean > best[0]):
            best = mean, error, len(gained), wanted
    if best is None:
        return []
    mean, error, count, wanted = best
    furthest = max(abs(wanted[name] - now[name]) for name in now)
    part = min(1.0, bounds.weight_step / furthest) if furthest > 0.0 else 0.0
    told = ", ".join(f"{name} {weight:.3f}" for name, weight in wanted.items())
    reason = (
        f"choices under {told} would have realised {mean:.4f} ± {1.96 * error:.4f} more of the configured utility "
        f"a request ({count} judged)"
    )
    moved = {name: round(weight + part * (wanted[name] - weight), 4) for name, weight in now.items()}
    return [
        Adjustment(setting=WEIGHT + name, before=now[name], after=after, reason=reason)
        for name, after in moved.items()
        if abs(after - now[name]) >= 1e-3
    ]


def _tried(configured: Weights, reach: float) -> list[Weights]:
    """Weights that add up to 1, of which one is other than configured by up to `reach`, the others in proportion."""
    found: list[Weights] = []
    for name, weight in configured.items():
        rest = 1.0 - weight
        for level in _LEVELS if reach > 0.0 and rest > 0.0 else ():
            moved = min(max(weight + level * reach, 0.0), 1.0)
            others = {other: share * (1.0 - moved) / rest for other, share in configured.items() if other != name}
            if moved != weight:
                found.append({key: moved if key == name else others[key] for key in configured})
    return found


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
