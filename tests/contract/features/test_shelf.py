import asyncio
import math
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catena.features.core.types import Definition, Draft, FeatureType, Group
from catena.features.drivers.shelf import SqlShelf
from catena.features.drivers.tables import MIGRATIONS, metadata
from catena.kit.clock import ManualClock, World, still_world
from catena.kit.errors import Conflict
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, postgres, sqlite_url

from .list_shelf import ListShelf

pytestmark = pytest.mark.contract

JSON = [None, True, 0, -1.5, 2**53, "text é", "", [1, [2]], {"a": {"b": [None]}}, [], {}]


@asynccontextmanager
async def open_sql(url, world):
    async with open_store(url, metadata, room="features", migrations=MIGRATIONS) as store:
        yield SqlShelf(store, Outbox(store, MemoryBus(), world), world)


@asynccontextmanager
async def open_shelf(kind, folder, world):
    if kind == "fake":
        yield ListShelf(world.clock)
    elif kind == "sqlite":
        async with open_sql(sqlite_url(folder), world) as shelf:
            yield shelf
    else:
        async with postgres() as url, open_sql(url, world) as shelf:
            yield shelf


@pytest.fixture
def world():
    return still_world()


@pytest.fixture(params=["fake", "sqlite", "postgres"])
async def shelf(request, tmp_path, world):
    async with open_shelf(request.param, tmp_path, world) as shelf:
        yield shelf


def draft(value=1, *, entity="u1", feature="age", event_s=100.0, kind="user", definition_version=0):
    return Draft(
        entity_type=kind,
        entity_id=entity,
        feature=feature,
        value=value,
        event_s=event_s,
        definition_version=definition_version,
    )


async def put(shelf, *drafts, tenant="acme", request_id=""):
    return await shelf.append(tenant, drafts, request_id=request_id)


async def value(shelf, as_of_s=math.inf, known_at_s=math.inf, *, tenant="acme", kind="user", key=("u1", "age")):
    found = await shelf.latest(tenant, kind, [key], as_of_s=min(as_of_s, 1e200), known_at_s=known_at_s)
    row = found[key].row
    return row.value if row else "nothing"


@pytest.mark.parametrize("data", JSON, ids=repr)
async def test_any_json_comes_back_as_it_was(shelf, data):
    await put(shelf, draft(data))
    assert await value(shelf) == data and type(await value(shelf)) is type(data)


async def test_values_are_appended_and_counted_per_feature_and_entity(shelf, world):
    rows = await put(shelf, draft(1), draft(2), draft(3, entity="u2"), draft(4, feature="size"))
    assert [row.version for row in rows] == [1, 2, 1, 1]
    assert {row.created_s for row in rows} == {world.clock.now()}
    (row,) = await put(shelf, draft(5, definition_version=7))
    assert (row.version, row.definition_version) == (3, 7)


async def test_the_latest_event_holds_whatever_the_order_of_writing(shelf, world):
    await put(shelf, draft("new", event_s=200))
    world.clock.advance(10)
    await put(shelf, draft("old", event_s=100))
    assert await value(shelf) == "new"
    assert await value(shelf, 200) == "new"
    assert await value(shelf, 199) == "old"
    assert await value(shelf, 99) == "nothing"


async def test_of_equal_events_the_one_created_last_holds(shelf, world):
    await put(shelf, draft("first"), draft("second"))
    assert await value(shelf) == "second"
    world.clock.advance(1)
    await put(shelf, draft("third"))
    assert await value(shelf) == "third"


async def test_what_was_written_later_was_not_known_before(shelf, world):
    start = world.clock.now()
    await put(shelf, draft("known", event_s=100))
    world.clock.advance(50)
    await put(shelf, draft("backfilled", event_s=150))
    assert await value(shelf, 200, start + 49) == "known"
    assert await value(shelf, 200, start + 50) == "backfilled"
    assert await value(shelf, 200, start - 1) == "nothing"


async def test_says_when_the_next_value_takes_over(shelf):
    await put(shelf, draft(1, event_s=100), draft(2, event_s=300), draft(3, event_s=200))
    found = await shelf.latest("acme", "user", [("u1", "age"), ("u9", "age")], as_of_s=150, known_at_s=math.inf)
    assert found["u1", "age"].row.value == 1 and found["u1", "age"].next_event_s == 200
    assert found["u9", "age"].row is None and found["u9", "age"].next_event_s == math.inf


