"""Stops asking a model that keeps failing, and finds out with one call at a time whether it is back.

The circuit breaker of M. Nygard, Release It!, chapter 5. A pure state machine: time is told, nothing is awaited.
"""

from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half-open"]
Verdict = Literal["well", "failed", "untold"]
"""How an admitted call went; `untold`: it was given up before it showed anything about the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerLimits:
    """`failures` in a row open it for `open_s` seconds, doubled by each failed probe up to `longest_s`."""

    failures: int = 5
    open_s: float = 1.0
    longest_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Permit:
    """One admitted call. `era` counts openings and closings: what began in another era proves nothing about this."""

    era: int
    probe: bool


class Breaker:
    """Closed: all calls pass. Open: none. Half-open, once the pause is over: one probe, whose end decides."""

    def __init__(self, limits: BreakerLimits) -> None:
        """Begin closed."""
        self._limits = limits
        self._era = 0
        self._failures = 0
        self._open = False
        self._until_s = 0.0
        self._pause_s = limits.open_s
        self._probing = False

    def state(self, now_s: float) -> State:
        """Where it stands."""
        if not self._open:
            return "closed"
        return "half-open" if now_s >= self._until_s else "open"

    def admit(self, now_s: float) -> Permit | None:
        """Leave for one call, to be settled whatever becomes of it; None: not now."""
        if not self._open:
            return Permit(self._era, probe=False)
        if now_s < self._until_s or self._probing:
            return None
        self._probing = True
        return Permit(self._era, probe=True)

    def wait_s(self, now_s: float) -> float:
        """Seconds after which asking for leave makes sense again."""
        return max(self._until_s - now_s, self._limits.open_s / 10) if self._open else 0.0

    def settle(self, permit: Permit, verdict: Verdict, now_s: float) -> None:
        """Take in how an admitted call went; one of an earlier era is passed over."""
        if permit.era != self._era:
            return
        if permit.probe:
            self._probing = False
            if verdict == "well":
                self._close()
            elif verdict == "failed":
                self._pause_s = min(self._pause_s * 2, self._limits.longest_s)
                self._until_s = now_s + self._pause_s
        elif verdict == "well":
            self._failures = 0
        elif verdict == "failed":
            self._failures += 1
            if self._failures >= self._limits.failures:
                self._trip(now_s)

    def _trip(self, now_s: float) -> None:
        self._era += 1
        self._open, self._probing = True, False
        self._pause_s = self._limits.open_s
        self._until_s = now_s + self._pause_s

    def _close(self) -> None:
        self._era += 1
        self._open, self._failures = False, 0
