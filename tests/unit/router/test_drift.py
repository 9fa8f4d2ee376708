import math
import random
from dataclasses import replace

import pytest

from catena.plan.build import sequential
from catena.plan.model import Plan, Role, Shape, Stage
from catena.router.core.ask import Ask
from catena.router.core.beforehand import Kinds
from catena.router.core.board import weigh
from catena.router.core.catalogue import catalogue_of
from catena.router.core.choice import Taste, rank
from catena.router.core.decision import Curiosity, Found, Grounds, decide
from catena.router.core.drift import LEVEL, Answer, changes_of, find_change, judged_of, latest_change
from catena.router.core.learning import learn
from catena.router.core.observation import Observation, StageOutcome
from catena.router.core.outlook import Length
from tests.unit.router.simulation import LARGE, SMALL, cards

pytestmark = pytest.mark.unit

CATALOGUE = catalogue_of(cards())
QUALITY = Taste(objective="quality", weights={"cost": 0.3, "latency": 0.3, "quality": 0.4}, margin=0.02, caution=0.5)


def answers(rng, count, odds, *, change_at=None, by=0.0):
    """Judged answers in eight domains of their own difficulty, right with such log-odds, others from `change_at` on."""
    harder = [rng.gauss(0.0, 0.6) for _ in range(8)]
    told = []
    for place in range(count):
        domain = rng.randrange(len(harder))
        level = odds + harder[domain] + (by if change_at is not None and place >= change_at else 0.0)
        told.append(Answer(place, float(rng.random() < 1.0 / (1.0 + math.exp(-level))), f"d{domain}"))
    return told


def alone(rng, model, number, rate):
    """An execution by one model, right at that rate, judged."""
    stage = StageOutcome(name="main", role=Role.MAIN, model=model, input_tokens=20, output_tokens=20, digest="x")
    plan = sequential(model)
    return Observation(
        execution_id=f"{model}-{number}",
        time_s=float(number),
        configuration_id=plan.configuration_id,
        plan=plan,
        domain="add",
        routed=True,
        stages=(stage,),
        score=float(rng.random() < rate),
    )


def test_without_a_change_one_is_seen_no_more_often_than_the_level_however_often_one_looks():
    alarms = 0
    for seed in range(60):
        rng = random.Random(seed)
        told = answers(rng, 120, rng.gauss(0.5, 0.8))
        alarms += any(find_change(told[:seen]) is not None for seen in range(12, 121, 6))
    assert alarms <= 60 * LEVEL + 2


@pytest.mark.parametrize("by", [-2.0, 2.0])
def test_a_change_is_seen_soon_and_dated_where_it_was(by):
    delays, dates = [], []
    for seed in range(15):
        told = answers(random.Random(seed), 180, -by / 2.0, change_at=80, by=by)
        found = next((n for n in range(84, 181, 4) if find_change(told[:n]) is not None), 180)
        delays.append(found - 80)
        change = find_change(told)
        if change is not None:
            assert change.shift * by > 0.0
            dates.append(abs(change.since - 80))
    assert len(dates) >= 14
    assert sorted(delays)[7] <= 40
    assert sorted(dates)[7] <= 6


def test_a_model_that_recovers_is_judged_by_what_it_did_since():
    rng = random.Random(3)
    told = [Answer(n, float(rng.random() < (0.2 if 100 <= n < 200 else 0.9))) for n in range(300)]
    assert latest_change(told).since == pytest.approx(200, abs=6)


def test_harder_requests_behind_a_gate_are_no_change_of_the_model():
    rng = random.Random(4)
    stages = tuple(
        Stage(name=name, role=role, model=model)
        for name, role, model in (("fast", Role.FAST, SMALL), ("main", Role.MAIN, LARGE))
    )
    cascade = Plan(shape=Shape.CASCADE, stages=stages)
    seen = []
    for number in range(400):
        passed = rng.random() < (0.1 if number < 200 else 0.9)
        one = alone(rng, LARGE, number, 0.45 if passed else 0.85)
        if passed:
            fast = StageOutcome(name="fast", role=Role.FAST, model=SMALL, kept=False, digest="y")
            one = replace(one, plan=cascade, stages=(fast, *one.stages))
        seen.append(one)
    assert changes_of(judged_of(seen)) == {}
    pooled = [Answer(place, one.score) for place, one in enumerate(seen)]
    assert find_change(pooled) is not None


def test_what_was_judged_before_a_change_no_longer_counts_and_the_explanation_says_so():
    rng = random.Random(5)
    seen = [alone(rng, model, n, rate) for n in range(150) for model, rate in ((LARGE, 0.9), (SMALL, 0.6))]
    seen += [alone(rng, model, 200 + n, rate) for n in range(40) for model, rate in ((LARGE, 0.2), (SMALL, 0.6))]
    knowledge = learn(seen, CATALOGUE, Kinds(), half_life=100_000)
    assert set(knowledge.changes) == {LARGE}
    assert knowledge.changes[LARGE].since == pytest.approx(300, abs=10)
    assert knowledge.predict(sequential(LARGE), "add").quality.mean == pytest.approx(0.2, abs=0.12)
    assert knowledge.predict(sequential(SMALL), "add").quality.mean == pytest.approx(0.6, abs=0.1)
    assert 60 <= knowledge.judged_lately <= 100
    weighed = rank(weigh([sequential(LARGE), sequential(SMALL)], knowledge, "add", Length()), QUALITY)
    grounds = Grounds(knowledge=knowledge, taste=QUALITY)
    told = decide(Ask(text="add", chars=3), Found(domain="add"), weighed, grounds, Curiosity(), rng)
    assert told.plan.main_model == SMALL
    assert f"{LARGE} has changed: worse" in told.reason
