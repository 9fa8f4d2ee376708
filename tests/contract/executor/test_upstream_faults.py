"""What outside models do wrong, one by one, against the real providers: tried again, elsewhere, streamed, billed.

The list is that of failoverbench (github.com/failoverbench/failoverbench), and what gateways were found to get wrong.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from catena.executor.app import outside_providers
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import ChatRequest, Delta
from catena.executor.core.events import Finished, RunEvent, StageStarted
from catena.executor.drivers.http import Door, open_session
from catena.kit.clock import SystemClock, World
from catena.kit.errors import CatenaError
from catena.plan.model import Plan, Role, Shape
from tests.contract.executor.dialects import ANSWER, ANTHROPIC, COUNTS, GEMINI, OPENAI, TGI, Dialect
from tests.contract.executor.upstream import Upstream, upstream
from tests.unit.executor.fakes import Bed, Catalogue, bed, plan, stage

PRICES = {"price_input": 10.0, "price_output": 40.0, "price_cached_input": 1.0, "price_reasoning": 80.0}
ALL = (OPENAI, ANTHROPIC, GEMINI, TGI)
CHATTING = tuple(dialect for dialect in ALL if dialect.chats)
PLAIN = ChatRequest(prompt="Once upon a time")
every = pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.provider)
chatting = pytest.mark.parametrize("dialect", CHATTING, ids=lambda dialect: dialect.provider)


def cost(dialect: Dialect) -> float:
    """What a good answer costs, from the counts that its provider tells."""
    cached = 64 if dialect.cached else 0
    thought = 3 if dialect.reasoning else 0
    return ((100 - cached) * 10 + cached * 1 + (7 - thought) * 40 + thought * 80) / 1e6


@dataclass
class Far:
    """An executor whose model `far` is at `server`, with `spare`, at `other`, to fall back to if asked for."""

    bed: Bed
    server: Upstream
    other: Upstream

    async def ask(self, *, stream: bool = False, timeout_s: float = 30.0, **more: Any) -> tuple[Finished, str]:
        """How it finished, and the words that were streamed."""
        if not self.server.dialect.chats:
            more["request"] = PLAIN
        finished, events = await self.bed.run(one_stage(timeout_s), stream=stream, **more)
        return finished, said(events)

    def billed(self) -> float:
        """What the last record says it cost."""
        return self.bed.records.added[-1].cost_usd


def one_stage(timeout_s: float) -> Plan:
    return plan(Shape.SEQUENTIAL, stage(Role.MAIN, "far", timeout_s=timeout_s))


def said(events: list[RunEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


@asynccontextmanager
async def far(dialect: Dialect, *script: str, spare: bool = False) -> AsyncIterator[Far]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(upstream(*script, dialect=dialect))
        other = await stack.enter_async_context(upstream("well", dialect=dialect))
        session = await stack.enter_async_context(open_session())
        door = Door(session, secret=lambda name: {"KEY": "k-1"}.get(name, ""), clock=SystemClock(), pace_s=0.025)
        root = dialect.root
        first = Model(
            name="far",
            provider=dialect.provider,
            base_url=f"{server.url}{root}",
            upstream_name="real",
            api_key_env="KEY",
            fallbacks=("spare",) if spare else (),
            **PRICES,  # type: ignore[arg-type]
        )
        table = bed(World())
        table.parts = replace(
            table.parts,
            catalogue=Catalogue(first, replace(first, name="spare", base_url=f"{other.url}{root}", fallbacks=())),
            providers=outside_providers(door, SystemClock()),
            sleep=asyncio.sleep,
        )
        yield Far(table, server, other)


PASSING = {
    "busy": "provider_busy",
    "busy for reasons unsaid": "provider_busy",
    "broken": "provider_error",
    "reset": "provider_gone",
    "cut": "stream_cut",
    "ended early": "stream_cut",
    "garbage": "bad_reply",
    "error inside": "provider_error",
    "empty": "empty_answer",
}
"""Faults that pass, and what an attempt that met them is recorded as."""
REFUSED = ("busy", "busy for reasons unsaid", "broken", "reset")
"""Of these, those where nothing was read or written, so nothing is paid."""
LASTING = {"too long": "context_length_exceeded", "bad key": "provider_key_refused", "very busy": "provider_busy"}
MIDWAY = ("cut", "ended early", "garbage", "error inside")
"""Faults after the first word."""
EARLY = tuple(fault for fault in PASSING if fault not in MIDWAY)
"""Faults before it: a stream is tried again like any other answer, for nothing has been said."""
TRIED_AGAIN = [*((fault, False) for fault in PASSING), *((fault, True) for fault in EARLY)]
STOOD_IN_FOR = [*((fault, False) for fault in (*PASSING, *LASTING)), *((fault, True) for fault in (*EARLY, *LASTING))]


@every
@pytest.mark.parametrize("stream", [False, True])
async def test_a_good_answer_costs_what_the_provider_counted_at_the_price_of_each_kind(
    dialect: Dialect, stream: bool
) -> None:
    async with far(dialect) as it:
        finished, words = await it.ask(stream=stream)
    assert finished.choices[0].text == ANSWER
    assert words == (ANSWER if stream else "")
    assert (finished.usage.input_tokens, finished.usage.output_tokens) == (COUNTS["input"], COUNTS["output"])
    assert finished.usage.cached_input_tokens == (COUNTS["cached"] if dialect.cached else 0)
    assert finished.usage.reasoning_tokens == (COUNTS["reasoning"] if dialect.reasoning else 0)
    assert finished.cost_usd == pytest.approx(cost(dialect))
    assert it.billed() == finished.cost_usd
    name, key = dialect.key_header
    assert it.server.headers[0][name] == key
    assert finished.stages[0].resolved_model == ("real-name" if dialect.chats else "real")


@every
@pytest.mark.parametrize(("fault", "stream"), TRIED_AGAIN)
async def test_what_passes_is_tried_again_and_each_attempt_is_told_and_billed_for_what_it_did(
    dialect: Dialect, fault: str, stream: bool
) -> None:
    async with far(dialect, fault, "well") as it:
        finished, words = await it.ask(stream=stream)
    first, second = finished.stages
    assert finished.choices[0].text == ANSWER
    assert words == (ANSWER if stream else "")
    assert [(one.attempt, one.outcome, one.error_code) for one in (first, second)] == [
        (1, "failed", PASSING[fault]),
        (2, "accepted", ""),
    ]
    assert (first.cost_usd == 0) == (fault in REFUSED)
    assert second.cost_usd == pytest.approx(cost(dialect))
    assert it.billed() == finished.cost_usd == pytest.approx(first.cost_usd + second.cost_usd)
    assert len(it.server.bodies) == 2


@every
@pytest.mark.parametrize(("fault", "stream"), STOOD_IN_FOR)
async def test_a_model_that_stays_away_is_stood_in_for_by_its_fallback_which_is_named_and_billed(
    dialect: Dialect, fault: str, stream: bool
) -> None:
    async with far(dialect, fault, spare=True) as it:
        finished, words = await it.ask(stream=stream)
    *tried, last = finished.stages
    assert finished.choices[0].text == ANSWER
    assert words == (ANSWER if stream else "")
    assert last.cost_usd == pytest.approx(cost(dialect))
    assert all((one.cost_usd == 0) == (fault in REFUSED or fault in LASTING) for one in tried)
    assert it.billed() == finished.cost_usd == pytest.approx(sum(one.cost_usd for one in finished.stages))
    assert (finished.model, last.model, last.outcome) == ("spare", "spare", "accepted")
    assert last.reason == f"instead of far ({(PASSING | LASTING)[fault]})"
    assert len(it.server.bodies) == (1 if fault in LASTING else 2)
    assert len(it.other.bodies) == 1
    assert not finished.lossy


@every
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [*LASTING, "filtered"])
async def test_what_does_not_pass_is_asked_once_and_costs_nothing(dialect: Dialect, fault: str, stream: bool) -> None:
    async with far(dialect, fault, "well") as it:
        with pytest.raises(CatenaError) as caught:
            await it.ask(stream=stream)
        assert caught.value.code == {**LASTING, "filtered": "content_filter"}[fault]
        assert len(it.server.bodies) == 1
        assert it.billed() == 0


@every
async def test_what_a_content_filter_refuses_is_not_carried_to_another_model(dialect: Dialect) -> None:
    async with far(dialect, "filtered", spare=True) as it:
        with pytest.raises(CatenaError) as caught:
            await it.ask()
        assert caught.value.code == "content_filter"
        assert not it.other.bodies
        assert it.billed() == 0


@every
@pytest.mark.parametrize("fault", MIDWAY)
async def test_words_that_reached_the_client_are_never_said_twice_and_end_in_an_error(
    dialect: Dialect, fault: str
) -> None:
    async with far(dialect, fault, "well") as it:
        with pytest.raises(CatenaError) as caught:
            await it.ask(stream=True)
        assert caught.value.code == PASSING[fault]
        assert len(it.server.bodies) == 1
        assert it.billed() > 0, "what came before is paid for"


@chatting
@pytest.mark.parametrize("fault", [*MIDWAY, "stall"])
async def test_a_stream_that_breaks_goes_on_with_the_fallback_and_says_that_two_wrote_it(
    dialect: Dialect, fault: str
) -> None:
    async with far(dialect, fault, spare=True) as it:
        limits = replace(it.bed.parts.settings.limits, stall_s=0.2)
        it.bed.parts = replace(it.bed.parts, settings=replace(it.bed.parts.settings, limits=limits))
        finished, words = await it.ask(stream=True)
    first, second = finished.stages
    assert words == finished.choices[0].text
    assert words.endswith(ANSWER)
    assert ANSWER.startswith(words.removesuffix(ANSWER))
    assert finished.choices[0].finish_reason == "stop"
    assert finished.lossy
    code = "provider_silent" if fault == "stall" else PASSING[fault]
    assert (first.error_code, second.reason) == (code, f"continues far ({code})")
    assert first.cost_usd > 0
    sent = str(it.other.bodies[0])
    assert "from the next character on" in sent


@every
async def test_a_silent_model_is_left_in_time_for_its_fallback_to_answer(dialect: Dialect) -> None:
    async with far(dialect, "silent", spare=True) as it:
        finished, _ = await it.ask(timeout_s=3.0)
        await asyncio.wait_for(it.server.left.wait(), 30)
    assert [one.error_code for one in finished.stages] == ["provider_silent", ""]
    assert finished.duration_ms < 3000
    assert finished.stages[0].cost_usd > 0, "it read the question, for all we know"


@every
async def test_a_silent_model_without_a_fallback_is_given_all_its_time_and_no_second_attempt(dialect: Dialect) -> None:
    async with far(dialect, "silent", "well") as it:
        with pytest.raises(CatenaError) as caught:
            await it.ask(timeout_s=0.4)
        assert caught.value.code in ("stage_timeout", "provider_timeout")
        assert len(it.server.bodies) == 1
        assert it.billed() > 0, "it read the question, for all we know"


@every
@pytest.mark.parametrize("spare", [False, True])
async def test_a_slow_first_token_is_waited_for_unless_another_model_can_be_asked(
    dialect: Dialect, spare: bool
) -> None:
    async with far(dialect, "slow first token", spare=spare) as it:
        it.server.slow_s = 1.5
        finished, words = await it.ask(stream=True, timeout_s=2.0 if spare else 30.0)
    assert words == ANSWER, "nothing was said before the change of models, so nothing is said twice"
    assert finished.model == ("spare" if spare else "far")
    assert finished.lossy is False
    assert finished.stages[-1].cost_usd == pytest.approx(cost(dialect))
    assert it.billed() == pytest.approx(sum(one.cost_usd for one in finished.stages))


@chatting
async def test_a_model_that_thinks_is_not_silent_and_its_thoughts_are_not_said(dialect: Dialect) -> None:
    async with far(dialect, "thinks", spare=True) as it:
        it.server.slow_s = 2.5
        finished, words = await it.ask(stream=True, timeout_s=4.0)
    assert finished.model == "far", "half of its time is over, but it was at work"
    assert words == ANSWER


@every
async def test_a_stall_without_a_fallback_ends_with_its_stage_and_never_as_an_answer(dialect: Dialect) -> None:
    async with far(dialect, "stall") as it:
        with pytest.raises(CatenaError) as caught:
            await it.ask(stream=True, timeout_s=0.5)
        assert caught.value.code in ("stage_timeout", "provider_timeout")
        await asyncio.wait_for(it.server.left.wait(), 30)
        assert it.billed() > 0, "what came before is paid for"


@every
async def test_a_stream_without_its_closing_sentinel_is_whole_and_counted(dialect: Dialect) -> None:
    async with far(dialect, "no done") as it:
        finished, words = await it.ask(stream=True)
    assert words == ANSWER
    assert finished.cost_usd == pytest.approx(cost(dialect))
    assert finished.stages[0].reason == ""


@every
@pytest.mark.parametrize(
    ("how", "told"),
    [("wrong usage", "tokens estimated, as the provider's count is impossible"), ("no usage", "tokens estimated")],
)
async def test_an_answer_that_nobody_counted_soundly_is_estimated_and_says_so(
    dialect: Dialect, how: str, told: str
) -> None:
    async with far(dialect, how) as it:
        finished, words = await it.ask(stream=True)
    assert finished.choices[0].text == words == ANSWER
    assert finished.stages[0].reason == told
    assert it.billed() == finished.cost_usd > 0
    assert finished.usage.output_tokens == round(len(ANSWER) / 4)


@every
async def test_events_that_come_twice_are_said_and_counted_once(dialect: Dialect) -> None:
    async with far(dialect, "duplicates") as it:
        finished, words = await it.ask(stream=True)
    assert words == finished.choices[0].text == ANSWER
    assert finished.usage.output_tokens == COUNTS["output"]
    assert it.billed() == finished.cost_usd == pytest.approx(cost(dialect))


@every
async def test_an_empty_answer_is_no_answer_for_the_client_and_is_paid_for(dialect: Dialect) -> None:
    async with far(dialect, "empty") as it:
        with pytest.raises(CatenaError) as caught:
            await it.ask(stream=True)
        assert caught.value.code == "empty_answer"
        assert len(it.server.bodies) == 2
        assert it.billed() == pytest.approx(2 * cost(dialect))


@every
async def test_a_flapping_model_is_left_alone_while_it_is_down_and_asked_again_once_it_is_back(
    dialect: Dialect,
) -> None:
    async with far(dialect, *["broken"] * 6, "well", spare=True) as it:
        models = []
        for _ in range(40):
            finished, _ = await it.ask(no_cache=True)
            models.append(finished.model)
            if finished.model == "far":
                break
            await asyncio.sleep(0.2)
    assert models[-1] == "far", "a probe found it well"
    assert set(models[:-1]) == {"spare"}, "everybody was served meanwhile"
    assert len(it.server.bodies) <= 8, "five failures opened the circuit; after that, probes"


@chatting
async def test_tool_calls_keep_their_indices_ids_and_arguments(dialect: Dialect) -> None:
    async with far(dialect, "tools") as it:
        finished, _ = await it.ask(stream=True)
    choice = finished.choices[0]
    calls = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert [(call.index, call.name, call.arguments.replace(" ", "")) for call in calls] == [
        (0, "f", '{"x":1}'),
        (1, "g", "{}"),
    ]
    assert len({call.id for call in calls} - {""}) == 2


@every
@pytest.mark.parametrize("how", ["well", "ends late"])
async def test_connections_are_kept_and_used_again(dialect: Dialect, how: str) -> None:
    async with far(dialect, how) as it:
        for _ in range(5):
            await it.ask()
    assert len(it.server.bodies) == 5
    # A stream that ends late is waited for, but not for ever: a machine under load may lose one or two.
    assert len(it.server.connections) == 1 if how == "well" else len(it.server.connections) <= 3


@chatting
async def test_an_attempt_is_announced_each_time_it_starts(dialect: Dialect) -> None:
    async with far(dialect, "broken", spare=True) as it:
        _, events = await it.bed.run(one_stage(30.0))
    started = [(event.model, event.attempt) for event in events if isinstance(event, StageStarted)]
    assert started == [("far", 1), ("far", 2), ("spare", 3)]
