"""What tuning did, step by step: when, what moved, why, by whom, on which evidence; and the way back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catena.kit.errors import Missing

OPERATOR, ITSELF = "operator", "itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """A setting that moved, and why."""

    setting: str
    before: float
    after: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One tuning. `number` counts a tenant's from 1; `by`: OPERATOR or ITSELF.

    `judged`: judged outcomes that it rests on; `upto`: the journal's revision up to which it had read. `reverts`: the
    step before which all settings were taken back to; 0: none was.
    """

    tenant: str
    number: int
    time_s: float
    by: str
    moved: tuple[Adjustment, ...]
    judged: int = 0
    upto: int = 0
    reverts: int = 0


def in_force(steps: Sequence[Step]) -> Mapping[str, float]:
    """Settings that are other than configured after these steps, which are all of a tenant's, oldest first."""
    held: list[Mapping[str, float]] = [{}]
    for step in steps:
        moved = {one.setting: one.after for one in step.moved}
        held.append(held[step.reverts - 1] if step.reverts else {**held[-1], **moved})
    return held[-1]


def taken_back(steps: Sequence[Step], number: int, configured: Mapping[str, float]) -> tuple[Adjustment, ...]:
    """What has to move to stand as before step `number`; `configured`: settings as they are where nothing moved them.

    Raises Missing (`unknown_step`) when there is no such step.
    """
    if not 1 <= number <= len(steps):
        known = f"1 to {len(steps)}" if steps else "there are none yet"
        raise Missing(f"no tuning {number}; known: {known}; list them with `catena route tunings`", code="unknown_step")
    now, then = in_force(steps), in_force(steps[: number - 1])
    return tuple(
        Adjustment(
            setting=name,
            before=now.get(name, value),
            after=then.get(name, value),
            reason=f"taken back to before step {number}" + ("" if name in then else ", as configured"),
        )
        for name, value in configured.items()
        if now.get(name, value) != then.get(name, value) or (name in now) != (name in then)
    )


def lacking(steps: Sequence[Step], judged_since: int, min_judged: int) -> int:
    """Outcomes that must still be judged before tuning goes on by itself, `judged_since` the last step.

    One step is taken per so much new evidence; after a revert, as much as led to what was reverted.
    """
    if not steps:
        return 0
    last = steps[-1]
    undone = [step.judged for step in steps[max(last.reverts - 1, 0) : -1]] if last.reverts else []
    return max(max([min_judged, *undone]) - judged_since, 0)
