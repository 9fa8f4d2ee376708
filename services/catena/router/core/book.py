"""What the router holds in memory of one tenant: a window of its executions and what was made of them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from catena.plan.model import Plan
from catena.router.core.beforehand import Kinds
from catena.router.core.budget import correction, shadow_price
from catena.router.core.candidates import House, configured_plans, free_plans
from catena.router.core.catalogue import Catalogue, catalogue_of
from catena.router.core.choice import Candidate, Taste, rank
from catena.router.core.domains import Head
from catena.router.core.knowledge import Knowledge, Length
from catena.router.core.observation import Observation
from catena.router.core.ports import Noted

COARSE, FINE = 2.0, 1.15
"""Steps to which lengths are rounded: to find the best few plans, and where a cap is held against every plan."""
_MOST_TABLES = 256

TableKey = tuple[str, str, Length, str, float]


@dataclass(slots=True)
class Book:
    """One tenant's page. `knowledge` None: not learned yet; `stale`: something new is to be learned.

    `proposals`: plans beside the configured ones; `taste`: as tuned, with the price of the long-run budget. `aliases`:
    names of domains that were merged into others.
    """

    window: int
    noted: dict[str, Noted] = field(default_factory=dict)
    catalogue: Catalogue = field(default_factory=lambda: catalogue_of(()))
    catalogue_until_s: float = -math.inf
    kinds: Kinds = field(default_factory=Kinds)
    knowledge: Knowledge | None = None
    stale: bool = True
    house: House | None = None
    head: Head | None = None
    head_of: tuple[tuple[str, str, float], ...] = ()
    proposals: Sequence[Plan] = ()
    taste: Taste | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    plans: dict[str, list[Plan]] = field(default_factory=dict)
    tables: dict[TableKey, list[Candidate]] = field(default_factory=dict)

    def note(self, noted: Noted, frozen_at: int | None) -> None:
        """Take in a stored observation; of what came after a freeze, nothing."""
        if frozen_at is not None:
            if noted.born > frozen_at:
                return
            if noted.judged_at > frozen_at:
                known = self.noted.get(noted.observation.execution_id)
                if known is not None:
                    return
                noted = replace(noted, observation=replace(noted.observation, score=None))
        self.noted[noted.observation.execution_id] = noted
        self.stale = True
        if len(self.noted) > self.window + self.window // 8:
            kept = sorted(self.noted.values(), key=lambda n: n.born)[-self.window :]
            self.noted = {n.observation.execution_id: n for n in kept}

    def observations(self) -> list[Observation]:
        """The window, in the order of arrival; of a domain that was merged, as of the one that it became."""
        told = [n.observation for n in sorted(self.noted.values(), key=lambda n: n.born)[-self.window :]]
        return [replace(o, domain=self.aliases[o.domain]) if o.domain in self.aliases else o for o in told]

    def judged_since(self, revision: int) -> int:
        """Executions of the window that were judged after this revision."""
        return sum(n.judged_at > revision for n in self.noted.values())

    def take_catalogue(self, catalogue: Catalogue) -> None:
        """Reckon with other models or prices from now on, and learn anew when there is time."""
        self.catalogue = catalogue
        if self.knowledge is not None:
            self.knowledge = replace(self.knowledge, catalogue=catalogue, widths={})
        self.stale = True
        self.forget_tables()

    def forget_tables(self) -> None:
        """Drop what was derived from catalogue, domains and knowledge."""
        self.plans.clear()
        self.tables.clear()

    def weighed(
        self, domain: str, specialist: str, length: Length, taste: Taste, step: float = COARSE
    ) -> list[Candidate]:
        """Every free plan with its prediction, best first; lengths are rounded to a `step`, to be remembered."""
        assert self.knowledge is not None and self.house is not None
        rounded = Length(chars=bucket(length.chars, step), max_tokens=length.max_tokens)
        key = (domain, specialist, rounded, taste.objective, taste.price)
        if key not in self.tables:
            if specialist not in self.plans:
                self.plans[specialist] = free_plans(self.house, self.catalogue, [specialist], self.proposals)
            if len(self.tables) >= _MOST_TABLES:
                self.tables.clear()
            told = weigh(self.plans[specialist], self.knowledge, domain, rounded, configured_plans(self.house))
            self.tables[key] = rank(told, taste)
        return self.tables[key]

    def priced(self, taste: Taste, budget_usd: float) -> float:
        """Quality per USD at which what `auto` chooses costs the budget on average; 0 without a budget."""
        if budget_usd <= 0.0 or self.knowledge is None:
            return 0.0
        seen = [o for o in self.observations() if o.routed]
        mix = mix_of(seen)
        chars = sorted(o.chars for o in seen if o.chars)
        length = Length(chars=chars[len(chars) // 2] if chars else 0)
        tables = {domain: self.weighed(domain, self.kinds.specialists.get(domain, ""), length, taste) for domain in mix}
        # Only what was chosen freely, with a prediction, is spending that the price can steer.
        spent = [o.cost_usd for o in seen if o.plan.propensity > 0.0]
        return shadow_price(tables, mix, taste, budget_usd) * correction(spent, budget_usd)


def weigh(
    plans: Sequence[Plan], knowledge: Knowledge, domain: str, length: Length, configured: Sequence[Plan] = ()
) -> list[Candidate]:
    """The plans with what is expected of them."""
    return [
        Candidate(
            plan=plan,
            prediction=knowledge.predict(plan, domain, length),
            runs=knowledge.runs_judged(plan, domain),
            configured=plan in configured,
        )
        for plan in plans
    ]


def bucket(chars: int, step: float = FINE) -> int:
    """A length rounded in proportion."""
    return round(step ** round(math.log(chars, step))) if chars > 0 else 0


def mix_of(observations: Sequence[Observation]) -> Mapping[str, float]:
    """How often each domain was met."""
    return {domain: float(n) for domain, n in Counter(o.domain for o in observations if o.routed).items()}
