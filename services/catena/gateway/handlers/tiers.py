"""What the device, host memory and disk hold of the adapters, as the dashboard draws it."""

from dataclasses import dataclass
from typing import Any

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.kit.errors import CatenaError

ASK_S = 1.0


@dataclass(frozen=True, slots=True)
class Tiers:
    """Asks the adapters."""

    adapters: "adapters_pb2_grpc.AdaptersServiceAsyncStub"

    async def view(self) -> list[dict[str, Any]]:
        """Every tier's totals; `budget_bytes` 0 where there is no bound."""
        try:
            told = await self.adapters.GetResidency(adapters_pb2.GetResidencyRequest(), timeout=ASK_S)
        except CatenaError:
            # The rest of the page is worth drawing while the adapters are away.
            return []
        return [
            {
                "tier": tier.name,
                "adapters": tier.adapters,
                "bytes": tier.bytes,
                "budget_bytes": tier.budget_bytes,
                "evictions": tier.evictions,
            }
            for tier in told.tiers
        ]
