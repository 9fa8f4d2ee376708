"""What the registry holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from catena.adapters.core.refs import full_name
from catena.adapters.core.work import BaseFacts
from catena.kit.config import ModelType


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """One version of one adapter of one tenant. Times in seconds since the epoch; `bytes` of its tensors."""

    tenant: str
    base: str
    name: str
    version: str
    digest: str
    base_digest: str
    bytes: int
    rank: int
    tasks: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    training_rows: int = 0
    created_s: float = 0.0
    last_used_s: float = 0.0
    uses: int = 0
    aliases: tuple[str, ...] = ()
    status: Literal["active", "withdrawn"] = "active"
    signer: str = ""
    pinned: bool = False

    @property
    def model(self) -> str:
        """`base@adapter:version`."""
        return full_name(self.base, self.name, self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecord:
    """A base that passed the gate. `folder` is where its files are; `context_tokens` is what it is configured to.

    `kind` is what it does.
    """

    name: str
    folder: str
    digest: str
    architecture: str
    parameters: int
    bytes: int
    context_tokens: int
    dtype: str
    kind: ModelType = "chat"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseState:
    """A configured base as known now: `record` once it passed the gate, `facts` while it is resident.

    `problem`: why it cannot be loaded, or was not when last tried.
    """

    name: str
    kind: ModelType
    record: BaseRecord | None
    facts: BaseFacts | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An adapter folder that passed the gate and is stored: what its manifest says, and who signed it."""

    name: str
    version: str
    digest: str
    base: str
    base_digest: str
    bytes: int
    rank: int
    tasks: tuple[str, ...]
    metrics: Mapping[str, float]
    training_rows: int
    signer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The artifacts on disk: how many, and the bytes of all their files."""

    count: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Where in memory something is now, `device` or `host`; `tier` empty: in neither any more, on disk alone."""

    tenant: str
    model: str
    tier: Literal["device", "host", ""]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One answer by an adapter version."""

    tenant: str
    base: str
    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What adapters of a well-known name are for."""

    name: str
    tasks: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseProfile:
    """An example of a base: where it is, a folder or a hub's id, how large it is, and what it is good for."""

    name: str
    path: str
    parameters: int
    licence: str = ""
    description: str = ""
