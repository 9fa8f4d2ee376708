import random
from dataclasses import replace

import numpy as np
import pytest

from catena.plan.answer import NAMES, sureness
from catena.plan.build import ShapeConfig, build
from catena.plan.model import Role, Shape
from catena.router.core.beforehand import Kinds
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.learning import learn
from catena.router.core.scorers import LEAST_ANSWERS, read_answers
from tests.unit.router.outcome_rows import rows
from tests.unit.router.world import Bench

pytestmark = pytest.mark.unit

CATALOGUE = catalogue_of(
    [ModelCard(name=n, price_output=p) for n, p in (("small", 0.1), ("middle", 0.2), ("large", 2.0))]
)
WRONG = NAMES.index("wrong_equations")


def looked_at(rng, seen, telling=0.8):
    """The same rows; a wrong answer of `small` mostly shows a sum that does not hold."""
    told = []
    for one in seen:
        stages = []
        for stage in one.stages:
            shows = rng.random() < (telling if stage.score == 0.0 else 1.0 - telling)
            figures = [rng.random() for _ in NAMES]
            figures[WRONG] = float(shows)
            stages.append(replace(stage, features=tuple(figures)) if stage.model == "small" else stage)
        told.append(replace(one, stages=tuple(stages)))
    return told


def test_how_an_answer_looks_tells_how_sure_to_be_of_it_and_calibrated():
    rng = random.Random(1)
    scorers, _ = read_answers(looked_at(rng, rows(rng, 600)))
    fresh = looked_at(rng, rows(rng, 2000))
    calls = [(one.stages[0], one.plan.features) for one in fresh]
    sure = np.array([scorers["small"].sureness(stage.features, about) for stage, about in calls])
    right = np.array([stage.score for stage, _ in calls])
    assert right[sure > 0.5].mean() - right[sure < 0.5].mean() > 0.4
    assert sure.mean() == pytest.approx(right.mean(), abs=0.04)
    assert list(scorers) == ["small"]


def test_answers_that_were_learned_from_are_scored_by_what_others_taught():
    """Looks that tell nothing must not seem to, or the gate would be believed too good."""
    rng = random.Random(2)
    _, scored = read_answers(looked_at(rng, rows(rng, LEAST_ANSWERS + 10), telling=0.5))
    sure = np.array([one.stages[0].confidence for one in scored])
    right = np.array([one.stages[0].score for one in scored])
    assert sure[right == 1.0].mean() - sure[right == 0.0].mean() < 0.12


def test_what_a_provider_measured_stays():
    rng = random.Random(3)
    seen = looked_at(rng, rows(rng, 200))
    measured = [replace(one, stages=(replace(one.stages[0], confidence=0.77), *one.stages[1:])) for one in seen]
    _, scored = read_answers(measured)
    assert {one.stages[0].confidence for one in scored} == {0.77}


def test_few_judged_answers_are_not_read():
    rng = random.Random(4)
    scorers, scored = read_answers(looked_at(rng, rows(rng, LEAST_ANSWERS - 1)))
    assert not scorers
    assert {one.stages[0].confidence for one in scored} == {0.0}


def test_the_reading_that_goes_with_a_plan_says_the_same_as_the_scorer():
    rng = random.Random(5)
    scorers, _ = read_answers(looked_at(rng, rows(rng, 300)))
    about = rows(rng, 1)[0].plan.features
    answer = tuple(rng.random() for _ in NAMES)
    scorer = scorers["small"]
    assert sureness(answer, scorer.reading(about)) == pytest.approx(scorer.sureness(answer, about))
    assert sureness(answer, scorer.reading(about)) != pytest.approx(sureness(answer, scorer.reading(())), abs=1e-3)


def test_a_cascade_is_known_at_any_threshold_from_answers_whose_looks_tell():
    rng = random.Random(6)
    knowledge = learn(looked_at(rng, rows(rng, 800)), CATALOGUE, Kinds())
    fresh = looked_at(rng, rows(rng, 3000))
    scorer = knowledge.scorers["small"]
    for threshold in (0.4, 0.6, 0.75):
        config = ShapeConfig(fast="small", main="large", checks=["confidence"], min_chars=0, threshold=threshold)
        told = knowledge.predict(build(Shape.CASCADE, config), "a").quality.mean
        right = []
        for one in fresh:
            sure = scorer.sureness(one.stages[0].features, one.plan.features)
            right.append(one.stages[0 if sure >= threshold else 2].score)
        assert told == pytest.approx(np.mean(right), abs=0.05)


async def test_a_recommended_cascade_brings_its_scorer_and_stays_one_configuration():
    shapes = {Shape.CASCADE: ShapeConfig(fast="small", main="large", checks=["confidence"], min_chars=0)}
    bench = await Bench(models=list(CATALOGUE.cards.values()), shapes=shapes).open()
    before = (await bench.recommend(shape=Shape.CASCADE)).plan
    rng = random.Random(7)
    for one in looked_at(rng, rows(rng, 200)):
        await bench.observe(one)
    await bench.router.settle()
    after = (await bench.recommend(shape=Shape.CASCADE)).plan
    assert before.settings.scorer == ()
    assert len(after.settings.scorer) == len(NAMES) + 1
    assert after.settings.scorer[1 + WRONG] < 0.0
    assert after.configuration_id == before.configuration_id
    assert after.of(Role.FAST)[0].model == "small"
