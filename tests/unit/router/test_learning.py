import random
from dataclasses import replace
from statistics import mean

import pytest

from catena.plan.build import build, sequential
from catena.plan.model import Role, Shape
from catena.router.core.beforehand import Kinds
from catena.router.core.board import weigh
from catena.router.core.candidates import House, free_plans
from catena.router.core.catalogue import catalogue_of
from catena.router.core.choice import Taste, rank
from catena.router.core.learning import learn
from catena.router.core.observation import Mode, Observation, StageOutcome
from catena.router.core.outlook import Length
from tests.unit.router.simulation import ACCURACY, LARGE, SHAPES, SKILLS, SMALL, WITH_MEMORY, Simulated, cards

pytestmark = pytest.mark.unit

FIXED = [sequential(SMALL), sequential(LARGE)] + [build(s, c) for s, c in SHAPES.items() if s is not Shape.SEQUENTIAL]
HOUSE = House(shapes=SHAPES, thresholds=(0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98))
CATALOGUE = catalogue_of(cards())
KINDS = Kinds(needs_memory=frozenset({"fact"}))
COST = Taste(objective="cost", weights={"cost": 0.3, "latency": 0.3, "quality": 0.4}, margin=0.02, caution=0.5)


def warm_up(seed, feedback=0.1, questions=200):
    """Every fixed plan on the same questions; a named model alone is asked for without the router's seeing a domain."""
    simulated, judge = Simulated(random.Random(seed)), random.Random(seed + 1)
    asked = [simulated.question() for _ in range(questions)]
    seen = []
    for plan in FIXED:
        for question in asked:
            one, right = simulated.run(plan, *question)
            if plan.shape is Shape.SEQUENTIAL:
                one = replace(one, domain="", routed=False)
            seen.append(replace(one, score=float(right)) if judge.random() < feedback else one)
    return seen


def score(plan_of, questions=1500, seed=5):
    """Accuracy and cost of answering fresh questions by the plan of their skill."""
    simulated = Simulated(random.Random(seed))
    asked = [simulated.question() for _ in range(questions)]
    ran = [simulated.run(plan_of(skill), skill, ease) for skill, ease in asked]
    return mean(right for _, right in ran), mean(one.cost_usd for one, _ in ran)


def test_auto_learns_from_a_tenth_of_the_feedback_to_match_the_best_plan_for_less():
    rows = [score(lambda _, plan=plan: plan) for plan in FIXED]
    best = max(rows)
    lost, ratios = [], []
    for seed in range(6):
        knowledge = learn(warm_up(seed), CATALOGUE, KINDS)
        plans = free_plans(HOUSE, CATALOGUE)
        chosen = {s: rank(weigh(plans, knowledge, s, Length(chars=14)), COST)[0].plan for s in SKILLS}
        accuracy, cost = score(chosen.__getitem__)
        lost.append(best[0] - accuracy)
        ratios.append(cost / best[1])
    assert mean(lost) <= 0.01
    assert mean(ratios) <= 0.75
    assert max(ratios) <= 1.0


def test_accuracies_per_skill_are_found_from_every_plan_that_used_the_model():
    knowledge = learn(warm_up(1, feedback=0.5), CATALOGUE, KINDS)
    for model, truths in ACCURACY.items():
        told = [abs(knowledge.skill(model, Mode.PLAIN).quality.at(s).mean - truth) for s, truth in truths.items()]
        assert mean(told) < 0.08
    assert knowledge.skill(LARGE, Mode.PLAIN).quality.at("fact").mean < 0.1
    search = build(Shape.SEARCH, SHAPES[Shape.SEARCH])
    assert knowledge.predict(search, "fact").quality.mean == pytest.approx(WITH_MEMORY[LARGE], abs=0.1)


def test_a_cascades_quality_and_cost_are_known_at_thresholds_that_never_ran():
    knowledge = learn(warm_up(2, feedback=0.5), CATALOGUE, KINDS)
    cascade = build(Shape.CASCADE, SHAPES[Shape.CASCADE])
    for threshold in (0.3, 0.9, 0.97):
        plan = replace(cascade, settings=replace(cascade.settings, threshold=threshold))
        told = [knowledge.predict(plan, skill) for skill in SKILLS[:-1]]
        simulated = Simulated(random.Random(8))
        ran = [simulated.run(plan, skill, random.Random(n).gauss(0, 1)) for n in range(250) for skill in SKILLS[:-1]]
        assert mean(t.quality.mean for t in told) == pytest.approx(mean(ok for _, ok in ran), abs=0.05)
        assert mean(t.cost_usd.mean for t in told) == pytest.approx(mean(one.cost_usd for one, _ in ran), rel=0.15)


def test_the_same_executions_teach_the_same():
    seen = warm_up(3)
    plans = free_plans(HOUSE, CATALOGUE)
    first, second = (weigh(plans, learn(seen, CATALOGUE, KINDS), "sort", Length()) for _ in range(2))
    assert first == second


def test_a_chain_that_does_better_than_its_parts_is_believed_in_the_end():
    refine = build(Shape.DRAFT_REFINE, SHAPES[Shape.DRAFT_REFINE])
    simulated = Simulated(random.Random(4))
    seen = [replace(simulated.run(sequential(LARGE), "add", -1.0)[0], score=0.0) for _ in range(30)]
    before = learn(seen, CATALOGUE, KINDS).predict(refine, "add").quality.mean
    seen += [replace(simulated.run(refine, "add", 0.0)[0], score=1.0) for _ in range(30)]
    assert before < 0.5
    assert learn(seen, CATALOGUE, KINDS).predict(refine, "add").quality.mean > 0.75


