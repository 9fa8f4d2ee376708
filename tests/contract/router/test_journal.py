from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa

from catena.kit.clock import still_world
from catena.kit.errors import Conflict
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, postgres, sqlite_url
from catena.plan.build import sequential
from catena.router.core.domains import Domain
from catena.router.core.experiments import MIN_OUTCOMES, Arm, Experiment, check_experiment
from catena.router.core.observation import Observation, StageOutcome
from catena.router.core.ports import Seen, Switch, Verdict
from catena.router.core.steps import Adjustment, Step
from catena.router.drivers.journal import SqlJournal
from catena.router.drivers.tables import MIGRATIONS, metadata

from .memory_journal import MemoryJournal

pytestmark = pytest.mark.contract


@asynccontextmanager
async def open_sql(url, **bounds):
    async with open_store(url, metadata, room="router", migrations=MIGRATIONS) as store:
        yield SqlJournal(store, Outbox(store, MemoryBus(), still_world()), **{"window": 1000, **bounds})


@pytest.fixture(params=["fake", "sqlite", "postgres"])
async def journal(request, tmp_path):
    if request.param == "fake":
        yield MemoryJournal()
    elif request.param == "sqlite":
        async with open_sql(sqlite_url(tmp_path)) as journal:
            yield journal
    else:
        async with postgres() as url, open_sql(url) as journal:
            yield journal


def ran(number, *, model="m", domain="", **fields):
    plan = replace(sequential(model), **{k: fields.pop(k) for k in ("experiment_id", "experiment_arm") if k in fields})
    return Observation(
        execution_id=f"x{number}",
        time_s=float(number),
        configuration_id=plan.configuration_id,
        plan=plan,
        domain=domain,
        stages=(StageOutcome(name="main", role=plan.stages[0].role, model=model, input_tokens=5),),
        cost_usd=0.5,
        latency_ms=20.0,
        **fields,
    )


def said(number, score, source="feedback", task=""):
    return Verdict(execution_id=f"x{number}", score=score, source=source, task=task)


async def observe(journal, tenant, observation, verdict, event_id):
    await journal.observe([Seen(tenant=tenant, observation=observation, verdict=verdict, event_id=event_id)])


async def seen(journal, after=0):
    return {n.observation.execution_id: n.observation for n in (await journal.changes(after)).observations}


async def test_an_execution_and_its_feedback_are_joined_in_either_order(journal):
    await observe(journal, "t", ran(1), None, "e1")
    await journal.judge("t", said(1, 1.0), "f1")
    await journal.judge("t", said(2, 0.0), "f2")
    await observe(journal, "t", ran(2), None, "e2")
    assert {key: one.score for key, one in (await seen(journal)).items()} == {"x1": 1.0, "x2": 0.0}


async def test_an_event_that_comes_twice_counts_once(journal):
    for _ in range(2):
        await observe(journal, "t", ran(1), None, "e1")
        await journal.judge("t", said(1, 1.0), "f1")
    (totals,) = (await journal.report("t")).configurations
    assert (totals.executions, totals.judged, totals.quality, totals.cost_usd) == (1, 1, 1.0, 0.5)


async def test_a_group_is_taken_in_whole_each_execution_once_and_in_its_order(journal):
    await observe(journal, "t", ran(1), None, "e1")
    await journal.judge("t", said(3, 1.0), "f3")
    told = [(1, "e1"), (2, "e2"), (2, "again"), (3, "e3"), (2, "e2")]
    await journal.observe([Seen(tenant="t", observation=ran(n), verdict=None, event_id=id) for n, id in told])
    changes = await journal.changes(0)
    assert [n.observation.execution_id for n in changes.observations] == ["x1", "x2", "x3"]
    assert len({n.born for n in changes.observations}) == 3
    assert (await seen(journal))["x3"].score == 1.0
    (totals,) = (await journal.report("t")).configurations
    assert (totals.executions, totals.judged, totals.cost_usd) == (3, 1, 1.5)


async def test_feedback_outweighs_a_verifier_and_not_the_other_way(journal):
    await observe(journal, "t", ran(1), said(1, 1.0, "tests"), "e1")
    await journal.judge("t", said(1, 0.0), "f1")
    await journal.judge("t", said(1, 1.0, "judge"), "j1")
    assert (await seen(journal))["x1"].score == 0.0
    (totals,) = (await journal.report("t")).configurations
    assert (totals.judged, totals.quality) == (1, 0.0)


