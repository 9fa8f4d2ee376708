"""A training job and the states that it passes through."""

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from catena.kit.errors import Conflict
from catena.trainer.core.rows import Row
from catena.trainer.core.spec import JobSpec

State = Literal["queued", "running", "evaluating", "registering", "succeeded", "rejected", "failed", "cancelled"]
STATES: tuple[State, ...] = (
    "queued", "running", "evaluating", "registering", "succeeded", "rejected", "failed", "cancelled",
)  # fmt: skip
ENDED: frozenset[State] = frozenset({"succeeded", "rejected", "failed", "cancelled"})


class ClaimLost(Conflict):
    """Another trainer holds the job, since this one fell silent for longer than the lease."""


class VersionTaken(Conflict):
    """The registry holds another adapter under this version."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the curve: loss is the mean since the last point, the rest as of now."""

    step: int
    total_steps: int
    loss: float = 0.0
    learning_rate: float = 0.0
    tokens_per_s: float = 0.0
    remaining_s: float = 0.0
    rows: int = 0


class Material(msgspec.Struct, frozen=True):
    """The rows of a job, frozen when it was accepted: one tuple per source, and the trusted ones."""

    sources: tuple[tuple[Row, ...], ...]
    trusted: tuple[Row, ...] = ()


def data_digest(material: Material) -> str:
    """The name of the rows by their content."""
    return f"sha256:{hashlib.sha256(msgspec.json.encode(material)).hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as stored. `revision` counts its changes.

    `version` is the adapter's, chosen when it is sealed; `stalled` counts attempts in a row that ended no further than
    they began; `checkpoint` is the newest step that a crash leaves, `mark` the one at which this attempt began.
    """

    id: str
    tenant: str
    spec: JobSpec
    state: State = "queued"
    progress: Progress | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    version: str = ""
    model: str = ""
    digest: str = ""
    reason: str = ""
    data_digest: str = ""
    created_s: float = 0.0
    finished_s: float = 0.0
    attempts: int = 0
    stalled: int = 0
    checkpoint: int = 0
    mark: int = -1
    cancelling: bool = False
    revision: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ENDED
