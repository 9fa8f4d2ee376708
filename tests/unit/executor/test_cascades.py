"""Cascades that rest on agreement and on a verifier."""

from typing import Any

import pytest

from catena.executor.core.actions import Call
from catena.executor.core.chat import ChatRequest, Delta, Message, Sampling
from catena.executor.core.parts import facts
from catena.executor.core.strategies.cascade import cascade
from catena.kit.errors import Unavailable
from catena.plan.answer import NAMES
from catena.plan.model import Plan, Role, Shape
from tests.unit.executor.fakes import bed, plan, stage

AGREEING = plan(
    Shape.CASCADE,
    stage(Role.FAST, "small"),
    stage(Role.FAST, "third", name="fast-2"),
    stage(Role.MAIN, "large"),
    checks=("refusal", "agreement", "confidence"),
)


EARLY = plan(Shape.CASCADE, stage(Role.FAST, "small"), stage(Role.MAIN, "large"), checks=("refusal", "schema"))
LONG = " ".join(["word"] * 60)


def texts(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Delta) and event.text]


async def test_a_fast_answer_streams_from_where_its_beginning_is_no_refusal() -> None:
    finished, events = await bed(small=LONG, large="never").run(EARLY, stream=True)
    assert texts(events) == ["word", *[" word"] * 59]
    assert finished.choices[0].text == LONG
    assert [(one.name, one.outcome) for one in finished.stages] == [("fast", "accepted")]


def test_a_fast_answer_is_held_for_as_long_as_a_refusal_may_come() -> None:
    request = ChatRequest(messages=(Message(role="user", content="question"),))
    call = next(cascade(EARLY, request, facts(bed().parts)))
    assert isinstance(call, Call)
    assert call.stream
    assert call.sift is not None
    sift = call.sift()
    assert list(sift([Delta(text="a" * 199)])) == []
    assert [delta.text for delta in sift([Delta(text="b")])] == ["a" * 199, "b"]
    assert [delta.text for delta in sift([Delta(text="I cannot")])] == ["I cannot"], "it is a quotation by now"


@pytest.mark.parametrize("refused", [f"I cannot help. {LONG}", "too short"])
async def test_nothing_is_shown_of_a_fast_answer_that_fails(refused: str) -> None:
    wanted = plan(Shape.CASCADE, *EARLY.stages, checks=("refusal", "schema"), min_chars=20)
    finished, events = await bed(small=refused, large="strong and well").run(wanted, stream=True)
    assert "".join(texts(events)) == finished.choices[0].text == "strong and well"
    assert [one.outcome for one in finished.stages] == ["rejected", "accepted"]


async def test_what_ends_before_it_has_passed_comes_whole_when_it_has() -> None:
    _, events = await bed(small="short and good", large="never").run(EARLY, stream=True)
    assert texts(events) == ["short and good"]


@pytest.mark.parametrize("more", [{"checks": ("refusal", "truncation")}, {"checks": ("confidence",)}])
async def test_checks_that_see_the_end_hold_the_answer_until_then(more: dict[str, Any]) -> None:
    wanted = plan(Shape.CASCADE, *EARLY.stages, **more)
    _, events = await bed(small=LONG, large="never").run(wanted, stream=True)
    assert texts(events) == [LONG]


async def test_a_schema_holds_the_answer_until_it_is_whole() -> None:
    schema = {"type": "object"}
    said = '{"a": 1, "b": 2}'
    wanted = plan(Shape.CASCADE, *EARLY.stages, checks=("schema",))
    _, events = await bed(small=said, large="never").run(wanted, stream=True, json_schema=schema)
    assert texts(events) == [said]


async def test_the_strong_model_is_not_asked_behind_words_that_the_client_has() -> None:
    table = bed(small=LONG, large="never")
    table.provider.cut.add("small")
    wanted = plan(Shape.CASCADE, *EARLY.stages, checks=("schema",))
    with pytest.raises(Unavailable) as caught:
        await table.run(wanted, stream=True)
    assert caught.value.code == "stream_cut"
    assert set(table.provider.models_asked()) == {"small"}


async def test_a_fast_answer_that_breaks_off_before_it_was_shown_is_the_strong_ones_to_give() -> None:
    table = bed(small=LONG, large="strong")
    table.provider.cut.add("small")
    _, events = await table.run(EARLY, stream=True)
    assert texts(events) == ["strong"]


async def test_several_fast_answers_stream_when_the_first_has_passed() -> None:
    table = bed(small=LONG, large="never")
    finished, events = await table.run(EARLY, stream=True, sampling=Sampling(n=2))
    assert "".join(texts(events)) == finished.choices[0].text


