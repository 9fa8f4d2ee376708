import pytest

from catena.adapters.drivers.refusals import REMEMBERED, Refusals
from catena.kit.clock import ManualClock
from catena.kit.errors import Denied, Unavailable


def known(refusals: Refusals, name: str) -> bool:
    try:
        refusals.check(name)
    except Denied as error:
        assert (error.code, error.message) == ("adapter_tampered", "restore it")
        return True
    return False


def test_a_refusal_is_told_again_until_its_time_is_over() -> None:
    clock = ManualClock()
    refusals = Refusals(clock, 5.0)
    refusals.remember("a", Denied("restore it", code="adapter_tampered"))

    assert (known(refusals, "a"), known(refusals, "b")) == (True, False)
    clock.advance(4.9)
    assert known(refusals, "a")
    clock.advance(0.1)
    assert not known(refusals, "a")


def test_what_is_well_again_is_forgotten_at_once() -> None:
    refusals = Refusals(ManualClock(), 5.0)
    refusals.remember("a", Denied("restore it", code="adapter_tampered"))
    refusals.forget("a")

    assert not known(refusals, "a")


def test_what_waiting_cures_is_tried_each_time() -> None:
    refusals = Refusals(ManualClock(), 5.0)
    refusals.remember("a", Unavailable("the engine was lost"))

    refusals.check("a")


def test_it_remembers_no_more_than_it_may() -> None:
    refusals = Refusals(ManualClock(), 5.0)
    for number in range(REMEMBERED + 1):
        refusals.remember(str(number), Denied("restore it", code="adapter_tampered"))

    assert not known(refusals, "0")
    with pytest.raises(Denied):
        refusals.check(str(REMEMBERED))
