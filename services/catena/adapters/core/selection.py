"""Which adapter serves a task best, by what its evaluation recorded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from catena.adapters.core.records import AdapterRecord, Profile
from catena.adapters.core.versions import ACCURACY, order, unfit


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An adapter that serves the task, and its accuracy; None: not told."""

    record: AdapterRecord
    accuracy: float | None


def serves(record: AdapterRecord, task: str, profiles: Mapping[str, Profile]) -> bool:
    """Whether an adapter is for a task: by its manifest, its name, or the profile of its name."""
    profile = profiles.get(record.name)
    return task == record.name or task in record.tasks or (profile is not None and task in profile.tasks)


def rank(
    records: Iterable[AdapterRecord], task: str, base_digest: str, profiles: Mapping[str, Profile]
) -> list[Candidate]:
    """Those of `records` that can be served and are for the task, the best first.

    The accuracy on the task itself, recorded as `accuracy/TASK`, comes before the overall one. Who tells none comes
    last; among equals the newer version, then the name, decide.
    """
    found = [
        Candidate(record=record, accuracy=record.metrics.get(f"{ACCURACY}/{task}", record.metrics.get(ACCURACY)))
        for record in records
        if task and serves(record, task, profiles) and not unfit(record, base_digest)
    ]
    found.sort(key=lambda one: one.record.name)
    found.sort(key=lambda one: order(one.record.version), reverse=True)
    found.sort(key=lambda one: -1.0 if one.accuracy is None else one.accuracy, reverse=True)
    return found
