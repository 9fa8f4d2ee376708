import math
import random
from dataclasses import replace

import numpy as np
import pytest

from catena.plan.build import ShapeConfig, build, sequential
from catena.plan.model import Interval, Prediction, Role, Shape
from catena.router.core.beforehand import Kinds
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.intervals import Ran, reaches, width
from catena.router.core.learning import learn
from catena.router.core.outlook import Length
from tests.unit.router.outcome_rows import rows

pytestmark = pytest.mark.unit

CATALOGUE = catalogue_of(
    ModelCard(name=name, price_input=price, price_output=4.0 * price)
    for name, price in (("small", 0.1), ("middle", 0.2), ("large", 2.0))
)
CASCADE = build(Shape.CASCADE, ShapeConfig(fast=["small", "middle"], main="large", checks=["agreement"], min_chars=0))


TOLD = Interval(1.0, 0.5, 2.0)


def runs(rng, family, ends, spread, count, *, held=True):
    return [Ran(family, ends, rng.lognormvariate(0.0, spread), held) for _ in range(count)]


def share_within(rng, ends, reach, spread):
    """Of new runs, how many lie between the ends as far out as they are to lie."""
    low, high = ends.low**reach, ends.high**reach
    return np.mean([low <= rng.lognormvariate(0.0, spread) <= high for _ in range(2000)])


@pytest.mark.parametrize("ends", [Interval(1.0, 0.9, 1.1), Interval(1.0, 0.01, 90.0)], ids=["too narrow", "too wide"])
def test_ends_that_were_composed_wrongly_hold_nine_in_ten_of_what_comes_next(ends):
    held = []
    for seed in range(12):
        rng = random.Random(seed)
        held.append(share_within(rng, ends, reaches(runs(rng, "one", ends, 0.5, 200)).of("one"), 0.5))
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_a_chain_is_widened_by_its_own_runs_and_one_that_ran_seldom_by_those_of_others():
    rng = random.Random(0)
    often = runs(rng, "tame", TOLD, 0.1, 200) + runs(rng, "wild", TOLD, 1.0, 200)
    told = reaches([*often, *runs(rng, "new", TOLD, 0.1, 2)])
    assert told.of("tame") < 0.5
    assert told.of("wild") > 1.5
    assert told.of("new") > 2.0 * told.of("tame")
    assert told.of("never ran") == told.shared
    assert reaches([]).of("never ran") == 1.0


def test_what_many_chains_did_is_not_drowned_by_one_that_runs_often():
    rng = random.Random(4)
    seldom = [run for n in range(20) for run in runs(rng, f"seldom-{n}", TOLD, 1.0, 10)]
    assert reaches(seldom + runs(rng, "often", TOLD, 0.1, 200)).of("never ran") > 1.5


def test_where_too_few_were_held_ends_lie_further_out_but_not_beyond_what_was_seen():
    rng = random.Random(2)
    ran = runs(rng, "one", TOLD, 0.5, 200)
    missed = [run._replace(held=n % 4 > 0) for n, run in enumerate(ran)]
    usual, wider = reaches(ran).of("one"), reaches(missed).of("one")
    furthest = max(abs(math.log(run.real)) / math.log(2.0) for run in ran)
    assert usual < wider < furthest


def test_a_cold_start_that_missed_everything_is_soon_forgotten():
    """Eighty runs were told to take a second and took a twentieth of it."""
    rng = random.Random(6)
    far, plan = Interval(1000.0, 300.0, 4000.0), sequential("small")
    told = replace(plan, prediction=Prediction(quality=TOLD, cost_usd=TOLD, latency_ms=far))
    seen = []
    for number, one in enumerate(rows(rng, 80)):
        took = rng.lognormvariate(math.log(50.0), 0.3)
        stage = replace(one.stages[0], role=Role.MAIN, name="main", duration_ms=took)
        fields = {"plan": told, "configuration_id": told.configuration_id, "latency_ms": took, "time_s": 60.0 * number}
        seen.append(replace(one, stages=(stage,), **fields))
    known = learn(seen, CATALOGUE, Kinds())
    ends = known.predict(plan, "a").latency_ms
    assert known.kept.time == 0.0
    assert 40.0 < ends.mean < 65.0
    assert ends.high < 200.0
    assert np.mean([ends.holds(rng.lognormvariate(math.log(50.0), 0.3)) for _ in range(1000)]) >= 0.87


def test_a_width_covers_nine_in_ten_of_what_it_was_taken_from():
    rng = np.random.default_rng(1)
    real = rng.lognormal(0.0, 0.8, 400)
    ends = [Interval(1.0, 0.7, 1.5)] * len(real)
    free = np.zeros(len(real))
    found = width(ends, real, free)
    assert np.mean((real >= 0.7**found) & (real <= 1.5**found)) == pytest.approx(0.9, abs=0.03)
    assert width(ends[:10], real[:10], free[:10]) == 1.0


def test_a_width_is_taken_as_if_no_row_had_drawn_the_mean_to_itself():
    real = np.random.default_rng(1).lognormal(0.0, 0.8, 400)
    ends = [Interval(1.0, 0.7, 1.5)] * len(real)
    assert width(ends, real, np.full(len(real), 0.2)) == pytest.approx(1.25 * width(ends, real, np.zeros(len(real))))


def test_what_all_chains_miss_a_chain_that_never_ran_is_widened_by():
    rng = random.Random(5)
    ran = [Ran(f"chain {n % 40}", Interval(1.0, 0.9, 1.1), rng.lognormvariate(0.0, 0.5), True) for n in range(400)]
    assert reaches(ran).of("never ran") > 2.0


@pytest.mark.parametrize("plan", [sequential("large"), CASCADE], ids=["alone", "cascade"])
def test_chains_that_never_ran_keep_their_intervals_level_on_requests_that_were_not_learned_from(plan):
    seen = rows(random.Random(2), 3000)
    known = learn(seen[:1500], CATALOGUE, Kinds(), half_life=1_000_000)
    held = []
    for one in seen[1500:]:
        said = {stage.model: stage for stage in one.stages}
        asked = [said[stage.model] for stage in plan.stages]
        if len(asked) == 3 and asked[0].digest == asked[1].digest:
            asked = asked[:2]
        cards = [CATALOGUE.card(stage.model) for stage in asked]
        paid = zip(asked, cards, strict=True)
        usd = sum(s.input_tokens * c.price_input + s.output_tokens * c.price_output for s, c in paid) / 1e6
        ends = known.predict(plan, one.domain, Length(chars=one.chars)).cost_usd
        held.append(ends.low <= usd <= ends.high)
    assert np.mean(held) >= 0.87
