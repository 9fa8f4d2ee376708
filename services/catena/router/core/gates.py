"""How a model's answers fare as a cascade's first ones, at any threshold, from the confidences it was seen with."""

from dataclasses import dataclass

import numpy as np

from catena.plan.expect import Gate
from catena.router.core.confidence import Array, shift_to
from catena.router.core.skills import Skill

_FEW_CONFIDENCES, _BORROWED = 8, 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What is expected of a model's first answers in a domain; without confidences, only the share that was kept."""

    confidences: Array
    weights: Array
    right: Array
    let_through: float
    blind: Gate


def opening(skill: Skill, domain: str) -> Opening | None:
    """What to expect at any threshold; None when nothing was seen that tells."""
    confidences, weights = _confidences(skill, domain)
    if not len(confidences) and skill.kept is None:
        return None
    accuracy = skill.quality.at(domain).mean
    kept = skill.kept.at(domain).mean if skill.kept is not None else accuracy
    shift = shift_to(skill.curve, confidences, weights, accuracy) if len(confidences) else 0.0
    return Opening(
        confidences=confidences,
        weights=weights,
        right=skill.curve.right(confidences, shift),
        let_through=1.0 - (skill.overruled.at(domain).mean if skill.overruled is not None else 0.0),
        blind=Gate(kept=kept, right_if_kept=accuracy + 0.5 * (1.0 - kept) * (1.0 - accuracy)),
    )


def gate(expected: Opening, threshold: float) -> Gate:
    """Share kept and rate of right ones among them."""
    if not len(expected.confidences):
        return expected.blind
    passes = expected.confidences >= threshold
    kept = float(expected.weights[passes].sum())
    chance = float(expected.weights[passes] @ expected.right[passes]) / kept if kept else 0.0
    return Gate(kept=expected.let_through * kept / float(expected.weights.sum()), right_if_kept=chance)


def _confidences(skill: Skill, domain: str) -> tuple[Array, Array]:
    """Confidences to expect in this domain; where few were seen, those of the others stand in with less weight."""
    own = skill.confidences.get(domain, np.empty(0))
    if len(own) >= _FEW_CONFIDENCES or not skill.confidences:
        return own, np.ones(len(own))
    others = [values for name, values in skill.confidences.items() if name != domain]
    rest = np.concatenate(others) if others else np.empty(0)
    borrowed = np.full(len(rest), _BORROWED / max(len(rest), 1))
    return np.concatenate([own, rest]), np.concatenate([np.ones(len(own)), borrowed])
