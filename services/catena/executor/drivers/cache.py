"""The result caches: in memory, bounded in number and bytes, least recently used first out, with a time to live."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from prometheus_client import Counter, Gauge

from catena.executor.core.ports import Shelved
from catena.kit.clock import Clock
from catena.kit.telemetry import counter, gauge

UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class Entry:
    """A value until `until_s`, the models it came from, and its size."""

    value: Any
    until_s: float
    models: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """At most `size` values of `most_bytes` together, each for `ttl_s` seconds."""

    size: int
    most_bytes: int = UNBOUNDED
    ttl_s: float = 3600.0


class LruCache:
    """Values by key. Telemetry counts hits and misses."""

    def __init__(self, *, size: int, ttl_s: float, clock: Clock, most_bytes: int = UNBOUNDED) -> None:
        """At most `size` values (0: none is kept) of `most_bytes` together, each for `ttl_s` seconds."""
        self._bounds = Bounds(size=size, most_bytes=most_bytes, ttl_s=ttl_s)
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._held = 0
        self._lookups, self._bytes = _figures()

    def get(self, key: str) -> Any:
        """The value, or None when there is none or it has expired."""
        entry = self._entries.get(key)
        if entry is None or entry.until_s <= self._clock.monotonic():
            self._drop(key)
            self._lookups.labels("exact", "miss").inc()
            return None
        self._entries.move_to_end(key)
        self._lookups.labels("exact", "hit").inc()
        return entry.value

    def put(self, key: str, value: Any, models: Sequence[str]) -> None:
        """Keep a value that came from `models`; one larger than the whole cache is not kept."""
        self._drop(key)
        size = len(msgspec.json.encode(value))
        if size > self._bounds.most_bytes:
            return
        self._entries[key] = Entry(value, self._clock.monotonic() + self._bounds.ttl_s, tuple(models), size)
        self._held += size
        while len(self._entries) > self._bounds.size or self._held > self._bounds.most_bytes:
            self._drop(next(iter(self._entries)))
        self._bytes.labels("exact").set(self._held)

    def forget(self, prefix: str) -> int:
        """Drop what came from models whose name begins with `prefix`, because they changed; how many."""
        stale = [key for key, entry in self._entries.items() if _came_from(entry, prefix)]
        for key in stale:
            self._drop(key)
        return len(stale)

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._held -= entry.bytes


class MeaningCache:
    """Values by the meaning of the question; see `core.ports.SemanticCache`. Telemetry counts hits and misses.

    All vectors lie in one matrix, a row an entry; a lookup multiplies the rows of one shelf.
    """

    def __init__(self, *, threshold: float, bounds: Bounds, clock: Clock) -> None:
        """Questions whose cosine is at least `threshold` share an answer."""
        self._threshold = threshold
        self._bounds = bounds
        self._clock = clock
        self._rows: npt.NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._free: list[int] = []
        self._entries: OrderedDict[int, tuple[tuple[str, str], Entry]] = OrderedDict()
        self._shelves: dict[tuple[str, str], set[int]] = {}
        self._held = 0
        self._lookups, self._bytes = _figures()

    def near(self, question: Shelved) -> tuple[Any, float] | None:
        """The value of the likest question that is like enough, and how like it is."""
        rows = self._fresh((question.shelf, question.anchors))
        found: tuple[Any, float] | None = None
        if rows and len(question.vector) == self._rows.shape[1]:
            likeness = self._rows[rows] @ _unit(question.vector)
            best = int(np.argmax(likeness))
            if likeness[best] >= self._threshold:
                self._entries.move_to_end(rows[best])
                found = self._entries[rows[best]][1].value, min(1.0, float(likeness[best]))
        self._lookups.labels("semantic", "hit" if found else "miss").inc()
        return found

    def put(self, question: Shelved, value: Any, models: Sequence[str]) -> None:
        """Keep a value that came from `models`; one larger than the whole cache is not kept."""
        vector = _unit(question.vector)
        size = len(msgspec.json.encode(value)) + vector.nbytes
        if size > self._bounds.most_bytes or self._bounds.size < 1:
            return
        if vector.size != self._rows.shape[1]:
            self._start_over(vector.size)
        while len(self._entries) >= self._bounds.size or self._held + size > self._bounds.most_bytes:
            self._drop(next(iter(self._entries)))
        row = self._free.pop() if self._free else self._grow()
        self._rows[row] = vector
        shelf = question.shelf, question.anchors
        self._shelves.setdefault(shelf, set()).add(row)
        entry = Entry(value, self._clock.monotonic() + self._bounds.ttl_s, tuple(models), size)
        self._entries[row] = shelf, entry
        self._held += size
        self._bytes.labels("semantic").set(self._held)

    def forget(self, prefix: str) -> int:
        """Drop what came from models whose name begins with `prefix`, because they changed; how many."""
        stale = [row for row, (_, entry) in self._entries.items() if _came_from(entry, prefix)]
        for row in stale:
            self._drop(row)
        return len(stale)

    def _fresh(self, shelf: tuple[str, str]) -> list[int]:
        """The rows of a shelf, from which those that are too old are dropped."""
        now_s = self._clock.monotonic()
        rows = sorted(self._shelves.get(shelf, ()))
        for row in rows:
            if self._entries[row][1].until_s <= now_s:
                self._drop(row)
        return [row for row in rows if row in self._entries]

    def _drop(self, row: int) -> None:
        shelf, entry = self._entries.pop(row)
        self._held -= entry.bytes
        self._shelves[shelf].discard(row)
        if not self._shelves[shelf]:
            del self._shelves[shelf]
        self._free.append(row)

    def _grow(self) -> int:
        """Twice as many rows, up to the bound; the number of a free one."""
        used, width = self._rows.shape
        more = min(max(64, used), self._bounds.size - used)
        self._rows = np.concatenate([self._rows, np.zeros((more, width), np.float32)])
        self._free.extend(range(used, used + more))
        return self._free.pop()

    def _start_over(self, width: int) -> None:
        """Vectors of another length come from another model: nothing here can be compared with them."""
        self._entries.clear()
        self._shelves.clear()
        self._free.clear()
        self._held = 0
        self._rows = np.zeros((0, width), np.float32)


def _unit(vector: Sequence[float]) -> npt.NDArray[np.float32]:
    row = np.asarray(vector, np.float32)
    norm = float(np.linalg.norm(row))
    return row / norm if norm else row


def _came_from(entry: Entry, prefix: str) -> bool:
    return any(model.startswith(prefix) for model in entry.models)


def _figures() -> tuple[Counter, Gauge]:
    lookups = counter("executor", "cache_lookups_total", "Lookups in the result caches", ["cache", "outcome"])
    return lookups, gauge("executor", "cache_bytes", "Bytes of results in the caches, as JSON", ["cache"])
