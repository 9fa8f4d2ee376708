"""What another policy would have been worth, from the log of the one that ran: no request is answered for it.

Inverse propensity scoring counts the runs on which both policies agree, each for those that it stands for (Horvitz and
Thompson, 1952; self-normalised, Swaminathan and Joachims, 2015). Doubly robust adds them, as corrections, to what is
predicted of the other policy (Dudik et al., arXiv 1103.4601): right if either propensities or predictions are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from catena.kit.errors import Invalid
from catena.plan.model import Plan
from catena.router.core.confidence import Array
from catena.router.core.knowledge import Knowledge, Length
from catena.router.core.observation import Observation

Z95 = 1.96
Policy = Callable[[Observation], Plan]
"""The plan that a policy would have run for the request of this execution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Expected quality with the half-width of its 95 % interval; `matches`: runs on which both policies agreed."""

    value: float
    half_width: float
    matches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """By self-normalised inverse propensities, and doubly robust."""

    ips: Estimate
    doubly_robust: Estimate


def evaluate(logged: Sequence[Observation], policy: Policy, knowledge: Knowledge) -> Evaluation:
    """The policy's expected quality on requests like the logged ones, of which the judged ones count.

    Raises Invalid (`nothing_logged`) when no judged execution tells its propensity.
    """
    usable = [one for one in logged if one.score is not None and one.plan.propensity > 0.0]
    if not usable:
        raise Invalid("no judged execution tells its propensity; ask the router for plans first", code="nothing_logged")
    weights, scores, logged_as, told = np.array([_row(one, policy(one), knowledge) for one in usable]).T
    matches = int((weights > 0.0).sum())
    return Evaluation(
        ips=_normalised(weights, scores, matches), doubly_robust=_mean(told + weights * (scores - logged_as), matches)
    )


def _row(one: Observation, plan: Plan, knowledge: Knowledge) -> tuple[float, float, float, float]:
    """Weight of the run for the policy, its score, what is predicted of what ran, and of what would have."""
    same = plan.configuration_id == one.configuration_id
    length = Length(chars=one.chars)
    shifts = knowledge.outcome.shifts(one.plan.features)
    would = knowledge.predict(plan, one.domain, length, shifts).quality.mean
    ran = would if same else 0.0
    return (1.0 / one.plan.propensity if same else 0.0, float(one.score or 0.0), ran, would)


def _normalised(weights: Array, scores: Array, matches: int) -> Estimate:
    total = float(weights.sum())
    if total <= 0.0:
        return Estimate(value=math.nan, half_width=math.inf, matches=0)
    value = float(weights @ scores) / total
    deviation = math.sqrt(float((weights * (scores - value)) @ (weights * (scores - value)))) / total
    return Estimate(value=value, half_width=Z95 * deviation, matches=matches)


def _mean(values: Array, matches: int) -> Estimate:
    deviation = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(value=float(values.mean()), half_width=Z95 * deviation, matches=matches)
