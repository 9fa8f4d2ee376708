"""What a model's name means now: weights, the adapters behind them, and what it takes to make them resident."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from catena.adapters.core import refs
from catena.adapters.core.errors import AdapterWithdrawn
from catena.adapters.core.ports import Bases, Gate, Registry
from catena.adapters.core.records import AdapterRecord, Admitted
from catena.adapters.core.resident import Wanted
from catena.adapters.core.work import AdapterSource, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`resolved` is how the answer names it; `wanted` None: a base alone, and no `records` of adapters."""

    weights: Weights
    resolved: str
    wanted: Wanted | None = None
    records: Sequence[AdapterRecord] = ()


class Names:
    """Resolves names through the registry."""

    def __init__(self, registry: Registry, bases: Bases, gate: Gate) -> None:
        """`gate` will check what is about to be loaded."""
        self._registry = registry
        self._bases = bases
        self._gate = gate

    async def resolve(self, tenant: str, model: str) -> Target:
        """What a name means to a tenant. Raises BadModel, UnknownModel, UnknownAdapter, AdapterWithdrawn."""
        ref = refs.parse(model)
        base = await self._bases.get(ref.base)
        if not ref.adapters:
            return Target(weights=Weights(base=base.name), resolved=f"{base.name}#{base.digest}")
        found = [(await self._registry.find(tenant, base.name, a.name, a.tag), a.weight) for a in ref.adapters]
        for record, _ in found:
            if record.status == "withdrawn":
                raise AdapterWithdrawn(f"{record.model} was withdrawn; ask for another version")
        wanted = self.wanted(found)
        return Target(
            weights=wanted.weights,
            resolved=f"{wanted.model}#{wanted.weights.adapter}",
            wanted=wanted,
            records=[record for record, _ in found],
        )

    async def resolve_one(self, tenant: str, model: str) -> Target:
        """The same for a name of a single adapter. Raises BadModel for any other."""
        refs.parse_one(model)
        return await self.resolve(tenant, model)

    async def find(self, tenant: str, model: str) -> AdapterRecord:
        """One adapter version, withdrawn or not."""
        base, ref = refs.parse_one(model)
        await self._bases.get(base)
        return await self._registry.find(tenant, base, ref.name, ref.tag)

    def wanted(self, found: Sequence[tuple[AdapterRecord, float]]) -> Wanted:
        """How adapters, each with its share, become resident."""
        weights = weights_of(found)

        async def source() -> AdapterSource:
            parts = [msgspec.structs.replace(await self._gate.check(r), weight=weight) for r, weight in found]
            return AdapterSource(weights=weights, parts=tuple(parts))

        record = found[0][0]
        model = record.model
        if len(found) > 1:
            model = f"{record.base}@{{{','.join(f'{r.name}:{r.version}={weight:g}' for r, weight in found)}}}"
        return Wanted(
            weights=weights,
            tenant=record.tenant,
            model=model,
            bytes=sum(r.bytes for r, _ in found),
            source=source,
            pinned=len(found) == 1 and record.pinned,
        )


def weights_of(found: Sequence[tuple[AdapterRecord, float]]) -> Weights:
    """The engine's key for a set of adapters: the content digest, or one made of the digests and weights."""
    base = found[0][0].base
    if len(found) == 1 and found[0][1] == 1.0:
        return Weights(base=base, adapter=found[0][0].digest)
    told = "+".join(f"{record.digest}*{weight!r}" for record, weight in found)
    return Weights(base=base, adapter=hashlib.sha256(told.encode()).hexdigest())


def record_of(tenant: str, admitted: Admitted) -> AdapterRecord:
    """An adapter as it will be registered."""
    return AdapterRecord(
        tenant=tenant,
        base=admitted.base,
        name=admitted.name,
        version=admitted.version,
        digest=admitted.digest,
        base_digest=admitted.base_digest,
        bytes=admitted.bytes,
        rank=admitted.rank,
    )
