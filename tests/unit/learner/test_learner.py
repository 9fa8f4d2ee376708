import asyncio

import pytest

from catena.kit.errors import Conflict, Invalid, Missing, Unavailable
from catena.learner.core.judging import rows_of
from catena.learner.core.learner import Capsule, Rules
from catena.learner.core.records import Executed, Execution, Feedback, JobResult, Verdict
from tests.unit.learner.fakes import Bench, News

pytestmark = pytest.mark.unit


@pytest.fixture
def bench():
    return Bench()


async def tried(bench, **fill):
    """A bench whose newest candidate is in its canary."""
    await bench.job_ends(await bench.fill(**fill))
    return bench


async def promoted(bench, **fill):
    await tried(bench, **fill)
    await bench.canary_ends("won")
    return bench


async def test_feedback_is_kept_once_for_each_request(bench):
    one = Feedback(id="", execution_id="e", score=1.0, request_id="r")
    first = await bench.learner.record("acme", one, 0)
    assert await bench.learner.record("acme", one, 0) == first
    assert await bench.learner.record("other", one, 0) != first
    nameless = Feedback(id="", execution_id="e", score=1.0)
    assert await bench.learner.record("acme", nameless, 0) != await bench.learner.record("acme", nameless, 0)
    assert len(bench.library.news) == 4


async def test_bad_feedback_is_not_kept(bench):
    with pytest.raises(Invalid):
        await bench.learner.record("acme", Feedback(id="", execution_id=""), 1)
    assert bench.library.news == []


async def test_corrections_become_a_data_set_at_the_threshold_and_not_before(bench):
    await bench.fill(1)
    (collecting,) = await bench.learner.datasets("acme")
    assert (collecting.state, collecting.rows, collecting.corrections) == ("collecting", 1, 1)
    assert bench.trainer.jobs == {}
    job = await bench.fill(1, start=1)
    (training,) = await bench.learner.datasets("acme")
    assert (training.state, training.rows, training.job_id) == ("training", 2, job)
    assert training.digest.startswith("sha256:")
    assert bench.trainer.rows[job].count(b"\n") == 2
    assert (await bench.only()).state == "training"


async def test_praise_alone_starts_no_training_because_nothing_is_wrong(bench):
    for number in range(5):
        await bench.say(f"fine {number}", correction="", thumbs=1)
    await bench.settle()
    (dataset,) = await bench.learner.datasets("acme")
    assert (dataset.state, dataset.rows, dataset.corrections) == ("collecting", 5, 0)
    await bench.fill(1)
    assert (await bench.learner.datasets("acme"))[0].state == "training"


async def test_blame_without_a_correction_teaches_nothing(bench):
    await bench.say("bad", correction="", thumbs=-1)
    await bench.settle()
    assert await bench.learner.datasets("acme") == []


async def test_the_later_correction_of_a_prompt_replaces_the_earlier(bench):
    first = Feedback(id="", execution_id="e-same", correction="early")
    await bench.say("same", correction="first")
    await bench.learner.record("acme", first, 0)
    await bench.settle()
    (dataset,) = await bench.learner.datasets("acme")
    (sample,) = await bench.library.samples(dataset.id)
    assert (dataset.rows, sample.completion) == (1, "early")


async def test_tasks_and_tenants_are_gathered_apart(bench):
    await bench.fill(1, task="swap")
    await bench.fill(1, task="rot13")
    bench.tenant = "other"
    await bench.say("theirs", "swap")
    await bench.settle()
    assert {d.task for d in await bench.learner.datasets("acme")} == {"swap", "rot13"}
    assert [d.rows for d in await bench.learner.datasets("other")] == [1]
    assert bench.trainer.jobs == {}


async def test_feedback_that_overtook_its_execution_is_learnt_from_once_that_is_recorded(bench):
    await bench.say_early("late")
    await bench.say("punctual")
    await bench.settle()
    (dataset,) = await bench.learner.datasets("acme")
    assert [sample.prompt for sample in await bench.library.samples(dataset.id)] == ["punctual"]
    bench.run("late")
    await bench.settle()
    assert len(bench.trainer.jobs) == 1
    assert sorted(sample.prompt for sample in await bench.library.samples(dataset.id)) == ["late", "punctual"]


async def test_feedback_on_what_was_never_run_holds_nobody_up_and_teaches_nothing(bench):
    unheard = await bench.say_early("never run")
    await bench.learner.learn_from("acme", unheard)
    assert await bench.learner.datasets("acme") == []


