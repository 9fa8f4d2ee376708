"""How many of a tenant's requests are of none of its domains, by what the classifier said of the latest.

A probability holds for a mixture. The classifier is calibrated where every other request is a stranger; where hardly
any is, it is far too careful. Expectation maximisation finds the share from answers that nobody labelled, and Bayes'
rule moves each probability to it (Saerens, Latinne and Decaestecker 2002, Neural Computation 14, sections 2.2, 2.3).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from catena.router.core.domains import Domain, DomainScore
from catena.router.core.lexicon import Array
from catena.router.core.observation import Observation

EVEN = 0.5
"""The share for which the classifier is calibrated, and that is reckoned with until requests tell another."""
LATEST = 500
_PRIOR = 20.0
"""Requests that the even share counts as."""
_ROUNDS, _LEAST = 100, 1e-9


def strangeness(scores: Sequence[DomainScore]) -> float:
    """Probability of none of the domains, as the classifier has it; never 0, which is said where it was not asked."""
    return max(1.0 - sum(score.probability for score in scores), _LEAST)


def share_of(seen: Sequence[Observation], domains: Sequence[Domain]) -> float:
    """Share of strangers among the latest requests whose text was looked at since any of the domains was put."""
    since_s = max((domain.updated_s for domain in domains), default=0.0)
    told = [o.plan.strangeness for o in seen if o.routed and o.plan.strangeness > 0.0 and o.time_s >= since_s]
    return estimate(told[-LATEST:], len(domains))


def estimate(strange: Sequence[float], domains: int) -> float:
    """The share of strangers that makes these strangenesses likeliest, drawn towards the even one.

    What a stranger looks like was learned from so many domains, each left out in turn: few tell little, however many
    requests there are.
    """
    odds = np.array(strange) / np.maximum(1.0 - np.array(strange), _LEAST)
    share, even = EVEN, _PRIOR + len(odds) / max(domains, 1)
    for _ in range(_ROUNDS):
        own = odds * share / (odds * share + 1.0 - share)
        share = (float(own.sum()) + EVEN * even) / (len(odds) + even)
    return share


def reckoned(scores: Sequence[DomainScore], share: float) -> list[DomainScore]:
    """The scores where that share of all requests are strangers; their order stays."""
    factor = float(moved(np.array(strangeness(scores)), share))
    return [replace(score, probability=score.probability * factor) for score in scores]


def moved(strange: Array, share: float) -> Array:
    """By what the probabilities of domains are multiplied where that share are strangers; `strange` of each request."""
    factor: Array = (1.0 - share) / ((1.0 - strange) * (1.0 - share) + strange * share)
    return factor
