import random
from dataclasses import replace

import pytest

from catena.plan.build import ShapeConfig, build, sequential
from catena.plan.model import Role, Shape
from catena.router.core.beforehand import Kinds
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.dissent import dissent_of
from catena.router.core.drift import LEVEL
from catena.router.core.learning import learn
from catena.router.core.observation import Observation, StageOutcome

pytestmark = pytest.mark.unit

ABLE = {"first": 0.7, "second": 0.68, "large": 0.8}
CATALOGUE = catalogue_of(
    ModelCard(name=name, price_input=price, price_output=price)
    for name, price in zip(ABLE, (0.1, 0.2, 2.0), strict=True)
)
CASCADE = build(Shape.CASCADE, ShapeConfig(fast=["first", "second"], main="large", checks=["agreement"], min_chars=0))
VOTE = build(Shape.CONSENSUS, ShapeConfig(members=list(ABLE)))


def said(rng, able, ease):
    """An answer out of eight; the right one is 0. Models find the same questions hard."""
    return "0" if rng.random() < min(max(able + ease, 0.02), 0.98) else str(rng.randrange(1, 8))


def stage(name, role, model, answer, *, kept=True):
    return StageOutcome(name=name, role=role, model=model, digest=answer, kept=kept, input_tokens=9, output_tokens=9)


def ran(rng, number, able, *, harder=0.0, votes=0.1):
    """A cascade, or now and then a vote, that nobody judged."""
    ease = rng.uniform(-0.3, 0.2) - harder
    answers = {model: said(rng, rate, ease) for model, rate in able.items()}
    plan = VOTE if rng.random() < votes else CASCADE
    if plan is VOTE:
        stages = [stage(s.name, s.role, s.model, answers[s.model]) for s in plan.stages]
    else:
        agreed = answers["first"] == answers["second"]
        stages = [stage(s.name, s.role, s.model, answers[s.model], kept=agreed) for s in plan.of(Role.FAST)]
        main = plan.of(Role.MAIN)[0]
        stages += [] if agreed else [stage(main.name, main.role, main.model, answers[main.model])]
    return Observation(
        execution_id=str(number),
        time_s=60.0 * number,
        configuration_id=plan.configuration_id,
        plan=plan,
        domain=f"d{number % 3}",
        routed=True,
        stages=tuple(stages),
    )


def stream(seed, count, *, worse="", harder=0.0, at=0):
    """Executions in order; from `at` on a model fails at three in five of what it knew, or all requests are harder."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        later = number >= at
        able = {model: rate * (0.4 if later and model == worse else 1.0) for model, rate in ABLE.items()}
        found.append(ran(rng, number, able, harder=harder if later else 0.0))
    return found


def test_without_a_change_nobody_is_held_to_have_fallen_however_often_one_looks():
    alarms = 0
    for seed in range(25):
        told = stream(seed, 600)
        alarms += any(dissent_of(told[:seen]) for seen in range(60, 601, 60))
    assert alarms <= 25 * LEVEL * len(ABLE) + 2


@pytest.mark.parametrize("model", list(ABLE))
def test_a_model_that_gets_worse_is_found_without_a_verdict_and_no_other_is_blamed(model):
    found = []
    for seed in range(6):
        told = stream(seed, 900, worse=model, at=450)
        assert dissent_of(told).keys() <= {model}
        found += dissent_of(told).values()
    assert len(found) >= 5
    assert all(change.shift < 0.0 and not change.judged for change in found)
    assert sorted(abs(change.since - 450) for change in found)[len(found) // 2] <= 60


def test_requests_that_get_harder_are_nobodys_fall():
    for seed in range(6):
        assert dissent_of(stream(seed, 900, harder=0.25, at=450)) == {}


def test_beside_one_other_alone_nobody_can_be_blamed():
    seen = stream(7, 900, worse="first", at=450)
    told = [replace(one, stages=one.stages[:2]) for one in seen if one.plan.shape is Shape.CASCADE]
    assert dissent_of(told) == {}


def test_a_model_that_fell_is_taken_to_be_as_much_worse_until_it_is_judged():
    rng = random.Random(9)
    judged = [
        Observation(
            execution_id=f"j{number}",
            time_s=float(number),
            configuration_id="c",
            plan=sequential("large"),
            domain=f"d{number % 3}",
            routed=True,
            stages=(stage("main", Role.MAIN, "large", "0"),),
            score=float(rng.random() < 0.8),
        )
        for number in range(60)
    ]
    before, after = stream(10, 450), stream(10, 900, worse="large", at=450)
    calm = learn([*judged, *before], CATALOGUE, Kinds(), half_life=100_000)
    fallen = learn([*judged, *after], CATALOGUE, Kinds(), half_life=100_000)
    assert set(fallen.changes) == {"large"}
    plan = sequential("large")
    assert calm.predict(plan, "d0").quality.mean == pytest.approx(0.8, abs=0.12)
    assert fallen.predict(plan, "d0").quality.mean < 0.65
    assert "agrees less with others" in fallen.changes["large"].words
