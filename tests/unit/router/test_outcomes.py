import random

import numpy as np
import pytest

from catena.plan.build import sequential
from catena.router.core.ask import Ask
from catena.router.core.beforehand import Kinds
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.features import NAMES, request_features
from catena.router.core.learning import learn
from catena.router.core.outcomes import fit_logistic
from catena.router.core.outlook import Length
from tests.unit.router.outcome_rows import rows

pytestmark = pytest.mark.unit

CATALOGUE = catalogue_of([ModelCard(name=name, price_output=1.0) for name in ("small", "middle", "large")])


def asked(words):
    text = " ".join(["word"] * words) + "?"
    return Ask(text=text, chars=len(text))


def test_features_say_how_a_request_looks_and_nothing_of_its_words():
    one = request_features(Ask(text="If Ann has 12 apples, twice as many as Bob, how many?", chars=53))
    told = dict(zip(NAMES, one, strict=True))
    assert told["numbers"] == pytest.approx(np.log1p(1), abs=1e-3)
    assert told["fractions"] > 0.0
    assert told["conditions"] > 0.0
    assert told["code"] == 0.0
    other = request_features(Ask(text="If Eve has 12 quinces, twice as many as Tim, how many?", chars=53))
    assert {n: v for n, v in told.items() if n != "capitals"} == {
        n: v for n, v in zip(NAMES, other, strict=True) if n != "capitals"
    }


def test_tools_and_schemas_are_told_apart_from_plain_requests():
    plain, tools = (request_features(Ask(text="add", chars=3, tools=on)) for on in (False, True))
    assert plain != tools
    assert request_features(Ask(text="add", chars=3, structured=True)) not in (plain, tools)


def test_what_makes_requests_hard_is_learned_and_moves_the_prediction():
    knowledge = learn(rows(random.Random(1), 600, slope=1.5), CATALOGUE, Kinds())
    short, long = (knowledge.outcome.shifts(request_features(asked(words))) for words in (6, 55))
    plan = sequential("middle")
    easy = knowledge.predict(plan, "a", Length(chars=30), short).quality.mean
    hard = knowledge.predict(plan, "a", Length(chars=270), long).quality.mean
    assert easy - hard > 0.25


def test_features_that_tell_nothing_move_nothing():
    knowledge = learn(rows(random.Random(2), 600), CATALOGUE, Kinds())
    shifts = [knowledge.outcome.shifts(request_features(asked(words))).get("middle", 0.0) for words in (6, 20, 55)]
    assert max(map(abs, shifts)) < 0.2


def test_executions_without_features_leave_predictions_as_they_were():
    knowledge = learn(rows(random.Random(3), 300, slope=1.5, features=False), CATALOGUE, Kinds())
    assert knowledge.outcome.shifts(request_features(asked(6))) == {}


def test_a_model_that_was_never_judged_is_as_the_others_in_this():
    knowledge = learn(rows(random.Random(4), 600, slope=1.5), CATALOGUE, Kinds())
    short, long = (request_features(asked(words)) for words in (6, 55))
    assert knowledge.outcome.shifts(short)[""] > knowledge.outcome.shifts(long)[""] + 0.5


def test_the_prior_is_narrow_where_labels_are_noise_and_wide_where_they_are_not():
    rng = np.random.default_rng(0)
    design = rng.normal(size=(800, 5))
    noise = rng.integers(0, 2, 800).astype(float)
    told = (rng.random(800) < 1.0 / (1.0 + np.exp(-2.0 * design[:, 0]))).astype(float)
    ones, nothing = np.ones(800), np.zeros(800)
    beta, loose = fit_logistic(design, told, ones, nothing)
    shrunk, tight = fit_logistic(design, noise, ones, nothing)
    assert beta[0] == pytest.approx(2.0, abs=0.4)
    assert np.abs(shrunk).max() < 0.15
    assert loose < tight
