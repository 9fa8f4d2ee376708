"""The adapters' metrics."""

from catena.adapters.core.asking import Answered
from catena.adapters.core.pressure import LEVELS, Pressure
from catena.adapters.core.residency import Residency
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
        self._resident = gauge(ROOM, "resident_bytes", "Bytes of adapters on the device")
        self._adapters = gauge(ROOM, "resident_adapters", "Adapters on the device")
        self._pressure = gauge(ROOM, "memory_pressure", "0 low, 1 medium, 2 high, 3 critical")
        self._cache = counter(ROOM, "cache_total", "Uses of adapters by how the cache did", ["outcome"])
        self._load = histogram(ROOM, "load_seconds", "Gate, load and probe of an adapter")
        self._rows = gauge(ROOM, "answers", "Answers in the engine", ["state"])
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
        if done.drafted:
            self._drafted.labels(base, "accepted").inc(done.accepted)
            self._drafted.labels(base, "rejected").inc(done.drafted - done.accepted)

    def mirror(self, residency: Residency, pressure: Pressure, counters: Counters) -> None:
        """Take over what was counted elsewhere since the last time."""
        residents, tally = residency.residents(), residency.tally
        self._resident.set(residency.used_bytes)
        self._adapters.set(len(residents))
        counts = {"hit": tally.hits, "miss": tally.misses, "eviction": tally.evictions, "preload": tally.preloads}
        for outcome, count in counts.items():
            self._cache.labels(outcome).inc(self._since(outcome, count))
        self._pressure.set(LEVELS.index(pressure.level))
        loads, tally.load_seconds[:] = list(tally.load_seconds), []
        for seconds in loads:
            self._load.observe(seconds)
        self._rows.labels("running").set(counters.running)
        self._rows.labels("waiting").set(counters.waiting)
        self._forwards.inc(self._since("forwards", counters.forwards))
        hits = self._since("prefix hits", counters.prefix_hits)
        self._prefix.labels("hit").inc(hits)
        self._prefix.labels("miss").inc(max(self._since("prefix", counters.prefix_looked) - hits, 0))
        self._prefix_bytes.set(counters.prefix_bytes)

    def _since(self, what: str, count: int) -> int:
        """How much a count grew; one that fell was begun anew with the engine."""
        before, self._before[what] = self._before.get(what, 0), count
        return count - before if count >= before else count
