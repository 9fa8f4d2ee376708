"""Cascades that rest on agreement and on a verifier."""

import pytest

from catena.kit.errors import Unavailable
from catena.plan.model import Role, Shape
from tests.unit.executor.fakes import bed, plan, stage

AGREEING = plan(
    Shape.CASCADE,
    stage(Role.FAST, "small"),
    stage(Role.FAST, "third", name="fast-2"),
    stage(Role.MAIN, "large"),
    checks=("refusal", "agreement", "confidence"),
)


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
