"""What can be set of the adapters."""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from catena.kit.caller import SHARED
from catena.kit.config import FilePath, Section

Preload = Literal["off", "likely", "eager"]


class PressureConfig(Section, frozen=True, kw_only=True):
    """When memory is tight: shares of bytes used over those that there are, at which the levels begin.

    Below `medium` more is preloaded, above it nothing new is; above `high` leaves the device what was idle for
    `idle_s`; above `critical` stays only what is pinned or in use. A level ends `hysteresis` below where it began.
    `reserve_bytes` of the machine's memory are left to others: for them host memory is given up first, on a CPU then
    the device.
    """

    medium: float = 0.6
    high: float = 0.85
    critical: float = 1.0
    hysteresis: float = 0.05
    idle_s: float = 600.0
    reserve_bytes: int = 256 << 20


class EngineConfig(Section, frozen=True, kw_only=True):
    """What computes. `kind` `local` is the room's own engine; `vllm` and `tgi` are servers of yours, one a base.

    `url` is the server of every base that `urls`, by base, does not name; each serves this room alone.
    `artifacts`: where they see the room's `home/artifacts`; empty: at the same path. `api_key_env` names the variable
    with their key; empty: none.
    """

    kind: Literal["local", "vllm", "tgi"] = "local"
    url: str = ""
    urls: dict[str, str] = msgspec.field(default_factory=dict)
    artifacts: str = ""
    api_key_env: str = ""


