import pytest
from hypothesis import given
from hypothesis import strategies as st

from catena.kit.errors import Invalid
from catena.kit.event import MAX_EVENT_BYTES, Event, check, headers_of, pattern, read_event, subject_of


def event(**changes):
    fields = {"id": "e1", "type": "executor.run.finished", "tenant": "acme", "time_s": 1_800_000_000.25, "data": b"x"}
    return Event(**(fields | changes))


def test_subject_keeps_one_word_per_token_whatever_the_tenant_is_called():
    assert subject_of(event(tenant="a.b *>")) == "catena.a-b---.executor.run.finished.v1"


def test_headers_follow_the_cloudevents_binary_mode():
    headers = headers_of(event(subject="run/7"))
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-id"] == headers["Nats-Msg-Id"] == "e1"
    assert headers["ce-source"] == "/catena/executor"
    assert headers["ce-time"] == "2027-01-15T08:00:00.250000+00:00"
    assert headers["content-type"] == "application/protobuf"


@given(text=st.text(min_size=1, max_size=30), parent=st.sampled_from(["", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"]))
def test_an_event_survives_its_headers_and_they_stay_printable(text, parent):
    told = event(id=text, tenant=text, subject=text, traceparent=parent)
    headers = headers_of(told)
    assert all(value.isascii() and value.isprintable() and value == value.strip() for value in headers.values())
    assert read_event(headers, told.data) == told


@pytest.mark.parametrize("type_", ["executor.run", "executor.run.finished.v1", "executor..finished", "a.b c.d", ""])
def test_refuses_a_type_that_is_not_three_words(type_):
    with pytest.raises(Invalid, match=r"room\.entity\.event"):
        check(event(type=type_))
    with pytest.raises(Invalid, match=r"room\.entity\.event"):
        pattern(type_)


def test_refuses_an_event_that_the_broker_could_never_store():
    with pytest.raises(Invalid, match="reference"):
        check(event(data=bytes(MAX_EVENT_BYTES + 1)))
    assert check(event(data=bytes(MAX_EVENT_BYTES)))


def test_patterns_may_leave_words_open():
    assert pattern("trainer.job.*") == "catena.*.trainer.job.*.v1"
    assert pattern("*.*.*", tenant="acme") == "catena.acme.*.*.*.v1"


@pytest.mark.parametrize("missing", ["ce-id", "ce-type", "ce-tenant"])
def test_refuses_a_message_without_its_attributes(missing):
    headers = headers_of(event())
    del headers[missing]
    with pytest.raises(Invalid, match=missing):
        read_event(headers, b"")
