"""Pipelines as the executor's parts see them: stored, sound, given models and memory, answering a conversation."""

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from catena.executor.core.actions import Decision
from catena.executor.core.admission import Errand
from catena.executor.core.billing import ESTIMATED
from catena.executor.core.catalogue import Kind, Model, cost_usd, find, only
from catena.executor.core.chat import Choice, Message
from catena.executor.core.events import StageResult
from catena.executor.core.execution import Execution, told
from catena.executor.core.inputs import inputs_of
from catena.executor.core.parts import Parts, facts, plan_of
from catena.executor.core.pipelines.running import Bench, run_pipeline
from catena.executor.core.pipelines.soundness import check_depth, nested_in
from catena.executor.core.pipelines.templates import as_text
from catena.executor.core.ports import Prediction, Vectors
from catena.executor.core.prompts import question
from catena.executor.core.steps import Pipeline
from catena.kit.errors import Invalid, Late, Missing, Unavailable
from catena.plan.model import Role

EMBED, PREDICT = "embed", "predict"
SILENT = frozenset({EMBED, PREDICT})
"""Stages that say nothing themselves."""


def bench_of(parts: Parts, run: Execution) -> Bench:
    """What the steps of a pipeline work with, all of it billed to `run`."""

    async def embed(model: str, texts: Sequence[str], truncate: bool, key: str) -> Vectors:
        return await embedded(parts, run, model, texts, truncate=truncate, billing=Billing(verb=EMBED, key=key))

    async def predict(kind: Kind, model: str, data: Any, parameters: Mapping[str, Any], key: str) -> Any:
        return await predicted(parts, run, model_of_type(parts, model, kind), data, parameters, key)

    async def pipeline(name: str, version: int) -> Pipeline:
        return await held(parts, run, name, version)

    return Bench(
        run=run,
        facts=facts(parts, run.context.memory_collection),
        features=parts.features,
        embed=embed,
        predict=predict,
        render=parts.templates.render,
        plan_of=lambda shape, model: plan_of(parts, shape, model),
        pipeline=pipeline,
    )


async def held(parts: Parts, run: Execution, name: str, version: int = 0) -> Pipeline:
    """`stored`, for one run: after a crash it goes on with the steps that it began with, whatever was put since."""

    async def read() -> Pipeline:
        return await stored(parts, run.tenant, name, version)

    return await run.once(f"pipeline:{name}:{version}", Pipeline, read)


async def stored(parts: Parts, tenant: str, name: str, version: int = 0) -> Pipeline:
    """The tenant's pipeline, or the shared one. Raises Missing (`unknown_pipeline`) naming close matches."""
    found = await parts.pipelines.get(tenant, name, version)
    if found is not None:
        return found
    names = [pipeline.name for pipeline in await parts.pipelines.listed(tenant, 200, "")]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(names[:10]) or 'none yet'}"
    wanted = f"{name!r} version {version}" if version else repr(name)
    raise Missing(f"unknown pipeline {wanted}; {hint}", code="unknown_pipeline")


async def hinted(parts: Parts, tenant: str, names: Iterable[str], error: Missing) -> Missing:
    """`error`; where one of `names` is no model but a pipeline, an error that tells how to ask for that."""
    for name in names:
        if name not in parts.models and await parts.pipelines.get(tenant, name) is not None:
            return Missing(f"unknown model {name!r}; the pipeline of that name is 'pipeline:{name}'", code=error.code)
    return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """What a call to a model that does not generate is recorded as: a stage of this name and role.

    `key` names it in the journal; empty: it is not noted, because it may be made again. Tokens that nobody counted are
    estimated from the `chars` read.
    """

    verb: str
    role: Role = Role.MAIN
    key: str = ""
    chars: int = 0


EMBEDDING = Billing(verb=EMBED)


async def embedded(
    parts: Parts,
    run: Execution,
    name: str,
    texts: Sequence[str],
    *,
    truncate: bool = False,
    billing: Billing = EMBEDDING,
) -> Vectors:
    """Vectors of the texts. `name` empty: the default embedding model. Raises Missing, Unavailable, Late."""
    model = embedding_model(parts, name)
    provider = parts.embeddings.get(model.provider)
    if provider is None:
        raise Unavailable(f"provider {model.provider!r} of {model.name!r} makes no embeddings", code="no_provider")

    async def work() -> Vectors:
        made = await provider.embed(model, texts, run.left_s(), truncate=truncate)
        return Vectors(vectors=[list(row) for row in made.vectors], usage=made.usage)

    return await _billed(run, model, replace(billing, chars=sum(map(len, texts))), work, Vectors)


