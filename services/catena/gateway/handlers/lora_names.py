"""What the plain names of adapters mean, as `/v1/load_lora_adapter` gave them."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import structlog

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.gateway.core.choice import PIPELINE
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError

REFRESH_S = 5.0
ASK_S = 1.0
STALE = float("-inf")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A plain name: what it means, `base@adapter:version`, and how a list of models shows it."""

    name: str
    model: str
    base: str
    path: str
    created_s: float


@dataclass(slots=True, kw_only=True)
class LoraNames:
    """The plain names of each tenant, held in memory: asked for every few seconds, and anew once they change."""

    adapters: "adapters_pb2_grpc.AdaptersServiceAsyncStub"
    clock: Clock
    _known: dict[str, tuple[float, dict[str, Lora]]] = field(default_factory=dict)
    _turns: dict[str, asyncio.Lock] = field(default_factory=dict)
    _changes: int = 0

    def forget(self) -> None:
        """Names have changed."""
        self._changes += 1
        self._known = {tenant: (STALE, names) for tenant, (_, names) in self._known.items()}

    async def of(self, tenant: str) -> dict[str, Lora]:
        """The names of the caller's tenant; those known last while the adapters do not answer."""
        async with self._turns.setdefault(tenant, asyncio.Lock()):
            due_s, known = self._known.get(tenant, (STALE, {}))
            if self.clock.monotonic() >= due_s:
                changes = self._changes
                known = await self._asked(known)
                # What changed while it was being asked for may be missing from the answer.
                due_s = self.clock.monotonic() + REFRESH_S if changes == self._changes else STALE
                self._known[tenant] = (due_s, known)
            return known

    async def meaning(self, tenant: str, model: str) -> str:
        """`base@adapter:version` where `model` is a plain name, else `model` itself."""
        if "@" in model or model.startswith(PIPELINE):
            return model
        lora = (await self.of(tenant)).get(model)
        return lora.model if lora is not None else model

    async def _asked(self, known: dict[str, Lora]) -> dict[str, Lora]:
        wanted = adapters_pb2.ListAdaptersRequest(served_only=True)
        try:
            listed = (await self.adapters.ListAdapters(wanted, timeout=ASK_S)).adapters
        except CatenaError as error:
            log.warning("names of adapters not read", error=error.message)
            return known
        return {lora.name: lora for lora in map(_lora, listed)}


def card(lora: Lora) -> dict[str, Any]:
    """A plain name among the models."""
    return {
        "id": lora.name,
        "object": "model",
        "created": int(lora.created_s),
        "owned_by": "local",
        "root": lora.path,
        "parent": lora.base,
    }


def _lora(adapter: adapters_pb2.Adapter) -> Lora:
    served = adapter.served[0]
    return Lora(
        name=served.name,
        model=f"{adapter.base}@{adapter.name}:{adapter.version}",
        base=adapter.base,
        path=served.path,
        created_s=served.created_s,
    )
