import random

import numpy as np
import pytest

from catena.plan.build import ShapeConfig, build, sequential
from catena.plan.model import Interval, Shape
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


def test_a_chain_whose_intervals_miss_is_widened_and_the_others_are_not():
    rng = random.Random(0)
    ran = []
    for _ in range(600):
        ran.append(Ran("tame", Interval(1.0, 0.1, 9.0), 1.0))
        ran.append(Ran("wild", Interval(1.0, 0.9, 1.1), rng.lognormvariate(0.0, 0.5)))
    told = reaches(ran)
    assert told.of("wild").factor > 2.0
    assert told.of("tame").factor < 0.5
    assert told.of("never ran") == told.shared


def test_a_width_covers_nine_in_ten_of_what_it_was_taken_from():
    rng = np.random.default_rng(1)
    real = rng.lognormal(0.0, 0.8, 400)
    ends = [Interval(1.0, 0.7, 1.5)] * len(real)
    found = width(ends, real)
    assert np.mean((real >= 0.7**found) & (real <= 1.5**found)) == pytest.approx(0.9, abs=0.03)
    assert width(ends[:10], real[:10]) == 1.0


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
