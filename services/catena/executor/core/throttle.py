"""Keeps within what a provider allows us: calls and tokens a minute, calls at once, and the rests that it asks for.

Calls beyond a rate wait their turn in a bounded queue: each books its place ahead, so whoever came first goes first,
and whoever cannot be served in time is told at once. Pure: time is told, nothing is awaited but a free place.
"""

import asyncio
from dataclasses import dataclass, field

from catena.kit.errors import Exhausted

QUEUE = 100
"""Calls that may wait for one model; more would only be late together."""
BURST_S = 6.0
"""What went unused may be caught up with for so long."""
LONGEST_REST_S = 60.0
"""No `Retry-After` keeps us away for longer."""


@dataclass(slots=True)
class Bucket:
    """A token bucket that may be booked ahead: below zero stands what is promised to those who wait."""

    per_minute: float
    level: float = 0.0
    at_s: float = 0.0

    def __post_init__(self) -> None:
        """Begin full."""
        self.level = self._most

    @property
    def _most(self) -> float:
        return max(1.0, self.per_minute / 60 * BURST_S)

    def wait_s(self, now_s: float) -> float:
        """Seconds until something is left; a large call may overdraw it, and those behind it wait."""
        self.level = min(self._most, self.level + max(0.0, now_s - self.at_s) * self.per_minute / 60)
        self.at_s = max(now_s, self.at_s)
        return max(0.0, 1.0 - self.level) / self.per_minute * 60

    def take(self, amount: float) -> None:
        """Book; a negative amount gives back."""
        self.level -= amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What is allowed; 0: no limit."""

    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    at_once: int = 0


@dataclass(slots=True)
class Throttle:
    """One model's rates, as used so far."""

    rate: Rate
    waiting: int = 0
    _rest_until_s: float = 0.0
    _requests: Bucket | None = field(init=False)
    _tokens: Bucket | None = field(init=False)
    places: asyncio.Semaphore | None = field(init=False)

    def __post_init__(self) -> None:
        """Begin unused."""
        rate = self.rate
        self._requests = Bucket(rate.requests_per_minute) if rate.requests_per_minute else None
        self._tokens = Bucket(rate.tokens_per_minute) if rate.tokens_per_minute else None
        self.places = asyncio.Semaphore(rate.at_once) if rate.at_once else None

    def book(self, name: str, tokens: int, now_s: float, patience_s: float) -> float:
        """Take the next place in the queue and tell how many seconds away it is.

        Raises Exhausted: `upstream_queue_full`; `upstream_rate` where the place comes later than `patience_s`.
        """
        wait_s = max(self._rest_until_s - now_s, 0.0)
        for bucket in (self._requests, self._tokens):
            wait_s = max(wait_s, bucket.wait_s(now_s) if bucket else 0.0)
        if wait_s > 0 and self.waiting >= QUEUE:
            raise Exhausted(f"{QUEUE} calls wait for {name} already", code="upstream_queue_full", retry_after_s=wait_s)
        if wait_s > patience_s:
            raise Exhausted(
                f"{name} may be asked in {wait_s:.1f} s, later than this call can wait; raise its rate or ask less",
                code="upstream_rate",
                retry_after_s=wait_s,
            )
        self._charge(1, tokens)
        return wait_s

    def give_back(self, tokens: int) -> None:
        """A booked call was not made."""
        self._charge(-1, -tokens)

    def settle(self, booked: int, used: int) -> None:
        """A call that was booked at so many tokens used so many."""
        self._charge(0, used - booked)

    def rest(self, seconds: float, now_s: float) -> None:
        """The provider asked to be left alone for so long."""
        self._rest_until_s = max(self._rest_until_s, now_s + min(seconds, LONGEST_REST_S))

    def at_ease(self, now_s: float) -> bool:
        """Whether a call more would keep nobody waiting."""
        busy = self.waiting > 0 or (self.places is not None and self.places.locked())
        waits = [bucket.wait_s(now_s) for bucket in (self._requests, self._tokens) if bucket]
        return not busy and now_s >= self._rest_until_s and not any(waits)

    def _charge(self, requests: int, tokens: int) -> None:
        if self._requests:
            self._requests.take(requests)
        if self._tokens:
            self._tokens.take(tokens)
