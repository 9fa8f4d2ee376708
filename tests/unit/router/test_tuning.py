import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from catena.kit.errors import Conflict, Invalid, Missing, Unavailable
from catena.plan.build import build, sequential
from catena.plan.model import Shape, describe
from catena.router.core.ask import Ask
from catena.router.core.beforehand import Kinds
from catena.router.core.choice import Taste
from catena.router.core.hindsight import FOLDS, Hindsight, View
from catena.router.core.learning import learn
from catena.router.core.steps import ITSELF, OPERATOR, Adjustment, Step, in_force, lacking, taken_back
from catena.router.core.tuning import Bounds, tune_weights
from tests.unit.router.simulation import SHAPES
from tests.unit.router.test_evaluation import CATALOGUE, log
from tests.unit.router.world import Bench, ask

pytestmark = pytest.mark.unit

CONFIGURED = {"cascade.threshold": 0.5, "weights.quality": 0.4}
LOW = {**SHAPES, Shape.CASCADE: msgspec.structs.replace(SHAPES[Shape.CASCADE], threshold=0.02)}


def moved(setting, before, after):
    return Adjustment(setting=setting, before=before, after=after, reason="because")


def step(number, *told, judged=0, reverts=0):
    return Step(tenant="t", number=number, time_s=1.0, by=ITSELF, moved=told, judged=judged, reverts=reverts)


STEPS = [
    step(1, moved("cascade.threshold", 0.5, 0.7), judged=40),
    step(2, moved("cascade.threshold", 0.7, 0.8), moved("weights.quality", 0.4, 0.45), judged=60),
    step(3, reverts=2),
]


def test_what_is_in_force_follows_from_the_steps_and_reverts_take_it_back():
    assert in_force([]) == {}
    assert in_force(STEPS[:2]) == {"cascade.threshold": 0.8, "weights.quality": 0.45}
    assert in_force(STEPS) == {"cascade.threshold": 0.7}
    assert in_force([*STEPS, step(4, moved("weights.quality", 0.4, 0.5)), step(5, reverts=1)]) == {}
    assert in_force([*STEPS, step(4, reverts=3)]) == in_force(STEPS[:2])


def test_a_revert_moves_what_stands_otherwise_and_says_so():
    back = taken_back(STEPS[:2], 1, CONFIGURED)
    assert [(one.setting, one.before, one.after) for one in back] == [
        ("cascade.threshold", 0.8, 0.5),
        ("weights.quality", 0.45, 0.4),
    ]
    assert "as configured" in back[0].reason
    assert [one.setting for one in taken_back(STEPS, 1, CONFIGURED)] == ["cascade.threshold"]
    for number in (0, 4):
        with pytest.raises(Missing, match=r"known: 1 to 3.*catena route tunings"):
            taken_back(STEPS, number, CONFIGURED)


def test_by_itself_it_waits_for_new_evidence_and_after_a_revert_for_as_much_as_led_there():
    assert lacking([], 0, 10) == 0
    assert lacking(STEPS[:2], 4, 10) == 6
    assert lacking(STEPS, 4, 10) == 56
    assert lacking([*STEPS[:2], step(3, reverts=1)], 0, 10) == 60
    assert lacking([STEPS[0], step(2, reverts=1)], 40, 10) == 0


async def taught(bench):
    await bench.teach([build(s, c) for s, c in LOW.items() if s is not Shape.SEARCH], feedback=0.5)
    return bench


async def threshold(bench):
    return (await bench.recommend(shape=Shape.CASCADE)).plan.settings.threshold


