import asyncio

import pytest

from catena.features.core.cache import Cache
from catena.features.core.features import Features, Limits, Question
from catena.features.core.reading import as_numbers, check_name, check_value, choose_feature_type
from catena.features.core.types import Definition, Draft, FeatureType, Group, Latest, Status
from catena.kit.clock import ManualClock
from catena.kit.errors import Invalid, Missing
from tests.contract.features.list_shelf import ListShelf

pytestmark = pytest.mark.unit
NOW = 1_800_000_000.0


class Bench:
    def __init__(self, keep_s=300.0):
        self.clock = ManualClock(NOW)
        self.shelf = ListShelf(self.clock)
        self.cache = Cache(keep_s=keep_s, entities=100)
        limits = Limits(definitions_s=5, max_value_bytes=100, max_batch=50)
        self.features = Features(shelf=self.shelf, cache=self.cache, clock=self.clock, limits=limits)

    async def set(self, value, *, feature="age", entity="u1", event_s=0.0, tenant="acme"):
        item = Draft(entity_type="user", entity_id=entity, feature=feature, value=value, event_s=event_s)
        return await self.features.append(tenant, [item], request_id="")

    async def get(self, *features, entity="u1", tenant="acme", **rest):
        asked = Question(tenant=tenant, entity_type="user", entity_ids=[entity], features=features, **rest)
        (reading,) = await self.features.read(asked)
        return reading

    async def value(self, feature="age", **rest):
        (reading,) = (await self.get(feature, **rest)).readings
        return reading.value if reading.status is Status.PRESENT else reading.status

    async def define(self, name="age", **fields):
        return await self.features.put_definition("acme", Definition(entity_type="user", name=name, **fields))


@pytest.fixture
def bench():
    return Bench()


async def test_a_write_is_read_at_once_although_the_value_was_kept(bench):
    await bench.set(1)
    assert await bench.value() == 1
    await bench.set(2)
    assert await bench.value() == 2


async def test_a_second_read_does_not_touch_the_shelf(bench):
    await bench.set(1)
    await bench.get("age", "size")
    await bench.get("size", "age")
    assert bench.shelf.reads == 1


async def test_a_kept_value_is_read_anew_after_five_minutes(bench):
    await bench.set(1)
    await bench.value()
    bench.clock.advance(299)
    await bench.value()
    assert bench.shelf.reads == 1
    bench.clock.advance(1)
    await bench.value()
    assert bench.shelf.reads == 2


async def test_a_value_dated_ahead_takes_over_on_its_second(bench):
    await bench.set("now")
    await bench.set("soon", event_s=NOW + 10)
    assert await bench.value() == "now"
    bench.clock.advance(9.5)
    assert await bench.value() == "now"
    bench.clock.advance(0.5)
    assert await bench.value() == "soon"


async def test_a_read_overtaken_by_a_write_is_not_kept(bench):
    await bench.set("old")
    reached, go = asyncio.Event(), asyncio.Event()
    latest = bench.shelf.latest

    async def slow(*arguments, **times):
        found = await latest(*arguments, **times)
        reached.set()
        await go.wait()
        return found

    bench.shelf.latest = slow
    reading = asyncio.create_task(bench.value())
    await reached.wait()
    await bench.set("new")
    go.set()
    await reading
    assert await bench.value() == "new"


async def test_expiry_counts_from_now_and_shows_no_value(bench):
    await bench.define(ttl_s=60)
    await bench.set(1)
    bench.clock.advance(60)
    assert await bench.value() == 1
    bench.clock.advance(0.1)
    (reading,) = (await bench.get("age")).readings
    assert (reading.status, reading.value, reading.row.event_s) == (Status.OUTSIDE_TTL, None, NOW)


async def test_expiry_counts_from_the_time_asked_about(bench):
    await bench.define(ttl_s=60)
    await bench.set(1)
    bench.clock.advance(1000)
    assert await bench.value(as_of_s=NOW + 60) == 1
    assert await bench.value(as_of_s=NOW + 61) is Status.OUTSIDE_TTL


async def test_a_backfilled_value_does_not_leak_into_the_past(bench):
    await bench.set("then")
    bench.clock.advance(100)
    await bench.set("backfilled", event_s=NOW + 1)
    assert await bench.value() == "backfilled"
    assert await bench.value(as_of_s=NOW + 50) == "then"
    assert await bench.value(as_of_s=NOW + 50, known_at_s=NOW + 100) == "backfilled"
    assert await bench.value(known_at_s=NOW + 99) == "then"


async def test_missing_features_say_so_and_are_remembered_until_written(bench):
    assert await bench.value() is Status.MISSING
    assert await bench.value() is Status.MISSING
    assert bench.shelf.reads == 1
    await bench.set(1)
    assert await bench.value() == 1