def test_what_is_old_gives_way_where_a_model_gets_worse_by_too_little_to_be_sure_of_it():
    simulated = Simulated(random.Random(5))
    rates = [3] * 200 + [2] * 40
    seen = [
        replace(simulated.run(sequential(LARGE), "add", 1.0)[0], score=float(n % 5 < rate))
        for n, rate in enumerate(rates)
    ]
    slow, quick = (learn(seen, CATALOGUE, KINDS, half_life=half_life) for half_life in (10_000, 20))
    assert slow.changes == {}
    assert slow.predict(sequential(LARGE), "add").quality.mean > 0.53
    assert quick.predict(sequential(LARGE), "add").quality.mean < 0.48


def test_a_flood_of_complaints_about_one_skill_says_little_of_the_others():
    seen = warm_up(6)
    simulated = Simulated(random.Random(7))
    flood = [replace(simulated.run(sequential(LARGE), "add", 0.0)[0], domain="swapcase", score=0.0) for _ in range(400)]
    before, after = learn(seen, CATALOGUE, KINDS), learn(seen + flood, CATALOGUE, KINDS)
    first, second = (
        [one.predict(sequential(LARGE), skill).quality.mean for skill in SKILLS[:-1]] for one in (before, after)
    )
    assert mean(second) == pytest.approx(mean(first), abs=0.07)
    assert second == pytest.approx(first, abs=0.2)
    assert after.predict(sequential(LARGE), "swapcase").quality.mean < 0.05


def test_two_models_that_err_alike_do_not_vouch_for_each_other():
    cascade = build(Shape.CASCADE, SHAPES[Shape.CASCADE])
    alone = sequential(LARGE)
    simulated = Simulated(random.Random(8))
    seen = warm_up(9)
    seen += [replace(simulated.run(alone, "fact", 0.0)[0], score=0.0) for _ in range(6)]
    for _ in range(60):
        one, _ = simulated.run(replace(cascade, settings=replace(cascade.settings, threshold=1.0)), "fact", 0.0)
        seen.append(replace(one, stages=tuple(replace(stage, digest="unknown") for stage in one.stages)))
    kinds = Kinds()
    assert learn(seen, CATALOGUE, kinds).predict(sequential(SMALL), "fact").quality.mean < 0.3


def test_a_cascade_answers_for_no_more_than_its_gate_lets_pass():
    cascade = build(Shape.CASCADE, SHAPES[Shape.CASCADE])
    simulated = Simulated(random.Random(10))
    unlucky = [replace(simulated.run(cascade, "first", 2.0)[0], score=0.0) for _ in range(8)]
    knowledge = learn(warm_up(11) + unlucky, CATALOGUE, KINDS)
    strict = replace(cascade, settings=replace(cascade.settings, threshold=1.0))
    lost = [
        knowledge.parts(p, "upper").compose().quality.mean - knowledge.predict(p, "upper").quality.mean
        for p in (cascade, strict)
    ]
    assert lost[0] > 0.0
    assert lost[1] == pytest.approx(0.0, abs=0.002)


def test_a_model_that_fails_loses_its_promise():
    def failing(number):
        stage = StageOutcome(name="main", role=Role.MAIN, model=LARGE, failed=True)
        plan = sequential(LARGE)
        return Observation(
            execution_id=f"f{number}",
            time_s=0.0,
            configuration_id=plan.configuration_id,
            plan=plan,
            stages=(stage,),
            succeeded=False,
        )

    seen = warm_up(6)
    before = learn(seen, CATALOGUE, KINDS).predict(sequential(LARGE), "add").quality.mean
    after = learn(seen + [failing(n) for n in range(2000)], CATALOGUE, KINDS).predict(sequential(LARGE), "add")
    assert after.quality.mean < 0.7 * before


def test_longer_requests_are_expected_to_cost_more():
    simulated = Simulated(random.Random(7))
    seen = []
    for number in range(80):
        one, _ = simulated.run(sequential(LARGE), "add", 0.0)
        chars = 40 * (1 + number % 10)
        stages = tuple(replace(stage, input_tokens=10 + chars // 2) for stage in one.stages)
        seen.append(replace(one, chars=chars, stages=stages))
    knowledge = learn(seen, CATALOGUE, KINDS)
    short, long = (knowledge.predict(sequential(LARGE), "add", Length(chars=c)).cost_usd.mean for c in (100, 4000))
    assert long / short == pytest.approx((10 + 2000 + 24) / (10 + 50 + 24), rel=0.15)


def test_the_most_tokens_bound_the_cost_to_expect():
    knowledge = learn([], CATALOGUE, KINDS)
    free = knowledge.predict(sequential(LARGE), "", Length(chars=100)).cost_usd
    bound = knowledge.predict(sequential(LARGE), "", Length(chars=100, max_tokens=10)).cost_usd
    assert bound.high < free.mean


def test_runs_from_a_cache_and_cancelled_ones_teach_nothing():
    simulated = Simulated(random.Random(9))
    one, _ = simulated.run(sequential(SMALL), "add", 0.0)
    for spoilt in (replace(one, cached=True, score=1.0), replace(one, cancelled=True, score=0.0)):
        assert learn([spoilt] * 30, CATALOGUE, KINDS).skills == {}