async def test_every_step_is_kept_and_can_be_taken_back_on_this_replica_and_another():
    bench = await taught(await Bench(shapes=LOW, weight_range=0.0).open())
    first = await bench.tuner.tune("t", by=OPERATOR)
    second = await bench.tuner.tune("t", by=OPERATOR)
    assert (first.step, second.step) == (1, 2)
    assert await threshold(bench) == second.moved[0].after > first.moved[0].after > 0.02
    kept = await bench.tuner.steps("t")
    assert [(one.number, one.by, one.moved) for one in kept] == [
        (1, OPERATOR, tuple(first.moved)),
        (2, OPERATOR, tuple(second.moved)),
    ]
    assert kept[0].judged == first.judged > 100
    assert bench.tuner.settings("t")["cascade.threshold"] == second.moved[0].after

    back = await bench.tuner.revert("t", 2, OPERATOR)
    assert (back.number, back.reverts) == (3, 2)
    assert await threshold(bench) == first.moved[0].after
    await bench.tuner.revert("t", 1, OPERATOR)
    assert await threshold(bench) == 0.02

    other = Bench(journal=bench.journal, shapes=LOW, weight_range=0.0)
    assert await threshold(other) == 0.02
    assert await other.tuner.steps("t") == await bench.tuner.steps("t")
    await other.tuner.revert("t", 4, OPERATOR)
    await bench.router.settle()
    assert await threshold(bench) == first.moved[0].after
    with pytest.raises(Invalid) as refused:
        await bench.tuner.revert("t", 2, OPERATOR)
    assert refused.value.code == "nothing_to_revert"


async def test_reverted_it_does_not_move_by_itself_until_as_much_again_is_judged():
    bench = await taught(await Bench(shapes=LOW, weight_range=0.0).open())
    step = await bench.tuner.tune("t", by=ITSELF)
    assert step.step == 1
    assert (await bench.tuner.tune("t", by=ITSELF)).note == "waits for 10 more judged outcomes since step 1"
    await bench.tuner.revert("t", 1, OPERATOR)
    held = await bench.tuner.tune("t", by=ITSELF)
    assert (held.step, held.note) == (0, f"waits for {step.judged} more judged outcomes since step 2")
    await taught(await taught(bench))
    again = await bench.tuner.tune("t", by=ITSELF)
    assert (again.step, again.moved[0].before) == (3, 0.02)


async def test_two_replicas_that_tune_at_once_take_one_step():
    bench = await taught(await Bench(shapes=LOW, weight_range=0.0).open())
    other = Bench(journal=bench.journal, shapes=LOW, weight_range=0.0)
    await other.router.settle()
    stale = other.journal.changes
    (seen,) = [await stale(0)]

    async def not_yet(after):
        return replace(seen, observations=(), revision=seen.revision) if after else seen

    await bench.tuner.tune("t", by=ITSELF)
    other.router._ports = replace(other.router._ports, journal=Behind(bench.journal, not_yet))
    with pytest.raises(Conflict) as refused:
        await other.tuner.tune("t", by=ITSELF)
    assert refused.value.code == "tuned_meanwhile"
    assert len(await bench.tuner.steps("t")) == 1


class Behind:
    """A journal whose news has not come yet."""

    def __init__(self, journal, changes):
        self._journal, self.changes = journal, changes

    def __getattr__(self, name):
        return getattr(self._journal, name)


async def test_frozen_nothing_is_tuned_and_it_says_why():
    bench = await taught(await Bench(shapes=LOW).open())
    await bench.tuner.freeze("t", True)
    told = await bench.tuner.tune("t", by=OPERATOR)
    assert (told.step, told.note) == (0, "learning is frozen; thaw it with `catena route tune --thaw`")
    await bench.tuner.freeze("t", False)
    assert (await bench.tuner.tune("t", by=OPERATOR)).step == 1


TASTE = Taste(objective="balanced", weights={"cost": 0.3, "latency": 0.3, "quality": 0.4}, margin=0.02, caution=0.0)
BOUNDS = Bounds(margin=0.02, max_step=0.2, min_judged=10)


def hindsight(knowledge):
    view = View(knowledge=knowledge, kinds=Kinds(), plans={"": [sequential("small"), sequential("large")]})
    return Hindsight([view] * FOLDS)


def blurred(seen, rng, share):
    """The log as one would know it whose judges guess that often: differences between models look small."""
    return [replace(one, score=float(rng.random() < 0.5)) if rng.random() < share else one for one in seen]


def paid(seen):
    prices = {"small": 0.1, "large": 1.0}
    return [replace(one, cost_usd=5e-6 * prices[one.plan.main_model]) for one in seen]


