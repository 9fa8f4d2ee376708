"""What a plan is: the stages of a strategy and its settings. Pure; the router prices plans, the executor runs them."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from catena.kit.errors import Invalid


class Shape(StrEnum):
    """How several model calls are chained."""

    SEQUENTIAL = "sequential"
    DRAFT_REFINE = "draft-refine"
    CASCADE = "cascade"
    CONSENSUS = "consensus"
    SPECULATIVE = "speculative"
    SEARCH = "search"


class Role(StrEnum):
    """What a stage is for within its shape."""

    MAIN = "main"
    DRAFT = "draft"
    FAST = "fast"
    MEMBER = "member"
    JUDGE = "judge"


ALIASES = {"parallel-consensus": Shape.CONSENSUS, "draft_refine": Shape.DRAFT_REFINE}


def parse_shape(name: str) -> Shape | None:
    """The shape that `name` means; None for `auto` and the empty name.

    Raises Invalid (`unknown_pipeline_type`) for anything else.
    """
    wanted = name.strip().lower()
    if wanted in ("", "auto"):
        return None
    if wanted in ALIASES:
        return ALIASES[wanted]
    try:
        return Shape(wanted)
    except ValueError:
        known = ", ".join(["auto", *Shape, *ALIASES])
        raise Invalid(f"unknown pipeline type {name!r}; use one of {known}", code="unknown_pipeline_type") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One model call. `timeout_s` 0 and `max_attempts` 0 mean the role's defaults.

    `prompt` is a template of what the user's last words become; empty: they stay as they are.
    """

    name: str
    role: Role
    model: str
    instruction: str = ""
    timeout_s: float = 0.0
    max_attempts: int = 0
    optional: bool = False
    temperature: float | None = None
    prompt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the shapes can be told; each reads only its own. Zero and empty mean what the proto says."""

    threshold: float = 0.5
    min_chars: int = 50
    checks: tuple[str, ...] = ("truncation", "refusal", "schema", "confidence")
    refusals: tuple[str, ...] = ()
    vote: str = "majority"
    weights: Mapping[str, float] = field(default_factory=dict)
    draft_tokens: int = 5
    acceptance_threshold: float = 0.8
    max_searches: int = 3
    n_results: int = 3
    collection: str = ""
    result_format: str = "{text}"
    samples: int = 3
    answer: str = "auto"
    context_tag: str = "context"
    scorer: tuple[float, ...] = ()


PLAIN = Settings()
"""What most plans are told: nothing. Being one and the same, it is worked out and written down only once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An expected amount between two ends."""

    mean: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value lies between the ends."""
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a plan is expected to do: probability of a right answer, USD, milliseconds to the whole answer."""

    quality: Interval
    cost_usd: Interval
    latency_ms: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole way to answer a request; `pipeline` names a stored one to run instead of a shape.

    `features`: figures on the request that it was chosen for, by which its outcome is learned; empty: none.
    `strangeness`: probability that the request is of no domain, were every other one a stranger; 0: not looked at.
    """

    shape: Shape
    stages: tuple[Stage, ...] = ()
    settings: Settings = PLAIN
    id: str = ""
    prediction: Prediction | None = None
    pipeline: str = ""
    experiment_id: str = ""
    experiment_arm: str = ""
    domain: str = ""
    propensity: float = 0.0
    features: tuple[float, ...] = ()
    strangeness: float = 0.0

    @property
    def configuration_id(self) -> str:
        """The same for the same shape, models and settings, whatever the request; outcomes are learned by it.

        The weights of a vote and a scorer are left out: they follow what is learned, and would make each lesson a new
        configuration.
        """
        if self.pipeline:
            return f"pipeline:{self.pipeline}"
        if self.settings is PLAIN:
            return _plain_id(self.shape, self.stages)
        return _id_of(self.shape, self.stages, self.settings)

    @property
    def main_model(self) -> str:
        """The model whose words the answer normally is."""
        mains = [stage.model for stage in self.stages if stage.role is Role.MAIN]
        return (mains or [stage.model for stage in self.stages] or [""])[0]

    def of(self, role: Role) -> tuple[Stage, ...]:
        """The stages of one role, in order."""
        return tuple(stage for stage in self.stages if stage.role is role)

    def with_main(self, model: str) -> "Plan":
        """This plan with another model in its main stage (for a consensus, in its first member)."""
        role = Role.MAIN if self.of(Role.MAIN) else Role.MEMBER
        first = self.of(role)[:1]
        return replace(self, stages=tuple(replace(s, model=model) if s in first else s for s in self.stages))


def _id_of(shape: Shape, stages: Sequence[Stage], settings: Settings) -> str:
    told = msgspec.to_builtins(replace(settings, weights={}))
    del told["scorer"]
    digest = hashlib.sha256(msgspec.json.encode([shape, stages, told], order="sorted")).hexdigest()
    return f"{shape}-{digest[:12]}"


@functools.lru_cache(maxsize=1024)
def _plain_id(shape: Shape, stages: tuple[Stage, ...]) -> str:
    return _id_of(shape, stages, PLAIN)


def describe(plan: Plan) -> str:
    """The plan in one short line for tables, for example `cascade(demo-small > demo-large at 0.8)`."""
    if plan.pipeline:
        return f"pipeline({plan.pipeline})"
    at = f" at {plan.settings.threshold:g}" if plan.shape is Shape.CASCADE else ""
    return f"{plan.shape}({' > '.join(stage.model for stage in plan.stages)}{at})"


def models_of(plans: Sequence[Plan]) -> set[str]:
    """Every model that the plans call."""
    return {stage.model for plan in plans for stage in plan.stages}
