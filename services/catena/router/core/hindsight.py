"""Logged requests as the router would weigh them now, without curiosity: the policies that the log can value.

Each request is weighed by what the rest of the log teaches, its own fold left out: a plan that was lucky on it must not
be chosen, nor predicted to do well, because of that luck (cross-fitting; see `evaluation`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np

from catena.plan.model import Plan, Prediction
from catena.router.core.ask import Ask
from catena.router.core.beforehand import Kinds
from catena.router.core.board import COARSE, Board, bucket, weigh
from catena.router.core.choice import Candidate, Taste, prefer, rank, reject
from catena.router.core.confidence import Array
from catena.router.core.decision import CLOSELY
from catena.router.core.evaluation import LEAST, Policy, choices, score_of, truncated
from catena.router.core.habits import effective
from catena.router.core.knowledge import Knowledge
from catena.router.core.observation import Observation
from catena.router.core.outlook import Length
from catena.router.core.tuning import Gains, Weights

MOST_VALUED = 1000
"""The latest judged requests on which weights are tried; each is weighed anew under all of them."""
FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known without one fold of the log. `plans`: those to choose from by specialist.

    What was predicted once is remembered: for many policies on the same log this is made once.
    """

    knowledge: Knowledge
    kinds: Kinds
    plans: Mapping[str, Sequence[Plan]]
    tables: dict[tuple[str, int], list[Candidate]] = field(default_factory=dict)
    predictions: dict[tuple[str, str], Prediction] = field(default_factory=dict)

    def policy(self, taste: Taste, ask: Ask) -> Policy:
        """What this taste chooses under the caps of `ask` and the request's own; its objective where `ask` has none."""
        ranked: dict[tuple[str, int, Ask], list[Candidate]] = {}

        def choose(one: Observation) -> Plan | None:
            bound = _bound(one, ask)
            wanted = replace(taste, objective=bound.objective or taste.objective)
            key = one.domain, bucket(one.chars, COARSE), bound
            if key not in ranked:
                ranked[key] = rank([reject(c, bound) for c in self.table(one)], wanted)
            closely = [
                reject(replace(c, prediction=self.foretell(one, c.plan), rejected=""), bound)
                for c in ranked[key][:CLOSELY]
                if not c.rejected
            ]
            best = [*rank(closely, wanted, ranked[key]), *ranked[key][len(closely) :]]
            specialist = self.kinds.specialists.get(one.domain, "")
            fitting = [c for c in prefer(best, specialist, taste) if not c.rejected]
            return fitting[0].plan if fitting else None

        return choose

    def table(self, one: Observation) -> list[Candidate]:
        """Every plan with what is expected of it for such requests."""
        key = one.domain, bucket(one.chars, COARSE)
        if key not in self.tables:
            plans = self.plans.get(self.kinds.specialists.get(one.domain, ""), self.plans[""])
            self.tables[key] = weigh(plans, self.knowledge, one.domain, Length(chars=key[1]))
        return self.tables[key]

    def foretell(self, one: Observation, plan: Plan) -> Prediction:
        """What is expected of the plan for this very request."""
        key = one.execution_id, plan.configuration_id
        if key not in self.predictions:
            shifts = self.knowledge.outcome.shifts(one.plan.features)
            self.predictions[key] = self.knowledge.predict(plan, one.domain, Length(chars=one.chars), shifts)
        return self.predictions[key]


