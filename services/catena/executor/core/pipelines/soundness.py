"""Whether a pipeline can run: checked before it is stored, so that a stored one only fails on its data."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from catena.executor.core.catalogue import Model, find
from catena.executor.core.checks import check_schema
from catena.executor.core.pipelines import cleaning, templates
from catena.executor.core.pipelines.settings import KINDS, Batch, Clean, Feature, ModelCall, Nested, Template, Told
from catena.executor.core.ports import Templates
from catena.executor.core.steps import Pipeline, Step
from catena.kit.errors import Invalid
from catena.plan.model import parse_shape

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
STEP_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
GIVEN = frozenset({"data", "parameters", "input"})
PER_ITEM = frozenset({"item", "index"})
ON_ERROR = ("fail", "skip", "default")
MOST_STEPS = 64
DEEPEST = 5


def check_pipeline(pipeline: Pipeline, models: Mapping[str, Model]) -> None:
    """Raise Invalid (`bad_pipeline`) or Missing (`unknown_model`), naming the step."""
    if not NAME.match(pipeline.name):
        raise _bad(f"pipeline name {pipeline.name!r}; use lower-case letters, digits and hyphens, at most 63")
    if not 1 <= len(pipeline.steps) <= MOST_STEPS:
        raise _bad(f"pipeline {pipeline.name!r} has {len(pipeline.steps)} steps; give it 1 to {MOST_STEPS}")
    known = set(GIVEN)
    for step in pipeline.steps:
        _check_step(step, known, models)
        known.add(step.name)


def nested_in(pipeline: Pipeline) -> list[tuple[str, int]]:
    """Name and version of each pipeline that `pipeline` runs as a step."""
    found = []
    for step in pipeline.steps:
        told = read_config(step.type, step.config, step.name)
        if isinstance(told, Batch):
            told = read_config(told.step.type, told.step.config, step.name)
        if isinstance(told, Nested):
            found.append((told.name, told.version))
    return found


async def check_templates(pipeline: Pipeline, sandbox: Templates) -> None:
    """Raise Invalid (`bad_pipeline`) for a template that is none, or that needs what no earlier step gives."""
    known = set(GIVEN)
    for step in pipeline.steps:
        told, there = read_config(step.type, step.config, step.name), known
        if isinstance(told, Batch):
            told, there = read_config(told.step.type, told.step.config, step.name), known | PER_ITEM
        if isinstance(told, Template):
            try:
                needs = await sandbox.names(told.template)
            except Invalid as error:
                raise _bad(f"step {step.name!r}: {error.message}") from error
            missing = sorted(needs - {name.replace("-", "_") for name in there})
            if missing:
                says = ", ".join(sorted(there))
                raise _bad(f"step {step.name!r} uses {missing[0]!r}, which no earlier step gives; there is {says}")
        known.add(step.name)


def read_config(kind: str, config: Mapping[str, Any], where: str) -> Told:
    """The settings of a step. Raises Invalid (`bad_pipeline`) with the path of what is wrong."""
    if kind not in KINDS:
        raise _bad(f"step {where!r} is of type {kind!r}; use one of {', '.join(KINDS)}")
    try:
        return msgspec.convert(config, KINDS[kind])
    except msgspec.ValidationError as error:
        raise _bad(f"step {where!r}: {error}") from error


def _check_step(step: Step, known: set[str], models: Mapping[str, Model]) -> None:
    if not STEP_NAME.match(step.name) or step.name in GIVEN | PER_ITEM:
        taken = ", ".join(sorted(GIVEN | PER_ITEM))
        raise _bad(f"step name {step.name!r}; use lower-case letters, digits, _ and -, and none of {taken}")
    if step.name in known:
        raise _bad(f"two steps are called {step.name!r}; rename one")
    if step.on_error not in ON_ERROR:
        raise _bad(f"step {step.name!r}: on_error {step.on_error!r}; use one of {', '.join(ON_ERROR)}")
    if not 0.0 <= step.timeout_s <= 3600.0:
        raise _bad(f"step {step.name!r}: timeout_s {step.timeout_s:g}; use 0 (30 s) to 3600")
    _check_config(step.type, step.config, step.name, known, models)


def _check_config(
    kind: str, config: Mapping[str, Any], where: str, known: set[str], models: Mapping[str, Model]
) -> None:
    told = read_config(kind, config, where)
    foreign = ("step", "json_schema", "labels", "format", "template")
    own = {key: value for key, value in config.items() if key not in foreign}
    if isinstance(told, Clean):
        own.pop("operations", None)
        for operation in told.operations:
            cleaning.check(operation)
    for name in templates.names(own):
        if name not in known:
            there = ", ".join(sorted(known))
            raise _bad(f"step {where!r} uses {{{name}}}, which no earlier step gives; there is {there}")
    check = _CHECKS.get(type(told))
    if check is not None:
        check(told, where, models)
    if isinstance(told, Batch):
        if told.step.type == "batch":
            raise _bad(f"step {where!r}: a batch inside a batch; put the inner one into a pipeline of its own")
        _check_config(told.step.type, told.step.config, where, known | PER_ITEM, models)


def _check_model(told: Any, where: str, models: Mapping[str, Model]) -> None:
    assert isinstance(told, ModelCall)
    if told.shape:
        if parse_shape(told.shape) is None:
            raise _bad(f"step {where!r}: shape {told.shape!r} leaves the choice open; name a shape")
    elif not told.model and told.kind != "embedding" and not told.labels:
        raise _bad(f"step {where!r} names no model; set config.model or config.shape")
    if told.labels and (told.kind != "classification" or len(told.labels) < 2):
        raise _bad(f"step {where!r}: config.labels has examples for classification, of at least two labels; correct it")
    if told.model and not list(templates.names(told.model)):
        _check_type(find(models, told.model), told, where)
    if told.json_schema is not None:
        check_schema(told.json_schema)


def _check_type(model: Model, told: ModelCall, where: str) -> None:
    if model.type != told.model_type:
        needs = f"{told.kind} needs one of type {told.model_type}"
        raise _bad(f"step {where!r}: {model.name!r} is of type {model.type}; {needs}")


def _check_feature(told: Any, where: str, models: Mapping[str, Model]) -> None:
    assert isinstance(told, Feature)
    if bool(told.group) == bool(told.features):
        raise _bad(f"step {where!r}: give either group or features")


def _check_batch(told: Any, where: str, models: Mapping[str, Model]) -> None:
    assert isinstance(told, Batch)
    if not 1 <= told.size <= 1000 or not 1 <= told.concurrency <= 100:
        raise _bad(f"step {where!r}: size {told.size} (1 to 1000), concurrency {told.concurrency} (1 to 100)")


_CHECKS: Mapping[type[Told], Callable[[Any, str, Mapping[str, Model]], None]] = {
    ModelCall: _check_model,
    Feature: _check_feature,
    Batch: _check_batch,
}


def check_depth(path: Sequence[str]) -> None:
    """Raise Invalid when pipelines are nested in a circle or too deep; `path` are names from the outside in."""
    if len(set(path)) < len(path):
        raise _bad(f"pipelines call each other in a circle: {' > '.join(path)}")
    if len(path) > DEEPEST:
        raise _bad(f"pipelines are nested {len(path)} deep, more than {DEEPEST}: {' > '.join(path)}")


def _bad(message: str) -> Invalid:
    return Invalid(message, code="bad_pipeline")
