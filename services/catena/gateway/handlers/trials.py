"""Experiments with their verdicts, as the dashboard draws them."""

from dataclasses import dataclass
from typing import Any

from catena.api.router.v1 import router_pb2, router_pb2_grpc
from catena.kit.errors import CatenaError

ASK_S = 1.0
MOST = 20


@dataclass(frozen=True, slots=True)
class Trials:
    """Asks the router."""

    router: "router_pb2_grpc.RouterServiceAsyncStub"

    async def view(self) -> list[dict[str, Any]]:
        """The newest of the caller's experiments; none where the router is away."""
        try:
            told = await self.router.ListExperiments(router_pb2.ListExperimentsRequest(), timeout=ASK_S)
        except CatenaError:
            # The rest of the page is worth drawing meanwhile.
            return []
        newest = sorted(told.experiments, key=lambda one: one.created_s, reverse=True)[:MOST]
        return [
            {
                "name": one.name,
                "domain": one.domain,
                "state": one.state,
                "reason": one.reason,
                "p_quality": one.p_quality,
                "p_cost": one.p_cost,
                "p_latency": one.p_latency,
                "alpha": one.alpha,
                "created_s": one.created_s,
                "arms": [{"name": arm.name, "outcomes": arm.outcomes, "quality": arm.mean_quality} for arm in one.arms],
            }
            for one in newest
        ]
