"""What pipelines and caches cost by themselves: `make bench-pipelines`.

In one process, without a broker or another room: the steps of a pipeline on nothing, a template in its sandbox, a batch
over the house's embedding model against one by one, an answer out of the caches. Medians of several rounds.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from catena.executor.core.admission import Errand
from catena.executor.core.catalogue import Model
from catena.executor.core.chat import ChatRequest, Context, Delta, Message, Sampling, Usage
from catena.executor.core.parts import Parts, Settings
from catena.executor.core.ports import Ask, Ended, NoJournal, Piece, Vectors
from catena.executor.core.predicting import Inquiry, predict
from catena.executor.core.running import carry_out
from catena.executor.core.steps import Pipeline, Step
from catena.executor.drivers.cache import Bounds, LruCache, MeaningCache
from catena.executor.drivers.embedding import LocalEmbedding
from catena.executor.drivers.templating import SandboxedTemplates
from catena.kit.clock import SystemClock, World
from catena.plan.build import sequential

ROUNDS, RUNS, STEPS = 7, 20, 50
ITEMS, MODEL_S = 200, 0.02
FOLDER = Path(__file__).resolve().parents[1] / ".catena-cache" / "minilm-int8"
Work = Callable[[], Awaitable[object]]


@dataclass
class Slow:
    """A model that answers after `MODEL_S`, whoever else asks meanwhile, as servers that batch do."""

    async def generate(self, ask: Ask) -> AsyncIterator[Piece]:
        """One word."""
        await asyncio.sleep(MODEL_S)
        yield Piece(deltas=(Delta(text="word", finish_reason="stop"),), ended=Ended(usage=Usage(output_tokens=1)))

    async def embed(self, model: Model, texts: Sequence[str], timeout_s: float, *, truncate: bool = False) -> Vectors:
        """A direction a text."""
        await asyncio.sleep(MODEL_S)
        return Vectors(vectors=[[1.0, float(len(text))] for text in texts], usage=Usage(input_tokens=len(texts)))


@dataclass
class Store:
    """Pipelines, records, catalogue, memory and features that keep nothing but what is put."""

    models: Mapping[str, Model]
    pipeline: Pipeline | None = None
    hits: list[Mapping[str, str]] = field(default_factory=list)

    async def put(self, tenant: str, pipeline: Pipeline) -> Pipeline:
        """Keep the one."""
        self.pipeline = pipeline
        return pipeline

    async def get(self, tenant: str, name: str, version: int = 0) -> Pipeline | None:
        """The one."""
        return self.pipeline

    async def listed(self, *asked: object) -> Sequence[Any]:
        """Nothing."""
        return ()

    async def delete(self, tenant: str, name: str) -> bool:
        """There is nothing."""
        return False

    def add(self, record: object) -> None:
        """Forget it."""

    async def search(self, collection: str, query: str, n_results: int) -> Sequence[Mapping[str, str]]:
        """Nothing is known."""
        return self.hits

    async def read(self, *asked: object) -> Mapping[str, Any]:
        """Nothing is true."""
        return {"values": {}, "vector": []}


def bench(embedding: LocalEmbedding, templates: SandboxedTemplates) -> tuple[Parts, Store]:
    """The executor's core over these."""
    clock = SystemClock()
    served = Model(name="served", type="embedding", provider="server")
    store = Store({"m": Model(name="m"), "vectors": Model(name="vectors", type="embedding"), "served": served})
    kept: Any = store
    parts = Parts(
        catalogue=kept,
        providers={"local": Slow()},
        embeddings={"local": embedding, "server": Slow()},
        memory=kept,
        features=kept,
        pipelines=kept,
        records=kept,
        templates=templates,
        cache=LruCache(size=1000, ttl_s=60.0, clock=clock),
        semantic=MeaningCache(threshold=0.9, bounds=Bounds(size=5000), clock=clock),
        settings=Settings(embedding_model="vectors"),
        world=World(),
    )
    return parts, store


async def median_ms(work: Work, runs: int = RUNS) -> float:
    """Milliseconds a run, the median of the rounds' means."""
    await work()
    rounds = []
    for _ in range(ROUNDS):
        started = perf_counter()
        for _ in range(runs):
            await work()
        rounds.append((perf_counter() - started) / runs * 1000)
    return statistics.median(rounds)


