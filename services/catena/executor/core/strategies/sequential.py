"""One model answers; of several stages each but the last hands its words to the next as a draft."""

from catena.executor.core.actions import Call, Result, Strategy, decided
from catena.executor.core.chat import ChatRequest
from catena.executor.core.prompts import drafting, for_stage, spoken, with_draft
from catena.executor.core.strategies.facts import Facts
from catena.plan.model import Plan


def sequential(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The last stage's answer, streamed."""
    asked = request
    for stage in plan.stages[:-1]:
        result: Result = yield Call(stage=stage, request=for_stage(drafting(asked), stage))
        if result.error is None or not stage.optional:
            said = spoken(result.must().choices[0]) if result.must().choices else ""
            asked = with_draft(request, said) if said else asked
    last = plan.stages[-1]
    return decided((yield Call(stage=last, request=for_stage(asked, last), stream=True)))