@pytest.mark.parametrize("praise_first", [False, True])
async def test_a_correction_wins_over_a_verifiers_praise_whichever_comes_first(bench, praise_first):
    praised = Executed(tenant="acme", execution_id=bench.run("p"), scores=(("exact", 1.0),))
    if praise_first:
        await bench.learner.learn_from_executions(praised)
    await bench.learner.learn_from("acme", await bench.say_early("p", correction="right"))
    await bench.learner.learn_from_executions(praised)
    (dataset,) = await bench.learner.datasets("acme")
    assert [sample.completion for sample in await bench.library.samples(dataset.id)] == ["right"]


async def test_feedback_told_again_after_its_data_set_was_frozen_starts_no_other(bench):
    await bench.fill(2)
    for news in list(bench.library.news):
        await bench.deliver(news)
    assert len(await bench.learner.datasets("acme")) == 1
    assert len(bench.trainer.jobs) == 1


@pytest.mark.parametrize(
    ("scores", "rows"),
    [
        ([("exact", 1.0)], 1),
        ([("tests", 0.95), ("agreement", 0.1)], 1),
        ([("exact", 1.0), ("tests", 0.5)], 0),
        ([("exact", 0.9)], 0),
        ([("agreement", 1.0)], 0),
        ([], 0),
    ],
)
async def test_only_a_trusted_verifier_makes_a_sample_of_an_execution(bench, scores, rows):
    bench.executions.known["e"] = Execution(id="e", prompt="p", answer="a", task="swap")
    for _ in range(2):
        await bench.learner.learn_from_executions(
            *(Executed(tenant="acme", execution_id=id_, scores=tuple(scores)) for id_ in ("e", "unheard"))
        )
    assert [(d.rows, d.corrections) for d in await bench.learner.datasets("acme")] == [(1, 0)] * rows


def capsule(id_="c", score=0.9, tasks=(("write a dbt model", "", "select 1"), ("now kafka", "ctx", "ok"))):
    return Capsule(id=id_, stack=("Spark",), score=score, tasks=tuple(tasks))


async def test_capsules_above_the_bar_fill_their_domain_and_others_are_refused():
    bench = Bench(Rules(capsule_threshold=2))
    weak, half = (
        capsule("weak", score=0.85),
        capsule("half", tasks=[("airflow", "", ""), ("", "", "x"), ("dbt", "", "y")]),
    )
    assert await bench.learner.take("acme", [weak, half]) == (1, 4)
    (dataset,) = await bench.learner.datasets("acme")
    assert (dataset.task, dataset.rows, dataset.threshold, dataset.state) == ("dataeng", 1, 2, "collecting")
    assert await bench.learner.take("acme", [capsule()]) == (2, 0)
    assert (await bench.only()).domain == "dataeng"


async def test_a_capsule_told_twice_counts_once():
    bench = Bench(Rules(capsule_threshold=2))
    for _ in range(2):
        assert await bench.learner.take("acme", [capsule()]) == (2, 0)
    assert len(await bench.learner.datasets("acme")) == 1


@pytest.mark.parametrize(("ended", "state"), [("rejected", "rejected"), ("failed", "failed"), ("cancelled", "failed")])
async def test_a_job_that_makes_no_adapter_ends_the_promotion_with_its_reason(bench, ended, state):
    job = await bench.fill()
    await bench.job_ends(job, ended, "accuracy 0.31 < 0.70")
    promotion = await bench.only()
    assert (promotion.state, promotion.reason, promotion.candidate) == (state, "accuracy 0.31 < 0.70", "")
    assert promotion.metrics == {"accuracy": 0.9}
    assert (await bench.learner.datasets("acme"))[0].state == "done"
    assert (bench.router.trials, bench.registry.moves) == ({}, [])
    await bench.fill(start=2)
    assert len(bench.trainer.jobs) == 2


async def test_a_job_that_the_trainer_refuses_ends_the_promotion_with_the_cure(bench):
    bench.trainer.refuses = Invalid("no base to adapt; set learner.recipe.base", code="no_base")
    await bench.fill()
    promotion = await bench.only()
    assert (promotion.state, promotion.reason) == ("failed", "no base to adapt; set learner.recipe.base")
    assert (await bench.learner.datasets("acme"))[0].state == "done"
    bench.trainer.refuses = None
    await bench.deliver(bench.library.news[-1])
    assert bench.trainer.jobs == {}


