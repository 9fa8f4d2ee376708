"""The exact result cache: in memory, least recently used first out, with a time to live."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catena.kit.clock import Clock
from catena.kit.telemetry import counter


@dataclass(frozen=True, slots=True)
class Entry:
    """A value until `until_s`, and the models it came from."""

    value: Any
    until_s: float
    models: tuple[str, ...]


class LruCache:
    """At most `size` values, each for `ttl_s` seconds. Telemetry counts hits and misses."""

    def __init__(self, *, size: int, ttl_s: float, clock: Clock) -> None:
        """`size` 0: nothing is kept."""
        self._size = size
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lookups = counter("executor", "cache_lookups_total", "Lookups in the result cache", ["outcome"])

    def get(self, key: str) -> Any:
        """The value, or None when there is none or it has expired."""
        entry = self._entries.get(key)
        if entry is None or entry.until_s <= self._clock.monotonic():
            self._entries.pop(key, None)
            self._lookups.labels("miss").inc()
            return None
        self._entries.move_to_end(key)
        self._lookups.labels("hit").inc()
        return entry.value

    def put(self, key: str, value: Any, models: Sequence[str]) -> None:
        """Keep a value that came from `models`."""
        self._entries[key] = Entry(value, self._clock.monotonic() + self._ttl_s, tuple(models))
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def forget(self, prefix: str) -> int:
        """Drop what came from models whose name begins with `prefix`, because they changed; how many."""
        stale = [key for key, entry in self._entries.items() if any(model.startswith(prefix) for model in entry.models)]
        for key in stale:
            del self._entries[key]
        return len(stale)
