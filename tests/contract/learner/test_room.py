"""The learner's room among scripted rooms, over real gRPC, SQLite and NATS: the loop, its faults and its restarts."""

import asyncio
import json

import pytest

from catena.api.events.v1 import events_pb2
from catena.api.learner.v1 import learner_pb2 as pb
from catena.api.router.v1 import router_pb2
from catena.api.types.v1 import types_pb2
from catena.kit.errors import Conflict, Invalid, Missing
from catena.kit.testing import eventually
from tests.contract.learner.rooms import Street, street

pytestmark = pytest.mark.contract
NEW = "large@swap-case:1"


@pytest.fixture
async def loop(tmp_path):
    async with street(tmp_path) as here:
        yield here


async def collected(loop: Street, *numbers: int, told: asyncio.Event | None = None) -> None:
    jobs = len(loop.trainer.jobs)
    await loop.correct(*(numbers or range(20)))
    note(told)
    await eventually(lambda: len(loop.trainer.jobs) == jobs + 1)


async def trained(loop: Street, told: asyncio.Event | None = None) -> None:
    await loop.job_ends("j-1", "succeeded", NEW)
    note(told)
    await eventually(lambda: len(loop.router.experiments) == 1 and "canary" in loop.states())


def note(told: asyncio.Event | None) -> None:
    """What sets a step going is committed; from here on it happens by itself."""
    if told is not None:
        told.set()


async def judged(loop: Street, state: str = "won", told: asyncio.Event | None = None) -> None:
    await loop.canary_ends("x-1", state)
    note(told)
    await eventually(lambda: len(loop.states()) == 2)


async def check_promoted(loop: Street) -> None:
    """The one legal end of twenty corrections, an accepted adapter and a canary that won."""
    assert loop.states() == ["canary", "promoted"]
    assert loop.adapters.moves == [("large@swap-case", "1")]
    assert loop.adapters.deleted == []
    assert len(loop.trainer.jobs) == len(loop.router.experiments) == 1
    domain = loop.router.domains["swap-case"]
    assert (domain.specialist, len(domain.examples)) == ("large@swap-case", 20)
    assert len(loop.router.puts) == 2
    (promotion,) = (await loop.ask("ListPromotions", pb.ListPromotionsRequest())).promotions
    assert (promotion.state, promotion.candidate, promotion.incumbent) == ("promoted", NEW, "large")
    (dataset,) = (await loop.ask("ListDatasets", pb.ListDatasetsRequest())).datasets
    assert (dataset.state, dataset.rows, dataset.job_id) == ("done", 20, "j-1")


async def test_corrections_become_a_job_a_canary_and_a_promotion(loop):
    await loop.correct(*range(19))
    await asyncio.sleep(0.2)
    assert loop.trainer.jobs == {}
    await collected(loop, 19)
    (job,) = loop.trainer.jobs.values()
    assert (job.spec.adapter, job.spec.base, list(job.spec.tasks)) == ("swap-case", "large", ["swap-case"])
    assert (job.spec.register, job.spec.peft.rank, job.spec.acceptance.min_accuracy) == (True, 16, 0.7)
    (source,) = job.spec.sources
    rows = [json.loads(line) for line in source.jsonl.splitlines()]
    assert {"prompt": "swap 7", "completion": "SWAP 7"} in rows
    assert (len(rows), source.weight) == (20, 1.0)
    assert loop.executor.tenants == {"acme"}

    await trained(loop)
    (experiment,) = loop.router.experiments.values()
    assert (experiment.domain, [arm.model for arm in experiment.arms]) == ("swap-case", ["", NEW])
    assert [arm.share for arm in experiment.arms] == [0.5, 0.5]
    assert loop.router.domains["swap-case"].specialist == ""
    assert loop.adapters.moves == []

    await judged(loop)
    await check_promoted(loop)
    told = loop.decided[-1]
    assert (told.candidate, told.incumbent, told.domain) == (NEW, "large", "swap-case")
    assert told.reason == "p 0.01 after 60 outcomes"
    asked = pb.GetPromotionRequest(id=told.promotion_id)
    promotion = (await loop.ask("GetPromotion", asked)).promotion
    assert dict(promotion.metrics) == pytest.approx(
        {
            "accuracy": 0.93,
            "canary_p": 0.01,
            "canary_control": 0.0,
            "canary_candidate": 0.0,
            "canary_outcomes": 60.0,
        }
    )


