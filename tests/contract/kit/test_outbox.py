import asyncio

import pytest
import sqlalchemy as sa
from google.protobuf.wrappers_pb2 import StringValue

from catena.kit.bus import open_bus
from catena.kit.clock import ManualClock, World, still_world
from catena.kit.errors import Invalid, Unavailable
from catena.kit.event import Event
from catena.kit.outbox import Outbox, inbox_table, once, outbox_table, put, relay
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, eventually, nats_process, postgres, running, sqlite_url

METADATA = sa.MetaData()
OUTBOX = outbox_table(METADATA)
inbox_table(METADATA)
EFFECTS = sa.Table("effects", METADATA, sa.Column("n", sa.Integer, primary_key=True), sa.Column("what", sa.Text))


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request, tmp_path):
    if request.param == "sqlite":
        async with open_store(sqlite_url(tmp_path), METADATA, room="learner") as opened:
            yield opened
    else:
        async with postgres() as url, open_store(url, METADATA, room="learner") as opened:
            yield opened


def event(number):
    return Event(id=f"e{number}", type="learner.feedback.recorded", tenant="acme", time_s=1.5, data=b"%d" % number)


async def left(store):
    async with store.connect() as conn:
        return await conn.scalar(sa.select(sa.func.count()).select_from(OUTBOX))


async def test_tells_what_was_committed_in_order_and_never_what_was_rolled_back(store):
    bus = MemoryBus()
    async with running(relay(store, bus, world=World(), poll_s=60)):
        for start in (0, 10):
            async with store.begin() as conn:
                await put(conn, *map(event, range(start, start + 10)))
        with pytest.raises(RuntimeError):
            async with store.begin() as conn:
                await put(conn, event(99))
                raise RuntimeError
        await eventually(lambda: len(bus.events) == 20)
        assert bus.events == [event(number) for number in range(20)]
        await eventually(lambda: left_is_none(store))


async def left_is_none(store):
    return await left_are(store, 0)


async def left_are(store, count):
    return await left(store) == count


async def test_the_convenience_fills_in_id_time_and_message(store):
    bus, world = MemoryBus(), still_world()
    outbox = Outbox(store, bus, world)
    async with running(outbox.run()):
        async with store.begin() as conn:
            told = await outbox.put(
                conn, type="learner.feedback.recorded", tenant="acme", subject="f/1", message=StringValue(value="good")
            )
        await eventually(lambda: bus.events == [told])
    assert StringValue.FromString(told.data).value == "good"
    assert (told.time_s, told.subject) == (world.clock.now(), "f/1")


async def test_an_event_that_could_never_be_told_fails_its_transaction(store):
    with pytest.raises(Invalid):
        async with store.begin() as conn:
            await put(conn, Event(id="x", type="feedback", tenant="acme", time_s=0, data=b""))
    assert await left(store) == 0


class Broken(MemoryBus):
    def __init__(self):
        super().__init__()
        self.down = True

    async def publish(self, event, *, timeout_s=30.0):
        if self.down and event.id == "e2":
            raise Unavailable("no broker")
        await super().publish(event)


async def test_what_the_broker_did_not_take_waits_and_keeps_its_place(store):
    bus = Broken()
    async with store.begin() as conn:
        await put(conn, *map(event, range(5)))
    async with running(relay(store, bus, world=World(), poll_s=0.02)):
        await eventually(lambda: len(bus.events) == 2)
        await eventually(lambda: left_are(store, 3))
        bus.down = False
        await eventually(lambda: len(bus.events) == 5)
    assert bus.events == [event(number) for number in range(5)]


async def test_of_two_relays_one_works_and_the_other_takes_over_when_the_lease_ends(store):
    clock = ManualClock()
    first, second = MemoryBus(), MemoryBus()
    working = asyncio.create_task(relay(store, first, world=World(clock=clock), lease_s=0.4, poll_s=0.01))
    async with store.begin() as conn:
        await put(conn, event(1))
    await eventually(lambda: len(first.events) == 1)
    await eventually(lambda: left_is_none(store))
    async with running(relay(store, second, world=World(clock=clock), lease_s=0.4, poll_s=0.01)):
        async with store.begin() as conn:
            await put(conn, event(2))
        await eventually(lambda: len(first.events) == 2)
        await eventually(lambda: left_is_none(store))
        await crash(working, store)
        async with store.begin() as conn:
            await put(conn, event(3))
        await asyncio.sleep(0.3)
        assert second.events == []
        clock.advance(0.5)
        await eventually(lambda: second.events == [event(3)])


async def crash(relaying, store):
    """End a relay as SIGKILL would: its lease stays."""
    lease = METADATA.tables["outbox_lease"]
    async with store.connect() as conn:
        before = (await conn.execute(sa.select(lease))).mappings().one()
    relaying.cancel()
    await asyncio.gather(relaying, return_exceptions=True)
    async with store.begin() as conn:
        await conn.execute(lease.update().values(**before))


async def test_a_relay_that_ends_in_order_hands_over_at_once(store):
    clock, second = ManualClock(), MemoryBus()
    async with running(relay(store, MemoryBus(), world=World(clock=clock), poll_s=0.01)):
        await asyncio.sleep(0.1)
    async with store.begin() as conn:
        await put(conn, event(1))
    async with running(relay(store, second, world=World(clock=clock), poll_s=0.01)):
        await eventually(lambda: second.events == [event(1)])


async def test_an_effect_happens_once_per_consumer_and_only_with_its_note(store):
    async def apply(event_id, consumer, fail=False):
        async with store.begin() as conn:
            if await once(conn, event_id, consumer):
                await conn.execute(EFFECTS.insert().values(what=f"{consumer} {event_id}"))
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        await apply("e1", "router", fail=True)
    await asyncio.gather(*(apply("e1", "router") for _ in range(5)), apply("e1", "learner"))
    async with store.connect() as conn:
        assert sorted(await conn.scalars(sa.select(EFFECTS.c.what))) == ["learner e1", "router e1"]


async def test_from_outbox_to_effect_over_a_killed_broker_each_event_counts_once_and_in_order(store, tmp_path):
    async with nats_process(tmp_path / "home") as server, open_bus(server.url, name="learner") as bus:

        async def apply(told):
            async with store.begin() as conn:
                if await once(conn, told.id, "learner"):
                    await conn.execute(EFFECTS.insert().values(what=told.id))

        async def effects():
            async with store.connect() as conn:
                return list(await conn.scalars(sa.select(EFFECTS.c.what).order_by(EFFECTS.c.n)))

        async def enough(count):
            return len(await effects()) >= count

        outbox = Outbox(store, bus, World())
        async with running(outbox.run(), bus.consume("learner", ["learner.*.*"], apply)):
            for number in range(200):
                async with store.begin() as conn:
                    await put(conn, event(number))
                if number == 100:
                    await eventually(lambda: enough(20))
                    await server.kill()
            await asyncio.sleep(0.5)
            await server.start()
            await eventually(lambda: enough(200), 30)
            await bus.publish(event(5))
            await asyncio.sleep(0.2)
        assert await effects() == [f"e{number}" for number in range(200)]
