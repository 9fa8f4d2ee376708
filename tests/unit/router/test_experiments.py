import random

import pytest

from catena.kit.errors import Invalid
from catena.router.core.experiments import (
    Arm,
    Experiment,
    Outcome,
    assign,
    check_experiment,
    count,
    covering,
    stop,
)

pytestmark = pytest.mark.unit


def trial(id="e", domain="d", share=0.5, **fields):
    arms = (Arm(name="control", share=1 - share), Arm(name="canary", model="m@new", share=share))
    return check_experiment(Experiment(id=id, tenant="t", name="n", domain=domain, arms=arms, **fields))


def run(control, canary, *, seed, outcomes=400):
    """The experiment after up to so many judged answers, looked at after each."""
    rng = random.Random(seed)
    experiment = trial(f"e{seed}", max_outcomes=outcomes)
    for number in range(outcomes):
        arm = assign(experiment, f"user {number}").name
        right = rng.random() < (canary if arm == "canary" else control)
        cost, latency = rng.lognormvariate(0, 0.5), rng.lognormvariate(3, 0.7)
        experiment = count(experiment, Outcome(arm=arm, quality=float(right), cost=cost, latency=latency))
        if experiment.state != "running":
            break
    return experiment


@pytest.mark.parametrize("accuracy", [0.05, 0.5, 0.9])
def test_looking_after_every_outcome_finds_no_difference_where_there_is_none(accuracy):
    ended = [run(accuracy, accuracy, seed=seed) for seed in range(150)]
    for metric in ("quality", "cost", "latency"):
        assert sum(one.p[metric] <= one.alpha / 3 for one in ended) / 150 <= 0.05
    assert sum(one.state in ("won", "lost") for one in ended) / 150 <= 0.05


def test_a_skill_that_was_absent_is_found_within_forty_outcomes():
    ended = [run(0.05, 0.9, seed=seed) for seed in range(60)]
    assert {one.state for one in ended} == {"won"}
    assert max(one.outcomes for one in ended) <= 40
    assert "0.0" in ended[0].reason or "p =" in ended[0].reason


def test_a_worse_canary_is_lost_soon():
    ended = [run(0.9, 0.3, seed=seed) for seed in range(60)]
    assert {one.state for one in ended} == {"lost"}
    assert sorted(one.outcomes for one in ended)[30] <= 50


def test_no_verdict_by_the_last_outcome_is_undecided():
    ended = run(0.8, 0.8, seed=4, outcomes=30)
    assert (ended.state, ended.outcomes) == ("undecided", 30)


def test_a_dearer_canary_shows_in_the_cost_alone():
    rng = random.Random(1)
    experiment = trial()
    for number in range(200):
        arm = assign(experiment, str(number)).name
        cost = rng.lognormvariate(0, 0.3) * (2.0 if arm == "canary" else 1.0)
        outcome = Outcome(arm=arm, quality=float(rng.random() < 0.8), cost=cost, latency=rng.lognormvariate(3, 0.5))
        experiment = count(experiment, outcome)
    assert experiment.p["cost"] < 1e-6
    assert experiment.p["latency"] > 0.05
    assert experiment.state == "running"


def test_a_p_value_never_rises():
    rng, experiment, seen = random.Random(2), trial(), []
    for number in range(120):
        arm = assign(experiment, str(number)).name
        outcome = Outcome(arm=arm, quality=float(rng.random() < 0.6), cost=1.0, latency=1.0)
        experiment = count(experiment, outcome)
        seen.append(experiment.p["quality"])
    assert seen == sorted(seen, reverse=True)


def test_assignment_is_sticky_and_keeps_the_shares():
    experiment = trial(share=0.2)
    arms = [assign(experiment, f"user {n}").name for n in range(4000)]
    assert arms == [assign(experiment, f"user {n}").name for n in range(4000)]
    assert arms.count("canary") / 4000 == pytest.approx(0.2, abs=0.02)
    other = [assign(trial("another", share=0.2), f"user {n}").name for n in range(4000)]
    assert other != arms


def test_an_experiment_that_ended_counts_nothing_more():
    ended = stop(trial(), "stopped", "enough")
    assert count(ended, Outcome(arm="canary", quality=1.0, cost=1.0, latency=1.0)) == ended


def test_the_domains_own_experiment_covers_before_one_of_all():
    everywhere, here = trial("a", ""), trial("b", "d")
    assert covering([everywhere, here], "d") == here
    assert covering([everywhere, here], "other") == everywhere
    assert covering([here], "other") is None
    assert covering([stop(here, "stopped", "")], "d") is None


@pytest.mark.parametrize(
    "arms",
    [
        (),
        (Arm(name="a"),),
        (Arm(name="a"), Arm(name="a")),
        (Arm(name=""), Arm(name="b")),
        (Arm(name="a", share=1.0), Arm(name="b", share=0.0)),
        (Arm(name="a", share=float("nan")), Arm(name="b")),
        (Arm(name="a", share=-1.0), Arm(name="b")),
    ],
)
def test_arms_without_sense_are_refused(arms):
    with pytest.raises(Invalid):
        check_experiment(Experiment(id="e", tenant="t", name="n", domain="", arms=arms))


def test_defaults_are_filled_in():
    shares = [
        arm.share
        for arm in check_experiment(
            Experiment(
                id="e",
                tenant="t",
                name="n",
                domain="",
                alpha=0.0,
                max_outcomes=0,
                arms=(Arm(name="control", share=0.0), Arm(name="canary", share=0.0)),
            )
        ).arms
    ]
    assert shares == [0.5, 0.5]
    with pytest.raises(Invalid):
        trial(alpha=1.5)
