"""A cheap model drafts, a strong one refines."""

from catena.executor.core.actions import Call, Result, Strategy, decided
from catena.executor.core.chat import ChatRequest
from catena.executor.core.normal import normal_choice
from catena.executor.core.prompts import drafting, spoken
from catena.executor.core.strategies.facts import Facts
from catena.executor.core.strategies.staging import staged
from catena.plan.model import Plan, Role


def draft_refine(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The refined answer, streamed. Agreement: the draft left as it was counts 1, a changed one half (1 of 2).

    A draft may name the tools that it would use. Without one - the drafter failed and is optional, said nothing, or
    cannot take the request's images or tools - the main model answers by itself.
    """
    drafter, main = plan.of(Role.DRAFT)[0], plan.of(Role.MAIN)[0]
    draft = Result()
    if facts.able(drafter.model, request):
        draft = yield Call(stage=drafter, request=(yield from staged(drafting(request), drafter)))
    if draft.error is not None and not drafter.optional:
        draft.must()
    said = spoken(draft.choices[0]) if draft.choices else ""
    asked = yield from staged(request, main, said)
    refined: Result = yield Call(stage=main, request=asked, stream=True)
    return decided(refined, agreement=agreement(draft, refined) if said else None)


def agreement(first: Result, second: Result) -> float | None:
    """The share of the two that gave the second's answer; None when either gave none."""
    if not first.choices or not second.choices:
        return None
    return 1.0 if normal_choice(first.choices[0]) == normal_choice(second.choices[0]) else 0.5
