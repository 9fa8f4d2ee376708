"""What a USD is worth in quality, so that in the long run a request costs on average what the budget allows.

The dual variable of `maximise quality subject to mean cost <= budget` (Lagrange): found on the domains as they are met,
then corrected by what was really spent since.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from catena.router.core.choice import Candidate, Taste, cautious
from catena.router.core.confidence import Array

_HIGHEST, _STEPS = 1e7, 60
_GAIN, _MEMORY = 2.0, 200.0
"""How hard spending beyond the budget pushes, and the requests over which it is averaged."""


class Offer(NamedTuple):
    """How often a domain is met, and the quality and USD of each plan there."""

    share: float
    quality: Array
    usd: Array


def shadow_price(
    tables: Mapping[str, Sequence[Candidate]], mix: Mapping[str, float], taste: Taste, budget_usd: float
) -> float:
    """The least quality per USD at which the best plans of the domains, met as in `mix`, cost the budget on average.

    0 where the budget binds nothing; very high where even the cheapest plans exceed it.
    """
    return least_price([_offer(mix.get(domain, 0.0), table, taste) for domain, table in tables.items()], budget_usd)


def least_price(offers: Sequence[Offer], budget_usd: float) -> float:
    """The same for plain figures."""
    whole = sum(offer.share for offer in offers)
    if budget_usd <= 0.0 or whole <= 0.0:
        return 0.0

    def spent(price: float) -> float:
        return sum(share * float(usd[int(np.argmax(q - price * usd))]) for share, q, usd in offers) / whole

    if spent(0.0) <= budget_usd:
        return 0.0
    low, high = math.log(1e-3), math.log(_HIGHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if spent(math.exp(middle)) > budget_usd else (low, middle)
    return math.exp(high)


def correction(spent_usd: Sequence[float], budget_usd: float) -> float:
    """Factor on the price by what the latest requests cost beside the budget: above 1 when they cost more."""
    if not spent_usd or budget_usd <= 0.0:
        return 1.0
    ages: Array = np.arange(len(spent_usd), dtype=np.float64)[::-1]
    weights = np.exp(-ages / _MEMORY)
    # A few requests say little: the budget itself stands in for those that are missing.
    mean = (float(weights @ np.asarray(spent_usd)) + 0.5 * _MEMORY * budget_usd) / (weights.sum() + 0.5 * _MEMORY)
    return math.exp(min(max(_GAIN * (mean / budget_usd - 1.0), -1.5), 1.5))


def _offer(share: float, table: Sequence[Candidate], taste: Taste) -> Offer:
    quality, usd = [cautious(c, taste) for c in table], [c.prediction.cost_usd.mean for c in table]
    return Offer(share, np.array(quality), np.array(usd))
