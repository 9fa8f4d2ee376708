import asyncio
from contextlib import asynccontextmanager, suppress

import nats
import pytest

from catena.kit import nats_server as embedded
from catena.kit.bus import ACK_WAIT_S, open_bus
from catena.kit.errors import Invalid, Unavailable
from catena.kit.event import Event
from catena.kit.testing import MemoryBus, eventually, free_port, nats_process, nats_server, running


def event(number, type_="executor.run.finished", tenant="acme"):
    return Event(
        id=f"e{number}", type=type_, tenant=tenant, time_s=1_800_000_000.5, data=b"%d" % number, subject=f"r/{number}"
    )


@asynccontextmanager
async def real(home):
    async with nats_server(home) as url, open_bus(url, name="test") as bus:
        yield bus


@pytest.fixture(params=["memory", "nats"])
async def bus(request, tmp_path):
    if request.param == "memory":
        yield MemoryBus()
    else:
        async with real(tmp_path) as opened:
            yield opened


class Seen(list):
    async def __call__(self, event):
        self.append(event)


async def test_a_consumer_gets_what_was_published_before_it_came_and_after_as_it_was(bus):
    seen = Seen()
    await bus.publish(event(1))
    async with running(bus.consume("router", ["executor.run.finished"], seen)):
        await bus.publish(event(2, tenant="b.c"))
        await eventually(lambda: len(seen) == 2)
    assert seen == [event(1), event(2, tenant="b.c")]


async def test_a_consumer_goes_on_where_it_stopped(bus):
    first, second = Seen(), Seen()
    await bus.publish(event(1))
    async with running(bus.consume("router", ["*.*.*"], first)):
        await eventually(lambda: len(first) == 1)
        await asyncio.sleep(0.1)
    await bus.publish(event(2))
    async with running(bus.consume("router", ["*.*.*"], second)):
        await eventually(lambda: len(second) == 1)
    assert (first, second) == ([event(1)], [event(2)])


async def test_consumers_of_different_names_each_get_everything_of_their_types(bus):
    router, learner = Seen(), Seen()
    async with running(
        bus.consume("router", ["executor.*.*"], router),
        bus.consume("learner", ["trainer.job.started", "trainer.job.finished"], learner),
    ):
        for number, type_ in enumerate(["executor.run.finished", "trainer.job.finished", "memory.document.indexed"]):
            await bus.publish(event(number, type_))
        await eventually(lambda: len(router) == len(learner) == 1)
    assert (router[0].id, learner[0].id) == ("e0", "e1")


async def test_one_id_is_stored_once(bus):
    seen = Seen()
    async with running(bus.consume("router", ["*.*.*"], seen)):
        for number in (1, 1, 2):
            await bus.publish(event(number))
        await eventually(lambda: len(seen) == 2)
    assert [e.id for e in seen] == ["e1", "e2"]


async def test_many_are_published_in_order(bus):
    seen = Seen()
    await bus.publish_many([event(number) for number in range(500)])
    async with running(bus.consume("router", ["*.*.*"], seen)):
        await eventually(lambda: len(seen) == 500)
    assert [e.data for e in seen] == [b"%d" % number for number in range(500)]


async def test_a_failing_event_is_tried_again_before_its_successors(bus):
    tries = []

    async def handle(event):
        tries.append(event.id)
        if len(tries) < 3:
            raise ValueError("not yet")

    async with running(bus.consume("router", ["*.*.*"], handle, backoff_s=[0.05])):
        await bus.publish_many([event(1), event(2)])
        await eventually(lambda: len(tries) == 4)
    assert tries == ["e1", "e1", "e1", "e2"]


async def test_a_poisonous_event_ends_among_the_dead_letters_and_its_successors_come(bus):
    seen = Seen()

    async def handle(event):
        if event.id == "e1":
            raise ValueError("ünknown domain\n" + "x" * 5000)
        await seen(event)

    async with running(bus.consume("router", ["*.*.*"], handle, max_deliver=2, backoff_s=[0.01])):
        await bus.publish_many([event(1), event(2)])
        await eventually(lambda: seen == [event(2)])
    (letter,) = await bus.dead_letters()
    assert letter.event == event(1)
    assert (letter.consumer, letter.deliveries) == ("router", 2)
    assert letter.reason.startswith("ValueError: ünknown domain\nxx")


