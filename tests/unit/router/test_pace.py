import random
from dataclasses import replace

import numpy as np
import pytest

from catena.kit.errors import Unavailable
from catena.plan.build import sequential
from catena.plan.expect import Amount
from catena.plan.model import Interval, Prediction, Role
from catena.router.core.beforehand import Kinds
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.learning import learn
from catena.router.core.moment import Moment, Present, Residents
from catena.router.core.observation import Observation, StageOutcome
from catena.router.core.outlook import Length
from catena.router.core.pace import LEAST_TIMED, besides, crowd_of, overlaps, pace_of
from catena.router.core.running import LOST_S, Running

pytestmark = pytest.mark.unit

ADAPTER = "base@adapter"
CATALOGUE = catalogue_of([ModelCard(name="base"), ModelCard(name=ADAPTER, parent="base")])


def call(model="base", *, read=100, written=50, first_ms=40.0, token_ms=10.0, load_ms=0.0):
    return StageOutcome(
        name="main",
        role=Role.MAIN,
        model=model,
        input_tokens=read,
        output_tokens=written,
        first_token_ms=first_ms + load_ms,
        duration_ms=first_ms + load_ms + token_ms * written,
        load_ms=load_ms,
    )


def execution(stage, number, *, time_s=None):
    plan = sequential(stage.model)
    return Observation(
        execution_id=f"x{number}",
        time_s=1000.0 * number if time_s is None else time_s,
        configuration_id=plan.configuration_id,
        plan=plan,
        routed=True,
        chars=4 * stage.input_tokens,
        stages=(stage,),
        latency_ms=stage.duration_ms,
    )


def test_time_is_composed_of_the_first_token_what_was_read_and_what_is_written():
    rng = random.Random(0)
    stages = []
    for _ in range(60):
        read, written = rng.randrange(50, 2000), rng.randrange(10, 200)
        stages.append(call(read=read, written=written, first_ms=20.0 + 0.1 * read, token_ms=8.0))
    pace = pace_of(stages, [1.0] * len(stages))
    assert pace.at(1500, Amount(100.0)).mean == pytest.approx(20.0 + 150.0 + 800.0, rel=0.05)
    assert pace.at(100, Amount(20.0)).mean == pytest.approx(20.0 + 10.0 + 160.0, rel=0.15)
    assert pace_of(stages[: LEAST_TIMED - 1], [1.0] * (LEAST_TIMED - 1)) is None


def test_a_bound_on_the_tokens_bounds_the_time_where_first_tokens_were_timed():
    known = learn([execution(call(written=200), n) for n in range(40)], CATALOGUE, Kinds())
    free = known.predict(sequential("base"), "", Length(chars=400)).latency_ms
    bound = known.predict(sequential("base"), "", Length(chars=400, max_tokens=20)).latency_ms
    assert free.mean == pytest.approx(2040.0, rel=0.1)
    assert bound.mean == pytest.approx(240.0, rel=0.2)


def test_how_many_ran_when_a_call_began_and_meanwhile_is_counted():
    # Each takes 1.04 s.
    seen = [execution(call(written=100), n, time_s=t) for n, t in enumerate((0.0, 0.5, 0.9, 5.0))]
    assert [one["base"] for one in besides(seen)] == [0, 1, 2, 0]
    shared = [(0.54 + 0.14) / 1.04, (0.54 + 0.64) / 1.04, (0.14 + 0.64) / 1.04, 0.0]
    assert [one["base"] for one in overlaps(seen)] == pytest.approx(shared)
    together = [execution(call(written=100), n, time_s=9.0) for n in range(50)]
    assert [one["base"] for one in overlaps(together)] == pytest.approx([49.0] * 50)


def test_a_burst_tells_little_of_what_a_call_alone_takes():
    rng = random.Random(3)
    alone = [execution(call(token_ms=0.4 * rng.uniform(0.8, 1.2), first_ms=5.0), n) for n in range(30)]
    burst = [execution(call(token_ms=9.0, first_ms=50.0), 30 + n, time_s=1e6 + 0.001 * n) for n in range(50)]
    later = [execution(call(token_ms=0.4 * rng.uniform(0.8, 1.2), first_ms=5.0), 5000 + n) for n in range(10)]
    known = learn([*alone, *burst, *later], CATALOGUE, Kinds())
    calm, crowded = (
        known.predict(sequential("base"), "", Length(chars=400), moment=Moment(beside={"base": others})).latency_ms.mean
        for others in (0, 45)
    )
    assert 15.0 < calm < 50.0
    assert 250.0 < crowded < 700.0


def test_calls_beside_others_are_expected_to_take_as_much_longer_as_they_did():
    rng = random.Random(1)
    seen, number = [], 0
    for burst in range(60):
        size = rng.choice((1, 8))
        for place in range(size):
            slower = (1.0 + place) ** 0.7
            stage = call(token_ms=10.0 * slower, first_ms=40.0 * slower)
            seen.append(execution(stage, number, time_s=1000.0 * burst + 0.001 * place))
            number += 1
    known = learn(seen, CATALOGUE, Kinds())
    calm, busy = (
        known.predict(sequential("base"), "", moment=Moment(beside={"base": beside})).latency_ms.mean
        for beside in (0, 7)
    )
    assert busy / calm == pytest.approx(8.0**0.7, rel=0.25)
    assert known.predict(sequential("base"), "", moment=Moment()).latency_ms.mean == calm


