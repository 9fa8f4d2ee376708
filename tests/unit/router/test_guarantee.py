import math
import random
from dataclasses import replace

import numpy as np
import pytest

from catena.kit.errors import Invalid
from catena.plan.build import ShapeConfig, build
from catena.plan.model import Role, Shape
from catena.router.app import bounds_of
from catena.router.config import RouterConfig
from catena.router.core.beforehand import Kinds
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.evidence import evidence_of
from catena.router.core.guarantee import Promise, binomial_tail, certify, lately, paired
from catena.router.core.learning import learn
from catena.router.core.tuning import Bounds, tune_threshold
from tests.unit.router.outcome_rows import rows

pytestmark = pytest.mark.unit

LEVELS = [round(0.02 * n, 2) for n in range(51)]


def drawn(rng, count):
    """Confidences, and losses that are the rarer the higher they are."""
    confidences = rng.random(count)
    return confidences, (rng.random(count) < 0.3 * (1.0 - confidences)).astype(float)


def expected_loss(threshold):
    """Of keeping everything from the threshold on."""
    return 0.15 * (1.0 - threshold) ** 2


def test_a_certified_threshold_breaks_its_promise_no_more_often_than_it_may():
    rng = np.random.default_rng(0)
    promise = Promise(max_loss=0.05, probability=0.9)
    broken, found = 0, []
    for _ in range(400):
        certificate = certify(*drawn(rng, 300), LEVELS, promise)
        assert certificate is not None
        found.append(certificate.threshold)
        broken += expected_loss(certificate.threshold) > promise.max_loss
    assert broken / 400 <= 0.1 + 2.0 * math.sqrt(0.1 * 0.9 / 400)
    ideal = 1.0 - math.sqrt(promise.max_loss / 0.15)
    assert np.mean(found) < ideal + 0.2


def test_more_requests_certify_lower_thresholds():
    rng = np.random.default_rng(1)
    promise = Promise(max_loss=0.05, probability=0.95)
    few, many = (np.mean([certify(*drawn(rng, n), LEVELS, promise).threshold for _ in range(20)]) for n in (100, 3000))
    assert many < few - 0.05


def test_nothing_is_promised_on_too_little():
    assert certify(np.array([0.9]), np.array([0.0]), LEVELS, Promise(max_loss=0.05, probability=0.95)) is None
    assert certify(np.empty(0), np.empty(0), LEVELS, Promise(max_loss=0.05, probability=0.95)) is None


def test_after_a_drift_only_what_came_since_counts():
    rng = np.random.default_rng(2)
    good = (rng.random(300) < 0.02).astype(float)
    bad = (rng.random(300) < 0.25).astype(float)
    sure = np.full(600, 0.9)
    assert len(lately(sure, np.concatenate([good, bad]))[1]) == 300
    assert len(lately(sure, np.concatenate([good, good]))[1]) == 600
    promise = Promise(max_loss=0.15, probability=0.95)
    assert certify(sure, np.concatenate([good, good]), [0.5], promise) is not None
    assert certify(sure, np.concatenate([good, bad]), [0.5], promise) is None


@pytest.mark.parametrize(("losses", "count", "share"), [(0, 10, 0.1), (3, 40, 0.2), (7, 9, 0.5)])
def test_the_tail_is_that_of_the_binomial(losses, count, share):
    slow = sum(math.comb(count, k) * share**k * (1.0 - share) ** (count - k) for k in range(losses + 1))
    assert binomial_tail(losses, count, share) == pytest.approx(slow)


CARDS = [ModelCard(name=n, price_output=p) for n, p in (("small", 0.1), ("middle", 0.5), ("large", 2.0))]
CONFIG = ShapeConfig(fast="small", main="large", checks=["confidence"], min_chars=0, threshold=0.5)


def sure_rows(rng, count):
    """Rows in which `small` says how sure it is, and is mostly right to."""
    told = []
    for one in rows(rng, count):
        first = one.stages[0]
        odds = rng.gauss(2.0 if first.score else -0.5, 1.0)
        sure = replace(first, confidence=1.0 / (1.0 + math.exp(-odds)))
        told.append(replace(one, stages=(sure, *one.stages[1:])))
    return told


def tuned(promise, count=600, step=1.0):
    knowledge = learn(sure_rows(random.Random(3), count), catalogue_of(CARDS), Kinds())
    bounds = Bounds(margin=0.2, max_step=step, min_judged=1, promise=promise)
    return tune_threshold(CONFIG, knowledge, {"a": 1.0, "b": 1.0}, (0.2, 0.35, 0.65, 0.8, 0.9, 0.97), bounds)


def test_a_tuned_threshold_keeps_the_promise_that_the_configuration_demands():
    free, bound = tuned(None), tuned(Promise(max_loss=0.05, probability=0.95))
    assert free.after < 0.5 < bound.after
    assert "certified" in bound.reason
    fresh = evidence_of(sure_rows(random.Random(4), 4000), 2000)
    cascade = build(Shape.CASCADE, CONFIG)
    assert cascade.of(Role.FAST)[0].model == "small"
    sure, lost = paired(cascade, fresh)
    assert lost[sure >= bound.after].sum() / len(lost) <= 0.05
    assert lost[sure >= free.after].sum() / len(lost) > 0.05


def test_where_nothing_can_be_promised_yet_the_threshold_steps_towards_the_strictest():
    moved = tuned(Promise(max_loss=0.001, probability=0.99), step=0.1)
    assert moved.after == pytest.approx(0.6)
    assert "no threshold" in moved.reason


@pytest.mark.parametrize("settings", [{"max_loss": -0.1}, {"max_loss": 1.0}, {"certainty": 0.0}, {"certainty": 1.5}])
def test_promises_without_sense_are_refused(settings):
    with pytest.raises(Invalid, match=next(iter(settings))):
        bounds_of(RouterConfig(**settings))
