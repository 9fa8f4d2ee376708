"""Routers over one real journal: whatever happened, and whoever was told of it, they stand alike."""

import random
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from catena.kit.clock import still_world
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, postgres, sqlite_url
from catena.plan.build import build
from catena.router.core.ports import Verdict
from catena.router.core.steps import OPERATOR
from catena.router.drivers.journal import SqlJournal
from catena.router.drivers.tables import MIGRATIONS, metadata
from tests.unit.router.simulation import SHAPES
from tests.unit.router.world import EXAMPLES, Bench

pytestmark = pytest.mark.contract

TEXTS = ["upper: gate", "reverse: walrus", "sort: 3 1 2", "nothing like it", "code: heron"]
PLANS = [build(shape, config) for shape, config in SHAPES.items()]


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request, tmp_path):
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
    else:
        async with postgres() as url:
            yield url


@asynccontextmanager
async def replica(url, seed):
    """A router with a connection, a clock and dice of its own."""
    async with open_store(url, metadata, room="router", migrations=MIGRATIONS) as store:
        journal = SqlJournal(store, Outbox(store, MemoryBus(), still_world()), window=300, trim_every=50)
        yield await Bench(journal=journal, seed=seed, window=300).open()


async def happened(benches, rng, count):
    """Executions and feedback, each told to one replica or the other, feedback also before what it is about."""
    simulated = benches[0].simulated
    for number in range(count):
        skill, ease = simulated.question()
        one, right = simulated.run(PLANS[number % len(PLANS)], skill, ease)
        one = replace(one, plan=replace(one.plan, strangeness=rng.random() ** 2), routed=True)
        verdict = Verdict(execution_id=one.execution_id, score=float(right))
        steps = [lambda bench, one=one: bench.observe(one)]
        if number % 2:
            said = f"said {one.execution_id}"
            steps.append(lambda bench, verdict=verdict, said=said: bench.router.judge("t", verdict, said))
        rng.shuffle(steps)
        for step in steps:
            await step(rng.choice(benches))
        if number % 40 == 0:
            await rng.choice(benches).router.settle()


async def stand_alike(*benches):
    told = []
    for bench in benches:
        await bench.router.settle()
        decisions = [await bench.explain(text, objective=o) for text in TEXTS for o in ("balanced", "cost")]
        told.append([(d.reason, d.found, [(c.plan, c.prediction, c.utility) for c in d.ranked]) for d in decisions])
    assert all(one == told[0] for one in told)
    return told[0]


async def test_two_replicas_and_a_restart_stand_alike_whatever_happened(url):
    rng = random.Random(4)
    async with replica(url, 1) as first, replica(url, 2) as second:
        await happened([first, second], rng, 360)
        learned = await stand_alike(first, second)
        await second.atlas.merge("t", ["upper", "reverse"], "case")
        merged = await stand_alike(first, second)
        assert merged != learned
        tuned = await first.tuner.tune("t", by=OPERATOR)
        assert tuned.step == 1, tuned.note
        await stand_alike(first, second)
        assert await second.tuner.steps("t") == await first.tuner.steps("t")
        await second.tuner.revert("t", 1, OPERATOR)
        assert await stand_alike(first, second) == merged
        await first.tuner.freeze("t", True)
        await happened([first, second], rng, 40)
        frozen = await stand_alike(first, second)
    async with replica(url, 3) as restarted:
        assert await stand_alike(restarted) == frozen
        assert len(await restarted.tuner.steps("t")) == 2
        await restarted.tuner.freeze("t", False)
        assert await stand_alike(restarted) != frozen
        assert len(restarted.atlas.list("t")) == len(EXAMPLES) - 1