class RegistryConfig(Section, frozen=True, kw_only=True):
    """A remote registry in which updates of registered adapters are looked for; nothing of it is reached unless named.

    Either `folder`, one that `catena adapters publish` wrote, within reach; or `url`, where a web server or another
    Catena's gateway (`https://HOST/v1/registry`) serves such a folder; or `hub`, a repository or namespace of a model
    hub, at `url` where that is not the public one. `api_key_env` names the variable with the bearer for it.
    `hosts` (`HOST` or `HOST:PORT`) may be sent to besides its own; `plain_http` waives TLS. `signed_by` is the public
    key (RSA) of its index's signed record; empty: the adapters' own signatures alone vouch.

    `policy` `notify` tells of a version that is compatible and better by more than two points of accuracy; `pull` also
    takes it in through the gate, for `tenant`, and points `alias` at it, which cannot be `stable`. `every_s` is how
    often it is asked, give or take a tenth; 0: only when somebody asks. `max_bytes` caps one fetch.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}\Z")]
    folder: FilePath = ""
    url: str = ""
    hub: str = ""
    api_key_env: str = ""
    hosts: list[str] = msgspec.field(default_factory=list)
    plain_http: bool = False
    signed_by: FilePath = ""
    policy: Literal["notify", "pull"] = "notify"
    tenant: str = SHARED
    alias: str = "candidate"
    every_s: float = 21600.0
    max_bytes: int = 512 << 20


class AdaptersConfig(Section, frozen=True, kw_only=True):
    """The section `adapters`.

    Residency: `budget_bytes` and `max_resident` bound the adapters on the device (2 GiB and 10 keep a laptop usable).
    What has to leave it is kept in host memory up to `host_bytes` more (1 GiB: what is used in turns with ten others
    comes back without reading it again), 0: nothing is; the local engine alone does. The disk holds every registered
    adapter and has no budget.
    `eviction` `cost` lets go first what is least worth its bytes: the chance of its reuse, from uses that fade by half
    in `reuse_half_life_s` (10 minutes outlast a pause in a conversation), times the seconds its load takes; `lru` lets
    go what was used longest ago. `max_rank` is the largest rank that the gate lets through.

    `preload` loads ahead, into free room and while memory pressure is low, what a user or a workflow probably asks for
    next: `likely` from a chance of 0.7, `eager` from 0.5; null: as the profile has it. `workflows` is a YAML file of
    the sets that workflows begin with, `profiles` one of the tasks that adapters of well-known names are for,
    `base_profiles` one of examples of bases; empty: those that are shipped. `unknown_ttl_s` is how long a name that is
    not registered is known not to be, unless it is registered here, and how long what the gate refused at a load is
    refused again unread.

    `base_budget_bytes` bounds the weights of bases, apart from the adapters: the one used longest ago leaves with its
    idle adapters when another needs its room, never one in use or with a pinned adapter; 0: nothing bounds them.

    Engine: `engine` says whose; all that follows but `max_batch` and `queue` is of the local one. `device` is torch's
    name for it; `dtype` `auto` means float32 on a CPU, bfloat16 elsewhere; `threads` 1 leaves the other cores to the
    rooms and, at small widths, loses nothing. `quantization`, by base: `nf4` holds the weights of its blocks in four
    bits, a seventh of float32's bytes, made at each load; it needs the extra `nf4`. `kv`, `lora`, `graphs` and
    `kernels` say how steps are computed: sums of table rows (`bags`, `rows`) on a CPU, `places`, a `mask` and, with
    triton, its kernels in CUDA graphs on CUDA; another choice gives the same answers, slower.
    `max_batch` rows run at a time per base, up to `queue` answers wait beyond them. `kv_bytes` holds keys and values
    per base and so caps its context.
    `prefix_bytes` more per base remember texts that were read before, 0: nothing.
    `prefill_tokens` of prompts are read per step at most, so that long prompts do not stall running answers.
    `lookup_tokens` that followed the same words before are proposed at a time, where no draft model is named; 0: none.
    `encode_tokens` of texts, padding included, go through an encoder at a time, so that none is far from its turn and a
    GPU from its next step; up to `encode_queue` texts wait.
    `coalesce_ms` is how long words are gathered after the first ones were sent: fewer messages, still fluent reading.

    Trust: `trusted_keys` is the folder of public keys (`*.pub`), empty: `home/keys/trusted`. Without
    `require_signature` an unsigned adapter passes; only for development. A base that is signed must be so by one of
    these keys; with `require_base_signature` each must. A base is served as it was first seen: `accepted_bases` has,
    by name, the digests of those altered on purpose, beside what `catena models accept` noted. `hub` lets a base's
    path be a hub's id, which is then fetched; off, since nothing should be downloaded unasked.

    `lora_root` is the folder below which `/v1/load_lora_adapter` finds adapters; empty: it refuses every path.
    `library` is a folder of signed adapter folders that are registered for everybody at the start; empty: none.
    `hot_reload` watches that folder: what changes there is registered under a new version, and `stable` follows where
    it pointed at the newest. `warm` loads every base at the start, else with its first request. Null, for both: as the
    profile has it.

    `registries` are remote registries in which updates are looked for; empty: none is reached.
    """

    budget_bytes: int = 2 << 30
    host_bytes: int = 1 << 30
    max_resident: int = 10
    base_budget_bytes: int = 0
    eviction: Literal["cost", "lru"] = "cost"
    reuse_half_life_s: float = 600.0
    pressure: PressureConfig = PressureConfig()
    preload: Preload | None = None
    workflows: FilePath = ""
    profiles: FilePath = ""
    base_profiles: FilePath = ""
    unknown_ttl_s: float = 5.0
    max_rank: int = 256
    engine: EngineConfig = EngineConfig()
    device: str = "cpu"
    dtype: str = "auto"
    quantization: dict[str, Literal["nf4"]] = msgspec.field(default_factory=dict)
    threads: int = 1
    kv: Literal["auto", "bags", "places"] = "auto"
    lora: Literal["auto", "rows", "mask"] = "auto"
    graphs: Literal["auto", "on", "off"] = "auto"
    kernels: Literal["auto", "on", "off"] = "auto"
    max_batch: int = 32
    queue: int = 256
    kv_bytes: int = 1 << 30
    prefix_bytes: int = 256 << 20
    prefill_tokens: int = 512
    lookup_tokens: int = 0
    encode_tokens: int = 2048
    encode_queue: int = 4096
    coalesce_ms: float = 25.0
    trusted_keys: FilePath = ""
    require_signature: bool = True
    require_base_signature: bool = False
    accepted_bases: dict[str, str] = msgspec.field(default_factory=dict)
    hub: bool = False
    lora_root: FilePath = ""
    library: FilePath = ""
    warm: bool | None = None
    hot_reload: bool | None = None
    registries: list[RegistryConfig] = msgspec.field(default_factory=list)


class Conduct(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment decides where the configuration leaves it open."""

    warm: bool
    preload: Preload
    hot_reload: bool


PROFILES: Mapping[str, Conduct] = {
    "development": Conduct(warm=False, preload="off", hot_reload=True),
    "staging": Conduct(warm=True, preload="likely", hot_reload=False),
    "production": Conduct(warm=True, preload="eager", hot_reload=False),
}


def conduct(config: AdaptersConfig, profile: str) -> Conduct:
    """The profile's conduct, but for what the configuration says."""
    said = {name: getattr(config, name) for name in Conduct.__struct_fields__}
    return msgspec.structs.replace(
        PROFILES[profile], **{name: value for name, value in said.items() if value is not None}
    )