def test_a_policy_keeps_the_caps_and_the_objective_that_a_logged_request_named():
    seen = paid(log(random.Random(3), 3000, share_large=0.4))
    told = hindsight(learn(seen, CATALOGUE, Kinds()))
    best = told.policy(replace(TASTE, objective="quality", margin=0.1), Ask(text="", chars=0))
    easy, hard = (next(one for one in seen if one.domain == domain) for domain in ("easy", "hard"))
    assert describe(best(easy)) == describe(best(hard)) == "sequential(large)"
    assert describe(best(replace(easy, objective="cost"))) == "sequential(small)"
    dear, cheap = (told.foretell(hard, sequential(model)).cost_usd.high for model in ("large", "small"))
    assert describe(best(replace(hard, max_cost_usd=(dear + cheap) / 2.0))) == "sequential(small)"
    assert best(replace(hard, max_cost_usd=cheap / 2.0)) is None
    capped = told.policy(replace(TASTE, objective="quality"), Ask(text="", chars=0, max_cost_usd=(dear + cheap) / 2.0))
    assert describe(capped(replace(hard, max_cost_usd=2.0 * dear))) == "sequential(small)"


def test_weights_move_by_a_bounded_step_where_outcomes_show_that_choices_realise_too_little():
    rng = random.Random(5)
    seen = paid([one for one in log(rng, 3000, share_large=0.4) if one.domain == "hard"])
    wrong = hindsight(learn(blurred(seen, rng, 0.75), CATALOGUE, Kinds()))
    taste = replace(TASTE, weights={"cost": 0.25, "latency": 0.0, "quality": 0.75})
    assert describe(wrong.policy(taste, Ask(text="", chars=0))(seen[0])) == "sequential(small)"
    told = tune_weights(taste.weights, taste.weights, wrong.gains(seen, taste, taste.weights), BOUNDS)
    after = {one.setting: one.after for one in told}
    assert after["weights.quality"] == pytest.approx(0.8)
    assert after["weights.cost"] == pytest.approx(0.2)
    assert "more of the configured utility" in told[0].reason and "judged" in told[0].reason

    right = hindsight(learn(seen, CATALOGUE, Kinds()))
    assert tune_weights(taste.weights, taste.weights, right.gains(seen, taste, taste.weights), BOUNDS) == []
    still = replace(BOUNDS, weight_range=0.0)
    assert tune_weights(taste.weights, taste.weights, wrong.gains(seen, taste, taste.weights), still) == []


def test_weights_are_never_tried_further_from_the_configured_ones_than_they_may_go():
    configured, tried = {"cost": 0.3, "latency": 0.3, "quality": 0.4}, []

    def gains(weights):
        tried.append(weights)
        return np.full(50, weights["quality"]) + np.tile([0.001, -0.001], 25)

    now = {"cost": 0.25, "latency": 0.25, "quality": 0.5}
    told = tune_weights(now, configured, gains, BOUNDS)
    assert all(abs(one[name] - configured[name]) <= 0.2 + 1e-9 for one in tried for name in configured)
    assert all(sum(one.values()) == pytest.approx(1.0) for one in tried)
    assert {one.setting: one.after for one in told}["weights.quality"] == pytest.approx(0.55)
    assert sum(one.after for one in told) == pytest.approx(1.0)


async def test_tuned_weights_are_those_that_choose():
    bench = await taught(await Bench(shapes=LOW).open())
    before = await bench.explain()
    extreme = [moved("weights.cost", 0.3, 1.0), moved("weights.latency", 0.3, 0.0), moved("weights.quality", 0.4, 0.0)]
    await bench.journal.put_step(step(1, *extreme))
    await bench.router.settle()
    after = await bench.explain()
    assert bench.router.weights("t") == {"cost": 1.0, "latency": 0.0, "quality": 0.0}
    assert after.plan.prediction.cost_usd.mean == min(c.prediction.cost_usd.mean for c in after.ranked)
    assert after.plan.prediction.cost_usd.mean < before.plan.prediction.cost_usd.mean
    assert bench.router.weights("u") == pytest.approx({"cost": 0.3, "latency": 0.3, "quality": 0.4})


async def explored(bench, count=400):
    """Requests as `auto` answers them with much curiosity, each judged."""
    for _ in range(count):
        skill, ease = bench.simulated.question()
        decision = await bench.recommend("x", task=skill, objective="cost")
        await bench.run(decision.plan, skill, ease, judged=True)
    await bench.router.settle()
    return bench


