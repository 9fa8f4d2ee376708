"""Which of the candidates to run: caps first, then the objective, then a little curiosity. Plain functions."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from catena.kit.errors import Invalid
from catena.plan.model import Plan, Prediction, Shape, describe
from catena.router.core.ask import Ask, is_complex
from catena.router.core.moment import Moment
from catena.router.core.outlook import NO_SHIFTS, Length, Outlook, deviation

CURIOUS_Z = 1.0
"""Deviations by which a plan may be better than estimated and still be worth a try."""
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """How plans are compared: objective, weights that add up to 1, quality that may be given away, caution.

    `price`: quality that a USD must buy, by the long-run budget; 0: there is none, or it binds nothing.
    """

    objective: str
    weights: Mapping[str, float]
    margin: float
    caution: float
    price: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan that was weighed. `rejected`: why not, in words; empty: it could run. `runs`: judged outcomes behind it.

    `configured`: as the configuration has it, not a variant. `outlook`: from which it is predicted again.
    """

    plan: Plan
    prediction: Prediction
    outlook: Outlook | None = None
    runs: float = 0.0
    configured: bool = False
    utility: float = 0.0
    rejected: str = ""

    def again(
        self, length: Length, shifts: Mapping[str, float] = NO_SHIFTS, moment: Moment | None = None
    ) -> "Candidate":
        """The candidate as expected of such a request at such a moment, whatever it was rejected for before."""
        assert self.outlook is not None, "only what has an outlook is weighed again"
        return replace(self, prediction=self.outlook.predict(length, shifts, moment), rejected="")


def reject(candidate: Candidate, ask: Ask) -> Candidate:
    """The candidate with the caps that the upper ends of its prediction break."""
    broken = [words for words, excess in _excesses(candidate, ask) if excess > 0.0]
    return replace(candidate, rejected="; ".join(broken)) if broken else candidate


def rank(candidates: Sequence[Candidate], taste: Taste, scale: Sequence[Candidate] = ()) -> list[Candidate]:
    """Candidates with their utility, best first; those rejected come last.

    `scale`: plans by whose dearest and slowest cost and latency are measured, if other than these.

    `cost` and `latency`: the least of it among the plans whose cautious quality is within the margin of the best.
    `quality`: the highest cautious quality. `balanced`: the weighted sum, cost and latency relative to
    the dearest. From both of these the budget's price of the cost is taken off.
    """
    fitting = [c for c in candidates if not c.rejected]
    if not fitting:
        return sorted(candidates, key=_order)
    compared = [c for c in scale if not c.rejected] or fitting
    dearest = max(c.prediction.cost_usd.mean for c in compared) or 1.0
    slowest = max(c.prediction.latency_ms.mean for c in compared) or 1.0
    best = max(cautious(c, taste) for c in fitting)

    def utility(candidate: Candidate) -> float:
        quality = cautious(candidate, taste)
        cost = candidate.prediction.cost_usd.mean / dearest
        latency = candidate.prediction.latency_ms.mean / slowest
        if taste.objective == "quality":
            return quality - 1e-3 * cost - 1e-4 * latency - taste.price * candidate.prediction.cost_usd.mean
        if taste.objective in ("cost", "latency"):
            wanted, other = (cost, latency) if taste.objective == "cost" else (latency, cost)
            behind = max(best - quality - taste.margin, 0.0)
            return -wanted - 1e-3 * other + 1e-3 * quality - (2.0 + 10.0 * behind if behind > 0.0 else 0.0)
        weights = taste.weights
        paid = weights["quality"] * taste.price * candidate.prediction.cost_usd.mean
        return weights["quality"] * quality - weights["cost"] * cost - weights["latency"] * latency - paid

    weighed = [c if c.rejected else replace(c, utility=utility(c)) for c in candidates]
    return sorted(weighed, key=_order)


def cautious(candidate: Candidate, taste: Taste) -> float:
    """Quality with `caution` deviations taken off."""
    return candidate.prediction.quality.mean - taste.caution * deviation(candidate.prediction.quality)


