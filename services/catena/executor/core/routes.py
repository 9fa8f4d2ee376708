"""What experience with each outside model tells about asking it again: whether, when, and how often at once.

The adapters room is no such route: it is one hop away, queues by itself, and says at once when it is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from catena.executor.core.breaker import Breaker, BreakerLimits, Permit, Verdict
from catena.executor.core.catalogue import LOCAL, Model
from catena.executor.core.hedging import HedgeLimits, Hedges
from catena.executor.core.throttle import Rate, Throttle
from catena.kit.errors import CatenaError, Exhausted, Late, Unavailable

log = structlog.get_logger()

LATE_COUNTS_S = 2.0
"""A model that had less time than this to speak is not to blame for being late."""
UNTOLD = frozenset(
    {
        *("provider_key_refused", "no_provider", "model_disabled", "circuit_open"),
        *("cost_cap", "sampling_unsupported", "bad_tool_call", "bad_image"),
    }
)
"""Errors of ours, and those raised before the model was asked: they say nothing about it."""
OURS = frozenset({"upstream_rate", "upstream_queue_full", "circuit_open"})
"""Errors that we made up ourselves; the provider asked for no rest."""


@dataclass(slots=True, kw_only=True)
class Route:
    """One model."""

    model: str
    breaker: Breaker
    throttle: Throttle
    hedges: Hedges
    last_code: str = ""

    def admit(self, now_s: float) -> Permit:
        """Leave for one call. Raises Unavailable (`circuit_open`) while the model is left alone."""
        permit = self.breaker.admit(now_s)
        if permit is None:
            wait_s = self.breaker.wait_s(now_s)
            raise Unavailable(
                f"{self.model} kept failing ({self.last_code}); it is tried again in {wait_s:.1f} s, or name another",
                code="circuit_open",
                retry_after_s=wait_s,
            )
        return permit

    def settle(self, permit: Permit, error: CatenaError | None, waited_s: float, now_s: float) -> None:
        """Learn from a call that ended: well, or with an error after so many seconds."""
        verdict = verdict_of(error, waited_s)
        if error is not None and verdict == "failed":
            self.last_code = error.code
        before = self.breaker.state(now_s)
        self.breaker.settle(permit, verdict, now_s)
        after = self.breaker.state(now_s)
        if before == "closed" and after == "open":
            log.warning("circuit opened", model=self.model, code=self.last_code)
        elif before != "closed" and after == "closed":
            log.info("circuit closed", model=self.model)
        ours = error is not None and error.code in OURS
        if isinstance(error, Exhausted | Unavailable) and error.retry_after_s > 0 and not ours:
            self.throttle.rest(error.retry_after_s, now_s)


def verdict_of(error: CatenaError | None, waited_s: float) -> Verdict:
    """What a call's end says about the model: one that refuses a request for good reasons is well."""
    if isinstance(error, Exhausted) or (error is not None and error.code in UNTOLD):
        return "untold"
    if isinstance(error, Late):
        return "failed" if waited_s >= LATE_COUNTS_S else "untold"
    return "failed" if isinstance(error, Unavailable) else "well"


@dataclass(slots=True, kw_only=True)
class Routes:
    """By model; an entry whose allowed rate changes begins its queue anew."""

    breaking: BreakerLimits = field(default_factory=BreakerLimits)
    hedging: HedgeLimits = field(default_factory=HedgeLimits)
    _by_model: dict[str, Route] = field(default_factory=dict)

    def known(self) -> Sequence[Route]:
        """The routes that were asked for so far."""
        return tuple(self._by_model.values())

    def of(self, model: Model) -> Route | None:
        """The model's route; None for local ones."""
        if model.provider == LOCAL:
            return None
        rate = Rate(
            requests_per_minute=model.requests_per_minute,
            tokens_per_minute=model.tokens_per_minute,
            at_once=model.at_once,
        )
        route = self._by_model.get(model.name)
        if route is None:
            route = self._by_model[model.name] = Route(
                model=model.name,
                breaker=Breaker(self.breaking),
                throttle=Throttle(rate),
                hedges=Hedges(self.hedging),
            )
        elif route.throttle.rate != rate:
            route.throttle = Throttle(rate)
        return route
