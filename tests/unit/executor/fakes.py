"""What the executor's unit tests run against: scripted models, memory, features, and stores in dictionaries."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from catena.executor.core.admission import Errand
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import ChatRequest, Context, Delta, Message, Sampling, ToolCall, Usage
from catena.executor.core.events import Finished, Record, RunEvent
from catena.executor.core.parts import Parts, Settings
from catena.executor.core.pipelines.soundness import check_pipeline
from catena.executor.core.ports import Ask, Ended, NoJournal, Piece, Prediction, SemanticCache, Vectors
from catena.executor.core.predicting import Inquiry, predict
from catena.executor.core.running import carry_out
from catena.executor.core.steps import Pipeline, Predicted, Step
from catena.executor.drivers.cache import LruCache
from catena.kit.clock import World, still_world
from catena.kit.errors import CatenaError
from catena.plan.model import Plan, Role, Shape, Stage
from catena.plan.model import Settings as PlanSettings


@dataclass(frozen=True)
class Tools:
    """An answer that asks for tools at once, in fragments."""

    calls: tuple[ToolCall, ...]


Answer = str | Tools | CatenaError | Callable[[Ask], Any]


@dataclass
class Scripted:
    """A provider that answers each model from its list; the last answer stays. Tokens are words.

    It stops before a text of `stop` and after `max_tokens` words, as servers do.
    """

    script: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[Ask] = field(default_factory=list)
    confidence: dict[str, float] = field(default_factory=dict)
    finish: dict[str, str] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    hang: set[str] = field(default_factory=set)
    closed: list[str] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    abandoned: int = 0
    at_once: int = 0
    most_at_once: int = 0

    async def _wait(self) -> None:
        """The seconds that the next call takes until its first word."""
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.late:
                await asyncio.sleep(self.late.pop(0))
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        finally:
            self.at_once -= 1

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        name = ask.model.name
        self.asked.append(ask)
        await self._wait()
        answers = self.script[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, CatenaError):
            raise answer
        answer = answer if isinstance(answer, str | Tools) else answer(ask)
        finish = self.finish.get(name, "stop")
        if isinstance(answer, Tools):
            pieces, finish = [Delta(tool_calls=(part,)) for part in fragments(answer)], "tool_calls"
        else:
            said, cut = stopped(answer, ask.request.sampling)
            words, finish = said.split(" "), "length" if cut else finish
            pieces = [Delta(text=word if place == 0 else f" {word}") for place, word in enumerate(words)]
        try:
            for delta in pieces:
                yield Piece(deltas=(delta,))
                if name in self.hang:
                    await asyncio.Event().wait()
                if name in self.cut:
                    return
            reading = sum(len(turn.content.split()) for turn in ask.request.messages)
            draft = Usage(input_tokens=reading, output_tokens=len(pieces)) if ask.draft_model else Usage()
            ended = Ended(
                usage=Usage(input_tokens=reading, output_tokens=len(pieces)),
                resolved_model=f"{name}#sha",
                confidence=self.confidence.get(name),
                draft_usage=draft,
                drafted_tokens=len(pieces) if ask.draft_model else 0,
            )
            yield Piece(deltas=(Delta(finish_reason=finish),), ended=ended)
        finally:
            self.closed.append(name)

    def models_asked(self) -> list[str]:
        return [ask.model.name for ask in self.asked]

    def said_to(self, name: str, number: int = 0) -> str:
        """What a model read in its `number`-th call, as one text."""
        asks = [ask for ask in self.asked if ask.model.name == name]
        return "\n".join(f"{turn.role}: {turn.content}" for turn in asks[number].request.messages)


def stopped(text: str, sampling: Sampling) -> tuple[str, bool]:
    """What is left of a text under `stop` and `max_tokens`, and whether it was cut."""
    for stop in sampling.stop:
        text = text.partition(stop)[0]
    words = text.split(" ")
    most = sampling.max_tokens or len(words)
    return " ".join(words[:most]), len(words) > most


def fragments(answer: Tools) -> list[ToolCall]:
    """Each call in two pieces, those of different calls interleaved, as servers stream parallel calls."""
    heads = [replace(call, arguments=call.arguments[:2], index=place) for place, call in enumerate(answer.calls)]
    tails = [ToolCall(arguments=call.arguments[2:], index=place) for place, call in enumerate(answer.calls)]
    return heads + tails


class Catalogue:
    def __init__(self, *models: Model) -> None:
        self._models = {model.name: model for model in models}

    @property
    def models(self) -> Mapping[str, Model]:
        return self._models

    async def put(self, model: Model) -> Model:
        self._models[model.name] = model
        return model

    async def listed(self) -> Sequence[Model]:
        return list(self._models.values())


@dataclass
class Memory:
    facts: dict[str, list[str]] = field(default_factory=dict)
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    async def search(self, collection: str, query: str, n_results: int) -> Sequence[Mapping[str, str]]:
        self.asked.append((collection, query, n_results))
        return [{"text": text, "title": "t"} for text in self.facts.get(query, [])][:n_results]


@dataclass
class Features:
    values: dict[str, Any] = field(default_factory=dict)

    async def read(self, entity_type: str, entity_id: str, group: str, features: Sequence[str]) -> Mapping[str, Any]:
        values = dict(self.values.get(f"{entity_type}/{entity_id}", {}))
        return {"values": values, "vector": [value for value in values.values() if isinstance(value, float)]}


class Embedding:
    """Two directions: how much of a text is glad, how much is sad."""

    calls = 0

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        self.calls += 1
        rows = [[1.0 + text.count("good"), 1.0 + text.count("bad")] for text in texts]
        return Vectors(vectors=rows, usage=Usage(input_tokens=len(texts)))


@dataclass
class Predictor:
    """Says what it was asked, and with which parameters."""

    asked: list[tuple[str, list[Any], dict[str, Any]]] = field(default_factory=list)

    async def predict(
        self, model: Model, inputs: Sequence[Any], parameters: Mapping[str, Any], timeout_s: float
    ) -> Prediction:
        self.asked.append((model.name, list(inputs), dict(parameters)))
        return Prediction(values=[{"of": one} for one in inputs], usage=Usage(input_tokens=len(inputs)))


class Pipelines:
    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], list[Pipeline]] = {}

    async def put(self, tenant: str, pipeline: Pipeline) -> Pipeline:
        versions = self.stored.setdefault((tenant, pipeline.name), [])
        versions.append(replace(pipeline, version=len(versions) + 1))
        return versions[-1]

    async def get(self, tenant: str, name: str, version: int = 0) -> Pipeline | None:
        versions = self.stored.get((tenant, name), [])
        return versions[version - 1] if versions else None

    async def listed(self, tenant: str, size: int, after: str) -> Sequence[Pipeline]:
        return [versions[-1] for versions in self.stored.values()]

    async def delete(self, tenant: str, name: str) -> bool:
        return self.stored.pop((tenant, name), None) is not None


class Templates:
    """Takes `{{ name }}` alone; what jinja2 makes of templates is the driver's contract."""

    async def names(self, source: str) -> frozenset[str]:
        return frozenset(re.findall(r"{{ *(\w+)", source))

    async def render(self, source: str, scope: Mapping[str, Any]) -> str:
        return re.sub(r"{{ *(\w+) *}}", lambda found: str(scope[found[1]]), source)


