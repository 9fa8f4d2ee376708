"""When a second copy of a call is worth its price: the first is later than nearly all before it, and few were sent.

Dean and Barroso, The Tail at Scale (CACM 56:2, 2013): a copy after the 95th percentile costs a few per cent of load.
"""

from collections import deque
from dataclasses import dataclass, field

WINDOW = 200
ENOUGH = 20
"""Calls before a percentile means anything."""
EVERY = 5
"""Calls after which it is reckoned anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeLimits:
    """`share` of the calls that may be sent twice, at most `burst` in a row; 0 sends none. After `quantile`."""

    share: float = 0.03
    burst: float = 3.0
    quantile: float = 0.95


@dataclass(slots=True)
class Hedges:
    """Times to the first word of one model's recent calls, what copies they have earned, and how many were `sent`."""

    limits: HedgeLimits
    sent: int = 0
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _earned: float = 0.0
    _heard: int = 0
    _after_s: float | None = None

    def heard(self, first_word_s: float) -> None:
        """A call spoke after so many seconds."""
        self._seconds.append(first_word_s)
        self._heard += 1
        if self._heard >= ENOUGH and self._heard % EVERY == 0:
            ranked = sorted(self._seconds)
            self._after_s = ranked[min(len(ranked) - 1, int(len(ranked) * self.limits.quantile))]
        self._earned = min(self.limits.burst, self._earned + self.limits.share)

    def after_s(self) -> float | None:
        """Seconds after which a copy may be sent; None: too little is known, or none is left to send."""
        return self._after_s if self._earned >= 1.0 else None

    def spend(self) -> bool:
        """Take what one copy costs; False: there is not enough."""
        if self._earned < 1.0:
            return False
        self._earned -= 1.0
        self.sent += 1
        return True
