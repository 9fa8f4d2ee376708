"""What one execution teaches: which calls were made, how they ended, and which of them the verdict concerns."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from catena.plan.model import Plan, Role, Shape, Stage

TRUSTED = ("feedback", "exact", "tests", "judge")
"""Sources of scores that say whether an answer is right, best first; a failed `schema` check says that it is not."""


class Mode(StrEnum):
    """What a model is asked for; the same model writes other lengths, and other answers, in each."""

    PLAIN = "plain"
    DRAFT = "draft"
    REFINE = "refine"
    SEARCH = "search"
    SAMPLE = "sample"
    SPECULATE = "speculate"
    VERIFY = "verify"
    JUDGE = "judge"


ALONE = frozenset({Mode.PLAIN, Mode.VERIFY})
"""Modes whose answer is what the model alone would have said."""

QUALITY_OF = {mode: mode for mode in Mode} | {
    Mode.VERIFY: Mode.PLAIN,
    Mode.SPECULATE: Mode.PLAIN,
    Mode.REFINE: Mode.PLAIN,
    Mode.SEARCH: Mode.PLAIN,
    Mode.SAMPLE: Mode.PLAIN,
    Mode.JUDGE: Mode.PLAIN,
}
"""The mode whose accuracy a call starts from; what refining, searching or warmth changes is composed and corrected."""

_MODES = {
    (Shape.DRAFT_REFINE, Role.DRAFT): Mode.DRAFT,
    (Shape.DRAFT_REFINE, Role.MAIN): Mode.REFINE,
    (Shape.SEARCH, Role.MAIN): Mode.SEARCH,
    (Shape.SPECULATIVE, Role.DRAFT): Mode.SPECULATE,
    (Shape.SPECULATIVE, Role.MAIN): Mode.VERIFY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutcome:
    """All calls of one stage together. `confidence` 0: not measured; `digest` of the normalised answer, or empty.

    `features`: what the answer looks like (`catena.plan.answer`). `score`: 0 to 1, of this very answer, from who judged
    each of several; None: nobody did. `first_token_ms` of its calls, 0: unknown; `load_ms` of that went on loading.
    """

    name: str
    role: Role
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    duration_ms: float = 0.0
    kept: bool = True
    failed: bool = False
    confidence: float = 0.0
    digest: str = ""
    features: tuple[float, ...] = ()
    score: float | None = None
    first_token_ms: float = 0.0
    load_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One execution. `plan` lacks its instructions, hence `configuration_id` beside it.

    `routed`: this router chose or dressed the plan, so that `domain` (empty: none was sure) is its own finding.
    `cancelled`: by whoever asked, or it was too long for its models: it tells nothing of them.
    `chars`: length of what was sent, 0: unknown. `score`: 0 to 1; None: nobody judged. `objective` and caps: as the
    request named them, empty and 0 where it did not.
    """

    execution_id: str
    time_s: float
    configuration_id: str
    plan: Plan
    domain: str = ""
    routed: bool = False
    chars: int = 0
    stages: tuple[StageOutcome, ...] = ()
    cost_usd: float = 0.0
    latency_ms: float = 0.0
    succeeded: bool = True
    cancelled: bool = False
    cached: bool = False
    score: float | None = None
    objective: str = ""
    max_cost_usd: float = 0.0
    max_latency_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What a call showed: `label` 1 right, 0 wrong, None unknown; `inferred`: because it differs from a right one.

    `outdated`: its model has changed since, so that nothing is said of what it is now.
    """

    stage: StageOutcome
    mode: Mode
    label: float | None = None
    inferred: bool = False
    outdated: bool = False


def is_judged(observation: Observation) -> bool:
    """Whether anybody said how good its answer, or one of its calls, is."""
    return observation.score is not None or any(stage.score is not None for stage in observation.stages)


def mode_of(shape: Shape, stage: Stage) -> Mode:
    """What this stage of such a shape asks its model for; a warm voter's answer says little of the model itself."""
    if stage.role is Role.JUDGE:
        return Mode.JUDGE
    if stage.role is Role.MEMBER and (stage.temperature or 0.0) > 0.0:
        return Mode.SAMPLE
    return _MODES.get((shape, stage.role), Mode.PLAIN)


def family_of(plan: Plan) -> str:
    """The same for plans that differ in settings and wording alone, for example in a cascade's threshold."""
    return f"{plan.shape}({' '.join(f'{stage.role}={stage.model}' for stage in plan.stages)})"


def facts_of(observation: Observation, outdated: Collection[str] = ()) -> list[Fact]:
    """Every call with what the execution's score says of it; nothing of `outdated` models."""
    shape, score = observation.plan.shape, observation.score
    spoken = None if score is None else answer_of(shape, observation.stages)
    planned = {stage.name: stage for stage in observation.plan.stages}
    facts: list[Fact] = []
    for stage in observation.stages:
        known = planned.get(stage.name) or Stage(name=stage.name, role=stage.role, model=stage.model)
        mode = mode_of(shape, known)
        fact = Fact(stage=stage, mode=mode, label=stage.score)
        if (
            stage.score is None
            and spoken is not None
            and score is not None
            and not stage.failed
            and mode is not Mode.JUDGE
        ):
            if stage is spoken or (stage.digest and stage.digest == spoken.digest):
                fact = Fact(stage=stage, mode=mode, label=score)
            elif score == 1.0 and stage.digest and spoken.digest:
                fact = Fact(stage=stage, mode=mode, label=0.0, inferred=True)
        facts.append(Fact(stage=stage, mode=mode, outdated=True) if stage.model in outdated else fact)
    return facts


def answer_of(shape: Shape, stages: Sequence[StageOutcome]) -> StageOutcome | None:
    """The stage whose words the answer is; None when that cannot be told."""
    alive = [stage for stage in stages if not stage.failed and stage.role is not Role.JUDGE]
    if shape is Shape.CONSENSUS:
        return _elected([stage for stage in alive if stage.role is Role.MEMBER])
    mains = [stage for stage in alive if stage.role is Role.MAIN]
    if mains:
        return mains[-1]
    return alive[-1] if alive and shape in (Shape.CASCADE, Shape.SEQUENTIAL) else None


def agreement(observation: Observation) -> tuple[int, int]:
    """Pairs of answers to the same question that were the same, and pairs in all."""
    digests = [s.digest for s in observation.stages if s.digest and not s.failed]
    pairs = len(digests) * (len(digests) - 1) // 2
    same = sum(count * (count - 1) // 2 for count in Counter(digests).values())
    return same, pairs


def _elected(members: Sequence[StageOutcome]) -> StageOutcome | None:
    kept = [member for member in members if member.kept and member.digest]
    counts = Counter(member.digest for member in kept).most_common(2)
    if not counts or (len(counts) > 1 and (counts[0][1] < 2 or counts[0][1] == counts[1][1])):
        return None
    return next(member for member in kept if member.digest == counts[0][0])