async def steps(parts: Parts, store: Store) -> list[tuple[str, float, str]]:
    """Milliseconds a step, by type."""
    kinds: dict[str, dict[str, Any]] = {
        "transform": {"value": {"a": "{input}", "n": "{data}"}},
        "preprocess": {"operations": ["strip", "lower", "collapse_spaces", {"truncate": 1000}]},
        "template": {"template": "Dear {{ data.name }}, {% for x in data.rows %}{{ x }} {% endfor %}"},
    }
    data = {"name": "Ada", "rows": list(range(20))}
    found = []
    for kind, config in kinds.items():
        made = tuple(Step(name=f"s{number}", type=kind, config=config) for number in range(STEPS))
        whole = await _predicting(parts, store, Pipeline(name="p", steps=made), data)
        one = await _predicting(parts, store, Pipeline(name="p", steps=made[:1]), data)
        found.append((f"step of type {kind}", (whole - one) / (STEPS - 1), "below 1"))
    return found


async def _predicting(parts: Parts, store: Store, pipeline: Pipeline, data: Any) -> float:
    await store.put("t", pipeline)
    return await median_ms(
        lambda: predict(parts, Inquiry(tenant="t", model_id="pipeline:p", data=data, left_s=60.0, no_cache=True)), 5
    )


async def batches(parts: Parts, store: Store) -> list[tuple[str, float, str]]:
    """How many times faster a batch is than its items one by one."""
    kinds = {
        "a model that answers in 20 ms": {"type": "model", "config": {"model": "m", "prompt": "{item}"}},
        "a server that embeds in 20 ms a call": {
            "type": "model",
            "config": {"kind": "embedding", "model": "served"},
        },
        "the house's embedding model, on this CPU": {
            "type": "model",
            "config": {"kind": "embedding", "model": "vectors"},
        },
    }
    found = []
    for name, inner in kinds.items():
        alone = await _batch(parts, store, inner, {"concurrency": 1, "size": 1}, one_by_one=True)
        together = await _batch(parts, store, inner, {"concurrency": 32})
        found.append((f"batch of {ITEMS} over {name}: times one by one", alone / together, ""))
    return found


async def _batch(
    parts: Parts, store: Store, inner: dict[str, Any], bounds: dict[str, Any], *, one_by_one: bool = False
) -> float:
    """Seconds for all items; texts are new each time, so that nothing is remembered."""
    stamp = perf_counter()
    items = [f"text {stamp} {number}" for number in range(ITEMS)]
    batch = Step(name="b", type="batch", config={"step": inner, **bounds}, timeout_s=600.0)
    await store.put("t", Pipeline(name="p", steps=(batch,)))
    started = perf_counter()
    for data in [[item] for item in items] if one_by_one else [items]:
        await predict(parts, Inquiry(tenant="t", model_id="pipeline:p", data=data, left_s=600.0, no_cache=True))
    return perf_counter() - started


async def caches(parts: Parts) -> list[tuple[str, float, str]]:
    """Milliseconds of a hit."""

    def asked(text: str, temperature: float | None) -> Errand:
        request = ChatRequest(
            messages=(Message(role="user", content=text),), sampling=Sampling(temperature=temperature)
        )
        return Errand(tenant="t", plan=sequential("m"), request=request, context=Context(), left_s=60.0)

    async def run(errand: Errand) -> object:
        return await carry_out(parts, errand, _nobody, NoJournal())

    exact = await median_ms(lambda: run(asked("how do i reset my password", 0.0)))
    await run(asked("how do i reset my password", None))
    numbers = iter(range(10_000))
    known = await median_ms(lambda: run(asked("how can i reset my password", None)))
    fresh = await median_ms(lambda: run(asked(f"how can i {'really ' * (next(numbers) % 90)}reset my password", None)))
    return [
        ("hit of the exact cache, ms", exact, ""),
        ("hit of the cache by meaning, its vector known, ms", known, ""),
        ("lookup by meaning, its vector to be made, ms", fresh, ""),
    ]


async def _nobody(_event: object) -> None:
    """Nobody listens."""


async def main() -> None:
    """Print the table."""
    async with AsyncExitStack() as stack:
        embedding = LocalEmbedding(FOLDER)
        stack.callback(embedding.close)
        templates = await stack.enter_async_context(aclosing(SandboxedTemplates()))
        parts, store = bench(embedding, templates)
        table = Table("what", "figure", "held to", title="Pipelines and caches")
        for rows in (await steps(parts, store), await batches(parts, store), await caches(parts)):
            for name, figure, bound in rows:
                table.add_row(name, f"{figure:.3f}", bound)
        Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
