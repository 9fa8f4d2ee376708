"""What a job is asked to do, with every default filled in and every value checked."""

import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from catena.kit.errors import Invalid

METHODS = ("lora", "rslora", "dora")
TYPES = ("chat", "instruction", "reasoning", "coding", "function_calling")
MAX_RANK = 256
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}\Z")
_VERSION = re.compile(r"(\d{1,9}|\d{1,9}\.\d{1,9}\.\d{1,9}(-[0-9A-Za-z.-]{1,40})?)?\Z")
_TARGET = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z", re.ASCII)

Number = TypeVar("Number", int, float)


class Unsupported(Invalid):
    """A method that is known but not trained here yet."""

    default_code = "unsupported_method"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where rows came from; the rows themselves are `Material`. `path` empty: they came with the request."""

    name: str
    weight: float
    type: str = "chat"
    path: str = ""
    retention: bool = False


class Peft(msgspec.Struct, frozen=True, kw_only=True):
    """How the weights are adapted; no targets: every linear of the blocks."""

    method: str = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ()


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """How the training runs. Either `epochs` or `max_steps` is above 0; with both, the fewer steps count."""

    epochs: float = 3.0
    max_steps: int = 0
    learning_rate: float = 2e-4
    batch_size: int = 2
    accumulation: int = 8
    max_tokens: int = 512
    checkpoint_steps: int = 50
    seed: int = 0
    holdout: float = 0.1

    @property
    def step_rows(self) -> int:
        """Rows of one optimiser step."""
        return self.batch_size * self.accumulation


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter must reach before it is signed, both as shares."""

    min_accuracy: float = 0.7
    max_forgetting: float = 0.05


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A whole job. `version` empty: the next integer that the registry has free."""

    adapter: str
    version: str = ""
    base: str
    sources: tuple[Source, ...]
    peft: Peft = Peft()
    training: Training = Training()
    acceptance: Acceptance = Acceptance()
    tasks: tuple[str, ...] = ()
    register: bool = False


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A job as handed in: `jsonl` holds each source's rows, empty where a file is named; `trusted` may be empty.

    `anywhere`: whether files outside the data folder may be named.
    """

    spec: JobSpec
    jsonl: tuple[bytes, ...]
    trusted: bytes = b""
    anywhere: bool = False


def checked(spec: JobSpec) -> JobSpec:
    """The same spec. Raises Invalid, naming the field, its value and the cure; Unsupported for a method not served."""
    if not _NAME.match(spec.adapter):
        raise Invalid(
            f"adapter {spec.adapter!r} should be 1 to 96 of a-z 0-9 . _ -, beginning with a letter or digit",
            code="bad_name",
        )
    if not _VERSION.match(spec.version):
        raise Invalid(f"version {spec.version!r} should be an integer or semantic, as 3 or 1.2.0", code="bad_version")
    if not spec.base:
        raise Invalid("no base is named; give one of the configured models", code="no_base")
    _check_sources(spec.sources)
    _check_peft(spec.peft)
    _check_training(spec.training)
    _within("acceptance.min_accuracy", spec.acceptance.min_accuracy, 0.0, 1.0)
    _within("acceptance.max_forgetting", spec.acceptance.max_forgetting, 0.0, 1.0)
    return spec


def _check_sources(sources: Sequence[Source]) -> None:
    if not any(not source.retention for source in sources):
        raise Invalid("there is nothing new to learn; give at least one source without `retention`", code="no_rows")
    for source in sources:
        _within(f"weight of source {source.name!r}", source.weight, 1e-6, 1e6)
        if source.type not in TYPES:
            raise Invalid(f"source {source.name!r} has type {source.type!r}; known: {', '.join(TYPES)}")


def _check_peft(peft: Peft) -> None:
    if peft.method == "adalora":
        raise Unsupported("method 'adalora' is not trained here yet; use lora, rslora or dora")
    if peft.method not in METHODS:
        raise Invalid(f"method {peft.method!r} is unknown; use one of {', '.join(METHODS)}", code="unknown_method")
    _within("peft.rank", peft.rank, 1, MAX_RANK)
    _within("peft.alpha", peft.alpha, 1e-6, 4096.0)
    _within("peft.dropout", peft.dropout, 0.0, 0.99)
    for target in peft.targets:
        if not _TARGET.match(target):
            raise Invalid(f"target module {target!r} is no plain module name; patterns are not taken")


def _check_training(training: Training) -> None:
    _within("training.epochs", training.epochs, 0.0, 10_000.0)
    _within("training.max_steps", training.max_steps, 0, 10_000_000)
    _within("training.learning_rate", training.learning_rate, 1e-9, 1.0)
    _within("training.batch_size", training.batch_size, 1, 4096)
    _within("training.accumulation", training.accumulation, 1, 4096)
    _within("training.max_tokens", training.max_tokens, 8, 1 << 20)
    _within("training.checkpoint_steps", training.checkpoint_steps, 1, 1_000_000)
    _within("training.holdout", training.holdout, 0.0, 0.5)


def _within(name: str, value: Number, low: Number, high: Number) -> None:
    # Written so that NaN, which compares with nothing, is refused too.
    if not low <= value <= high:
        raise Invalid(f"{name} is {value}; it should be between {low} and {high}", code="out_of_range")
