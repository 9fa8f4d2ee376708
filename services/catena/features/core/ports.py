"""What features need from outside themselves."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from catena.features.core.types import Definition, Draft, Group, Key, Latest, Row


class Shelf(Protocol):
    """Where values, definitions and groups are kept for good; what a call returns is committed."""

    async def append(self, tenant: str, drafts: Sequence[Draft], *, request_id: str) -> list[Row]:
        """Append values, all or none, in the order given; an event time of 0 becomes the time of creation.

        A request id that was used before appends nothing: the rows of that time are returned. Raises Conflict when it
        was used for other values.
        """
        ...

    async def latest(
        self, tenant: str, entity_type: str, keys: Sequence[Key], *, as_of_s: float, known_at_s: float
    ) -> Mapping[Key, Latest]:
        """For each key the row that held at `as_of_s`, of those created by `known_at_s`.

        That is the row with the latest event time not after it; of equals the one created last.
        """
        ...

    async def definitions(self, tenant: str) -> Mapping[tuple[str, str], Definition]:
        """The newest definitions by entity type and name."""
        ...

    async def groups(self, tenant: str) -> Mapping[str, Group]:
        """The newest groups by name."""
        ...

    async def put_definition(self, tenant: str, definition: Definition) -> Definition:
        """Store a definition; its version counts up unless nothing changed."""
        ...

    async def put_group(self, tenant: str, group: Group) -> Group:
        """Store a group; its version counts up unless nothing changed."""
        ...