class Records:
    def __init__(self) -> None:
        self.added: list[Record] = []

    def add(self, record: Record) -> None:
        self.added.append(record)


class DictJournal:
    def __init__(self) -> None:
        self.noted: dict[str, bytes] = {}

    async def recall(self, key: str) -> bytes | None:
        return self.noted.get(key)

    async def note(self, key: str, value: bytes) -> None:
        self.noted[key] = value


SMALL = Model(name="small", price_input=1.0, price_output=4.0, draft_for=("large",))
LARGE = Model(name="large", price_input=10.0, price_output=40.0)
THIRD = Model(name="third", price_input=2.0, price_output=2.0)
OUTSIDE = Model(name="outside", provider="openai", capabilities=("logprobs",))
VECTORS = Model(name="vectors", type="embedding")
MOOD = Model(name="mood", type="classification", price_input=3.0)
NAMES = Model(name="names", type="token-classification")
TASTE = Model(name="taste", type="prediction")
PREDICTED = (MOOD, NAMES, TASTE)


@dataclass
class Bed:
    """An executor's parts with a scripted provider behind every model."""

    provider: Scripted
    memory: Memory
    features: Features
    embedding: Embedding
    predictor: Predictor
    records: Records
    pipelines: Pipelines
    parts: Parts

    async def run(self, plan: Plan, text: str = "question", **more: Any) -> tuple[Finished, list[RunEvent]]:
        """Run a plan on one question and return how it finished and all that happened."""
        events: list[RunEvent] = []

        async def emit(event: RunEvent) -> None:
            events.append(event)

        journal = more.pop("journal", NoJournal())
        finished = await carry_out(self.parts, errand(plan, text, **more), emit, journal)
        return finished, events


