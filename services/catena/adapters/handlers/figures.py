"""The adapters' metrics."""

from collections.abc import Iterable

from catena.adapters.core.asking import Answered
from catena.adapters.core.encoding import Encoded
from catena.adapters.core.pressure import LEVELS, Pressure
from catena.adapters.core.residency import Residency
from catena.adapters.core.resident import TierState
from catena.adapters.core.work import Counters
from catena.kit.telemetry import counter, gauge, histogram

ROOM = "adapters"


class Figures:
    """Counts what was answered, and mirrors what residency and engine count themselves."""

    def __init__(self) -> None:
        """Find or make the metrics."""
        self._tokens = counter(ROOM, "tokens_total", "Tokens read and written", ["model", "kind"])
        self._drafted = counter(ROOM, "draft_tokens_total", "Tokens drafted for speculation", ["model", "outcome"])
        self._first = histogram(ROOM, "first_token_seconds", "From arrival to the first token", ["model"])
        self._queued = histogram(ROOM, "queue_seconds", "From arrival to a place in the batch", ["model"])
        self._bytes = gauge(ROOM, "resident_bytes", "Bytes of adapters", ["tier"])
        self._budget = gauge(ROOM, "budget_bytes", "Most bytes of adapters; disk has no bound", ["tier"])
        self._adapters = gauge(ROOM, "resident_adapters", "Adapters", ["tier"])
        self._pinned = gauge(ROOM, "pinned_adapters", "Adapters that are pinned", ["tier"])
        self._pinned_bytes = gauge(ROOM, "pinned_bytes", "Bytes of adapters that are pinned", ["tier"])
        self._cache = counter(ROOM, "cache_total", "What was looked for, and what left", ["tier", "outcome"])
        self._preloads = counter(ROOM, "preloads_total", "Adapters loaded ahead of need")
        self._load = histogram(ROOM, "load_seconds", "Loads of adapters, by where from", ["tier"])
        self._phase = histogram(ROOM, "load_phase_seconds", "Phases of loads of adapters", ["tier", "phase"])
        self._encode = histogram(ROOM, "encode_seconds", "From arrival to all vectors, labels or spans", ["model"])
        self._pressure = gauge(ROOM, "memory_pressure", "0 low, 1 medium, 2 high, 3 critical")
        self._rows = gauge(ROOM, "answers", "Answers in the engine", ["state"])
        self._active = gauge(ROOM, "active_adapters", "Adapters that running answers use")
        self._ranks = gauge(ROOM, "active_ranks", "Sum of the highest ranks of those")
        self._prefix = counter(ROOM, "prefix_tokens_total", "Prompt tokens by whether they were known", ["outcome"])
        self._prefix_bytes = gauge(ROOM, "prefix_bytes", "Bytes of keys and values kept of texts read before")
        self._forwards = counter(ROOM, "forwards_total", "Forward passes of bases")
        self._before: dict[str, int] = {}

    def answered(self, answered: Answered) -> None:
        """An answer ended well."""
        base, done = answered.model.partition("@")[0].partition("#")[0], answered.done
        self._tokens.labels(base, "input").inc(done.input_tokens)
        self._tokens.labels(base, "output").inc(done.output_tokens)
        self._first.labels(base).observe(done.first_token_ms / 1000)
        self._queued.labels(base).observe(done.queue_ms / 1000)
        if done.drafted:
            self._drafted.labels(base, "accepted").inc(done.accepted)
            self._drafted.labels(base, "rejected").inc(done.drafted - done.accepted)

    def encoded(self, base: str, encoded: Encoded, took_s: float) -> None:
        """A model that does not generate answered."""
        self._tokens.labels(base, "input").inc(encoded.tokens)
        self._encode.labels(base).observe(took_s)

    def tiers(self, states: Iterable[TierState]) -> None:
        """Take over what the tiers hold and counted since the last time."""
        for state in states:
            tier, tally = state.tier, state.tally
            self._bytes.labels(tier).set(state.bytes)
            self._adapters.labels(tier).set(state.adapters)
            if tier != "disk":
                self._budget.labels(tier).set(state.budget_bytes)
                self._pinned.labels(tier).set(state.pinned)
                self._pinned_bytes.labels(tier).set(state.pinned_bytes)
            for outcome, count in (("hit", tally.hits), ("miss", tally.misses), ("eviction", tally.evictions)):
                self._cache.labels(tier, outcome).inc(self._since(f"{tier} {outcome}", count))

    def loads(self, residency: Residency) -> None:
        """Take over the loads since the last time."""
        self._preloads.inc(self._since("preloads", residency.preloads))
        while residency.loads:
            load = residency.loads.popleft()
            self._load.labels(load.tier).observe(sum(load.seconds.values()))
            for phase, seconds in load.seconds.items():
                self._phase.labels(load.tier, phase).observe(seconds)

    def engine(self, counters: Counters, pressure: Pressure) -> None:
        """Take over what the engine counted since the last time."""
        self._pressure.set(LEVELS.index(pressure.level))
        self._rows.labels("running").set(counters.running)
        self._rows.labels("waiting").set(counters.waiting)
        self._active.set(counters.active_adapters)
        self._ranks.set(counters.active_ranks)
        self._forwards.inc(self._since("forwards", counters.forwards))
        hits = self._since("prefix hits", counters.prefix_hits)
        self._prefix.labels("hit").inc(hits)
        self._prefix.labels("miss").inc(max(self._since("prefix", counters.prefix_looked) - hits, 0))
        self._prefix_bytes.set(counters.prefix_bytes)

    def _since(self, what: str, count: int) -> int:
        """How much a count grew; one that fell was begun anew with the engine."""
        before, self._before[what] = self._before.get(what, 0), count
        return count - before if count >= before else count
