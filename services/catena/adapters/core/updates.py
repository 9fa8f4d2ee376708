"""Updates of adapters from remote registries: looked for, told once, and taken where the configuration wishes it.

What is taken passes the gate and gets an alias of its own; `stable` never moves here: that is for a canary to decide.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from catena.adapters.core.errors import AliasMoved, UnknownAdapter
from catena.adapters.core.offers import Offer, choose
from catena.adapters.core.ports import Bases, Registry
from catena.adapters.core.records import AdapterRecord, Admitted
from catena.adapters.core.refs import STABLE, full_name
from catena.adapters.core.versions import order
from catena.kit.caller import SHARED
from catena.kit.clock import Clock
from catena.kit.errors import CatenaError, Exhausted, Late, Unavailable

State = Literal["current", "found", "pulled", "refused"]
PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How far a fetch has come, in bytes; `total` 0: unknown."""

    model: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a registry has for one adapter of ours, of which `current` is in use.

    `state`: `current`, nothing better; `found`, `version` is; `pulled`, it is registered here; `refused`, it was
    fetched and not let in. `reason` says why. Time since the epoch.
    """

    registry: str
    tenant: str
    base: str
    name: str
    current: str
    state: State
    reason: str
    version: str = ""
    digest: str = ""
    gain: float = 0.0
    at_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A registry could not be asked, or a fetch broke off; the next check tries again."""

    registry: str
    error: CatenaError


Told = Transfer | Finding | Trouble
Fetching = AsyncGenerator[Transfer | Path | bytes, None]


class Remote(Protocol):
    """One remote registry."""

    async def offers(self) -> Sequence[Offer]:
        """All that it has. Raises Unavailable, Denied, Missing, or a refusal of what it says."""
        ...

    def fetch(self, offer: Offer) -> Fetching:
        """How far it has come, and at last a folder or an archive, which lasts until the generator is closed.

        Raises as `offers` does, and Denied (`offer_untrue`) for other bytes than offered.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A configured registry, whose updates are the tenant's."""

    name: str
    tenant: str
    remote: Remote
    policy: Literal["notify", "pull"]
    alias: str
    every_s: float


class Findings(Protocol):
    """Where findings are kept."""

    async def keep(self, finding: Finding) -> None:
        """Keep what is known of an adapter; announced where version or state is new. `current` forgets it."""
        ...

    async def seen(self, tenant: str) -> Sequence[Finding]:
        """What is kept for a tenant and `shared`."""
        ...


