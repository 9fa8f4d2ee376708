"""What the learner keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DatasetState = Literal["collecting", "ready", "training", "done"]
PromotionState = Literal["training", "canary", "promoted", "rejected", "rolled_back", "failed"]
ENDED: tuple[PromotionState, ...] = ("promoted", "rejected", "rolled_back", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a user thought of an answer; `score` None: nothing of its quality."""

    id: str
    execution_id: str
    score: float | None = None
    correction: str = ""
    comment: str = ""
    prompt: str = ""
    task: str = ""
    request_id: str = ""
    created_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What is known of the execution behind feedback; texts are empty where the tenant keeps none."""

    id: str
    prompt: str = ""
    answer: str = ""
    task: str = ""
    agent_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row to learn from: what was asked, what should have been answered, and why we think so."""

    task: str
    prompt: str
    completion: str
    corrected: bool
    agent_type: str = ""
    context: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Samples of one task; `digest` is that of the frozen file."""

    id: str
    tenant: str
    task: str
    state: DatasetState = "collecting"
    rows: int = 0
    corrections: int = 0
    threshold: int = 0
    job_id: str = ""
    digest: str = ""
    created_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """The way of one candidate. `previous` is the version that `stable` pointed at, empty where there was none."""

    id: str
    tenant: str
    dataset_id: str
    domain: str
    state: PromotionState = "training"
    candidate: str = ""
    incumbent: str = ""
    previous: str = ""
    experiment_id: str = ""
    job_id: str = ""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_s: float = 0.0
    updated_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a training job ended."""

    job_id: str
    state: str
    model: str = ""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("succeeded", "rejected", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """An execution that ended and is recorded; `scores` of verifiers as (source, value)."""

    tenant: str
    execution_id: str
    scores: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a canary ended, seen from the candidate: `won`, `lost`, `undecided` or `stopped`."""

    experiment_id: str
    state: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
