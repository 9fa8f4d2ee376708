"""`Predict`: a pipeline or a model as a function of one value, or of many at once."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from catena.executor.core.admission import Errand, check_context, check_plan, check_request
from catena.executor.core.catalogue import find
from catena.executor.core.chat import NOTHING_USED, ChatRequest, Choice, Context, Message, Sampling, Usage
from catena.executor.core.driving import drive
from catena.executor.core.events import Finished, Saved
from catena.executor.core.execution import Execution
from catena.executor.core.inputs import PREDICTED
from catena.executor.core.parts import Parts, facts
from catena.executor.core.pipelines.running import all_or_first_error, run_pipeline
from catena.executor.core.pipelines.templates import as_text
from catena.executor.core.pipelining import bench_of, embedded, hinted, predicted, stored
from catena.executor.core.ports import NoJournal
from catena.executor.core.running import begin, recorded
from catena.executor.core.steps import Pipeline, Predicted, StepResult
from catena.executor.core.verifiers import judge
from catena.kit.errors import Invalid, Missing
from catena.plan.build import sequential
from catena.plan.model import Plan, Shape

PREFIX = "pipeline:"
MOST_INPUTS = 10_000
CHANGING = frozenset({"feature", "memory", "pipeline"})
"""Steps whose output may be another one tomorrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """One input for `pipeline:<name>` or a model."""

    tenant: str
    model_id: str
    data: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)
    context: Context = field(default_factory=Context)
    left_s: float
    no_cache: bool = False


async def predict(parts: Parts, asked: Inquiry) -> Predicted:
    """The output for one input. Raises the error of the step that failed."""
    check_context(asked.context)
    pipeline = await _pipeline(parts, asked)
    key = _key(asked, pipeline) if _repeatable(parts, asked, pipeline) else ""
    known: Predicted | None = parts.cache.get(key) if key and not asked.no_cache else None
    execution_id = parts.world.new_id()
    if known is not None:
        saved = Saved(usage=known.usage, cost_usd=known.cost_usd, execution_id=known.execution_id)
        free = replace(known, cached=True, cost_usd=0.0, usage=NOTHING_USED, duration_ms=0.0, saved=saved)
        return replace(free, execution_id=execution_id)
    made = await _work_out(parts, asked, pipeline, execution_id)
    if key and not asked.no_cache:
        parts.cache.put(key, made, [asked.model_id])
    return made


async def predict_many(parts: Parts, asked: Sequence[Inquiry], concurrency: int) -> list[Predicted]:
    """The outputs in the order of the inputs, `concurrency` at a time; the first error ends the rest."""
    if len(asked) > MOST_INPUTS:
        raise Invalid(f"{len(asked)} inputs > {MOST_INPUTS}; send them in several calls", code="too_many_inputs")
    if asked and _computes(parts, asked[0].model_id) and all(_is_one(one.data) for one in asked):
        return await _compute_many(parts, asked)
    left = iter(enumerate(asked))
    found: dict[int, Predicted] = {}

    async def worker() -> None:
        for place, one in left:
            found[place] = await predict(parts, one)

    await all_or_first_error([worker() for _ in range(min(concurrency or 10, len(asked)))])
    return [found[place] for place in range(len(asked))]


async def _work_out(parts: Parts, asked: Inquiry, pipeline: Pipeline | None, execution_id: str) -> Predicted:
    plan = Plan(shape=Shape.SEQUENTIAL, pipeline=pipeline.name) if pipeline else sequential(asked.model_id)
    errand = Errand(
        tenant=asked.tenant,
        plan=plan,
        request=_request(asked),
        context=asked.context,
        left_s=asked.left_s,
    )
    clock = parts.world.clock
    started = clock.monotonic()
    made: list[Predicted] = []

    async def work(run: Execution) -> Finished:
        output = await _output(parts, asked, pipeline, run, errand)
        took_ms = (clock.monotonic() - started) * 1000
        made.append(
            replace(
                output,
                execution_id=execution_id,
                duration_ms=took_ms,
                cost_usd=run.spent_usd,
                usage=run.usage,
            )
        )
        return _finished(made[0], errand, run)

    await recorded(parts, errand, execution_id, begin(parts, errand, _nobody, NoJournal()), work)
    return made[0]


async def _output(parts: Parts, asked: Inquiry, pipeline: Pipeline | None, run: Execution, errand: Errand) -> Predicted:
    if pipeline is not None:
        bench = bench_of(parts, run)
        value, steps = await run_pipeline(bench, pipeline, asked.data, asked.parameters)
        return Predicted(result=value, steps=steps, scores=tuple(bench.scores), duration_ms=0.0, execution_id="")
    model = find(parts.models, asked.model_id)
    if model.type == "embedding":
        texts = asked.data if isinstance(asked.data, list) else [asked.data]
        truncate = asked.parameters.get("truncate") is True
        made = await embedded(parts, run, asked.model_id, _strings(texts), truncate=truncate)
        vectors = [list(row) for row in made.vectors]
        value = vectors if isinstance(asked.data, list) else vectors[0]
        return Predicted(result=value, duration_ms=0.0, execution_id="")
    if model.type in PREDICTED:
        value = await predicted(parts, run, model, asked.data, asked.parameters)
        return Predicted(result=value, duration_ms=0.0, execution_id="")
    check_request(errand.request)
    check_plan(errand.plan, parts.models)
    strategy = parts.strategies[errand.plan.shape](errand.plan, errand.request, facts(parts))
    decision = await drive(run, strategy)
    scores = judge(errand.request, decision, parts.verifiers, parts.settings.verifiers)
    answer = decision.choices[0].text if decision.choices else ""
    return Predicted(result=answer, scores=scores, duration_ms=0.0, execution_id="")