async def test_two_cheap_models_that_agree_spare_the_strong_one_however_unsure_each_is() -> None:
    table = bed(small="It is 4. The answer is 4", third="2+2: answer: 4", large="never")
    table.provider.confidence["small"] = 0.1
    finished, _ = await table.run(AGREEING)
    assert finished.choices[0].text == "It is 4. The answer is 4"
    assert [(one.name, one.outcome, one.confidence) for one in finished.stages] == [
        ("fast", "accepted", 1.0),
        ("fast-2", "accepted", 1.0),
    ]
    assert finished.stages[0].answer_digest == finished.stages[1].answer_digest


async def test_two_cheap_models_that_differ_leave_it_to_the_strong_one() -> None:
    finished, _ = await bed(small="so, answer: 4", third="5", large="I find: the answer is 4").run(AGREEING)
    assert finished.choices[0].text == "I find: the answer is 4"
    assert [one.reason for one in finished.stages] == ["1 of 2 agree", "outvoted", ""]
    digests = [one.answer_digest for one in finished.stages]
    assert digests[0] == digests[2] != digests[1], "the first was right all the same"


@pytest.mark.parametrize(
    ("said", "threshold", "kept"),
    [(["7", "7", "8"], 0.6, True), (["7", "7", "8"], 0.7, False), (["7", "8", "9"], 0.1, False)],
)
async def test_samples_of_one_model_have_to_agree_as_far_as_the_threshold_says(
    said: list[str], threshold: float, kept: bool
) -> None:
    sampled = plan(
        Shape.CASCADE,
        stage(Role.FAST, "small"),
        stage(Role.MAIN, "large"),
        checks=("agreement",),
        samples=3,
        threshold=threshold,
    )
    table = bed(small=said, large="strong")
    finished, _ = await table.run(sampled)
    assert finished.choices[0].text == ("7" if kept else "strong")
    assert [ask.request.sampling.temperature for ask in table.provider.asked[:3]] == [0.7] * 3


VERIFIED = plan(
    Shape.CASCADE,
    stage(Role.FAST, "small"),
    stage(Role.JUDGE, "third"),
    stage(Role.MAIN, "large"),
    checks=("refusal", "verifier"),
    threshold=0.8,
)


@pytest.mark.parametrize(
    ("verdict", "sure", "reason"),
    [
        ("YES", 0.9, ""),
        ("Yes.", None, ""),
        ("yes", 0.7, "verified 0.700 < 0.8"),
        ("NO", 0.9, "verified 0.100 < 0.8"),
        ("perhaps", 0.9, "the verifier gave no verdict"),
        (Unavailable("away"), None, "the verifier gave no verdict"),
    ],
)
async def test_a_verifier_lets_an_answer_stand_or_fall(verdict: object, sure: float | None, reason: str) -> None:
    table = bed(small="Paris", third=[verdict], large="strong")
    if sure is not None:
        table.provider.confidence["third"] = sure
    finished, _ = await table.run(VERIFIED, "capital of France")
    assert finished.choices[0].text == ("strong" if reason else "Paris")
    assert table.provider.said_to("third").endswith("user: capital of France\n\nanswer: Paris")
    fast = next(one for one in finished.stages if one.name == "fast")
    assert (fast.outcome, fast.reason) == ("rejected" if reason else "accepted", reason)


async def test_an_answer_that_fails_a_check_costs_no_verifier() -> None:
    table = bed(small="I cannot", third="YES", large="strong")
    await table.run(VERIFIED)
    assert table.provider.models_asked() == ["small", "large"]


def looked(scorer: tuple[float, ...]) -> Plan:
    return plan(
        Shape.CASCADE,
        stage(Role.FAST, "small"),
        stage(Role.MAIN, "large"),
        checks=("confidence",),
        scorer=scorer,
        threshold=0.5,
    )


def sure_but_of_wrong_sums() -> tuple[float, ...]:
    weights = [0.0] * len(NAMES)
    weights[NAMES.index("wrong_equations")] = -6.0
    return (2.0, *weights)


@pytest.mark.parametrize(("said", "kept"), [("3 * 4 = 12", True), ("3 * 4 = 13", False)])
async def test_an_answer_whose_model_does_not_say_how_sure_it_is_is_held_to_the_plans_scorer(
    said: str, kept: bool
) -> None:
    finished, _ = await bed(small=said, large="strong").run(looked(sure_but_of_wrong_sums()))
    assert finished.choices[0].text == (said if kept else "strong")
    assert (finished.stages[0].confidence > 0.5) is kept


async def test_a_measured_confidence_goes_before_the_scorer() -> None:
    table = bed(small="3 * 4 = 13", large="strong")
    table.provider.confidence["small"] = 0.9
    finished, _ = await table.run(looked(sure_but_of_wrong_sums()))
    assert finished.choices[0].text == "3 * 4 = 13"


async def test_every_answer_is_told_with_what_it_looks_like() -> None:
    finished, _ = await bed(small="3 * 4 = 13").run(plan(Shape.SEQUENTIAL, stage(Role.MAIN, "small")))
    (told,) = finished.stages
    assert len(told.answer_features) == len(NAMES)
    assert told.answer_features[NAMES.index("wrong_equations")] > 0.0
