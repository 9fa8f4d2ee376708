"""A cheap model runs ahead, the strong one verifies.

Without loss where both are local (token by token, in the engine), or where the strong one's server scores prompts and
the answer is greedy (a whole draft at once); else by patching the draft's lines, which is labelled lossy.
"""

import re
from dataclasses import replace

from catena.executor.core.actions import Call, Mark, Result, Strategy, answer_of, decided
from catena.executor.core.chat import ChatRequest
from catena.executor.core.prompts import instructed, plain, with_draft
from catena.executor.core.strategies.draft_refine import agreement
from catena.executor.core.strategies.facts import Facts
from catena.executor.core.strategies.staging import staged
from catena.plan.model import Plan, Role, Stage

VERIFY = (
    "Check the numbered lines of the draft that follows the request. If all are right, reply ACCEPT and nothing else. "
    "Otherwise reply only with the lines that must change, each as `number: new text`."
)
_PATCH = re.compile(r"\s*(\d{1,5}):[ ]?(.*)\Z")


def speculative(plan: Plan, request: ChatRequest, facts: Facts) -> Strategy:
    """The main model's own answer, or one labelled lossy.

    Requests with tools, a constraint or several answers cannot be patched by lines: the main model answers them.
    """
    draft, main = plan.of(Role.DRAFT)[0], plan.of(Role.MAIN)[0]
    alone = Call(stage=main, request=(yield from staged(request, main)), stream=True)
    if facts.may_draft(draft.model, main.model):
        return decided((yield replace(alone, draft=draft, draft_tokens=plan.settings.draft_tokens)))
    if request.tools or request.constrained or request.sampling.n > 1 or not facts.able(draft.model, request):
        return decided((yield alone))
    if facts.verifies(main.model) and alone.request.greedy:
        first: Result = yield Call(stage=draft, request=(yield from staged(plain(request), draft)))
        return decided((yield replace(alone, drafted=first.text)))
    return (yield from _patched(plan, request, draft, alone))


def _patched(plan: Plan, request: ChatRequest, draft: Stage, alone: Call) -> Strategy:
    """Draft, let the main model name the lines to change, and keep the draft if enough of it stands."""
    first: Result = yield Call(stage=draft, request=(yield from staged(plain(request), draft)))
    if first.error is None and first.finish_reason == "stop" and first.text.strip():
        lines = first.text.splitlines()
        numbered = "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))
        asked = instructed(with_draft(plain(request), f"\n{numbered}"), VERIFY)
        verifying = replace(alone.stage, name="verify", instruction="")
        verdict: Result = yield Call(stage=verifying, request=asked)
        patched = patch(lines, verdict.text) if verdict.error is None else None
        if patched is not None and patched[1] >= plan.settings.acceptance_threshold:
            text, kept = patched
            yield Mark(name=draft.name, outcome="accepted", reason=f"{kept:.0%} of the lines kept", confidence=kept)
            done = replace(first, choices=answer_of(text, first), model=verdict.model if kept < 1 else first.model)
            return decided(done, agreement=1.0 if kept == 1 else 0.5, lossy=True)
        yield Mark(name=draft.name, outcome="rejected", reason="too much of it had to change")
    whole: Result = yield alone
    return decided(whole, agreement=agreement(first, whole) if first.error is None else None)


def patch(lines: list[str], verdict: str) -> tuple[str, float] | None:
    """The draft with the verdict's lines put in, and the share of lines kept; None when it is no verdict."""
    if verdict.strip().rstrip(".!").upper() == "ACCEPT":
        return "\n".join(lines), 1.0
    changed: dict[int, str] = {}
    for row in filter(str.strip, verdict.splitlines()):
        found = _PATCH.match(row)
        if found is None or not 1 <= int(found[1]) <= len(lines):
            return None
        changed[int(found[1]) - 1] = found[2]
    if not changed:
        return None
    merged = [changed.get(place, line) for place, line in enumerate(lines)]
    return "\n".join(merged), 1 - len(changed) / len(lines)
