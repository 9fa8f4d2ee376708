import pytest

from catena.adapters.drivers.engine.fair import PATIENCE, Waiting

pytestmark = pytest.mark.unit


def lane(row: str) -> str:
    return row[0]


def waiting(*rows: str) -> Waiting[str]:
    queue = Waiting(lane)
    for row in rows:
        queue.add(row)
    return queue


def served(queue: Waiting[str], cost: int = 10) -> list[str]:
    order = []
    while len(queue):
        row = queue.pop()
        queue.charge(row, written=cost)
        order.append(row)
    return order


def test_lanes_take_turns_however_long_they_are() -> None:
    assert served(waiting("a1", "a2", "a3", "a4", "b1", "b2")) == ["a1", "b1", "a2", "b2", "a3", "a4"]


def test_who_was_served_much_waits_for_the_others() -> None:
    queue = waiting("a1", "a2", "b1", "b2", "b3")
    queue.charge(queue.pop(), written=1000)
    assert served(queue) == ["b1", "b2", "b3", "a2"]


def test_idling_saves_nothing_up() -> None:
    queue = waiting("a1")
    queue.charge("a1", written=500)
    for row in ("b1", "b2", "b3"):
        queue.add(row)
    assert served(queue)[:2] == ["a1", "b1"]


def test_a_row_that_waited_too_long_comes_first() -> None:
    queue = waiting("a1")
    queue.charge("a1", written=10_000)
    for _ in range(PATIENCE + 1):
        queue.tick()
    queue.add("b1")
    assert queue.pop() == "a1"


def test_the_account_of_what_is_gone_is_dropped_unless_somebody_waits() -> None:
    queue = waiting("a1", "b1")
    queue.charge("b1", written=100)
    queue.forget("b")
    assert served(queue) == ["a1", "b1"]
    queue.forget("b")
    queue.add("b2")
    queue.add("a2")
    assert served(queue) == ["b2", "a2"]


def test_a_row_that_was_put_back_comes_before_all() -> None:
    queue = waiting("a1", "b1")
    row = queue.pop()
    queue.put_back(row)
    assert queue.peek() == row
    assert len(queue) == 2


def test_rows_are_taken_out_wherever_they_are() -> None:
    queue = waiting("a1", "a2", "b1")
    queue.put_back("c1")
    for row in ("a2", "c1", "nobody"):
        queue.remove(row)
    assert sorted(queue) == ["a1", "b1"]
    queue.clear()
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.peek()
