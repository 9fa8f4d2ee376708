"""What a model's name means now: weights, the adapters behind them, and what it takes to make them resident."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from catena.adapters.core import refs
from catena.adapters.core.asking import Served
from catena.adapters.core.errors import AdapterWithdrawn, BadModel, UnknownAdapter
from catena.adapters.core.ports import Bases, Gate, Registry
from catena.adapters.core.records import AdapterRecord, Admitted, BaseRecord, Profile
from catena.adapters.core.resident import Wanted
from catena.adapters.core.selection import Candidate, rank
from catena.adapters.core.versions import Update, recommend
from catena.adapters.core.work import AdapterSource, Weights
from catena.kit.errors import CatenaError

MAX_STAND_INS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`resolved` is how the answer names it; `wanted` None: a base alone, and no `records` of adapters.

    `served` says how it came to be this one, and `reason` why, where it is not what the name says.
    """

    weights: Weights
    resolved: str
    wanted: Wanted | None = None
    records: Sequence[AdapterRecord] = ()
    served: Served = "asked"
    reason: str = ""


class Names:
    """Resolves names through the registry."""

    def __init__(self, registry: Registry, bases: Bases, gate: Gate, profiles: Mapping[str, Profile]) -> None:
        """`gate` will check what is about to be loaded; `profiles` say what well-known names are for."""
        self._registry = registry
        self._bases = bases
        self._gate = gate
        self._profiles = profiles

    async def resolve(self, tenant: str, model: str, task: str = "") -> Target:
        """What a name means to a tenant; only `base@auto` looks at the task.

        Raises BadModel, UnknownModel, UnknownAdapter, AdapterWithdrawn.
        """
        ref = refs.parse(model)
        base = await self._bases.get(ref.base)
        if ref.auto:
            return await self._best(tenant, base, task)
        if not ref.adapters:
            return Target(weights=Weights(base=base.name), resolved=f"{base.name}#{base.digest}")
        found = [(await self._registry.find(tenant, base.name, a.name, a.tag), a.weight) for a in ref.adapters]
        for record, _ in found:
            if record.status == "withdrawn":
                raise AdapterWithdrawn(f"{record.model} was withdrawn; ask for another version")
        return self._target(found)

    async def select(self, tenant: str, base: str, task: str) -> list[Candidate]:
        """The stable adapters of a base that serve a task, the best first."""
        record = await self._bases.get(base)
        return rank(await self._registry.stable(tenant, record.name), task, record.digest, self._profiles)

    async def declare(self, tenant: str, model: str, stand_ins: Sequence[str]) -> None:
        """Declare which models may answer where `base@adapter` cannot, in this order; none: nobody may.

        Raises BadModel for a name that cannot be read, names several adapters, or stands in for itself.
        """
        base, ref = refs.parse_one(model)
        await self._bases.get(base)
        if len(stand_ins) > MAX_STAND_INS:
            raise BadModel(f"{len(stand_ins)} fallbacks > {MAX_STAND_INS}; declare fewer")
        for other in stand_ins:
            named = refs.parse(other)
            if named.base == base and any(one.name == ref.name and one.tag == ref.tag for one in named.adapters):
                raise BadModel(f"{other!r} cannot stand in for itself; name another model")
        await self._registry.set_fallbacks(tenant, base, ref.name, stand_ins)

    async def stand_ins(self, tenant: str, model: str) -> Sequence[str]:
        """The models that were declared to answer where a single adapter cannot."""
        ref = refs.parse(model)
        if len(ref.adapters) != 1:
            return ()
        return await self._registry.fallbacks(tenant, ref.base, ref.adapters[0].name)

    async def resolve_one(self, tenant: str, model: str) -> Target:
        """The same for a name of a single adapter. Raises BadModel for any other."""
        refs.parse_one(model)
        return await self.resolve(tenant, model)

    async def profiles(self, tenant: str) -> list[tuple[Profile, list[str]]]:
        """Every library profile, by name, and the stable adapters of that name."""
        stable = [record for base in self._bases.names() for record in await self._registry.stable(tenant, base)]
        return [
            (profile, [record.model for record in stable if record.name == name])
            for name, profile in sorted(self._profiles.items())
        ]

    async def update(self, tenant: str, model: str) -> tuple[AdapterRecord, Update]:
        """The version that a name means, and whether a newer one is worth moving to."""
        record = await self.find(tenant, model)
        base = await self._bases.get(record.base)
        versions = await self._registry.versions(tenant, record.base, record.name)
        return record, recommend(record, [one for one in versions if one.tenant == record.tenant], base.digest)

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

        async def vouched() -> bool:
            return all([await self._gate.vouched(record) for record, _ in found])

        def doubt() -> None:
            for record, _ in found:
                self._gate.doubt(record)

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
            vouched=vouched,
            doubt=doubt,
            pinned=len(found) == 1 and record.pinned,
        )

    async def _best(self, tenant: str, base: BaseRecord, task: str) -> Target:
        found = await self.select(tenant, base.name, task)
        if not found:
            reason = f"no stable adapter of {base.name} is for {task!r}" if task else "auto was asked without a task"
            whole = Target(weights=Weights(base=base.name), resolved=f"{base.name}#{base.digest}")
            return replace(whole, served="auto-base", reason=f"{reason}; the base answered")
        best = found[0]
        told = "unknown" if best.accuracy is None else f"{best.accuracy:.3g}"
        reason = f"best of {len(found)} for {task!r}: accuracy {told}"
        return replace(self._target([(best.record, 1.0)]), served="auto", reason=reason)

    def _target(self, found: Sequence[tuple[AdapterRecord, float]]) -> Target:
        wanted = self.wanted(found)
        return Target(
            weights=wanted.weights,
            resolved=f"{wanted.model}#{wanted.weights.adapter}",
            wanted=wanted,
            records=[record for record, _ in found],
        )


def may_stand_in(error: CatenaError) -> bool:
    """Whether what failed is the adapter, not the question or the engine: only then may another answer for it."""
    return error.code in ("unknown_adapter", "no_adapter_room") or error.code.startswith("adapter_")


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


async def point_first(registry: Registry, record: AdapterRecord) -> AdapterRecord | None:
    """What `stable` means for the adapter's name; where it meant nothing, this version from now on, and None is told.

    Raises AliasMoved when somebody else points it at the same moment.
    """
    try:
        return await registry.find(record.tenant, record.base, record.name, refs.STABLE)
    except UnknownAdapter:
        await registry.set_alias(
            record.tenant, record.base, record.name, refs.STABLE, version=record.version, expected=""
        )
        return None
