"""How the room decides: the configuration's part that the core reads, with profiles already applied."""

from dataclasses import dataclass

from catena.adapters.core.eviction import HALF_LIFE_S, Policy
from catena.adapters.core.resident import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """`budget` bounds the resident adapters; `eviction` says who leaves first, `half_life_s` how fast uses fade."""

    budget: Budget
    eviction: Policy = "cost"
    half_life_s: float = HALF_LIFE_S
