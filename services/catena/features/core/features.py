"""Features themselves: appends values, reads them as of a time, from the cache where that is allowed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from catena.features.core.cache import Cache, Load
from catena.features.core.ports import Shelf
from catena.features.core.reading import check_name, check_time, check_value, read_entity, read_feature
from catena.features.core.types import Definition, Draft, EntityReading, Group, Key, Latest, Row
from catena.kit.clock import Clock
from catena.kit.errors import Invalid, Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The knobs of `FeaturesConfig` that decisions need."""

    definitions_s: float
    max_value_bytes: int
    max_batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which features of which entities; times in seconds since the epoch, 0 as the protocol says."""

    tenant: str
    entity_type: str
    entity_ids: Sequence[str]
    features: Sequence[str] = ()
    group: str = ""
    as_of_s: float = 0.0
    known_at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Catalogue:
    definitions: Mapping[tuple[str, str], Definition]
    groups: Mapping[str, Group]
    until_s: float


class Features:
    """What handlers call. Whatever a write returns is committed, and seen by every later read of this replica."""

    def __init__(self, *, shelf: Shelf, cache: Cache, clock: Clock, limits: Limits) -> None:
        """Work on these parts."""
        self._shelf = shelf
        self._cache = cache
        self._clock = clock
        self._limits = limits
        self._catalogues: dict[str, _Catalogue] = {}
        self._changes = 0

    async def append(self, tenant: str, drafts: Sequence[Draft], *, request_id: str) -> list[Row]:
        """Append values, all or none; an event time of 0 means now.

        Raises Invalid when one does not fit its definition, Conflict when `request_id` was used for other values.
        """
        if not drafts:
            raise Invalid("no values; send at least one", code="no_values")
        catalogue = await self._catalogue(tenant)
        checked = [self._check(draft, catalogue) for draft in drafts]
        try:
            return await self._shelf.append(tenant, checked, request_id=request_id)
        finally:
            for draft in checked:
                self.forget(tenant, draft.entity_type, draft.entity_id)

    def forget(self, tenant: str, entity_type: str, entity_id: str) -> None:
        """The entity was written, here or elsewhere: do not answer from memory."""
        self._cache.forget((tenant, entity_type, entity_id))

    async def read(self, question: Question) -> list[EntityReading]:
        """The features of each entity, in the order asked for; missing and expired ones say so.

        Without `as_of_s`: now. With it: what was true then, as far as was known at `known_at_s`, by default then too.
        Raises Missing for an unknown group, Invalid for a question without features.
        """
        catalogue = await self._catalogue(question.tenant)
        features = self._features(question, catalogue)
        as_of_s = check_time("as_of_s", question.as_of_s)
        known_at_s = check_time("known_at_s", question.known_at_s)
        at_s = as_of_s or self._clock.now()
        if as_of_s or known_at_s:
            found = await self._shelf.latest(
                question.tenant,
                question.entity_type,
                [(entity_id, feature) for entity_id in dict.fromkeys(question.entity_ids) for feature in features],
                as_of_s=at_s,
                known_at_s=known_at_s or at_s,
            )
        else:
            found = await self._newest(question, features, at_s)

        def reading(entity_id: str) -> EntityReading:
            defined = catalogue.definitions
            return read_entity(
                entity_id,
                [
                    read_feature(
                        feature, found.get((entity_id, feature)), defined.get((question.entity_type, feature)), at_s
                    )
                    for feature in features
                ],
            )

        return [reading(entity_id) for entity_id in question.entity_ids]

    async def put_definition(self, tenant: str, definition: Definition) -> Definition:
        """Add or change a definition; it holds for later writes, and its TTL for every read. Raises Invalid."""
        check_name("entity type", definition.entity_type)
        check_name("feature", definition.name)
        if not math.isfinite(definition.ttl_s) or definition.ttl_s < 0:
            raise Invalid(f"ttl_s is {definition.ttl_s}; give seconds, or 0 for ever", code="bad_ttl")
        stored = await self._shelf.put_definition(tenant, definition)
        self._catalogue_changed(tenant)
        return stored

    async def put_group(self, tenant: str, group: Group) -> Group:
        """Add or change a group. Raises Invalid when it names no feature, or one twice."""
        check_name("group", group.name)
        check_name("entity type", group.entity_type)
        for feature in group.features:
            check_name("feature", feature)
        if not group.features or len(set(group.features)) < len(group.features):
            raise Invalid(f"group {group.name!r} needs at least one feature, and each once", code="bad_group")
        stored = await self._shelf.put_group(tenant, group)
        self._catalogue_changed(tenant)
        return stored

    def _check(self, draft: Draft, catalogue: _Catalogue) -> Draft:
        check_name("entity type", draft.entity_type)
        check_name("entity id", draft.entity_id)
        check_name("feature", draft.feature)
        definition = catalogue.definitions.get((draft.entity_type, draft.feature))
        check_value(draft.feature, draft.value, definition, self._limits.max_value_bytes)
        check_time("event_s", draft.event_s)
        return replace(draft, definition_version=definition.version if definition else 0)

    def _features(self, question: Question, catalogue: _Catalogue) -> Sequence[str]:
        if question.group and question.features:
            raise Invalid("give features or a group, not both", code="bad_question")
        features: Sequence[str] = list(dict.fromkeys(question.features))
        if question.group:
            group = catalogue.groups.get(question.group)
            if group is None:
                known = ", ".join(sorted(catalogue.groups)) or "none"
                raise Missing(f"no group {question.group!r}; there are: {known}", code="unknown_group")
            if group.entity_type != question.entity_type:
                raise Invalid(f"group {group.name!r} is of {group.entity_type!r}, not {question.entity_type!r}")
            features = group.features
        if not features or not question.entity_ids or not question.entity_type:
            raise Invalid("name an entity type, an entity, and features or a group", code="bad_question")
        asked, limit = len(features) * len(question.entity_ids), self._limits.max_batch
        if asked > limit:
            raise Invalid(f"{asked} values asked for > {limit}; split the batch", code="batch_too_large")
        return features

    async def _newest(self, question: Question, features: Sequence[str], now_s: float) -> dict[Key, Latest]:
        """The newest rows: from the cache, the rest from the shelf in one read, which the cache then keeps."""
        found: dict[Key, Latest] = {}
        wanted: dict[str, list[str]] = {}
        for entity_id in dict.fromkeys(question.entity_ids):
            kept = self._cache.get((question.tenant, question.entity_type, entity_id), features, now_s)
            found |= {(entity_id, feature): latest for feature, latest in kept.items()}
            if len(kept) < len(features):
                wanted[entity_id] = [feature for feature in features if feature not in kept]
        if wanted:
            found |= await self._load(question, wanted, now_s)
        return found

    async def _load(self, question: Question, wanted: Mapping[str, list[str]], now_s: float) -> dict[Key, Latest]:
        loads: dict[str, Load] = {}
        try:
            for entity_id in wanted:
                loads[entity_id] = self._cache.begin((question.tenant, question.entity_type, entity_id))
            found = await self._shelf.latest(
                question.tenant,
                question.entity_type,
                [(entity_id, feature) for entity_id, names in wanted.items() for feature in names],
                as_of_s=now_s,
                known_at_s=math.inf,
            )
            for entity_id, load in loads.items():
                self._cache.keep(load, {name: found[entity_id, name] for name in wanted[entity_id]}, now_s)
            return dict(found)
        finally:
            for load in loads.values():
                self._cache.drop(load)

    async def _catalogue(self, tenant: str) -> _Catalogue:
        now_s = self._clock.now()
        kept = self._catalogues.get(tenant)
        if kept is None or now_s >= kept.until_s:
            changes = self._changes
            kept = _Catalogue(
                definitions=await self._shelf.definitions(tenant),
                groups=await self._shelf.groups(tenant),
                until_s=now_s + self._limits.definitions_s,
            )
            if changes == self._changes:
                self._catalogues[tenant] = kept
        return kept

    def _catalogue_changed(self, tenant: str) -> None:
        self._changes += 1
        self._catalogues.pop(tenant, None)
