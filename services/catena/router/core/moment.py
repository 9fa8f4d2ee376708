"""What is true just now and bears on how long a call takes: calls in flight, and adapters that are in memory.

Held in memory and told by what comes anyway; no decision waits for it. Nothing of it is learned from: what a call took
beside others, and what loading took, is in the executions.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from catena.kit.errors import CatenaError
from catena.router.core.ports import FetchResidents
from catena.router.core.running import Running


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Calls in flight by model; names of adapters in memory, with and without version; None: nobody told."""

    beside: Mapping[str, float] = field(default_factory=dict)
    resident: Collection[str] | None = None

    def cold(self, model: str) -> bool:
        """Whether `model` is an adapter that would have to be loaded first."""
        return self.resident is not None and "@" in model and model not in self.resident


@dataclass(slots=True)
class Residents:
    """Adapters in memory, on the device or beside it, as the adapters room told."""

    names: frozenset[str] | None = None
    _there: set[str] = field(default_factory=set)

    def tell(self, models: Collection[str]) -> None:
        """All that are there now, as `base@adapter:version`."""
        self._there = set(models)
        self._name()

    def moved(self, model: str, tier: str) -> None:
        """One came to a tier, or, where that is empty, is gone. Before all were told, one alone says nothing."""
        if self.names is None:
            return
        (self._there.add if tier else self._there.discard)(model)
        self._name()

    def _name(self) -> None:
        self.names = frozenset({*self._there, *(model.partition(":")[0] for model in self._there)})


@dataclass(slots=True)
class Present:
    """What runs and what is in memory; `renew` must be called now and then."""

    fetch: FetchResidents | None
    every_s: float
    running: Running = field(default_factory=Running)
    residents: Residents = field(default_factory=Residents)
    _until_s: float = 0.0

    def moment(self, now_s: float) -> Moment:
        """This very moment, by a clock that only moves forward."""
        return Moment(beside=self.running.beside(now_s), resident=self.residents.names)

    async def renew(self, now_s: float) -> None:
        """Ask anew what is in memory, if it was long ago; when nobody answers, what is known stays."""
        if self.fetch is None or now_s < self._until_s:
            return
        self._until_s = now_s + self.every_s
        with suppress(CatenaError):
            self.residents.tell(await self.fetch())
