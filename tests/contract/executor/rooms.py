"""The rooms behind an executor under test: real gRPC servers whose answers are scripted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catena.api.adapters.v1 import adapters_pb2, adapters_pb2_grpc
from catena.api.executor.v1 import executor_pb2, executor_pb2_grpc
from catena.api.features.v1 import features_pb2, features_pb2_grpc
from catena.api.memory.v1 import memory_pb2, memory_pb2_grpc
from catena.api.types.v1 import types_pb2
from catena.executor.app import open_executor
from catena.executor.config import ExecutorConfig
from catena.executor.handlers.values import to_value
from catena.kit.chassis import service_token
from catena.kit.clock import World
from catena.kit.config import BusConfig, House, ModelConfig, PriceConfig, SqlConfig
from catena.kit.dial import dial
from catena.kit.errors import Invalid, Missing
from catena.kit.serve import caller, open_server
from catena.plan.model import Plan
from catena.plan.wire import plan_to_proto


@dataclass
class Adapters(adapters_pb2_grpc.AdaptersServiceServicer):
    """Echoes the last turn in capitals, a delta a word; `hold` keeps it from ending, `quit` from telling the end."""

    asked: list[adapters_pb2.GenerateRequest] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    hold: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    adapters: list[adapters_pb2.Adapter] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    bases: list[adapters_pb2.Base] = field(default_factory=list)

    async def Generate(
        self, request: adapters_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[adapters_pb2.GenerateResponse]:
        self.asked.append(request)
        self.tenants.append(caller().tenant)
        if request.model.endswith("@gone"):
            raise Missing("unknown adapter 'gone'; did you mean code?", code="unknown_adapter")
        turns = request.request.messages
        text = request.request.prompt or turns[-1].content
        if len(text) > 1000:
            raise Invalid("1000 characters are too many; shorten it", code="context_length_exceeded")
        words = text.upper().split(" ")
        for place, word in enumerate(words):
            delta = types_pb2.Delta(text=word if place == 0 else f" {word}")
            yield adapters_pb2.GenerateResponse(deltas=[delta])
            if request.model in self.hold:
                try:
                    await self.released.wait()
                finally:
                    self.cancelled.set()
        if request.model in self.cut:
            return
        reading = types_pb2.Usage(input_tokens=10, output_tokens=len(words))
        done = adapters_pb2.GenerateDone(
            usage=reading,
            resolved_model=f"{request.model}#sha256:1",
            min_probability=0.9,
            first_token_ms=1.0,
            load_ms=0.25,
        )
        if request.draft_model:
            done.draft_usage.CopyFrom(types_pb2.Usage(input_tokens=10, output_tokens=20))
            done.drafted_tokens, done.accepted_tokens = 20, 15
        yield adapters_pb2.GenerateResponse(deltas=[types_pb2.Delta(finish_reason="stop")], done=done)

    async def ListAdapters(self, request: Any, context: Any) -> adapters_pb2.ListAdaptersResponse:
        found = [one for one in self.adapters if one.signer in ("", caller().tenant)]
        return adapters_pb2.ListAdaptersResponse(adapters=found)

    async def ListBases(self, request: Any, context: Any) -> adapters_pb2.ListBasesResponse:
        return adapters_pb2.ListBasesResponse(bases=self.bases)


@dataclass
class Memory(memory_pb2_grpc.MemoryServiceServicer):
    """Finds one chunk that quotes the query."""

    asked: list[memory_pb2.SearchRequest] = field(default_factory=list)

    async def Search(self, request: memory_pb2.SearchRequest, context: Any) -> memory_pb2.SearchResponse:
        self.asked.append(request)
        chunk = memory_pb2.Chunk(text=f"about {request.query}", path="a.py", name="f")
        return memory_pb2.SearchResponse(hits=[memory_pb2.Hit(chunk=chunk, score=1.0)])


@dataclass
class Features(features_pb2_grpc.FeaturesServiceServicer):
    """Knows the tier of every user."""

    values: dict[str, Any] = field(default_factory=lambda: {"tier": "gold"})

    async def Get(self, request: features_pb2.GetRequest, context: Any) -> features_pb2.GetResponse:
        values = [
            features_pb2.Value(feature=name, value=to_value(value), status="PRESENT")
            for name, value in self.values.items()
        ]
        gone = features_pb2.Value(feature="gone", status="MISSING")
        return features_pb2.GetResponse(row=features_pb2.FeatureRow(values=[*values, gone], vector=[1.0, 2.0]))


@dataclass(frozen=True)
class Around:
    """An executor with what stands around it."""

    stub: Any
    house: House
    adapters: Adapters
    memory: Memory
    features: Features


def house_at(
    home: Path, *, bus_url: str = "nats://127.0.0.1:9", sql_url: str = "", models: Any = (), embedding: str = ""
) -> House:
    """Two local models and a shape; no broker unless one is named."""
    mine = [
        ModelConfig(name="small", price=PriceConfig(input=1.0, output=4.0), draft_for=["large"]),
        ModelConfig(name="large", price=PriceConfig(input=10.0, output=40.0), context_tokens=512),
        *models,
    ]
    shapes = {"cascade": {"fast": "small", "main": "large", "min_chars": 0}}
    return House(
        home=str(home),
        bus=BusConfig(url=bus_url),
        sql=SqlConfig(url=sql_url),
        models=mine,
        pipelines=shapes,
        embedding=embedding,
    )


@asynccontextmanager
async def neighbours(house: House) -> AsyncIterator[tuple[Adapters, Memory, Features]]:
    """The scripted rooms, serving."""
    adapters, memory, features = Adapters(), Memory(), Features()
    services = {
        "adapters": lambda s: adapters_pb2_grpc.add_AdaptersServiceServicer_to_server(adapters, s),
        "memory": lambda s: memory_pb2_grpc.add_MemoryServiceServicer_to_server(memory, s),
        "features": lambda s: features_pb2_grpc.add_FeaturesServiceServicer_to_server(features, s),
    }
    async with AsyncExitStack() as stack:
        for room, add in services.items():
            await stack.enter_async_context(
                open_server(house.address(room), [add], names=[], token=service_token(house))
            )
        yield adapters, memory, features


@asynccontextmanager
async def executor(house: House, **settings: Any) -> AsyncIterator[Any]:
    """A stub of a real executor."""
    async with (
        open_executor(house, ExecutorConfig(**settings), World()),
        dial(house.address("executor"), token=service_token(house)) as channel,
    ):
        yield executor_pb2_grpc.ExecutorServiceStub(channel)


@asynccontextmanager
async def around(home: Path, *, house: House | None = None, **settings: Any) -> AsyncIterator[Around]:
    """A real executor over scripted rooms."""
    house = house or house_at(home)
    async with neighbours(house) as (adapters, memory, features), executor(house, **settings) as stub:
        yield Around(stub, house, adapters, memory, features)


def request(plan: Plan, text: str = "hello there", **more: Any) -> executor_pb2.RunRequest:
    """A question for a plan."""
    asked = types_pb2.ChatRequest(messages=[types_pb2.ChatMessage(role="user", content=text)])
    if "temperature" in more:
        asked.sampling.temperature = more.pop("temperature")
    return executor_pb2.RunRequest(plan=plan_to_proto(plan), request=asked, **more)


async def finished(call: Any) -> executor_pb2.Finished:
    """How a run ended."""
    last = [event async for event in call][-1]
    assert last.WhichOneof("event") == "finished"
    return last.finished


__all__ = ["Around", "around", "executor", "finished", "house_at", "neighbours", "request"]
