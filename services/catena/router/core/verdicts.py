"""Whose word counts on whether an answer was right."""

from collections.abc import Sequence
from dataclasses import replace

from catena.router.core.observation import Observation
from catena.router.core.ports import Verdict

_WEIGHTS = {"feedback": 4, "exact": 3, "tests": 3, "judge": 2, "schema": 1}
FEEDBACK = "feedback"


def verdict_of(execution_id: str, scores: Sequence[tuple[float, str]]) -> Verdict | None:
    """What verifiers' (value, source) pairs say together; None when none of them speaks of rightness.

    A schema that is kept says nothing of whether the answer is right; one that is broken says that it is not.
    """
    telling = [
        (value, source) for value, source in scores if source in _WEIGHTS and (source != "schema" or value <= 0.0)
    ]
    if not telling:
        return None
    value, source = max(telling, key=lambda told: (_WEIGHTS[told[1]], -told[0]))
    return Verdict(execution_id=execution_id, score=min(max(value, 0.0), 1.0), source=source)


def outweighs(source: str, known: str) -> bool:
    """Whether a verdict of `source` replaces one of `known` (empty: there was none)."""
    return _WEIGHTS.get(source, 0) >= _WEIGHTS.get(known, 0)


def joined(observation: Observation, verdict: Verdict | None) -> Observation:
    """The observation with its verdict; a task named with it becomes the domain where none was found."""
    if verdict is None:
        return observation
    named = bool(verdict.task) and not observation.domain
    return replace(
        observation,
        score=verdict.score,
        domain=verdict.task if named else observation.domain,
        routed=observation.routed or named,
    )
