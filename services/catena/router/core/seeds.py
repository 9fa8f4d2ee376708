"""Kinds of requests that other rooms know of, as domains: tasks of adapters, procedures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from catena.kit.errors import CatenaError
from catena.router.core.ask import task_name
from catena.router.core.domains import Domain, check_domain

ADAPTERS, PROCEDURES = "adapters", "procedures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What a room tells of one kind of request: how it calls it, texts that speak of it, a model that answers it."""

    origin: str
    name: str
    texts: tuple[str, ...] = ()
    specialist: str = ""


def seeds(hints: Iterable[Hint], tenant: str) -> list[Domain]:
    """A domain for each kind; several hints of one make one, whose specialist is the only one among theirs.

    A hint that makes no domain (a name without letters or digits) is passed over.
    """
    by_name: dict[str, list[Hint]] = {}
    for hint in hints:
        by_name.setdefault(task_name(hint.name), []).append(hint)
    found = []
    for name, told in sorted(by_name.items()):
        specialists = sorted({hint.specialist for hint in told if hint.specialist})
        domain = Domain(
            name=name,
            tenant=tenant,
            examples=tuple(text for hint in told for text in (hint.name.replace("-", " "), *hint.texts)),
            specialist=specialists[0] if len(specialists) == 1 else "",
            origin=told[0].origin,
        )
        try:
            found.append(check_domain(domain))
        except CatenaError:
            continue
    return found


def changed(wanted: Sequence[Domain], known: Mapping[str, Domain]) -> list[Domain]:
    """Those that are known from the same origin, as they are told now where that is something else."""
    return [
        replace(one, aliases=before.aliases)
        for one in wanted
        if (before := known.get(one.name)) is not None
        and before.origin == one.origin
        and (before.examples, before.specialist) != (one.examples, one.specialist)
    ]
