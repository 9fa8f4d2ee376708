"""What the router needs of the world outside its core."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from catena.plan.model import Plan
from catena.router.core.catalogue import ModelCard
from catena.router.core.domains import Domain
from catena.router.core.experiments import Experiment
from catena.router.core.observation import Observation
from catena.router.core.seeds import Hint
from catena.router.core.steps import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What somebody said of an execution. `task` names its domain where the router had found none."""

    execution_id: str
    score: float
    source: str = "feedback"
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An execution that is told of, with what verifiers said of it then; `event_id` makes repeats harmless."""

    tenant: str
    observation: Observation
    verdict: Verdict | None
    event_id: str

    @property
    def key(self) -> tuple[str, str]:
        """What makes it this execution."""
        return self.tenant, self.observation.execution_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """An observation as stored: revision of its arrival and of its score (0: unscored)."""

    tenant: str
    born: int
    judged_at: int
    observation: Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A setting that outlives a restart. `value` None: not set (any more)."""

    tenant: str
    name: str
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What changed after a revision, oldest first, and the revision that this brings the reader to."""

    revision: int
    observations: Sequence[Noted] = ()
    domains: Sequence[Domain] = ()
    deleted: Sequence[tuple[str, str]] = ()
    experiments: Sequence[Experiment] = ()
    switches: Sequence[Switch] = ()
    steps: Sequence[Step] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """All executions ever of a configuration in a domain. `plan` in words; sums in USD and milliseconds."""

    configuration_id: str
    domain: str
    plan: str
    executions: int = 0
    judged: int = 0
    successes: int = 0
    quality: float = 0.0
    cost_usd: float = 0.0
    latency_ms: float = 0.0

    def plus(self, other: "Totals") -> "Totals":
        """Both together."""
        return replace(
            self,
            executions=self.executions + other.executions,
            judged=self.judged + other.judged,
            successes=self.successes + other.successes,
            quality=self.quality + other.quality,
            cost_usd=self.cost_usd + other.cost_usd,
            latency_ms=self.latency_ms + other.latency_ms,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Totals by configuration and domain, and executions in all."""

    configurations: Sequence[Totals] = field(default_factory=tuple)
    executions: int = 0

    def renamed(self, aliases: Mapping[str, str]) -> "Report":
        """The same with domains by the names that they have now; what then is the same row adds up."""
        rows: dict[tuple[str, str], Totals] = {}
        for one in self.configurations:
            named = replace(one, domain=aliases.get(one.domain, one.domain))
            key = named.configuration_id, named.domain
            rows[key] = rows[key].plus(named) if key in rows else named
        return replace(self, configurations=tuple(rows.values()))


class Embed(Protocol):
    """Turns texts into vectors of meaning."""

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts to (n, d) unit rows, off the event loop; (n, 0) when meaning is not used."""
        ...


class FetchHints(Protocol):
    """Tells of kinds of requests that other rooms know."""

    async def __call__(self, tenant: str) -> Sequence[Hint]:
        """All that can be had now."""
        ...


class FetchModels(Protocol):
    """Tells which models a tenant may call."""

    async def __call__(self, tenant: str) -> Sequence[ModelCard]:
        """The catalogue. Raises Unavailable when it cannot be had."""
        ...


class FetchResidents(Protocol):
    """Tells which adapters are in memory."""

    async def __call__(self) -> Collection[str]:
        """Their names, as `base@adapter:version`. Raises Unavailable when nobody can tell."""
        ...


class Journal(Protocol):
    """Keeps what the router knows. What a method has returned from is committed; repeats change nothing."""

    async def changes(self, after: int) -> Changes:
        """Everything that changed after a revision; from 0, everything within the window."""
        ...

    async def observe(self, several: Sequence[Seen]) -> None:
        """Take in executions, all of them or none."""
        ...

    async def judge(self, tenant: str, verdict: Verdict, event_id: str) -> None:
        """Take in a verdict, also one that arrives before its execution."""
        ...

    async def report(self, tenant: str) -> Report:
        """Aggregate figures."""
        ...

    async def plan_of(self, tenant: str, configuration_id: str) -> Plan | None:
        """The plan behind a configuration that ran before; None when it never did."""
        ...

    async def put_domain(self, domain: Domain) -> None:
        """Add or replace a domain."""
        ...

    async def seed_domains(self, wanted: Sequence[Domain]) -> None:
        """Add those that were never there."""
        ...

    async def delete_domain(self, tenant: str, name: str) -> None:
        """Remove a domain."""
        ...

    async def merge_domains(self, into: Domain, gone: Sequence[str]) -> None:
        """Put a domain in the place of the owner's domains of these names."""
        ...

    async def put_step(self, step: Step) -> None:
        """Keep a step of tuning. Raises Conflict (`tuned_meanwhile`) when the tenant has one of this number."""
        ...

    async def put_experiment(self, experiment: Experiment, request_id: str) -> Experiment:
        """Store a new experiment; with a request id seen before, return the one it made."""
        ...

    async def stop_experiment(self, tenant: str, id: str, reason: str) -> None:
        """End a running experiment without a verdict."""
        ...

    async def put_switch(self, switch: Switch, *, now: bool = False) -> None:
        """Set a setting; with `now`, to the revision of this very moment."""
        ...
