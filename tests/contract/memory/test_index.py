import asyncio
import itertools
import os
import signal
import uuid
from contextlib import asynccontextmanager

import numpy as np
import pytest

from catena.kit.errors import Unavailable
from catena.kit.supervise import Supervisor
from catena.kit.testing import eventually
from catena.memory.core.ports import IndexPoint, IndexQuery
from catena.memory.core.ranking import Fusion
from catena.memory.core.types import Engine
from catena.memory.drivers.edge import Shape
from catena.memory.drivers.edge_client import CHILD, open_edge

from .fake_index import ListIndex

pytestmark = pytest.mark.contract

SHAPE = Shape(dimension=8, language="english")
WORDS = ["cat", "dog", "bird", "fish", "tree", "stone", "lamp", "ship", "cloud", "song", "drum", "fern"]
DBSF = Fusion(method="dbsf")


@asynccontextmanager
async def edge(folder):
    async with (
        Supervisor(folder / "run") as supervisor,
        open_edge(folder / "index", folder / "edge.sock", SHAPE, supervisor) as index,
    ):
        index.supervisor = supervisor
        yield index


@asynccontextmanager
async def open_index(kind, folder):
    if kind == "fake":
        yield ListIndex()
    else:
        async with edge(folder) as index:
            yield index


@pytest.fixture(params=["fake", "edge"])
async def index(request, tmp_path):
    async with open_index(request.param, tmp_path) as index:
        yield index


def name(number):
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(number)))


def unit(rng):
    vector = rng.standard_normal(8).astype(np.float32)
    return (vector / np.linalg.norm(vector)).tobytes()


def point(number, text, *, scope="a", vector=None, labels=(), stamp="s", average=4.0):
    vector = vector if vector is not None else unit(np.random.default_rng(number))
    return IndexPoint(
        id=name(number),
        scope=scope,
        text=text,
        vector=vector,
        labels=list(labels),
        average_terms=average,
        stamp=stamp,
    )


def query(text="cat", *, scope="a", engine=Engine.BM25, vector=b"", fusion=DBSF, labels=(), limit=10):
    return IndexQuery(
        scope=scope, engine=engine, text=text, vector=vector, fusion=fusion, labels=labels, candidates=50, limit=limit
    )


async def test_finds_what_was_put_and_not_what_was_deleted(index):
    await index.put([point(1, "the cat"), point(2, "the dog")])
    assert [key for key, _ in await index.search(query("cat"))] == [name(1)]
    await index.delete([name(1), name(99)])
    assert await index.search(query("cat")) == []


async def test_putting_again_replaces(index):
    await index.put([point(1, "cat", stamp="old")])
    await index.put([point(1, "dog", stamp="new")])
    assert await index.search(query("cat")) == []
    assert len(await index.search(query("dog"))) == 1
    assert await index.inventory() == {name(1): "new"}


async def test_a_scope_neither_sees_nor_feels_another(index):
    await index.put([point(n, "cat bird" if n == 1 else "dog fish", scope="small") for n in range(5)])
    asked = query("cat dog", scope="small")
    before = dict(await index.search(asked))
    await index.put([point(100 + n, "dog lamp", scope="large") for n in range(200)])
    assert dict(await index.search(asked)) == pytest.approx(before)
    assert await index.search(query("lamp", scope="small")) == []
    await index.delete([name(100 + n) for n in range(200)])
    assert dict(await index.search(asked)) == pytest.approx(before)


async def test_a_word_that_all_of_a_scope_holds_tells_little(index):
    await index.put([point(n, "cat lamp" if n == 0 else "cat stone") for n in range(10)])
    scores = dict(await index.search(query("cat lamp")))
    assert scores[name(0)] > 5 * scores[name(1)]


