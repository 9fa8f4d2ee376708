"""What another policy would have been worth, from the log of the one that ran: no request is answered for it.

Inverse propensity scoring counts the runs on which both policies agree, each for those that it stands for (Horvitz and
Thompson, 1952; self-normalised, Swaminathan and Joachims, 2015). Doubly robust adds them, as corrections, to what is
predicted of the other policy (Dudik et al., arXiv 1103.4601): right if either propensities or predictions are. No run
stands for more than the root of the log's length (truncated importance sampling, Ionides, 2008): a plan that was drawn
once in a thousand requests would else outweigh all the others, and the interval mean nothing.

Policy and predictions must not have seen the outcome that they are held against, or whatever looked good by luck would
look good again: `hindsight` learns them from the rest of the log (cross-fitting, Chernozhukov et al., Econometrics
Journal 21, 2018).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from catena.kit.errors import Invalid
from catena.plan.model import Plan, Prediction
from catena.router.core.confidence import Array
from catena.router.core.habits import effective
from catena.router.core.observation import Observation

Z95 = 1.96
LEAST = 20.0
"""Independent runs that the agreeing ones must be worth before an interval is believed."""

Policy = Callable[[Observation], Plan | None]
"""The plan that a policy would have run for the request of this execution; None: no plan keeps its caps."""
Foretell = Callable[[Observation, Plan], Prediction]
"""What is expected of a plan for the request of this execution, of whose own outcome the prediction knows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An expected value with the half-width of its 95 % interval."""

    value: float
    half_width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """One measure: its mean over what ran, and of the policy by self-normalised propensities and doubly robust.

    `gained`: how much more than what ran, doubly robust, pair by pair.
    """

    logged: float
    ips: Estimate
    doubly_robust: Estimate
    gained: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a policy is worth a request, in quality, USD and milliseconds.

    `requests`: choices in the log that tell their propensity; `judged` of them are scored, or failed, `matches` of
    those were chosen alike, worth `effective` independent ones; `refused`: those for which no plan keeps the policy's
    caps, which are left out. `verdict`: what can be said, in words; `tells`: whether the log can.
    """

    quality: Worth
    cost_usd: Worth
    latency_ms: Worth
    requests: int
    judged: int
    matches: int
    effective: float
    refused: int
    tells: bool
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A logged choice beside the policy's. `weight`: 1 over the propensity where they are the same, else 0."""

    seen: Observation
    weight: float
    would: Prediction


def choices(logged: Sequence[Observation]) -> list[Observation]:
    """The executions that the router chose freely, and was not spared by a cache, cancelled or told from elsewhere."""
    return [one for one in logged if one.plan.propensity > 0.0 and not one.cancelled and not one.cached]


def score_of(one: Observation) -> float | None:
    """How good its answer was; one that failed gave none, and None is one that nobody judged."""
    return one.score if one.succeeded else 0.0


def evaluate(logged: Sequence[Observation], policy: Policy, foretell: Foretell) -> Evaluation:
    """The policy's expected quality, cost and latency on requests like the logged ones; quality from the judged ones.

    Raises Invalid (`nothing_logged`) when no judged execution tells its propensity, (`no_plan_fits`) when the policy
    has a plan for none of them.
    """
    chosen = choices(logged)
    if not any(score_of(one) is not None for one in chosen):
        raise Invalid(
            f"of {len(logged)} executions none was chosen freely and judged; ask for `auto` and send feedback first",
            code="nothing_logged",
        )
    rows = [row for one in chosen if (row := beside(one, policy(one), foretell)) is not None]
    judged = [row for row in rows if score_of(row.seen) is not None]
    if not judged:
        raise Invalid("no plan keeps these caps for any logged request; raise or drop one", code="no_plan_fits")
    weights = truncated([row.weight for row in judged])
    quality = worth(judged, lambda one: score_of(one) or 0.0, lambda told: told.quality.mean, most=1.0)
    matches, alike = int((weights > 0.0).sum()), effective(weights)
    return Evaluation(
        quality=quality,
        cost_usd=worth(rows, lambda one: one.cost_usd, lambda told: told.cost_usd.mean),
        latency_ms=worth(rows, lambda one: one.latency_ms, lambda told: told.latency_ms.mean),
        requests=len(rows),
        judged=len(judged),
        matches=matches,
        effective=alike,
        refused=len(chosen) - len(rows),
        tells=alike >= LEAST,
        verdict=_verdict(quality, len(judged), matches, alike),
    )


def beside(one: Observation, plan: Plan | None, foretell: Foretell) -> Row | None:
    """What ran beside what the policy would have run; None where it has no plan."""
    if plan is None:
        return None
    same = plan.configuration_id == one.configuration_id
    return Row(seen=one, weight=1.0 / one.plan.propensity if same else 0.0, would=foretell(one, plan))


def worth(
    rows: Sequence[Row],
    measured: Callable[[Observation], float],
    predicted: Callable[[Prediction], float],
    *,
    most: float = math.inf,
) -> Worth:
    """One measure over the rows, which lies between 0 and `most`."""
    weights = truncated([row.weight for row in rows])
    seen, would = np.array([measured(row.seen) for row in rows]), np.array([predicted(row.would) for row in rows])
    # Where the weight is not 0 the same plan ran, so that what is predicted of it is predicted of what ran.
    robust = would + weights * (seen - would)
    expected = _mean(robust)
    return Worth(
        logged=float(seen.mean()),
        ips=_normalised(weights, seen),
        doubly_robust=replace(expected, value=min(max(expected.value, 0.0), most)),
        gained=_mean(robust - seen),
    )


def truncated(weights: Sequence[float]) -> Array:
    """The weights, none above the root of their number."""
    return np.minimum(np.array(weights, np.float64), math.sqrt(max(len(weights), 1)))


def _normalised(weights: Array, seen: Array) -> Estimate:
    total = float(weights.sum())
    if total <= 0.0:
        return Estimate(value=math.nan, half_width=math.inf)
    value = float(weights @ seen) / total
    deviation = math.sqrt(float((weights * (seen - value)) @ (weights * (seen - value)))) / total
    return Estimate(value=value, half_width=Z95 * deviation)


def _mean(values: Array) -> Estimate:
    deviation = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(value=float(values.mean()), half_width=Z95 * deviation)


def _verdict(quality: Worth, judged: int, matches: int, alike: float) -> str:
    seen = f"{matches} of {judged} judged requests were answered as this policy would have, worth {alike:.0f}"
    if alike < LEAST:
        return (
            f"the log cannot tell: {seen}, and {LEAST:g} are needed; what is shown is mostly prediction. More judged "
            "requests, or more of router.exploration, would tell"
        )
    gained = quality.gained
    by = f"{gained.value:+.3f} ± {gained.half_width:.3f}"
    if abs(gained.value) <= gained.half_width:
        return f"no difference in quality from what ran, beyond chance: {by}; {seen}"
    return f"{'better' if gained.value > 0.0 else 'worse'} than what ran: quality {by}; {seen}"
