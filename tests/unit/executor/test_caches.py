"""Answers that are given again: to the same question, and to one that means the same."""

from dataclasses import replace
from typing import Any

import pytest

from catena.executor.core.chat import Context, Delta, Image, Message, Sampling, Tool, Usage
from catena.executor.core.parts import Settings
from catena.executor.core.ports import Shelved
from catena.executor.core.predicting import Inquiry, predict
from catena.executor.core.remembering import anchors, shelved
from catena.executor.drivers.cache import Bounds, LruCache, MeaningCache
from catena.kit.clock import ManualClock, still_world
from catena.plan.model import Role, Shape
from tests.unit.executor.fakes import Bed, bed, errand, plan, stage

ONE = plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large"))
VECTORS = Settings(embedding_model="vectors")


def meaning(**bounds: Any) -> tuple[MeaningCache, ManualClock]:
    clock = ManualClock()
    told = Bounds(**{"size": 10, "ttl_s": 60.0, **bounds})
    return MeaningCache(threshold=0.95, bounds=told, clock=clock), clock


def at(*vector: float, shelf: str = "s", anchors: str = "") -> Shelved:
    return Shelved(shelf=shelf, anchors=anchors, vector=vector)


def remembering(**script: Any) -> tuple[Bed, ManualClock]:
    world = still_world()
    assert isinstance(world.clock, ManualClock)
    semantic = MeaningCache(threshold=0.95, bounds=Bounds(size=10, ttl_s=60.0), clock=world.clock)
    return bed(world, VECTORS, semantic=semantic, **script), world.clock


async def test_a_question_that_means_the_same_gets_the_same_answer_and_says_what_that_saved() -> None:
    table, _ = remembering(large=["the first answer", "another"])
    first, _ = await table.run(ONE, "is it good")
    again, events = await table.run(ONE, "would you call it good", stream=True)
    assert again.choices == first.choices
    assert again.cached
    assert again.execution_id != first.execution_id
    assert again.saved is not None
    assert (again.saved.usage, again.saved.cost_usd) == (first.usage, first.cost_usd)
    assert again.saved.execution_id == first.execution_id
    assert again.saved.similarity == pytest.approx(1.0)
    assert [event.text for event in events if isinstance(event, Delta)] == ["the first answer"]
    assert table.provider.models_asked() == ["large"]


async def test_finding_an_answer_by_meaning_costs_what_its_vector_costs() -> None:
    table, _ = remembering(large="fine")
    await table.run(ONE, "is it good")
    again, _ = await table.run(ONE, "is it really good")
    assert [(one.name, one.outcome) for one in again.stages] == [("embed", "accepted"), ("cache", "cached")]
    assert again.usage == Usage(input_tokens=1)
    record = table.records.added[-1]
    assert (record.cached, record.outcome, record.usage) == (True, "succeeded", again.usage)


async def test_what_is_only_alike_is_not_given_for_the_very_same_question_once_more() -> None:
    cold = Sampling(temperature=0.0)
    table, clock = remembering(large=["one", "two"])
    await table.run(ONE, "is it good", sampling=cold)
    alike, _ = await table.run(ONE, "is it really good", sampling=cold)
    assert alike.choices[0].text == "one"
    clock.advance(61)
    anew, _ = await table.run(ONE, "is it really good", sampling=cold)
    assert (anew.choices[0].text, anew.cached) == ("two", False)


@pytest.mark.parametrize(
    "other",
    [
        {"text": "it is bad bad bad"},
        {"text": "is it good at 3"},
        {"text": "is it not good"},
        {"tenant": "another"},
        {"plan": plan(Shape.SEQUENTIAL, stage(Role.MAIN, "third"))},
        {"sampling": Sampling(max_tokens=5)},
        {"json_schema": {"type": "object"}},
        {"no_cache": True},
        {"sampling": Sampling(temperature=0.9)},
        {"context": Context(memory_collection="notes")},
    ],
)
async def test_another_meaning_caller_or_way_is_answered_anew(other: dict[str, Any]) -> None:
    table, _ = remembering(large="fine", third="fine")
    asked = {"plan": ONE, "text": "is it good", **other}
    await table.run(ONE, "is it good")
    finished, _ = await table.run(asked.pop("plan"), asked.pop("text"), **asked)
    assert not finished.cached


async def test_without_an_embedding_model_questions_are_simply_answered() -> None:
    table, _ = remembering(large="fine")
    table.parts = replace(table.parts, embeddings={})
    finished, _ = await table.run(ONE, "is it good")
    assert finished.choices[0].text == "fine"


@pytest.mark.parametrize(
    "kept_out",
    [
        {"sampling": Sampling(seed=1)},
        {"sampling": Sampling(temperature=0.2)},
        {"sampling": Sampling(n=2)},
        {"sampling": Sampling(logprobs=True)},
        {"context": Context(feature_vector="user/1/profile")},
    ],
)
def test_who_wants_one_certain_answer_or_many_is_not_compared(kept_out: dict[str, Any]) -> None:
    assert shelved(errand(ONE)) is not None
    assert shelved(errand(ONE, **kept_out)) is None