async def test_labels_narrow_a_search(index):
    await index.put([point(1, "cat", labels=["x", "y"]), point(2, "cat", labels=["y"]), point(3, "cat")])

    async def found(labels):
        return {key for key, _ in await index.search(query("cat", labels=labels))}

    assert await found([["x"]]) == {name(1)}
    assert await found([["x", "y"]]) == {name(1), name(2)}
    assert await found([["y"], ["x"]]) == {name(1)}
    assert await found([["z"]]) == set()


async def test_equal_scores_are_ordered_by_id(index):
    await index.put([point(n, "cat") for n in range(20)])
    found = [key for key, _ in await index.search(query("cat", limit=20))]
    assert found == sorted(found)


async def test_measures_terms_with_repeats_without_stop_words(index):
    assert await index.measure(["the cat and the cat", "dog", ""]) == [2, 1, 0]


async def test_the_inventory_is_complete_beyond_a_page(index):
    for start in range(0, 6000, 250):
        await index.put([point(n, "cat", stamp=str(n), vector=bytes(32)) for n in range(start, start + 250)])
    assert await index.inventory() == {name(n): str(n) for n in range(6000)}


FUSIONS = [DBSF, Fusion(method="rrf", k=2), Fusion(method="rrf", k=5), Fusion(method="rrf", k=2, weights=(3.0, 1.0))]


async def test_edge_scores_as_the_formulas_say(tmp_path):
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(WORDS, length)) for length in range(5, 65)]  # of different lengths: no ties
    points = [point(n, text, scope="ab"[n % 2]) for n, text in enumerate(texts)]
    obvious = ListIndex()
    async with edge(tmp_path) as real:
        for target in (obvious, real):
            await target.put(points)
        for engine, fusion, _ in itertools.product(Engine, FUSIONS, range(10)):
            asked = query(" ".join(rng.choice(WORDS, 3)), engine=engine, vector=unit(rng), fusion=fusion)
            expected, found = await obvious.search(asked), await real.search(asked)
            assert dict(found) == pytest.approx(dict(expected), rel=1e-4, abs=1e-5), (engine, fusion)


async def test_what_was_acknowledged_survives_kill_9_of_the_process(tmp_path):
    async with edge(tmp_path) as index:
        await index.put([point(n, "cat", stamp=str(n)) for n in range(100)])
        await index.delete([name(5)])
        os.kill(index.supervisor.pid(CHILD), signal.SIGKILL)
        await eventually(lambda: index.supervisor.restarts(CHILD) == 1)
        assert await index.inventory() == {name(n): str(n) for n in range(100) if n != 5}


async def test_a_call_cut_by_the_process_dying_is_unavailable_and_the_next_one_works(tmp_path):
    async with edge(tmp_path) as index:
        os.kill(index.supervisor.pid(CHILD), signal.SIGSTOP)
        cut = index.measure(["cat"])
        task = asyncio.create_task(cut)
        await asyncio.sleep(0.05)
        os.kill(index.supervisor.pid(CHILD), signal.SIGKILL)
        with pytest.raises(Unavailable, match="restarted"):
            await task
        assert await index.measure(["cat"]) == [1]


async def test_a_shard_with_unflushed_writes_from_before_a_power_cut_is_made_anew(tmp_path):
    mark = tmp_path / "index" / "unflushed"
    async with edge(tmp_path) as index:
        await index.put([point(1, "cat")])
        assert mark.exists()
        await eventually(lambda: not mark.exists())
    async with edge(tmp_path) as index:
        assert len(await index.inventory()) == 1
    mark.write_text("another boot")
    async with edge(tmp_path) as index:
        assert await index.inventory() == {}


async def test_a_broken_or_foreign_shard_is_made_anew(tmp_path):
    async with edge(tmp_path) as index:
        await index.put([point(1, "cat")])
    for file in (tmp_path / "index" / "shard").rglob("*.json"):
        file.write_bytes(b"{")
    async with edge(tmp_path) as index:
        assert await index.inventory() == {}
        await index.put([point(1, "cat")])
        assert len(await index.search(query("cat"))) == 1