class Register(Protocol):
    """Takes an adapter in: `Adapters.register`."""

    def __call__(
        self, tenant: str, source: Path | bytes, *, check: Callable[[Admitted], None]
    ) -> Awaitable[AdapterRecord]:
        """Register what passes the gate and `check`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelves:
    """Where updates go: what is registered, on which bases, what was found before, and the way in."""

    registry: Registry
    bases: Bases
    findings: Findings
    register: Register


class Updates:
    """Looks through the configured registries."""

    def __init__(self, sources: Iterable[Source], shelves: Shelves, *, clock: Clock, max_rank: int) -> None:
        """`max_rank` bounds what is offered as the gate does."""
        self.sources = list(sources)
        self._registry = shelves.registry
        self._bases = shelves.bases
        self._findings = shelves.findings
        self._register = shelves.register
        self._clock = clock
        self._max_rank = max_rank
        self._turns = {source.name: asyncio.Lock() for source in self.sources}

    async def known(self, tenant: str, model: str = "") -> Sequence[Finding]:
        """What was found so far, of `base@adapter` if given; no registry is asked."""
        seen = await self._findings.seen(tenant)
        return [one for one in seen if one.registry in self._turns and model in ("", f"{one.base}@{one.name}")]

    async def look(self, tenant: str, *, pull: bool = False, model: str = "") -> AsyncGenerator[Told, None]:
        """Ask every registry of a tenant and of `shared`; only about `base@adapter`, if given."""
        for source in self.sources:
            if source.tenant in (tenant, SHARED):
                async with aclosing(self.look_at(source, pull=pull, model=model)) as told:
                    async for one in told:
                        yield one

    async def look_at(self, source: Source, *, pull: bool = False, model: str = "") -> AsyncGenerator[Told, None]:
        """Ask one registry; `pull` takes what is better whatever the policy, also what was refused before."""
        async with self._turns[source.name]:
            try:
                offers = await source.remote.offers()
                used = await self._used(source.tenant)
            except CatenaError as error:
                yield Trouble(registry=source.name, error=error)
                return
            for current in used:
                mine = [offer for offer in offers if (offer.base, offer.name) == (current.base, current.name)]
                if mine and model in ("", f"{current.base}@{current.name}"):
                    async with aclosing(self._settle(source, current, mine, pull)) as told:
                        async for one in told:
                            yield one

    async def _settle(
        self, source: Source, current: AdapterRecord, offers: Sequence[Offer], pull: bool
    ) -> AsyncGenerator[Told, None]:
        try:
            base = await self._bases.get(current.base)
        except CatenaError as error:
            # What fits cannot be told; what was found before stays as it is.
            yield Trouble(registry=source.name, error=error)
            return
        offer, finding = await self._judge(source, current, offers, base.digest)
        before = await self._before(finding)
        if offer is not None and before.state == "refused" and not pull:
            finding = replace(finding, state="refused", reason=before.reason)
        await self._findings.keep(finding)
        if offer is not None and finding.state == "found" and (pull or source.policy == "pull"):
            try:
                async with aclosing(source.remote.fetch(offer)) as steps:
                    async for step in steps:
                        if isinstance(step, Transfer):
                            yield step
                        else:
                            await self._take(source, offer, step)
                finding = replace(finding, state="pulled")
            except (Unavailable, Exhausted, Late) as error:
                yield Trouble(registry=source.name, error=error)
            except CatenaError as error:
                finding = replace(finding, state="refused", reason=f"{error.code}: {error.message}")
            await self._findings.keep(finding)
        yield finding

    async def _judge(
        self, source: Source, current: AdapterRecord, offers: Sequence[Offer], base_digest: str
    ) -> tuple[Offer | None, Finding]:
        versions = await self._registry.versions(current.tenant, current.base, current.name)
        here = [record for record in versions if record.tenant == current.tenant]
        finding = Finding(
            registry=source.name,
            tenant=source.tenant,
            base=current.base,
            name=current.name,
            current=current.version,
            state="current",
            reason="",
            at_s=self._clock.now(),
        )
        offer, update = choose(current, offers, here, base_digest, self._max_rank)
        finding = replace(finding, gain=update.gain, reason=update.reason)
        if offer is None:
            return None, finding
        taken = any(record.digest == offer.digest for record in here)
        state: State = "pulled" if taken else "found"
        return offer, replace(finding, state=state, version=offer.version, digest=offer.digest)

    async def _take(self, source: Source, offer: Offer, fetched: Path | bytes) -> None:
        record = await self._register(source.tenant, fetched, check=offer.check)
        try:
            pointed = await self._registry.find(source.tenant, record.base, record.name, source.alias)
            expected = pointed.digest if pointed.tenant == source.tenant else ""
        except UnknownAdapter:
            expected = ""
        # Who moves the alias at this moment knows what for.
        with contextlib.suppress(AliasMoved):
            await self._registry.set_alias(
                source.tenant, record.base, record.name, source.alias, version=record.version, expected=expected
            )

    async def _before(self, finding: Finding) -> Finding:
        """What was known of the same offer; itself where nothing was."""
        key = (finding.registry, finding.tenant, finding.base, finding.name, finding.digest)
        seen = await self._findings.seen(finding.tenant)
        return next((one for one in seen if (one.registry, one.tenant, one.base, one.name, one.digest) == key), finding)

    async def _used(self, tenant: str) -> list[AdapterRecord]:
        """The version in use of each adapter of a tenant: the stable one, else the newest."""
        found: dict[str, AdapterRecord] = {}
        after = ""
        while True:
            records, after = await self._registry.page(tenant, base="", task="", after=after, size=PAGE)
            for record in records:
                if record.tenant == tenant and record.status == "active":
                    key = full_name(record.base, record.name, "")
                    found[key] = max(found.get(key, record), record, key=_precedence)
            if not after:
                return list(found.values())


def _precedence(record: AdapterRecord) -> tuple[bool, object]:
    return STABLE in record.aliases, order(record.version)
