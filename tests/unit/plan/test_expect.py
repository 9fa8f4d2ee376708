import itertools
import math
import random
from statistics import NormalDist

import pytest

from catena.plan.build import ShapeConfig, build, sequential
from catena.plan.expect import Amount, Bonds, Call, Gate, agreeing, both_right, expect, interval, share, total, vote
from catena.plan.model import Shape

pytestmark = pytest.mark.unit
NORMAL = NormalDist()


def call(quality, cost=1.0, latency=100.0, **sd):
    return Call(
        quality=Amount(quality, sd.get("q", 0.0)),
        cost_usd=Amount(cost, sd.get("c", 0.0)),
        latency_ms=Amount(latency, sd.get("l", 0.0)),
    )


CASCADE = build(Shape.CASCADE, ShapeConfig(fast="s", main="l"))
REFINE = build(Shape.DRAFT_REFINE, ShapeConfig(draft="s", main="l"))
SPECULATIVE = build(Shape.SPECULATIVE, ShapeConfig(draft="s", main="l", draft_tokens=4))
SEARCH = build(Shape.SEARCH, ShapeConfig(main="l"))


def simulated(accuracies, rho, runs=40_000, seed=1):
    """Who is right, question by question, when a shared difficulty of weight rho makes them err together."""
    rng = random.Random(seed)
    for _ in range(runs):
        ease = rng.gauss(0, 1)
        yield [math.sqrt(rho) * ease + math.sqrt(1 - rho) * rng.gauss(0, 1) > -NORMAL.inv_cdf(a) for a in accuracies]


def test_one_model_alone_is_what_its_call_is():
    told = expect(sequential("l"), [call(0.9, 2.0, 50.0)])
    assert (told.quality.mean, told.cost_usd.mean, told.latency_ms.mean) == (0.9, 2.0, 50.0)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("a", "b"), [(0.4, 0.9), (0.7, 0.7), (0.05, 0.95)])
def test_models_are_right_together_as_often_as_a_simulation_says(a, b, rho):
    real = sum(all(pair) for pair in simulated([a, b], rho)) / 40_000
    assert both_right(a, b, rho) == pytest.approx(real, abs=0.015)


@pytest.mark.parametrize(("accuracies", "rho"), [([0.7, 0.7, 0.7], 0.5), ([0.6, 0.9, 0.8], 0.3), ([0.8] * 5, 0.6)])
def test_a_vote_wins_as_often_as_a_simulation_says(accuracies, rho):
    rng = random.Random(3)
    wins = 0
    for right in simulated(accuracies, rho, 20_000):
        votes = ["right" if ok else f"wrong-{rng.randrange(5)}" for ok in right]
        best = max(votes.count(v) for v in votes)
        top = sorted({v for v in votes if votes.count(v) == best})
        wins += rng.choice(top) == "right"
    assert vote(accuracies, Bonds(rho=rho, coincidence=0.2)) == pytest.approx(wins / 20_000, abs=0.025)


