"""How long a stage may take, how often and on which models it is tried, and when trying again is safe."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from catena.kit.errors import CatenaError, Exhausted, Invalid, Late, Missing, Unavailable
from catena.plan.model import Role, Stage

HOPELESS = frozenset({"provider_key_refused", "model_disabled", "no_provider", "upstream_queue_full"})
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
WORTH_A_WAIT_S = 1.0
"""Where another model may be asked instead, no longer pause is made for this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Defaults that a plan may override. Seconds a stage by role; `run_s` is the longest a whole run may take.

    A model that has fallbacks may keep its first word for at most `first_word_share` of the time left, and every later
    one for `stall_s`.
    """

    timeouts_s: Mapping[Role, float] = field(
        default_factory=lambda: {Role.FAST: 2.0, Role.DRAFT: 5.0, Role.MEMBER: 30.0, Role.JUDGE: 30.0, Role.MAIN: 30.0}
    )
    run_s: float = 300.0
    attempts: int = 2
    critical_attempts: int = 3
    optional_attempts: int = 1
    first_word_share: float = 0.5
    stall_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds that a model may keep silent, before its first word and between later ones."""

    first_word_s: float
    stall_s: float


def patience(left_s: float, limits: Limits) -> Patience:
    """How long to wait for a model while there are others to ask."""
    first_s = left_s * limits.first_word_share
    return Patience(first_word_s=first_s, stall_s=min(limits.stall_s, max(first_s, 0.0)))


def timeout_s(stage: Stage, limits: Limits) -> float:
    """The longest that the stage may take, attempts and pauses together."""
    return stage.timeout_s or limits.timeouts_s[stage.role]


def attempts(stage: Stage, limits: Limits, *, critical: bool) -> int:
    """How often the stage is tried in all."""
    if stage.max_attempts:
        return stage.max_attempts
    if stage.optional:
        return limits.optional_attempts
    return limits.critical_attempts if critical else limits.attempts


def may_repeat(error: CatenaError, *, streamed: bool) -> bool:
    """Whether the same call may do better: nothing has reached the client, and the failure passes by itself."""
    return not streamed and isinstance(error, Unavailable | Exhausted) and error.code not in HOPELESS


def may_move_on(error: CatenaError) -> bool:
    """Whether another model may do better: this one is away, busy, late or too small.

    What is wrong with the request itself, or with the whole run, stays wrong elsewhere.
    """
    match error:
        case Invalid():
            return error.code == "context_length_exceeded"
        case Late():
            return error.code != "deadline_exceeded"
    return isinstance(error, Unavailable | Exhausted | Missing)


Step = Literal["again", "onward", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A failed attempt: the `tries` of this model of at most `limit`, and whether another (`others`) may be asked.

    `streamed`: words reached the client; `can_go_on`: another model may continue them.
    """

    error: CatenaError
    tries: int
    limit: int
    others: bool
    streamed: bool = False
    can_go_on: bool = False


def next_step(tried: Tried, *, pause_s: float, left_s: float) -> Step:
    """What to do about a failure: `again` on the same model after `pause_s`, `onward` to the next one, or `end`."""
    onward = tried.others and left_s > 0 and may_move_on(tried.error) and (tried.can_go_on or not tried.streamed)
    is_open = tried.error.code == "circuit_open"
    again = tried.tries < tried.limit and may_repeat(tried.error, streamed=tried.streamed) and pause_s < left_s
    if onward and (not again or pause_s > WORTH_A_WAIT_S or is_open):
        return "onward"
    if is_open and pause_s > WORTH_A_WAIT_S:
        return "end"
    return "again" if again else "end"


def pause_s(attempt: int, error: CatenaError, rng: random.Random) -> float:
    """Seconds to wait after the failed `attempt` (from 1): what the provider asks for, else doubling; with jitter.

    Never less than the provider asks for; up to a tenth more, so that those who met it together come back apart.
    """
    if error.retry_after_s > 0:
        return error.retry_after_s * rng.uniform(1.0, 1.1)
    return float(min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * rng.uniform(0.5, 1.5))
