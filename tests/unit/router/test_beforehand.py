import math
import random
from dataclasses import replace

import pytest

from catena.plan.build import ShapeConfig, build, sequential
from catena.plan.model import Role, Shape
from catena.router.core.beforehand import Beforehand, Kinds, learn_beforehand
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.learning import learn
from catena.router.core.observation import Observation, StageOutcome

pytestmark = pytest.mark.unit

NAMES = tuple(f"model-{n}" for n in range(6))
CATALOGUE = catalogue_of(
    ModelCard(name=name, price_input=n + 1.0, price_output=4.0 * (n + 1.0)) for n, name in enumerate(NAMES)
)


def execution(plan, stages, number, *, domain="a", score=None):
    return Observation(
        execution_id=f"x{number}",
        time_s=float(number),
        configuration_id=plan.configuration_id,
        plan=plan,
        domain=domain,
        routed=True,
        stages=stages,
        score=score,
    )


def told(rng, model, number, rate):
    plan = sequential(model)
    stage = StageOutcome(name="main", role=Role.MAIN, model=model, digest="x")
    return execution(plan, (stage,), number, score=float(rng.random() < rate))


def test_less_is_hoped_of_untried_models_where_those_of_their_price_disappoint():
    rng = random.Random(0)
    seen = [told(rng, NAMES[n % 4], n, 0.3) for n in range(80)]
    untried = sequential(NAMES[4])
    before = learn([], CATALOGUE, Kinds()).predict(untried, "a").quality.mean
    after = learn(seen, CATALOGUE, Kinds()).predict(untried, "a").quality.mean
    assert before > 0.7
    assert after < 0.55


def test_a_model_that_is_no_longer_asked_is_remembered_as_it_was():
    rng = random.Random(1)
    seen = [told(rng, NAMES[5], n, 0.2) for n in range(40)] + [told(rng, NAMES[0], 40 + n, 0.7) for n in range(600)]
    known = learn(seen, CATALOGUE, Kinds(), half_life=50)
    assert known.predict(sequential(NAMES[5]), "a").quality.mean < 0.4


def test_few_answers_are_drawn_to_the_line_of_prices_and_many_are_not():
    few = learn_beforehand([(NAMES[0], 2.0, 0.0)], CATALOGUE).of(NAMES[0], "", Kinds(), CATALOGUE)
    many = learn_beforehand([(NAMES[0], 200.0, 0.0)], CATALOGUE).of(NAMES[0], "", Kinds(), CATALOGUE)
    assert 0.2 < few < Beforehand().by_price(0.0)
    assert many < 0.05


def test_a_model_that_only_hard_requests_reach_is_not_taken_for_a_bad_one():
    rng = random.Random(2)
    cascade = build(Shape.CASCADE, ShapeConfig(fast=list(NAMES[:2]), main=NAMES[5], checks=["agreement"], min_chars=0))
    able = dict(zip((*NAMES[:2], NAMES[5]), (0.3, 0.3, 0.9), strict=True))
    seen, truth = [], []
    for number in range(1500):
        ease = rng.gauss(0.0, 1.0)
        right = {m: math.sqrt(0.5) * (ease + rng.gauss(0.0, 1.0)) > -level for m, level in able.items()}
        truth.append(right[NAMES[5]])
        said = {m: "right" if ok else f"wrong-{rng.randrange(5)}" for m, ok in right.items()}
        stages = [StageOutcome(name=s.name, role=s.role, model=s.model, digest=said[s.model]) for s in cascade.stages]
        if said[NAMES[0]] == said[NAMES[1]]:
            seen.append(execution(cascade, tuple(stages[:2]), number, score=float(right[NAMES[0]])))
        else:
            fast = [replace(stage, kept=False) for stage in stages[:2]]
            seen.append(execution(cascade, (*fast, stages[2]), number, score=float(right[NAMES[5]])))
    passed = [one.score for one in seen if len(one.stages) == 3]
    usual, hard = sum(truth) / len(truth), sum(passed) / len(passed)
    found = learn(seen, CATALOGUE, Kinds(), half_life=100_000).predict(sequential(NAMES[5]), "a").quality.mean
    assert hard < usual - 0.08
    assert found == pytest.approx(usual, abs=0.04)
