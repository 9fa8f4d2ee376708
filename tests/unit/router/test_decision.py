import random
from dataclasses import replace

import pytest

from catena.kit.errors import Invalid
from catena.plan.build import sequential
from catena.plan.model import PLAIN, Interval
from catena.router.core.ask import Ask
from catena.router.core.beforehand import Kinds
from catena.router.core.board import weigh
from catena.router.core.catalogue import catalogue_of
from catena.router.core.choice import Taste, rank
from catena.router.core.decision import CLOSELY, Curiosity, Found, Grounds, decide
from catena.router.core.learning import learn
from catena.router.core.outlook import Length
from tests.unit.router.simulation import LARGE, SMALL, cards

pytestmark = pytest.mark.unit

QUALITY = Taste(objective="quality", weights={"cost": 0.3, "latency": 0.3, "quality": 0.4}, margin=0.02, caution=0.5)


def test_a_plan_that_breaks_a_cap_at_a_second_look_is_not_chosen_however_many_do():
    knowledge = learn([], catalogue_of(cards()), Kinds())
    dear = [replace(sequential(LARGE), settings=replace(PLAIN, min_chars=n)) for n in range(2 * CLOSELY)]
    real = weigh([*dear, sequential(SMALL)], knowledge, "", Length(chars=3))
    free = Interval(0.0, 0.0, 0.0)
    at_first_sight = rank([replace(c, prediction=replace(c.prediction, cost_usd=free)) for c in real], QUALITY)
    assert at_first_sight[-1].plan.main_model == SMALL

    def chosen(cap_usd):
        ask = Ask(text="add", chars=3, max_cost_usd=cap_usd)
        grounds = Grounds(knowledge=knowledge, taste=QUALITY)
        return decide(ask, Found(), at_first_sight, grounds, Curiosity(start=0.0, floor=0.0), random.Random(1))

    small_usd, large_usd = real[-1].prediction.cost_usd.high, real[0].prediction.cost_usd.high
    told = chosen((small_usd + large_usd) / 2.0)
    assert told.plan.main_model == SMALL
    assert sum(bool(one.rejected) for one in told.ranked) == 2 * CLOSELY
    with pytest.raises(Invalid) as refused:
        chosen(small_usd / 2.0)
    assert refused.value.code == "no_plan_fits"


def test_a_plan_that_broke_a_cap_at_first_sight_alone_is_chosen_where_nothing_else_fits():
    knowledge = learn([], catalogue_of(cards()), Kinds())
    real = weigh([sequential(LARGE), sequential(SMALL)], knowledge, "", Length(chars=3))
    slow = Interval(9e5, 8e5, 9e6)
    at_first_sight = rank([replace(c, prediction=replace(c.prediction, latency_ms=slow)) for c in real], QUALITY)
    ask = Ask(text="add", chars=3, max_latency_ms=1e5)
    grounds = Grounds(knowledge=knowledge, taste=QUALITY)
    told = decide(ask, Found(), at_first_sight, grounds, Curiosity(start=0.0, floor=0.0), random.Random(1))
    assert told.plan.main_model == LARGE
