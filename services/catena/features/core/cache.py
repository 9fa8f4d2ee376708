"""The newest row of each feature, by entity, kept for a while; never older than the last write that was announced."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from catena.features.core.types import Latest

Entity = tuple[str, str, str]
"""Tenant, entity type, entity id."""


@dataclass(slots=True)
class Load:
    """A read of the shelf under way; `stale` when its entity was written meanwhile, so that it is not kept."""

    entity: Entity
    stale: bool = False


@dataclass(slots=True)
class _Kept:
    features: dict[str, tuple[Latest, float]] = field(default_factory=dict)


class Cache:
    """Keeps what was read for `keep_s`, at most `entities` of them; the one used longest ago goes first."""

    def __init__(self, *, keep_s: float, entities: int) -> None:
        """Begin empty."""
        self._keep_s = keep_s
        self._entities = entities
        self._kept: OrderedDict[Entity, _Kept] = OrderedDict()
        self._loads: dict[Entity, list[Load]] = {}

    def get(self, entity: Entity, features: Iterable[str], now_s: float) -> dict[str, Latest]:
        """Those of the features that are kept and still hold at `now_s`."""
        kept = self._kept.get(entity)
        if kept is None:
            return {}
        self._kept.move_to_end(entity)
        found = kept.features
        return {name: found[name][0] for name in features if name in found and now_s < found[name][1]}

    def begin(self, entity: Entity) -> Load:
        """Announce a read of the shelf; end it with `keep` or `drop`."""
        load = Load(entity)
        self._loads.setdefault(entity, []).append(load)
        return load

    def keep(self, load: Load, found: dict[str, Latest], now_s: float) -> None:
        """Keep what the read brought, unless the entity was written since it began."""
        if load.stale or self._keep_s <= 0:
            return
        kept = self._kept.setdefault(load.entity, _Kept())
        for feature, latest in found.items():
            kept.features[feature] = (latest, min(now_s + self._keep_s, latest.next_event_s))
        self._kept.move_to_end(load.entity)
        if len(self._kept) > self._entities:
            self._kept.popitem(last=False)

    def drop(self, load: Load) -> None:
        """The read is over, whether it was kept or not."""
        loads = self._loads[load.entity]
        loads.remove(load)
        if not loads:
            del self._loads[load.entity]

    def forget(self, entity: Entity) -> None:
        """The entity was written: forget it, and whatever is being read of it."""
        self._kept.pop(entity, None)
        for load in self._loads.get(entity, ()):
            load.stale = True
