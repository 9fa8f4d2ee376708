"""Which adapters are in memory, as the adapters room tells."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from catena.api.adapters.v1.adapters_pb2 import GetResidencyRequest
from catena.kit.caller import SHARED, Caller, as_caller, within

if TYPE_CHECKING:
    from catena.api.adapters.v1.adapters_pb2_grpc import AdaptersServiceAsyncStub

_PATIENCE_S = 2.0


class AdapterResidents:
    """`FetchResidents` over the adapters room; of several replicas the one that answers tells of itself."""

    def __init__(self, adapters: "AdaptersServiceAsyncStub") -> None:
        """Ask this room."""
        self._adapters = adapters

    async def __call__(self) -> Collection[str]:
        """What is on a device or in host memory. Raises Unavailable or Late when nobody answers in two seconds."""
        with as_caller(Caller(SHARED)), within(_PATIENCE_S):
            told = await self._adapters.GetResidency(GetResidencyRequest())
        return frozenset(resident.model for resident in told.residents if resident.tier in ("device", "host"))
