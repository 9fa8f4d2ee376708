import random
from dataclasses import replace

import pytest

from catena.kit.errors import Invalid
from catena.plan.build import sequential
from catena.plan.model import Role
from catena.router.core.beforehand import Kinds
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.evaluation import evaluate
from catena.router.core.learning import learn
from catena.router.core.observation import Observation, StageOutcome

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


def always_large(_):
    return sequential("large")


def by_domain(one):
    return sequential("large" if one.domain == "hard" else "small")


@pytest.mark.parametrize(("policy", "truth"), [(always_large, 0.86), (by_domain, 0.85)])
def test_another_policy_is_valued_from_a_log_that_seldom_did_as_it_would(policy, truth):
    seen = log(random.Random(1), 4000, share_large=0.1)
    found = evaluate(seen, policy, learn(seen, CATALOGUE, Kinds()))
    naive = sum(one.score for one in seen) / len(seen)
    assert abs(naive - truth) > 0.08
    assert found.quality.ips.value == pytest.approx(truth, abs=0.05)
    assert found.quality.doubly_robust.value == pytest.approx(truth, abs=0.05)


def test_its_intervals_hold_what_they_promise():
    inside = 0
    for seed in range(60):
        seen = log(random.Random(seed), 800, share_large=0.2)
        told = evaluate(seen, always_large, learn(seen, CATALOGUE, Kinds())).quality.doubly_robust
        inside += abs(told.value - 0.86) <= told.half_width
    assert inside >= 52


def test_doubly_robust_stands_where_the_predictions_are_wrong():
    """Knowledge of a world in which both models fail."""
    spoilt = [replace(one, score=0.0) for one in log(random.Random(2), 600, share_large=0.3)]
    wrong = learn(spoilt, CATALOGUE, Kinds())
    found = evaluate(log(random.Random(3), 6000, share_large=0.2), always_large, wrong)
    assert found.quality.doubly_robust.value == pytest.approx(0.86, abs=0.06)


def test_a_log_without_propensities_is_refused():
    seen = [replace(one, plan=replace(one.plan, propensity=0.0)) for one in log(random.Random(4), 20, share_large=0.5)]
    with pytest.raises(Invalid, match="chosen freely"):
        evaluate(seen, always_large, learn(seen, CATALOGUE, Kinds()))
