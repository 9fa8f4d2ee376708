"""One call of a model: attempts within the stage's time, what came of each, and what it costs."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec

from catena.executor.core import attempts as policy
from catena.executor.core.actions import Call, Result
from catena.executor.core.catalogue import Model, cost_usd, find
from catena.executor.core.chat import NOTHING_USED, ChatRequest, Choice, Context, Delta, Usage, gather
from catena.executor.core.estimates import Paces, affordable_tokens
from catena.executor.core.events import RunEvent, StageResult, StageStarted
from catena.executor.core.normal import digest
from catena.executor.core.ports import Ask, Ended, Journal, Memory, Provider
from catena.kit.clock import World
from catena.kit.errors import CatenaError, Invalid, Late, Missing, Unavailable
from catena.plan.model import Role

Emit = Callable[[RunEvent], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Execution:
    """One execution under way: its bounds, what it may call, and what it has done so far.

    `due_s` is on the world's monotonic clock; `streams`: the client wants deltas. `stages` are final; `usage` and
    `spent_usd` count every call made.
    """

    tenant: str
    context: Context
    due_s: float
    models: Mapping[str, Model]
    providers: Mapping[str, Provider]
    memory: Memory
    journal: Journal
    limits: policy.Limits
    paces: Paces
    world: World
    emit: Emit
    streams: bool = False
    sleep: Sleep = asyncio.sleep
    stages: list[StageResult] = field(default_factory=list)
    usage: Usage = NOTHING_USED
    spent_usd: float = 0.0

    def left_s(self) -> float:
        """Seconds until the execution is late."""
        return self.due_s - self.world.clock.monotonic()

    def bill(self, stages: list[StageResult]) -> list[StageResult]:
        """Count what the calls cost; the same list."""
        for stage in stages:
            self.usage += stage.usage
            self.spent_usd += stage.cost_usd
        return stages

    async def tell(self, stages: list[StageResult]) -> None:
        """These are final."""
        self.stages.extend(stages)
        for stage in stages:
            await self.emit(stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What the journal keeps of a finished call."""

    choices: tuple[Choice, ...]
    model: str
    confidence: float | None
    stages: tuple[StageResult, ...]


async def call(run: Execution, asked: Call, key: str, ended: list[StageResult]) -> Result:
    """Ask a model within the stage's time, as often as is allowed and safe; failure is a result with its error.

    The last attempt goes to `ended`, still to be judged. Raises Missing: a plan that names nothing is wrong as a whole.
    """
    recalled = await run.journal.recall(key)
    if recalled is not None:
        kept = msgspec.json.decode(recalled, type=Noted)
        ended.extend(run.bill(list(kept.stages)))
        return Result(choices=kept.choices, model=kept.model, confidence=kept.confidence)
    due_s = min(run.due_s, run.world.clock.monotonic() + policy.timeout_s(asked.stage, run.limits))
    limit = policy.attempts(asked.stage, run.limits, critical=run.context.critical)
    number = 1
    while True:
        result, stages = await _attempt(run, asked, number, due_s, ended)
        if result.error is None:
            noted = Noted(
                choices=result.choices, model=result.model, confidence=result.confidence, stages=tuple(stages)
            )
            await run.journal.note(key, msgspec.json.encode(noted))
            ended.extend(stages)
            return result
        await run.tell(stages)
        if isinstance(result.error, Missing):
            raise result.error
        if number >= limit or not policy.may_repeat(result.error, streamed=result.streamed):
            return result
        pause_s = policy.pause_s(number, result.error, run.world.rng)
        if run.world.clock.monotonic() + pause_s >= due_s:
            return result
        await run.sleep(pause_s)
        number += 1


@dataclass(slots=True, kw_only=True)
class Heard:
    """What has come of an attempt so far."""

    started_s: float
    deltas: list[Delta] = field(default_factory=list)
    first_s: float = 0.0
    ended: Ended | None = None
    streamed: bool = False


async def _attempt(
    run: Execution, asked: Call, number: int, due_s: float, ended: list[StageResult]
) -> tuple[Result, list[StageResult]]:
    """One attempt: its result, and the stage results that it leaves (two where a draft model was billed too).

    Cancelled, it leaves them in `ended`: what was begun is paid for.
    """
    heard = Heard(started_s=run.world.clock.monotonic())
    model = find(run.models, asked.stage.model)
    error: CatenaError | None = None
    await run.emit(StageStarted(name=asked.stage.name, model=asked.stage.model, attempt=number))
    try:
        async with asyncio.timeout(max(0.0, due_s - heard.started_s)):
            await _listen(run, asked, model, heard, due_s - heard.started_s)
    except TimeoutError:
        error = too_late(run) if run.left_s() <= 0 else _stage_late(asked)
    except CatenaError as caught:
        error = caught
    except asyncio.CancelledError:
        ended.extend(run.bill(_stages(run, asked, model, heard, number, None)))
        raise
    choices = gather(heard.deltas) if error is None else ()
    told = heard.ended or Ended()
    result = Result(
        choices=choices,
        model=asked.stage.model,
        confidence=told.confidence,
        streamed=heard.streamed,
        error=error,
    )
    return result, run.bill(_stages(run, asked, model, heard, number, result))


