"""Versions in order, and whether a newer one is worth moving to."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from catena.adapters.core.records import AdapterRecord

ACCURACY = "accuracy"
WORTH = 0.02
"""Accuracy that an update must gain beyond: two points."""
SEMANTIC = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-(.+))?\Z")
Place: TypeAlias = tuple[int, int, int, int, tuple[tuple[int, int, str], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What to move to, None: stay; `gain` in accuracy; `reason` says why or why not."""

    record: AdapterRecord | None
    gain: float
    reason: str


def order(version: str) -> Place:
    """A key to sort versions by: an integer is a major version, a pre-release comes before its release (SemVer 2)."""
    match = SEMANTIC.match(version)
    if match is None:
        return (int(version), 0, 0, 1, ())
    major, minor, patch, early = match.groups()
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in (early or "").split(".") if part)
    return (int(major), int(minor), int(patch), 0 if early else 1, parts)


def following(versions: Iterable[str]) -> str:
    """The version after the newest, in its own manner: `4` after `3`, `1.2.1` after `1.2.0`; `1` after none."""
    newest = max(versions, key=order, default="")
    if not newest:
        return "1"
    match = SEMANTIC.match(newest)
    if match is None:
        return str(int(newest) + 1)
    major, minor, patch, early = match.groups()
    return f"{major}.{minor}.{int(patch) + (0 if early else 1)}"


def unfit(record: AdapterRecord, base_digest: str) -> str:
    """Why a version cannot be served on the base as it is now; empty: it can."""
    if record.status == "withdrawn":
        return f"{record.model} was withdrawn"
    if record.base_digest != base_digest:
        return (
            f"{record.model} was trained on {record.base} with digest {record.base_digest[:12]}, "
            f"which now has {base_digest[:12]}"
        )
    return ""


def recommend(current: AdapterRecord, versions: Iterable[AdapterRecord], base_digest: str) -> Update:
    """The most accurate newer version that can be served, if it gains more than two points; else to stay."""
    newer = [record for record in versions if order(record.version) > order(current.version)]
    fit = [record for record in newer if not unfit(record, base_digest) and ACCURACY in record.metrics]
    if not fit:
        told = f"{len(newer)} newer, none that fits this base and tells its accuracy" if newer else "no newer version"
        return Update(record=None, gain=0.0, reason=told)
    if ACCURACY not in current.metrics:
        return Update(record=None, gain=0.0, reason=f"{current.model} has no accuracy to compare with; evaluate it")
    best = max(fit, key=lambda record: (record.metrics[ACCURACY], order(record.version)))
    gain = round(best.metrics[ACCURACY] - current.metrics[ACCURACY], 9)
    points = f"{best.model} gains {100 * gain:.3g} points of accuracy"
    if gain <= WORTH:
        return Update(record=None, gain=gain, reason=f"{points}, not more than {100 * WORTH:g}")
    return Update(record=best, gain=gain, reason=points)
