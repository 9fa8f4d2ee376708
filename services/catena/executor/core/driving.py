"""Runs a strategy: performs its actions, tells what happens, keeps the order. One executor for every shape."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import structlog

from catena.executor.core.actions import Action, Call, Decision, Embed, Fill, Lookup, Mark, Result, Strategy, Together
from catena.executor.core.calling import call
from catena.executor.core.catalogue import find
from catena.executor.core.events import StageResult
from catena.executor.core.execution import Execution, told, too_late
from catena.executor.core.normal import digest_of
from catena.kit.errors import Invalid, Missing, Unavailable

log = structlog.get_logger()

_PART = re.compile(r"\{(text|title|file|name)\}")


async def drive(run: Execution, strategy: Strategy, key: str = "") -> Decision:
    """The strategy's decision. `key` sets its calls in the journal apart from those of other strategies of the run."""
    number = 0
    reply: Any = None
    ended: list[StageResult] = []
    try:
        while True:
            try:
                action = strategy.send(reply)
            except StopIteration as end:
                await _tell(run, ended)
                return cast(Decision, end.value)
            if isinstance(action, Mark):
                mark(ended, action, run.tenant) or mark(run.stages, action, run.tenant)
                reply = None
                continue
            number += 1
            await _tell(run, ended)
            reply = await _perform(run, action, f"{key}{number}", ended)
    finally:
        strategy.close()
        # Not told: whoever listened has gone, or gets the error instead.
        run.stages.extend(ended)


async def _perform(run: Execution, action: Action, key: str, ended: list[StageResult]) -> Any:
    match action:
        case Call():
            return await call(run, action, key, ended)
        case Together():
            return await _together(run, action, key, ended)
        case Lookup():
            return await look_up(run, action, key)
        case Fill():
            return await _filled(run, action)
        case Embed():
            return await _vectors(run, action.texts)
    raise AssertionError(f"no such action: {action}")


async def _together(run: Execution, action: Together, key: str, ended: list[StageResult]) -> list[Result | None]:
    """Results in the order of the calls; None for those that were not needed any more, which are cancelled."""
    results: list[Result | None] = [None] * len(action.calls)
    tasks = {
        asyncio.create_task(call(run, asked, f"{key}.{place}", ended)): place
        for place, asked in enumerate(_with_purses(run, action.calls))
    }
    try:
        waiting = set(tasks)
        while waiting and not action.enough(results):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                results[tasks[task]] = task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task, place in tasks.items():
        # One that ended while the others were being told to stop still counts.
        if results[place] is None and not task.cancelled() and task.exception() is None:
            results[place] = task.result()
    return results


def _with_purses(run: Execution, calls: Sequence[Call]) -> Sequence[Call]:
    """What is left of the cost cap, shared out by price, so that calls made at once do not each spend all of it."""
    if not run.context.max_cost_usd:
        return calls
    left_usd = run.context.max_cost_usd - run.spent_usd
    models = [find(run.models, asked.stage.model) for asked in calls]
    prices = [model.price_input + model.price_output for model in models]
    return [
        replace(asked, purse_usd=left_usd * (price / sum(prices) if any(prices) else 1.0))
        for asked, price in zip(calls, prices, strict=True)
    ]


async def _vectors(run: Execution, texts: Sequence[str]) -> Sequence[Sequence[float]] | None:
    """A vector a text; None where no model makes any: whoever asks can do without."""
    if run.embed is None:
        return None
    try:
        return await run.embed(texts)
    except (Missing, Unavailable) as error:
        log.info("no vectors to compare answers by", error=error.message)
        return None


async def _filled(run: Execution, action: Fill) -> str:
    """The words of a stage's prompt. Raises Invalid that names the stage, Late, Unavailable."""
    try:
        async with asyncio.timeout(max(0.0, run.left_s())):
            return await run.render(action.stage.prompt, {**action.scope, **told(run.context)})
    except TimeoutError:
        raise too_late(run) from None
    except Invalid as error:
        raise Invalid(f"prompt of stage {action.stage.name!r}: {error.message}", code=error.code) from error


async def look_up(run: Execution, action: Lookup, key: str) -> list[str]:
    """What memory finds, each piece written as the plan wants it; `key` names it in the journal.

    Raises Late, Unavailable.
    """

    async def work() -> list[str]:
        hits = await run.memory.search(action.collection, action.query, action.n_results)
        return [written(action.result_format, hit) for hit in hits]

    try:
        async with asyncio.timeout(max(0.0, run.left_s())):
            return await run.once(key, list[str], work)
    except TimeoutError:
        raise too_late(run) from None


def written(form: str, hit: Mapping[str, str]) -> str:
    """A hit in the given form, in which `{text}`, `{title}`, `{file}`, `{name}` stand for its parts."""
    return _PART.sub(lambda part: hit.get(part[1], ""), form)


def mark(ended: list[StageResult], judged: Mark, tenant: str) -> bool:
    """Note the strategy's judgement on the last stage of that name that ended well; whether there was one.

    A stage judged after a later one has been told already: `Finished` has the last word.
    """
    for place in range(len(ended) - 1, -1, -1):
        stage = ended[place]
        if stage.name == judged.name and stage.outcome == "accepted":
            confidence = judged.confidence or stage.confidence
            reason = judged.reason or stage.reason
            told = replace(stage, outcome=judged.outcome, reason=reason, confidence=confidence)
            ended[place] = replace(told, answer_digest=digest_of(judged.form, tenant)) if judged.form else told
            return True
    return False


async def _tell(run: Execution, ended: list[StageResult]) -> None:
    """The strategy has said all about the stages that ended."""
    final = ended[:]
    ended.clear()
    await run.tell(final)