async def test_feedback_that_overtakes_its_execution_waits_for_that_alone(loop):
    loop.executor.late = {"e-18", "e-19"}
    await loop.ask(
        "RecordFeedback", pb.RecordFeedbackRequest(feedback=pb.Feedback(execution_id="no-7", correction="x"))
    )
    await loop.correct(18, 19, *range(18))

    async def the_others_are_collected() -> bool:
        datasets = (await loop.ask("ListDatasets", pb.ListDatasetsRequest())).datasets
        return [one.rows for one in datasets] == [18]

    await eventually(the_others_are_collected)
    loop.executor.late.clear()
    for number in (18, 19):
        await loop.tell("executor.execution.completed", events_pb2.ExecutionCompleted(execution_id=f"e-{number}"))
    await eventually(lambda: len(loop.trainer.jobs) == 1)
    (job,) = loop.trainer.jobs.values()
    assert len(job.spec.sources[0].jsonl.splitlines()) == 20


@pytest.mark.parametrize(
    ("room", "step"),
    [
        ("executor", collected),
        ("trainer", collected),
        ("router", trained),
        ("adapters", trained),
        ("router", judged),
        ("adapters", judged),
    ],
)
@pytest.mark.parametrize("killed", [False, True], ids=["", "and the learner too"])
async def test_a_room_that_is_down_for_a_second_changes_nothing_of_the_outcome(loop, room, step, killed):
    for each in (collected, trained, judged):
        if each is not step:
            await each(loop)
            continue
        await loop.down(room)
        told = asyncio.Event()
        walking = asyncio.create_task(each(loop, told=told))
        await told.wait()
        await asyncio.sleep(0.5)
        if killed:
            await loop.down("learner")
        await asyncio.sleep(0.5)
        assert not walking.done()
        await loop.up(room)
        if killed:
            await loop.up("learner")
        await walking
    await check_promoted(loop)


async def test_a_learner_that_is_closed_between_all_steps_goes_on_where_it_was(loop):
    await loop.correct(*range(10))
    await loop.again()
    await collected(loop, *range(10, 20))
    await loop.again()
    await trained(loop)
    await loop.again()
    await judged(loop)
    await loop.again()
    await check_promoted(loop)


async def test_events_that_came_while_the_learner_was_away_are_heard_when_it_is_back(loop):
    await collected(loop)
    await loop.down("learner")
    await loop.job_ends("j-1", "succeeded", NEW)
    await loop.up("learner")
    await eventually(lambda: loop.states() == ["canary"])
    await loop.down("learner")
    await loop.canary_ends("x-1", "won")
    await loop.up("learner")
    await eventually(lambda: loop.states() == ["canary", "promoted"])
    await check_promoted(loop)


async def test_events_told_twice_have_their_effect_once(loop):
    await collected(loop)
    for _ in range(2):
        await loop.job_ends("j-1", "succeeded", NEW)
    await eventually(lambda: loop.states() == ["canary"])
    for _ in range(2):
        await loop.canary_ends("x-1", "won")
        await loop.job_ends("j-1", "succeeded", NEW)
    await eventually(lambda: loop.states() == ["canary", "promoted"])
    await asyncio.sleep(0.3)
    await check_promoted(loop)


async def test_a_rejected_adapter_ends_the_promotion_and_reaches_no_traffic(loop):
    await collected(loop)
    await loop.job_ends("j-1", "rejected", reason="accuracy 0.12 < 0.70")
    await eventually(lambda: loop.states() == ["rejected"])
    assert loop.decided[0].reason == "accuracy 0.12 < 0.70"
    assert (loop.router.puts, loop.router.experiments, loop.adapters.moves) == ([], {}, [])


@pytest.mark.parametrize("state", ["lost", "undecided"])
async def test_a_canary_that_does_not_win_is_withdrawn(loop, state):
    await collected(loop)
    await trained(loop)
    await judged(loop, state)
    assert loop.states() == ["canary", "rolled_back"]
    assert loop.adapters.deleted == [NEW]
    assert (loop.adapters.moves, loop.router.domains["swap-case"].specialist) == ([], "")


async def test_a_promoted_version_is_rolled_back_by_hand_to_the_one_before(loop):
    loop.adapters.register("large@swap-case:0")
    loop.adapters.stable["large@swap-case"] = "0"
    loop.router.domains["swap-case"] = router_pb2.Domain(
        name="swap-case", examples=["swap x"], specialist="large@swap-case", needs_memory=True
    )
    await collected(loop)
    await trained(loop)
    await judged(loop)
    asked = pb.RollBackRequest(id=loop.decided[-1].promotion_id, reason="users complain")
    moved = (await loop.ask("RollBack", asked)).promotion
    assert (moved.state, moved.reason) == ("rolled_back", "users complain")
    assert loop.adapters.moves == [("large@swap-case", "1"), ("large@swap-case", "0")]
    assert loop.adapters.deleted == [NEW]
    domain = loop.router.domains["swap-case"]
    assert (domain.specialist, domain.needs_memory, len(domain.examples)) == ("large@swap-case", True, 21)
    with pytest.raises(Conflict):
        await loop.ask("RollBack", asked)