async def test_a_task_named_with_feedback_becomes_the_domain_that_was_missing(journal):
    await observe(journal, "t", ran(1), None, "e1")
    await observe(journal, "t", ran(2, domain="known"), None, "e2")
    for number in (1, 2):
        await journal.judge("t", said(number, 0.0, task="swapcase"), f"f{number}")
    assert {one.domain for one in (await seen(journal)).values()} == {"swapcase", "known"}
    assert sorted(t.domain for t in (await journal.report("t")).configurations) == ["known", "swapcase"]


async def test_changes_are_told_from_where_the_reader_stopped(journal):
    await observe(journal, "t", ran(1), None, "e1")
    upto = (await journal.changes(0)).revision
    assert not (await journal.changes(upto)).observations
    await observe(journal, "t", ran(2), None, "e2")
    await journal.judge("t", said(1, 1.0), "f1")
    assert set(await seen(journal, upto)) == {"x1", "x2"}


async def test_tenants_are_kept_apart(journal):
    await observe(journal, "a", ran(1), None, "e1")
    await observe(journal, "b", ran(1), None, "e2")
    await journal.judge("a", said(1, 1.0), "f1")
    assert (await journal.report("a")).configurations[0].judged == 1
    assert (await journal.report("b")).configurations[0].judged == 0


async def test_the_plan_of_a_configuration_can_be_looked_up(journal):
    await observe(journal, "t", ran(1), None, "e1")
    assert (await journal.plan_of("t", sequential("m").configuration_id)).main_model == "m"
    assert await journal.plan_of("t", "unheard-of") is None
    assert await journal.plan_of("u", sequential("m").configuration_id) is None


async def test_domains_are_put_replaced_deleted_and_never_seeded_back(journal):
    one = Domain(name="code", tenant="shared", examples=("a",), specialist="m@code")
    await journal.seed_domains([one])
    await journal.put_domain(replace(one, specialist="m@better"))
    await journal.seed_domains([one])
    assert [d.specialist for d in (await journal.changes(0)).domains] == ["m@better"]
    await journal.delete_domain("shared", "code")
    await journal.seed_domains([one])
    changes = await journal.changes(0)
    assert (list(changes.domains), list(changes.deleted)) == ([], [("shared", "code")])


async def test_domains_that_are_merged_leave_marks_and_one_in_their_place(journal):
    both = [Domain(name=name, tenant="t", examples=("a",)) for name in ("x", "y")]
    for one in both:
        await journal.put_domain(one)
    upto = (await journal.changes(0)).revision
    await journal.merge_domains(replace(both[0], examples=("a", "b"), aliases=("y",)), ["y"])
    await journal.seed_domains(both)
    changes = await journal.changes(upto)
    assert [(d.name, d.examples, d.aliases) for d in changes.domains] == [("x", ("a", "b"), ("y",))]
    assert list(changes.deleted) == [("t", "y")]


async def test_steps_of_tuning_are_kept_once_per_number_and_tenant(journal):
    moved = Adjustment(setting="cascade.threshold", before=0.5, after=0.6, reason="why")
    first = Step(tenant="t", number=1, time_s=1.5, by="itself", moved=(moved,), judged=40, upto=7)
    await journal.put_step(first)
    upto = (await journal.changes(0)).revision
    with pytest.raises(Conflict) as refused:
        await journal.put_step(replace(first, by="operator"))
    assert refused.value.code == "tuned_meanwhile"
    await journal.put_step(replace(first, tenant="u"))
    assert list((await journal.changes(0)).steps) == [first, replace(first, tenant="u")]
    assert [one.tenant for one in (await journal.changes(upto)).steps] == ["u"]


async def test_a_database_of_before_gets_a_place_for_steps_and_is_tuned_anew(tmp_path):
    older = sa.MetaData()
    for table in metadata.tables.values():
        if table.name != "tuning_steps":
            table.to_metadata(older)
    async with open_store(sqlite_url(tmp_path), older, room="router") as store:
        before = SqlJournal(store, Outbox(store, MemoryBus(), still_world()), window=10)
        await before.put_switch(Switch(tenant="t", name="cascade.threshold", value=0.7))
        await before.put_switch(Switch(tenant="t", name="frozen", value=3.0))
    async with open_sql(sqlite_url(tmp_path)) as journal:
        changes = await journal.changes(0)
        assert [(one.name, one.value) for one in changes.switches] == [("frozen", 3.0)]
        await journal.put_step(Step(tenant="t", number=1, time_s=1.0, by="itself", moved=()))
        assert len((await journal.changes(0)).steps) == 1


