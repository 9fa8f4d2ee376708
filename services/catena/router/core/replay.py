"""What a plan would have done on requests whose calls were all seen.

Several models' answers to one request tell how often they agree, how often an agreement is right, and how the stronger
one does on the rest.

Errors of models depend on each other by kinds of request and by pairs; no single number says that as the rows do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from catena.plan.model import Plan, Role, Shape
from catena.router.core.confidence import Array
from catena.router.core.evidence import Evidence, Numbers

LEAST_ROWS = 20.0
PRIOR_ROWS = 20.0
"""Rows below which a replay says nothing; rows that what was composed is worth."""
_MOST_WORTH = 400.0
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Rows that could be replayed: `right` 1 or 0, `kept`: the first answers stood; both with the row's domain.

    `read`, `written` (n,): the main model's tokens, NaN where they are not told or there is none.
    """

    right: Array
    kept: Array
    domains: Numbers
    weights: Array
    names: tuple[str, ...]
    read: Array
    written: Array

    @property
    def rows(self) -> float:
        """How many, age taken off."""
        return float(self.weights.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """A share over all, and by domain drawn to it as far as the domains are alike."""

    overall: float
    by_domain: dict[str, float] = field(default_factory=dict)
    rows: float = 0.0
    rows_in: dict[str, float] = field(default_factory=dict)

    def at(self, domain: str) -> float:
        """In this domain, or overall."""
        return self.by_domain.get(domain, self.overall)


def replay(plan: Plan, evidence: Evidence) -> Replay | None:
    """The plan on every row that shows all its calls; None when it is of another kind or too few rows do."""
    if plan.shape is Shape.CASCADE:
        found = _cascade(plan, evidence)
    elif plan.shape is Shape.CONSENSUS and plan.settings.vote == "majority" and not plan.of(Role.JUDGE):
        found = _majority(plan, evidence)
    else:
        return None
    if found is None:
        return None
    right, kept, seen = found
    if float(evidence.weights[seen].sum()) < LEAST_ROWS:
        return None
    main = evidence.column(plan.main_model)
    assert main is not None
    return Replay(
        read=evidence.read[seen, main],
        written=evidence.written[seen, main],
        right=right[seen],
        kept=kept[seen].astype(np.float64),
        domains=evidence.domains[seen],
        weights=evidence.weights[seen],
        names=evidence.names,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A plan's calls: `first`, columns of those made at once, `later`, of those made where these did not settle it.

    By row: whether they `settled` it, whether it was `seen` what all of them did, `right`: 1, 0, NaN: nobody knows.
    """

    first: list[int]
    later: list[int]
    settled: Flags
    seen: Flags
    right: Array


def asked(plan: Plan, evidence: Evidence) -> Asked | None:
    """What the rows tell of a plan's calls; None for plans of which they cannot."""
    nothing = np.ones(len(evidence.weights), bool)
    if plan.shape is Shape.SEQUENTIAL:
        alone = _columns(evidence, [plan.main_model])
        if alone is None:
            return None
        return Asked(first=alone, later=[], settled=nothing, seen=evidence.whole, right=evidence.right[:, alone[0]])
    if plan.shape is Shape.CASCADE:
        found, role = _cascade(plan, evidence), Role.FAST
    elif plan.shape is Shape.CONSENSUS and not plan.of(Role.JUDGE):
        found, role = _majority(plan, evidence), Role.MEMBER
    else:
        return None
    first = _columns(evidence, [stage.model for stage in plan.of(role)])
    if found is None or first is None:
        return None
    right, kept, seen = found
    later = _columns(evidence, [stage.model for stage in plan.of(Role.MAIN)]) or []
    return Asked(first=first, later=later, settled=kept if later else nothing, seen=seen, right=right)


def shares(values: Array, replayed: Replay, prior: float) -> Shares:
    """The mean of `values`, one a row, overall drawn to `prior` and by domain drawn to the overall one.

    How far is told by how much the domains differ beyond chance (DerSimonian and Laird, 1986).
    """
    w = replayed.weights
    overall = (float(w @ values) + PRIOR_ROWS * prior) / (float(w.sum()) + PRIOR_ROWS)
    count = len(replayed.names)
    rows: Array = np.bincount(replayed.domains, w, count).astype(np.float64)
    means = np.bincount(replayed.domains, w * values, count) / np.maximum(rows, 1e-9)
    noise = float(w @ (values - means[replayed.domains]) ** 2) / max(float(w.sum()) - count, 1.0)
    worth = _worth(means[rows > 0.0], rows[rows > 0.0], max(noise, 1e-6))
    shrunk = (rows * means + worth * overall) / (rows + worth)
    met = [n for n in range(count) if rows[n] > 0.0]
    return Shares(
        overall=overall,
        by_domain={replayed.names[n]: float(shrunk[n]) for n in met},
        rows=float(w.sum()),
        rows_in={replayed.names[n]: float(rows[n]) for n in met},
    )


def surplus(tokens: Array, replayed: Replay) -> float:
    """How many times its usual tokens the main model needs on what the first answers did not settle, the harder ones.

    1 where nothing tells.
    """
    told = ~np.isnan(tokens)
    passed = replayed.weights[told] * (1.0 - replayed.kept[told])
    usual = float(replayed.weights[told] @ tokens[told]) / max(float(replayed.weights[told].sum()), 1e-9)
    if usual <= 0.0:
        return 1.0
    found = (float(passed @ tokens[told]) + PRIOR_ROWS * usual) / (float(passed.sum()) + PRIOR_ROWS)
    return found / usual


def _worth(means: Array, rows: Array, noise: float) -> float:
    """Rows that the mean over domains is worth to each of them."""
    if len(means) < 2:
        return PRIOR_ROWS
    whole = float(rows.sum())
    centre = float(rows @ means) / whole
    excess = float(rows @ (means - centre) ** 2) - (len(means) - 1) * noise
    between = excess / (whole - float(rows @ rows) / whole)
    return min(max(noise / between, PRIOR_ROWS), _MOST_WORTH) if between > 0.0 else _MOST_WORTH


def _columns(evidence: Evidence, models: Sequence[str]) -> list[int] | None:
    places = [evidence.column(model) for model in models]
    return [place for place in places if place is not None] if None not in places else None


def _cascade(plan: Plan, evidence: Evidence) -> tuple[Array, Flags, Flags] | None:
    fast = _columns(evidence, [stage.model for stage in plan.of(Role.FAST)])
    main = evidence.column(plan.main_model)
    if fast is None or main is None or "verifier" in plan.settings.checks:
        return None
    if "agreement" not in plan.settings.checks or len(fast) < 2:
        return None
    winner, votes, tied = _elect(evidence.said[:, fast])
    kept = (votes >= 2) & ~tied & (votes >= plan.settings.threshold * len(fast))
    rows = np.arange(len(votes))
    right = np.where(kept, evidence.right[:, fast][rows, winner], evidence.right[:, main])
    return right, kept, evidence.whole & ~np.isnan(evidence.right[:, [*fast, main]]).any(axis=1)


def _majority(plan: Plan, evidence: Evidence) -> tuple[Array, Flags, Flags] | None:
    members = _columns(evidence, [stage.model for stage in plan.of(Role.MEMBER)])
    if members is None or len(members) < 2:
        return None
    winner, votes, _ = _elect(evidence.said[:, members])
    right = evidence.right[:, members]
    seen = evidence.whole & ~np.isnan(right).any(axis=1)
    return right[np.arange(len(right)), winner], votes * 2 > len(members), seen


def _elect(said: Numbers) -> tuple[Numbers, Numbers, Flags]:
    """(n, k) answers to the place that speaks for most, ties to the first, the votes for it, and whether it is tied."""
    same = (said[:, :, None] == said[:, None, :]) & (said != -1)[:, :, None]
    votes = same.sum(axis=2)
    winner = votes.argmax(axis=1)
    rows = np.arange(len(said))
    most = votes[rows, winner]
    tied = ((votes == most[:, None]) & ~same[rows, winner]).any(axis=1)
    return winner, most, tied
