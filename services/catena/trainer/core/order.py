"""The work order: all that a job's own process is told, and all that it tells back. Plain data, JSON on disk."""

from collections.abc import Mapping

import msgspec

from catena.trainer.core.rows import Row
from catena.trainer.core.spec import Peft, Training


class Portion(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one source that are trained on."""

    weight: float
    retention: bool
    rows: tuple[Row, ...]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to train and measure. `targets` are filled in; `threads` and `device` are those of the process.

    `measured` holds rows by name: `heldout`, `trusted`, `retention`.
    """

    job: str
    base: str
    base_folder: str
    peft: Peft
    training: Training
    portions: tuple[Portion, ...]
    measured: dict[str, tuple[Row, ...]]
    threads: int
    device: str = "auto"
    point_s: float = 0.5


class Point(msgspec.Struct, frozen=True, kw_only=True, tag="point"):
    """A point of the curve; `checkpoint` is the newest step that would survive a crash."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_s: float
    remaining_s: float
    rows: int
    checkpoint: int


class Measuring(msgspec.Struct, frozen=True, kw_only=True, tag="measuring"):
    """Training is over, evaluation has begun."""


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """Training and evaluation are over; the adapter lies in the job's folder."""

    metrics: dict[str, float]
    steps: int
    rows: int
    skipped: int
    trainable_parameters: int


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """It will fail again in the same way: something in the order is wrong."""

    code: str
    message: str


Report = Point | Measuring | Result | Failure


def figures(result: Result) -> Mapping[str, float]:
    """The figures of a result under the names that the world knows: `accuracy` is that of the rows that decide."""
    metrics = dict(result.metrics)
    for name in ("heldout", "trusted"):
        if f"{name}_accuracy" in metrics:
            metrics["accuracy"] = metrics[f"{name}_accuracy"]
            metrics["base_accuracy"] = metrics[f"base_{name}_accuracy"]
    return metrics | {"steps": result.steps, "rows": result.rows, "skipped_rows": result.skipped}