async def _listen(run: Execution, asked: Call, model: Model, heard: Heard, timeout_s: float) -> None:
    provider = run.providers.get(model.provider)
    if provider is None:
        known = ", ".join(sorted(run.providers))
        raise Unavailable(f"no provider {model.provider!r} for {model.name!r}; known: {known}", code="no_provider")
    ask = Ask(
        model=model,
        request=_within_budget(run, asked, model),
        timeout_s=timeout_s,
        draft_model=asked.draft.model if asked.draft else "",
        draft_tokens=asked.draft_tokens,
        context=run.context,
    )
    async with aclosing(cast(Any, provider.generate(ask))) as pieces:
        async for piece in pieces:
            if piece.deltas and not heard.deltas:
                heard.first_s = run.world.clock.monotonic()
            heard.deltas.extend(piece.deltas)
            if asked.stream and run.streams:
                for delta in piece.deltas:
                    heard.streamed = True
                    await run.emit(delta)
            if piece.ended is not None:
                heard.ended = piece.ended
                return
    raise Unavailable(f"{model.name}: the answer broke off before its end; try again", code="stream_cut")


def _within_budget(run: Execution, asked: Call, model: Model) -> ChatRequest:
    """The request, its answer no longer than the cost cap still pays for. Raises Invalid (`cost_cap`)."""
    cap = run.context.max_cost_usd
    request = asked.request
    if not cap:
        return request
    most = affordable_tokens(model, request, cap - run.spent_usd, run.paces)
    if most is None:
        return request
    if most < 1:
        raise Invalid(
            f"{run.spent_usd:.6f} USD are spent and {model.name} does not fit under max_cost_usd {cap:g}; raise it",
            code="cost_cap",
        )
    limit = min(most, request.sampling.max_tokens or most)
    least = min(request.sampling.min_tokens, limit)
    return replace(request, sampling=replace(request.sampling, max_tokens=limit, min_tokens=least))


def _stages(
    run: Execution, asked: Call, model: Model, heard: Heard, number: int, result: Result | None
) -> list[StageResult]:
    """What the attempt is recorded and billed as; `result` None: it was cancelled."""
    error = result.error if result is not None else None
    ended = heard.ended or Ended()
    usage, counted = _usage(run, asked, heard, error)
    outcome = "cancelled" if result is None else "failed" if error else "accepted"
    main = StageResult(
        name=asked.stage.name,
        role=asked.stage.role,
        model=asked.stage.model,
        resolved_model=ended.resolved_model,
        duration_ms=(run.world.clock.monotonic() - heard.started_s) * 1000,
        first_token_ms=(heard.first_s - heard.started_s) * 1000 if heard.first_s else 0.0,
        usage=usage,
        cost_usd=cost_usd(model, usage),
        outcome=outcome,
        attempt=number,
        confidence=ended.confidence or 0.0,
        accepted_tokens=ended.accepted_tokens,
        drafted_tokens=ended.drafted_tokens,
        error_code=error.code if error else "",
        reason="; ".join(filter(None, (ended.remark, "" if counted else "tokens estimated"))),
        answer_digest=digest(result.choices, run.tenant) if result is not None else "",
    )
    if asked.draft is None or ended.draft_usage == NOTHING_USED:
        return [main]
    drafting = find(run.models, asked.draft.model)
    bill = cost_usd(drafting, ended.draft_usage)
    drafted = StageResult(
        name=asked.draft.name,
        role=Role.DRAFT,
        model=asked.draft.model,
        duration_ms=main.duration_ms,
        usage=ended.draft_usage,
        cost_usd=bill,
        outcome=outcome,
        attempt=number,
        accepted_tokens=ended.accepted_tokens,
        drafted_tokens=ended.drafted_tokens,
    )
    return [drafted, main]


def _usage(run: Execution, asked: Call, heard: Heard, error: CatenaError | None) -> tuple[Usage, bool]:
    """Tokens of the attempt, and whether the provider counted them.

    A provider that refused before its first word read nothing; one that was cancelled or late did.
    """
    written = sum(len(delta.text) for delta in heard.deltas)
    if heard.ended is not None and heard.ended.usage is not None:
        run.paces.learn(asked.stage.model, asked.request.chars + written, heard.ended.usage)
        return heard.ended.usage, True
    if error is not None and not isinstance(error, Late) and not heard.deltas:
        return NOTHING_USED, True
    return run.paces.guess(asked.stage.model, chars_in=asked.request.chars, chars_out=written), False


def _stage_late(asked: Call) -> Late:
    return Late(f"stage {asked.stage.name!r} took longer than its limit; raise its timeout_s", code="stage_timeout")


def too_late(run: Execution) -> Late:
    """The error of an execution whose time is up."""
    cap = run.context.max_latency_ms
    why = f"max_latency_ms {cap:g}" if cap else "the call's deadline"
    return Late(f"no answer within {why}; allow more time or a faster plan", code="deadline_exceeded")
