import pytest

from catena.plan.build import ShapeConfig, build, sequential
from catena.plan.model import Role, Shape
from catena.router.core.observation import Mode, Observation, StageOutcome, facts_of, family_of
from catena.router.core.verdicts import outweighs, verdict_of

pytestmark = pytest.mark.unit


def stage(role, digest="", model="m", **fields):
    return StageOutcome(name=f"{role}-{digest}-{model}", role=role, model=model, digest=digest, **fields)


def labels(plan, stages, score):
    one = Observation(execution_id="x", time_s=0.0, configuration_id="c", plan=plan, stages=tuple(stages), score=score)
    return [(fact.label, fact.inferred) for fact in facts_of(one)]


CASCADE = build(Shape.CASCADE, ShapeConfig(fast="s", main="l"))
VOTE = build(Shape.CONSENSUS, ShapeConfig(members=["a", "b", "c"]))


def test_a_kept_fast_answer_is_what_was_judged():
    assert labels(CASCADE, [stage(Role.FAST, "a")], 0.0) == [(0.0, False)]


def test_an_overruled_fast_answer_shares_the_verdict_when_it_was_the_same():
    assert labels(CASCADE, [stage(Role.FAST, "a", kept=False), stage(Role.MAIN, "a")], 1.0) == [(1.0, False)] * 2


def test_an_answer_that_differs_from_a_right_one_is_taken_to_be_wrong():
    found = labels(CASCADE, [stage(Role.FAST, "b", kept=False), stage(Role.MAIN, "a")], 1.0)
    assert found == [(0.0, True), (1.0, False)]


def test_an_answer_that_differs_from_a_wrong_one_stays_open():
    found = labels(CASCADE, [stage(Role.FAST, "b", kept=False), stage(Role.MAIN, "a")], 0.0)
    assert found == [(None, False), (0.0, False)]


def test_answers_without_digests_stay_open():
    found = labels(CASCADE, [stage(Role.FAST, kept=False), stage(Role.MAIN)], 1.0)
    assert found == [(None, False), (1.0, False)]


def test_the_elected_answer_is_the_one_that_was_judged():
    members = [stage(Role.MEMBER, "a", "a"), stage(Role.MEMBER, "b", "b", kept=False), stage(Role.MEMBER, "a", "c")]
    assert [label for label, _ in labels(VOTE, members, 0.0)] == [0.0, None, 0.0]
    assert [label for label, _ in labels(VOTE, members, 1.0)] == [1.0, 0.0, 1.0]


def test_a_vote_without_a_winner_says_nothing_of_its_members():
    members = [stage(Role.MEMBER, d, d) for d in "abc"]
    assert [label for label, _ in labels(VOTE, members, 1.0)] == [None] * 3


def test_the_one_member_that_was_kept_is_the_one_that_was_judged():
    members = [stage(Role.MEMBER, d, d, kept=d == "b") for d in "abc"]
    assert [label for label, _ in labels(VOTE, members, 1.0)] == [0.0, 1.0, 0.0]


def test_a_voter_with_a_temperature_of_its_own_tells_nothing_of_the_models_plain_answers():
    warm = build(Shape.CONSENSUS, ShapeConfig(members=["a", "b", "b"], temperatures=[0.0, 0.0, 0.7]))
    stages = tuple(StageOutcome(name=s.name, role=s.role, model=s.model, digest="x") for s in warm.stages)
    one = Observation(execution_id="x", time_s=0.0, configuration_id="c", plan=warm, stages=stages, score=1.0)
    assert [fact.mode for fact in facts_of(one)] == [Mode.PLAIN, Mode.PLAIN, Mode.SAMPLE]


def test_a_failed_call_is_not_judged():
    found = labels(CASCADE, [stage(Role.FAST, "", failed=True), stage(Role.MAIN, "a")], 1.0)
    assert found == [(None, False), (1.0, False)]


def test_a_family_is_the_same_at_every_threshold_and_differs_by_model():
    other = build(Shape.CASCADE, ShapeConfig(fast="s", main="l", threshold=0.9))
    assert family_of(CASCADE) == family_of(other)
    assert family_of(CASCADE) != family_of(build(Shape.CASCADE, ShapeConfig(fast="l", main="s")))
    assert family_of(sequential("s")) != family_of(sequential("l"))


def test_the_weightiest_verifier_speaks_and_a_kept_schema_says_nothing():
    assert verdict_of("x", [(1.0, "schema")]) is None
    assert verdict_of("x", [(1.0, "agreement")]) is None
    assert verdict_of("x", [(0.0, "schema"), (1.0, "tests")]).score == 1.0
    assert verdict_of("x", [(0.0, "schema")]).score == 0.0
    assert verdict_of("x", [(0.9, "judge"), (0.0, "exact")]).source == "exact"
    assert verdict_of("x", [(7.0, "tests")]).score == 1.0


def test_feedback_replaces_everything_and_itself():
    assert outweighs("feedback", "tests") and outweighs("feedback", "feedback") and outweighs("judge", "")
    assert not outweighs("judge", "feedback")