async def test_a_watcher_sees_only_what_comes_unless_it_asks_for_all(bus):
    fresh, all_ = Seen(), Seen()
    await bus.publish(event(1))
    async with running(bus.watch(["*.*.*"], fresh), bus.watch(["*.*.*"], all_, since_now=False)):
        await eventually(lambda: len(all_) == 1)
        await asyncio.sleep(0.3)
        await bus.publish(event(2))
        await eventually(lambda: len(fresh) == 1 and len(all_) == 2)
    assert ([e.id for e in fresh], [e.id for e in all_]) == (["e2"], ["e1", "e2"])


async def test_refuses_what_could_never_be_stored(bus):
    with pytest.raises(Invalid):
        await bus.publish(event(1, "finished"))


async def test_several_may_be_in_flight(tmp_path):
    together, most = 0, 0

    async def handle(event):
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.05)
        together -= 1

    async with real(tmp_path) as bus, running(bus.consume("router", ["*.*.*"], handle, in_flight=4)):
        await bus.publish_many([event(number) for number in range(12)])
        await eventually(lambda: most == 4)


async def test_what_comes_together_is_handled_together_and_in_its_order(tmp_path):
    groups = []

    async def handle(events):
        groups.append([event.id for event in events])

    async with real(tmp_path) as bus:
        await bus.publish_many([event(number) for number in range(20)])
        async with running(bus.consume_together("router", ["*.*.*"], handle, linger_s=0.2, most=8)):
            await eventually(lambda: sum(map(len, groups)) == 20)
    assert [id_ for group in groups for id_ in group] == [event(number).id for number in range(20)]
    assert 3 <= len(groups) <= 10
    assert max(map(len, groups)) == 8


async def test_in_a_group_the_one_to_blame_is_buried_and_the_others_are_handled(tmp_path):
    done, groups = [], []

    async def handle(events):
        groups.append(len(events))
        if event(3).id in [one.id for one in events]:
            raise ValueError("poison")
        done.extend(one.id for one in events)

    wanted = {event(number).id for number in range(6) if number != 3}
    async with real(tmp_path) as bus:
        listening = bus.consume_together("router", ["*.*.*"], handle, max_deliver=2, backoff_s=[0.01])
        async with running(listening):
            await bus.publish_many([event(number) for number in range(6)])
            await eventually(lambda: set(done) == wanted)
            dead = []
            while not dead:
                await asyncio.sleep(0.05)
                dead = await bus.dead_letters()
    assert [(one.event.id, one.reason) for one in dead] == [(event(3).id, "ValueError: poison")]
    assert sorted(done) == sorted(wanted)


async def test_a_group_that_is_broken_off_comes_again_at_once(tmp_path):
    async def stall(events):
        await asyncio.sleep(60)

    again = []

    async def handle(events):
        again.extend(event.id for event in events)

    async with real(tmp_path) as bus:
        async with running(bus.consume_together("router", ["*.*.*"], stall, linger_s=0.05)):
            await bus.publish_many([event(number) for number in range(5)])
            await asyncio.sleep(0.5)
        started = asyncio.get_running_loop().time()
        async with running(bus.consume_together("router", ["*.*.*"], handle)):
            await eventually(lambda: len(again) == 5)
        assert asyncio.get_running_loop().time() - started < ACK_WAIT_S - 1
    assert sorted(again) == [event(number).id for number in range(5)]


async def test_without_a_broker_publishing_says_so_and_works_once_there_is_one(tmp_path):
    async with open_bus(f"nats://127.0.0.1:{free_port()}", name="test") as bus:
        with pytest.raises(Unavailable, match="safe to publish it again"):
            await bus.publish(event(1), timeout_s=0.3)
    async with nats_process(tmp_path) as server:
        await server.kill()
        async with open_bus(server.url, name="test") as bus:
            publishing = asyncio.create_task(bus.publish(event(1)))
            await asyncio.sleep(0.5)
            assert not publishing.done()
            await server.start()
            await publishing


