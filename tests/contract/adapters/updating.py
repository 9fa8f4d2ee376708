"""A room with an adapter in use, and a registry beside it, for tests of updates."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from catena.adapters.config import RegistryConfig
from catena.adapters.core.adapters import Adapters
from catena.adapters.core.manner import Manner
from catena.adapters.core.records import AdapterRecord, Admitted
from catena.adapters.core.resident import Budget
from catena.adapters.core.updates import Finding, Shelves, Source, Told, Trouble, Updates
from catena.adapters.core.work import Part
from catena.adapters.drivers.findings import SqlFindings
from catena.adapters.drivers.registries.opening import open_sources
from catena.adapters.drivers.registry import SqlRegistry
from catena.adapters.drivers.tables import METADATA, MIGRATIONS
from catena.api.events.v1 import events_pb2
from catena.artifacts import index, manifest
from catena.artifacts.store import ArtifactStore
from catena.kit.clock import still_world
from catena.kit.errors import CatenaError
from catena.kit.outbox import Outbox
from catena.kit.store import open_store
from catena.kit.testing import MemoryBus, eventually, running, sqlite_url
from tests.contract.adapters.shelf import Shelf, serving
from tests.unit.adapters.fakes import FakeBases, FakeEngine

BASE = "b" * 64
SIZE = 600_000
"""Of the weights: an archive comes in several pieces."""


class StoreGate:
    """Keeps archives in a real store and admits what its manifest says, unless it should refuse."""

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(root)
        self.refusal: CatenaError | None = None

    async def admit_folder(self, folder: Path) -> Admitted:
        return self._admit(self.store.put_folder(folder))

    async def admit_file(self, file: Path, *, base: str, called: str) -> Admitted:
        raise AssertionError("nobody gives files")

    async def admit_archive(self, archive: bytes) -> Admitted:
        return self._admit(self.store.put_tar(archive))

    async def check(self, record: AdapterRecord) -> Part:
        return Part(folder=str(self.store.path(record.digest)), modules=(), digest="", dtype="F32")

    def _admit(self, digest: str) -> Admitted:
        if self.refusal is not None:
            raise self.refusal
        card = manifest.read(self.store.path(digest))
        return Admitted(
            name=card.name,
            version=card.version,
            digest=digest,
            base=card.base_name,
            base_digest=card.base_digest,
            bytes=100,
            rank=card.rank,
            tasks=card.tasks,
            metrics=card.metrics,
            training_rows=0,
            signer="them",
        )


class Bench:
    """A room with `code:1` stable at an accuracy of 0.80, and a shelf beside it."""

    def __init__(self, tmp_path: Path, shelf: Shelf, store: Any) -> None:
        self.tmp_path, self.shelf = tmp_path, shelf
        self.world = still_world()
        self.bus = MemoryBus()
        self.outbox = Outbox(store, self.bus, self.world)
        self.registry = SqlRegistry(store, self.outbox, self.world, replica="r1")
        self.gate = StoreGate(tmp_path / "artifacts")
        self.engine = FakeEngine()
        self.findings = SqlFindings(store, self.outbox)
        self.bases = FakeBases()
        self.adapters = Adapters(
            engine=self.engine,
            registry=self.registry,
            bases=self.bases,
            gate=self.gate,
            world=self.world,
            manner=Manner(budget=Budget(bytes=1000, count=10)),
            free=lambda: None,
        )
        self.waits: list[float] = []

    def make(self, version: str, accuracy: float = 0.9, *, name: str = "code", **changes: Any) -> Path:
        folder = self.tmp_path / "made" / f"{name}-{version}"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(random.Random(version).randbytes(SIZE))
        fields = {"base_digest": BASE, "rank": 8} | changes
        card = manifest.Manifest(
            name=name,
            version=version,
            base_name="base",
            alpha=16,
            target_modules=("q_proj",),
            metrics={"accuracy": accuracy},
            **fields,
        )
        manifest.seal(folder, card)
        return folder

    def publish(self, *folders: Path, **changes: Any) -> index.Entry:
        """Publish, and then say other things of the first than are true of it."""
        made = index.publish(folders, self.shelf.folder)
        told = (msgspec.structs.replace(made.adapters[0], **changes), *made.adapters[1:])
        (self.shelf.folder / index.INDEX).write_bytes(msgspec.json.encode(index.Index(adapters=told)))
        return told[0]

    @asynccontextmanager
    async def open(self, **settings: Any) -> AsyncIterator[tuple[Updates, Source]]:
        defaults = {"name": "them", "url": self.shelf.url, "plain_http": True, "tenant": "acme"}
        config = RegistryConfig(**defaults | settings)

        async def wait(seconds: float) -> None:
            self.waits.append(seconds)

        def folder(name: str) -> Path:
            made = self.tmp_path / "fetched" / name
            made.mkdir(parents=True, exist_ok=True)
            return made

        async with open_sources([config], folder=folder, rng=random.Random(1), wait=wait) as sources:
            shelves = Shelves(
                registry=self.registry, bases=self.bases, findings=self.findings, register=self.adapters.register
            )
            yield Updates(sources, shelves, clock=self.world.clock, max_rank=64), sources[0]

    async def look(self, *, pull: bool = False, **settings: Any) -> list[Told]:
        async with self.open(**settings) as (updates, source):
            return [one async for one in updates.look_at(source, pull=pull)]

    async def found(self, **settings: Any) -> Finding:
        (finding,) = [one for one in await self.look(**settings) if isinstance(one, Finding)]
        return finding

    async def trouble(self, **settings: Any) -> CatenaError:
        (trouble,) = [one for one in await self.look(**settings) if isinstance(one, Trouble)]
        return trouble.error

    async def announced(self, count: int) -> list[tuple[str, str]]:
        """State and model of what was announced of updates, once there were `count` events in all."""

        async def all_there() -> bool:
            return len(self.bus.events) >= count

        async with running(self.outbox.run()):
            await eventually(all_there)
        events = [e for e in self.bus.events if e.type == "adapters.update.found"]
        told = [events_pb2.UpdateFound.FromString(event.data) for event in events]
        return [(one.state, one.model) for one in told]


@asynccontextmanager
async def open_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    async with (
        open_store(sqlite_url(tmp_path), METADATA, room="adapters", migrations=MIGRATIONS) as store,
        serving(shelf) as served,
    ):
        made = Bench(tmp_path, served, store)
        await made.adapters.register("acme", made.make("1", 0.80))
        await made.registry.set_alias("acme", "base", "code", "stable", version="1", expected="")
        yield made
        await made.adapters.aclose()
