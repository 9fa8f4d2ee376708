import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from catena.plan.build import ShapeConfig, build
from catena.plan.model import Role, Shape
from catena.router.core.beforehand import Kinds
from catena.router.core.candidates import House, configured_plans, free_plans
from catena.router.core.catalogue import ModelCard, catalogue_of
from catena.router.core.evidence import evidence_of
from catena.router.core.learning import learn
from catena.router.core.proposals import propose
from catena.router.core.replay import replay, shares
from tests.unit.router.outcome_rows import rows

pytestmark = pytest.mark.unit

CARDS = [ModelCard(name=n, price_input=p, price_output=p) for n, p in (("small", 0.1), ("middle", 0.2), ("large", 2.0))]
CATALOGUE = catalogue_of(CARDS)
AGREE = ShapeConfig(fast=["middle", "small"], main="large", checks=["agreement"], min_chars=0)
CASCADE = build(Shape.CASCADE, AGREE)
VOTE = build(Shape.CONSENSUS, ShapeConfig(members=["large", "middle", "small"]))


def realised(seen):
    """What the cascade does on these rows: share kept, rate of right ones."""
    kept, right = [], []
    for one in seen:
        said = {s.model: s for s in one.stages}
        stands = said["middle"].digest == said["small"].digest
        kept.append(stands)
        right.append(said["middle" if stands else "large"].score)
    return np.mean(kept), np.mean(right)


def test_a_chain_that_never_ran_is_known_from_its_calls_on_the_same_requests():
    knowledge = learn(rows(random.Random(1), 500), CATALOGUE, Kinds())
    kept, right = realised(rows(random.Random(2), 3000))
    told = knowledge.predict(CASCADE, "a")
    assert told.quality.mean == pytest.approx(right, abs=0.03)
    assert knowledge.rehearsed(CASCADE).kept.overall == pytest.approx(kept, abs=0.03)


def test_what_disagreement_leaves_to_the_strong_model_is_longer_and_priced_so():
    seen = rows(random.Random(3), 800)
    knowledge = learn(seen, CATALOGUE, Kinds())
    fresh = rows(random.Random(4), 3000)
    passed = [one for one in fresh if one.stages[0].digest != one.stages[1].digest]
    usual = np.mean([one.stages[2].output_tokens for one in fresh])
    real = np.mean([one.stages[2].output_tokens for one in passed]) / usual
    assert real > 1.1
    assert knowledge.rehearsed(CASCADE).surplus[1] == pytest.approx(real, abs=0.06)


def test_a_vote_is_rehearsed_with_the_errors_that_its_members_share():
    knowledge = learn(rows(random.Random(5), 500), CATALOGUE, Kinds())
    fresh = rows(random.Random(6), 3000)
    right = []
    for one in fresh:
        said = [one.stages[n] for n in (2, 1, 0)]
        votes = [sum(other.digest == s.digest for other in said) for s in said]
        right.append(said[votes.index(max(votes))].score)
    assert knowledge.predict(VOTE, "a").quality.mean == pytest.approx(np.mean(right), abs=0.03)


def test_what_a_gate_let_pass_says_nothing_of_other_chains():
    """Only hard questions reach a cascade's main model."""
    gated = [replace(one, plan=replace(one.plan, shape=Shape.CASCADE)) for one in rows(random.Random(7), 300)]
    assert replay(CASCADE, evidence_of(gated, 2000)) is None


def test_few_rows_are_not_replayed():
    assert replay(CASCADE, evidence_of(rows(random.Random(8), 15), 2000)) is None


def test_domains_that_are_alike_share_and_those_that_differ_do_not():
    def spread(harder):
        seen = rows(random.Random(9), 1200, harder=("b", harder))
        replayed = replay(CASCADE, evidence_of(seen, 100_000))
        told = shares(replayed.right, replayed, 0.8)
        raw = [np.mean([realised([one])[1] for one in seen if one.domain == name]) for name in ("a", "b")]
        return told.at("a") - told.at("b"), raw[0] - raw[1]

    alike, noise = spread(0.0)
    apart, real = spread(1.5)
    assert abs(alike) < 0.6 * abs(noise) + 1e-3
    assert apart > 0.85 * real > 0.2


def test_pairs_whose_agreement_is_worth_believing_are_proposed_and_bad_ones_are_not():
    cards = [*CARDS, ModelCard(name="dear", price_input=9.0, price_output=9.0)]
    seen = []
    for one in rows(random.Random(10), 400):
        copied = replace(one.stages[0], name="dear", model="dear")
        seen.append(replace(one, stages=(*one.stages, copied)))
    knowledge = learn(seen, catalogue_of(cards), Kinds())
    poor = ShapeConfig(fast=["dear", "small"], main="large", checks=["agreement"], min_chars=0)
    house = House(shapes={Shape.CASCADE: poor})
    found = propose(configured_plans(house), knowledge)
    pairs = {frozenset(stage.model for stage in plan.of(Role.FAST)) for plan in found}
    assert frozenset(("small", "middle")) in pairs
    assert not any("dear" in pair for pair in pairs)
    weighed = free_plans(house, catalogue_of(cards), proposals=found)
    assert {plan.configuration_id for plan in found} <= {plan.configuration_id for plan in weighed}


def test_nothing_is_proposed_that_pays_no_more_than_what_is_configured():
    knowledge = learn(rows(random.Random(10), 400), CATALOGUE, Kinds())
    found = propose([CASCADE], knowledge)
    assert found == []


def test_of_many_pairs_of_models_that_are_all_alike_luck_proposes_few():
    rng, names = random.Random(12), [f"like-{n}" for n in range(12)]
    seen = []
    for one in rows(rng, 300):
        ease = rng.gauss(0.7, 1.0)
        hits = {name: ease + rng.gauss(0.0, 0.7) > 0.0 for name in names}
        stages = tuple(
            replace(
                one.stages[0],
                name=name,
                model=name,
                digest="right" if hit else f"wrong-{rng.randrange(5)}",
                score=float(hit),
            )
            for name, hit in hits.items()
        )
        seen.append(replace(one, stages=stages))
    cards = [ModelCard(name=name, price_input=1.0, price_output=1.0) for name in names]
    cascade = build(Shape.CASCADE, msgspec.structs.replace(AGREE, fast=names[:2], main=names[2]))
    assert len(propose([cascade], learn(seen, catalogue_of(cards), Kinds()))) <= 2


def test_nothing_is_proposed_where_no_cascade_rests_on_agreement():
    knowledge = learn(rows(random.Random(11), 200), CATALOGUE, Kinds())
    plain = House(shapes={Shape.CASCADE: ShapeConfig(fast="small", main="large")})
    assert propose(configured_plans(plain), knowledge) == []
