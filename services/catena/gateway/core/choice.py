"""What a request asks for: reads the `model` name, the pipeline type and the context's numbers. Pure."""

import math
from dataclasses import dataclass

from catena.kit.errors import Invalid
from catena.plan.model import Shape, parse_shape

AUTO = "auto"
PIPELINE = "pipeline:"
OBJECTIVES = ("", "cost", "latency", "quality", "balanced")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is to run: a stored `pipeline`; or a `model` (`auto`: the router picks), in a forced `shape` if not None."""

    model: str
    shape: Shape | None = None
    pipeline: str = ""

    @property
    def needs_router(self) -> bool:
        """Whether the router has a say; a named model without a shape, or a stored pipeline, needs none.

        `base@auto` and the names `<prefix>-<domain>-alora` stand for whatever serves the task best.
        """
        named_by_task = self.model.endswith(("@auto", "-alora"))
        return not self.pipeline and (self.model == AUTO or named_by_task or self.shape is not None)


def choose(model: str, pipeline_type: str) -> Choice:
    """Read `model` and the pipeline type (the header wins over `auto`; a named model becomes its main model).

    Raises Invalid (`missing_model`, `unknown_pipeline_type`).
    """
    wanted = model.strip()
    if not wanted:
        raise Invalid("the request names no model; set `model`, for example to 'auto'", code="missing_model")
    shape = parse_shape(pipeline_type)
    if wanted.startswith(PIPELINE):
        return Choice(model=wanted, pipeline=wanted.removeprefix(PIPELINE))
    return Choice(model=wanted, shape=shape)


def cap(name: str, value: float | None) -> float:
    """A cap on cost or latency; 0 stands for none. Raises Invalid (`bad_cap`) unless it is a finite number above 0."""
    if value is None:
        return 0.0
    if not math.isfinite(value) or value <= 0:
        raise Invalid(f"{name} {value} is no cap; give a finite number above 0, or leave it out", code="bad_cap")
    return value


def objective(value: str) -> str:
    """The objective as given. Raises Invalid (`unknown_objective`)."""
    if value not in OBJECTIVES:
        raise Invalid(f"unknown objective {value!r}; use one of {', '.join(OBJECTIVES[1:])}", code="unknown_objective")
    return value
