"""How good a model is taken to be before its judged answers tell: by what it did longer ago, else by its price.

What a price says is learned from the models that were judged: where the dear ones disappoint, less is hoped of those
that were never tried. What a model did as long as the window reaches is its prior, so that one that is no longer asked
is remembered as it was; only how sure one may be of it fades.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from catena.router.core.catalogue import Catalogue

BEFORE_WORST, BEFORE_SPAN = 0.55, 0.25
"""Accuracy of the cheapest model before anything is known, and what the dearest has more: price is all there is."""
SPECIALIST_BEFORE = 0.85
"""Accuracy of a specialist in its domain beforehand: it passed an evaluation to get there."""
BETWEEN = 0.2
"""Deviation of models around what their price says, and of that beforehand; as on most boards of many models."""
_LEAST, _MOST = 0.05, 0.95
NO_CHANGES: Mapping[str, float] = {}
_RANK_SD = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """What is known of the domains: their specialists by name, and which need memory."""

    specialists: Mapping[str, str] = field(default_factory=dict)
    needs_memory: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Beforehand:
    """Accuracy of the cheapest model, what the dearest has more, and of models that were judged what they did.

    `changed`: those that are no longer what passed an evaluation.
    """

    worst: float = BEFORE_WORST
    span: float = BEFORE_SPAN
    standing: Mapping[str, float] = field(default_factory=dict)
    changed: Collection[str] = ()

    def of(self, model: str, domain: str, kinds: Kinds, catalogue: Catalogue) -> float:
        """Accuracy assumed of a model: as the specialist of its own domain, by what it did, or by its price."""
        if domain and kinds.specialists.get(domain) == model and model not in self.changed:
            return SPECIALIST_BEFORE
        known = self.standing.get(model)
        return self.by_price(catalogue.price_rank(model)) if known is None else known

    def by_price(self, rank: float) -> float:
        """Accuracy of a model that stands at `rank` between the cheapest, 0, and the dearest, 1."""
        return min(max(self.worst + self.span * rank, _LEAST), _MOST)


def learn_beforehand(
    judged: Iterable[tuple[str, float, float]], catalogue: Catalogue, changed: Mapping[str, float] = NO_CHANGES
) -> Beforehand:
    """From each judged model's name, judged answers and share of right ones.

    Bayesian regression of accuracy on the rank of the price, models scattering around it (Gelman et al., Bayesian Data
    Analysis, 15); each model is then drawn to that line as far as its own answers are few. One that `changed` is drawn
    to how often it is taken to be right since: it no longer is what its price promised.
    """
    told = [(model, count, rate) for model, count, rate in judged if count > 0.0]
    if not told:
        return Beforehand(standing=dict(changed), changed=frozenset(changed))
    ranks = np.array([catalogue.price_rank(model) for model, _, _ in told])
    counts, rates = (np.array([one[place] for one in told]) for place in (1, 2))
    design = np.stack([np.ones(len(told)), ranks], axis=1)
    start = np.array([BEFORE_WORST, BEFORE_SPAN])
    usual = np.clip(design @ start, _LEAST, _MOST)
    precision = 1.0 / (BETWEEN**2 + usual * (1.0 - usual) / counts)
    whole = (design * precision[:, None]).T @ design + np.diag([BETWEEN**-2, _RANK_SD**-2])
    found = start + np.linalg.solve(whole, design.T @ (precision * (rates - design @ start)))
    line = Beforehand(worst=float(found[0]), span=float(found[1]))
    standing = dict(changed)
    for model, count, rate in told:
        usual_of = changed.get(model, line.by_price(catalogue.price_rank(model)))
        worth = max(usual_of * (1.0 - usual_of) / BETWEEN**2 - 1.0, 1.0)
        standing[model] = (count * rate + worth * usual_of) / (count + worth)
    return Beforehand(worst=line.worst, span=line.span, standing=standing, changed=frozenset(changed))
