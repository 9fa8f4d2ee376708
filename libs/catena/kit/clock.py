"""Time, chance and identity, handed in rather than reached for, so that every decision can be replayed in a test."""

import os
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

_ID_BYTES, _DRAW = 10, 400


class Clock(Protocol):
    """Two clocks: one that people read and one that never jumps."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that only moves forward; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()  # noqa: TID251

    def monotonic(self) -> float:
        """Seconds on the machine's monotonic clock."""
        return time.monotonic()


class ManualClock:
    """A clock that moves when told; for tests."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        """Start at `now_s` on both clocks."""
        self.now_s = now_s

    def now(self) -> float:
        """Seconds since the Unix epoch, as set."""
        return self.now_s

    def monotonic(self) -> float:
        """The same reading as `now`."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self.now_s += seconds


def uuid7() -> str:
    """A UUID version 7 (RFC 9562, section 5.7): time-ordered, so that it indexes well."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(_random_bytes(), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_DRAWN: deque[bytes] = deque()
os.register_at_fork(after_in_child=_DRAWN.clear)


def _random_bytes() -> bytes:
    """Ten of them, drawn for many ids at once: each draw lets other threads run, and may wait for them."""
    while True:
        try:
            return _DRAWN.popleft()
        except IndexError:
            drawn = os.urandom(_ID_BYTES * _DRAW)
            _DRAWN.extend(drawn[start : start + _ID_BYTES] for start in range(0, len(drawn), _ID_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a room takes from outside itself besides its ports: `clock`, `rng`, `new_id`."""

    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.Random)
    new_id: Callable[[], str] = uuid7


def still_world(seed: int = 0) -> World:
    """A world that repeats itself: a manual clock, a seeded generator, ids `id-1`, `id-2`, and so on."""
    count = iter(range(1, 1 << 62))
    return World(clock=ManualClock(), rng=random.Random(seed), new_id=lambda: f"id-{next(count)}")