def test_an_adapter_that_is_on_disk_alone_takes_its_loading_longer():
    seen = [execution(call(ADAPTER, load_ms=600.0 if n % 10 == 0 else 0.0), n) for n in range(40)]
    known = learn(seen, CATALOGUE, Kinds())
    plan = sequential(ADAPTER)
    warm = known.predict(plan, "", moment=Moment(resident=frozenset({ADAPTER}))).latency_ms.mean
    cold = known.predict(plan, "", moment=Moment(resident=frozenset())).latency_ms.mean
    untold = known.predict(plan, "", moment=Moment()).latency_ms.mean
    assert warm == pytest.approx(540.0, rel=0.05)
    assert cold - warm == pytest.approx(600.0, rel=0.05)
    assert untold == warm
    assert known.predict(sequential("base"), "", moment=Moment(resident=frozenset())).latency_ms.mean < cold


def test_plans_that_were_handed_out_run_until_they_are_heard_of_or_lost():
    running = Running()
    for number in range(3):
        running.began(replace(sequential("base"), id=f"p{number}"), float(number))
    assert running.beside(2.0)["base"] == 3
    running.ended("p1", 500.0, 2.0)
    running.ended("p1", 500.0, 2.0)
    running.ended("never", 500.0, 2.0)
    assert running.beside(2.0)["base"] == 2
    running.began(replace(sequential(ADAPTER), id="late"), LOST_S + 1.0)
    assert dict(running.beside(LOST_S + 1.0)) == {"base": 1, ADAPTER: 1}


def expected_to_take(ms, name):
    none, taken = Interval(0.0, 0.0, 0.0), Interval(ms, 0.5 * ms, 2.0 * ms)
    return replace(sequential("base"), id=name, prediction=Prediction(quality=none, cost_usd=none, latency_ms=taken))


def test_calls_one_after_the_other_are_not_taken_to_run_together_though_word_of_them_comes_later():
    running, heard = Running(), []
    for number in range(20):
        now_s = 0.03 * number
        assert running.beside(now_s).get("base", 0) <= 1
        running.began(expected_to_take(25.0, f"p{number}"), now_s)
        heard.append(f"p{number}")
    for name in heard:
        running.ended(name, 20.0, 0.8)
    assert running.beside(0.8) == {}


def test_what_is_not_heard_of_for_longer_than_word_takes_runs_still():
    running = Running()
    running.began(expected_to_take(100.0, "first"), 0.0)
    running.ended("first", 100.0, 0.4)  # word took .3 s
    for number in range(60):  # the second that is reckoned with at first has faded
        running.began(expected_to_take(100.0, f"p{number}"), 1.0)
        running.ended(f"p{number}", 100.0, 1.4)
    running.began(expected_to_take(100.0, "slow"), 2.0)
    assert [running.beside(2.0 + s).get("base", 0) for s in (0.04, 0.06, 0.38, 0.5, 9.0)] == [1, 0, 0, 1, 1]
    running.ended("slow", 8000.0, 11.0)
    assert running.beside(11.0) == {}


def test_residents_come_and_go_by_version_and_by_name_once_all_were_told():
    residents = Residents()
    residents.moved("base@a:1", "device")
    assert residents.names is None
    residents.tell(["base@a:1", "base@b:2"])
    residents.moved("base@b:2", "")
    residents.moved("base@c:1", "host")
    moment = Moment(resident=residents.names)
    assert [moment.cold(f"base@{name}") for name in ("a", "a:1", "b", "c", "a:2")] == [False, False, True, False, True]
    assert not moment.cold("base")


async def test_what_is_in_memory_is_asked_anew_after_a_while_and_kept_while_nobody_answers():
    told = [["base@a:1"], None, ["base@b:1"]]

    async def fetch():
        found = told.pop(0)
        if found is None:
            raise Unavailable("the adapters room is away")
        return found

    present = Present(fetch, 10.0)
    for now_s in (0.0, 5.0, 11.0):
        await present.renew(now_s)
    assert (present.moment(0.0).cold("base@a"), len(told)) == (False, 1)
    await present.renew(22.0)
    assert (present.moment(0.0).cold("base@a"), present.moment(0.0).cold("base@b:1")) == (True, False)


def test_the_further_from_what_was_seen_the_less_a_time_is_known():
    rng = np.random.default_rng(7)
    beside = rng.integers(0, 3, 30).astype(float)
    crowd = crowd_of(np.exp(0.4 * np.log1p(beside) + rng.normal(0.0, 0.3, 30)), beside, np.zeros(30), np.ones(30))
    near, far = crowd.beside(Amount(100.0, 10.0), 1), crowd.beside(Amount(100.0, 10.0), 60)
    assert near.sd / near.mean == pytest.approx(0.1, abs=0.02)
    assert far.mean > near.mean
    assert far.sd / far.mean > 0.3
