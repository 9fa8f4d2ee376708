"""A cheap model answers; a strong one is asked only if the answer is doubtful."""

from dataclasses import replace

from catena.executor.core.actions import Call, Mark, Result, Strategy, decided
from catena.executor.core.chat import ChatRequest
from catena.executor.core.checks import doubt
from catena.executor.core.prompts import for_stage
from catena.executor.core.strategies.draft_refine import agreement
from catena.executor.core.strategies.facts import Facts
from catena.plan.model import Plan, Role, Stage


def cascade(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The first acceptable answer. The fast ones are held back until checked; the strong one streams."""
    fast: Result | None = None
    for stage in plan.of(Role.FAST):
        fast = yield Call(stage=stage, request=_measured(for_stage(request, stage), stage, facts))
        found = doubt(request, fast, plan.settings)
        sure = fast.confidence or 0.0
        if found is None:
            yield Mark(name=stage.name, outcome="accepted", confidence=sure)
            return decided(_as_asked(fast, request))
        if fast.error is None:
            yield Mark(name=stage.name, outcome="rejected", reason=found.reason, confidence=sure)
    main = plan.of(Role.MAIN)[0]
    strong: Result = yield Call(stage=main, request=for_stage(request, main), stream=True)
    if strong.error is not None and main.optional and fast is not None and fast.error is None and not strong.streamed:
        return decided(_as_asked(fast, request))
    return decided(strong, agreement=None if fast is None else agreement(fast, strong))


def _measured(request: ChatRequest, stage: Stage, facts: Facts) -> ChatRequest:
    """Ask for log-probabilities where the provider only measures confidence by them."""
    if not facts.logprobs(stage.model):
        return request
    return replace(request, sampling=replace(request.sampling, logprobs=True))


def _as_asked(result: Result, request: ChatRequest) -> Result:
    """Take back log-probabilities that only the check had wanted."""
    if request.sampling.logprobs:
        return result
    return replace(result, choices=tuple(replace(choice, logprobs=()) for choice in result.choices))
