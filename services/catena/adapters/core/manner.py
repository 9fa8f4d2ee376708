"""How the room decides: the configuration's part that the core reads, with profiles already applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from catena.adapters.config import Preload
from catena.adapters.core.eviction import HALF_LIFE_S, Policy
from catena.adapters.core.pressure import Bounds
from catena.adapters.core.records import BaseProfile, Profile
from catena.adapters.core.resident import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """`budget` bounds the resident adapters, `base_budget_bytes` the bases' weights; 0: nothing bounds these.

    `eviction` says who leaves first, `half_life_s` how fast uses fade. `host_bytes` bound what is kept in host memory
    of those that had to leave; `unified` says that the device computes in that same memory. `bounds` are those of the
    levels of memory pressure. `preload` says how bold loading ahead is; `workflows` are the adapters that each workflow
    begins with, `profiles` what adapters of well-known names are for, `base_profiles` examples of bases.
    """

    budget: Budget
    base_budget_bytes: int = 0
    eviction: Policy = "cost"
    half_life_s: float = HALF_LIFE_S
    host_bytes: int = 0
    unified: bool = True
    bounds: Bounds = field(default_factory=Bounds)
    preload: Preload = "likely"
    workflows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    base_profiles: Mapping[str, BaseProfile] = field(default_factory=dict)