def _finished(made: Predicted, errand: Errand, run: Execution) -> Finished:
    answer = Choice(message=Message(role="assistant", content=as_text(made.result)))
    return Finished(
        execution_id=made.execution_id,
        choices=(answer,),
        usage=run.usage,
        cost_usd=run.spent_usd,
        duration_ms=made.duration_ms,
        stages=tuple(run.stages),
        model=errand.plan.main_model or (run.stages[-1].model if run.stages else ""),
        plan=errand.plan,
        scores=made.scores,
    )


async def _compute_many(parts: Parts, asked: Sequence[Inquiry]) -> list[Predicted]:
    """One call for all: a batch costs a model that does not generate little more than one."""
    together = await predict(parts, replace(asked[0], data=[one.data for one in asked]))
    share = Usage(input_tokens=together.usage.input_tokens // len(asked))
    return [
        replace(together, result=row, cost_usd=together.cost_usd / len(asked), usage=share) for row in together.result
    ]


async def _pipeline(parts: Parts, asked: Inquiry) -> Pipeline | None:
    if asked.model_id.startswith(PREFIX):
        return await stored(parts, asked.tenant, asked.model_id.removeprefix(PREFIX))
    try:
        find(parts.models, asked.model_id)
    except Missing as error:
        raise await hinted(parts, asked.tenant, [asked.model_id], error) from error
    return None


def _computes(parts: Parts, model_id: str) -> bool:
    """Whether it is a model that does not generate."""
    return not model_id.startswith(PREFIX) and find(parts.models, model_id).type != "chat"


def _is_one(data: Any) -> bool:
    """Whether it is a single text or feature vector, not itself a list of them."""
    if isinstance(data, list):
        return bool(data) and not any(isinstance(item, list | str | Mapping) for item in data)
    return isinstance(data, str | Mapping)


def _strings(texts: Sequence[Any]) -> list[str]:
    for text in texts:
        if not isinstance(text, str):
            raise Invalid(f"cannot embed a {type(text).__name__}; send a text or a list of texts", code="bad_input")
    return list(texts)


def _request(asked: Inquiry) -> ChatRequest:
    """A text is a user's turn; `{messages: [...]}` and `{prompt: ...}` are themselves; anything else is read as JSON.

    Parameters are OpenAI's (temperature, max_tokens, top_p, seed, stop, penalties) with top_k, min_p,
    repetition_penalty, ignore_eos and min_tokens.
    """
    sampling = _sampling(asked.parameters)
    data = asked.data
    try:
        if isinstance(data, Mapping) and "messages" in data:
            turns = tuple(msgspec.convert(turn, Message) for turn in data["messages"])
            return ChatRequest(messages=turns, sampling=sampling)
        if isinstance(data, Mapping) and isinstance(data.get("prompt"), str):
            return ChatRequest(prompt=data["prompt"], sampling=sampling)
    except (msgspec.ValidationError, TypeError) as error:
        raise Invalid(f"data.messages: {error}; send [{{role, content}}]", code="bad_input") from error
    if isinstance(data, Mapping) and isinstance(data.get("text"), str):
        data = data["text"]
    return ChatRequest(messages=(Message(role="user", content=as_text(data)),), sampling=sampling)


def _sampling(parameters: Mapping[str, Any]) -> Sampling:
    wanted = {name: parameters[name] for name in SAMPLING & set(parameters)}
    if isinstance(wanted.get("stop"), str):
        wanted["stop"] = [wanted["stop"]]
    try:
        return msgspec.convert(wanted, Sampling)
    except msgspec.ValidationError as error:
        raise Invalid(f"parameters: {error}", code="bad_parameters") from error


SAMPLING = frozenset(
    {
        "temperature",
        "max_tokens",
        "top_p",
        "seed",
        "stop",
        "presence_penalty",
        "frequency_penalty",
        "top_k",
        "min_p",
        "repetition_penalty",
        "ignore_eos",
        "min_tokens",
    }
)


def _repeatable(parts: Parts, asked: Inquiry, pipeline: Pipeline | None) -> bool:
    """Whether the output would come out the same: nothing read that changes, no chance in the draw."""
    if pipeline is None:
        if _computes(parts, asked.model_id):
            return True
        sampling = _sampling(asked.parameters)
        return sampling.seed is not None or sampling.temperature == 0
    return all(_still(step.type, step.config) for step in pipeline.steps)


def _still(kind: str, config: Mapping[str, Any]) -> bool:
    if kind == "batch":
        inner = config.get("step", {})
        return _still(inner.get("type", ""), inner.get("config", {}))
    if kind == "model" and config.get("kind", "chat") in ("chat", "completion"):
        return config.get("shape") != "search" and (config.get("temperature") == 0 or config.get("seed") is not None)
    return kind not in CHANGING


def _key(asked: Inquiry, pipeline: Pipeline | None) -> str:
    version = pipeline.version if pipeline else 0
    told = msgspec.json.encode([asked.model_id, version, asked.data, asked.parameters], order="sorted")
    return f"{asked.tenant}/predict/{hashlib.sha256(told).hexdigest()}"


async def _nobody(_event: object) -> None:
    """Nobody listens."""


__all__ = ["Inquiry", "Predicted", "StepResult", "predict", "predict_many"]