def check_fit(ranked: Sequence[Candidate], ask: Ask) -> None:
    """Raises Invalid (`no_plan_fits`) when every candidate is rejected: which cap, by how much, by the nearest plan."""
    if any(not c.rejected for c in ranked):
        return
    complaints = []
    for cap, value in (("max_cost_usd", ask.max_cost_usd), ("max_latency_ms", ask.max_latency_ms)):
        if not value:
            continue
        nearest = min(ranked, key=lambda c, cap=cap: _upper(c, cap))  # type: ignore[misc]
        upper = _upper(nearest, cap)
        if upper > value:
            complaints.append(
                f"{cap} {value:g} is broken by every plan: {describe(nearest.plan)} comes nearest with up to "
                f"{upper:.4g}, {upper - value:.4g} too much"
            )
    if not complaints:
        complaints.append(
            f"no plan meets max_cost_usd {ask.max_cost_usd:g} and max_latency_ms {ask.max_latency_ms:g} together; "
            f"the nearest, {describe(ranked[0].plan)}: {ranked[0].rejected}"
        )
    raise Invalid("; ".join(complaints) + "; raise the cap or drop it", code="no_plan_fits")


def rule_shape(ask: Ask) -> Shape:
    """Before anything is learned: simple requests cascade, complex ones are refined, critical ones are voted on."""
    if ask.critical:
        return Shape.CONSENSUS
    return Shape.DRAFT_REFINE if is_complex(ask) else Shape.CASCADE


def by_rule(ranked: Sequence[Candidate], ask: Ask) -> Candidate | None:
    """The configured plan of the rule's shape, if there is one and it keeps the caps."""
    shape = rule_shape(ask)
    return next((c for c in ranked if c.configured and not c.rejected and c.plan.shape is shape), None)


def prefer(ranked: Sequence[Candidate], specialist: str, taste: Taste) -> list[Candidate]:
    """Plans led by the specialist first, unless outcomes say that another is better by more than the margin."""
    own = [c for c in ranked if not c.rejected and c.plan.main_model == specialist]
    others = [c for c in ranked if not c.rejected and c.plan.main_model != specialist and c.runs >= 1.0]
    if not own:
        return list(ranked)
    hope = max(c.prediction.quality.mean + deviation(c.prediction.quality) for c in own)
    if others and max(cautious(c, taste) for c in others) - taste.margin > hope:
        return list(ranked)
    first = {id(c) for c in own}
    return own + [c for c in ranked if id(c) not in first]


def explore(
    ranked: Sequence[Candidate], taste: Taste, share: float, rng: random.Random
) -> tuple[Candidate, float, bool]:
    """What to run, the probability with which it is run, and whether curiosity chose it.

    With probability `share` one of the plans that may be better than estimated is drawn, by how much better it may be
    (expected improvement; Mockus, Toward Global Optimisation 2, 1978).
    """
    greedy = ranked[0]
    bar = cautious(greedy, taste) - taste.margin
    curious = [
        c
        for c in ranked
        if not c.rejected and c.prediction.quality.mean + CURIOUS_Z * deviation(c.prediction.quality) >= bar
    ]
    if share <= 0.0 or len(curious) < 2:
        return greedy, 1.0, False
    hopes = [_hope(c, bar) for c in curious]
    drawn = rng.choices(curious, hopes)[0] if rng.random() < share else greedy
    odds = share * sum(hope for c, hope in zip(curious, hopes, strict=True) if c is drawn) / sum(hopes)
    return drawn, odds + (1.0 - share if drawn is greedy else 0.0), drawn is not greedy


def _hope(candidate: Candidate, bar: float) -> float:
    """By how much its quality exceeds the bar on average, counting where it does not as nothing."""
    mean, sd = candidate.prediction.quality.mean, max(deviation(candidate.prediction.quality), 1e-6)
    ahead = (mean - bar) / sd
    return max(sd * (_NORMAL.pdf(ahead) + ahead * _NORMAL.cdf(ahead)), 1e-9)


def _order(candidate: Candidate) -> tuple[bool, float, float]:
    """Where even the costs are the same, as they came: the configured plans come first."""
    return bool(candidate.rejected), -candidate.utility, candidate.prediction.cost_usd.mean


def _upper(candidate: Candidate, cap: str) -> float:
    ends = candidate.prediction.cost_usd if cap == "max_cost_usd" else candidate.prediction.latency_ms
    return ends.high


def _excesses(candidate: Candidate, ask: Ask) -> list[tuple[str, float]]:
    cost, latency = candidate.prediction.cost_usd.high, candidate.prediction.latency_ms.high
    found = []
    if ask.max_cost_usd:
        excess = cost - ask.max_cost_usd
        found.append((f"may cost {cost:.4g} USD, {excess:.4g} over max_cost_usd {ask.max_cost_usd:g}", excess))
    if ask.max_latency_ms:
        excess = latency - ask.max_latency_ms
        found.append((f"may take {latency:.4g} ms, {excess:.4g} over max_latency_ms {ask.max_latency_ms:g}", excess))
    return found