async def test_a_trainer_that_is_down_leaves_the_promotion_for_the_next_delivery(bench):
    bench.trainer.refuses = Unavailable("trainer is down")
    with pytest.raises(Unavailable):
        await bench.fill()
    bench.trainer.refuses = None
    await bench.settle()
    assert (await bench.only()).state == "training"
    assert len(bench.trainer.jobs) == 1


async def test_a_job_that_had_ended_before_it_was_noted_goes_on_at_once(bench):
    await bench.say("a")
    await bench.say("b")
    for news in list(bench.library.news):
        await bench.deliver(news)
    (dataset,) = await bench.learner.datasets("acme")
    job = await bench.trainer.start(dataset, rows_of(await bench.library.samples(dataset.id)))
    bench.trainer.end(job.job_id, "succeeded")
    await bench.deliver(News("job", "acme", job.job_id))
    assert (await bench.only()).state == "training"
    await bench.settle()
    assert (await bench.only()).state == "canary"


async def test_an_accepted_adapter_is_tried_on_the_domain_its_samples_describe(bench):
    bench.router.examples["swap"] = ["known before"]
    bench.router.specialists["swap"] = "large@swap"
    bench.registry.aliases["base@swap"] = "0"
    await tried(bench)
    promotion = await bench.only()
    assert (promotion.state, promotion.candidate) == ("canary", "base@swap:1")
    assert (promotion.incumbent, promotion.previous) == ("large@swap", "0")
    assert promotion.metrics == {"accuracy": 0.9}
    assert sorted(bench.router.examples["swap"]) == ["known before", "swap 0", "swap 1"]
    assert bench.router.specialists["swap"] == "large@swap"
    assert bench.router.models[promotion.experiment_id] == "base@swap:1"
    assert bench.registry.moves == []


async def test_the_base_is_the_incumbent_where_the_domain_has_no_specialist(bench):
    await tried(bench)
    assert (await bench.only()).incumbent == "base"


async def test_a_canary_that_won_becomes_stable_and_the_domains_specialist(bench):
    await promoted(bench)
    promotion = await bench.only()
    assert (promotion.state, promotion.reason) == ("promoted", "enough outcomes")
    assert promotion.metrics == {"accuracy": 0.9, "canary_p": 0.01}
    assert bench.registry.aliases == {"base@swap": "1"}
    assert bench.router.specialists == {"swap": "base@swap"}
    assert bench.registry.withdrawn == {}


@pytest.mark.parametrize("verdict", ["lost", "undecided", "stopped"])
async def test_a_canary_that_did_not_win_is_withdrawn(bench, verdict):
    await tried(bench)
    await bench.canary_ends(verdict)
    promotion = await bench.only()
    assert (promotion.state, promotion.reason) == ("rolled_back", f"canary {verdict}: enough outcomes")
    assert list(bench.registry.withdrawn) == ["base@swap:1"]
    assert (bench.registry.aliases, bench.router.specialists) == ({}, {})


async def test_events_about_others_jobs_and_experiments_change_nothing(bench):
    await tried(bench)
    await bench.learner.judge_job(JobResult(job_id="by-hand", state="succeeded", model="base@x:1"))
    await bench.learner.judge_canary(Verdict(experiment_id="by-hand", state="won"))
    await bench.learner.judge_canary(Verdict(experiment_id="", state="won"))
    await bench.learner.judge_job(JobResult(job_id="", state="failed"))
    assert await bench.states() == ["canary"]
    assert len(bench.router.trials) == 1


async def test_a_second_candidate_waits_for_the_canary_before_it(bench):
    await tried(bench)
    await tried(bench, start=2)
    assert await bench.states() == ["canary", "training"]
    await bench.canary_ends("won")
    assert await bench.states() == ["promoted", "canary"]
    second = (await bench.learner.promotions("acme", "canary"))[0]
    assert (second.candidate, second.previous, second.incumbent) == ("base@swap:2", "1", "base@swap")
    await bench.canary_ends("lost")
    assert bench.registry.aliases == {"base@swap": "1"}
    assert bench.router.specialists == {"swap": "base@swap"}


async def test_candidates_of_different_domains_are_tried_side_by_side(bench):
    await tried(bench, task="swap")
    await tried(bench, task="rot13")
    assert await bench.states() == ["canary", "canary"]


