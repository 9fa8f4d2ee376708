"""All that the router holds in memory, as the journal's changes make it; replayed, it is the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from catena.kit.errors import Missing
from catena.plan.model import Shape
from catena.router.core.beforehand import Kinds
from catena.router.core.book import Book
from catena.router.core.candidates import House
from catena.router.core.catalogue import Catalogue, ModelCard, catalogue_of, resolve_specialist
from catena.router.core.domains import Domain
from catena.router.core.experiments import Experiment
from catena.router.core.ports import Changes
from catena.router.core.steps import Step, in_force
from catena.router.core.tuning import THRESHOLD, WEIGHT

SHARED = "shared"
FROZEN = "frozen"


@dataclass(slots=True, kw_only=True)
class State:
    """Books by tenant; domains, experiments, switches and steps of tuning by who owns them.

    `revision`: how far the journal was read.
    """

    house: House
    models: Sequence[ModelCard]
    window: int
    revision: int = 0
    books: dict[str, Book] = field(default_factory=dict)
    domains: dict[tuple[str, str], Domain] = field(default_factory=dict)
    experiments: dict[str, Experiment] = field(default_factory=dict)
    switches: dict[tuple[str, str], float] = field(default_factory=dict)
    steps: dict[str, dict[int, Step]] = field(default_factory=dict)
    _visible: dict[str, list[Domain]] = field(default_factory=dict)
    _kinds: dict[str, tuple[Catalogue, Kinds]] = field(default_factory=dict)

    def book(self, tenant: str) -> Book:
        """The tenant's book, opened with the configured models if it is new."""
        if tenant not in self.books:
            catalogue, aliases = catalogue_of(self.models), self.aliases(tenant)
            self.books[tenant] = Book(self.window, catalogue=catalogue, aliases=aliases)
        return self.books[tenant]

    def apply(self, changes: Changes) -> bool:
        """Take changes in; False when a freeze began or ended, so that all must be read again after `rewind`."""
        before = {key: value for key, value in self.switches.items() if key[1] == FROZEN}
        for switch in changes.switches:
            if switch.value is None:
                self.switches.pop((switch.tenant, switch.name), None)
            else:
                self.switches[switch.tenant, switch.name] = switch.value
        self.revision = changes.revision
        if self.revision and before != {key: value for key, value in self.switches.items() if key[1] == FROZEN}:
            return False
        self._take(changes)
        return True

    def rewind(self, changes: Changes) -> None:
        """Start the books again from all that the journal holds, under the switches as they now are."""
        for book in self.books.values():
            book.noted.clear()
        self.revision = changes.revision
        self._take(changes)

    def frozen_at(self, tenant: str) -> int | None:
        """Revision after which the tenant's book stays as it is; None: it learns."""
        at = self.switches.get((tenant, FROZEN), self.switches.get((SHARED, FROZEN)))
        return None if at is None else int(at)

    def visible_domains(self, tenant: str) -> list[Domain]:
        """The tenant's domains and those of all; its own win, and hide those that they were merged from."""
        if tenant not in self._visible:
            self._visible[tenant] = self._seen_by(tenant)
        return self._visible[tenant]

    def aliases(self, tenant: str) -> Mapping[str, str]:
        """Names of domains that were merged, and what they became."""
        visible = self.visible_domains(tenant)
        return {alias: domain.name for domain in visible for alias in domain.aliases}

    def domain(self, tenant: str, name: str) -> Domain | None:
        """One domain that the tenant sees."""
        return next((domain for domain in self.visible_domains(tenant) if domain.name == name), None)

    def kinds(self, tenant: str) -> Kinds:
        """What bears on estimates: specialists that are there, and which domains need memory."""
        catalogue = self.book(tenant).catalogue
        known = self._kinds.get(tenant)
        if known is not None and known[0] is catalogue:
            return known[1]
        domains = self.visible_domains(tenant)
        found = {d.name: resolve_specialist(d.specialist, d.name, catalogue) for d in domains}
        kinds = Kinds(
            specialists={name: model for name, model in found.items() if model},
            needs_memory=frozenset(d.name for d in domains if d.needs_memory),
        )
        self._kinds[tenant] = catalogue, kinds
        return kinds

    def house_of(self, tenant: str) -> House:
        """The configured shapes, with the cascade's threshold as it was tuned."""
        tuned = in_force(self.steps_of(tenant)).get(THRESHOLD)
        config = self.house.shapes.get(Shape.CASCADE)
        if tuned is None or config is None:
            return self.house
        moved = msgspec.structs.replace(config, threshold=tuned)
        return replace(self.house, shapes={**self.house.shapes, Shape.CASCADE: moved})

    def steps_of(self, tenant: str) -> list[Step]:
        """The tenant's steps of tuning, oldest first."""
        own = self.steps.get(tenant, {})
        return [own[number] for number in sorted(own)]

    def weights_of(self, tenant: str, configured: Mapping[str, float]) -> Mapping[str, float]:
        """The weights of `balanced`, as they were tuned."""
        tuned = in_force(self.steps_of(tenant))
        return {name: tuned.get(WEIGHT + name, weight) for name, weight in configured.items()}

    def experiment(self, tenant: str, id: str) -> Experiment:
        """One experiment. Raises Missing when the tenant has none of this id."""
        found = self.experiments.get(id)
        if found is None or found.tenant != tenant:
            raise Missing(f"no experiment {id!r}; list them with ListExperiments", code="unknown_experiment")
        return found

    def experiments_of(self, tenant: str) -> list[Experiment]:
        """The tenant's experiments, newest first."""
        aliases = self.aliases(tenant)
        own = [
            replace(e, domain=aliases.get(e.domain, e.domain)) for e in self.experiments.values() if e.tenant == tenant
        ]
        return sorted(own, key=lambda e: (-e.created_s, e.id))

    def _seen_by(self, tenant: str) -> list[Domain]:
        seen: dict[str, Domain] = {}
        for wanted in (SHARED, tenant):
            own = {name: domain for (owner, name), domain in self.domains.items() if owner == wanted}
            gone = {alias for domain in own.values() for alias in domain.aliases} - set(own)
            seen = {name: domain for name, domain in {**seen, **own}.items() if name not in gone}
        return [seen[name] for name in sorted(seen)]

    def _take(self, changes: Changes) -> None:
        for noted in changes.observations:
            self.book(noted.tenant).note(noted, self.frozen_at(noted.tenant))
        if changes.domains or changes.deleted:
            self._visible.clear()
            self._kinds.clear()
        for domain in changes.domains:
            self.domains[domain.tenant, domain.name] = domain
        for key in changes.deleted:
            self.domains.pop(key, None)
        for experiment in changes.experiments:
            self.experiments[experiment.id] = experiment
        for step in changes.steps:
            self.steps.setdefault(step.tenant, {})[step.number] = step
        if changes.domains or changes.deleted or changes.switches or changes.steps:
            for tenant, book in self.books.items():
                book.stale, book.aliases = True, self.aliases(tenant)
