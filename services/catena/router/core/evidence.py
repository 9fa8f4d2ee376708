"""Which models answered the same request, what each said, and which of them were right: one row an execution.

Plans that never ran can be replayed on it (`replay`), and what a request's features say of its difficulty is learned
from it (`outcomes`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catena.plan.model import Shape
from catena.router.core.confidence import Array
from catena.router.core.features import NAMES
from catena.router.core.observation import ALONE, Fact, Observation, facts_of

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """n executions, m models.

    `right` (n, m): 1, 0, NaN where nobody knows; `said` (n, m): equal where the answers are, -1 where there is none;
    `confidence`, `read`, `written`, `taken` (n, m): NaN where unmeasured, tokens, milliseconds; `features` (n, f), zero
    where none were told. `chars`: characters sent, 0: unknown. `domains` numbers the names; `weights` fade with age.
    `whole` (n): every call was made, whatever the others said.
    """

    models: Mapping[str, int]
    names: tuple[str, ...]
    right: Array
    said: Numbers
    confidence: Array
    read: Array
    written: Array
    taken: Array
    chars: Array
    features: Array
    featured: NDArray[np.bool_]
    domains: Numbers
    weights: Array
    whole: NDArray[np.bool_]

    def column(self, model: str) -> int | None:
        """The place of a model; None when it never answered."""
        return self.models.get(model)


def evidence_of(observations: Sequence[Observation], half_life: int, stale: Sequence[frozenset[str]] = ()) -> Evidence:
    """The table of these executions, oldest first; the newest weighs 1. Those that answered nothing are left out.

    `stale`: by execution the models that have changed since, whose answers are left out.
    """
    gone = list(stale) or [frozenset[str]()] * len(observations)
    paired = reversed(list(zip(observations, gone, strict=True)))
    told = [(age, o, _answers(o, changed)) for age, (o, changed) in enumerate(paired)]
    told = [(age, o, answers) for age, o, answers in reversed(told) if answers]
    models = {name: n for n, name in enumerate(sorted({name for _, _, answers in told for name in answers}))}
    names = tuple(sorted({o.domain for _, o, _ in told}))
    shape = (len(told), len(models))
    right, confidence, read, written, taken = (np.full(shape, np.nan) for _ in range(5))
    said = np.full(shape, -1, np.int64)
    features = np.zeros((len(told), len(NAMES)))
    for row, (_, o, answers) in enumerate(told):
        digests: dict[str, int] = {}
        for model, fact in answers.items():
            place, stage = models[model], fact.stage
            right[row, place] = np.nan if fact.label is None else fact.label
            said[row, place] = digests.setdefault(stage.digest, len(digests)) if stage.digest else -1
            confidence[row, place] = stage.confidence or np.nan
            taken[row, place] = stage.duration_ms
            if stage.input_tokens + stage.output_tokens:
                read[row, place], written[row, place] = stage.input_tokens, stage.output_tokens
        features[row, : len(o.plan.features)] = o.plan.features[: len(NAMES)]
    places = {name: n for n, name in enumerate(names)}
    return Evidence(
        models=models,
        names=names,
        right=right,
        said=said,
        confidence=confidence,
        read=read,
        written=written,
        taken=taken,
        chars=np.array([float(o.chars) for _, o, _ in told]),
        features=features,
        featured=np.array([bool(o.plan.features) for _, o, _ in told], bool),
        domains=np.array([places[o.domain] for _, o, _ in told], np.int64),
        weights=np.array([0.5 ** (age / half_life) for age, _, _ in told]),
        whole=np.array([_is_whole(o) for _, o, _ in told], bool),
    )


def _answers(observation: Observation, outdated: Collection[str]) -> dict[str, Fact]:
    """By model what its answer showed; the first call of each counts."""
    answers: dict[str, Fact] = {}
    for fact in facts_of(observation, outdated):
        stage = fact.stage
        if fact.mode in ALONE and not (stage.failed or fact.outdated) and (stage.digest or fact.label is not None):
            answers.setdefault(stage.model, fact)
    return answers


def _is_whole(observation: Observation) -> bool:
    """Whether the calls were made whatever came of the first ones: what a gate let through tells of hard ones only."""
    return observation.plan.shape is not Shape.CASCADE