async def test_a_canary_can_be_promoted_by_hand_and_then_its_experiment_stops(bench):
    await tried(bench)
    id_ = (await bench.only()).id
    moved = await bench.learner.promote("acme", id_, "")
    assert (moved.state, moved.reason) == ("promoted", "promoted by hand")
    assert bench.router.trials[moved.experiment_id].state == "stopped"
    await bench.canary_ends("stopped")
    assert await bench.states() == ["promoted"]
    assert bench.registry.withdrawn == {}
    with pytest.raises(Conflict) as refused:
        await bench.learner.promote("acme", id_, "")
    assert refused.value.code == "not_in_canary"


async def test_a_canary_can_be_rolled_back_by_hand(bench):
    await tried(bench)
    moved = await bench.learner.roll_back("acme", (await bench.only()).id, "users complain")
    assert (moved.state, moved.reason) == ("rolled_back", "users complain")
    assert bench.router.trials[moved.experiment_id].state == "stopped"
    assert list(bench.registry.withdrawn) == ["base@swap:1"]
    with pytest.raises(Conflict) as refused:
        await bench.learner.roll_back("acme", moved.id, "")
    assert refused.value.code == "nothing_to_roll_back"


async def test_rolling_back_the_first_version_leaves_the_base(bench):
    await promoted(bench)
    await bench.learner.roll_back("acme", (await bench.only()).id, "")
    assert bench.registry.aliases == {"base@swap": ""}
    assert bench.router.specialists == {"swap": ""}


async def test_rolling_back_the_second_version_puts_the_first_back(bench):
    await promoted(bench)
    await promoted(bench, start=2)
    assert bench.registry.aliases == {"base@swap": "2"}
    second = (await bench.library.promotion(experiment_id=list(bench.router.trials)[1])).id
    await bench.learner.roll_back("acme", second, "")
    assert bench.registry.aliases == {"base@swap": "1"}
    assert bench.router.specialists == {"swap": "base@swap"}
    assert list(bench.registry.withdrawn) == ["base@swap:2"]


async def test_rolling_back_a_version_that_was_replaced_leaves_its_successor_in_place(bench):
    await promoted(bench)
    await promoted(bench, start=2)
    first, second = (p.id for p in sorted(await bench.learner.promotions("acme", ""), key=lambda p: p.candidate))
    await bench.learner.roll_back("acme", first, "")
    assert bench.registry.aliases == {"base@swap": "2"}
    assert bench.router.specialists == {"swap": "base@swap"}
    await bench.learner.roll_back("acme", second, "")
    assert bench.registry.aliases == {"base@swap": ""}
    assert bench.router.specialists == {"swap": ""}


async def test_a_promotion_is_its_tenants_own(bench):
    await tried(bench)
    id_ = (await bench.only()).id
    for verb in (bench.learner.promote, bench.learner.roll_back):
        with pytest.raises(Missing) as refused:
            await verb("other", id_, "")
        assert refused.value.code == "unknown_promotion"
    with pytest.raises(Missing):
        await bench.learner.get("acme", "")
    assert await bench.learner.promotions("other", "") == []


async def test_promotions_are_listed_by_state(bench):
    await promoted(bench)
    await tried(bench, start=2)
    assert [p.candidate for p in await bench.learner.promotions("acme", "promoted")] == ["base@swap:1"]
    assert [p.candidate for p in await bench.learner.promotions("acme", "canary")] == ["base@swap:2"]
    assert len(await bench.learner.promotions("acme", "")) == 2


async def test_a_hand_and_a_verdict_at_the_same_moment_end_a_canary_one_way(bench):
    await tried(bench)
    id_ = (await bench.only()).id

    class Slow(type(bench.registry)):
        async def set_stable(self, model, version):
            await asyncio.sleep(0)
            await super().set_stable(model, version)

        async def withdraw(self, model, reason):
            await asyncio.sleep(0)
            await super().withdraw(model, reason)

    bench.registry = Slow(bench.fuse)
    learner = bench.start()
    trial = next(iter(bench.router.trials))
    bench.router.decide(trial, "lost")
    await asyncio.gather(learner.promote("acme", id_, ""), learner.judge_canary(bench.router.trials[trial]))
    assert await bench.states() == ["promoted"]
    assert (bench.registry.aliases, bench.registry.withdrawn) == ({"base@swap": "1"}, {})
