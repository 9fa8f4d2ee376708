"""One call of a model: attempts within the stage's time, on the model named and on its fallbacks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from catena.executor.core import attempts as policy
from catena.executor.core.actions import Call, Result
from catena.executor.core.attempting import Attempt, Attempted, attempt
from catena.executor.core.catalogue import instead_of, needs_of, spare_for
from catena.executor.core.chat import Choice, Delta
from catena.executor.core.events import StageResult
from catena.executor.core.execution import Execution
from catena.executor.core.seams import can_go_on, going_on
from catena.kit.errors import CatenaError, Missing
from catena.plan.model import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What the journal keeps of a finished call."""

    choices: tuple[Choice, ...]
    model: str
    confidence: float | None
    stages: tuple[StageResult, ...]
    spliced: bool = False


async def call(run: Execution, asked: Call, key: str, ended: list[StageResult]) -> Result:
    """Ask a model within the stage's time, as often as is allowed and safe; failure is a result with its error.

    The last attempt goes to `ended`, still to be judged. Raises Missing: a plan that names nothing is wrong as a whole.
    """
    recalled = await run.journal.recall(key)
    if recalled is not None:
        kept = msgspec.json.decode(recalled, type=Noted)
        ended.extend(run.bill(list(kept.stages)))
        return Result(choices=kept.choices, model=kept.model, confidence=kept.confidence, spliced=kept.spliced)
    last = await _tried(run, asked, ended)
    result = last.result
    if result.error is None:
        noted = Noted(
            choices=result.choices,
            model=result.model,
            confidence=result.confidence,
            stages=tuple(last.stages),
            spliced=result.spliced,
        )
        await run.journal.note(key, msgspec.json.encode(noted))
        ended.extend(last.stages)
        return result
    await run.tell(last.stages)
    if isinstance(result.error, Missing):
        raise result.error
    return result


async def _tried(run: Execution, asked: Call, ended: list[StageResult]) -> Attempted:
    """The attempt that succeeded, or the last one; those before it have been told."""
    clock, limits = run.world.clock, run.limits
    due_s = min(run.due_s, clock.monotonic() + policy.timeout_s(asked.stage, limits))
    limit = policy.attempts(asked.stage, limits, critical=run.context.critical)
    others = instead_of(run.models, asked.stage.model, needs_of(asked.request))
    besides, spared = tuple(others), False
    said: tuple[Delta, ...] = ()
    now, number, tries, why = asked, 0, 0, ""
    while True:
        number, tries = number + 1, tries + 1
        left_s = due_s - clock.monotonic()
        patience = policy.patience(left_s, limits) if others else None
        tried = Attempt(asked=now, number=number, due_s=due_s, patience=patience, said=said, why=why)
        last = await attempt(run, tried, ended)
        error = last.result.error
        if error is None:
            return last
        if not others and not spared:
            others, spared = _spare(run, asked, besides), True
        pause_s = policy.pause_s(tries, error, run.world.rng)
        failed = policy.Tried(
            error=error,
            tries=tries,
            limit=limit,
            others=bool(others),
            streamed=last.result.streamed,
            can_go_on=can_go_on(asked),
        )
        step = policy.next_step(failed, pause_s=pause_s, left_s=due_s - clock.monotonic())
        if step == "end":
            return last
        await run.tell(last.stages)
        if step == "again":
            await run.sleep(pause_s)
            continue
        said, tries, limit = last.said, 0, 1
        why = _why(now, error, said)
        now = _instead(run, asked, others.pop(0), said)


def _spare(run: Execution, asked: Call, others: Sequence[str]) -> list[str]:
    """One more to ask, where the house chose the model and nobody else would answer for the stage."""
    if not run.any_model or asked.stage.role not in (Role.MAIN, Role.DRAFT):
        return []
    now_s = run.world.clock.monotonic()
    routes = {name: run.routes.of(model) for name, model in run.models.items()}
    away = [name for name, route in routes.items() if route is not None and route.breaker.state(now_s) == "open"]
    return spare_for(run.models, asked.stage.model, needs_of(asked.request), [*others, *away])


def _why(before: Call, error: CatenaError, said: Sequence[Delta]) -> str:
    verb = "continues" if said else "instead of"
    return f"{verb} {before.stage.model} ({error.code})"


def _instead(run: Execution, asked: Call, model: str, said: Sequence[Delta]) -> Call:
    """The call on another model, from the start or from where the client's words end; nobody drafts for it."""
    other = replace(asked, stage=replace(asked.stage, model=model), draft=None, draft_tokens=0, drafted="")
    words = "".join(delta.text for delta in said)
    return going_on(other, words, run.paces) if words else other
