"""Whether a request may be run at all: figures within reason, something to answer, models that exist."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from catena.executor.core.catalogue import Model, find, may_draft
from catena.executor.core.chat import ChatRequest, Context, Sampling
from catena.executor.core.checks import check_schema
from catena.executor.core.strategies import check_roles
from catena.kit.errors import Invalid
from catena.plan.build import ANSWERS, CONTEXT_TAGS, LEAST_SAMPLES, MOST_SAMPLES
from catena.plan.model import Plan, Role, Shape

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_ANSWERS = 16
MOST_TOP_K = 1 << 20
LEAST_REPETITION = 1e-6
"""At 0 every repeated token would be infinitely likely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What a caller wants run. `left_s`: how long the caller waits. `request_id` empty: every call is a new one.

    `execution_id` empty: the execution gets a new one. `payer`: who is charged for a background run; empty: nobody.
    `asked`: digest of the client's words, the same for every repeat of a `request_id`. `any_model`: the caller named
    none, so any may answer where the plan's is away.
    """

    tenant: str
    plan: Plan
    request: ChatRequest
    context: Context
    left_s: float = math.inf
    no_cache: bool = False
    stream: bool = False
    request_id: str = ""
    execution_id: str = ""
    payer: str = ""
    asked: str = ""
    any_model: bool = False


def check_errand(errand: Errand, models: Mapping[str, Model]) -> None:
    """Raise Invalid or Missing with the first thing that is wrong."""
    check_context(errand.context)
    check_request(errand.request)
    if errand.plan.pipeline:
        return
    check_plan(errand.plan, models)


def check_plan(plan: Plan, models: Mapping[str, Model]) -> None:
    """Raise Invalid (`bad_plan`) or Missing (`unknown_model`)."""
    check_roles(plan)
    check_drafting(plan, models)
    for stage in plan.stages:
        where = f"stage {stage.name!r}: "
        _within(f"{where}timeout_s", stage.timeout_s, 0.0, 86_400.0)
        if stage.temperature is not None:
            _within(f"{where}temperature", stage.temperature, 0.0, 2.0)
        model = find(models, stage.model)
        if model.type != "chat":
            raise Invalid(f"{where}{model.name!r} is of type {model.type}; name a chat model", code="wrong_model_type")
    _within("settings.threshold", plan.settings.threshold, 0.0, 1.0)
    _within("settings.acceptance_threshold", plan.settings.acceptance_threshold, 0.0, 1.0)
    _within("settings.samples", plan.settings.samples, float(LEAST_SAMPLES), float(MOST_SAMPLES))
    for name, word, known in (
        ("answer", plan.settings.answer, ANSWERS),
        ("context_tag", plan.settings.context_tag, CONTEXT_TAGS),
    ):
        if word not in known:
            raise Invalid(f"settings.{name} is {word!r}; use one of {', '.join(known)}", code="bad_plan")
    for name, weight in plan.settings.weights.items():
        _within(f"settings.weights[{name!r}]", weight, 0.0, 1e9)


def check_drafting(plan: Plan, models: Mapping[str, Model]) -> None:
    """Raise Invalid (`bad_plan`) where the draft is to be told something in a speculation that leaves it no say."""
    if plan.shape is not Shape.SPECULATIVE:
        return
    draft, main = plan.of(Role.DRAFT)[0], plan.of(Role.MAIN)[0]
    told = "a prompt" if draft.prompt else "an instruction" if draft.instruction else ""
    if told and may_draft(models, draft.model, main.model):
        raise Invalid(
            f"stage {draft.name!r} has {told}, but {draft.model!r} guesses, token by token, what {main.model!r} says "
            "next, and reads what that reads; drop it, or draft with another model",
            code="bad_plan",
        )


def check_context(context: Context) -> None:
    """Raise Invalid when a cap is negative or no number."""
    _within("max_latency_ms", context.max_latency_ms, 0.0, 1e12)
    _within("max_cost_usd", context.max_cost_usd, 0.0, 1e12)


def check_request(request: ChatRequest) -> None:
    """Raise Invalid when there is nothing to answer or a figure is out of range."""
    if not request.messages and not request.prompt:
        raise Invalid("the request has neither messages nor a prompt; send one of them", code="empty_request")
    for message in request.messages:
        if message.role not in ROLES:
            raise Invalid(f"message role {message.role!r}; use one of {', '.join(ROLES)}", code="bad_role")
    check_sampling(request.sampling)
    if [request.json_schema is not None, bool(request.regex), bool(request.choices)].count(True) > 1:
        raise Invalid("a JSON schema, a regex and choices exclude each other; give one", code="bad_constraint")
    if request.json_schema is not None:
        check_schema(request.json_schema)


def check_sampling(sampling: Sampling) -> None:
    """Raise Invalid when a figure is out of range."""
    bounds = (
        ("temperature", sampling.temperature, 0.0, 2.0),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("presence_penalty", sampling.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0),
        ("n", float(sampling.n), 1.0, float(MOST_ANSWERS)),
        ("top_logprobs", float(sampling.top_logprobs), 0.0, 20.0),
        ("top_k", float(sampling.top_k), 0.0, float(MOST_TOP_K)),
        ("min_tokens", float(sampling.min_tokens), 0.0, float(sampling.max_tokens or math.inf)),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("repetition_penalty", sampling.repetition_penalty, LEAST_REPETITION, 1e6),
        *((f"logit_bias of token {token}", bias, -100.0, 100.0) for token, bias in sampling.logit_bias),
    )
    for name, value, low, high in bounds:
        if value is not None:
            _within(name, value, low, high)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is within nothing
        raise Invalid(f"{name} is {value:g}; it should be between {low:g} and {high:g}", code="out_of_range")
