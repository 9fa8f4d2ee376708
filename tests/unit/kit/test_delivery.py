from types import SimpleNamespace

import pytest

from catena.kit.delivery import Delivery, Terms
from catena.kit.errors import Unavailable
from catena.kit.event import Event, headers_of

TOLD = Event(id="e1", type="executor.run.finished", tenant="acme", time_s=1.0, data=b"x")


class Message:
    subject = "catena.acme.executor.run.finished.v1"
    data = TOLD.data

    def __init__(self, deliveries=1, headers=None):
        self.headers = headers_of(TOLD) if headers is None else headers
        self.metadata = SimpleNamespace(num_delivered=deliveries, sequence=SimpleNamespace(stream=7))

    async def in_progress(self):
        pass

    async def nak(self):
        pass


class Broker:
    def __init__(self):
        self.answers = []
        self.buried = []

    async def answer(self, msgs, answer):
        self.answers.extend([answer] * len(msgs))

    async def bury(self, msg, terms, reason):
        self.buried.append(reason)


def delivery(broker, handle, max_deliver=3):
    terms = Terms(durable="router", ack_wait_s=15, max_deliver=max_deliver, backoff_s=(0.1, 0.5))
    return Delivery(terms, handle, answer=broker.answer, bury=broker.bury)


async def fails(events):
    raise ValueError("no such domain")


async def test_acknowledges_only_after_the_handler_is_done():
    broker, seen = Broker(), []

    async def handle(events):
        assert broker.answers == []
        seen.extend(events)

    await delivery(broker, handle).deliver(Message())
    assert (seen, broker.answers) == ([TOLD], [b"+ACK"])


@pytest.mark.parametrize(("attempt", "pause_ns"), [(1, 100_000_000), (2, 500_000_000)])
async def test_a_failure_comes_again_after_the_pause_of_its_attempt(attempt, pause_ns):
    broker = Broker()
    await delivery(broker, fails).deliver(Message(attempt))
    assert broker.answers == [b'-NAK {"delay": %d}' % pause_ns]
    assert broker.buried == []


async def test_the_last_failure_is_buried_with_its_reason():
    broker = Broker()
    await delivery(broker, fails).deliver(Message(3))
    assert (broker.answers, broker.buried) == ([], ["ValueError: no such domain"])


async def test_a_message_that_is_no_event_is_buried_at_once():
    broker = Broker()
    await delivery(broker, fails).deliver(Message(headers={"ce-id": "e1"}))
    assert len(broker.buried) == 1
    assert "ce-type" in broker.buried[0]


async def test_an_event_that_ends_the_process_each_time_is_buried_unhandled():
    broker = Broker()

    async def handle(events):
        raise AssertionError("must not run")

    await delivery(broker, handle).deliver(Message(10))
    assert "end the process" in broker.buried[0]


async def test_a_part_that_is_down_does_not_count_against_the_event():
    broker, calls = Broker(), []

    async def handle(events):
        calls.append(events)
        if len(calls) == 1:
            raise Unavailable("adapters restarts")

    await delivery(broker, handle, max_deliver=1).deliver(Message())
    assert (len(calls), broker.answers, broker.buried) == (2, [b"+ACK"], [])
