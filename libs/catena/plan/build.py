"""Builds plans from what the configuration or a user says of a shape.

`pipelines.<shape>` of the configuration is a `ShapeConfig`: models by role, instructions, timeouts, settings.
The router builds its candidates here, the gateway the trivial plan of a named model.
"""

import math
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
    "what was found comes back between <context> and </context>. Then give the answer alone, between <answer> and "
    "</answer>."
)
CHECKS = ("truncation", "refusal", "schema", "confidence", "agreement", "verifier")
ANSWERS = ("auto", "text", "number", "json", "code", "choice")
CONTEXT_TAGS = ("context", "information")
LEAST_SAMPLES, MOST_SAMPLES = 2, 16
SUREST = 0.99
"""An accuracy of 1 would outvote everybody for ever."""
VOTES = ("majority", "weighted", "medoid", "judge")


class ShapeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `pipelines.<shape>` section. Roles that a shape does not have are refused.

    `fast`: one model, or several: asked in turn, or, with check `agreement`, all at once. `accuracies`: share of right
    answers by model, from which the votes of a weighted consensus get their weights. `prompts`: by role, templates of
    what the user's last words become.
    """

    main: str = ""
    draft: str = ""
    fast: str | list[str] = ""
    members: list[str] = msgspec.field(default_factory=list)
    judge: str = ""
    instructions: dict[str, str] = msgspec.field(default_factory=dict)
    prompts: dict[str, str] = msgspec.field(default_factory=dict)
    timeouts_s: dict[str, float] = msgspec.field(default_factory=dict)
    temperatures: list[float] = msgspec.field(default_factory=list)
    threshold: float = 0.5
    min_chars: int = 50
    checks: list[str] = msgspec.field(default_factory=lambda: list(Settings().checks))
    refusals: list[str] = msgspec.field(default_factory=list)
    vote: str = "majority"
    weights: dict[str, float] = msgspec.field(default_factory=dict)
    accuracies: dict[str, float] = msgspec.field(default_factory=dict)
    draft_tokens: int = 5
    acceptance_threshold: float = 0.8
    max_searches: int = 3
    n_results: int = 3
    collection: str = ""
    result_format: str = "{text}"
    samples: int = 3
    answer: str = "auto"
    context_tag: str = "context"


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
        stages = tuple(
            _stage(shape, role, model, config, number)
            for role in NEEDS[shape]
            for number, model in enumerate(_listed(getattr(config, role)), 1)
        )
        if shape is Shape.CASCADE and config.judge:
            stages += (_stage(shape, "judge", config.judge, config),)
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
    words = [
        *(("check", check, CHECKS) for check in config.checks),
        ("vote", config.vote, VOTES),
        ("answer", config.answer, ANSWERS),
        ("context_tag", config.context_tag, CONTEXT_TAGS),
    ]
    for what, word, known in words:
        if word not in known:
            raise Invalid(f"unknown {what} {word!r}; use one of {', '.join(known)}", code="bad_pipeline")
    if unknown := config.prompts.keys() - set(NEEDS[shape]):
        roles = ", ".join(NEEDS[shape])
        raise Invalid(f"{shape} has no prompt for {min(unknown)!r}; use one of {roles}", code="bad_pipeline")
    for needy, judged in ((Shape.CONSENSUS, config.vote == "judge"), (Shape.CASCADE, "verifier" in config.checks)):
        if shape is needy and judged and not config.judge:
            word = "vote 'judge'" if shape is Shape.CONSENSUS else "check 'verifier'"
            raise Invalid(f"{word} needs a judge; set pipelines.{shape}.judge", code="incomplete_pipeline")
    if not LEAST_SAMPLES <= config.samples <= MOST_SAMPLES:
        raise Invalid(f"samples {config.samples} is not within {LEAST_SAMPLES} and {MOST_SAMPLES}", code="bad_pipeline")
    shares = {"threshold": config.threshold, **{f"accuracy of {name}": p for name, p in config.accuracies.items()}}
    for what, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise Invalid(f"{what} {share} is not within 0 and 1", code="bad_pipeline")


def _consensus_stages(config: ShapeConfig) -> tuple[Stage, ...]:
    heat = config.temperatures
    members = tuple(
        Stage(
            name=f"member-{number}",
            role=Role.MEMBER,
            model=model,
            timeout_s=config.timeouts_s.get("members", 0.0),
            instruction=config.instructions.get("members", ""),
            prompt=config.prompts.get("members", ""),
            temperature=heat[number - 1] if number <= len(heat) else None,
        )
        for number, model in enumerate(config.members, 1)
    )
    judge = (_stage(Shape.CONSENSUS, "judge", config.judge, config),) if config.judge else ()
    return members + judge


def log_odds(accuracy: float) -> float:
    """The weight of a vote that is right so often; 0 where it is worth no more than chance.

    Log-odds make the weighted majority of independent voters the likeliest answer (Nitzan and Paroush, International
    Economic Review 23, 1982).
    """
    p = min(max(accuracy, 0.5), SUREST)
    return math.log(p / (1.0 - p))


def _listed(models: str | list[str]) -> list[str]:
    return [models] if isinstance(models, str) else models


def _weights(config: ShapeConfig) -> dict[str, float]:
    """By member: as given, else from the accuracy of its model."""
    names = [(f"member-{number}", model) for number, model in enumerate(config.members, 1)]
    known = {name: log_odds(config.accuracies[model]) for name, model in names if model in config.accuracies}
    return known | dict(config.weights)


def _stage(shape: Shape, role: str, model: str, config: ShapeConfig, number: int = 1) -> Stage:
    defaults = {
        (Shape.DRAFT_REFINE, "draft"): DRAFT_INSTRUCTION,
        (Shape.DRAFT_REFINE, "main"): REFINE_INSTRUCTION,
        (Shape.SEARCH, "main"): SEARCH_INSTRUCTION,
    }
    return Stage(
        name=role if number == 1 else f"{role}-{number}",
        role=Role(role),
        model=model,
        instruction=config.instructions.get(role, defaults.get((shape, role), "")),
        timeout_s=config.timeouts_s.get(role, 0.0),
        prompt=config.prompts.get(role, ""),
    )


def _settings(config: ShapeConfig) -> Settings:
    return Settings(
        threshold=config.threshold,
        min_chars=config.min_chars,
        checks=tuple(config.checks),
        refusals=tuple(config.refusals),
        vote=config.vote,
        weights=_weights(config),
        draft_tokens=config.draft_tokens,
        acceptance_threshold=config.acceptance_threshold,
        max_searches=config.max_searches,
        n_results=config.n_results,
        collection=config.collection,
        result_format=config.result_format,
        samples=config.samples,
        answer=config.answer,
        context_tag=config.context_tag,
    )
