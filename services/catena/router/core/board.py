"""What a tenant's decisions rest on until it is learned anew: knowledge, every plan as it stands, the best for each."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from catena.plan.model import Plan
from catena.router.core.beforehand import Kinds
from catena.router.core.budget import correction, shadow_price
from catena.router.core.candidates import House, configured_plans, free_plans
from catena.router.core.catalogue import Catalogue
from catena.router.core.choice import Candidate, Taste, rank
from catena.router.core.knowledge import Knowledge
from catena.router.core.learning import learn
from catena.router.core.observation import Observation
from catena.router.core.outlook import ANY_LENGTH, Length
from catena.router.core.proposals import propose
from catena.router.core.strangers import EVEN

COARSE, FINE = 2.0, 1.15
"""Steps to which lengths are rounded: to find the best few plans, and where a cap is held against every plan."""
_MOST_TABLES, _MOST_READY = 256, 64
_FADING, _RARELY = 0.5, 0.1
"""What a use of a table still counts after each lesson, and the uses below which it is not made ready again."""

TableKey = tuple[str, str, Length, str, float]


@dataclass(slots=True, kw_only=True)
class Board:
    """`proposals`: plans beside the configured ones; `taste`: as tuned, with the price of the long-run budget.

    `half_life`: executions after which one counts half. `strangers`: share of requests that are of no domain.
    """

    knowledge: Knowledge
    kinds: Kinds
    house: House
    taste: Taste
    half_life: int
    proposals: Sequence[Plan] = ()
    strangers: float = EVEN
    _plans: dict[str, list[Plan]] = field(default_factory=dict, init=False)
    _stands: dict[tuple[str, str], list[Candidate]] = field(default_factory=dict, init=False)
    _tables: dict[TableKey, list[Candidate]] = field(default_factory=dict, init=False)
    _used: dict[tuple[str, str, Length, str], float] = field(default_factory=dict, init=False)

    def weighed(
        self, domain: str, specialist: str, length: Length, taste: Taste, step: float = COARSE
    ) -> list[Candidate]:
        """Every free plan with its prediction, best first; lengths are rounded to a `step`, to be remembered."""
        rounded = Length(chars=bucket(length.chars, step), max_tokens=length.max_tokens)
        used = domain, specialist, rounded, taste.objective
        self._used[used] = self._used.get(used, 0.0) + 1.0
        return self._table(domain, specialist, rounded, taste)

    def free_plans(self, specialist: str) -> list[Plan]:
        """The plans among which `auto` chooses where this is the domain's specialist (empty: there is none)."""
        plans = self._plans.get(specialist)
        if plans is None:
            plans = free_plans(self.house, self.knowledge.catalogue, [specialist], self.proposals)
            self._plans[specialist] = plans
        return plans

    def had_seen(self, executions: Sequence[Observation]) -> "Board":
        """The board as it would be, had only these been seen."""
        catalogue, half_life = self.knowledge.catalogue, self.half_life
        return taught(executions, catalogue, self.kinds, house=self.house, taste=self.taste, half_life=half_life)

    def with_catalogue(self, catalogue: Catalogue) -> "Board":
        """The same with other models or prices, until it is learned anew."""
        return replace(self, knowledge=replace(self.knowledge, catalogue=catalogue, widths={}))

    def settle(self, seen: Sequence[Observation], budget_usd: float, before: "Board | None") -> None:
        """Price what a USD must buy, then make ready what was looked at most on the board `before`."""
        self.taste = replace(self.taste, price=self._price(seen, budget_usd))
        if before is None:
            return
        lately = {key: uses * _FADING for key, uses in before._used.items() if uses >= _RARELY}
        for key in sorted(lately, key=lambda key: -lately[key])[:_MOST_READY]:
            domain, specialist, length, objective = key
            self._used[key] = lately[key]
            self._table(domain, specialist, length, replace(self.taste, objective=objective))

    def _price(self, seen: Sequence[Observation], budget_usd: float) -> float:
        """Quality per USD at which what `auto` chooses costs the budget on average; 0 without a budget."""
        if budget_usd <= 0.0:
            return 0.0
        routed = [o for o in seen if o.routed]
        mix = mix_of(routed)
        chars = sorted(o.chars for o in routed if o.chars)
        length = Length(chars=bucket(chars[len(chars) // 2], COARSE) if chars else 0)
        tables = {
            domain: self._table(domain, self.kinds.specialists.get(domain, ""), length, self.taste) for domain in mix
        }
        # Only what was chosen freely, with a prediction, is spending that the price can steer.
        spent = [o.cost_usd for o in routed if o.plan.propensity > 0.0]
        return shadow_price(tables, mix, self.taste, budget_usd) * correction(spent, budget_usd)

    def _table(self, domain: str, specialist: str, length: Length, taste: Taste) -> list[Candidate]:
        key = (domain, specialist, length, taste.objective, taste.price)
        table = self._tables.get(key)
        if table is None:
            table = rank([candidate.again(length) for candidate in self._stand(domain, specialist)], taste)
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            self._tables[key] = table
        return table

    def _stand(self, domain: str, specialist: str) -> list[Candidate]:
        """Every free plan as it stands in a domain, for requests of any length."""
        stand = self._stands.get((domain, specialist))
        if stand is None:
            configured = configured_plans(self.house)
            stand = weigh(self.free_plans(specialist), self.knowledge, domain, ANY_LENGTH, configured)
            self._stands[domain, specialist] = stand
        return stand


def taught(
    seen: Sequence[Observation], catalogue: Catalogue, kinds: Kinds, *, house: House, taste: Taste, half_life: int
) -> Board:
    """What these executions, oldest first, teach."""
    knowledge = learn(seen, catalogue, kinds, half_life=half_life)
    proposals = propose(configured_plans(house), knowledge)
    return Board(knowledge=knowledge, kinds=kinds, house=house, taste=taste, half_life=half_life, proposals=proposals)


def weigh(
    plans: Sequence[Plan], knowledge: Knowledge, domain: str, length: Length, configured: Sequence[Plan] = ()
) -> list[Candidate]:
    """The plans with what is expected of them."""
    outlooks = [knowledge.outlook(plan, domain) for plan in plans]
    return [
        Candidate(
            plan=plan,
            prediction=outlook.predict(length),
            outlook=outlook,
            runs=knowledge.runs_judged(plan, domain),
            configured=plan in configured,
        )
        for plan, outlook in zip(plans, outlooks, strict=True)
    ]


def bucket(chars: int, step: float = FINE) -> int:
    """A length rounded in proportion."""
    return round(step ** round(math.log(chars, step))) if chars > 0 else 0


def mix_of(observations: Sequence[Observation]) -> Mapping[str, float]:
    """How often each domain was met."""
    return {domain: float(n) for domain, n in Counter(o.domain for o in observations if o.routed).items()}
