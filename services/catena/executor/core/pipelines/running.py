"""Runs the steps of a pipeline, in order, each within its time and under its rule for errors."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from catena.executor.core.actions import Decision, Lookup
from catena.executor.core.catalogue import Kind
from catena.executor.core.chat import ChatRequest, Message, Sampling, Score
from catena.executor.core.driving import drive, look_up
from catena.executor.core.execution import Execution
from catena.executor.core.extraction import extract_json
from catena.executor.core.pipelines import cleaning
from catena.executor.core.pipelines.nearest import nearest_label
from catena.executor.core.pipelines.settings import (
    Batch,
    Clean,
    Feature,
    ModelCall,
    Nested,
    Recall,
    Template,
    Told,
    Transform,
)
from catena.executor.core.pipelines.soundness import check_depth, read_config
from catena.executor.core.pipelines.templates import as_text, fill, names, text
from catena.executor.core.ports import Features, Vectors
from catena.executor.core.steps import DEFAULT_TIMEOUT_S, Pipeline, Step, StepResult
from catena.executor.core.strategies import STRATEGIES, Facts
from catena.executor.core.verifiers import exact
from catena.kit.errors import CatenaError, Invalid, Late
from catena.plan.model import Plan

Scope = Mapping[str, Any]
MANY = 32
"""Items a call to a model that does not generate: more would make the first ones wait for the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What steps work with. `render(template, scope)` runs a template in its sandbox.

    `plan_of(shape, model)` gives a model step its plan, `embed(model, texts, truncate, key)` vectors, and
    `predict(kind, model, data, parameters, key)` what a model of that kind makes of data; the key names the call in the
    journal.
    `path`: the pipelines around this one. `scores`: what was judged on the way. `live`: the words of the last step may
    go to the client as they come; `streamed` has the decision whose words did.
    """

    run: Execution
    facts: Facts
    features: Features
    embed: Callable[[str, Sequence[str], bool, str], Awaitable[Vectors]]
    predict: Callable[[Kind, str, Any, Mapping[str, Any], str], Awaitable[Any]]
    render: Callable[[str, Scope], Awaitable[str]]
    plan_of: Callable[[str, str], Plan]
    pipeline: Callable[[str, int], Awaitable[Pipeline]]
    path: tuple[str, ...] = ()
    scores: list[Score] = field(default_factory=list)
    live: bool = False
    streamed: list[Decision] = field(default_factory=list)


async def run_pipeline(
    bench: Bench, pipeline: Pipeline, data: Any, parameters: Mapping[str, Any], key: str = "", start: Any = None
) -> tuple[Any, tuple[StepResult, ...]]:
    """The last output and every step's. `start` is what the first step finds as `{input}`; None: the data.

    Raises the error of a step whose rule is to fail.
    """
    inside = replace(bench, path=(*bench.path, pipeline.name))
    check_depth(inside.path)
    scope: dict[str, Any] = {"data": data, "parameters": dict(parameters), "input": data if start is None else start}
    results: list[StepResult] = []
    for step in pipeline.steps:
        here = replace(inside, live=inside.live and step is pipeline.steps[-1] and step.on_error == "fail")
        result = await _step(here, step, scope, f"{key}{step.name}.")
        results.append(result)
        scope[step.name] = result.output
        if not (result.error and step.on_error == "skip"):
            scope["input"] = result.output
    return scope["input"], tuple(results)


async def _step(bench: Bench, step: Step, scope: Scope, key: str) -> StepResult:
    clock = bench.run.world.clock
    started = clock.monotonic()
    limit_s = min(step.timeout_s or DEFAULT_TIMEOUT_S, max(0.0, bench.run.left_s()))
    output, failure = None, ""
    try:
        told = read_config(step.type, step.config, step.name)
        async with asyncio.timeout(limit_s):
            output = await perform(bench, told, scope, key)
    except TimeoutError:
        late = Late(f"step {step.name!r} took longer than {limit_s:g} s; raise its timeout_s", code="step_timeout")
        if step.on_error == "fail":
            raise late from None
        failure = f"{late.code}: {late.message}"
    except CatenaError as error:
        if step.on_error == "fail":
            raise
        failure = f"{error.code}: {error.message}"
    if failure and step.on_error == "default":
        output = step.default_output
    took_ms = (clock.monotonic() - started) * 1000
    return StepResult(name=step.name, output=output, duration_ms=took_ms, error=failure)


async def perform(bench: Bench, told: Told, scope: Scope, key: str) -> Any:
    """The output of one step, whatever its type."""
    match told:
        case Clean():
            value = fill(told.input, scope)
            for operation in told.operations:
                value = cleaning.apply(operation, value)
            return value
        case Transform():
            return fill(told.value, scope)
        case Template():
            named = {name.replace("-", "_"): value for name, value in scope.items()}
            return await bench.render(told.template, named)
        case Feature():
            return await _featured(bench, told, scope, key)
        case Recall():
            return await _recall(bench, told, scope, key)
        case ModelCall():
            return await _model(bench, told, scope, key)
        case Nested():
            inner = await bench.pipeline(told.name, told.version)
            return (await run_pipeline(bench, inner, fill(told.data, scope), scope["parameters"], key))[0]
        case Batch():
            return await _batch(bench, told, scope, key)
    raise AssertionError(f"no such step: {told}")


async def _featured(bench: Bench, told: Feature, scope: Scope, key: str) -> dict[str, Any]:
    entity = text(told.entity_id, scope)

    async def read() -> dict[str, Any]:
        return dict(await bench.features.read(told.entity_type, entity, told.group, told.features))

    return await bench.run.once(f"{key}features", dict[str, Any], read)


async def _recall(bench: Bench, told: Recall, scope: Scope, key: str) -> dict[str, Any]:
    asked = Lookup(
        query=text(told.query, scope),
        collection=text(told.collection, scope) or bench.facts.collection,
        n_results=told.n_results,
        result_format=told.format,
    )
    found = await look_up(bench.run, asked, f"{key}memory")
    return {"hits": found, "text": "\n".join(found)}


async def _model(bench: Bench, told: ModelCall, scope: Scope, key: str) -> Any:
    name = text(told.model, scope)
    if told.kind == "embedding":
        value = fill(told.input, scope)
        vectors = await bench.embed(name, _texts(value), told.truncate, key)
        return [list(row) for row in vectors.vectors] if isinstance(value, list) else list(vectors.vectors[0])
    if told.kind == "classification" and told.labels:
        return await _classify(bench, told, name, _texts(fill(told.input, scope)), key)
    if told.model_type != "chat":
        parameters = {"truncate": told.truncate, "top": told.top, "aggregation": told.aggregation}
        return await bench.predict(told.model_type, name, fill(told.input, scope), parameters, key)
    decision = await _ask(bench, told, name, scope, key)
    answer = decision.choices[0].text if decision.choices else ""
    if told.expected:
        bench.scores.append(exact(answer, text(told.expected, scope)))
    return extract_json(answer) if told.json_schema is not None else answer


async def _ask(bench: Bench, told: ModelCall, name: str, scope: Scope, key: str) -> Decision:
    plan = bench.plan_of(told.shape, name)
    step = key.rstrip(".")
    alone = len(plan.stages) == 1
    stages = tuple(replace(stage, name=step if alone else f"{step}/{stage.name}") for stage in plan.stages)
    weights = {f"{step}/{name}": weight for name, weight in plan.settings.weights.items()}
    plan = replace(plan, stages=stages, settings=replace(plan.settings, weights=weights))
    # What becomes JSON is not what the client gets.
    bench.run.streams = bench.live and told.json_schema is None
    decision = await drive(bench.run, STRATEGIES[plan.shape](plan, _request(told, scope), bench.facts), key)
    if decision.streamed:
        bench.streamed.append(decision)
    return decision


def _request(told: ModelCall, scope: Scope) -> ChatRequest:
    sampling = Sampling(max_tokens=told.max_tokens, temperature=told.temperature, seed=told.seed, stop=tuple(told.stop))
    if told.kind == "completion":
        return ChatRequest(prompt=text(told.prompt, scope), sampling=sampling)
    system = (Message(role="system", content=text(told.system, scope)),) if told.system else ()
    turns = [
        Message(role=turn.get("role", "user"), content=text(turn.get("content", ""), scope)) for turn in told.messages
    ]
    asked = turns or [Message(role="user", content=text(told.prompt, scope))]
    return ChatRequest(messages=(*system, *asked), sampling=sampling, json_schema=told.json_schema)


async def _classify(bench: Bench, told: ModelCall, name: str, texts: Sequence[str], key: str) -> Any:
    examples = [example for group in told.labels.values() for example in group]
    owners = [label for label, group in told.labels.items() for _ in group]
    vectors = (await bench.embed(name, [*examples, *texts], told.truncate, key)).vectors
    found = [nearest_label(vector, vectors[: len(examples)], owners) for vector in vectors[len(examples) :]]
    return found if len(found) > 1 else found[0]


def _texts(value: Any) -> list[str]:
    found = [as_text(item) for item in value] if isinstance(value, list) else [as_text(value)]
    if not found:
        raise Invalid("there is nothing to embed; give at least one text", code="empty_input")
    return found


async def _batch(bench: Bench, told: Batch, scope: Scope, key: str) -> list[Any]:
    """The step's outputs in the order of the items; the first failure ends the rest."""
    items = fill(told.items, scope)
    if not isinstance(items, list):
        raise Invalid(f"a batch needs a list, got a {type(items).__name__}; set config.items", code="not_a_list")
    inner = read_config(told.step.type, told.step.config, key)
    size = told.size if told.size > 1 or not _takes_many(inner, items) else MANY
    if size > 1:
        items = [items[start : start + size] for start in range(0, len(items), size)]
    gate, quiet = asyncio.Semaphore(told.concurrency), replace(bench, live=False)

    async def one(place: int, item: Any) -> Any:
        async with gate:
            seen = {**scope, "item": item, "index": place, "input": item}
            return await perform(quiet, inner, seen, f"{key}{place}.")

    outputs = await all_or_first_error([one(place, item) for place, item in enumerate(items)])
    if size == 1:
        return outputs
    return [piece for output in outputs for piece in (output if isinstance(output, list) else [output])]


def _takes_many(told: Told, items: list[Any]) -> bool:
    """Whether a model that does not generate is asked for each item as it is: then one call does for many."""
    if not isinstance(told, ModelCall) or told.model_type == "chat" or told.input not in ("{item}", "{input}"):
        return False
    rows = told.kind == "prediction"
    alone = all(isinstance(item, str | Mapping) or (rows and _is_row(item)) for item in items)
    return alone and not {"item", "index", "input"} & set(names(told.model))


def _is_row(item: Any) -> bool:
    return isinstance(item, list) and not any(isinstance(value, list | Mapping) for value in item)


async def all_or_first_error(work: Sequence[Awaitable[Any]]) -> list[Any]:
    """The results in order. Raises the first error as it is, when the rest has been cancelled."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
