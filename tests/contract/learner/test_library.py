"""What the learner keeps: the same promises from the fake, from SQLite and from PostgreSQL."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa

from catena.kit.clock import World, still_world
from catena.kit.errors import Missing
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, postgres, sqlite_url
from catena.learner.core.records import Feedback, Promotion, Sample
from catena.learner.drivers.library import METADATA, SqlLibrary
from tests.unit.learner.fakes import MemoryLibrary

pytestmark = pytest.mark.contract


@asynccontextmanager
async def open_sql(url, world):
    async with open_store(url, METADATA, room="learner") as store:
        yield SqlLibrary(store, Outbox(store, MemoryBus(), world), world)


@pytest.fixture
def world():
    return still_world()


@pytest.fixture(params=["fake", "sqlite", "postgres"])
async def library(request, tmp_path, world):
    if request.param == "fake":
        yield MemoryLibrary(world)
    elif request.param == "sqlite":
        async with open_sql(sqlite_url(tmp_path), world) as opened:
            yield opened
    else:
        async with postgres() as url, open_sql(url, world) as opened:
            yield opened


def told(id_, **fields):
    return Feedback(**{"id": id_, "execution_id": "e", "score": 0.0, "correction": "c", "created_s": 5.0, **fields})


def sample(prompt, task="swap", **fields):
    return Sample(**{"task": task, "prompt": prompt, "completion": "right", "corrected": True, **fields})


async def filled(library, task="swap", tenant="acme", rows=2):
    samples = [sample(f"{task} {number}", task) for number in range(rows)]
    (dataset,) = await library.collect(tenant, f"all of {tenant} {task}", samples, rows)
    return dataset


async def frozen(library, id_="p", **fields):
    dataset = await filled(library, **fields)
    opened = Promotion(
        id=id_, tenant=dataset.tenant, dataset_id=dataset.id, domain=dataset.task, created_s=7.0, updated_s=7.0
    )
    assert await library.freeze(dataset, "sha256:d", opened)
    return opened


async def events(library):
    """Types of the events that were promised, in order."""
    if isinstance(library, MemoryLibrary):
        return library.told
    async with library._store.connect() as conn:
        return list((await conn.scalars(sa.text("SELECT type FROM outbox ORDER BY seq"))).all())


async def test_feedback_is_read_back_as_it_was_given(library):
    one = told("f1", prompt="p", task="t", comment="k", request_id="r1", score=None)
    assert await library.keep_feedback("acme", one) == "f1"
    assert await library.feedback("acme", "f1") == one
    assert await library.keep_feedback("acme", told("f2")) == "f2"
    assert await library.feedback("acme", "f2") == told("f2", request_id="f2")


async def test_feedback_is_its_tenants_own(library):
    await library.keep_feedback("acme", told("f1"))
    for tenant, id_ in (("other", "f1"), ("acme", "f9")):
        with pytest.raises(Missing) as refused:
            await library.feedback(tenant, id_)
        assert refused.value.code == "unknown_feedback"


async def test_all_that_was_told_of_an_execution_is_found_by_it(library):
    for id_, at_s in (("late", 9.0), ("early", 3.0)):
        await library.keep_feedback("acme", told(id_, execution_id="e1", created_s=at_s))
    await library.keep_feedback("acme", told("elsewhere", execution_id="e2"))
    await library.keep_feedback("other", told("theirs", execution_id="e1"))
    hers = [
        told(id_, execution_id="e1", created_s=at_s, request_id=id_) for id_, at_s in (("early", 3.0), ("late", 9.0))
    ]
    assert await library.feedback_on([("acme", "e1")]) == [hers]
    mixed = await library.feedback_on([("acme", "e3"), ("acme", "e1"), ("other", "e1")])
    assert [[feedback.id for feedback in heard] for heard in mixed] == [[], ["early", "late"], ["theirs"]]


async def test_a_repeated_request_gives_the_first_feedback_and_no_second_event(library):
    assert await library.keep_feedback("acme", told("f1", request_id="r")) == "f1"
    assert await library.keep_feedback("acme", told("f2", request_id="r", correction="other")) == "f1"
    assert await library.keep_feedback("other", told("f3", request_id="r")) == "f3"
    assert (await library.feedback("acme", "f1")).correction == "c"
    assert await events(library) == ["learner.feedback.recorded"] * 2


async def test_requests_repeated_at_the_same_moment_are_one(library):
    ids = await asyncio.gather(
        *(library.keep_feedback("acme", told(f"f{number}", request_id="r")) for number in range(8))
    )
    assert len(set(ids)) == 1
    assert (await library.feedback("acme", ids[0])).id == ids[0]


async def test_samples_gather_by_task_and_tenant(library):
    both = await library.collect("acme", "s1", [sample("a"), sample("b", "rot13"), sample("c")], 100)
    assert {(d.task, d.rows, d.corrections, d.threshold, d.state) for d in both} == {
        ("swap", 2, 2, 100, "collecting"),
        ("rot13", 1, 1, 100, "collecting"),
    }
    (theirs,) = await library.collect("other", "s1", [sample("a")], 100)
    assert theirs.rows == 1
    assert len(await library.datasets("acme")) == 2
    assert await library.datasets("nobody") == []


async def test_a_later_sample_of_a_prompt_replaces_the_earlier_one(library):
    await library.collect("acme", "s1", [sample("a"), sample("a", context="k")], 100)
    (dataset,) = await library.collect("acme", "s2", [sample("a", completion="better", corrected=False)], 100)
    assert (dataset.rows, dataset.corrections) == (2, 1)
    kept = {(s.context, s.completion, s.corrected) for s in await library.samples(dataset.id)}
    assert kept == {("", "better", False), ("k", "right", True)}


async def test_a_source_counts_once_even_after_its_data_set_was_frozen(library):
    for _ in range(2):
        (dataset,) = await library.collect("acme", "s1", [sample("a")], 100)
        assert dataset.rows == 1
    opened = Promotion(id="p", tenant="acme", dataset_id=dataset.id, domain="swap")
    assert await library.freeze(dataset, "sha256:d", opened)
    assert await library.collect("acme", "s1", [sample("a")], 100) == []
    assert len(await library.datasets("acme")) == 1


async def test_samples_that_come_at_the_same_moment_share_one_data_set(library):
    told_at_once = (
        library.collect("acme", f"s{n}", [sample(f"q {n}"), sample(f"q {n}", "rot13")], 9) for n in range(12)
    )
    await asyncio.gather(*told_at_once)
    assert sorted((d.task, d.rows) for d in await library.datasets("acme")) == [("rot13", 12), ("swap", 12)]


async def test_a_frozen_data_set_takes_no_more_and_the_next_one_opens(library, world):
    promotion = await frozen(library)
    world.clock.advance(1.0)
    (following,) = await library.collect("acme", "later", [sample("late")], 2)
    assert following.id != promotion.dataset_id
    assert (await library.dataset(promotion.dataset_id)).state == "ready"
    assert len(await library.samples(promotion.dataset_id)) == 2
    assert [d.id for d in await library.datasets("acme")] == [following.id, promotion.dataset_id]
    assert await events(library) == ["learner.dataset.ready"]


async def test_a_data_set_is_frozen_once_and_only_as_it_was_read(library):
    old = await filled(library)
    await library.collect("acme", "more", [sample("more")], 2)
    opened = Promotion(id="p", tenant="acme", dataset_id=old.id, domain="swap")
    assert not await library.freeze(old, "sha256:d", opened)
    now = await library.dataset(old.id)
    outcomes = await asyncio.gather(
        *(library.freeze(now, "sha256:d", replace(opened, id=f"p{number}")) for number in range(4))
    )
    assert sorted(outcomes) == [False, False, False, True]
    assert len(await library.promotions("acme", "")) == 1
    assert (await library.dataset(old.id)).digest == "sha256:d"


async def test_the_job_is_noted_with_the_data_set_and_its_promotion(library):
    promotion = await frozen(library)
    await library.trained_by(promotion.dataset_id, "j1")
    dataset = await library.dataset(promotion.dataset_id)
    assert (dataset.state, dataset.job_id) == ("training", "j1")
    assert await library.promotion(job_id="j1") == replace(promotion, job_id="j1")


async def test_a_data_set_that_is_done_stays_done(library):
    promotion = await frozen(library)
    await library.trained_by(promotion.dataset_id, "j1")
    held = await library.promotion(id_="p")
    assert await library.move(held, replace(held, state="rejected"))
    await library.trained_by(promotion.dataset_id, "j1")
    assert (await library.dataset(promotion.dataset_id)).state == "done"


async def test_a_promotion_is_found_by_each_of_its_names_and_by_nothing_else(library):
    promotion = await frozen(library)
    await library.trained_by(promotion.dataset_id, "j1")
    held = await library.promotion(id_="p")
    await library.move(held, replace(held, state="canary", experiment_id="x1"))
    for name in ({"id_": "p"}, {"dataset_id": promotion.dataset_id}, {"job_id": "j1"}, {"experiment_id": "x1"}):
        found = await library.promotion(**name)
        assert found is not None
        assert found.id == "p"
    assert await library.promotion() is None
    assert await library.promotion(job_id="j2") is None
    assert await library.promotion(id_="p", job_id="j2") is None


async def test_a_step_is_committed_once_and_told_once(library):
    promotion = await frozen(library)
    trial = replace(
        promotion,
        state="canary",
        candidate="base@swap:1",
        incumbent="base",
        experiment_id="x",
        metrics={"accuracy": 0.9},
        updated_s=9.0,
    )
    assert await library.move(promotion, trial)
    assert not await library.move(promotion, trial)
    assert await library.promotion(id_="p") == trial
    won = replace(trial, state="promoted", previous="0", reason="won")
    assert sorted(await asyncio.gather(*(library.move(trial, won) for _ in range(4)))) == [False, False, False, True]
    assert not await library.move(trial, replace(trial, state="rolled_back"))
    assert await library.promotion(id_="p") == won
    told_of = ["learner.dataset.ready", "learner.promotion.decided", "learner.promotion.decided"]
    assert await events(library) == told_of


async def test_a_data_set_is_done_when_its_promotion_ends_and_not_in_its_canary(library):
    promotion = await frozen(library)
    await library.trained_by(promotion.dataset_id, "j1")
    trial = replace(promotion, state="canary", job_id="j1")
    await library.move(promotion, trial)
    assert (await library.dataset(promotion.dataset_id)).state == "training"
    await library.move(trial, replace(trial, state="rolled_back"))
    assert (await library.dataset(promotion.dataset_id)).state == "done"


async def test_promotions_are_listed_newest_first_by_tenant_and_state(library):
    first = await frozen(library, "p1")
    second = await frozen(library, "p2", task="rot13")
    await frozen(library, "p3", tenant="other")
    await library.move(first, replace(first, state="canary", created_s=1.0))
    await library.move(second, replace(second, state="rejected", created_s=2.0))
    assert [p.id for p in await library.promotions("acme", "")] == ["p2", "p1"]
    assert [p.id for p in await library.promotions("acme", "canary")] == ["p1"]
    assert await library.promotions("acme", "training") == []


async def test_what_is_not_there_is_named(library):
    with pytest.raises(Missing) as refused:
        await library.dataset("d9")
    assert refused.value.code == "unknown_dataset"
    assert await library.samples("d9") == []


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_everything_is_there_after_a_restart(tmp_path, kind):
    async def restarted(url):
        async with open_sql(url, World()) as library:
            promotion = await frozen(library)
        async with open_sql(url, World()) as library:
            assert await library.promotion(id_="p") == promotion
            assert (await library.dataset(promotion.dataset_id)).rows == 2

    if kind == "sqlite":
        await restarted(sqlite_url(tmp_path))
    else:
        async with postgres() as url:
            await restarted(url)
