"""Cascades that nobody configured: pairs of models whose agreement is worth believing, by what the evidence shows.

Only where the configured cascade rests on agreement, and only those that none of the others beats in both quality and
cost, or that are best in some domain: every plan more is one more that may look good by luck.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from catena.plan.model import Plan, Role, Shape, Stage
from catena.router.core.confidence import Array
from catena.router.core.knowledge import Knowledge
from catena.router.core.observation import Mode
from catena.router.core.replay import PRIOR_ROWS, replay

MOST_MODELS, MOST_MAINS, MOST_PLANS = 16, 3, 24
_SLACK, _MUCH_CHEAPER = 0.01, 0.9


def propose(plans: Sequence[Plan], knowledge: Knowledge) -> list[Plan]:
    """Variants of the configured cascade that ask two other models first; none without evidence on such pairs."""
    base = next((plan for plan in plans if _agrees(plan)), None)
    evidence = knowledge.evidence
    if base is None or evidence is None:
        return []
    known = [model for model in evidence.models if knowledge.catalogue.knows(model)]
    rated = sorted(known, key=lambda model: (-_quality(knowledge, model), model))[:MOST_MODELS]
    found: list[tuple[Plan, float, float]] = []
    for first, second in combinations(rated, 2):
        for main in [model for model in rated[: MOST_MAINS + 2] if model not in (first, second)][:MOST_MAINS]:
            plan = _with(base, first, second, main, knowledge)
            replayed = replay(plan, evidence)
            if replayed is not None:
                w = replayed.weights / (replayed.rows + PRIOR_ROWS)
                asked = _usd(knowledge, first) + _usd(knowledge, second)
                usd = asked + (1.0 - float(w @ replayed.kept)) * _usd(knowledge, main)
                found.append((plan, float(w @ replayed.right), usd))
    alone = [(_quality(knowledge, model), _usd(knowledge, model)) for model in known]
    return _front(found, alone)


def _front(found: Sequence[tuple[Plan, float, float]], alone: Sequence[tuple[float, float]]) -> list[Plan]:
    """Those that nothing, and no model `alone`, clearly beats: better for less, or as good for much less.

    Best quality for their cost first.
    """
    if not found:
        return []
    quality: Array = np.array([q for _, q, _ in found] + [q for q, _ in alone])
    usd: Array = np.array([cost for _, _, cost in found] + [cost for _, cost in alone])

    def beaten(q: float, cost: float) -> bool:
        clearly = (quality >= q + _SLACK) & (usd < cost)
        return bool((clearly | ((quality >= q) & (usd < _MUCH_CHEAPER * cost))).any())

    kept = [one for one in found if not beaten(one[1], one[2])]
    ahead = [q - float(quality[usd <= cost].max()) for _, q, cost in kept]
    order = sorted(range(len(kept)), key=lambda n: (-ahead[n], kept[n][2]))
    return [kept[n][0] for n in order[:MOST_PLANS]]


def _agrees(plan: Plan) -> bool:
    return plan.shape is Shape.CASCADE and "agreement" in plan.settings.checks and len(plan.of(Role.FAST)) == 2


def _with(base: Plan, first: str, second: str, main: str, knowledge: Knowledge) -> Plan:
    """The cascade with these models; the likelier of the first two speaks for both."""
    ahead, other = sorted((first, second), key=lambda model: (-_quality(knowledge, model), model))
    asked = iter((ahead, other))
    stages: list[Stage] = [
        replace(
            stage, model=next(asked) if stage.role is Role.FAST else main if stage.role is Role.MAIN else stage.model
        )
        for stage in base.stages
    ]
    return replace(base, stages=tuple(stages))


def _quality(knowledge: Knowledge, model: str) -> float:
    return knowledge.skill(model, Mode.PLAIN).quality.overall.mean


def _usd(knowledge: Knowledge, model: str) -> float:
    skill, card = knowledge.skill(model, Mode.PLAIN), knowledge.catalogue.card(model)
    return (skill.input_tokens.mean * card.price_input + skill.output_tokens.overall.mean * card.price_output) / 1e6
