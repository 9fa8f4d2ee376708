"""Builds plans from what the configuration or a user says of a shape.

`pipelines.<shape>` of the configuration is a `ShapeConfig`: models by role, instructions, timeouts, settings.
The router builds its candidates here, the gateway the trivial plan of a named model.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from catena.kit.errors import Invalid
from catena.plan.model import Plan, Role, Settings, Shape, Stage

DRAFT_INSTRUCTION = "Answer with a quick draft; it will be improved afterwards."
REFINE_INSTRUCTION = "Improve the draft that follows the request: correct it, complete it, keep what is right."
SEARCH_INSTRUCTION = (
    "Think first. When a fact is missing, write <search>what to look for</search> and stop; "
    "what was found comes back between <context> and </context>. Then give the answer alone."
)
CHECKS = ("truncation", "refusal", "schema", "confidence")
VOTES = ("majority", "weighted", "medoid", "judge")


class ShapeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `pipelines.<shape>` section. Roles that a shape does not have are refused."""

    main: str = ""
    draft: str = ""
    fast: str = ""
    members: list[str] = msgspec.field(default_factory=list)
    judge: str = ""
    instructions: dict[str, str] = msgspec.field(default_factory=dict)
    timeouts_s: dict[str, float] = msgspec.field(default_factory=dict)
    temperatures: list[float] = msgspec.field(default_factory=list)
    threshold: float = 0.5
    min_chars: int = 50
    checks: list[str] = msgspec.field(default_factory=lambda: list(CHECKS))
    refusals: list[str] = msgspec.field(default_factory=list)
    vote: str = "majority"
    weights: dict[str, float] = msgspec.field(default_factory=dict)
    draft_tokens: int = 5
    acceptance_threshold: float = 0.8
    max_searches: int = 3
    n_results: int = 3
    collection: str = ""
    result_format: str = "{text}"


NEEDS: dict[Shape, tuple[str, ...]] = {
    Shape.SEQUENTIAL: ("main",),
    Shape.DRAFT_REFINE: ("draft", "main"),
    Shape.CASCADE: ("fast", "main"),
    Shape.CONSENSUS: ("members",),
    Shape.SPECULATIVE: ("draft", "main"),
    Shape.SEARCH: ("main",),
}


def read_shapes(sections: Mapping[str, Any]) -> dict[Shape, ShapeConfig]:
    """The configured shapes. Raises Invalid that names the section and the key."""
    shapes: dict[Shape, ShapeConfig] = {}
    for name, section in sections.items():
        try:
            shapes[Shape(name)] = msgspec.convert(section, ShapeConfig)
        except (ValueError, msgspec.ValidationError) as error:
            raise Invalid(f"configuration section 'pipelines.{name}': {error}", code="bad_config") from error
    return shapes


def sequential(model: str) -> Plan:
    """One model answers."""
    return Plan(shape=Shape.SEQUENTIAL, stages=(Stage(name="main", role=Role.MAIN, model=model),))


def build(shape: Shape, config: ShapeConfig) -> Plan:
    """The plan of `shape` as configured.

    Raises Invalid (`incomplete_pipeline`) when a model that the shape needs is not named.
    """
    for role in NEEDS[shape]:
        if not getattr(config, role):
            raise Invalid(f"{shape} needs {role!r}; set pipelines.{shape}.{role}", code="incomplete_pipeline")
    _check(shape, config)
    if shape is Shape.CONSENSUS:
        stages = _consensus_stages(config)
    else:
        stages = tuple(_stage(shape, role, getattr(config, role), config) for role in NEEDS[shape])
    return Plan(shape=shape, stages=stages, settings=_settings(config))


def led_by(plan: Plan, model: str) -> Plan:
    """`plan` for a caller who names its main model, which then gives the answer.

    Every member of a consensus is that model, or the others would outvote it. A cascade or speculation that would call
    the same model first and again is that model alone: the same answer, paid for once.
    """
    if plan.shape is Shape.CONSENSUS:
        stages = tuple(replace(s, model=model) if s.role is Role.MEMBER else s for s in plan.stages)
        return replace(plan, stages=stages)
    led = plan.with_main(model)
    if plan.shape in (Shape.CASCADE, Shape.SPECULATIVE) and {stage.model for stage in led.stages} == {model}:
        return replace(led, shape=Shape.SEQUENTIAL, stages=led.of(Role.MAIN))
    return led


def _check(shape: Shape, config: ShapeConfig) -> None:
    wrong = [check for check in config.checks if check not in CHECKS]
    if wrong:
        raise Invalid(f"unknown check {wrong[0]!r}; use some of {', '.join(CHECKS)}", code="bad_pipeline")
    if config.vote not in VOTES:
        raise Invalid(f"unknown vote {config.vote!r}; use one of {', '.join(VOTES)}", code="bad_pipeline")
    if config.vote == "judge" and shape is Shape.CONSENSUS and not config.judge:
        raise Invalid("vote 'judge' needs a judge; set pipelines.consensus.judge", code="incomplete_pipeline")
    if not 0.0 <= config.threshold <= 1.0:
        raise Invalid(f"threshold {config.threshold} is not within 0 and 1", code="bad_pipeline")


def _consensus_stages(config: ShapeConfig) -> tuple[Stage, ...]:
    heat = config.temperatures
    members = tuple(
        Stage(
            name=f"member-{number}",
            role=Role.MEMBER,
            model=model,
            timeout_s=config.timeouts_s.get("members", 0.0),
            instruction=config.instructions.get("members", ""),
            temperature=heat[number - 1] if number <= len(heat) else None,
        )
        for number, model in enumerate(config.members, 1)
    )
    judge = (_stage(Shape.CONSENSUS, "judge", config.judge, config),) if config.judge else ()
    return members + judge


def _stage(shape: Shape, role: str, model: str, config: ShapeConfig) -> Stage:
    defaults = {
        (Shape.DRAFT_REFINE, "draft"): DRAFT_INSTRUCTION,
        (Shape.DRAFT_REFINE, "main"): REFINE_INSTRUCTION,
        (Shape.SEARCH, "main"): SEARCH_INSTRUCTION,
    }
    return Stage(
        name=role,
        role=Role(role),
        model=model,
        instruction=config.instructions.get(role, defaults.get((shape, role), "")),
        timeout_s=config.timeouts_s.get(role, 0.0),
    )


def _settings(config: ShapeConfig) -> Settings:
    return Settings(
        threshold=config.threshold,
        min_chars=config.min_chars,
        checks=tuple(config.checks),
        refusals=tuple(config.refusals),
        vote=config.vote,
        weights=dict(config.weights),
        draft_tokens=config.draft_tokens,
        acceptance_threshold=config.acceptance_threshold,
        max_searches=config.max_searches,
        n_results=config.n_results,
        collection=config.collection,
        result_format=config.result_format,
    )
