"""Cascades that nobody configured: pairs of models whose agreement is worth believing, by what the evidence shows.

Only where the configured cascade rests on agreement, and only those that surely pay beside the plans there are: every
plan more is one more that may look good by luck, in every domain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from catena.plan.build import sequential
from catena.plan.model import Plan, Role, Shape, Stage
from catena.router.core.budget import Offer, least_price
from catena.router.core.confidence import Array
from catena.router.core.evidence import Evidence, Numbers
from catena.router.core.knowledge import Knowledge
from catena.router.core.observation import Mode
from catena.router.core.replay import asked

MOST_MODELS, MOST_MAINS, MOST_PLANS = 16, 3, 8
FOLDS, SURE = 5, 3.0
"""Parts of the requests, each answered by what the others choose; the standard errors by which a plan must pay there.

Of hundreds the luckiest is ahead by more than two.
"""
_DOMAIN_ROWS = 40.0
"""Requests of one domain that what a plan does over all of them is worth."""
_SPENT = (1.0, 0.7, 0.5)
"""Long-run budgets at which a plan may pay, beside none: shares of what the best model alone costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """P plans on n requests: right answers and USD, 0 where not `seen`; of each its cell (fold of a domain), weight."""

    right: Array
    usd: Array
    seen: Array
    cells: Numbers
    weights: Array
    domains: int

    def sums(self) -> Array:
        """(3, P, K, F): requests, right answers and USD by plan, domain and fold."""
        size = self.domains * FOLDS
        places = np.zeros((len(self.cells), size))
        places[np.arange(len(self.cells)), self.cells] = self.weights
        told = np.stack([self.seen, self.right, self.usd]) @ places
        return told.reshape(3, -1, self.domains, FOLDS)


def propose(plans: Sequence[Plan], knowledge: Knowledge) -> list[Plan]:
    """Variants of the configured cascade that ask two other models first; none without evidence on such pairs."""
    base = next((plan for plan in plans if _agrees(plan)), None)
    evidence = knowledge.evidence
    if base is None or evidence is None:
        return []
    known = [model for model in evidence.models if knowledge.catalogue.knows(model)]
    rated = sorted(known, key=lambda model: (-_quality(knowledge, model), model))
    there = {plan.configuration_id: plan for plan in (*map(sequential, rated), *plans)}
    others = [plan for plan in _pairs(base, rated[:MOST_MODELS]) if plan.configuration_id not in there]
    usd = _bills(knowledge, evidence)
    first = [told for plan in there.values() if (told := _told(plan, evidence, usd)) is not None]
    pairs = [(plan, told) for plan in others if (told := _told(plan, evidence, usd)) is not None]
    if not first or not pairs:
        return []
    right, paid, seen = np.stack([*first, *(told for _, told in pairs)], axis=1)
    cells = evidence.domains * FOLDS + _folds(evidence.domains)
    count = len(evidence.names)
    rows = Rows(right=right, usd=paid, seen=seen, cells=cells, weights=evidence.weights, domains=count)
    return [pairs[place - len(first)][0] for place in _paying(rows, len(first))]


def _paying(rows: Rows, there: int) -> list[int]:
    """Which plans to add to the first ones, that are `there`: those that surely pay, the surest first.

    Each fold is answered by the plans that the others choose by domain, at several prices of a USD; a plan pays what is
    gained by choosing it too.
    """
    sums = rows.sums()
    prices = _prices(sums[:, :there].sum(axis=3))
    hoped = _hoped(sums, prices).reshape(len(rows.right), -1, len(prices))
    choice = hoped[:there].argmax(axis=0)
    at, chosen = np.arange(len(rows.cells)), list[int]()
    while len(chosen) < MOST_PLANS:
        best = np.take_along_axis(hoped, choice[None], axis=0)
        ahead = hoped > best
        hopeful = there + np.flatnonzero(ahead[there:].any(axis=(1, 2)))
        gains = np.zeros((len(hopeful), len(at)))
        for n, price in enumerate(prices):
            now = choice[rows.cells, n]
            both = ahead[hopeful][:, rows.cells, n] * rows.seen[hopeful] * rows.seen[now, at]
            lead = rows.right[hopeful] - rows.right[now, at] - price * (rows.usd[hopeful] - rows.usd[now, at])
            gains += both * lead
        gains *= rows.weights
        surely = gains.sum(axis=1) - SURE * np.sqrt(len(at)) * gains.std(axis=1)
        if not len(hopeful) or surely.max() <= 0.0:
            break
        chosen.append(int(hopeful[surely.argmax()]))
        choice = np.where(ahead[chosen[-1]], chosen[-1], choice)
    return chosen