def trial(id, domain="d"):
    arms = (Arm(name="control"), Arm(name="canary", model="m@new"))
    return check_experiment(Experiment(id=id, tenant="t", name="n", domain=domain, arms=arms))


async def test_an_experiment_starts_once_per_request_and_once_per_domain(journal):
    assert (await journal.put_experiment(trial("e1"), "r1")).id == "e1"
    assert (await journal.put_experiment(trial("e2"), "r1")).id == "e1"
    with pytest.raises(Conflict):
        await journal.put_experiment(trial("e3"), "")
    assert (await journal.put_experiment(trial("e4", "other"), "")).id == "e4"
    await journal.stop_experiment("t", "e1", "enough")
    assert (await journal.put_experiment(trial("e5"), "")).id == "e5"


async def test_judged_executions_of_an_arm_count_once_and_decide(journal):
    await journal.put_experiment(trial("e1"), "")
    number = 0
    for turn in range(60):
        for arm, right in (("control", turn % 10 == 0), ("canary", True)):
            number += 1
            await observe(journal, "t", ran(number, experiment_id="e1", experiment_arm=arm), None, f"e{number}")
            await journal.judge("t", said(number, float(right)), f"f{number}")
            await journal.judge("t", said(number, float(right)), f"again{number}")
    (experiment,) = (await journal.changes(0)).experiments
    assert experiment.state == "won"
    assert MIN_OUTCOMES * 2 <= experiment.outcomes <= 40
    assert abs(experiment.arms[0].tallies["quality"].n - experiment.arms[1].tallies["quality"].n) <= 1


async def test_a_failed_execution_counts_against_its_arm(journal):
    await journal.put_experiment(trial("e1"), "")
    await observe(journal, "t", ran(1, experiment_id="e1", experiment_arm="canary", succeeded=False), None, "e1")
    await observe(journal, "t", ran(2, experiment_id="e1", experiment_arm="canary"), None, "e2")
    (experiment,) = (await journal.changes(0)).experiments
    tally = experiment.arms[1].tallies["quality"]
    assert (tally.n, tally.total) == (1, 0.0)


async def test_switches_are_kept_and_can_be_taken_back(journal):
    await observe(journal, "t", ran(1), None, "e1")
    await journal.put_switch(Switch(tenant="t", name="frozen", value=0.0), now=True)
    (switch,) = (await journal.changes(0)).switches
    assert switch.value == (await journal.changes(0)).revision
    await journal.put_switch(Switch(tenant="t", name="frozen", value=None))
    assert [s.value for s in (await journal.changes(0)).switches] == [None]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_the_window_is_bounded_and_the_totals_are_not(tmp_path, kind):
    async def fill(url):
        async with open_sql(url, window=20, trim_every=10) as journal:
            for number in range(60):
                await observe(journal, "t", ran(number), None, f"e{number}")
            assert len((await journal.changes(0)).observations) <= 30
            assert (await journal.report("t")).executions == 60

    if kind == "sqlite":
        await fill(sqlite_url(tmp_path))
    else:
        async with postgres() as url:
            await fill(url)


async def test_a_verdict_is_announced_once_with_the_deciding_outcome(tmp_path):
    world, bus = still_world(), MemoryBus()
    async with open_store(sqlite_url(tmp_path), metadata, room="router", migrations=MIGRATIONS) as store:
        journal = SqlJournal(store, Outbox(store, bus, world), window=100)
        await journal.put_experiment(trial("e1"), "")
        for number in range(80):
            arm = "canary" if number % 2 else "control"
            await observe(journal, "t", ran(number, experiment_id="e1", experiment_arm=arm), None, f"e{number}")
            await journal.judge("t", said(number, float(arm == "control")), f"f{number}")
        async with store.connect() as conn:
            rows = (await conn.execute(metadata.tables["outbox"].select())).mappings().all()
    assert [(row["type"], row["tenant"], row["subject"]) for row in rows] == [("router.experiment.decided", "t", "e1")]