async def test_the_broker_is_killed_and_nothing_acknowledged_is_lost_or_out_of_order(tmp_path):
    acknowledged, seen = [], Seen()
    async with nats_process(tmp_path) as server, open_bus(server.url, name="test") as bus:

        async def publish():
            for number in range(300):
                await bus.publish(event(number))
                acknowledged.append(f"e{number}")
                await asyncio.sleep(0.005)

        async with running(bus.consume("router", ["*.*.*"], seen)):
            publishing = asyncio.create_task(publish())
            for target in (50, 150):
                await eventually(lambda target=target: len(acknowledged) > target)
                await server.kill()
                await asyncio.sleep(0.3)
                await server.start()
            await asyncio.wait_for(publishing, 30)
            await eventually(lambda: len({e.id for e in seen}) == 300, 30)
        distinct = list(dict.fromkeys(e.id for e in seen))
        assert distinct == acknowledged


async def test_a_watcher_goes_on_over_a_restart_of_the_broker(tmp_path):
    seen = Seen()
    async with (
        nats_process(tmp_path) as server,
        open_bus(server.url, name="test") as bus,
        running(bus.watch(["*.*.*"], seen, since_now=False)),
    ):
        await bus.publish(event(1))
        await eventually(lambda: len(seen) == 1)
        await server.kill()
        await server.start()
        await bus.publish(event(2))
        await eventually(lambda: len(seen) == 2)
    assert [e.id for e in seen] == ["e1", "e2"]


async def heard(subscription, bus):
    """The first event that a plain subscription hears; nobody promises it that it hears the first one."""
    for number in range(1, 16):
        await bus.publish(event(number))
        with suppress(nats.errors.TimeoutError):
            return await subscription.next_msg(2)
    raise AssertionError("heard nothing")


async def test_a_stranger_with_plain_nats_sees_the_cloudevent(tmp_path):
    async with nats_server(tmp_path) as url, open_bus(url, name="test") as bus:
        await bus.ensure_streams()
        stranger = await nats.connect(url)
        subscription = await stranger.subscribe("catena.acme.>")
        await stranger.flush()
        message = await heard(subscription, bus)
        assert message.subject == "catena.acme.executor.run.finished.v1"
        assert message.headers["ce-type"] == "executor.run.finished"
        assert message.headers["ce-time"] == "2027-01-15T08:00:00.500000+00:00"
        await stranger.close()


async def test_the_embedded_broker_turns_strangers_without_the_token_away(tmp_path):
    async with nats_server(tmp_path) as url:
        with pytest.raises(nats.errors.Error, match="Authorization"):
            await nats.connect("nats://" + url.split("@")[1], allow_reconnect=False, error_cb=Seen())


def test_the_embedded_broker_keeps_its_address_and_hides_its_token(tmp_path):
    first = embedded.command(tmp_path)
    address = embedded.url(tmp_path)
    assert embedded.command(tmp_path) == first
    assert embedded.url(tmp_path) == address
    for name in ("run/nats.url", "run/nats.conf", "keys/nats.token"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("types", [["*.*.*", "trainer.job.*"], ["*.job.started", "trainer.*.started"], []])
async def test_overlapping_types_are_refused(bus, types):
    with pytest.raises(Invalid, match="types"):
        await asyncio.wait_for(bus.consume("router", types, Seen()), 30)


async def test_an_address_that_is_none_is_refused():
    with pytest.raises(Invalid, match="nats://host:port"):
        async with open_bus("localhost:4222", name="test"):
            pass


async def test_a_newer_release_may_listen_to_other_types_under_the_same_name(tmp_path):
    old, new = Seen(), Seen()
    async with real(tmp_path) as bus:
        await bus.publish(event(1))
        async with running(bus.consume("router", ["executor.*.*"], old)):
            await eventually(lambda: len(old) == 1)
            await asyncio.sleep(0.1)
        await bus.publish(event(2))
        async with running(bus.consume("router", ["executor.*.*", "trainer.job.started"], new)):
            await eventually(lambda: len(new) == 1)
            await bus.publish(event(3, "trainer.job.started"))
            await eventually(lambda: len(new) == 2)
    assert [e.id for e in new] == ["e2", "e3"]


async def test_a_bus_closes_at_any_moment_of_its_connecting(tmp_path):
    async with nats_server(tmp_path) as url:
        for yields in range(60):
            async with asyncio.timeout(30), open_bus(url, name="test"):
                for _ in range(yields):
                    await asyncio.sleep(0)
