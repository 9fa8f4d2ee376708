import math
import random

import pytest

from catena.plan.expect import interval
from catena.router.core.habits import Habit, Start

pytestmark = pytest.mark.unit

GUESS = Habit(mean=1000.0, within=0.6, between=0.7, doubt=1.0)

TRIALS = 1200


def calls(rng, middle, count, within=0.6):
    return [(1.0, rng.lognormvariate(middle, within)) for _ in range(count)]


def covered(seen, models):
    """How often the next call of a model lies within its ends, after `seen` calls of it and some of other models."""
    rng = random.Random(seen)
    hits = 0
    for _ in range(TRIALS):
        usual = rng.gauss(8.5, 0.3)
        others = [calls(rng, rng.gauss(usual, 0.5), rng.randrange(1, 60)) for _ in range(models)]
        middle = rng.gauss(usual, 0.5)
        own = calls(rng, middle, seen)
        start = GUESS.start([*others, own] if own else others)
        ends = interval(start.after(own).next)
        hits += ends.low <= rng.lognormvariate(middle, 0.6) <= ends.high
    return hits / TRIALS


@pytest.mark.parametrize("models", [3, 12])
@pytest.mark.parametrize("seen", [0, 1, 3, 10, 40])
def test_the_next_call_lies_within_its_ends_nine_times_in_ten_however_little_was_seen(seen, models):
    assert covered(seen, models) == pytest.approx(0.9, abs=0.05)


def test_a_model_that_never_ran_takes_as_long_as_the_others_not_as_was_guessed():
    rng = random.Random(1)
    found = GUESS.start([calls(rng, math.log(8000.0), 20) for _ in range(10)])
    assert found.mean == pytest.approx(8000.0 * math.exp(0.18), rel=0.25)


def test_a_model_that_is_asked_often_says_no_more_of_a_new_one_than_any_other():
    rng = random.Random(2)
    seldom = [calls(rng, 7.0, 15, within=0.3) for _ in range(12)]
    wild = calls(rng, 7.0, 2000, within=1.3)
    calm, mixed = GUESS.start(seldom), GUESS.start([*seldom, wild])
    assert mixed.sd / mixed.mean < 1.4 * calm.sd / calm.mean


def test_what_is_known_from_few_values_is_wider_by_students_quantile_and_its_own_doubt():
    sure = Start(mean=10.0, sd=2.0, worth=math.inf, freedom=math.inf)
    assert sure.next.sd == 2.0
    few = Start(mean=10.0, sd=2.0, worth=4.0, freedom=4.0)
    assert few.next.sd == pytest.approx(2.0 * math.sqrt(1.25) * 2.132 / 1.645, rel=0.02)


def test_many_values_of_its_own_leave_nothing_of_the_start():
    rng = random.Random(3)
    own = [(1.0, rng.gauss(50.0, 5.0)) for _ in range(3000)]
    told = Start(mean=10.0, sd=8.0, worth=2.0).after(own).next
    assert told.mean == pytest.approx(50.0, abs=0.5)
    assert told.sd == pytest.approx(5.0, rel=0.1)
