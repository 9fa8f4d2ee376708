"""One attempt at a call: leave to ask, a place in the queue, the answer as it comes, perhaps a second copy of it."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

from catena.executor.core.actions import Call, Result
from catena.executor.core.attempts import Patience
from catena.executor.core.billing import stages_of
from catena.executor.core.catalogue import LOCAL, Model, find
from catena.executor.core.chat import ChatRequest, Choice, Delta, first_call, gather
from catena.executor.core.estimates import affordable_tokens, drafted_by, read_with
from catena.executor.core.events import StageResult, StageStarted
from catena.executor.core.execution import Execution, too_late
from catena.executor.core.hearing import Heard
from catena.executor.core.ports import Ask
from catena.executor.core.racing import Race
from catena.executor.core.routes import Route
from catena.executor.core.seams import Seam
from catena.executor.core.turns import turn
from catena.kit.errors import CatenaError, Invalid, Late, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What is to be tried: the `number`-th attempt (from 1) at a call, due on the world's monotonic clock.

    `patience` None: the model may take all the time there is. `said`: what the client has of an answer that broke off,
    which this attempt continues. `why` is told with the stage.
    """

    asked: Call
    number: int
    due_s: float
    patience: Patience | None = None
    said: tuple[Delta, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """How it ended: the result, the stages that it leaves, and all that the client has heard so far."""

    result: Result
    stages: list[StageResult]
    said: tuple[Delta, ...]


async def attempt(run: Execution, tried: Attempt, ended: list[StageResult]) -> Attempted:
    """Try once. Cancelled, its stages go to `ended`: what was begun is paid for."""
    asked, clock = tried.asked, run.world.clock
    model = find(run.models, asked.stage.model)
    route = run.routes.of(model)
    copies = [_copy(tried, clock.monotonic())]
    error: CatenaError | None = None
    await run.emit(StageStarted(name=asked.stage.name, model=asked.stage.model, attempt=tried.number))
    try:
        async with asyncio.timeout(max(0.0, tried.due_s - copies[0].started_s)):
            await _listen_or_hedge(run, tried, model, route, copies)
    except TimeoutError:
        error = too_late(run) if run.left_s() <= 0 else _stage_late(asked)
    except CatenaError as caught:
        error = caught
    except asyncio.CancelledError:
        for heard in copies:
            heard.settle(None, clock.monotonic())
            ended.extend(run.bill(stages_of(run, asked, heard, tried.number)))
        raise
    main = next((heard for heard in copies if heard.leads), copies[0])
    main.settle(error, clock.monotonic())
    said = (*tried.said, *main.deltas)
    result = Result(
        choices=_answers(asked, said) if error is None else (),
        model=asked.stage.model,
        confidence=main.ended.confidence if main.ended else None,
        streamed=main.streamed or bool(tried.said),
        error=error,
        spliced=bool(tried.said),
    )
    stages: list[StageResult] = []
    for heard in copies:
        if heard is not main:
            heard.lost(clock.monotonic())
            failed = Result(model=asked.stage.model, error=heard.error) if heard.error else None
            stages += stages_of(run, asked, heard, tried.number, result=failed, why="another copy was faster")
    stages += stages_of(run, asked, main, tried.number, result=result, why=tried.why)
    return Attempted(result=result, stages=run.bill(stages), said=said if result.streamed else ())


def _copy(tried: Attempt, now_s: float) -> Heard:
    seam = Seam("".join(delta.text for delta in tried.said)) if tried.said else None
    return Heard(started_s=now_s, seam=seam, one_call=tried.asked.request.one_call)


def _answers(asked: Call, said: tuple[Delta, ...]) -> tuple[Choice, ...]:
    choices = gather(said)
    if not asked.request.one_call:
        return choices
    return tuple(
        replace(one, message=replace(one.message, tool_calls=first_call(one.message.tool_calls))) for one in choices
    )


async def _listen_or_hedge(
    run: Execution, tried: Attempt, model: Model, route: Route | None, copies: list[Heard]
) -> None:
    """Hear the answer; where the model keeps silent for unusually long, send the call once more. Fills `copies`.

    The first copy runs in this very task: most calls are answered in time, and nothing is to be paid for the others.
    """
    after_s = _hedge_after_s(run, tried, route)
    if after_s is None or route is None:
        await _listen(run, tried, model, route, copies[0])
        return
    race = Race()

    def send_again() -> None:
        at_ease = route.throttle.at_ease(run.world.clock.monotonic())
        if race.leader is None and at_ease and route.hedges.spend():
            copies.append(_copy(tried, run.world.clock.monotonic()))
            race.second = asyncio.create_task(_listen(run, tried, model, route, copies[1], race))

    timer = asyncio.get_running_loop().call_later(after_s, send_again)
    try:
        await race.first(lambda: _listen(run, tried, model, route, copies[0], race), copies[0])
    finally:
        timer.cancel()
        if race.second is not None:
            race.second.cancel()
            await asyncio.gather(race.second, return_exceptions=True)


def _hedge_after_s(run: Execution, tried: Attempt, route: Route | None) -> float | None:
    """When to send a second copy; None: never, as for retries, for capped costs, and while the model struggles."""
    if route is None or tried.number > 1 or tried.said or tried.asked.draft or run.context.max_cost_usd:
        return None
    if route.breaker.state(run.world.clock.monotonic()) != "closed":
        return None
    return route.hedges.after_s()


async def _listen(
    run: Execution, tried: Attempt, model: Model, route: Route | None, heard: Heard, race: Race | None = None
) -> None:
    """Hear one answer to its end, once there is leave and a place to ask. Raises the errors of the provider."""
    if route is None:
        await _hear(run, tried, model, heard, race)
        return
    clock = run.world.clock
    heard.admitted(route, route.admit(clock.monotonic()))
    tokens = run.paces.guess(model.name, chars_in=tried.asked.request.chars, chars_out=0).input_tokens
    async with turn(route, tokens, tried.due_s - clock.monotonic(), clock=clock, sleep=run.sleep) as mine:
        mine.asked = True
        try:
            await _hear(run, tried, model, heard, race)
        finally:
            mine.used = heard.ended.usage if heard.ended else None


async def _hear(run: Execution, tried: Attempt, model: Model, heard: Heard, race: Race | None) -> None:
    patience = tried.patience
    heard.asked_s = run.world.clock.monotonic()
    silence = asyncio.timeout(patience.first_word_s if patience else None)
    try:
        async with silence:
            await _read(run, tried, model, heard, race, silence)
    except TimeoutError:
        if patience is None:
            raise
        waited_s = patience.stall_s if heard.alive else patience.first_word_s
        heard.error = Late(f"{model.name} was silent for {waited_s:.1f} s; another is asked", code="provider_silent")
        raise heard.error from None
    except CatenaError as error:
        heard.error = error
        raise


async def _read(
    run: Execution, tried: Attempt, model: Model, heard: Heard, race: Race | None, silence: asyncio.Timeout
) -> None:
    provider = run.providers.get(model.provider)
    if provider is None:
        known = ", ".join(sorted(run.providers))
        raise Unavailable(f"no provider {model.provider!r} for {model.name!r}; known: {known}", code="no_provider")
    asked = tried.asked
    ask = Ask(
        model=model,
        request=_within_budget(run, asked, model),
        timeout_s=max(0.001, tried.due_s - heard.asked_s),
        draft_model=asked.draft.model if asked.draft else "",
        draft_tokens=asked.draft_tokens,
        drafted=asked.drafted,
        context=run.context,
    )
    sift = asked.sift() if asked.sift else tuple
    async with aclosing(cast(Any, provider.generate(ask))) as pieces:
        async for piece in pieces:
            fresh = heard.take(piece, run.world.clock.monotonic())
            if race is not None and (heard.alive or heard.ended) and not race.claim(heard):
                return
            if heard.ended is not None and not heard.spoke:
                _check_empty(asked, model, heard)
                fresh = heard.release()
            shown = sift(fresh) if asked.stream and run.streams else ()
            if shown:
                # A slow client is no silence of the model's.
                silence.reschedule(None)
                heard.streamed = True
                for delta in shown:
                    await run.emit(delta)
            if heard.ended is not None:
                return
            if tried.patience is not None and (heard.spoke or piece.thinking):
                silence.reschedule(asyncio.get_running_loop().time() + tried.patience.stall_s)
    raise Unavailable(f"{model.name}: the answer broke off before its end; try again", code="stream_cut")


def _check_empty(asked: Call, model: Model, heard: Heard) -> None:
    """Raise Unavailable (`empty_answer`) where an outside model has finished without a word, and nothing stopped it."""
    stopped = any(delta.finish_reason not in ("", "stop", "tool_calls") for delta in heard.deltas)
    if model.provider != LOCAL and not stopped and not asked.request.sampling.stop:
        raise Unavailable(f"{model.name} gave an empty answer; try again", code="empty_answer")


def _within_budget(run: Execution, asked: Call, model: Model) -> ChatRequest:
    """The request, its answer no longer than the cost cap still pays for. Raises Invalid (`cost_cap`)."""
    cap = run.context.max_cost_usd
    request = asked.request
    if not cap:
        return request
    left = cap - run.spent_usd if asked.purse_usd is None else min(asked.purse_usd, cap - run.spent_usd)
    drafting = find(run.models, asked.draft.model) if asked.draft else None
    priced = drafted_by(model, drafting, asked.draft_tokens)
    most = affordable_tokens(priced, read_with(request, asked.drafted), left, run.paces)
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


def _stage_late(asked: Call) -> Late:
    return Late(f"stage {asked.stage.name!r} took longer than its limit; raise its timeout_s", code="stage_timeout")