def bed(
    world: World | None = None,
    settings: Settings | None = None,
    models: tuple[Model, ...] = (),
    semantic: SemanticCache | None = None,
    **script: str | Tools | list[Any],
) -> Bed:
    """Models `small`, `large`, `third`, `outside` that say what the script has for them."""
    answers = {name: said if isinstance(said, list) else [said] for name, said in script.items()}
    provider, memory, features, records = Scripted(answers), Memory(), Features(), Records()
    embedding, predictor, pipelines = Embedding(), Predictor(), Pipelines()
    world = world or still_world()
    parts = Parts(
        catalogue=Catalogue(*(models or (SMALL, LARGE, THIRD, OUTSIDE)), VECTORS, *PREDICTED),
        providers={"local": provider, "openai": provider},
        embeddings={"local": embedding},
        predictors={"local": predictor},
        memory=memory,
        features=features,
        pipelines=pipelines,
        records=records,
        templates=Templates(),
        cache=LruCache(size=10, ttl_s=60, clock=world.clock),
        semantic=semantic,
        world=world,
        settings=settings or Settings(),
        sleep=no_sleep,
    )
    return Bed(provider, memory, features, embedding, predictor, records, pipelines, parts)


async def no_sleep(seconds: float) -> None:
    """Pauses between attempts take no time."""


def errand(plan: Plan, text: str = "question", **more: Any) -> Errand:
    """One question for a plan."""
    sampling = more.pop("sampling", Sampling())
    shape = {name: more.pop(name) for name in ("json_schema", "regex", "choices") if name in more}
    request = ChatRequest(messages=(Message(role="user", content=text),), sampling=sampling, **shape)
    more.setdefault("context", Context())
    more.setdefault("left_s", 30.0)
    return Errand(tenant=more.pop("tenant", "acme"), plan=plan, request=more.pop("request", request), **more)


def stage(role: Role, model: str, **more: Any) -> Stage:
    return Stage(name=more.pop("name", str(role)), role=role, model=model, **more)


def plan(shape: Shape, *stages: Stage, **settings: Any) -> Plan:
    return Plan(shape=shape, stages=stages, settings=PlanSettings(**{"min_chars": 0, **settings}))


def members(*models: str) -> tuple[Stage, ...]:
    return tuple(stage(Role.MEMBER, model, name=f"member-{number}") for number, model in enumerate(models, 1))


async def first_events(events: Any, many: int) -> list[RunEvent]:
    """The first events of a run, which is then left."""
    found = []
    async with aclosing(events):
        async for event in events:
            found.append(event)
            if len(found) == many:
                break
    return found


def step(step_name: str, kind: str, /, on_error: str = "fail", default: Any = None, **config: Any) -> Step:
    return Step(name=step_name, type=kind, config=config, on_error=on_error, default_output=default)


def pipeline(*steps: Step, name: str = "p") -> Pipeline:
    return Pipeline(name=name, steps=steps)


async def predicted(table: Bed, *steps: Step, data: Any = "in", **more: Any) -> Predicted:
    made = pipeline(*steps)
    check_pipeline(made, table.parts.models)
    await table.pipelines.put("acme", made)
    return await predict(table.parts, Inquiry(tenant="acme", model_id="pipeline:p", data=data, left_s=9.0, **more))