async def test_a_canary_is_promoted_by_hand(loop):
    await collected(loop)
    await trained(loop)
    id_ = loop.decided[0].promotion_id
    with pytest.raises(Missing):
        await loop.ask("Promote", pb.PromoteRequest(id=id_), tenant="other")
    assert (await loop.ask("Promote", pb.PromoteRequest(id=id_))).promotion.state == "promoted"
    assert loop.router.by_id("x-1").state == "stopped"
    await eventually(lambda: loop.states() == ["canary", "promoted"])
    await check_promoted(loop)


async def test_feedback_is_answered_with_its_id_and_bad_feedback_with_the_cure(loop):
    def request(**fields):
        return pb.RecordFeedbackRequest(feedback=pb.Feedback(**fields))

    first = (await loop.ask("RecordFeedback", request(execution_id="e-1", thumbs=1, request_id="r"))).id
    assert (await loop.ask("RecordFeedback", request(execution_id="e-1", thumbs=1, request_id="r"))).id == first
    await loop.again()
    assert (await loop.ask("RecordFeedback", request(execution_id="e-1", thumbs=-1, request_id="r"))).id == first
    for bad in ({"thumbs": 1}, {"execution_id": "e-1"}, {"execution_id": "e-1", "score": float("nan")}):
        with pytest.raises(Invalid) as refused:
            await loop.ask("RecordFeedback", request(**bad))
        assert refused.value.code == "bad_feedback"


async def test_a_score_of_zero_is_a_score(loop):
    request = pb.RecordFeedbackRequest(feedback=pb.Feedback(execution_id="e-1", score=0.0, thumbs=1))
    await loop.ask("RecordFeedback", request)
    await asyncio.sleep(0.3)
    assert list((await loop.ask("ListDatasets", pb.ListDatasetsRequest())).datasets) == []


async def test_answers_that_a_verifier_confirmed_are_samples_beside_the_corrections(loop):
    for number in range(18):
        told = events_pb2.ExecutionCompleted(
            execution_id=f"e-{number}", scores=[types_pb2.Score(source="exact", value=1.0)]
        )
        await loop.tell("executor.execution.completed", told)
    await collected(loop, 18, 19)
    (job,) = loop.trainer.jobs.values()
    assert b'"wrong 3"' in job.spec.sources[0].jsonl


async def test_capsules_fill_the_data_set_of_their_domain(tmp_path):
    async with street(tmp_path, capsule_threshold=2) as loop:
        tasks = [pb.CapsuleTask(prompt=f"task {n}", output="done") for n in range(2)]
        good = pb.Capsule(id="c1", tech_stack=["airflow"], validation_score=0.9, tasks=tasks)
        weak = pb.Capsule(id="c2", validation_score=0.5, tasks=tasks)
        for _ in range(2):
            told = await loop.ask("PutCapsules", pb.PutCapsulesRequest(capsules=[good, weak]))
            assert (told.accepted, told.refused) == (2, 2)
        await eventually(lambda: len(loop.trainer.jobs) == 1)
        (job,) = loop.trainer.jobs.values()
        assert job.spec.adapter == "dataeng"


async def test_old_skills_are_mixed_in_and_measured(tmp_path):
    kept = tmp_path / "old.jsonl"
    kept.write_text('{"prompt": "p", "completion": "c"}\n')
    async with street(tmp_path, retention_path=str(kept)) as loop:
        await collected(loop)
        (job,) = loop.trainer.jobs.values()
        new, old = job.spec.sources
        assert (new.weight, old.weight, old.retention, old.jsonl) == (0.6, 0.4, True, kept.read_bytes())


async def test_a_retention_file_that_is_not_there_ends_the_promotion_with_the_cure(tmp_path):
    async with street(tmp_path, retention_path=str(tmp_path / "absent.jsonl")) as loop:
        await loop.correct(*range(20))
        await eventually(lambda: loop.states() == ["failed"])
        assert "absent.jsonl" in loop.decided[0].reason
        assert "learner.retention_path" in loop.decided[0].reason
