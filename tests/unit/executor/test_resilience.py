"""Rates, second copies, and going on with an answer that broke off: the decisions, and what calls make of them."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from catena.executor.core.actions import Call
from catena.executor.core.attempts import Limits as AttemptLimits
from catena.executor.core.attempts import Tried, next_step, patience, pause_s
from catena.executor.core.breaker import BreakerLimits
from catena.executor.core.catalogue import Model, check_fallbacks, cost_usd, instead_of, needs_of
from catena.executor.core.chat import ChatRequest, Context, Delta, Image, Message, Sampling, Tool, Usage
from catena.executor.core.estimates import Paces, affordable_tokens, impossible
from catena.executor.core.hedging import ENOUGH, HedgeLimits, Hedges
from catena.executor.core.parts import Settings
from catena.executor.core.ports import NoJournal
from catena.executor.core.routes import Routes, verdict_of
from catena.executor.core.running import carry_out
from catena.executor.core.seams import LEAST_OVERLAP, Seam, can_go_on, going_on, overlap
from catena.executor.core.throttle import LONGEST_REST_S, QUEUE, Rate, Throttle
from catena.executor.drivers.observed import observe_routes
from catena.kit.clock import ManualClock, World
from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Missing, Unavailable
from catena.kit.testing import eventually, running
from catena.plan.model import Plan, Role, Shape
from tests.unit.executor.fakes import Bed, Catalogue, bed, errand, plan, stage

PLAN = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "outside"))
AWAY = Unavailable("away", code="provider_gone")


def tried(error: CatenaError = AWAY, **more: Any) -> Tried:
    return Tried(**{"error": error, "tries": 1, "limit": 2, "others": True, **more})


@pytest.mark.parametrize(
    ("failed", "pause", "left", "step"),
    [
        (tried(), 0.1, 9.0, "again"),
        (tried(tries=2), 0.1, 9.0, "onward"),
        (tried(tries=2, others=False), 0.1, 9.0, "end"),
        (tried(), 2.0, 9.0, "onward"),
        (tried(others=False), 2.0, 9.0, "again"),
        (tried(others=False), 2.0, 1.0, "end"),
        (tried(tries=2), 0.1, 0.0, "end"),
        (tried(streamed=True), 0.1, 9.0, "end"),
        (tried(streamed=True, can_go_on=True), 0.1, 9.0, "onward"),
        (tried(streamed=True, can_go_on=True, others=False), 0.1, 9.0, "end"),
        (tried(Invalid("x")), 0.1, 9.0, "end"),
        (tried(Invalid("x", code="context_length_exceeded")), 0.1, 9.0, "onward"),
        (tried(Late("x", code="provider_silent")), 0.1, 9.0, "onward"),
        (tried(Late("x", code="deadline_exceeded")), 0.1, 9.0, "end"),
        (tried(Missing("x")), 0.1, 9.0, "onward"),
        (tried(Unavailable("x", code="circuit_open")), 0.1, 9.0, "onward"),
        (tried(Unavailable("x", code="circuit_open"), others=False), 0.1, 9.0, "again"),
        (tried(Unavailable("x", code="circuit_open"), others=False), 2.0, 9.0, "end"),
        (tried(Unavailable("x", code="provider_key_refused")), 0.1, 9.0, "onward"),
    ],
)
def test_what_follows_a_failure(failed: Tried, pause: float, left: float, step: str) -> None:
    assert next_step(failed, pause_s=pause, left_s=left) == step


def test_pauses_double_with_jitter_and_are_never_shorter_than_a_provider_asks() -> None:
    rng = random.Random(1)
    assert all(0.05 <= pause_s(1, AWAY, rng) <= 0.15 for _ in range(100))
    assert all(0.2 <= pause_s(3, AWAY, rng) <= 0.6 for _ in range(100))
    asked = [pause_s(1, Exhausted("busy", retry_after_s=7.0), rng) for _ in range(100)]
    assert all(7.0 <= pause <= 7.7 for pause in asked)
    assert len(set(asked)) > 50


def test_a_model_with_fallbacks_has_half_of_the_time_for_its_first_word() -> None:
    found = patience(30.0, AttemptLimits())
    assert (found.first_word_s, found.stall_s) == (15.0, 10.0)
    assert patience(4.0, AttemptLimits()).stall_s == 2.0


def test_only_models_that_can_be_asked_stand_in() -> None:
    models = {
        "a": Model(name="a", fallbacks=("a", "b", "b", "gone", "off", "vectors", "c")),
        "b": Model(name="b"),
        "c": Model(name="c"),
        "off": Model(name="off", status="disabled"),
        "vectors": Model(name="vectors", type="embedding"),
    }
    assert instead_of(models, "a") == ["b", "c"]
    assert instead_of(models, "b@adapter") == []


def test_a_request_goes_only_to_models_that_understand_it() -> None:
    models = {
        "a": Model(name="a", fallbacks=("plain", "able", "untold")),
        "plain": Model(name="plain", capabilities=("json",)),
        "able": Model(name="able", capabilities=("tools", "vision")),
        "untold": Model(name="untold"),
    }
    seen = Message(role="user", content="look", images=(Image(url="https://example.org/a.png"),))
    needs = needs_of(ChatRequest(messages=(seen,), tools=(Tool(name="f"),)))
    assert needs == {"tools", "vision"}
    assert instead_of(models, "a", needs) == ["able", "untold"]
    assert instead_of(models, "a", needs_of(ChatRequest(prompt="hi"))) == ["plain", "able", "untold"]


@pytest.mark.parametrize(
    ("error", "waited_s", "verdict"),
    [
        (None, 1.0, "well"),
        (AWAY, 0.1, "failed"),
        (Late("x"), 5.0, "failed"),
        (Late("x"), 0.5, "untold"),
        (Invalid("x"), 0.1, "well"),
        (Invalid("x", code="cost_cap"), 0.1, "untold"),
        (Exhausted("x"), 0.1, "untold"),
        (Unavailable("x", code="provider_key_refused"), 0.1, "untold"),
    ],
)
def test_what_an_end_says_about_the_model(error: CatenaError | None, waited_s: float, verdict: str) -> None:
    assert verdict_of(error, waited_s) == verdict


def test_calls_beyond_the_rate_queue_one_behind_the_other_and_catch_up() -> None:
    throttle = Throttle(Rate(requests_per_minute=60))
    free = [throttle.book("m", 0, 100.0, 99.0) for _ in range(6)]
    assert free == [0.0] * 6, "what went unused for six seconds"
    assert [round(throttle.book("m", 0, 100.0, 99.0), 3) for _ in range(3)] == [1.0, 2.0, 3.0]
    assert not throttle.at_ease(100.0)
    assert throttle.at_ease(200.0)


def test_tokens_count_as_booked_until_the_provider_has_counted() -> None:
    throttle = Throttle(Rate(tokens_per_minute=6000))
    throttle.book("m", 5000, 0.0, 99.0)
    assert throttle.book("m", 0, 0.0, 99.0) == pytest.approx(44.0, abs=0.1)
    throttle.settle(5000, 500)
    assert throttle.book("m", 0, 0.0, 99.0) == 0.0
    throttle.give_back(-5500)
    assert throttle.book("m", 0, 0.0, 99.0) > 10


def test_who_would_wait_too_long_or_behind_too_many_is_told_at_once() -> None:
    throttle = Throttle(Rate(requests_per_minute=6))
    throttle.book("m", 0, 0.0, 99.0)
    with pytest.raises(Exhausted, match=r"m may be asked in 10\.0 s") as caught:
        throttle.book("m", 0, 0.0, 5.0)
    assert (caught.value.code, caught.value.retry_after_s) == ("upstream_rate", pytest.approx(10.0))
    throttle.waiting = QUEUE
    with pytest.raises(Exhausted) as full:
        throttle.book("m", 0, 0.0, 99.0)
    assert full.value.code == "upstream_queue_full"


def test_a_provider_that_asks_for_rest_gets_it_and_no_more_than_a_minute_of_it() -> None:
    throttle = Throttle(Rate())
    throttle.rest(3.0, 10.0)
    assert throttle.book("m", 0, 11.0, 9.0) == 2.0
    throttle.rest(1e9, 10.0)
    assert throttle.book("m", 0, 10.0, 99.0) == LONGEST_REST_S


def test_a_second_copy_waits_for_the_95th_percentile_and_for_its_turn_in_the_budget() -> None:
    hedges = Hedges(HedgeLimits(share=0.05, burst=2.0))
    for number in range(1, ENOUGH):
        hedges.heard(number / 100)
    assert hedges.after_s() is None, "too little is known"
    hedges.heard(0.2)
    assert hedges.after_s() == 0.2
    assert hedges.spend()
    assert hedges.after_s() is None, "one call in twenty"
    assert not hedges.spend()
    for _ in range(1000):
        hedges.heard(0.1)
    assert [hedges.spend() for _ in range(3)] == [True, True, False], "no more than the burst is saved up"


def test_no_share_sends_no_copies() -> None:
    hedges = Hedges(HedgeLimits(share=0.0))
    for _ in range(1000):
        hedges.heard(0.1)
    assert hedges.after_s() is None


def asked(**request: Any) -> Call:
    turns = (Message(role="user", content="tell"),)
    return Call(stage=stage(Role.MAIN, "outside"), request=ChatRequest(messages=turns, **request))


@pytest.mark.parametrize(
    ("call", "may"),
    [
        (asked(), True),
        (asked(tools=(Tool(name="f"),)), False),
        (asked(json_schema={"type": "object"}), False),
        (asked(sampling=Sampling(n=2)), False),
        (asked(sampling=Sampling(logprobs=True)), False),
        (replace(asked(), draft=stage(Role.DRAFT, "small")), False),
        (replace(asked(), request=ChatRequest(prompt="once")), False),
    ],
)
def test_only_plain_words_are_continued_by_another_model(call: Call, may: bool) -> None:
    assert can_go_on(call) is may


def test_the_model_that_goes_on_sees_what_was_said_and_has_the_tokens_that_are_left() -> None:
    call = going_on(asked(sampling=Sampling(max_tokens=100)), "a" * 200, Paces())
    assert [turn.role for turn in call.request.messages] == ["user", "assistant", "user"]
    assert call.request.messages[1].content == "a" * 200
    assert call.request.sampling.max_tokens == 50


@pytest.mark.parametrize(
    ("said", "more", "whole"),
    [
        ("The quick brown fox", " jumps over", "The quick brown fox jumps over"),
        ("The quick brown fox", "quick brown fox jumps", "The quick brown fox jumps"),
        ("The quick brown fox", "The quick brown fox jumps", "The quick brown fox jumps"),
        ("ha ha", "ha ha", "ha haha ha"),
    ],
)
def test_what_is_repeated_at_the_seam_is_left_out_once_it_is_no_chance(said: str, more: str, whole: str) -> None:
    seam = Seam(said)
    pieces = [seam.join(Delta(text=letter)) for letter in more] + [seam.join(Delta(finish_reason="stop"))]
    assert said + "".join(piece.text for piece in pieces) == whole
    assert pieces[-1].finish_reason == "stop"
    assert overlap("x" * 9, "x" * (LEAST_OVERLAP - 1)) == 0


@pytest.mark.parametrize(
    ("usage", "wrong"),
    [
        (Usage(input_tokens=5, output_tokens=2), False),
        (Usage(input_tokens=5, output_tokens=0), True),
        (Usage(input_tokens=-1, output_tokens=2), True),
        (Usage(input_tokens=5, output_tokens=2, cached_input_tokens=6), True),
        (Usage(input_tokens=5, output_tokens=2, cached_input_tokens=3, cache_write_tokens=3), True),
        (Usage(input_tokens=5, output_tokens=2, cache_write_tokens=-1), True),
        (Usage(input_tokens=5, output_tokens=2, cached_input_tokens=3, cache_write_tokens=2), False),
        (Usage(input_tokens=5, output_tokens=2, reasoning_tokens=3), True),
    ],
)
def test_counts_that_cannot_be_are_told_from_those_that_can(usage: Usage, wrong: bool) -> None:
    assert impossible(usage, chars_out=10) is wrong


@pytest.mark.parametrize(
    ("cached", "reasoning", "usd"),
    [(None, None, 100 * 10 + 10 * 40), (1.0, None, 40 * 10 + 60 * 1 + 10 * 40), (0.0, 80.0, 40 * 10 + 6 * 40 + 4 * 80)],
)
def test_each_kind_of_token_costs_its_own_price(cached: float | None, reasoning: float | None, usd: float) -> None:
    model = Model(name="m", price_input=10.0, price_output=40.0, price_cached_input=cached, price_reasoning=reasoning)
    used = Usage(input_tokens=100, output_tokens=10, cached_input_tokens=60, reasoning_tokens=4)
    assert cost_usd(model, used) == pytest.approx(usd / 1e6)


@pytest.mark.parametrize(("kept", "usd"), [(None, 100 * 10), (12.5, 70 * 10 + 10 * 1 + 20 * 12.5)])
def test_what_is_written_to_a_providers_cache_has_a_price_of_its_own(kept: float | None, usd: float) -> None:
    cached = None if kept is None else 1.0
    model = Model(name="m", price_input=10.0, price_cached_input=cached, price_cache_write=kept)
    used = Usage(input_tokens=100, cached_input_tokens=10, cache_write_tokens=20)
    assert cost_usd(model, used) == pytest.approx(usd / 1e6)


def test_a_cap_holds_where_all_that_is_read_is_written_to_a_cache() -> None:
    model = Model(name="m", price_input=10.0, price_output=10.0, price_cache_write=20.0)
    asked = ChatRequest(prompt="x" * 400)
    assert affordable_tokens(model, asked, 2_105e-6, Paces()) == 10


@pytest.mark.parametrize(("name", "why"), [("m", "is that model itself"), ("gone", "is in no catalogue")])
def test_a_fallback_has_to_be_another_known_model(name: str, why: str) -> None:
    check_fallbacks(Model(name="m", fallbacks=("b",)), {"m", "b"})
    with pytest.raises(Invalid, match=why):
        check_fallbacks(Model(name="m", fallbacks=(name,)), {"m", "b"})


def outside(table: Bed, **figures: Any) -> None:
    """Change the catalogue's only outside model."""
    model = replace(table.parts.models["outside"], **figures)
    others = [one for one in table.parts.models.values() if one.name != "outside"]
    table.parts = replace(table.parts, catalogue=Catalogue(model, *others))