async def test_another_policy_is_valued_on_what_the_router_itself_logged():
    bench = await explored(await Bench(exploration=1.0, exploration_floor=0.5).open(), 700)
    told = await bench.tuner.evaluate("t", ask("", objective="cost"), {})
    assert told.tells and told.requests == told.judged == 700
    greedy, right, usd = Bench(journal=bench.journal, seed=7), [], []
    await greedy.router.settle()
    for _ in range(400):
        skill, ease = greedy.simulated.question()
        plan = (await greedy.recommend("x", task=skill, objective="cost")).plan
        one, hit = greedy.simulated.run(plan, skill, ease)
        right.append(hit)
        usd.append(one.cost_usd)
    assert np.mean(right) > told.quality.logged + 0.1
    assert told.quality.doubly_robust.value == pytest.approx(np.mean(right), abs=0.06)
    assert told.cost_usd.doubly_robust.value == pytest.approx(np.mean(usd), rel=0.2)
    large, small = [await bench.tuner.evaluate("t", ask("", model=m), {}) for m in ("demo-large", "demo-small")]
    assert large.cost_usd.doubly_robust.value > 2.0 * small.cost_usd.doubly_robust.value
    free = await bench.tuner.evaluate("t", ask("", objective="balanced"), {"quality": 1.0})
    assert free.quality.doubly_robust.value >= told.quality.doubly_robust.value - 0.05
    with pytest.raises(Invalid) as refused:
        await bench.tuner.evaluate("t", ask("", max_cost_usd=1e-12), {})
    assert refused.value.code == "no_plan_fits"


async def test_where_the_log_cannot_tell_it_says_so():
    bench = await explored(await Bench().open(), 40)
    told = await bench.tuner.evaluate("t", ask("", shape=Shape.CONSENSUS), {})
    assert (told.tells, told.matches) == (False, 0)
    assert told.verdict.startswith("the log cannot tell: 0 of 40 judged requests")
    assert "router.exploration" in told.verdict


async def test_requests_that_left_no_choice_are_no_evidence_for_choices():
    bench = await Bench(exploration=1.0).open()
    for number in range(30):
        decision = await bench.recommend(model="demo-large", task="upper")
        one, _ = await bench.run(decision.plan, "upper", 0.0, judged=True)
        assert one.plan.propensity == 0.0, number
    with pytest.raises(Invalid) as refused:
        await bench.tuner.evaluate("t", ask(""), {})
    assert refused.value.code == "nothing_logged"


@pytest.mark.parametrize(
    ("fields", "weights", "code"),
    [
        ({"objective": "cheap"}, {}, "unknown_objective"),
        ({"max_cost_usd": -1.0}, {}, "bad_cap"),
        ({"model": "gpt-9"}, {}, "unknown_model"),
        ({}, {"quality": -1.0}, "bad_weights"),
        ({}, {"quality": float("nan")}, "bad_weights"),
        ({}, {"speed": 1.0}, "bad_weights"),
        ({}, {"quality": 0.0}, "bad_weights"),
    ],
)
async def test_a_policy_without_sense_is_refused(fields, weights, code):
    bench = await taught(await Bench().open())
    with pytest.raises((Invalid, Missing)) as refused:
        await bench.tuner.evaluate("t", ask("", **fields), weights)
    assert refused.value.code == code


async def test_without_a_model_nothing_can_be_valued():
    with pytest.raises(Unavailable) as refused:
        await Bench(models=[]).tuner.evaluate("t", ask(""), {})
    assert refused.value.code == "empty_catalogue"


def test_a_verdict_of_each_request_is_paired_with_what_ran():
    """The policy that ran is no better than itself, whatever the scores."""
    from catena.router.core.evaluation import evaluate

    seen = log(random.Random(4), 500, share_large=0.5)
    by_id = {one.execution_id: one.plan for one in seen}
    sure = [replace(one, plan=replace(one.plan, propensity=1.0)) for one in seen]
    told = evaluate(sure, lambda one: by_id[one.execution_id], hindsight(learn(seen, CATALOGUE, Kinds())).foretell)
    assert told.quality.gained.value == pytest.approx(0.0, abs=1e-12)
    assert told.effective == pytest.approx(500.0)
