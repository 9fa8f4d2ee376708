import random
from dataclasses import replace

import pytest

from catena.kit.errors import Invalid
from catena.plan.build import sequential
from catena.plan.model import Interval, Prediction
from catena.router.app import manner_of
from catena.router.config import RouterConfig
from catena.router.core.budget import correction, shadow_price
from catena.router.core.choice import Candidate, Taste, rank
from tests.unit.router.world import Bench

pytestmark = pytest.mark.unit

TASTE = Taste(objective="quality", weights={"cost": 0.3, "latency": 0.3, "quality": 0.4}, margin=0.02, caution=0.0)


def candidate(name, quality, usd):
    told = Interval(quality, quality, quality)
    cost = Interval(usd, usd, usd)
    return Candidate(
        plan=sequential(name), prediction=Prediction(quality=told, cost_usd=cost, latency_ms=Interval(1, 1, 1))
    )


TABLES = {
    "easy": [candidate("small", 0.90, 0.001), candidate("large", 0.92, 0.010)],
    "hard": [candidate("small", 0.30, 0.001), candidate("large", 0.80, 0.010)],
}
MIX = {"easy": 1.0, "hard": 1.0}


def chosen(price):
    return {name: rank(table, replace(TASTE, price=price))[0] for name, table in TABLES.items()}


def test_the_budget_goes_where_it_buys_most():
    picks = chosen(shadow_price(TABLES, MIX, TASTE, 0.006))
    assert picks["easy"].plan.main_model == "small"
    assert picks["hard"].plan.main_model == "large"


def test_a_budget_that_binds_nothing_costs_nothing():
    assert shadow_price(TABLES, MIX, TASTE, 0.02) == 0.0
    assert shadow_price(TABLES, MIX, TASTE, 0.0) == 0.0


def test_under_a_budget_that_nothing_keeps_the_cheapest_are_chosen():
    picks = chosen(shadow_price(TABLES, MIX, TASTE, 0.0001))
    assert {c.plan.main_model for c in picks.values()} == {"small"}


def test_the_price_rises_with_what_was_overspent_and_falls_with_what_was_saved():
    assert correction([0.02] * 300, 0.01) > 1.5
    assert correction([0.005] * 300, 0.01) < 0.7
    assert correction([], 0.01) == 1.0
    assert correction([0.02] * 3, 0.01) < 1.15


@pytest.mark.parametrize("usd", [-1.0, float("nan"), float("inf")])
def test_a_budget_without_sense_is_refused(usd):
    with pytest.raises(Invalid, match="budget_usd"):
        manner_of(RouterConfig(budget_usd=usd))


async def test_in_the_long_run_the_room_spends_its_budget():
    spent = {}
    for budget in (0.0, 1.2e-5):
        bench = await Bench(budget_usd=budget, objective="quality", min_judged=1).open()
        rng = random.Random(3)
        for number in range(900):
            skill, ease = bench.simulated.question()
            decision = await bench.recommend(skill, task=skill, objective="quality")
            await bench.run(decision.plan, skill, ease, judged=rng.random() < 0.3)
            if number % 50 == 49:
                await bench.router.settle()
        seen = bench.router.state.book("t").observations()[-400:]
        spent[budget] = sum(one.cost_usd for one in seen) / len(seen)
    assert spent[0.0] > 2.0e-5
    assert spent[1.2e-5] == pytest.approx(1.2e-5, rel=0.25)
