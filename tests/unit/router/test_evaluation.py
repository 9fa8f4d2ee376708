import random
from dataclasses import replace

import pytest

from catena.kit.errors import Invalid
from catena.plan.build import sequential
from catena.plan.model import Role
from catena.router.core.ask import Ask
from catena.router.core.beforehand import Kinds
from catena.router.core.board import taught
from catena.router.core.candidates import House
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.choice import Taste
from catena.router.core.evaluation import evaluate
from catena.router.core.hindsight import hindsight_of
from catena.router.core.learning import learn
from catena.router.core.observation import Observation, StageOutcome
from catena.router.core.outlook import Length

pytestmark = pytest.mark.unit

TRUTH = {("small", "easy"): 0.9, ("large", "easy"): 0.92, ("small", "hard"): 0.3, ("large", "hard"): 0.8}
CATALOGUE = catalogue_of([ModelCard(name="small", price_output=0.1), ModelCard(name="large", price_output=1.0)])


def log(rng, count, *, share_large):
    """A policy that asks the large model with that probability, more often where it is hard, and says so."""
    seen = []
    for number in range(count):
        domain = "hard" if rng.random() < 0.5 else "easy"
        odds = share_large if domain == "easy" else min(2.0 * share_large, 0.9)
        model = "large" if rng.random() < odds else "small"
        plan = replace(sequential(model), propensity=odds if model == "large" else 1.0 - odds, domain=domain)
        seen.append(
            Observation(
                execution_id=f"x{number}",
                time_s=float(number),
                configuration_id=plan.configuration_id,
                plan=plan,
                domain=domain,
                routed=True,
                chars=20,
                stages=(StageOutcome(name="main", role=Role.MAIN, model=model, input_tokens=5, output_tokens=5),),
                score=float(rng.random() < TRUTH[model, domain]),
            )
        )
    return seen


def foretold(knowledge):
    return lambda one, plan: knowledge.predict(plan, one.domain, Length(chars=one.chars))


def always_large(_):
    return sequential("large")


def by_domain(one):
    return sequential("large" if one.domain == "hard" else "small")


@pytest.mark.parametrize(("policy", "truth"), [(always_large, 0.86), (by_domain, 0.85)])
def test_another_policy_is_valued_from_a_log_that_seldom_did_as_it_would(policy, truth):
    seen = log(random.Random(1), 4000, share_large=0.1)
    found = evaluate(seen, policy, foretold(learn(seen, CATALOGUE, Kinds())))
    naive = sum(one.score for one in seen) / len(seen)
    assert abs(naive - truth) > 0.08
    assert found.quality.ips.value == pytest.approx(truth, abs=0.05)
    assert found.quality.doubly_robust.value == pytest.approx(truth, abs=0.05)


def test_its_intervals_hold_what_they_promise():
    inside = 0
    for seed in range(60):
        seen = log(random.Random(seed), 800, share_large=0.2)
        told = evaluate(seen, always_large, foretold(learn(seen, CATALOGUE, Kinds()))).quality.doubly_robust
        inside += abs(told.value - 0.86) <= told.half_width
    assert inside >= 52


def test_doubly_robust_stands_where_the_predictions_are_wrong():
    """Knowledge of a world in which both models fail."""
    spoilt = [replace(one, score=0.0) for one in log(random.Random(2), 600, share_large=0.3)]
    wrong = learn(spoilt, CATALOGUE, Kinds())
    found = evaluate(log(random.Random(3), 6000, share_large=0.2), always_large, foretold(wrong))
    assert found.quality.doubly_robust.value == pytest.approx(0.86, abs=0.06)


def test_a_log_without_propensities_is_refused():
    seen = [replace(one, plan=replace(one.plan, propensity=0.0)) for one in log(random.Random(4), 20, share_large=0.5)]
    with pytest.raises(Invalid, match="chosen freely"):
        evaluate(seen, always_large, foretold(learn(seen, CATALOGUE, Kinds())))


ALIKE = [f"model-{n}" for n in range(8)]


def among_equals(rng, count):
    """Eight models of the same price that are right as often as each other, drawn alike in six domains."""
    seen = []
    for one in log(rng, count, share_large=0.5):
        plan = replace(sequential(rng.choice(ALIKE)), propensity=1.0 / len(ALIKE))
        domain, right = f"domain-{rng.randrange(6)}", float(rng.random() < 0.7)
        stages = (replace(one.stages[0], model=plan.main_model),)
        told = {"plan": plan, "configuration_id": plan.configuration_id, "stages": stages}
        seen.append(replace(one, domain=domain, score=right, **told))
    return seen


def test_what_only_looks_better_by_luck_is_not_said_to_be():
    catalogue = catalogue_of([ModelCard(name=name, price_output=1.0) for name in ALIKE])
    taste = Taste(objective="quality", weights={"quality": 1.0, "cost": 0.0, "latency": 0.0}, margin=0.0, caution=0.0)
    gains, different = [], 0
    for seed in range(6):
        seen = among_equals(random.Random(seed), 400)
        board = taught(seen, catalogue, Kinds(), house=House(shapes={}), taste=taste, half_life=100_000)
        hindsight = hindsight_of(board, seen)
        told = evaluate(seen, hindsight.policy(taste, Ask(text="", chars=0)), hindsight.foretell).quality
        gains.append(told.gained.value)
        different += abs(told.gained.value) > told.gained.half_width
    assert sum(gains) / len(gains) == pytest.approx(0.0, abs=0.04)
    assert different <= 1
