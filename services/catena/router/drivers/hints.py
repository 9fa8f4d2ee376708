"""What the adapters and the memory room tell of kinds of requests."""

from typing import TYPE_CHECKING

from catena.api.adapters.v1.adapters_pb2 import ListAdaptersRequest
from catena.api.memory.v1.memory_pb2 import ListSopsRequest
from catena.kit.caller import Caller, as_caller, within
from catena.kit.errors import CatenaError
from catena.router.core.seeds import ADAPTERS, PROCEDURES, Hint

if TYPE_CHECKING:
    from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceAsyncStub
    from catena.api.memory.v1.memory_pb2_grpc import MemoryServiceAsyncStub

_PATIENCE_S = 2.0
_MOST = 1000
_STABLE = "stable"


class RoomHints:
    """`FetchHints` over both rooms; what one of them does not tell in two seconds is left for the next time."""

    def __init__(self, adapters: "AdaptersServiceAsyncStub", memory: "MemoryServiceAsyncStub") -> None:
        """Ask these rooms."""
        self._adapters = adapters
        self._memory = memory

    async def __call__(self, tenant: str) -> list[Hint]:
        """Tasks of active adapters, whose stable one is a specialist; procedures by category, else by name."""
        return [*await self._tasks(tenant), *await self._procedures(tenant)]

    async def _tasks(self, tenant: str) -> list[Hint]:
        try:
            with as_caller(Caller(tenant)), within(_PATIENCE_S):
                told = await self._adapters.ListAdapters(ListAdaptersRequest(page_size=_MOST))
        except CatenaError:
            return []
        return [
            Hint(
                origin=ADAPTERS,
                name=task,
                texts=(one.name.replace("-", " "),),
                specialist=f"{one.base}@{one.name}" if _STABLE in one.aliases else "",
            )
            for one in told.adapters
            if one.status == "active"
            for task in one.tasks
        ]

    async def _procedures(self, tenant: str) -> list[Hint]:
        try:
            with as_caller(Caller(tenant)), within(_PATIENCE_S):
                told = await self._memory.ListSops(ListSopsRequest())
        except CatenaError:
            return []
        return [
            Hint(origin=PROCEDURES, name=sop.category or sop.name, texts=(sop.name, sop.description, *sop.triggers))
            for sop in told.sops
        ]