async def test_tenants_types_entities_and_features_are_apart(shelf):
    await put(shelf, draft("mine"))
    await put(shelf, draft("theirs", event_s=900), tenant="rival")
    await put(shelf, draft("car", event_s=900, kind="car"), draft("other", event_s=900, entity="u11"))
    assert await value(shelf) == "mine"
    assert await value(shelf, tenant="rival") == "theirs"
    assert await value(shelf, tenant="nobody") == "nothing"


async def test_a_repeated_request_appends_nothing(shelf, world):
    first = await put(shelf, draft(1, event_s=0.0), request_id="r1")
    world.clock.advance(5)
    assert await put(shelf, draft(1, event_s=0.0, definition_version=3), request_id="r1") == first
    assert first[0].event_s == first[0].created_s == world.clock.now() - 5
    assert (await put(shelf, draft(2), request_id="r2"))[0].version == 2
    assert (await put(shelf, draft(1, event_s=0.0), request_id="r1", tenant="rival"))[0].version == 1
    with pytest.raises(Conflict, match="r1"):
        await put(shelf, draft(9), request_id="r1")


async def test_repeats_at_the_same_time_append_once(shelf):
    answers = await asyncio.gather(*(put(shelf, draft(1), draft(2), request_id="r") for _ in range(8)))
    assert all(rows == answers[0] for rows in answers)
    assert (await put(shelf, draft(3)))[0].version == 3


async def test_writers_at_the_same_time_all_count(shelf):
    await asyncio.gather(*(put(shelf, draft(n), draft(n, entity="u2")) for n in range(20)))
    rows = await put(shelf, draft(0), draft(0, entity="u2"))
    assert [row.version for row in rows] == [21, 21]


async def test_definitions_and_groups_count_their_changes(shelf):
    age = Definition(entity_type="user", name="age", type=FeatureType.NUMBER, ttl_s=60)
    assert [(await shelf.put_definition("acme", age)).version for _ in range(2)] == [1, 1]
    changed = Definition(entity_type="user", name="age", type=FeatureType.NUMBER, ttl_s=90)
    assert (await shelf.put_definition("acme", changed)).version == 2
    stored = (await shelf.definitions("acme"))["user", "age"]
    assert (stored.ttl_s, stored.type, stored.version) == (90, FeatureType.NUMBER, 2)
    group = Group(name="g", entity_type="user", features=("age", "size"))
    assert [(await shelf.put_group("acme", group)).version for _ in range(2)] == [1, 1]
    assert (await shelf.groups("acme"))["g"].features == ("age", "size")
    assert await shelf.groups("rival") == {} and await shelf.definitions("rival") == {}


writes = st.lists(
    st.tuples(st.sampled_from(["u1", "u2"]), st.sampled_from(["age", "size"]), st.integers(0, 8), st.integers(0, 2)),
    max_size=25,
)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=writes, asked=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), min_size=1, max_size=8))
async def test_a_read_of_any_time_equals_a_look_at_every_row(kind, sql_shelves, writes, asked):
    """Point in time, against brute force: one write after the other, time passing between them."""
    sql, clock, tenant = await sql_shelves(kind)
    start = clock.now()
    plain = ListShelf(clock)
    for number, (entity, feature, event_s, wait_s) in enumerate(writes):
        for target in (sql, plain):
            await put(target, draft(number, entity=entity, feature=feature, event_s=event_s), tenant=tenant)
        clock.advance(wait_s)
    keys = [(entity, feature) for entity in ("u1", "u2", "u3") for feature in ("age", "size")]
    for as_of_s, known_s in asked:
        times = {"as_of_s": float(as_of_s), "known_at_s": start + known_s}
        assert await sql.latest(tenant, "user", keys, **times) == await plain.latest(tenant, "user", keys, **times)


@pytest.fixture
async def sql_shelves(tmp_path):
    """Opens a shelf of a kind once, and gives each example a tenant of its own on it."""
    opened = {}
    numbers = iter(range(1_000_000))
    clock = ManualClock()
    stack = []

    async def get(kind):
        if kind not in opened:
            manager = open_shelf(kind, tmp_path, World(clock=clock))
            opened[kind] = await manager.__aenter__()
            stack.append(manager)
        return opened[kind], clock, f"tenant{next(numbers)}"

    yield get
    for manager in stack:
        await manager.__aexit__(None, None, None)


async def test_a_long_history_is_sought_not_read(shelf):
    for start in range(0, 2000, 500):
        await put(shelf, *(draft(n, event_s=n) for n in range(start + 1, start + 501)))
    assert [await value(shelf, n) for n in (0.5, 1, 999, 5000)] == ["nothing", 1, 999, 2000]