def test_a_vote_gains_less_the_more_its_members_err_together():
    gains = [vote([0.7] * 3, Bonds(rho=rho)) for rho in (0.0, 0.3, 0.6, 0.9)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0.75
    assert gains[-1] < 0.73


def test_a_good_judge_breaks_ties_better_than_chance():
    assert vote([0.6, 0.6], Bonds(), judge=0.9) > vote([0.6, 0.6], Bonds())


def test_a_cascade_that_keeps_nothing_is_its_main_model_and_pays_for_both():
    told = expect(CASCADE, [call(0.6, 1.0), call(0.9, 10.0)], gate=Gate(kept=0.0, right_if_kept=0.0))
    assert told.quality.mean == pytest.approx(0.9, abs=0.01)
    assert told.cost_usd.mean == 11.0


def test_a_cascade_that_keeps_all_is_its_fast_model():
    told = expect(CASCADE, [call(0.6, 1.0), call(0.9, 10.0)], gate=Gate(kept=1.0, right_if_kept=0.6))
    assert (told.quality.mean, told.cost_usd.mean, told.cost_usd.high) == (0.6, 1.0, 1.0)


def test_a_cascade_does_as_a_simulation_of_its_gate_does():
    rng, kept, right, kept_right = random.Random(5), 0, 0, 0
    for fast, main in simulated([0.7, 0.9], 0.5):
        keep = rng.random() < (0.9 if fast else 0.15)
        kept += keep
        kept_right += keep and fast
        right += fast if keep else main
    gate = Gate(kept=kept / 40_000, right_if_kept=kept_right / kept)
    told = expect(CASCADE, [call(0.7, 1.0), call(0.9, 10.0)], gate=gate)
    assert told.quality.mean == pytest.approx(right / 40_000, abs=0.015)
    assert told.cost_usd.mean == pytest.approx(1.0 + 10.0 * (1 - kept / 40_000))


def test_the_upper_end_of_a_cascade_is_that_of_the_long_way_unless_it_is_rare():
    often = expect(CASCADE, [call(0.6), call(0.9, 10.0)], gate=Gate(kept=0.8, right_if_kept=0.7))
    rarely = expect(CASCADE, [call(0.6), call(0.9, 10.0)], gate=Gate(kept=0.97, right_if_kept=0.7))
    assert often.cost_usd.high == pytest.approx(11.0)
    assert rarely.cost_usd.high < 2.0


def test_refining_keeps_some_right_drafts_that_the_refiner_would_have_missed():
    told = expect(REFINE, [call(0.6), call(0.8)])
    assert 0.8 < told.quality.mean < 0.9
    assert told.cost_usd.mean == 2.0


def test_speculation_bills_both_and_is_faster_the_more_is_accepted():
    calls = [call(0.5, 1.0, 10.0), call(0.9, 10.0, 100.0)]
    slow = expect(SPECULATIVE, calls, bonds=Bonds(acceptance=0.2))
    fast = expect(SPECULATIVE, calls, bonds=Bonds(acceptance=0.95))
    assert slow.cost_usd.mean == fast.cost_usd.mean == 11.0
    assert fast.latency_ms.mean < slow.latency_ms.mean < 100.0 + 40.0
    assert fast.quality.mean == 0.9


def test_a_search_gains_its_share_of_what_is_failed_without_memory():
    assert expect(SEARCH, [call(0.2)], bonds=Bonds(search_gain=0.75)).quality.mean == pytest.approx(0.8)


def test_members_are_waited_for_together_and_paid_for_one_by_one():
    plan = build(Shape.CONSENSUS, ShapeConfig(members=["a", "b", "c"]))
    told = expect(plan, [call(0.7, 1.0, 50.0), call(0.7, 2.0, 80.0), call(0.7, 3.0, 60.0)])
    assert told.cost_usd.mean == 6.0
    assert told.latency_ms.mean == 80.0


def test_no_shape_leaves_the_range_of_a_probability():
    plans = [CASCADE, REFINE, SPECULATIVE]
    for plan, a, b, rho in itertools.product(plans, (0.0, 0.5, 1.0), (0.0, 0.5, 1.0), (0.0, 0.9)):
        quality = expect(plan, [call(a, q=0.2), call(b, q=0.2)], bonds=Bonds(rho=rho)).quality
        assert 0.0 <= quality.low <= quality.mean <= quality.high <= 1.0


def test_intervals_hold_their_mean_and_widen_with_the_deviation():
    narrow, wide = interval(Amount(10.0, 1.0)), interval(Amount(10.0, 8.0))
    assert wide.low < narrow.low < 10.0 < narrow.high < wide.high
    assert interval(Amount(0.0, 5.0)).high == 0.0
    assert share(Amount(0.95, 0.2)).high == 1.0


def test_a_cascades_samples_and_verifier_are_paid_before_its_gate_and_its_models_run_side_by_side():
    judged = ShapeConfig(fast="s", main="l", judge="v", checks=["agreement", "verifier"], samples=3)
    plan, gate = build(Shape.CASCADE, judged), Gate(kept=1.0, right_if_kept=0.6)
    told = expect(plan, [call(0.6, 1.0), call(0.9, 10.0), call(0.8, 5.0)], gate=gate)
    assert told.cost_usd.mean == pytest.approx(3 * 1.0 + 5.0)
    assert told.latency_ms.mean == pytest.approx(200.0)
    two = build(Shape.CASCADE, ShapeConfig(fast=["a", "b"], main="l", checks=["agreement"]))
    told = expect(two, [call(0.6, 1.0, 50.0), call(0.6, 2.0, 80.0), call(0.9, 10.0)], gate=gate)
    assert (told.cost_usd.mean, told.latency_ms.mean) == (pytest.approx(3.0), pytest.approx(80.0))


def test_models_agree_as_often_and_as_rightly_as_a_simulation_says():
    bonds = Bonds(rho=0.5, coincidence=0.2)
    rng = random.Random(11)
    kept = right = total = 0
    for hits in simulated((0.6, 0.75), 0.5):
        agree = all(hits) or (not any(hits) and rng.random() < bonds.coincidence)
        total += 1
        kept += agree
        right += agree and all(hits)
    told = agreeing((0.6, 0.75), bonds)
    assert told.kept == pytest.approx(kept / total, abs=0.01)
    assert told.right_if_kept == pytest.approx(right / kept, abs=0.01)


def test_what_is_paid_in_any_case_is_no_part_of_the_doubt():
    free, fixed = interval(Amount(10.0, 3.0)), interval(Amount(10.0, 3.0, floor=7.0))
    assert free.low < 7.0 < fixed.low < 10.0 < fixed.high
    assert total([Amount(10.0, 3.0, floor=7.0), Amount(1.0)]) == Amount(11.0, 3.0, floor=7.0)
    assert interval(Amount(7.0, 3.0, floor=7.0)).high == 7.0