def _hoped(sums: Array, prices: Array) -> Array:
    """(P, K, F, S): what a plan is worth in a domain at each price, by all folds but this one."""
    n, right, usd = sums.sum(axis=3, keepdims=True) - sums
    whole = np.maximum(n.sum(axis=1, keepdims=True), 1e-9)
    q, c = ((v + _DOMAIN_ROWS * v.sum(axis=1, keepdims=True) / whole) / (n + _DOMAIN_ROWS) for v in (right, usd))
    hoped: Array = q[..., None] - prices * c[..., None]
    return hoped


def _prices(sums: Array) -> Array:
    """What a USD must buy at each budget that can be kept, and without any; `sums` (3, P, K) of the plans there are."""
    rows, right, usd = sums
    quality, cost = (v.sum(axis=1) / rows.sum(axis=1) for v in (right, usd))
    q = (right + _DOMAIN_ROWS * quality[:, None]) / (rows + _DOMAIN_ROWS)
    c = (usd + _DOMAIN_ROWS * cost[:, None]) / (rows + _DOMAIN_ROWS)
    offers = [Offer(float(rows[:, k].max()), q[:, k], c[:, k]) for k in range(rows.shape[1])]
    usual = float(cost[int(np.argmax(quality))])
    least = sum(offer.share * float(offer.usd.min()) for offer in offers) / sum(offer.share for offer in offers)
    return np.array([0.0, *(least_price(offers, share * usual) for share in _SPENT if share * usual > least)])


def _told(plan: Plan, evidence: Evidence, usd: Array) -> Array | None:
    """(3, n): right answers, USD, whether the request shows all calls of the plan; None where none does."""
    told = asked(plan, evidence)
    if told is None:
        return None
    seen = told.seen & ~np.isnan(told.right)
    paid = usd[:, told.first].sum(axis=1) + np.where(told.settled, 0.0, usd[:, told.later].sum(axis=1))
    return np.where(seen, (told.right, paid, seen), 0.0) if seen.any() else None


def _folds(domains: Numbers) -> Numbers:
    """In turn within each domain, so that none lacks one."""
    folds = np.empty(len(domains), np.int64)
    folds[np.argsort(domains, kind="stable")] = np.arange(len(domains)) % FOLDS
    return folds


def _bills(knowledge: Knowledge, evidence: Evidence) -> Array:
    """(n, m) USD of every call; where its tokens were not told, what the model usually costs."""
    bills = np.full(evidence.read.shape, np.nan)
    for model, place in evidence.models.items():
        if knowledge.catalogue.knows(model):
            skill, card = knowledge.skill(model, Mode.PLAIN), knowledge.catalogue.card(model)
            usual = skill.input_tokens.mean * card.price_input + skill.output_tokens.overall.mean * card.price_output
            paid = evidence.read[:, place] * card.price_input + evidence.written[:, place] * card.price_output
            bills[:, place] = np.where(np.isnan(paid), usual, paid) / 1e6
    return bills


def _pairs(base: Plan, rated: Sequence[str]) -> list[Plan]:
    """The cascade with each two of the models asked first, and each of the best others behind them."""
    return [
        _with(base, first, second, main)
        for first, second in combinations(rated, 2)
        for main in [model for model in rated[: MOST_MAINS + 2] if model not in (first, second)][:MOST_MAINS]
    ]


def _agrees(plan: Plan) -> bool:
    return plan.shape is Shape.CASCADE and "agreement" in plan.settings.checks and len(plan.of(Role.FAST)) == 2


def _with(base: Plan, ahead: str, other: str, main: str) -> Plan:
    """The cascade with these models; of the first two, the likelier one speaks for both."""
    firsts = iter((ahead, other))
    stages: list[Stage] = [
        replace(
            stage, model=next(firsts) if stage.role is Role.FAST else main if stage.role is Role.MAIN else stage.model
        )
        for stage in base.stages
    ]
    return replace(base, stages=tuple(stages))


def _quality(knowledge: Knowledge, model: str) -> float:
    return knowledge.skill(model, Mode.PLAIN).quality.overall.mean
