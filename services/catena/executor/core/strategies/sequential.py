"""One model answers; of several stages each but the last hands its words to the next as a draft."""

from catena.executor.core.actions import Call, Result, Strategy, decided
from catena.executor.core.chat import ChatRequest
from catena.executor.core.prompts import drafting, spoken
from catena.executor.core.strategies.facts import Facts
from catena.executor.core.strategies.staging import staged
from catena.plan.model import Plan


def sequential(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The last stage's answer, streamed."""
    draft = ""
    for stage in plan.stages[:-1]:
        asked = yield from staged(drafting(request), stage, draft)
        result: Result = yield Call(stage=stage, request=asked)
        if result.error is None or not stage.optional:
            said = spoken(result.must().choices[0]) if result.must().choices else ""
            draft = said or draft
    last = plan.stages[-1]
    asked = yield from staged(request, last, draft)
    return decided((yield Call(stage=last, request=asked, stream=True)))
