"""Work done for all who ask at about the same time."""

import asyncio
from collections.abc import Sequence

import pytest

from catena.kit.errors import Invalid, Unavailable
from catena.kit.grouped import Grouped

pytestmark = pytest.mark.unit


class Work:
    """Keeps its groups; refuses `bad` items, and all of them while `down`."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.bad: set[int] = set()
        self.down = False

    async def __call__(self, items: Sequence[int]) -> None:
        self.groups.append(list(items))
        if self.down:
            raise Unavailable("away")
        if self.bad & set(items):
            raise Invalid("bad")


async def test_those_who_come_together_are_done_together_and_the_next_apart() -> None:
    work = Work()
    grouped = Grouped(work, linger_s=0.01, most=10)
    await asyncio.gather(*(grouped(n) for n in range(3)))
    await grouped(3)
    assert work.groups == [[0, 1, 2], [3]]


async def test_a_full_group_waits_no_longer() -> None:
    work = Work()
    grouped = Grouped(work, linger_s=60.0, most=2)
    async with asyncio.timeout(30):
        await asyncio.gather(*(grouped(n) for n in range(4)))
    assert work.groups == [[0, 1], [2, 3]]


async def test_nobody_returns_before_the_work_is_done() -> None:
    go, ended = asyncio.Event(), []

    async def slow(items: Sequence[int]) -> None:
        await go.wait()
        ended.append(list(items))

    grouped = Grouped(slow, linger_s=0.0, most=10)
    waiting = [asyncio.create_task(grouped(n)) for n in range(2)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    go.set()
    await asyncio.gather(*waiting)
    assert ended == [[0, 1]]


async def test_a_bad_item_fails_by_itself() -> None:
    work = Work()
    work.bad = {1}
    grouped = Grouped(work, linger_s=0.01, most=10)
    told = await asyncio.gather(*(grouped(n) for n in range(3)), return_exceptions=True)
    assert [type(one) for one in told] == [type(None), Invalid, type(None)]
    assert sorted(work.groups[1:]) == [[0], [1], [2]]


async def test_everybody_hears_that_a_part_is_down() -> None:
    work = Work()
    work.down = True
    grouped = Grouped(work, linger_s=0.01, most=10)
    told = await asyncio.gather(*(grouped(n) for n in range(3)), return_exceptions=True)
    assert [type(one) for one in told] == [Unavailable] * 3
    assert len(work.groups) == 1


async def test_who_leads_and_is_cancelled_leaves_the_others_to_try_again() -> None:
    work = Work()
    grouped = Grouped(work, linger_s=60.0, most=10)
    leader = asyncio.create_task(grouped(1))
    await asyncio.sleep(0)
    follower = asyncio.create_task(grouped(2))
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(Unavailable):
        await follower
    assert leader.cancelled() or isinstance(leader.exception(), asyncio.CancelledError)
    assert work.groups == []
