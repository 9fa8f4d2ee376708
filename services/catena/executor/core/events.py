"""What a run tells while it goes, and the record that it leaves."""

from dataclasses import dataclass

from catena.executor.core.chat import NOTHING_USED, Choice, Context, Delta, Message, Score, Usage
from catena.plan.model import Plan, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    """An attempt (from 1) at a stage began."""

    name: str
    model: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What one attempt at a stage did; fields as the proto's."""

    name: str
    role: Role
    model: str
    resolved_model: str = ""
    duration_ms: float = 0.0
    first_token_ms: float = 0.0
    usage: Usage = NOTHING_USED
    cost_usd: float = 0.0
    outcome: str = "accepted"
    attempt: int = 1
    confidence: float = 0.0
    accepted_tokens: int = 0
    drafted_tokens: int = 0
    error_code: str = ""
    reason: str = ""
    answer_digest: str = ""
    answer_features: tuple[float, ...] = ()
    load_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What an answer out of a cache took when it was made; fields as the proto's."""

    usage: Usage
    cost_usd: float
    execution_id: str
    similarity: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a run ended; fields as the proto's."""

    execution_id: str
    choices: tuple[Choice, ...]
    usage: Usage
    cost_usd: float
    duration_ms: float
    stages: tuple[StageResult, ...]
    model: str
    plan: Plan
    cached: bool = False
    scores: tuple[Score, ...] = ()
    queries: tuple[str, ...] = ()
    trace: str = ""
    lossy: bool = False
    saved: Saved | None = None


RunEvent = StageStarted | Delta | StageResult | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An execution as kept for audit; `prompt` and `answer` only for tenants that keep texts."""

    id: str
    tenant: str
    created_s: float
    plan: Plan
    context: Context
    stages: tuple[StageResult, ...]
    usage: Usage
    cost_usd: float
    duration_ms: float
    outcome: str
    error_code: str = ""
    scores: tuple[Score, ...] = ()
    model: str = ""
    cached: bool = False
    prompt: tuple[Message, ...] = ()
    answer: str = ""
    trace_id: str = ""
