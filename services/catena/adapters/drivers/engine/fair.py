"""Who of the waiting rows comes next: every adapter gets a like share of tokens, and nobody waits for ever.

Virtual token counters, one an adapter (arXiv 2401.00588, algorithm 2): whoever was served least goes first, and one
that comes back starts from the least of those present, so that idling saves nothing up. A row that has waited for
`PATIENCE` steps goes first whatever the counters say.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

PATIENCE = 512
"""Steps after which a row's age counts more than its adapter's share."""
READ, WRITTEN = 1.0, 2.0
"""What a token read and a token written count; writing takes a step for each."""


@dataclass(slots=True)
class _Lane(Generic[Item]):
    rows: deque[tuple[Item, int]]
    served: float = 0.0


class Waiting(Generic[Item]):
    """Rows by lane; `lane_of` names a row's."""

    def __init__(self, lane_of: Callable[[Item], str]) -> None:
        """Start empty."""
        self._lane_of = lane_of
        self._lanes: dict[str, _Lane[Item]] = {}
        self._first: deque[Item] = deque()
        self._now = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        yield from self._first
        for lane in self._lanes.values():
            yield from (row for row, _ in lane.rows)

    def tick(self) -> None:
        """A step has passed."""
        self._now += 1

    def add(self, row: Item) -> None:
        """Queue a row behind those of its lane."""
        lane = self._lane(self._lane_of(row))
        if not lane.rows:
            present = [other.served for other in self._lanes.values() if other.rows]
            lane.served = max(lane.served, min(present, default=lane.served))
        lane.rows.append((row, self._now))
        self._count += 1

    def put_back(self, row: Item) -> None:
        """Let a row that ran already come before all others."""
        self._first.appendleft(row)
        self._count += 1

    def peek(self) -> Item:
        """The next row. Raises IndexError when nobody waits."""
        if self._first:
            return self._first[0]
        return self._next().rows[0][0]

    def pop(self) -> Item:
        """Take the next row out."""
        row = self._first.popleft() if self._first else self._next().rows.popleft()[0]
        self._count -= 1
        return row

    def remove(self, row: Item) -> None:
        """Take out a row wherever it is; one that is not here is no error."""
        if row in self._first:
            self._first.remove(row)
            self._count -= 1
            return
        lane = self._lanes.get(self._lane_of(row))
        for waiting in lane.rows if lane is not None else ():
            if lane is not None and waiting[0] is row:
                lane.rows.remove(waiting)
                self._count -= 1
                return

    def forget(self, name: str) -> None:
        """Drop the account of a lane in which nobody waits: what it stands for is gone."""
        lane = self._lanes.get(name)
        if lane is not None and not lane.rows:
            del self._lanes[name]

    def clear(self) -> None:
        """Forget every row."""
        self._first.clear()
        self._count = 0
        for lane in self._lanes.values():
            lane.rows.clear()

    def charge(self, row: Item, *, read: int = 0, written: int = 0) -> None:
        """A row was served that many tokens."""
        self._lane(self._lane_of(row)).served += READ * read + WRITTEN * written

    def _lane(self, name: str) -> _Lane[Item]:
        if name not in self._lanes:
            self._lanes[name] = _Lane(deque())
        return self._lanes[name]

    def _next(self) -> _Lane[Item]:
        lanes = [lane for lane in self._lanes.values() if lane.rows]
        if not lanes:
            raise IndexError("nobody waits")
        oldest = min(lanes, key=lambda lane: lane.rows[0][1])
        if self._now - oldest.rows[0][1] > PATIENCE:
            return oldest
        return min(lanes, key=lambda lane: (lane.served, lane.rows[0][1]))