def test_pictures_tools_and_open_turns_are_not_compared() -> None:
    asked = errand(ONE)
    turn = Message(role="user", content="q", images=(Image(url="https://x/y.png"),))
    for request in (
        replace(asked.request, messages=(turn,)),
        replace(asked.request, tools=(Tool(name="f"),)),
        replace(asked.request, messages=(*asked.request.messages, Message(role="assistant", content="so"))),
        replace(asked.request, messages=(), prompt="once upon"),
    ):
        assert shelved(replace(asked, request=request)) is None
    assert shelved(errand(plan(Shape.SEARCH, stage(Role.MAIN, "large")))) is None
    assert shelved(errand(plan(Shape.SEQUENTIAL, stage(Role.MAIN, "large@auto")))) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("add 2 and 3", "add 2 and 4"),
        ("does it work", "doesn't it work"),
        ("is it safe", "is it not safe"),
        ("the capital of France", "the capital of Spain"),
        ('translate "cat"', 'translate "dog"'),
        ("read a_b.py", "read a_c.py"),
        ("fix `x`", "fix `y`"),
    ],
)
def test_questions_that_differ_in_what_vectors_miss_do_not_meet(one: str, other: str) -> None:
    assert anchors(one) != anchors(other)


def test_wording_alone_anchors_nothing() -> None:
    assert anchors("What is the weather like?") == anchors("how is the weather") == ""


def test_the_likest_question_wins_if_it_is_like_enough() -> None:
    cache, _ = meaning()
    cache.put(at(1.0, 0.0), "east", ["m"])
    cache.put(at(0.9, 0.3), "a little north", ["m"])
    found = cache.near(at(2.0, 0.1))
    assert found is not None
    assert found[0] == "east"
    assert found[1] == pytest.approx(0.99875, abs=1e-4)
    assert cache.near(at(0.0, 1.0)) is None
    assert cache.near(at(1.0, 0.0, shelf="other")) is None
    assert cache.near(at(1.0, 0.0, anchors="3")) is None


def test_meanings_are_forgotten_by_age_use_and_change() -> None:
    cache, clock = meaning(size=2)
    cache.put(at(1.0, 0.0), "a", ["base@x:1"])
    clock.advance(30)
    cache.put(at(0.0, 1.0), "b", ["other"])
    assert cache.near(at(1.0, 0.0)) is not None
    cache.put(at(-1.0, 0.0), "c", ["base@x:2"])
    assert cache.near(at(0.0, 1.0)) is None, "it was used longest ago"
    clock.advance(31)
    assert cache.near(at(1.0, 0.0)) is None, "an hour is over even for what was just used"
    assert cache.forget("base@x") == 1
    assert cache.near(at(-1.0, 0.0)) is None


def test_meanings_fit_their_bytes_however_many_there_are() -> None:
    cache, _ = meaning(size=1000, most_bytes=2000)
    for number in range(300):
        cache.put(at(1.0, 0.0, shelf=str(number)), "x" * 80, ["m"])
    kept = [number for number in range(300) if cache.near(at(1.0, 0.0, shelf=str(number)))]
    assert kept == list(range(300 - len(kept), 300))
    assert 10 <= len(kept) <= 2000 // 82
    cache.put(at(0.5, 0.5), "x" * 5000, ["m"])
    assert cache.near(at(0.5, 0.5)) is None, "larger than all there is"


def test_another_embedding_model_starts_over() -> None:
    cache, _ = meaning()
    cache.put(at(1.0, 0.0), "a", ["m"])
    cache.put(at(1.0, 0.0, 0.0), "b", ["m"])
    assert cache.near(at(1.0, 0.0)) is None
    assert cache.near(at(1.0, 0.0, 0.0)) == ("b", 1.0)


def test_exact_answers_fit_their_bytes() -> None:
    cache = LruCache(size=100, ttl_s=60, clock=ManualClock(), most_bytes=300)
    for number in range(5):
        cache.put(str(number), "x" * 98, ["m"])
    assert [cache.get(str(number)) is not None for number in range(5)] == [False, False, True, True, True]
    cache.put("huge", "x" * 400, ["m"])
    assert cache.get("huge") is None
    assert cache.get("4") is not None


async def test_a_prediction_from_the_cache_says_what_it_saved() -> None:
    table = bed(large="fine")
    asked = Inquiry(tenant="acme", model_id="large", data="q", parameters={"temperature": 0}, left_s=9.0)
    first, again = await predict(table.parts, asked), await predict(table.parts, asked)
    assert (again.cached, again.cost_usd, again.usage) == (True, 0.0, Usage())
    assert again.saved is not None
    assert (again.saved.cost_usd, again.saved.execution_id) == (first.cost_usd, first.execution_id)
