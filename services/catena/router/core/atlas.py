"""The domains as they are put, merged, taken over from other rooms, and removed."""

from collections.abc import Sequence
from dataclasses import replace

from catena.kit.clock import World
from catena.kit.errors import Denied, Invalid, Missing
from catena.router.core.domains import Domain, check_domain, merged
from catena.router.core.ports import Journal
from catena.router.core.router import Router
from catena.router.core.seeds import Hint, changed, seeds
from catena.router.core.state import SHARED


class Atlas:
    """A router's domains."""

    def __init__(self, router: Router, journal: Journal, world: World) -> None:
        """Nothing is started."""
        self._router = router
        self._journal = journal
        self._world = world
        self._seeded: set[tuple[str, str]] = set()

    async def put(self, domain: Domain) -> Domain:
        """Add or replace a domain; from the return on, requests are held against it.

        Raises Invalid, also (`merged_domain`) for the name of one that was merged into another.
        """
        checked = check_domain(domain)
        await self._router.refresh()
        self._check_free(domain.tenant, checked.name)
        known = self._router.state.domains.get((domain.tenant, checked.name))
        aliases = known.aliases if known is not None else ()
        stored = replace(checked, aliases=aliases, updated_s=self._world.clock.now())
        await self._journal.put_domain(stored)
        await self._renew(domain.tenant)
        return stored

    async def merge(self, tenant: str, names: Sequence[str], into: str, specialist: str = "") -> Domain:
        """Make one domain of several that the tenant sees; what was learned of them is from then on known of it.

        `into` may be one of them or a new name; old names go on meaning it. Raises Missing for a name that there is
        not, Invalid when there is nothing to merge or they have different specialists.
        """
        await self._router.refresh()
        several = [self._domain(tenant, name) for name in dict.fromkeys(names)]
        target = self._router.state.domain(tenant, into)
        self._check_free(tenant, into, *names)
        if not [one for one in several if one.name != into]:
            raise Invalid(f"nothing to merge into {into!r}: name other domains", code="bad_merge")
        told = merged(several, target or Domain(name=into, tenant=tenant, examples=()), specialist)
        stored = replace(check_domain(replace(told, tenant=tenant)), updated_s=self._world.clock.now())
        gone = [one.name for one in several if one.tenant == tenant and one.name != into]
        await self._journal.merge_domains(stored, gone)
        await self._renew(tenant)
        return stored

    async def seed(self, tenant: str, hints: Sequence[Hint]) -> None:
        """Have a domain for each kind of request that another room tells of, as it is told now.

        What somebody put, merged or removed stays as it is.
        """
        await self._router.refresh()
        now, wanted, state = self._world.clock.now(), seeds(hints, tenant), self._router.state
        known = {domain.name: domain for domain in state.visible_domains(tenant)}
        taken = {*known, *state.aliases(tenant)}
        fresh = [one for one in wanted if one.name not in taken and (tenant, one.name) not in self._seeded]
        self._seeded.update((tenant, one.name) for one in fresh)
        if fresh:
            await self._journal.seed_domains([replace(one, updated_s=now) for one in fresh])
        for one in changed(wanted, {name: d for name, d in known.items() if d.tenant == tenant}):
            await self._journal.put_domain(replace(one, updated_s=now))
        await self._router.settle()

    def list(self, tenant: str) -> list[Domain]:
        """The tenant's domains and those of all, by name."""
        return self._router.state.visible_domains(tenant)

    async def delete(self, tenant: str, name: str) -> None:
        """Remove a domain of the tenant. Raises Missing for an unknown name, Denied for one that is everyone's."""
        if (tenant, name) not in self._router.state.domains:
            self._domain(tenant, name)
            raise Denied(f"{name!r} is everyone's; delete it as the tenant {SHARED!r}", code="shared_domain")
        await self._journal.delete_domain(tenant, name)
        await self._router.settle()

    def _check_free(self, tenant: str, name: str, *merging: str) -> None:
        """Raise Invalid (`merged_domain`) when the name means a domain that it was merged into, other than these."""
        became = self._router.state.aliases(tenant).get(name)
        if became and became not in merging:
            raise Invalid(f"{name!r} was merged into {became!r}; name that one", code="merged_domain")

    def _domain(self, tenant: str, name: str) -> Domain:
        found = self._router.state.domain(tenant, name)
        if found is None:
            raise Missing(f"no domain {name!r}; list them with `catena route domains`", code="unknown_domain")
        return found

    async def _renew(self, tenant: str) -> None:
        """Have changed domains in force: their specialists, what is known of them, the classifier."""
        await self._router.refetch(tenant)
        await self._router.settle()
        await self._router.fit(tenant)