async def predicted(
    parts: Parts, run: Execution, model: Model, data: Any, parameters: Mapping[str, Any], key: str = ""
) -> Any:
    """What a model that labels, finds spans or reads feature vectors makes of one input, or of a list of them.

    Raises Invalid (`bad_input`), Unavailable, Late.
    """
    inputs, alone = inputs_of(model.type, data)
    provider = parts.predictors.get(model.provider)
    if provider is None:
        raise Unavailable(f"provider {model.provider!r} of {model.name!r} predicts nothing", code="no_provider")

    async def work() -> Prediction:
        return await provider.predict(model, inputs, parameters, run.left_s())

    billing = Billing(verb=PREDICT, key=key, chars=sum(len(as_text(one)) for one in inputs))
    values = (await _billed(run, model, billing, work, Prediction)).values
    return values[0] if alone else list(values)


Made = TypeVar("Made", Vectors, Prediction)


async def _billed(
    run: Execution, model: Model, billing: Billing, work: Callable[[], Awaitable[Made]], kind: type[Made]
) -> Made:
    """What a call gave, or gave before a crash; either way it is written down as a stage. Raises Late."""
    key = f"{billing.key}{billing.verb}" if billing.key else ""
    recalled = await run.journal.recall(key) if key else None
    if recalled is not None:
        kept = msgspec.json.decode(recalled, type=dict[str, msgspec.Raw])
        await run.tell(run.bill([msgspec.json.decode(kept["stage"], type=StageResult)]))
        return msgspec.json.decode(kept["made"], type=kind)
    clock = run.world.clock
    started = clock.monotonic()
    try:
        async with asyncio.timeout(max(0.0, run.left_s())):
            made = await work()
    except TimeoutError:
        late = f"{model.name} did not {billing.verb} in time; send less or allow more"
        raise Late(late, code="deadline_exceeded") from None
    usage = made.usage or run.paces.guess(model.name, chars_in=billing.chars, chars_out=0)
    if made.usage is not None:
        run.paces.learn(model.name, billing.chars, made.usage)
    stage = StageResult(
        name=billing.verb,
        role=billing.role,
        model=model.name,
        duration_ms=(clock.monotonic() - started) * 1000,
        usage=usage,
        cost_usd=cost_usd(model, usage),
        reason=ESTIMATED if made.usage is None else "",
    )
    made = replace(made, usage=usage)
    if key:
        await run.journal.note(key, msgspec.json.encode({"made": made, "stage": stage}))
    await run.tell(run.bill([stage]))
    return made


def embedding_model(parts: Parts, name: str) -> Model:
    """The embedding model of that name, or the default one. Raises Missing, Invalid."""
    wanted = name or parts.settings.embedding_model
    if not wanted:
        known = only(list(parts.models.values()), "embedding")
        if not known:
            raise Missing("the catalogue has no embedding model; add one with PutModel", code="unknown_model")
        wanted = known[0].name
    return model_of_type(parts, wanted, "embedding")


def model_of_type(parts: Parts, name: str, kind: Kind) -> Model:
    """The model of that name. Raises Missing, and Invalid (`wrong_model_type`) where it is of another type."""
    model = find(parts.models, name)
    if model.type != kind:
        raise Invalid(f"{model.name!r} is of type {model.type}; name one of type {kind}", code="wrong_model_type")
    return model


async def as_answer(parts: Parts, errand: Errand, run: Execution) -> Decision:
    """The answer of `pipeline:<name>` to a conversation; it streams where the last step is a model's own words.

    Its steps see the last user turn as `{data.text}`, and `{input}` at first, all turns as `{data.messages}`, who asks
    as `{data.context.user_id}` and so on, and the request's labels as `{parameters}`.
    """
    pipeline = await held(parts, run, errand.plan.pipeline)
    turns = [{"role": turn.role, "content": turn.content} for turn in errand.request.messages]
    text = question(errand.request)
    data = {"text": text, "messages": turns, "prompt": errand.request.prompt, "context": told(errand.context)}
    bench = replace(bench_of(parts, run), live=run.streams)
    run.streams = False
    value, _ = await run_pipeline(bench, pipeline, data, dict(errand.context.metadata), start=text)
    whole = Choice(message=Message(role="assistant", content=as_text(value)))
    choices = bench.streamed[-1].choices if bench.streamed else (whole,)
    spoke = [stage.model for stage in run.stages if stage.outcome == "accepted" and stage.name not in SILENT]
    model = spoke[-1] if spoke else f"pipeline:{pipeline.name}"
    return Decision(choices=choices, model=model, streamed=bool(bench.streamed), scores=tuple(bench.scores))


async def check_nesting(parts: Parts, tenant: str, pipeline: Pipeline, path: tuple[str, ...] = ()) -> None:
    """Raise Missing when a nested pipeline does not exist, Invalid when they form a circle or are too deep."""
    path = (*path, pipeline.name)
    check_depth(path)
    for name, version in nested_in(pipeline):
        if name in path:
            check_depth((*path, name))
        await check_nesting(parts, tenant, await stored(parts, tenant, name, version), path)