async def test_numbers_and_lists_of_numbers_make_a_vector(bench):
    for feature, value in {"age": 30, "embedding": [0.5, 1], "name": "x", "paid": True}.items():
        await bench.set(value, feature=feature)
    assert list((await bench.get("embedding", "age")).vector) == [0.5, 1, 30]
    for other in ("name", "paid", "absent"):
        assert list((await bench.get("age", other)).vector) == []


async def test_an_expired_value_empties_the_vector(bench):
    await bench.define(ttl_s=5)
    await bench.set(1)
    bench.clock.advance(10)
    assert list((await bench.get("age")).vector) == []


async def test_a_group_is_read_in_its_order(bench):
    await bench.features.put_group("acme", Group(name="g", entity_type="user", features=("b", "a")))
    await bench.set(1, feature="a")
    await bench.set(2, feature="b")
    reading = await bench.get(group="g")
    assert [item.feature for item in reading.readings] == ["b", "a"] and list(reading.vector) == [2, 1]


async def test_values_must_fit_their_definition(bench):
    await bench.define(type=FeatureType.NUMBER)
    with pytest.raises(Invalid, match="is a number"):
        await bench.set("old")
    await bench.set(3)
    await bench.set("free", feature="undefined")


async def test_a_changed_definition_holds_at_once_and_marks_later_values(bench):
    assert (await bench.set(1))[0].definition_version == 0
    await bench.define(type=FeatureType.NUMBER)
    assert (await bench.set(1))[0].definition_version == 1
    await bench.define(type=FeatureType.TEXT)
    assert (await bench.set("x"))[0].definition_version == 2


async def test_tenants_never_meet_in_the_cache(bench):
    await bench.set(1)
    assert await bench.value() == 1
    assert await bench.value(tenant="rival") is Status.MISSING
    await bench.set(2, tenant="rival")
    assert (await bench.value(), await bench.value(tenant="rival")) == (1, 2)


async def test_a_batch_keeps_the_order_and_reads_the_shelf_once(bench):
    for entity in ("a", "b"):
        await bench.set(entity, entity=entity)
    asked = Question(tenant="acme", entity_type="user", entity_ids=["b", "x", "a", "b"], features=["age"])
    found = await bench.features.read(asked)
    assert [(item.entity_id, item.readings[0].value) for item in found] == [
        ("b", "b"),
        ("x", None),
        ("a", "a"),
        ("b", "b"),
    ]
    assert bench.shelf.reads == 1


async def test_bad_questions_say_what_is_wrong(bench):
    with pytest.raises(Missing, match="there are: none"):
        await bench.get(group="nope")
    with pytest.raises(Invalid, match="not both"):
        await bench.get("age", group="nope")
    with pytest.raises(Invalid, match="features or a group"):
        await bench.get()
    with pytest.raises(Invalid, match="split the batch"):
        await bench.get(*(f"f{n}" for n in range(51)))
    with pytest.raises(Invalid, match="as_of_s is nan"):
        await bench.get("age", as_of_s=float("nan"))
    with pytest.raises(Invalid, match="ttl_s is -1"):
        await bench.define(ttl_s=-1)
    with pytest.raises(Invalid, match="each once"):
        await bench.features.put_group("acme", Group(name="g", entity_type="user", features=("a", "a")))
    with pytest.raises(Invalid, match="event_s"):
        await bench.set(1, event_s=-5)


def test_the_cache_drops_the_entity_used_longest_ago():
    cache = Cache(keep_s=10, entities=2)
    for name in ("a", "b", "a", "c"):
        cache.get(("t", "user", name), ["f"], 0)
        load = cache.begin(("t", "user", name))
        cache.keep(load, {"f": Latest(row=None, next_event_s=1e9)}, 0)
        cache.drop(load)
    kept = [name for name in "abc" if cache.get(("t", "user", name), ["f"], 0)]
    assert kept == ["a", "c"]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("number", [1, -2.5], [True, "1", None, [1]]),
        ("text", ["", "x"], [1, None, ["x"]]),
        ("bool", [True, False], [1, 0, "true", None]),
        ("vector", [[1], [0.5, 2]], [[], [1, "a"], [True], 1, None]),
        ("json", [None, 1, "x", [], {"a": 1}], []),
    ],
)
def test_types_admit_what_they_say(kind, good, bad):
    definition = Definition(entity_type="user", name="f", type=choose_feature_type(kind))
    for value in good:
        check_value("f", value, definition, 100)
    for value in bad:
        with pytest.raises(Invalid, match="send a"):
            check_value("f", value, definition, 100)


def test_sizes_and_names_are_limited():
    with pytest.raises(Invalid, match="max_value_bytes"):
        check_value("f", "x" * 100, None, 100)
    for name in ("", " ", "x" * 257, "a\0"):
        with pytest.raises(Invalid):
            check_name("feature", name)
    with pytest.raises(Invalid, match="number, text, bool, vector, json"):
        choose_feature_type("float")
    assert as_numbers([]) is None and as_numbers(True) is None and as_numbers(2) == [2.0]
