"""How long a stage may take, how often it is tried, and when trying again is safe."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from catena.kit.errors import CatenaError, Exhausted, Unavailable
from catena.plan.model import Role, Stage

HOPELESS = frozenset({"provider_key_refused", "model_disabled", "no_provider"})
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Defaults that a plan may override. Seconds a stage by role; `run_s` is the longest a whole run may take."""

    timeouts_s: Mapping[Role, float] = field(
        default_factory=lambda: {Role.FAST: 2.0, Role.DRAFT: 5.0, Role.MEMBER: 30.0, Role.JUDGE: 30.0, Role.MAIN: 30.0}
    )
    run_s: float = 300.0
    attempts: int = 2
    critical_attempts: int = 3
    optional_attempts: int = 1


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


def pause_s(attempt: int, error: CatenaError, rng: random.Random) -> float:
    """Seconds to wait after the failed `attempt` (from 1): what the provider asks for, else doubling with jitter."""
    if error.retry_after_s > 0:
        return error.retry_after_s
    return float(min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * rng.uniform(0.5, 1.5))
