"""A shelf that is slow and obvious: all rows in one list, every question answered by looking at each."""

import math
from dataclasses import replace

from catena.features.core.types import Latest, Row
from catena.kit.errors import Conflict


class ListShelf:
    def __init__(self, clock):
        self.rows = []
        self.reads = 0
        self._clock = clock
        self._requests = {}
        self._definitions = {}
        self._groups = {}

    async def append(self, tenant, drafts, *, request_id):
        asked = [replace(draft, definition_version=0) for draft in drafts]
        if request_id and (tenant, request_id) in self._requests:
            before, rows = self._requests[tenant, request_id]
            if before != asked:
                raise Conflict(f"request {request_id!r} came before with other values")
            return rows
        rows = []
        for draft in drafts:
            same = [r for t, e, r in self.rows if self._key(t, e, r) == self._key(tenant, draft.entity_type, draft)]
            row = Row(
                entity_id=draft.entity_id,
                feature=draft.feature,
                value=draft.value,
                event_s=draft.event_s or self._clock.now(),
                created_s=self._clock.now(),
                definition_version=draft.definition_version,
                version=len(same) + 1,
            )
            self.rows.append((tenant, draft.entity_type, row))
            rows.append(row)
        self._requests[tenant, request_id] = asked, rows
        return rows

    @staticmethod
    def _key(tenant, entity_type, row):
        return tenant, entity_type, row.entity_id, row.feature

    async def latest(self, tenant, entity_type, keys, *, as_of_s, known_at_s):
        self.reads += 1
        found = {}
        for entity_id, feature in keys:
            wanted = (tenant, entity_type, entity_id, feature)
            history = [row for t, e, row in self.rows if self._key(t, e, row) == wanted]
            seen = [row for row in history if row.event_s <= as_of_s and row.created_s <= known_at_s]
            later = [row.event_s for row in history if row.event_s > as_of_s]
            best = max(seen, key=lambda row: (row.event_s, row.created_s, row.version), default=None)
            found[entity_id, feature] = Latest(row=best, next_event_s=min(later, default=math.inf))
        return found

    async def definitions(self, tenant):
        return {(d.entity_type, d.name): d for (t, *_), d in self._definitions.items() if t == tenant}

    async def groups(self, tenant):
        return {group.name: group for (t, _), group in self._groups.items() if t == tenant}

    async def put_definition(self, tenant, definition):
        return self._put(self._definitions, (tenant, definition.entity_type, definition.name), definition)

    async def put_group(self, tenant, group):
        return self._put(self._groups, (tenant, group.name), group)

    @staticmethod
    def _put(kept, key, item):
        before = kept.get(key)
        version = before.version if before else 0
        if before is None or replace(item, version=version) != before:
            kept[key] = replace(item, version=version + 1)
        return kept[key]