@dataclass(frozen=True, slots=True)
class Hindsight:
    """A log, each of whose executions is seen with the view that its own fold did not teach."""

    views: Sequence[View]

    def policy(self, taste: Taste, ask: Ask) -> Policy:
        """What this taste chooses under the caps of `ask`."""
        policies = [view.policy(taste, ask) for view in self.views]
        return lambda one: policies[fold_of(one)](one)

    def foretell(self, one: Observation, plan: Plan) -> Prediction:
        """What is expected of the plan for this very request."""
        return self.views[fold_of(one)].foretell(one, plan)

    def gains(self, logged: Sequence[Observation], now: Taste, configured: Weights) -> Gains:
        """By weights: how much more of the configured utility they would have realised than `now`, doubly robust.

        Nothing is told of weights under which too few requests would have been answered as they were.
        """
        now = replace(now, objective="balanced")
        policy = self.policy(now, _NO_CAPS)
        told = [one for one in choices(logged) if score_of(one) is not None and one.objective in ("", "balanced")]
        # Whether any plan keeps a request's caps hangs on no weight.
        judged = [one for one in told[-MOST_VALUED:] if policy(one) is not None]
        present = self._realised(judged, now, configured)[0]

        def gained(weights: Weights) -> Array:
            would, alike = self._realised(judged, replace(now, weights=weights), configured)
            return would - present if alike >= LEAST else np.empty(0)

        return gained

    def _realised(self, judged: Sequence[Observation], taste: Taste, configured: Weights) -> tuple[Array, float]:
        """The configured utility of what the taste chooses, by request, and the independent runs behind it."""
        policy = self.policy(taste, _NO_CAPS)
        expected, seen, weights = [], [], []
        for one in judged:
            plan = policy(one)
            assert plan is not None, "only requests for which there is a plan are valued"
            told = self.foretell(one, plan)
            usd, ms = self._scales(one)
            expected.append(
                _utility(configured, told.quality.mean, told.cost_usd.mean / usd, told.latency_ms.mean / ms)
            )
            seen.append(_utility(configured, score_of(one) or 0.0, one.cost_usd / usd, one.latency_ms / ms))
            weights.append(1.0 / one.plan.propensity if plan.configuration_id == one.configuration_id else 0.0)
        counted = truncated(weights)
        return np.array(expected) + counted * (np.array(seen) - np.array(expected)), effective(counted)

    def _scales(self, one: Observation) -> tuple[float, float]:
        """The dearest and the slowest plan's cost and latency, by which `balanced` measures them."""
        told = [c.prediction for c in self.views[fold_of(one)].table(one)]
        return max(t.cost_usd.mean for t in told) or 1.0, max(t.latency_ms.mean for t in told) or 1.0


_NO_CAPS = Ask(text="", chars=0)


def hindsight_of(board: Board, logged: Sequence[Observation], plans: Sequence[Plan] | None = None) -> Hindsight:
    """A view for each fold of the log; `plans`: the only ones to choose from, None: all that `auto` would have."""
    rests = [[one for one in logged if fold_of(one) != fold] for fold in range(FOLDS)]
    return Hindsight([_view(board.had_seen(rest), plans) for rest in rests])


def _view(board: Board, plans: Sequence[Plan] | None) -> View:
    if plans is not None:
        return View(knowledge=board.knowledge, kinds=Kinds(), plans={"": plans})
    told = {one: board.free_plans(one) for one in ("", *board.kinds.specialists.values())}
    return View(knowledge=board.knowledge, kinds=board.kinds, plans=told)


def _bound(one: Observation, ask: Ask) -> Ask:
    """The objective of `ask`, else of the logged request, and the tighter caps of both."""
    return Ask(
        text="",
        chars=0,
        objective=ask.objective or one.objective,
        max_cost_usd=_tighter(ask.max_cost_usd, one.max_cost_usd),
        max_latency_ms=_tighter(ask.max_latency_ms, one.max_latency_ms),
    )


def _tighter(one: float, other: float) -> float:
    """The lower of two caps, of which 0 is none."""
    return min(one, other) if one and other else one or other


def fold_of(one: Observation) -> int:
    """The part of the log that an execution belongs to, the same on every replica."""
    return crc32(one.execution_id.encode()) % FOLDS


def _utility(weights: Weights, quality: float, cost: float, latency: float) -> float:
    return weights["quality"] * quality - weights["cost"] * cost - weights["latency"] * latency