async def warmed(table: Bed, question: Plan = PLAN, share: float = 1.0) -> None:
    """Ask until enough is known of the model to send second copies."""
    table.parts = replace(table.parts, routes=Routes(hedging=HedgeLimits(share=share)))
    for _ in range(ENOUGH):
        await table.run(question, no_cache=True)


async def test_a_late_first_word_is_asked_for_twice_and_both_are_billed() -> None:
    table = bed(World(), outside="one two three")
    outside(table, price_input=10.0, price_output=10.0)
    await warmed(table, share=0.1)
    calls = len(table.provider.asked)
    table.provider.late = [30.0, 0.0]
    finished, events = await table.run(PLAN, stream=True, no_cache=True)
    assert len(table.provider.asked) == calls + 2
    assert [(one.outcome, one.reason) for one in finished.stages] == [
        ("cancelled", "another copy was faster; tokens estimated"),
        ("accepted", ""),
    ]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "one two three"
    assert finished.stages[0].cost_usd > 0
    assert finished.cost_usd == pytest.approx(sum(one.cost_usd for one in finished.stages))
    assert table.provider.abandoned == 1


@pytest.mark.parametrize(
    "change",
    [{"context": Context(max_cost_usd=1.0)}, {"plan": plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large"))}],
    ids=["under a cost cap", "a local model"],
)
async def test_no_second_copy_is_sent_where_it_is_not_worth_it(change: dict[str, Any]) -> None:
    table = bed(World(), outside="one", large="one")
    await warmed(table, change.get("plan", PLAN))
    calls = len(table.provider.asked)
    table.provider.late = [0.3]
    await table.run(change.get("plan", PLAN), no_cache=True, **{k: v for k, v in change.items() if k != "plan"})
    assert len(table.provider.asked) == calls + 1


async def test_a_second_copy_outlives_the_failure_of_the_first() -> None:
    table = bed(World(), outside="one")
    await warmed(table)
    table.provider.late = [0.1, 0.3]
    table.provider.script["outside"] = [AWAY, "one two"]
    finished, _ = await table.run(PLAN, no_cache=True)
    assert finished.choices[0].text == "one two"
    assert [one.attempt for one in finished.stages] == [1, 1], "it was no second attempt"


async def test_two_copies_that_fail_are_one_failed_attempt() -> None:
    table = bed(World(), outside="one")
    await warmed(table)
    table.provider.late = [0.1, 0.3]
    table.provider.script["outside"] = [AWAY, AWAY, "three"]
    finished, _ = await table.run(PLAN, no_cache=True)
    assert finished.choices[0].text == "three"
    assert [(one.attempt, one.outcome) for one in finished.stages] == [(1, "failed"), (1, "failed"), (2, "accepted")]
    assert finished.stages[0].usage == finished.stages[1].usage == Usage(), "who was away read nothing"


async def test_a_leader_that_fails_midway_is_not_replaced_by_the_loser() -> None:
    table = bed(World(), outside="one two")
    await warmed(table)
    table.provider.late = [30.0, 0.0]
    table.provider.cut.add("outside")
    with pytest.raises(Unavailable) as caught:
        await table.run(PLAN, stream=True, no_cache=True)
    assert caught.value.code == "stream_cut"


async def test_a_slow_client_is_no_silence_of_the_model() -> None:
    table = bed(World(), outside="one two three")
    outside(table, fallbacks=("large",))
    table.parts = replace(table.parts, settings=Settings(limits=AttemptLimits(stall_s=0.05)))

    async def emit(event: Any) -> None:
        if isinstance(event, Delta):
            await asyncio.sleep(0.15)

    finished = await carry_out(table.parts, errand(PLAN, stream=True), emit, NoJournal())
    assert [one.error_code for one in finished.stages] == [""]


async def test_calls_at_once_are_limited_and_the_rest_wait_their_turn() -> None:
    table = bed(World(), outside="one")
    outside(table, at_once=2)
    table.provider.late = [0.05] * 6
    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(table.run(PLAN, f"q{number}", no_cache=True))
    assert table.provider.most_at_once == 2
    route = table.parts.routes.of(table.parts.models["outside"])
    assert route is not None
    assert route.throttle.waiting == 0


async def test_a_changed_rate_counts_from_the_next_call_on() -> None:
    table = bed(World(), outside="one")
    outside(table, requests_per_minute=60.0)
    before = table.parts.routes.of(table.parts.models["outside"])
    assert before is not None
    first = before.throttle
    outside(table, requests_per_minute=120.0)
    after = table.parts.routes.of(table.parts.models["outside"])
    assert after is before, "what was learned about the model stays"
    assert after.throttle is not first


async def test_an_open_circuit_asks_nobody_and_says_what_went_wrong() -> None:
    table = bed(outside=AWAY)
    table.parts = replace(table.parts, routes=Routes(breaking=BreakerLimits(failures=4)))
    for _ in range(2):
        with pytest.raises(Unavailable, match="away"):
            await table.run(PLAN, no_cache=True)
    asked_before = len(table.provider.asked)
    with pytest.raises(
        Unavailable, match=r"outside kept failing \(provider_gone\); it is tried again in 1\.0 s"
    ) as caught:
        await table.run(PLAN, no_cache=True)
    assert caught.value.code == "circuit_open"
    assert len(table.provider.asked) == asked_before
    assert table.records.added[-1].cost_usd == 0


async def test_a_call_that_is_cancelled_while_it_probes_lets_the_next_one_probe() -> None:
    table = bed(World(), outside=[AWAY, "one"])
    table.parts = replace(table.parts, routes=Routes(breaking=BreakerLimits(failures=1, open_s=0.01)))
    once = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "outside", max_attempts=1))
    with pytest.raises(Unavailable):
        await table.run(once, no_cache=True)
    await asyncio.sleep(0.02)
    table.provider.late = [30.0]
    probing = asyncio.create_task(table.run(once, no_cache=True))
    await eventually(lambda: len(table.provider.asked) == 2)
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)
    finished, _ = await table.run(once, no_cache=True)
    assert finished.choices[0].text == "one"


async def test_how_outside_models_fare_is_told_to_prometheus() -> None:
    clock = ManualClock()
    routes = Routes(breaking=BreakerLimits(failures=1))
    route = routes.of(Model(name="watched", provider="openai"))
    assert route is not None
    route.throttle.waiting = 4
    route.hedges.sent = 2

    def told(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"catena_executor_{name}", {"model": "watched"})

    async with running(observe_routes(routes, clock, every_s=0.01)):
        await eventually(lambda: told("upstream_waiting") == 4)
        assert (told("circuit_open"), told("second_copies_total")) == (0.0, 2.0)
        route.settle(route.admit(clock.monotonic()), AWAY, 0.1, clock.monotonic())
        route.hedges.sent = 3
        await eventually(lambda: told("circuit_open") == 1.0)
        clock.advance(1.0)
        await eventually(lambda: told("circuit_open") == 0.5)
    assert told("second_copies_total") == 3.0
