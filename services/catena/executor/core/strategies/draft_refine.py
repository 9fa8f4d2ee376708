"""A cheap model drafts, a strong one refines."""

from catena.executor.core.actions import Call, Result, Strategy, decided
from catena.executor.core.chat import ChatRequest
from catena.executor.core.normal import normal_choice
from catena.executor.core.prompts import for_stage, plain, with_draft
from catena.executor.core.strategies.facts import Facts
from catena.plan.model import Plan, Role


def draft_refine(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The refined answer, streamed. Agreement: the draft left as it was counts 1, a changed one half (1 of 2)."""
    drafting, main = plan.of(Role.DRAFT)[0], plan.of(Role.MAIN)[0]
    draft: Result = yield Call(stage=drafting, request=for_stage(plain(request), drafting))
    if draft.error is not None:
        if not drafting.optional:
            draft.must()
        return decided((yield Call(stage=main, request=for_stage(request, main), stream=True)))
    asked = with_draft(request, draft.text)
    refined: Result = yield Call(stage=main, request=for_stage(asked, main), stream=True)
    return decided(refined, agreement=agreement(draft, refined))


def agreement(first: Result, second: Result) -> float | None:
    """The share of the two that gave the second's answer; None when either gave none."""
    if not first.choices or not second.choices:
        return None
    return 1.0 if normal_choice(first.choices[0]) == normal_choice(second.choices[0]) else 0.5
