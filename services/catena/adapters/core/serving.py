"""Plain names that serve adapters, as tools made for vLLM give and take them: loaded, asked for, unloaded.

The gateway's routes `/v1/load_lora_adapter` and `/v1/unload_lora_adapter` come here by `RegisterAdapter` and `Unload`.
A name means one version by its digest until it is given anew; it never stands between a base and its aliases.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from catena.adapters.core import refs
from catena.adapters.core.adapters import Adapters
from catena.adapters.core.errors import AdapterWithdrawn, AliasMoved, BadModel
from catena.adapters.core.naming import point_first
from catena.adapters.core.ports import Registry
from catena.adapters.core.records import AdapterRecord
from catena.kit.clock import Clock
from catena.kit.errors import Conflict, Invalid, Missing

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}\Z")
RESERVED = ("auto",)


class NameTaken(Conflict):
    """The name serves an adapter already."""

    default_code = "already_loaded"


class UnknownName(Missing):
    """The name serves no adapter."""

    default_code = "unknown_served_name"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainName:
    """A name of a tenant, the version that it serves, and the path that was asked for. Time since the epoch."""

    tenant: str
    name: str
    path: str
    record: AdapterRecord
    created_s: float


class PlainNames(Protocol):
    """Where the names are kept."""

    async def find(self, tenant: str, name: str) -> PlainName:
        """The tenant's own name. Raises UnknownName."""
        ...

    async def put(self, served: PlainName, *, replace: bool) -> None:
        """Keep a name. Raises NameTaken unless it may be replaced."""
        ...

    async def drop(self, served: PlainName) -> None:
        """Forget a name; nothing when it was forgotten before."""
        ...

    async def seen_by(self, tenant: str) -> Sequence[PlainName]:
        """What a tenant may ask for: its names and those of `shared` that it does not have itself, by name."""
        ...

    async def serves(self, record: AdapterRecord) -> bool:
        """Whether any name of anybody serves these very weights."""
        ...

    async def of_models(self) -> Mapping[tuple[str, str], Sequence[str]]:
        """The names by their adapter's tenant and `base@adapter:version`."""
        ...


class Serving:
    """Gives adapters plain names. `source` reads what lies under the configured root, or refuses the path."""

    def __init__(
        self,
        adapters: Adapters,
        registry: Registry,
        names: PlainNames,
        *,
        source: Callable[[str], Awaitable[Path | bytes]],
        clock: Clock,
    ) -> None:
        """Take the room, its registry and the ports."""
        self._adapters = adapters
        self._registry = registry
        self._names = names
        self._source = source
        self._clock = clock
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def serve(self, tenant: str, name: str, path: str, *, base: str = "", replace: bool = False) -> AdapterRecord:
        """Register what lies at `path`, make it resident, and serve it as `name`.

        Raises Invalid for a name or path that may not be used, NameTaken, and whatever `Adapters.register` raises.
        """
        self._check(name)
        async with self._turn(tenant, name):
            before = await self._now(tenant, name)
            if before is not None and not replace:
                raise NameTaken(f"{name!r} has already been loaded, from {before.path}; unload it or load it in place")
            record = await self._adapters.register(tenant, await self._source(path), base=base)
            served = PlainName(tenant=tenant, name=name, path=path, record=record, created_s=self._clock.now())
            await self._names.put(served, replace=replace)
            with contextlib.suppress(AliasMoved):
                await point_first(self._registry, record)  # as with those that are shipped
            if before is not None and before.record.digest != record.digest:
                await self._free(before.record)
            return record

    async def stop(self, tenant: str, name: str) -> int:
        """Forget a name, and drain and free its adapter unless another name serves it; the bytes freed."""
        async with self._turn(tenant, name):
            served = await self._names.find(tenant, name)
            await self._names.drop(served)
            return await self._free(served.record)

    async def names(self, tenant: str) -> Sequence[PlainName]:
        """Every name that the tenant may ask for."""
        return await self._names.seen_by(tenant)

    async def _now(self, tenant: str, name: str) -> PlainName | None:
        try:
            return await self._names.find(tenant, name)
        except UnknownName:
            return None

    async def _free(self, record: AdapterRecord) -> int:
        if await self._names.serves(record):
            return 0
        try:
            return await self._adapters.unload(record.tenant, record.model)
        except AdapterWithdrawn:
            # It left, or leaves with its last user, since it was withdrawn.
            return 0

    def _check(self, name: str) -> None:
        if not PLAIN.match(name) or name in RESERVED:
            raise BadModel(
                f"{name[:200]!r} should be 1 to 200 of A-Z a-z 0-9 . _ - / and not {', '.join(RESERVED)}; a registered "
                "adapter is called base@adapter without being loaded"
            )
        if name in {state.name for state in self._adapters.bases.states()}:
            raise Invalid(f"{name!r} is a base; give the adapter another name", code="bad_served_name")

    def _turn(self, tenant: str, name: str) -> asyncio.Lock:
        return self._turns.setdefault((tenant, name), asyncio.Lock())


def labels(model: str, tenant: str, names: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    """How a resident is called by those who ask for it: its plain names, else its full one; a composition by parts."""
    ref = refs.parse(model)
    told: list[str] = []
    for part in ref.adapters:
        full = refs.full_name(ref.base, part.name, part.tag)
        told += names.get((tenant, full), ()) or [full]
    return told
