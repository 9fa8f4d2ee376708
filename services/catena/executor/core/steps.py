"""What a pipeline is, and what comes of running it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catena.executor.core.chat import NOTHING_USED, Score, Usage
from catena.executor.core.events import Saved

DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; `timeout_s` 0: 30 seconds."""

    name: str
    type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    on_error: str = "fail"
    default_output: Any = None
    timeout_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Steps in order under a name; every put makes a new version."""

    name: str
    steps: tuple[Step, ...]
    version: int = 0
    description: str = ""
    created_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step gave; `error` is code and message where the pipeline went on without it."""

    name: str
    output: Any
    duration_ms: float
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """The output for one input."""

    result: Any
    duration_ms: float
    execution_id: str
    steps: tuple[StepResult, ...] = ()
    cached: bool = False
    cost_usd: float = 0.0
    usage: Usage = NOTHING_USED
    scores: tuple[Score, ...] = ()
    saved: Saved | None = None
